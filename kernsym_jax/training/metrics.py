"""The figures of a run, written to ``metrics.jsonl`` and to TensorBoard's event files."""

import errno
import json
import os
import pathlib
import socket
import struct
import time
from typing import Any

from kernsym_jax import json_file, run_directory


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
