"""Reads what ``torch.export`` saves, and the code of TorchScript, without PyTorch."""

import ast
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from kernsym_jax.formats.archive import ZipMembers
from kernsym_jax.formats.arrays import (
    DTYPES,
    MAX_JSON,
    StoredArray,
    check_strided,
    parse_json,
    strided_view,
    view,
)
from kernsym_jax.formats.pytorch import read_archive

MAX_NODES = 200_000

_PROGRAMS = ("serialized_exported_program.json", "models/model.json")
_STATES = ("serialized_state_dict.pt", "serialized_state_dict.json", "data/weights/model.pt")
_CONFIGS = ("_weights_config.json",)
# ScalarType of the schema.
_TYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    10: "complex64",
    11: "complex128",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
    29: "float8_e4m3fn",
    30: "float8_e5m2",
    31: "float8_e4m3fnuz",
    32: "float8_e5m2fnuz",
    33: "float8_e8m0fnu",
    34: "uint32",
    35: "uint64",
}
# Where each operator has its stride, padding, dilation and groups among its arguments.
_CONVOLUTIONS = {
    "conv2d": ("stride", "padding", "dilation", "groups"),
    "convolution": ("stride", "padding", "dilation", "transposed", "output_padding", "groups"),
    "conv_transpose2d": ("stride", "padding", "output_padding", "groups", "dilation"),
}
_CONVOLUTIONS["_convolution"] = _CONVOLUTIONS["convolution"]
_CONVOLUTIONS["_convolution_mode"] = _CONVOLUTIONS["conv2d"]
_PADS = ("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "_pad_circular")
# They take pixels from elsewhere: reflecting, repeating and wrapping paddings consist of them.
_REARRANGING = frozenset(
    {
        *("_unsafe_index", "as_strided", "copy", "gather", "index", "index_put", "index_select"),
        *("scatter", "select_scatter", "slice_scatter"),
    }
)
_WRITING = ("copy_", "fill_", "index_put_")
_UNPADDED = (0, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported program.

    Attributes:
      tree: name -> array, or another object that was saved.
      calls: name of a kernel -> the settings of the convolution that reads it, in forward order:
        stride, padding as ((top, bottom), (left, right)) or ``same``, dilation and groups, and
        whether it is transposed.
    """

    tree: Any
    calls: dict[str, dict[str, Any]]


def is_exported(names: list[str]) -> bool:
    """Returns whether a zip archive with these members is a ``.pt2`` file."""
    return _member(names, _STATES) is not None or _member(names, _CONFIGS) is not None


def read_exported(path: str | os.PathLike) -> Exported:
    """Reads a ``.pt2`` file of ``torch.export.save``, of any version.

    Args:
      path: the file, a zip archive.

    Raises:
      ValueError: if it is damaged, or asks for code to be run.
    """
    members = ZipMembers(path)
    program = _member(members.names, _PROGRAMS)
    calls = _calls(_json(members, program)) if program else {}
    config = _member(members.names, _CONFIGS)
    if config is not None:
        return Exported(_configured(members, config), calls)
    state = _member(members.names, _STATES)
    if state is None:
        raise ValueError("an exported program without weights")
    return Exported(read_archive(members.read(state)), calls)


def _member(names: list[str], ends: tuple[str, ...]) -> str | None:
    """Returns the member with the first of these ends."""
    for end in ends:
        for name in names:
            if name == end or name.endswith(f"/{end}") or (end[0] == "_" and name.endswith(end)):
                return name
    return None


def _json(members: ZipMembers, name: str) -> Any:
    if members.size(name) > MAX_JSON:
        raise ValueError(f"{name} has {members.size(name)} bytes")
    return parse_json(members.read(name).tobytes())


def _configured(members: ZipMembers, config: str) -> dict[str, StoredArray]:
    """Returns the weights that a listing describes: name -> array."""
    folder = config.rpartition("/")[0]
    arrays: dict[str, StoredArray] = {}
    for name, entry in _json(members, config)["config"].items():
        member = f"{folder}/{entry['path_name']}"
        if member not in members:
            raise ValueError(f"{member} is missing from the archive")
        if entry.get("use_pickle"):
            tensor = read_archive(members.read(member))
            if isinstance(tensor, StoredArray):
                arrays[name] = tensor
            continue
        arrays[name] = _raw(members, member, entry["tensor_meta"])
    return arrays


def _raw(members: ZipMembers, member: str, meta: Mapping[str, Any]) -> StoredArray:
    """Returns a tensor that lies in a member of its own, as its storage has it."""
    if meta["dtype"] not in _TYPES:
        raise ValueError(f"{member} has elements of the unknown type {meta['dtype']}")
    dtype = DTYPES[_TYPES[meta["dtype"]]]
    shape = tuple(size["as_int"] for size in meta["sizes"])
    strides = tuple(stride["as_int"] for stride in meta["strides"])
    offset = meta["storage_offset"]["as_int"]
    count = members.size(member) // dtype.itemsize
    check_strided(count, offset, shape, strides)

    def read() -> np.ndarray:
        elements = view(members.read(member), 0, dtype, (count,))
        return strided_view(elements, offset, shape, strides)

    return StoredArray(shape, dtype, read)


def _calls(program: Any) -> dict[str, dict[str, Any]]:
    """Returns the settings of every convolution in a program, by the name of its kernel."""
    module = program["graph_module"]
    names: dict[str, str] = {}
    for spec in module["signature"]["input_specs"]:
        found = spec.get("parameter") or spec.get("buffer")
        if found is not None:
            names[found["arg"]["name"]] = found.get("parameter_name") or found.get("buffer_name")
    nodes = module["graph"]["nodes"]
    if len(nodes) > MAX_NODES:
        raise ValueError(f"a program of more than {MAX_NODES} operators")
    calls: dict[str, dict[str, Any]] = {}
    pads: dict[str, Any] = {}  # of each value: left, right, top and bottom, or None if unknown
    for node in nodes:
        target = str(node["target"]).split(".")
        operator = target[-2] if len(target) > 1 else ""
        _pad_outputs(node, operator, pads)
        if operator not in _CONVOLUTIONS or len(node["inputs"]) < 2:
            continue
        values = _values(node, ("input", "weight", "bias", *_CONVOLUTIONS[operator]))
        kernel = names.get(_tensor_name(values.get("weight")))
        if kernel is not None and not _is_volume(values):
            before = pads.get(_tensor_name(values.get("input")), _UNPADDED)
            calls.setdefault(kernel, _settings(operator, values, before))
    return calls


def _pad_outputs(node: Mapping[str, Any], operator: str, pads: dict[str, Any]) -> None:
    """Adds the padding that the outputs of an operator of a program have."""
    values = [next(iter(argument["arg"].values()), None) for argument in node["inputs"]]
    operands = (each for value in values for each in (value if type(value) is list else [value]))
    names = [name for name in map(_tensor_name, operands) if name]
    named = dict(zip((argument.get("name") for argument in node["inputs"]), values, strict=True))
    second = values[1] if len(values) > 1 else None
    option = named.get("pad", named.get("dim", second))
    after = _padding_after(operator, [pads.get(name, _UNPADDED) for name in names], option)
    if operator in _WRITING:
        pads.update(dict.fromkeys(pads), **dict.fromkeys(names))
    for output in node.get("outputs", ()):
        pads[_tensor_name(next(iter(output.values()), None))] = after


def _padding_after(operator: str, before: list[Any], option: Any) -> Any:
    """Returns the padding of an operator's output: (left, right, top, bottom), or None.

    Args:
      operator: such as ``cat``.
      before: the padding of each operand.
      option: the operator's second argument: the numbers of a padding, the axis of ``cat``.
    """
    if operator in _CONVOLUTIONS or "pool" in operator:
        return _UNPADDED
    if operator in _PADS:
        return _added(before[0] if before else _UNPADDED, option)
    if operator in _REARRANGING or (operator == "cat" and option in (2, 3, -1, -2)):
        return None
    if operator == "slice" or "upsample" in operator:
        return _UNPADDED if set(before) <= {_UNPADDED} else None
    same = len(set(before)) == 1
    return before[0] if same else None if before else _UNPADDED


def _added(before: Any, numbers: Any) -> Any:
    """Returns a padding with another around it, whose numbers begin with those of the last axis."""
    if before is None or not isinstance(numbers, list | tuple) or len(numbers) not in (2, 4, 6, 8):
        return None
    if not all(type(number) is int and 0 <= number < 1 << 24 for number in numbers):
        return None
    return tuple(map(sum, zip(before, (*numbers, 0, 0)[:4], strict=True)))


def frozen_calls(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Returns the settings of a frozen module's convolutions by names such as ``constants.0``.

    Only the code tells transposed convolutions. It is parsed as Python's syntax and never run.
    """
    members = ZipMembers(path)
    sources = [name for name in members.names if "/code/" in name and name.endswith(".py")]
    calls: dict[str, dict[str, Any]] = {}
    # A tree of syntax takes more memory than one of JSON.
    if sum(map(members.size, sources)) > MAX_JSON // 8:
        return calls
    for name in sources:
        try:
            _follow(ast.parse(members.read(name).tobytes()), {}, calls)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return calls


def _follow(node: ast.AST, pads: dict[str, Any], calls: dict[str, dict[str, Any]]) -> None:
    """Adds the convolutions in some code, those in the arguments of others first."""
    for child in ast.iter_child_nodes(node):
        _follow(child, pads, calls)
    if isinstance(node, ast.Assign):
        after = _padding_of(node.value, pads)
        names = [part.id for part in ast.walk(node.targets[0]) if isinstance(part, ast.Name)]
        written = pads if _operator(node.value) in _WRITING else ()
        pads.update(dict.fromkeys(written), **dict.fromkeys(names, after))
    operator = _operator(node)
    if not isinstance(node, ast.Call) or operator not in _CONVOLUTIONS or len(node.args) < 2:
        return
    image, kernel, rest = *node.args[:2], node.args[3:]
    # Quantised convolutions have the same names, and keep their settings with their weights.
    own = ast.unparse(node.func).startswith("torch.")
    if not own or not ast.unparse(kernel).startswith("CONSTANTS.c"):
        return
    values = dict(zip(_CONVOLUTIONS[operator], map(ast.literal_eval, rest), strict=False))
    if not _is_volume(values):
        name = f"constants.{ast.unparse(kernel).removeprefix('CONSTANTS.c')}"
        calls.setdefault(name, _settings(operator, values, _padding_of(image, pads)))


def _padding_of(node: ast.AST, pads: Mapping[str, Any]) -> Any:
    """Returns the padding of an expression of code; see `_padding_after`."""
    if isinstance(node, ast.Name):
        return pads.get(node.id, _UNPADDED)
    if not isinstance(node, ast.Call):
        return _UNPADDED
    operands = (each for part in node.args for each in getattr(part, "elts", [part]))
    tensors = [each for each in operands if isinstance(each, ast.Name | ast.Call)]
    try:
        option = ast.literal_eval(node.args[1])
    except (IndexError, ValueError):
        option = None
    return _padding_after(_operator(node), [_padding_of(each, pads) for each in tensors], option)


def _operator(node: ast.AST | None) -> str:
    """Returns ``conv2d`` of a call of ``torch.conv2d``; an empty name for anything else."""
    called = node.func if isinstance(node, ast.Call) else None
    return called.attr if isinstance(called, ast.Attribute) else ""


def _is_volume(values: Mapping[str, Any]) -> bool:
    """Returns whether a convolution has settings for three axes."""
    settings = map(values.get, ("stride", "padding", "dilation"))
    return any(isinstance(each, list) and len(each) == 3 for each in settings)


def _values(node: Mapping[str, Any], order: tuple[str, ...]) -> dict[str, Any]:
    """Returns name -> value of an operator's arguments; `order` names those without a name."""
    return {
        argument.get("name") or order[place]: next(iter(argument["arg"].values()), None)
        for place, argument in enumerate(node["inputs"])
    }


def _tensor_name(value: Any) -> str:
    return str(value["name"]) if isinstance(value, dict) and "name" in value else ""


def _settings(operator: str, values: Mapping[str, Any], before: Any) -> dict[str, Any]:
    """Returns the settings of a convolution in numbers, those that it leaves out included.

    A padding in front of it has the numbers `before`: left, right, top and bottom; None if unknown.
    """
    transposed = operator == "conv_transpose2d" or values.get("transposed") is True
    groups = values.get("groups", 1)
    if type(groups) is not int or not 1 <= groups < 1 << 24:
        raise ValueError(f"a convolution in {str(groups)[:40]} groups")
    return {
        "stride": _pair(values.get("stride"), 1),
        "padding": _padding(values.get("padding", 0), before),
        "dilation": _pair(values.get("dilation"), 1),
        "groups": groups,
        "transposed": transposed,
    }


def _padding(own: Any, before: Any) -> Any:
    """Returns ((top, bottom), (left, right)), or ``same``; None if it is not known in numbers."""
    if own == "same":
        return own if before == _UNPADDED else None
    rows, columns = _pair(0 if own == "valid" else own, 0)
    if before is None:
        return None
    left, right, top, bottom = before
    return (rows + top, rows + bottom), (columns + left, columns + right)


def _pair(value: Any, default: int) -> tuple[int, int]:
    value = [value] if type(value) is int else value or [default]
    if len(value) not in (1, 2) or not all(
        type(number) is int and 0 <= number < 1 << 24 for number in value
    ):
        raise ValueError(f"a convolution with {str(value)[:40]} for its two axes")
    return value[0], value[-1]
