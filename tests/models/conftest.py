"""Networks with weights that follow from the names of their parameters."""

import functools
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
def prepared(seeded, traced):
    """``prepared(name, batch, size, **fields)`` gives a model, its variables and images."""

    @functools.lru_cache(maxsize=2)
    def variables(name, **fields):
        return jax.tree.map(jnp.asarray, seeded["variables"](traced(name, **fields).variables))

    def prepare(name, batch, size, **fields):
        # Neither the size nor a padding changes the parameters, nor a downsampling but LPS.
        own = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in fields.items()
            if key not in ("padding", "downsample")
        }
        if fields.get("downsample") == "lps":
            own["downsample"] = "lps"
        images = seeded["images"](batch, size)
        return models.create(name, **fields), variables(name, **own), images

    return prepare
