"""Reads a pickle as data: a stack machine that builds plain containers and calls nothing else.

Python's own unpickler imports and calls whatever a file names. This one imports nothing: a name
stands for plain data that it builds itself, or for an inert record of what the pickle gives to an
object. It refuses the file, with the name in the message, if only an attack would ask for the name.
"""

import dataclasses
import functools
import pickletools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

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
_LONGEST_NAME = 200
_LARGEST = 1 << 16
_OF_TORCH = re.compile(r"(__torch__\.)?torch\.")
_SCALARS = (str, int, float, bool, bytes, type(None))


@dataclasses.dataclass(frozen=True, eq=False)
class Symbol:
    """The meaning of an allowed name.

    Attributes:
      name: ``module.name`` in the pickle.
      make: builds plain data from the pickle's arguments; None for a name that is never called.
      value: the value of the name, such as an element type.
      copies: whether `make` may copy its arguments.
    """

    name: str
    make: Callable[..., Any] | None = None
    value: Any = None
    copies: bool = True


@dataclasses.dataclass(eq=False)
class Inert:
    """A record of an object: its class is neither imported nor run.

    Attributes:
      name: ``module.name`` of its class, or of the function that would make it.
      arguments: what the class or function would be called with.
      states: what the pickle sets the object's attributes to.
      items: the items that the pickle sets, as it does for a kind of dictionary.
      elements: the items that the pickle appends, as it does for a kind of list.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    states: list[Any] = dataclasses.field(default_factory=list)
    items: dict[Any, Any] = dataclasses.field(default_factory=dict)
    elements: list[Any] = dataclasses.field(default_factory=list)

    def set_state(self, state: Any) -> None:
        """Keeps the state that the pickle gives the object."""
        self.states.append(state)

    def attributes(self) -> dict[Any, Any]:
        """Returns the object's attributes and items by name."""
        found: dict[Any, Any] = {}
        for state in self.states:
            for part in state if isinstance(state, tuple) else (state,):
                if isinstance(part, dict):
                    found.update(part)
        return found | self.items

    def parts(self) -> list[Any]:
        """Returns the dictionaries and sequences that hold all that the record keeps."""
        found: list[Any] = []
        for state in self.states:
            if isinstance(state, tuple):
                # (attributes, slots), of which one may be None; or any other state.
                found += [part for part in state if isinstance(part, dict)]
                found += [state] if not any(isinstance(part, dict) for part in state) else []
            elif isinstance(state, dict | list):
                found.append(state)
        return [*found, self.items, self.elements, self.arguments]


_RUNS_CODE = frozenset((
    "_ctypes", "_io", "_pickle", "_posixsubprocess", "cPickle", "code", "codeop", "commands",
    "ctypes", "imp", "importlib", "io", "kernsym_jax", "marshal", "nt", "os", "pdb", "pickle",
    "pip", "posix", "pty", "runpy", "shutil", "socket", "subprocess", "sys", "timeit",
    "webbrowser",
))  # fmt: skip
_BUILT_IN_CODE = frozenset((
    "__import__", "apply", "breakpoint", "compile", "delattr", "eval", "exec", "execfile", "exit",
    "file", "getattr", "globals", "input", "locals", "open", "quit", "setattr", "vars",
))  # fmt: skip


def inert_symbol(module: str, name: str) -> Symbol | None:
    """Returns the meaning of a name that is not plain data: its calls become inert records.

    Nothing is run in either case. A name that only an attack uses has an error of its own, so that
    the user learns of the attack.

    Returns:
      None if the name runs code of the file's choice.
    """
    qualified = f"{module}.{name}"
    if qualified in ("builtins.getattr", "__builtin__.getattr"):
        return Symbol(qualified, make=functools.partial(_inert_attribute, qualified))
    if module in ("builtins", "__builtin__") and name in _BUILT_IN_CODE:
        return None
    if module.split(".", 1)[0] in _RUNS_CODE:
        return None
    if qualified in ("copyreg._reconstructor", "copy_reg._reconstructor"):
        return Symbol(qualified, make=_reconstructed)
    return Symbol(qualified, make=lambda *arguments: Inert(qualified, arguments), copies=False)


def _inert_attribute(function: str, owner: Any, name: Any, *_: Any) -> Inert:
    """Reads ``getattr(Class, "MEMBER")``, which is how Python 3.11 pickles enumerations."""
    if not isinstance(owner, Symbol | Inert) or not isinstance(name, str):
        raise ValueError(f"refused: the pickle calls {function} on {_describe(owner)}")
    return Inert(f"{owner.name[:_LONGEST_NAME]}.{name[:_LONGEST_NAME]}")


