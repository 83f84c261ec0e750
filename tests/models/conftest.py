"""Networks with weights that follow from the names of their parameters."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import pytest

from kernsym_jax import models


@pytest.fixture(scope="session")
def seeded():
    """The functions of seeded_weights.py, by name."""
    return runpy.run_path(str(pathlib.Path(__file__).with_name("seeded_weights.py")))


@pytest.fixture(scope="session")
def prepared(seeded):
    """``prepared(name, batch, size, **fields)`` gives a model, its variables and images."""

    def prepare(name, batch, size, **fields):
        model = models.create(name, **fields)
        images = seeded["images"](batch, size)
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)
        return model, jax.tree.map(jnp.asarray, seeded["variables"](shapes)), images

    return prepare
