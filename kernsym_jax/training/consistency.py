"""Measures the consistency of a few answers during training, by `evaluation.measure`."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from jax.tree_util import Partial

from kernsym_jax import data, evaluation
from kernsym_jax.training.backend import Backend
from kernsym_jax.training.processes import Stop
from kernsym_jax.training.state import Recipe, TrainState


class _Stopped(Exception):
    """The run was asked to stop during the measurement."""


class ConsistencyProbe:
    """A fixed part of the test images, and the share of them whose answer survives a change.

    All members of a population see the same images: at rest, moved by each offset of the grid, and
    under each element of D4. Every process measures on its own devices and finds the same figures.

    Args:
      config: the complete config of the runs.
      backend: the devices.
      recipe: the settings of the steps.
      dataset: the data.

    Raises:
      ValueError: if a shift could move an image out of sight.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        backend: Backend,
        recipe: Recipe,
        dataset: data.Dataset,
    ) -> None:
        asked = config.consistency
        self._shifts = evaluation.Shifts(asked.mode, -asked.shift, asked.shift)
        self._shifts.view_size(*dataset.image_shape[:2])
        self._backend, self._recipe = backend, recipe
        self._taken = dataset.take_test(min(asked.images, dataset.test_size))
        devices, images = len(backend.local_devices), len(self._taken["label"])
        # The last batch is filled up, so that all batches have one size and one compiled program.
        size = min(config.eval_batch_size, images)
        self._batch_size = -(-size // devices) * devices

    def measure(self, state: TrainState, stop: Stop) -> list[dict[str, Any]] | None:
        """Measures the consistency of every member.

        Args:
          state: the state of the members.
          stop: the request to stop, which ends the measurement.

        Returns:
          For each member ``images``, ``mode``, ``reach`` (the largest offset), and the shares of
          equal answers: ``shifts``, the mean over all offsets but rest, and ``flips``, one for each
          element; with moving averages also theirs, with the prefix ``ema_``. With masks they are
          shares of the pixels that both images show. None after a request to stop.
        """

        def leave_if_asked() -> None:
            if stop.asked():
                raise _Stopped

        try:
            return [
                self._measure_member(self._backend.member(state, index), leave_if_asked)
                for index in range(max(1, self._backend.members))
            ]
        except _Stopped:
            return None

    def _measure_member(self, state: TrainState, before_pass: Callable[[], None]) -> dict[str, Any]:
        figures: dict[str, Any] = {
            "images": len(self._taken["label"]),
            "mode": self._shifts.mode,
            "reach": self._shifts.high,
        }
        for prefix, variables in state.evaluated.items():
            local = jax.tree.map(lambda leaf: leaf.addressable_data(0), variables)
            answers = evaluation.measure(
                Partial(_predictor(self._recipe.model), local),
                self._batches(),
                self._shifts,
                rolled=False,
                devices=self._backend.local_devices,
                before_pass=before_pass,
            )
            if self._shifts.high:
                figures[f"{prefix}shifts"] = _without_rest(answers)
            figures[f"{prefix}flips"] = {
                name: float(np.mean(flips.agrees, dtype=np.float64))
                for name, flips in answers.flips.items()
                if name != "e"
            }
        return figures

    def _batches(self) -> Iterator[dict[str, Any]]:
        images, labels = self._taken["image"], self._taken["label"]
        for start in range(0, len(labels), self._batch_size):
            places = np.arange(start, start + self._batch_size)
            chosen = np.minimum(places, len(labels) - 1)
            part = jax.device_put(images[chosen])
            yield {
                "image": _normalize(part, self._recipe.mean, self._recipe.std),
                "label": labels[chosen],
                "weight": np.where(places < len(labels), np.float32(1), np.float32(0)),
            }


def _without_rest(answers: Any) -> float:
    """Returns the share of equal answers over all offsets but rest, which always agrees."""
    agreeing, compared = answers.map_agreeing.copy(), answers.map_compared.copy()
    rest = answers.shifts.differences.index(0)
    agreeing[rest, rest] = compared[rest, rest] = 0
    return float(agreeing.sum() / compared.sum())


_normalize = jax.jit(data.normalize, static_argnames=("mean", "deviation"))


@functools.lru_cache(maxsize=16)
def _predictor(model: nn.Module) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns one function per model, so that runs of the same model share the compiled program."""

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        logits: Any = model.apply(variables, images, train=False)
        return logits

    return predict
