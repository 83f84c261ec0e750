"""The server behind `kernsym_jax.formats.guard`: forks a limited process for every source."""

import contextlib
import importlib
import json
import math
import os
import pathlib
import pickle
import resource
import selectors
import signal
import socket
import stat
import sys
import tempfile
from typing import Any

from kernsym_jax.formats.arrays import OPENED_FOLDER, naming
from kernsym_jax.formats.guard import (
    FAILURE,
    RESULT,
    STATUS_SIZE,
    Call,
    function,
    packed,
)

_FREE_MEMORY, _MEMORY_PER_BYTE = 1_000_000_000, 4
_FREE_SECONDS, _BYTES_PER_SECOND = 5.0, 100e6
# Processor time comes late on a crowded machine, so the clock allows a multiple of it.
_PATIENCE = 20
# Libraries of readers, which the server imports when a source first needs them. A process that
# lacks one ends with the status `_LACKS` and its number.
_LIBRARIES = ("h5py", "msgpack", "onnx", "tensorstore")
_LACKS = 100
_tried: set[str] = set()
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_REFUSED = frozenset((
    "ftplib.connect", "os.chmod", "os.chown", "os.exec", "os.fork", "os.forkpty", "os.link",
    "os.mkdir", "os.posix_spawn", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.system",
    "os.truncate", "os.utime", "socket.bind", "socket.connect", "subprocess.Popen",
))  # fmt: skip


def serve(control: int) -> None:
    """Answers calls until the other end of a connection closes.

    Args:
      control: descriptor of a socket that brings a byte and the descriptor of a connection for each
        call.
    """
    # Control-C reaches every process of a terminal; closing the connection ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    calls = socket.socket(fileno=control)
    selector = selectors.DefaultSelector()
    selector.register(calls, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                message, descriptors, _, _ = socket.recv_fds(calls, 1, 1)
                if not message:
                    return
                connection = socket.socket(fileno=descriptors[0])
                reading = _Reading(connection, _request(connection))
            else:
                selector.unregister(key.fd)
                os.close(key.fd)
                reading = key.data
                if not reading.again():
                    continue
            selector.register(reading.start(), selectors.EVENT_READ, reading)


def _request(connection: socket.socket) -> bytes:
    content = bytearray()
    while part := connection.recv(1 << 16):
        content += part
    return bytes(content)


class _Reading:
    """A call, and the process that answers it."""

    def __init__(self, connection: socket.socket, request: bytes):
        self._connection = connection
        self._request = request
        self._process = 0

    def start(self) -> int:
        """Forks a process; returns the descriptor of a pipe that closes when the process ends."""
        # Every process has the modules that the server has, and need not import them.
        with contextlib.suppress(Exception):
            importlib.import_module(pickle.loads(self._request)[0][0])
        alive, ours = os.pipe()
        self._process = os.fork()
        if self._process == 0:
            os.close(alive)
            _answer(self._connection, self._request)
        os.close(ours)
        return alive

    def again(self) -> bool:
        """Tells the other end how the process has ended, unless it lacked a library."""
        status = os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])
        if status >= _LACKS:
            # While it is imported, a library does things that a reader may not do.
            _tried.add(_LIBRARIES[status - _LACKS])
            with contextlib.suppress(ImportError):
                importlib.import_module(_LIBRARIES[status - _LACKS])
            return True
        with self._connection, contextlib.suppress(OSError):
            self._connection.sendall(str(status).encode().rjust(STATUS_SIZE))
        return False


