"""An evaluation of a network whose classes have hostile names."""

import jax.numpy as jnp
import numpy as np
import pytest

from kernsym_jax import evaluation

NAMES = ("[bold]cat", "\x1b[31mdog", "nothing")


@pytest.fixture
def results():
    """Evaluates a small network: shifts -> the contents of ``consistency.json``."""
    return evaluated


def evaluated(shifts, flips=True, constant=False):
    images = np.random.default_rng(0).normal(size=(6, 5, 5, 1)).astype(np.float32)
    labels = np.array([0, 0, 0, 0, 1, 1], np.int32)

    def predict(images):
        if constant:
            return jnp.ones((len(images), 3))
        return images[:, 0, :3, 0]

    answers = evaluation.measure(predict, [{"image": images, "label": labels}], shifts, flips=flips)
    settings = {"weights": "$a$.th", "data": "folder:[red]x"}
    return {"settings": settings, **evaluation.summarize(answers, NAMES)}
