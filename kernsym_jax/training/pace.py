"""The pace of the training loop: progress lines, the host's lead over the devices, a profile."""

import collections
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from kernsym_jax.training import processes
from kernsym_jax.training.step import Batch

STEPS_AHEAD = 4
"""Steps that the host may be ahead of the devices: they hide its own work, and cost memory."""

# Seconds within which a result counts as one that was there before anyone asked.
_AT_ONCE = 1e-4
# Steps of a session before the profile starts, and steps that it records.
_SKIPPED, _PROFILED = 5, 5


class Progress:
    """Prints one line per log, and measures the speed of training without its pauses.

    Args:
      total_steps: steps of the run.
      images_per_step: images per step of all networks together.
      step: completed steps at the start of this session.
    """

    def __init__(self, total_steps: int, images_per_step: int, step: int) -> None:
        self._total, self._images_per_step = total_steps, images_per_step
        self._speeds: list[float] = []
        self._trained = 0.0
        self.resume(step)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, up to the last pause."""
        return self._trained

    @property
    def images_per_second(self) -> float | None:
        """Median speed between two lines; None before the first line."""
        return float(np.median(self._speeds)) if self._speeds else None

    def resume(self, step: int) -> None:
        """Starts the clock after a pause."""
        self._resumed = time.monotonic()
        self.restart(step)

    def restart(self, step: int) -> None:
        """Measures the speed from this step on, so that it leaves out the time to compile."""
        self._step, self._time = step, time.monotonic()

    def pause(self) -> None:
        """Stops the clock, for instance during an evaluation."""
        self._trained += time.monotonic() - self._resumed

    def line(self, step: int, figures: dict[str, float]) -> None:
        """Prints the figures of a step with the speed since the line before and the time left."""
        now = time.monotonic()
        seconds_per_step = (now - self._time) / max(step - self._step, 1)
        self._step, self._time = step, now
        speed = self._images_per_step / max(seconds_per_step, 1e-9)
        self._speeds.append(speed)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        left = duration(seconds_per_step * (self._total - step))
        width = len(str(self._total))
        show(f"step {step:{width}d}/{self._total}  {shown}  {speed:,.0f} img/s  ETA {left}")


class Ahead:
    """Hands out batches, and keeps the host a few steps ahead of the devices.

    Args:
      batches: the batches in the order of the steps.

    Attributes:
      waited: upper bound of the seconds that the devices have waited for batches. The time to get a
        batch counts if the devices turn out to have no work left.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self.waited, self._last = batches, 0.0, 0.0
        self._running: collections.deque[Any] = collections.deque()

    def batch(self) -> Batch:
        """Returns the next batch."""
        asked = time.perf_counter()
        batch = next(self._batches)
        self._last = time.perf_counter() - asked
        return batch

    def started(self, result: Any) -> None:
        """Records that a step has started; waits while too many are under way.

        Args:
          result: arrays that the step returns and that no later step donates.
        """
        self._running.append(result)
        if len(self._running) > STEPS_AHEAD:
            asked = time.perf_counter()
            jax.block_until_ready(self._running.popleft())
            if time.perf_counter() - asked < _AT_ONCE:
                self.waited += self._last


class Profile:
    """Records the work of the devices in steps 6 to 10 of a session, or in fewer if it ends before.

    Args:
      folder: folder for TensorBoard's profile plugin, or Perfetto; None to record nothing.
      first: completed steps at the start of the session.
    """

    def __init__(self, folder: str | None, first: int) -> None:
        self._folder, self._first, self._running = folder, first, False

    def before(self, step: int) -> None:
        """Starts or ends the record; called with the number of completed steps before each step."""
        if self._folder is not None and step == self._first + _SKIPPED:
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif step == self._first + _SKIPPED + _PROFILED:
            self.close()

    def close(self) -> None:
        """Writes the record."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


def show(line: str) -> None:
    """Prints a line on the first of several processes."""
    if processes.is_first():
        print(line, flush=True)


def duration(seconds: float) -> str:
    """Returns a time span as h:mm:ss, or m:ss below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
