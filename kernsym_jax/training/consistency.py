"""While training: how often the answers to a few images survive small shifts and flips."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

from kernsym_jax import data, evaluation, symmetry
from kernsym_jax.symmetry.group import cell_permutations
from kernsym_jax.training.backend import Backend
from kernsym_jax.training.recipe import Recipe
from kernsym_jax.training.stop import Stop

_REST = (0, 0)


class Consistency:
    """A fixed part of the test images, and how answers to them are compared.

    Every member is shown the same images: at rest, moved by each offset of the grid, and under each
    element of D4. The network is compiled once for all of them.

    Args:
      config: of the runs, complete.
      backend: on which they train.
      recipe: of their steps.
      dataset: their data.

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
        size = dataset.image_shape[:2]
        self._shifts.view_size(*size)
        self._elements = [name for name in symmetry.elements(*size) if name != "e"]
        self._backend, self._axis = backend, int(backend.members > 0)
        self._step = backend.compile_answers(recipe, asked.mode)
        self._images = dataset.take_test(min(asked.images, dataset.test_size))["image"]
        parts = backend.parts
        most = -(-config.eval_batch_size // parts) * parts
        self._batch_size = min(most, -(-len(self._images) // parts) * parts)

    def measure(self, state: Any, stop: Stop) -> list[dict[str, Any]] | None:
        """Compares the answers of every member.

        Args:
          state: of the members.
          stop: whether they have been asked to stop.

        Returns:
          For each member ``images``, ``mode``, ``reach`` (the largest offset), and the shares of
          the same answer: ``shifts``, the mean over all offsets but rest, and ``flips`` with one of
          each element; of the moving averages too, with the prefix ``ema_``. Of masks they are
          shares of the pixels that both see. ``None`` if stopped.
        """
        rest = self._answers(state, self._images, _REST)
        found: dict[str, list[Any]] = {}
        for name, offset in self._views():
            if stop.asked():
                return None
            places = self._places(name, offset)
            images = self._images
            if name != "e":
                images = images.reshape(len(images), -1, images.shape[-1])[:, places.ravel()]
                images = images.reshape(-1, *places.shape, images.shape[-1])
            kind = "shifts" if name == "e" else name
            found.setdefault(kind, []).append(
                {
                    prefix: _agreement(rest[prefix], other, places)
                    for prefix, other in self._answers(state, images, offset).items()
                }
            )
        return [self._figures(found, member) for member in range(self._backend.members or 1)]

    def _views(self) -> Iterator[tuple[str, tuple[int, int]]]:
        offsets = (offset for offset in self._shifts.grid if offset != _REST)
        return itertools.chain(
            (("e", offset) for offset in offsets), ((name, _REST) for name in self._elements)
        )

    def _places(self, name: str, offset: tuple[int, int]) -> np.ndarray:
        """Where every pixel of a view was at rest: its flat index, −1 for what has entered."""
        height, width = self._images.shape[1:3]
        names = symmetry.elements(height, width)
        turned = cell_permutations(height, width)[names.index(name)]
        moved = np.roll(turned.reshape(height, width), offset, (0, 1))
        if self._shifts.mode == "zero":
            for axis, by in enumerate(offset):
                entered = slice(0, by) if by > 0 else slice(by or moved.shape[axis], None)
                moved[(slice(None),) * axis + (entered,)] = -1
        return moved

    def _answers(
        self, state: Any, images: np.ndarray, offset: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """The answers to all images, (members, images, …)."""
        own = self._batch_size // jax.process_count()
        first = jax.process_index() * own
        down, right = (self._backend.shard(np.full(own, by, np.int32)) for by in offset)
        parts = []
        for start in range(0, len(images), self._batch_size):
            # The last batch is filled up with images that are not looked at.
            chosen = np.minimum(np.arange(start, start + self._batch_size), len(images) - 1)
            part = self._backend.shard(images[chosen[first : first + own]])
            parts.append(self._step(state, {"image": part, "down": down, "right": right}))
            parts[:-1] = jax.device_get(parts[:-1])
        joined = jax.tree.map(
            lambda *answers: np.concatenate(answers, self._axis), *jax.device_get(parts)
        )
        return {
            prefix: (answers if self._axis else answers[None])[:, : len(images)]
            for prefix, answers in joined.items()
        }

    def _figures(self, found: dict[str, list[Any]], member: int) -> dict[str, Any]:
        asked = self._shifts
        figures: dict[str, Any] = {
            "images": len(self._images), "mode": asked.mode, "reach": asked.high,
        }  # fmt: skip
        for prefix in next(iter(found.values()))[0]:
            means = {
                kind: float(np.mean([one[prefix][member] for one in parts]))
                for kind, parts in found.items()
            }
            if "shifts" in means:
                figures[f"{prefix}shifts"] = means.pop("shifts")
            figures[f"{prefix}flips"] = means
        return figures


def _agreement(rest: np.ndarray, other: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The share of equal answers of each member; of masks, over the pixels that both see."""
    if rest.ndim == 2:
        return np.mean(rest == other, axis=1)
    members, count = rest.shape[:2]
    seen = places.ravel() >= 0
    rest, other = (answers.reshape(members, count, -1) for answers in (rest, other))
    return np.mean(rest[..., places.ravel()[seen]] == other[..., seen], axis=(1, 2))
