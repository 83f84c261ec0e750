"""Helpers of the training loop: metrics files, progress lines, lead over the devices, profile."""

import collections
import errno
import json
import os
import pathlib
import socket
import struct
import time
from collections.abc import Generator, Mapping
from typing import Any

import jax
import numpy as np

from kernsym_jax import json_file, run_directory
from kernsym_jax.training import processes
from kernsym_jax.training.step import Batch


class MetricsWriter:
    """Writes ``metrics.jsonl`` and an event file.

    Args:
      workdir: the run directory.
      step: completed steps. Lines of an earlier session about later steps are removed, because this
        session writes them again.

    Attributes:
      earlier: the lines of earlier sessions.
    """

    def __init__(self, workdir: pathlib.Path, step: int) -> None:
        self.earlier = run_directory.cut_metrics(workdir, step)
        self._file = _AppendedFile(workdir / run_directory.METRICS)
        self._events = _EventFile(workdir / run_directory.TENSORBOARD, step)

    def write(self, step: int, split: str, figures: dict[str, Any]) -> None:
        """Writes the figures of one split.

        Args:
          step: completed steps.
          split: ``train``, ``eval``, ``symmetry`` or ``consistency``.
          figures: numbers, or nested dicts of numbers; None where undefined.

        Raises:
          OSError: naming the file, if the disk is full.
        """
        line = {"step": step, "split": split, **json_file.finite(figures)}
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._events.scalars(step, _scalars(figures, split))

    def close(self) -> None:
        """Closes both files."""
        self._file.close()
        self._events.close()


def _scalars(figures: dict[str, Any], split: str) -> dict[str, float]:
    """Returns the values for TensorBoard, which would be slow with more than a score per layer."""
    found = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    found |= {f"layers/{name}": row["score"] for name, row in figures.get("layers", {}).items()}
    found |= {f"flips/{name}": share for name, share in figures.get("flips", {}).items()}
    return {f"{split}/{name}": value for name, value in found.items() if value is not None}


class _EventFile:
    """The event file of one session, written without a thread that might outlive a full disk.

    Args:
      folder: folder of event files; it is made if it does not exist.
      step: completed steps. TensorBoard hides what earlier sessions wrote about later ones.
    """

    def __init__(self, folder: pathlib.Path, step: int) -> None:
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._file = _AppendedFile(folder / name)
        self._write(file_version="brain.Event:2")
        if step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(step=step + 1, session_log=start)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes the scalars of a step by their tags."""
        rows = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=self._summary(value=rows))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, **fields: object) -> None:
        from tensorboardX.record_writer import masked_crc32c

        data = self._event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        self._file.write(length + sums[0] + data + sums[1])


class _AppendedFile:
    """A file that grows record by record. It buffers nothing, so that a kill loses no record.

    Args:
      path: the file; it is made if it does not exist.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path, self._file = path, path.open("ab", buffering=0)

    def write(self, record: bytes) -> None:
        """Appends a record.

        Raises:
          OSError: naming the file, if the disk has no room for the whole record.
        """
        try:
            written = self._file.write(record)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        if written != len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


STEPS_AHEAD = 4
"""Steps that the host may be ahead of the devices; they hide the host's work and cost memory."""

# A result that arrives within this many seconds counts as already there.
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

    At the end of a ``with`` block it stops the threads that read ahead. They could crash the
    interpreter if they still moved batches to a device while it ends.

    Args:
      batches: the batches in the order of the steps.

    Attributes:
      waited: upper bound of the seconds that the devices have waited for batches. The time to get a
        batch counts if the devices turn out to have no work left.
    """

    def __init__(self, batches: Generator[Batch, None, None]) -> None:
        self._batches, self.waited, self._last = batches, 0.0, 0.0
        self._running: collections.deque[Any] = collections.deque()

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self._batches.close()

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


def evaluation_line(figures: Mapping[str, Any]) -> str:
    """Returns the accuracy and the loss of an evaluation as text."""
    shown = "  ".join(
        f"{name.replace('_', ' ')} {figures[name]:.4f}"
        for name in ("accuracy", "mean_iou", "loss")
        if name in figures
    )
    return f"{shown}  ({figures['images']} images)"


def consistency_line(figures: Mapping[str, Any]) -> str:
    """Returns the shares of equal answers as text."""
    shares = {"shifted": figures.get("shifts"), **figures["flips"]}
    shown = "  ".join(
        f"{name} {shares[name]:.4f}"
        for name in ("shifted", "fliplr", "flipud")
        if shares[name] is not None
    )
    return f"{shown}  ({figures['images']} images)"


def show(line: str) -> None:
    """Prints a line on the first of several processes."""
    if processes.is_first():
        print(line, flush=True)


def duration(seconds: float) -> str:
    """Returns a time span as h:mm:ss, or m:ss below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
