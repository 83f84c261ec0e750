"""Networks as shapes alone, traced once for all processes of the suite."""

import os
import pathlib
import pickle
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernsym_jax import layers, models


class Trace(NamedTuple):
    """A network and its shapes: convolutions in the order of a training pass, variables, logits."""

    model: Any
    images: jax.ShapeDtypeStruct
    convolutions: list[str]
    variables: dict
    logits: Any


class Traces:
    """Traces of networks by name and fields, which other processes find in a folder."""

    def __init__(self, folder: pathlib.Path):
        self._folder, self._found = folder, {}

    def __call__(self, name: str, **fields: Any) -> Trace:
        """Returns a training pass of a network at its own size."""
        model = models.create(name, **fields)
        size = models.default_input_size(name)
        images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
        if model not in self._found:
            changes = "".join(f" {key}={value}" for key, value in fields.items())
            self._found[model] = self._read_or_trace(f"{name}{changes}", model, images)
        return Trace(model, images, *self._found[model])

    def _read_or_trace(self, label: str, model: Any, images: jax.ShapeDtypeStruct) -> tuple:
        path = self._folder / f"{label}.pickle"
        if path.is_file():
            return pickle.loads(path.read_bytes())
        traced = _trace(model, images)
        # Renamed when it is whole, because another process may look for it at any moment.
        written = path.with_suffix(f".{os.getpid()}")
        written.write_bytes(pickle.dumps(traced))
        written.rename(path)
        return traced


def _trace(model: Any, images: jax.ShapeDtypeStruct) -> tuple:
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
    return paths, variables, logits
