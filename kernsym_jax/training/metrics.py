"""Where a run's figures go: one JSON line each, TensorBoard, and a line for whoever watches."""

import json
import pathlib
import time
from typing import Any

from kernsym_jax import run_directory
from kernsym_jax.training import processes
from kernsym_jax.training.appended_file import AppendedFile
from kernsym_jax.training.event_file import EventFile


class MetricsWriter:
    """Writes ``metrics.jsonl`` and TensorBoard's event files.

    Args:
      workdir: the run directory.
      step: completed steps; what an earlier session wrote about later ones is taken out, since this
        one will write it again.

    Attributes:
      earlier: the lines that earlier sessions wrote.
    """

    def __init__(self, workdir: pathlib.Path, step: int) -> None:
        path = workdir / run_directory.METRICS
        lines = run_directory.read_metrics(workdir)
        self.earlier = [line for line in lines if line["step"] <= step]
        run_directory.write_text(path, "".join(json.dumps(line) + "\n" for line in self.earlier))
        self._file = AppendedFile(path)
        self._events = EventFile(workdir / run_directory.TENSORBOARD, step)

    def write(self, step: int, split: str, figures: dict[str, Any]) -> None:
        """Writes figures of one split.

        Args:
          step: completed steps.
          split: ``train``, ``eval``, ``symmetry`` or ``consistency``.
          figures: numbers, or nested dicts of numbers; None where undefined.
        """
        line = {"step": step, "split": split, **run_directory.finite(figures)}
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._events.scalars(step, _scalars(figures, split))

    def close(self) -> None:
        """Closes both."""
        self._file.close()
        self._events.close()


class Progress:
    """Prints one line per log, with the speed since the line before and the time left.

    Args:
      total_steps: of the run.
      step: completed steps at the start of this session.
    """

    def __init__(self, total_steps: int, step: int) -> None:
        self._total, self._step, self._time = total_steps, step, time.monotonic()

    def restart(self, step: int) -> None:
        """Starts the clock anew, so that compiling or evaluating does not count as training."""
        self._step, self._time = step, time.monotonic()

    def line(self, step: int, images_per_step: int, figures: dict[str, float]) -> float:
        """Prints the line of a step and returns the speed in images per second."""
        now = time.monotonic()
        seconds_per_step = (now - self._time) / max(step - self._step, 1)
        self._step, self._time = step, now
        speed = images_per_step / max(seconds_per_step, 1e-9)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        left = duration(seconds_per_step * (self._total - step))
        width = len(str(self._total))
        show(f"step {step:{width}d}/{self._total}  {shown}  {speed:,.0f} img/s  ETA {left}")
        return speed


def show(line: str) -> None:
    """Prints a line for whoever watches, once for all processes."""
    if processes.is_first():
        print(line, flush=True)


def duration(seconds: float) -> str:
    """A time span as h:mm:ss, or m:ss below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _scalars(figures: dict[str, Any], split: str) -> dict[str, float]:
    """What TensorBoard shows; of each layer its score, as a thousand curves are slow to draw."""
    found = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    found |= {f"layers/{name}": row["score"] for name, row in figures.get("layers", {}).items()}
    found |= {f"flips/{name}": share for name, share in figures.get("flips", {}).items()}
    return {f"{split}/{name}": value for name, value in found.items() if value is not None}
