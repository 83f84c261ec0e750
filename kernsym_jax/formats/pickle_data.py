"""Reads a pickle as data: a stack machine that builds plain containers and calls nothing else.

Python's own unpickler imports and calls whatever a file names. This one looks up each name in an
allowlist first, and refuses the file, with the name in the message, if it is not listed.
"""

import dataclasses
import pickletools
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from kernsym_jax.formats.arrays import DTYPES, element_count

MAX_OPERATIONS = 1_000_000
MAX_COPIED = 8_000_000
"""Elements, and blocks of 32 characters, in the arguments of all calls together."""

_LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
        *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
}
_SCALARS = (str, int, float, bool, bytes, type(None))


@dataclasses.dataclass(frozen=True, eq=False)
class Symbol:
    """The meaning of an allowed name.

    Attributes:
      name: ``module.name`` in the pickle.
      make: builds plain data from the pickle's arguments; None for a name that is never called.
      value: the value of the name, such as an element type.
    """

    name: str
    make: Callable[..., Any] | None = None
    value: Any = None


@dataclasses.dataclass(eq=False)
class Inert:
    """An object of which the reader keeps only the attributes."""

    name: str
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def set_state(self, state: Any) -> None:
        """Takes the attributes that the pickle gives the object."""
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.attributes.update((str(key), value) for key, value in part.items())


