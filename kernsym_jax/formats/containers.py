"""Finds the arrays in nested containers: in a checkpoint, in a pickle, or in memory."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import DTYPES, Path, StoredArray, element_count
from kernsym_jax.formats.pickle_data import Inert, convolution_of

MAX_DEPTH = 64
MAX_NAME = 1000

_STEP_KEYS = ("step", "global_step", "global_steps", "iteration", "iter", "epoch")
# The dictionaries in which a PyTorch module keeps its parameters, buffers and modules.
_MODULE_PARTS = ("_parameters", "_buffers", "_modules")
_SCRIPT = "__torch__"
# The state of a quantised convolution is a tuple that begins so.
_QUANTIZED = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
    *("transposed", "output_padding", "groups", "padding_mode"),
)
_KERAS = ("keras", "tf_keras", "tensorflow")


@dataclasses.dataclass(eq=False)
class NumpyArray:
    """A NumPy array inside a pickle.

    Attributes:
      array: the numbers; None before the array's state is read, and for an array of other things.
      objects: the elements of an array of Python objects.
    """

    array: np.ndarray | None = None
    objects: list[Any] = dataclasses.field(default_factory=list)

    def set_state(self, state: Any) -> None:
        """Takes (version, shape, dtype, column-major, bytes)."""
        shape, dtype, columns_first, data = state[-4:]
        if not isinstance(dtype, NumpyDtype):
            raise ValueError("a NumPy array without a type in the pickle")
        if dtype.dtype is None:
            self.objects = data if isinstance(data, list) else []
            return
        if not isinstance(data, bytes):
            raise ValueError("a NumPy array without bytes in the pickle")
        if element_count(shape) * dtype.dtype.itemsize != len(data):
            raise ValueError(f"a NumPy array of shape {shape} with {len(data)} bytes")
        flat = np.frombuffer(data, dtype.dtype)
        self.array = flat.reshape(shape, order="F" if columns_first else "C")


@dataclasses.dataclass(eq=False)
class NumpyDtype:
    """A NumPy element type inside a pickle; None for any type but plain numbers."""

    dtype: np.dtype | None

    def set_state(self, state: Any) -> None:
        """Takes the byte order."""
        if self.dtype is not None and state[1] == ">":
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
    return NumpyDtype(dtype)


def _scalar(dtype: Any, data: Any = b"", *_: Any) -> Any:
    if not isinstance(dtype, NumpyDtype):
        raise ValueError("a NumPy scalar without a type in the pickle")
    if dtype.dtype is None:
        return None
    if not isinstance(data, bytes):
        raise ValueError("a NumPy scalar without bytes in the pickle")
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


@dataclasses.dataclass
class Leaves:
    """The arrays of nested containers.

    Attributes:
      arrays: path -> array, in the containers' order.
      optimizers: paths of the containers that are an optimizer's state dict.
      foreign: ``module.name`` of the class of objects that are records only -> their number.
      calls: id of the weight of a convolution -> what its module says, see `convolution_of`.
    """

    arrays: dict[Path, StoredArray] = dataclasses.field(default_factory=dict)
    optimizers: list[Path] = dataclasses.field(default_factory=list)
    foreign: dict[str, int] = dataclasses.field(default_factory=dict)
    calls: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)


def leaves(tree: Any) -> Leaves:
    """Returns every array of nested containers by its path; visits each container once.

    In a pickled PyTorch module, parameters, buffers and modules have the names that a state dict
    gives them, with dots between the modules.

    Raises:
      ValueError: if the containers are nested more than `MAX_DEPTH` deep.
    """
    walk = _Walk()
    for place, array in walk.visit(tree, ()):
        path = _with_dots(place) or ("array",)  # of a file that holds a single one
        while path in walk.found.arrays:
            path = (*path[:-1], f"{path[-1]}+")
        walk.found.arrays[path] = array
    walk.found.optimizers = [_with_dots(place) for place in walk.found.optimizers]
    return walk.found


class _Attribute(str):
    """The name of a part of a module."""


def _with_dots(path: Path) -> Path:
    """Joins the names of modules inside modules by dots, as a state dict does."""
    joined: list[str] = []
    for name in path:
        if joined and isinstance(name, _Attribute) and isinstance(joined[-1], _Attribute):
            joined[-1] = _Attribute(f"{joined[-1]}.{name}")
        else:
            joined.append(name)
    return tuple(joined)


def in_memory(source: Any) -> Any:
    """Turns weights in memory into nested mappings of arrays.

    Args:
      source: mappings and sequences of arrays, which stay as they are; an object with a method
        ``state_dict``, such as a module of PyTorch; or any pytree of JAX, such as a TrainState or a
        module of ``flax.nnx``.

    Returns:
      A container for `leaves`.
    """
    if isinstance(source, Mapping | Sequence):
        return source
    if callable(getattr(source, "state_dict", None)):
        return source.state_dict()
    import jax

    tree: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(source)[0]:
        *above, last = _names(keys) or ["array"]
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree


def torch_convolutions(source: Any) -> dict[str, dict[str, Any]]:
    """Returns what the convolutions of a PyTorch module in memory say: name of a weight -> facts.

    Args:
      source: weights in memory, as for `in_memory`.
    """
    if not callable(getattr(source, "named_modules", None)):
        return {}
    found = {}
    for name, module in source.named_modules():
        kind = type(module)
        facts = convolution_of(f"{kind.__module__}.{kind.__qualname__}", vars(module))
        if facts:
            found[f"{name}.weight" if name else "weight"] = facts
    return found


def nnx_convolutions(source: Any) -> dict[Path, dict[str, Any]]:
    """Returns what the convolutions of a module of ``flax.nnx`` say: path of each -> facts.

    Args:
      source: weights in memory, as for `in_memory`.
    """
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(source, nnx.Module):
        return {}
    import jax

    def is_one(node: Any) -> bool:
        return isinstance(node, nnx.Conv | nnx.ConvTranspose)

    leaves = jax.tree_util.tree_flatten_with_path(source, is_leaf=is_one)[0]
    return {tuple(_names(keys)): _of_nnx(vars(node)) for keys, node in leaves if is_one(node)}


def _of_nnx(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Describes a convolution by its attributes; without padding, something else may pad it."""
    kernel = attributes.get("transpose_kernel")
    facts = {"transposed": kernel is not None, "outputs_first": bool(kernel), "depthwise": False}
    padding = attributes["padding"]
    pairs = [
        (value, value) if isinstance(value, int | None) else tuple(value)
        for value in (attributes["strides"], attributes["kernel_dilation"])
    ]
    stride, dilation = (tuple(side or 1 for side in pair) for pair in pairs)
    if isinstance(padding, int):
        padding = ((padding, padding),) * 2
    elif isinstance(padding, Sequence) and not isinstance(padding, str):
        padding = tuple((side, side) if isinstance(side, int) else tuple(side) for side in padding)
    known = padding == "SAME" or (isinstance(padding, tuple) and any(map(any, padding)))
    groups = attributes.get("feature_group_count") or 1
    given = {"stride": stride, "dilation": dilation, "padding": padding if known else None}
    return {**facts, "groups": groups, **(given if len(stride) == len(dilation) == 2 else {})}


