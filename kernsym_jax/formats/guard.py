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
import dataclasses
import importlib
import io
import json
import mmap
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

import numpy as np

from kernsym_jax.formats.arrays import DTYPES, MappedFile, StoredArray, map_file, naming

RESULT, FAILURE = b"R", b"F"
"""An answer begins with one of these; a description of the result, or JSON, follows."""

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

_ALIGNMENT = 64
_BLOCK = -1


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
    """Returns the program of the server, which finds modules where this process finds them."""
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
    made = _call(reader, source, arguments)
    with _begun.pop(made, None) or _ask(made) as connection, contextlib.ExitStack() as stack:
        content, block = _received(connection)
        if block is not None:
            stack.callback(os.close, block)
        kind, status = bytes(content[:1]), _status(content)
        with naming(source):
            if status != 0:
                raise ValueError(_end(status))
            if kind == RESULT:
                body = memoryview(content)[1:-STATUS_SIZE]
                return unpacked(body, block, records)
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
    """Returns the answer, and the descriptor of the block of shared memory if there is one."""
    content, blocks = bytearray(), []
    while True:
        part, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 1)
        blocks += descriptors
        if not part or len(content) > MAX_ANSWER:
            return content, blocks[0] if blocks else None
        content += part


def _status(content: bytearray) -> int | None:
    """Returns the exit status of the process that read the source; None if it is unknown."""
    end = bytes(content[-STATUS_SIZE:])
    return int(end) if len(content) >= STATUS_SIZE and end.strip(b"- 0123456789") == b"" else None


def _end(status: int | None) -> str:
    """Describes the end of a process that gave no answer."""
    if status is None:
        return _ENDS[signal.SIGKILL]
    return _ENDS.get(-status, f"a damaged file: the library that reads it crashed ({-status})")  # type: ignore[call-overload]  # numbers of signals


@dataclasses.dataclass
class _Packing:
    """Where the arrays of a result are: in mapped files, or to be written to a block.

    Attributes:
      files: path, device, number and size of each mapped file.
      places: of each array: number of its file or `_BLOCK`, offset, element type, shape, strides.
      block: the arrays that are in no file, with their offsets.
      size: bytes of the block.
    """

    files: dict[tuple[str, int, int, int], int] = dataclasses.field(default_factory=dict)
    places: list[tuple[int, int, str, tuple[int, ...], tuple[int, ...]]] = dataclasses.field(
        default_factory=list
    )
    block: list[tuple[int, np.ndarray]] = dataclasses.field(default_factory=list)
    size: int = 0
    _known: dict[Any, int] = dataclasses.field(default_factory=dict)

    def number(self, array: np.ndarray) -> int:
        """Returns the number of an array; its first use gives it a place."""
        address = array.__array_interface__["data"][0]
        key = (address, array.dtype, array.shape, array.strides)
        if key not in self._known:
            self._known[key] = len(self.places)
            self.places.append(self._place(array, address))
        return self._known[key]

    def _place(
        self, array: np.ndarray, address: int
    ) -> tuple[int, int, str, tuple[int, ...], tuple[int, ...]]:
        dtype = array.dtype.name if array.dtype.name in DTYPES else array.dtype.str
        if array.dtype.byteorder == ">":
            dtype = array.dtype.str
        mapped = _mapped(array) if array.size else None
        if mapped is not None:
            file = self.files.setdefault(mapped.identity, len(self.files))
            return file, address - mapped.address, dtype, array.shape, array.strides
        strides = _dense_strides(array)
        offset = self.size
        self.block.append((offset, array))
        self.size = -(-(offset + array.size * array.itemsize) // _ALIGNMENT) * _ALIGNMENT
        return _BLOCK, offset, dtype, array.shape, strides


def _mapped(array: np.ndarray) -> MappedFile | None:
    """Returns the mapped file that an array is a view of, or None."""
    owner: Any = array
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return owner if isinstance(owner, MappedFile) else None


def _dense_strides(array: np.ndarray) -> tuple[int, ...]:
    """Returns the strides of a dense copy with the same order of axes in memory."""
    strides, step = [0] * array.ndim, array.itemsize
    for axis in sorted(range(array.ndim), key=lambda axis: (abs(array.strides[axis]), -axis)):
        strides[axis] = step
        step *= array.shape[axis]
    return tuple(strides)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, packing: _Packing):
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._packing = packing
        self._read: dict[int, tuple[StoredArray, np.ndarray]] = {}

    def persistent_id(self, value: Any) -> tuple[str, int] | None:
        """Replaces an array by the number of its place."""
        if isinstance(value, StoredArray):
            if id(value) not in self._read:
                self._read[id(value)] = (value, value.read())
            return "stored", self._packing.number(self._read[id(value)][1])
        return ("array", self._packing.number(value)) if isinstance(value, np.ndarray) else None


