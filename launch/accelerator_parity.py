"""The `parity` part: does an accelerator compute what a CPU computes?

python launch/accelerator_parity.py    # on a CPU: writes accelerator_parity.json and .npz anew
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from kernsym_jax import data, symmetry, training
from kernsym_jax.training.backend import choose_backend
from kernsym_jax.training.config import complete
from kernsym_jax.training.state import make_recipe
from kernsym_jax.training.step import train_step

STEPS = 20
LOSS_BAND, BF16_BAND, SYMMETRY_BAND = 1e-4, 0.05, 1e-6
"""Largest differences from the CPU: of a float32 loss, of a bfloat16 loss, of a figure."""

COMPARED = (
    ("float32, full precision", "float32", "highest", LOSS_BAND),
    ("float32, default precision", "float32", "default", BF16_BAND),
    ("bfloat16", "bfloat16", "default", BF16_BAND),
)
"""Name, type of the computation, precision of float32 products, and band."""

_REFERENCE = pathlib.Path(__file__).with_suffix(".json")
_WEIGHTS = pathlib.Path(__file__).with_suffix(".npz")

Row = tuple[str, dict[str, Any]]
Item = tuple[str, float, Callable[[], Iterator[Row]]]


def items(*, tiny: bool) -> list[Item]:
    """The comparisons: name, seconds that they take on a GPU, and the function."""
    # On a CPU the default precision is the full one.
    losses = functools.partial(compare_losses, COMPARED[::2] if tiny else COMPARED)
    return [("losses", 60.0, losses), ("figures", 10.0, compare_figures)]


def config(dtype: str) -> ml_collections.ConfigDict:
    """A small network with strides and augmentation on images that are the same everywhere."""
    wanted = training.default()
    wanted.model.update({"width": 8, "depth": 6, "strided": (3, 5), "dtype": dtype})
    wanted.data.update({"source": "textures:size=16,n=64,test=32", "shift": 2})
    wanted.data.flip = "horizontal"
    wanted.optimizer.learning_rate, wanted.optimizer.warmup_epochs = 0.2, 0.0
    wanted.batch_size = wanted.eval_batch_size = 32
    wanted.epochs, wanted.log_every, wanted.consistency.images = 10.0, 1, 0
    return training.resolve(wanted)


def losses(dtype: str, precision: str) -> tuple[list[float], Any]:
    """Trains 20 steps.

    Args:
      dtype: in which the network computes.
      precision: of products of float32, ``default`` or ``highest``.

    Returns:
      The mean loss of each batch, and the parameters after the last step.
    """
    settings = config(dtype)
    backend = choose_backend(settings)
    dataset = data.open_dataset(settings, backend)
    recipe = make_recipe(complete(settings, dataset), dataset)
    state, keys = backend.initial_state(recipe, dataset.image_shape, 0), backend.keys([0])
    batches, found = dataset.train.start(0), []
    # Uncached: programs of the package depend on the recipe alone, not on the precision.
    step = jax.jit(lambda *args: train_step(recipe, *args))
    with jax.default_matmul_precision(precision):
        for _ in range(STEPS):
            state, logs = step(state, next(batches), keys)
            found.append(float(logs["meter"].loss))
    return found, state.params


def figures(weights: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """The symmetry figures of every kernel, as measured in a compiled program."""
    tree = {path.removesuffix("/kernel"): {"kernel": weight} for path, weight in weights.items()}
    measured = jax.jit(symmetry.measure)(tree)
    return {path: np.asarray(row.row, np.float64).tolist() for path, row in measured.items()}


def compare_losses(compared: Sequence[tuple[str, str, str, float]]) -> Iterator[Row]:
    """Compares 20 steps in float32, and in the faster types, with those of a CPU."""
    reference = json.loads(_REFERENCE.read_text("utf-8"))["losses"]
    for name, dtype, precision, band in compared:
        found, _ = losses(dtype, precision)
        yield "parity", _row(f"losses of {STEPS} steps, {name}", found, reference, band)


def compare_figures() -> Iterator[Row]:
    """Compares the symmetry figures of stored weights with those of a CPU."""
    reference = json.loads(_REFERENCE.read_text("utf-8"))["figures"]
    with np.load(_WEIGHTS) as file:
        found = figures(dict(file))
    for path, row in reference.items():
        yield "parity", _row(f"symmetry of {path}", found[path], row, SYMMETRY_BAND)


def _row(name: str, found: list[float], wanted: list[float], band: float) -> dict[str, Any]:
    one, other = np.array(found), np.array(wanted)
    both = np.isnan(one) & np.isnan(other)
    largest = float(np.max(np.where(both, 0, np.abs(one - other))))
    return {
        "what": name, "largest difference": largest, "band": band, "holds": largest <= band
    }  # fmt: skip


def _write_reference() -> None:
    found, params = losses("float32", "highest")
    weights = {path: np.asarray(w) for path, w in symmetry.conv_kernels(params).items()}
    np.savez_compressed(_WEIGHTS, **weights)
    content = {
        "made by": f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
        "losses": found,
        "figures": figures(weights),
    }
    _REFERENCE.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    print(found)


if __name__ == "__main__":
    _write_reference()