def _names(keys: Sequence[Any]) -> list[str]:
    """Returns the names of the nodes on the way to a leaf of one of JAX's trees."""
    import jax

    return [jax.tree_util.keystr((key,), simple=True) for key in keys]


def is_keras(source: Any) -> bool:
    """Returns whether an object is a model or a layer of Keras; imports nothing to find out."""
    return "Layer" in keras_classes(source)


def keras_classes(source: Any) -> list[str]:
    """Returns the names of the classes of Keras that an object is of, the nearest first."""
    classes = type(source).__mro__
    return [each.__name__ for each in classes if str(each.__module__).split(".")[0] in _KERAS]


def keras_values(variable: Any) -> StoredArray:
    """Returns the values of a variable of any backend of Keras."""
    value = getattr(variable, "value", variable)
    value = on_host(variable if callable(value) else value)
    return StoredArray.of(value.numpy() if callable(getattr(value, "numpy", None)) else value)


def step(tree: Any) -> int | None:
    """Returns the step, or else the epoch, that a checkpoint states; None if it states none.

    Args:
      tree: the containers of the checkpoint.
    """
    if isinstance(tree, Inert):
        tree = tree.attributes()
    if not isinstance(tree, Mapping):
        return None
    for name in _STEP_KEYS:
        value = tree.get(name)
        if isinstance(value, NumpyArray):
            value = value.array
        if isinstance(value, StoredArray) and value.shape == () and value.dtype.kind in "iu":
            value = value.read()
        # A negative one marks a checkpoint without its history, as YOLO's final ones.
        if isinstance(value, int | np.integer | np.ndarray) and np.ndim(value) == 0 and value >= 0:
            return int(value)
    return None


