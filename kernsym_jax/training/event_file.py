"""TensorBoard's event files."""

import pathlib
import socket
import struct
import time

from kernsym_jax.training.appended_file import AppendedFile


class EventFile:
    """The event file of one session, written at once: no thread that would outlive a full disk.

    Args:
      folder: for event files; made if it is not there.
      step: completed steps; what earlier sessions wrote about later ones is hidden.
    """

    def __init__(self, folder: pathlib.Path, step: int) -> None:
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._file = AppendedFile(folder / name)
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
