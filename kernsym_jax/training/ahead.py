"""How far the host runs ahead of the devices."""

import collections
import time
from collections.abc import Iterator
from typing import Any

import jax

from kernsym_jax.training.step import Batch

STEPS = 4
"""How many steps the host may be ahead: enough to hide its own work, and no more memory."""

_AT_ONCE = 1e-4


class Ahead:
    """Hands out batches, keeps the host few steps ahead, and tells how long devices had no input.

    Args:
      batches: in the order of the steps.

    Attributes:
      waited: seconds that the devices have waited for a batch at most: the time to get a batch
        counts if the devices turn out to have nothing left to do.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self.waited, self._last = batches, 0.0, 0.0
        self._running: collections.deque[Any] = collections.deque()

    def batch(self) -> Batch:
        """The next batch."""
        asked = time.perf_counter()
        batch = next(self._batches)
        self._last = time.perf_counter() - asked
        return batch

    def started(self, result: Any) -> None:
        """Is told a result of each step that was started; waits until few are under way.

        Args:
          result: arrays that are not donated.
        """
        self._running.append(result)
        if len(self._running) > STEPS:
            asked = time.perf_counter()
            jax.block_until_ready(self._running.popleft())
            if time.perf_counter() - asked < _AT_ONCE:
                self.waited += self._last
