"""A run small enough for a test: 8 steps of a two-layer network on the digits."""

import functools
import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from kernsym_jax import data, training
from kernsym_jax.training.backend import Backend, choose_backend
from kernsym_jax.training.checkpoints import Checkpoints, newest_whole
from kernsym_jax.training.config import complete
from kernsym_jax.training.state import Recipe, make_recipe


def config(**changes):
    """The config; changes are given with dots written as double underscores."""
    tiny = training.default()
    tiny.batch_size = 64
    tiny.epochs = 8 / 22
    tiny.model.update({"width": 4, "depth": 2, "strided": (2,)})
    tiny.data.shift = 1
    tiny.log_every = 3
    tiny.eval_every_epochs = 4 / 22
    tiny.consistency.images = 32
    tiny.checkpoint_every_epochs = 4 / 22
    for key, value in changes.items():
        *path, name = key.split("__")
        node = tiny
        for part in path:
            node = node[part]
        node[name] = value
    return tiny


class Parts(NamedTuple):
    """The parts of a run."""

    backend: Backend
    dataset: data.Dataset
    recipe: Recipe

    def initial_state(self, seed=0):
        return self.backend.initial_state(self.recipe, self.dataset.image_shape, seed)

    def train(self, steps, seeds=(0,)):
        """The state after some steps, and each step's logs on the host."""
        step = self.backend.compile_train(self.recipe)
        state = self.backend.join([self.initial_state(seed) for seed in seeds])
        key, stream, logs = self.backend.keys(seeds), self.dataset.train.start(0), []
        for _ in range(steps):
            state, log = step(state, next(stream), key)
            logs.append(jax.device_get(log))
        return state, logs


def parts(changed, members=0):
    """The backend, the data and the recipe that a run makes from a config."""
    resolved = training.resolve(changed)
    backend = choose_backend(resolved, members)
    dataset = data.open_dataset({**resolved, "eval_batch_size": 256}, backend)
    recipe = make_recipe(complete(resolved, dataset), dataset, backend.axis_name)
    return Parts(backend, dataset, recipe)


@functools.partial(jax.jit, static_argnums=0)
def logits(model, variables, images):
    """The logits of a trained network."""
    return model.apply(variables, images, train=False)


def saved_state(workdir, changed):
    """The newest checkpoint of a run."""
    checkpoints = Checkpoints(pathlib.Path(workdir) / "checkpoints", 3)
    try:
        return checkpoints.restore(newest_whole([checkpoints]), parts(changed).initial_state())
    finally:
        checkpoints.close()


def lines(workdir, split=None):
    """The lines of ``metrics.jsonl``, of one split or of all."""
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return [line for line in found if split in (None, line["split"])]


def require_equal(left, right):
    """Fails unless all arrays are equal bit by bit."""
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def require_close(left, right, tolerance=1e-5):
    """Fails if a number differs by more than the tolerance, NaN equal to NaN."""
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)
