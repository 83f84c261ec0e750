"""A run small enough for a test: 8 steps of a two-layer network on the digits."""

from kernsym_jax import training


def config(**changes):
    """The config; changes are given with dots written as double underscores."""
    tiny = training.default()
    tiny.batch_size = 64
    tiny.epochs = 8 / 22
    tiny.model.update({"width": 4, "depth": 2, "strided": (2,)})
    tiny.data.shift = 1
    tiny.log_every = 3
    tiny.eval_every_epochs = 4 / 22
    tiny.checkpoint_every_epochs = 4 / 22
    for key, value in changes.items():
        *path, name = key.split("__")
        node = tiny
        for part in path:
            node = node[part]
        node[name] = value
    return tiny