def _reconstructed(kind: Any, _: Any = None, state: Any = None, *__: Any) -> Inert:
    """Reads an object as old protocols pickle it: class, base class and the base's value."""
    made = Inert(_describe(kind))
    if state is not None:
        made.set_state(state)
    return made


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
        for count, (operation, argument, _) in enumerate(_operations(file)):
            if count > MAX_OPERATIONS:
                raise ValueError(f"a pickle of more than {MAX_OPERATIONS} operations")
            machine.step(operation.name, argument)
        return machine.stack.pop()
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"a malformed pickle ({type(error).__name__}: {error})") from error


def _operations(file: IO[bytes]) -> Iterator[Any]:
    try:
        yield from pickletools.genops(file)
    except ValueError as error:
        raise ValueError(f"a pickle that is cut or damaged ({error})") from error


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
        target = self.stack[-1]
        if isinstance(target, Inert):
            target = target.elements
        if not isinstance(target, list):
            raise ValueError(f"a pickle that appends to {_describe(target)}")
        target.extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.insert([key, value])

    def set_since_mark(self, _: Any) -> None:
        self.insert(self.since_mark())

    def insert(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            target = target.items
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError(f"a pickle that sets items of {_describe(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value

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
                f"refused: the pickle asks for {module}.{name}, which runs code; "
                "save the state dict alone: torch.save(model.state_dict(), path)"
            )
        self.stack.append(symbol)

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.make(function, arguments)

    def make(self, function: Any, arguments: Any) -> None:
        if isinstance(function, Inert):
            # A record stands for whatever it would return.
            self.stack.append(Inert(function.name, (function, arguments)))
            return
        if not isinstance(function, Symbol) or function.make is None:
            raise ValueError(f"refused: the pickle calls {_describe(function)}")
        if not isinstance(arguments, tuple):
            raise ValueError(f"a pickle that calls {function.name} without a tuple of arguments")
        # A few bytes can ask for a copy of a large object, again and again.
        for argument in arguments if function.copies else ():
            if isinstance(argument, list | tuple | dict):
                self.copied += len(argument)
            elif isinstance(argument, str | bytes | bytearray):
                self.copied += len(argument) // 32
        if self.copied > MAX_COPIED:
            raise ValueError("refused: a pickle that makes copy upon copy")
        self.stack.append(function.make(*arguments))

    def call_with_keywords(self, _: Any) -> None:
        keywords = self.stack.pop()
        self.call(None)
        if keywords and isinstance(self.stack[-1], Inert):
            self.stack[-1].set_state(keywords)
        elif keywords:
            raise ValueError("a pickle that makes plain data from keyword arguments")

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


def checked_key(key: Any) -> Any:
    """Returns a key of a dictionary; raises a ValueError if it is not quickly hashed."""
    # Hashing a nested tuple visits every path through it, which could take forever.
    plain = (*_SCALARS, Symbol, Inert)
    hashable = isinstance(key, plain) or (
        isinstance(key, tuple) and all(isinstance(part, plain) for part in key)
    )
    if not hashable:
        raise ValueError(f"a pickle with {_describe(key)} as a key")
    return key


def _describe(value: Any) -> str:
    if isinstance(value, Symbol | Inert):
        return value.name
    return f"an object of type {type(value).__name__}"


def convolution_of(kind: str, attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Describes a two-dimensional convolution by the attributes of a PyTorch module.

    Args:
      kind: ``module.name`` of its class.
      attributes: of the module.

    Returns:
      ``transposed``, ``groups``, ``stride``, ``dilation``, ``padding`` and ``depthwise`` (False, as
      groups tell it); empty if it is no such module. The padding is None if it is not of zeros, if
      the class is another's, or if there is none, because something else may pad the input then.
    """
    transposed, groups = attributes.get("transposed"), attributes.get("groups")
    pairs = [attributes.get(name) for name in ("stride", "dilation", "kernel_size")]
    if type(transposed) is not bool or not all(map(_is_pair, [*pairs, (groups, 1)])):
        return {}
    sides: Any = attributes.get("padding")
    padding: Any = "same" if sides == "same" and not transposed else None
    if _is_pair(sides, least=0) and (transposed or any(sides)):
        padding = tuple((side, side) for side in sides)
    known = attributes.get("padding_mode", "zeros") == "zeros" and _OF_TORCH.match(kind)
    if kind.endswith("Conv2dSame"):
        padding, known = "same", True  # timm's class for TensorFlow's rule
    return {
        "transposed": transposed,
        "groups": groups,
        "depthwise": False,
        "stride": pairs[0],
        "dilation": pairs[1],
        "padding": padding if known else None,
    }


def _is_pair(value: Any, least: int = 1) -> bool:
    """Returns whether a value is two integers of at least `least`, and of no absurd size."""
    pair = isinstance(value, tuple | list) and len(value) == 2
    return pair and all(type(each) is int and least <= each <= _LARGEST for each in value)