def _answer(connection: socket.socket, request: bytes) -> None:
    """Reads the source of one call, answers and ends this process."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        made, folder = pickle.loads(request)
        os.chdir(folder)
        block = _block()
        kind, body = _outcome(made, block)
        socket.send_fds(connection, [kind], [block])
        connection.sendall(body)
        os._exit(0)
    finally:
        os._exit(1)


def _outcome(made: Call, block: int) -> tuple[bytes, bytes]:
    """Returns the kind and the content of the answer to a call."""
    module, name, source, arguments = made
    reader = function((module, name))
    limits = _Limits(source)
    try:
        with naming(source):
            sys.addaudithook(limits.watch)
            return RESULT, packed(reader(source, *arguments), block)
    except Exception as error:
        limits.lift()
        return FAILURE, json.dumps([type(error).__name__, str(error)]).encode()


def _block() -> int:
    """Returns the descriptor of an empty piece of memory."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("kernsym_jax")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class _Limits:
    """The limits of this process, which grow with the files of the source that it opens."""

    def __init__(self, source: str):
        self._roots = _roots(source)
        self._libraries = tuple(
            os.path.realpath(place) for place in {*sys.path, sys.prefix, sys.base_prefix} if place
        )
        self._seen: set[tuple[int, int]] = set()
        self._bytes = 0
        self._used = _used_memory()
        self._raise_limits()
        # A reader that is killed leaves no picture of its memory behind.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.dont_write_bytecode = True

    @property
    def memory(self) -> int:
        """The bytes that the process may take beside its libraries."""
        return _FREE_MEMORY + _MEMORY_PER_BYTE * self._bytes

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook: lets the process open regular files of the source and its libraries."""
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, int) and os.fsdecode(path) != os.devnull:
                self._open(os.fsdecode(path), flags)
        elif event == "import":
            if arguments[0] in _LIBRARIES and arguments[0] not in _tried:
                os._exit(_LACKS + _LIBRARIES.index(arguments[0]))
        elif event == OPENED_FOLDER:
            folder, size = arguments
            if not _is_below(os.path.realpath(folder), self._roots):
                raise ValueError(_outside(folder))
            self._grow(size)
        elif event in _REFUSED and not (event == "os.truncate" and isinstance(arguments[0], int)):
            raise ValueError(f"refused: reading it calls {event}")

    def lift(self) -> None:
        """Leaves room for an answer after an error."""
        with contextlib.suppress(OSError, ValueError):
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

    def _open(self, path: str, flags: int) -> None:
        real = os.path.realpath(path)
        if flags & _WRITES:
            raise ValueError(f"refused: reading it writes to {path!r}")
        if _is_below(real, self._roots):
            try:
                found = os.stat(real)
            except OSError:
                return  # opening it raises the error that says why
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{os.path.basename(path)!r} is not a regular file")
            if (found.st_dev, found.st_ino) not in self._seen:
                self._seen.add((found.st_dev, found.st_ino))
                self._grow(found.st_size)
        elif not _is_below(real, self._libraries):
            raise ValueError(_outside(path))

    def _grow(self, size: int) -> None:
        self._bytes += size
        self._raise_limits()

    def _raise_limits(self) -> None:
        seconds = math.ceil(_FREE_SECONDS + self._bytes / _BYTES_PER_SECOND)
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE * seconds)
        for kind, limit in (
            (resource.RLIMIT_CPU, seconds),
            (resource.RLIMIT_AS, self._used + self.memory),
        ):
            hard = resource.getrlimit(kind)[1]
            soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            # macOS refuses limits on address space.
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(kind, (soft, hard))


def _roots(source: str) -> tuple[str, ...]:
    """Returns the folders of a source, and its files outside them."""
    real = os.path.realpath(source)
    folder = real if os.path.isdir(real) else os.path.realpath(os.path.dirname(source) or ".")
    roots = {folder, real}
    # Hugging Face's cache has snapshots of links to files in a folder beside them.
    snapshots = pathlib.Path(folder).parent
    if snapshots.name == "snapshots":
        roots.add(str(snapshots.parent / "blobs"))
    return tuple(roots)


def _is_below(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or path.startswith(place.rstrip("/") + "/") for place in places)


def _outside(path: str) -> str:
    name = os.path.basename(path)
    return f"refused: {name!r} lies outside the folder of the source; --trusted reads it"


def _used_memory() -> int:
    """Returns the address space of this process in bytes."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return 1 << 30
    return pages * resource.getpagesize()