def load_pickle(
    file: IO[bytes],
    allowed: Callable[[str, str], Symbol | None],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads one pickle from a file's position and leaves the position behind it.

    Args:
      file: a binary file with tell and readline.
      allowed: maps (module, name) to its meaning, or to None if the name is forbidden.
      persistent: maps the pickle's references to outside objects to values.

    Returns:
      dicts, lists, tuples, scalars, and the results of the allowed names. Sets become lists.

    Raises:
      ValueError: if the pickle uses a forbidden name, which the message gives, or is malformed.
    """
    machine = _Machine(allowed, persistent)
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
            if count > MAX_OPERATIONS:
                raise ValueError(f"a pickle of more than {MAX_OPERATIONS} operations")
            machine.step(operation.name, argument)
        return machine.stack.pop()
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"a malformed pickle ({type(error).__name__}: {error})") from error


class _Machine:
    """The stack, the marks and the memo, with a method for each kind of operation on them."""

    def __init__(
        self,
        allowed: Callable[[str, str], Symbol | None],
        persistent: Callable[[Any], Any] | None,
    ):
        self.allowed = allowed
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _OPERATIONS:
            _OPERATIONS[name](self, argument)
        else:
            raise ValueError(f"a pickle with the operation {name}, which weights never need")

    def ignore(self, _: Any) -> None:
        pass

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def pop_mark(self, _: Any) -> None:
        self.since_mark()

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.put(len(self.memo))

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def tuple_since_mark(self, _: Any) -> None:
        items = tuple(self.since_mark())
        self.stack.append(items)

    def list_since_mark(self, _: Any) -> None:
        items = self.since_mark()
        self.stack.append(items)

    def dict_since_mark(self, _: Any) -> None:
        items = self.since_mark()
        self.stack.append({})
        self.insert(items)

    def append(self, _: Any) -> None:
        self.extend([self.stack.pop()])

    def append_since_mark(self, _: Any) -> None:
        self.extend(self.since_mark())

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError(f"a pickle that appends to {_describe(self.stack[-1])}")
        self.stack[-1].extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.insert([key, value])

    def set_since_mark(self, _: Any) -> None:
        self.insert(self.since_mark())

    def insert(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            target = target.attributes
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError(f"a pickle that sets items of {_describe(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def push_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.push_symbol(module, name)

    def push_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_symbol(module, name)

    def push_symbol(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a pickle whose name of a global is not text")
        symbol = self.allowed(module, name)
        if symbol is None:
            raise ValueError(
                f"refused: the pickle asks for {module}.{name}, which is not plain data; "
                "save the state dict alone: torch.save(model.state_dict(), path)"
            )
        self.stack.append(symbol)

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.make(function, arguments)

    def make(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Symbol) or function.make is None:
            raise ValueError(f"refused: the pickle calls {_describe(function)}")
        if not isinstance(arguments, tuple):
            raise ValueError(f"a pickle that calls {function.name} without a tuple of arguments")
        # A few bytes can ask for a copy of a large object, again and again.
        for argument in arguments:
            if isinstance(argument, list | tuple | dict):
                self.copied += len(argument)
            elif isinstance(argument, str | bytes | bytearray):
                self.copied += len(argument) // 32
        if self.copied > MAX_COPIED:
            raise ValueError("refused: a pickle that makes copy upon copy")
        self.stack.append(function.make(*arguments))

    def call_with_keywords(self, _: Any) -> None:
        if self.stack.pop():
            raise ValueError("a pickle that makes an object from keyword arguments")
        self.call(None)

    def call_since_mark(self, _: Any) -> None:
        function, *arguments = self.since_mark()
        self.make(function, tuple(arguments))

    def call_global(self, argument: str) -> None:
        arguments = self.since_mark()
        self.push_global(argument)
        self.make(self.stack.pop(), tuple(arguments))

    def set_state(self, _: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if hasattr(type(target), "set_state"):
            target.set_state(state)
        elif not isinstance(target, dict):  # An OrderedDict's own attributes are not needed.
            raise ValueError(f"a pickle that changes {_describe(target)}")

    def refer(self, _: Any) -> None:
        if self.persistent is None:
            raise ValueError("a pickle that refers to objects outside itself")
        self.stack.append(self.persistent(self.stack.pop()))


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _Machine.ignore),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("LIST", "FROZENSET"), _Machine.list_since_mark),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), _Machine.append_since_mark),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.call),
    "TUPLE1": lambda machine, _: machine.stack.append((machine.stack.pop(),)),
    "TUPLE2": lambda machine, _: machine.stack.append(_last(machine.stack, 2)),
    "TUPLE3": lambda machine, _: machine.stack.append(_last(machine.stack, 3)),
    "TUPLE": _Machine.tuple_since_mark,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    "MEMOIZE": _Machine.memoize,
    "DICT": _Machine.dict_since_mark,
    "APPEND": _Machine.append,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_since_mark,
    "GLOBAL": _Machine.push_global,
    "STACK_GLOBAL": _Machine.push_stack_global,
    "NEWOBJ_EX": _Machine.call_with_keywords,
    "OBJ": _Machine.call_since_mark,
    "INST": _Machine.call_global,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.refer,
}


def _last(stack: list[Any], count: int) -> tuple[Any, ...]:
    return tuple(reversed([stack.pop() for _ in range(count)]))


def _key(key: Any) -> Any:
    # Hashing a nested tuple visits every path through it, which could take forever.
    plain = isinstance(key, (*_SCALARS, Symbol)) or (
        isinstance(key, tuple) and all(isinstance(part, _SCALARS) for part in key)
    )
    if not plain:
        raise ValueError(f"a pickle with {_describe(key)} as a key")
    return key


def _describe(value: Any) -> str:
    if isinstance(value, Symbol | Inert):
        return value.name
    return f"an object of type {type(value).__name__}"


@dataclasses.dataclass(eq=False)
class NumpyArray:
    """A NumPy array inside a pickle; None until its state is read."""

    array: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        """Takes (version, shape, dtype, column-major, bytes)."""
        shape, dtype, columns_first, data = state[-4:]
        if not isinstance(dtype, NumpyDtype) or not isinstance(data, bytes):
            raise ValueError("a NumPy array of Python objects in the pickle")
        if element_count(shape) * dtype.dtype.itemsize != len(data):
            raise ValueError(f"a NumPy array of shape {shape} with {len(data)} bytes")
        flat = np.frombuffer(data, dtype.dtype)
        self.array = flat.reshape(shape, order="F" if columns_first else "C")


@dataclasses.dataclass(eq=False)
class NumpyDtype:
    """A NumPy element type inside a pickle: plain numbers only."""

    dtype: np.dtype

    def set_state(self, state: Any) -> None:
        """Takes the byte order."""
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


def _bytes(data: Any = b"", *_: Any) -> bytes:
    # bytes(n) of an integer would allocate n zero bytes.
    if not isinstance(data, bytes | bytearray):
        raise ValueError("bytes made of something else in the pickle")
    return bytes(data)


def _encoded(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise ValueError(f"bytes written in {encoding} in the pickle")
    return text.encode("latin1")


def _dtype(code: Any, *_: Any) -> NumpyDtype:
    name = code.decode("ascii") if isinstance(code, bytes) else code
    if not isinstance(name, str):
        raise ValueError("a NumPy array of no plain type in the pickle")
    dtype = DTYPES.get(name)
    if dtype is None and len(name) <= 3 and name[:1] in "biufc":
        dtype = np.dtype(name)
    if dtype is None:
        raise ValueError(f"a NumPy array of type {name[:20]!r} in the pickle")
    return NumpyDtype(dtype)


def _scalar(dtype: Any, data: Any = b"", *_: Any) -> Any:
    if not isinstance(dtype, NumpyDtype) or not isinstance(data, bytes):
        raise ValueError("a NumPy scalar of a Python object in the pickle")
    if len(data) != dtype.dtype.itemsize:
        raise ValueError("a NumPy scalar of the wrong size in the pickle")
    return np.frombuffer(data, dtype.dtype)[0].item()


def _array(*_: Any) -> NumpyArray:
    return NumpyArray()


def _from_buffer(
    data: Any, dtype: Any, shape: Any, order: Any = "C", axes: Any = None
) -> NumpyArray:
    made = NumpyArray()
    made.set_state((shape, dtype, order == "F", _bytes(data)))
    if order == "K" and axes is not None and made.array is not None:
        made.array = made.array.transpose(axes)
    return made


NUMPY_MAKERS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encoded,
    "builtins.bytearray": _bytes,
    "__builtin__.bytearray": _bytes,
    "numpy.dtype": _dtype,
}
"""The functions that NumPy's pickles call -> the functions that build the same data here."""

for _module in ("numpy.core", "numpy._core"):
    NUMPY_MAKERS[f"{_module}.multiarray._reconstruct"] = _array
    NUMPY_MAKERS[f"{_module}.multiarray.scalar"] = _scalar
    NUMPY_MAKERS[f"{_module}.numeric._frombuffer"] = _from_buffer
