"""The `parity` part: does an accelerator compute what a CPU computes?

python launch/accelerator_parity.py    # on a CPU: writes accelerator_parity.json and .npz anew
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from kernsym_jax import data, symmetry, training
from kernsym_jax.symmetry.measure import FIELDS
from kernsym_jax.training.backend import choose_backend
from kernsym_jax.training.config import complete
from kernsym_jax.training.state import make_recipe
from kernsym_jax.training.step import train_step

STEPS = 20
COMPARED = (
    ("float32, full precision", "float32", "highest", 1e-4, 1e-3),
    ("float32, default precision", "float32", "default", 0.01, 0.1),
    ("bfloat16", "bfloat16", "default", 0.01, 0.3),
)
"""Name, type of the computation, precision of float32 products, and the largest differences from
the CPU: of a loss, and of the size of an array's first update, as a share of it."""

FIGURE_BAND, P_BAND = 1e-6, 1e-4
"""Largest differences of a symmetry figure, and of a p-value, which is as many times more sensitive
to rounding as the signature is smaller than the weights."""

# Rounding now and then turns a ReLU on or off, and each further step multiplies what follows from
# that. Weights that differ by 1e-6 of themselves move the 20 losses by 1e-2 at a rate of 0.2, by
# 1e-3 at 0.05, and by less than 1e-4 here.
_LEARNING_RATE = 0.003

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
    wanted.optimizer.learning_rate, wanted.optimizer.warmup_epochs = _LEARNING_RATE, 0.0
    wanted.batch_size = wanted.eval_batch_size = 32
    wanted.epochs, wanted.log_every, wanted.consistency.images = 10.0, 1, 0
    return training.resolve(wanted)


class Steps(NamedTuple):
    """What 20 steps leave."""

    losses: list[float]  # the mean loss of each batch
    updates: list[float]  # the Euclidean length of the first step's update of each array
    params: Any  # the parameters after the last step


def train(dtype: str, precision: str) -> Steps:
    """Trains 20 steps.

    Args:
      dtype: in which the network computes.
      precision: of products of float32, ``default`` or ``highest``.
    """
    settings = config(dtype)
    backend = choose_backend(settings)
    dataset = data.open_dataset(settings, backend)
    recipe = make_recipe(complete(settings, dataset), dataset)
    state, keys = backend.initial_state(recipe, dataset.image_shape, 0), backend.keys([0])
    batches, losses = dataset.train.start(0), []
    parameters = [jax.device_get(state.params)]
    # Uncached: programs of the package depend on the recipe alone, not on the precision.
    step = jax.jit(lambda *args: train_step(recipe, *args))
    with jax.default_matmul_precision(precision):
        for number in range(STEPS):
            state, logs = step(state, next(batches), keys)
            losses.append(float(logs["meter"].loss))
            if number == 0:
                parameters.append(jax.device_get(state.params))
    moved = jax.tree.map(lambda old, new: float(np.linalg.norm(new - old)), *parameters)
    return Steps(losses, jax.tree.leaves(moved), state.params)


def figures(weights: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """The symmetry figures of every kernel, as measured in a compiled program."""
    tree = {path.removesuffix("/kernel"): {"kernel": weight} for path, weight in weights.items()}
    measured = jax.jit(symmetry.measure)(tree)
    return {path: np.asarray(row.row, np.float64).tolist() for path, row in measured.items()}


def compare_losses(compared: Sequence[tuple[str, str, str, float, float]]) -> Iterator[Row]:
    """Compares 20 steps in float32, and in the faster types, with those of a CPU."""
    reference = json.loads(_REFERENCE.read_text("utf-8"))
    wanted = np.array(reference["updates"])
    for name, dtype, precision, loss_band, update_band in compared:
        found = train(dtype, precision)
        losses = np.subtract(found.losses, reference["losses"])
        yield "parity", _row(f"losses of {STEPS} steps, {name}", losses, loss_band)
        shares = np.array(found.updates) / wanted - 1
        yield "parity", _row(f"sizes of the first updates, {name}", shares, update_band)


def compare_figures() -> Iterator[Row]:
    """Compares the symmetry figures of stored weights with those of a CPU."""
    reference = json.loads(_REFERENCE.read_text("utf-8"))["figures"]
    with np.load(_WEIGHTS) as file:
        found = figures(dict(file))
    is_p = np.array(FIELDS) == "sig_p"
    differences = {path: _difference(found[path], row) for path, row in reference.items()}
    for path, row in differences.items():
        yield "parity", _row(f"symmetry of {path}", row[~is_p], FIGURE_BAND)
    p_values = np.array([row[is_p] for row in differences.values()])
    yield "parity", _row("p-values of the signatures", p_values, P_BAND)


def _difference(found: list[float], wanted: list[float]) -> np.ndarray:
    """Returns the differences, 0 for a figure that the kernel has on neither side."""
    one, other = np.array(found), np.array(wanted)
    return np.where(np.isnan(one) & np.isnan(other), 0, one - other)


def _row(name: str, differences: np.ndarray, band: float) -> dict[str, Any]:
    largest = float(np.max(np.abs(differences)))
    return {
        "what": name, "largest difference": largest, "band": band, "holds": largest <= band
    }  # fmt: skip


def _write_reference() -> None:
    found = train("float32", "highest")
    weights = {path: np.asarray(w) for path, w in symmetry.conv_kernels(found.params).items()}
    np.savez_compressed(_WEIGHTS, **weights)
    content = {
        "made by": f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
        "losses": found.losses,
        "updates": found.updates,
        "figures": figures(weights),
    }
    _REFERENCE.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    print(found.losses)


if __name__ == "__main__":
    _write_reference()
