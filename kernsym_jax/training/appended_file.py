"""A file that only grows, record by record."""

import errno
import os
import pathlib


class AppendedFile:
    """Writes each record with one call and keeps nothing back, so that a kill loses no record.

    Args:
      path: the file; made if it is not there.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path, self._file = path, path.open("ab", buffering=0)

    def write(self, record: bytes) -> None:
        """Appends a record.

        Raises:
          OSError: naming the file, if there is no room for all of it.
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