def packed(result: Any, descriptor: int) -> bytes:
    """Describes a result, and writes those of its arrays that no file holds to a block.

    Args:
      result: containers and records with arrays and `StoredArray` in them, which are read.
      descriptor: an empty file or memory for the block.

    Returns:
      The description, for `unpacked`.
    """
    packing, tree = _Packing(), io.BytesIO()
    _Pickler(tree, packing).dump(result)
    if packing.size:
        os.ftruncate(descriptor, packing.size)
        block = mmap.mmap(descriptor, packing.size)
        for place, (offset, array) in zip(
            (place for place in packing.places if place[0] == _BLOCK), packing.block, strict=True
        ):
            target: np.ndarray = np.ndarray(array.shape, array.dtype, block, offset, place[-1])
            np.copyto(target, array)
    return pickle.dumps((list(packing.files), packing.places, tree.getbuffer().tobytes()))


class _Unpickler(pickle.Unpickler):
    """Builds containers, and records of the given classes; runs nothing else."""

    def __init__(
        self, content: bytes | memoryview, arrays: Sequence[np.ndarray], records: Sequence[type]
    ):
        super().__init__(io.BytesIO(content))
        self._arrays = arrays
        self._records = {(kind.__module__, kind.__qualname__): kind for kind in records}

    def find_class(self, module: str, name: str) -> Any:
        """Returns one of the records' classes."""
        if (module, name) not in self._records:
            raise ValueError(f"a result with {module}.{name} in it")
        return self._records[module, name]

    def persistent_load(self, place: Any) -> Any:
        """Returns the array with a number."""
        kind, number = place
        array = self._arrays[number]
        return StoredArray.of(array) if kind == "stored" else array


def unpacked(content: memoryview, block: int | None, records: Sequence[type]) -> Any:
    """Builds the result that `packed` describes; its arrays are views of files and of the block.

    Args:
      content: the description.
      block: descriptor of the block, or None.
      records: the classes that the result may contain.

    Raises:
      ValueError: if a file is no longer the one that was read, or an array lies outside it.
    """
    files, places, tree = _Unpickler(content, (), ()).load()
    buffers: dict[int, np.ndarray] = {
        number: _same_file(*identity) for number, identity in enumerate(files)
    }
    if block is not None and os.fstat(block).st_size:
        buffers[_BLOCK] = np.frombuffer(mmap.mmap(block, 0, access=mmap.ACCESS_READ), np.uint8)
    nothing = np.empty(0, np.uint8)
    arrays = []
    for file, offset, name, shape, strides in places:
        dtype = DTYPES.get(name) or np.dtype(name)
        if dtype.hasobject:
            raise ValueError("a result with an array of objects")
        buffer = buffers.get(file, nothing)
        arrays.append(np.ndarray(shape, dtype, buffer, offset, strides))
    return _Unpickler(tree, arrays, records).load()


def _same_file(path: str, *identity: int) -> np.ndarray:
    """Maps a file that another process has mapped."""
    data = map_file(path)
    mapped = _mapped(data)
    if mapped is None or mapped.identity[1:] != identity:
        raise ValueError(f"{os.path.basename(path)} has changed while it was read")
    return data
