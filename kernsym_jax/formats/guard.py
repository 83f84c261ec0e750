"""Reads sources from outside in a process of their own, with limits on time, memory and files.

A file from a stranger can make a reader slow or large, or crash the library that it calls. So one
small server process, which never imports JAX, forks a process for every source
(`kernsym_jax.formats.guard_server`). That process ends in a result, in one line that says what is
wrong, or at its limits. Its arrays come back without a copy, as places in the source's files or in
a block of shared memory.

Systems without ``fork``, such as Windows, read sources in this process. macOS does not limit
address space; processor time and files are limited there too.
"""

import atexit
import contextlib
import importlib
import json
import os
import pathlib
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

RESULT, FAILURE = b"R", b"F"
"""An answer begins with one of these; a description of the result or JSON is behind it."""

STATUS_SIZE = 12
"""Bytes of the exit status with which every answer ends."""

MAX_ANSWER = 256 << 20
"""Bytes of an answer, which holds names and facts but no values of arrays."""

Reader = tuple[str, str]
"""The module and name of a function that takes a source's path and further arguments."""

Call = tuple[str, str, str, tuple[Any, ...]]

_AVAILABLE = hasattr(os, "fork") and hasattr(socket, "send_fds")
_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (FileNotFoundError, PermissionError, OSError, ImportError, ModuleNotFoundError)
}
# Threads and their memory pools would count against the limit on address space.
_ENVIRONMENT = {
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "MALLOC_ARENA_MAX": "2",
}
_DAMAGED = "the file is damaged, or made to be slow"
_ENDS = {
    signal.SIGXCPU: f"not read within its limit of processor time: {_DAMAGED}",
    signal.SIGALRM: f"not read within its limit of time: {_DAMAGED}",
    signal.SIGKILL: "the system ended the process that read it",
    signal.SIGTERM: "the system ended the process that read it",
}


class _Server:
    """The server process of this process, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def send(self, connection: socket.socket) -> None:
        """Hands the server one end of a connection."""
        with self._lock:
            try:
                self._send(connection)
            except OSError:
                # The system may have ended the server; a new one takes its place.
                self._close()
                self._send(connection)

    def stop(self) -> None:
        """Ends the server."""
        with self._lock:
            self._close()

    def _send(self, connection: socket.socket) -> None:
        # A forked process must not share the server of its parent.
        if self._control is None or self._owner != os.getpid():
            self._start()
        assert self._control is not None
        socket.send_fds(self._control, [b"\0"], [connection.fileno()])

    def _start(self) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -S leaves out start-up files of the site, which take longer than NumPy.
                [sys.executable, "-I", "-S", "-c", _program(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | _ENVIRONMENT,
            )
        self._owner = os.getpid()

    def _close(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None and self._owner == os.getpid():
            self._process.wait()
        self._control = self._process = None


_server = _Server()
_begun: dict[Call, socket.socket] = {}


def _program(control: int) -> str:
    """The program of the server, which finds its modules where this process does."""
    root = str(pathlib.Path(__file__).resolve().parents[2])
    places = [root, *(place for place in sys.path if place)]
    return (
        f"import sys; sys.path[:] = {places!r}; "
        f"from kernsym_jax.formats.guard_server import serve; serve({control})"
    )


@atexit.register
def stop() -> None:
    """Ends the server and forgets what has begun; the next call starts another one."""
    while _begun:
        _begun.popitem()[1].close()
    _server.stop()


def begin(reader: Reader, source: str | os.PathLike, *arguments: Any) -> None:
    """Begins to read a source; the next `call` with the same arguments returns the result.

    Args:
      reader: the function that reads it.
      source: the file or folder.
      *arguments: numbers, text, None, and tuples of these.
    """
    made = _call(reader, source, arguments)
    if _AVAILABLE and made not in _begun:
        with contextlib.suppress(OSError):
            _begun[made] = _ask(made)


def call(
    reader: Reader,
    source: str | os.PathLike,
    *arguments: Any,
    records: Sequence[type] = (),
) -> Any:
    """Calls a reader in a process of its own.

    Args:
      reader: as in `begin`.
      source: as in `begin`.
      *arguments: as in `begin`.
      records: the classes that the result is made of, beside containers, text, numbers, arrays and
        `StoredArray`; and the classes of errors of its own that the reader raises.

    Returns:
      What the reader returns. Its arrays are read-only views of files and of shared memory.

    Raises:
      ValueError: of at most 280 characters that name the source, if the reader raises one, crashes
        or exceeds its limits.
      OSError: if the reader cannot open a file.
      ImportError: if a library is missing.
    """
    if not _AVAILABLE:
        return function(reader)(source, *arguments)
    from kernsym_jax.formats import arrays, shared_arrays

    made = _call(reader, source, arguments)
    with _begun.pop(made, None) or _ask(made) as connection, contextlib.ExitStack() as stack:
        content, block = _received(connection)
        if block is not None:
            stack.callback(os.close, block)
        kind, status = bytes(content[:1]), _status(content)
        with arrays.naming(source):
            if status != 0:
                raise ValueError(_end(status))
            if kind == RESULT:
                body = memoryview(content)[1:-STATUS_SIZE]
                return shared_arrays.unpacked(body, block, records)
        name, message = json.loads(bytes(content[1:-STATUS_SIZE]))
        errors = {kind.__name__: kind for kind in records if issubclass(kind, Exception)}
        raise (_ERRORS | errors).get(name, ValueError)(message)


def function(reader: Reader) -> Any:
    """Returns the function that a reader names."""
    module, name = reader
    return getattr(importlib.import_module(module), name)


def _call(reader: Reader, source: str | os.PathLike, arguments: tuple[Any, ...]) -> Call:
    return (*reader, str(pathlib.Path(source)), arguments)


def _ask(made: Call) -> socket.socket:
    """Hands a call to the server; returns where the answer will arrive."""
    ours, theirs = socket.socketpair()
    with theirs:
        _server.send(theirs)
    ours.sendall(pickle.dumps((made, os.getcwd())))
    ours.shutdown(socket.SHUT_WR)
    return ours


def _received(connection: socket.socket) -> tuple[bytearray, int | None]:
    """The answer, and the descriptor of the block of shared memory if there is one."""
    content, blocks = bytearray(), []
    while True:
        part, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 1)
        blocks += descriptors
        if not part or len(content) > MAX_ANSWER:
            return content, blocks[0] if blocks else None
        content += part


def _status(content: bytearray) -> int | None:
    """The exit status of the process that read the source; None if it is unknown."""
    end = bytes(content[-STATUS_SIZE:])
    return int(end) if len(content) >= STATUS_SIZE and end.strip(b"- 0123456789") == b"" else None


def _end(status: int | None) -> str:
    """Says how a process ended that gave no answer."""
    if status is None:
        return _ENDS[signal.SIGKILL]
    return _ENDS.get(-status, f"a damaged file: the library that reads it crashed ({-status})")  # type: ignore[call-overload]  # numbers of signals