class _Walk:
    """A visit of nested containers that notes what it passes."""

    def __init__(self) -> None:
        self.found = Leaves()
        # References keep containers alive that are made on access, so their ids stay unique.
        self.seen: dict[int, Any] = {}
        self.in_records = 0

    def visit(self, node: Any, path: Path) -> Iterator[tuple[Path, StoredArray]]:
        if isinstance(node, NumpyArray):
            node = node.objects if node.array is None else node.array
        if isinstance(node, StoredArray):
            # An object may have one tensor under several names; a state dict lists each of them.
            if not (self.in_records and self.again(node)):
                yield path, node
        elif hasattr(node, "__array__"):  # an array of NumPy, JAX or another library
            yield path, StoredArray.of(on_host(node))
        elif isinstance(node, Inert):
            if not self.again(node):
                yield from self.record(node, path)
        elif isinstance(node, str | bytes | bytearray):
            return
        # A small file can name one container many times and so unfold without end.
        elif isinstance(node, Mapping | Sequence) and not self.again(node):
            # What rebuilds a traced module of ``torch.fx`` gets the attributes of the module.
            if isinstance(node, Mapping) and "_modules" in node and "_parameters" in node:
                yield from self.module(node, path)
            else:
                yield from self.children(node, path)

    def again(self, node: Any) -> bool:
        known = id(node) in self.seen
        self.seen[id(node)] = node
        return known

    def children(
        self, node: Mapping[Any, Any] | Sequence[Any], path: Path
    ) -> Iterator[tuple[Path, StoredArray]]:
        if isinstance(node, Mapping):
            self.note_optimizer(node, path)
        for key, child in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from self.visit(child, _below(path, _name(key)))

    def module(
        self, attributes: Mapping[Any, Any], path: Path, *, script: bool = False
    ) -> Iterator[tuple[Path, StoredArray]]:
        """Visits the attributes of an object, which is a module if they hold parts of one."""
        for key, child in attributes.items():
            if key == "_packed_params" and isinstance(child, Inert):
                yield from self.visit(child, path)
            elif key in _MODULE_PARTS and isinstance(child, Mapping):
                for name, part in child.items():
                    yield from self.visit(part, _below(path, _Attribute(_name(name))))
            else:
                name = _Attribute(_name(key)) if script else _name(key)
                yield from self.visit(child, _below(path, name))

    def note_optimizer(self, node: Mapping[Any, Any], path: Path) -> None:
        """Notes the place of an optimizer's state, which PyTorch and fastai mark by other keys."""
        if "state" in node and ("param_groups" in node or "hypers" in node):
            self.found.optimizers.append(path)

    def note_convolution(self, kind: str, attributes: Mapping[Any, Any]) -> None:
        """Notes what a module says of its weight; a script keeps no more than the class."""
        facts = convolution_of(kind, attributes)
        if kind.rpartition(".")[2] == "ConvTranspose2d" and not facts:
            facts = {"transposed": True}
        parameters = attributes.get("_parameters", attributes)
        if facts and isinstance(parameters, Mapping):
            weights = [parameters.get(name) for name in ("weight", "weight_orig", "weight_v")]
            for weight in (each for each in weights if isinstance(each, StoredArray)):
                self.found.calls[id(weight)] = facts

    def record(self, node: Inert, path: Path) -> Iterator[tuple[Path, StoredArray]]:
        script = node.name.startswith(_SCRIPT)
        if not script:
            self.found.foreign[node.name] = self.found.foreign.get(node.name, 0) + 1
        self.in_records += 1
        for part in node.parts():
            if not part or (part is not node.items and self.again(part)):
                continue
            if not isinstance(part, dict):
                yield from self.sequence(node, part, path)
                continue
            self.note_optimizer(part, path)
            self.note_convolution(node.name, part)
            yield from self.module(part, path, script=script)
        self.in_records -= 1

    def sequence(
        self, node: Inert, part: Sequence[Any], path: Path
    ) -> Iterator[tuple[Path, StoredArray]]:
        """Visits the unnamed parts of a record: in a quantised layer, weight and bias."""
        if "quantized" in node.name:
            tensors = list(_tensors(part, 2))
            weight = next((each for each in tensors if len(each.shape) > 1), None)
            if weight is not None:
                facts = convolution_of(node.name, dict(zip(_QUANTIZED, part, strict=False)))
                if facts:
                    self.found.calls[id(weight)] = facts
                yield (*path, "weight"), weight
                biases = (each for each in tensors if len(each.shape) == 1)
                yield from (((*path, "bias"), each) for each in biases if each.dtype.kind == "f")
                return
        yield from self.children(part, path)


def _below(path: Path, name: str) -> Path:
    if len(path) >= MAX_DEPTH:
        raise ValueError(f"containers nested more than {MAX_DEPTH} deep")
    return (*path, name)


def _tensors(node: Any, depth: int) -> Iterator[StoredArray]:
    if isinstance(node, StoredArray):
        yield node
    elif isinstance(node, list | tuple) and depth:
        for child in node:
            yield from _tensors(child, depth - 1)


def _name(key: Any) -> str:
    name = key if isinstance(key, str) else str(getattr(key, "name", key))
    # The path of every array below repeats the name.
    if len(name) > MAX_NAME:
        raise ValueError(f"a name of {len(name)} characters: {name[:40]!r}…")
    return name


def on_host(array: Any) -> Any:
    """Takes a tensor of PyTorch off its device and out of its graph; returns others unchanged."""
    for method in ("detach", "cpu"):
        if callable(getattr(array, method, None)):
            array = getattr(array, method)()
    # NumPy cannot hold PyTorch's bfloat16.
    if str(getattr(array, "dtype", "")) == "torch.bfloat16":
        array = array.float()
    return array
