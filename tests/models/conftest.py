"""Networks as shapes alone, and with weights that follow from the names of their parameters."""

import functools
import pathlib
import runpy
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from kernsym_jax import layers, models


class Trace(NamedTuple):
    """A network and its shapes: convolutions in the order of a training pass, variables, logits."""

    model: Any
    images: jax.ShapeDtypeStruct
    convolutions: list[str]
    variables: dict
    logits: Any


@pytest.fixture(scope="session")
def traced():
    """``traced(name, **fields)`` traces a training pass of a network at its own size, once."""

    @functools.cache
    def trace(name, **fields):
        model = models.create(name, **fields)
        size = models.default_input_size(name)
        images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
        paths = []

        def note(module, method):
            if method == "__call__" and isinstance(module, layers.Conv):
                paths.append("/".join(module.path))
            return False

        def train(key, images):
            keys = {"params": key, "dropout": key, "downsample": key}
            return model.init_with_output(
                keys, images, train=True, capture_intermediates=note, mutable=True
            )

        logits, variables = jax.eval_shape(train, jax.random.key(0), images)
        return Trace(model, images, paths, variables, logits)

    return trace


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
