"""Reads what ``torch.export`` and ``torch.distributed.checkpoint`` save, without PyTorch."""

import ast
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from kernsym_jax.formats.archive import ZipMembers
from kernsym_jax.formats.arrays import (
    DTYPES,
    MAX_JSON,
    StoredArray,
    check_strided,
    element_count,
    map_file,
    open_regular,
    parse_json,
    strided_view,
    view,
)
from kernsym_jax.formats.pickle_data import Inert, Symbol, load_pickle
from kernsym_jax.formats.pytorch import plain_symbol, read_archive

MAX_CHUNKS = 500_000
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
_PADS = ("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d")


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
    pads: dict[str, Any] = {}
    for node in nodes:
        target = str(node["target"]).split(".")
        operator = target[-2] if len(target) > 1 else ""
        if operator in _PADS and len(node["inputs"]) > 1:
            for output in node.get("outputs", ()):
                pads[_tensor_name(next(iter(output.values()), None))] = _values(node, ())["pad"]
        if operator not in _CONVOLUTIONS or len(node["inputs"]) < 2:
            continue
        values = _values(node, ("input", "weight", "bias", *_CONVOLUTIONS[operator]))
        kernel = names.get(_tensor_name(values.get("weight")))
        if kernel is not None and not _is_volume(values):
            before = pads.get(_tensor_name(values.get("input")), (0, 0, 0, 0))
            calls.setdefault(kernel, _settings(operator, values, before))
    return calls


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


def _follow(node: ast.AST, known: dict[str, ast.AST], calls: dict[str, dict[str, Any]]) -> None:
    """Adds the convolutions in some code, those in the arguments of others first."""
    for child in ast.iter_child_nodes(node):
        _follow(child, known, calls)
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        known[node.targets[0].id] = node.value
    operator = _operator(node)
    if not isinstance(node, ast.Call) or operator not in _CONVOLUTIONS or len(node.args) < 2:
        return
    image, kernel, rest = *node.args[:2], node.args[3:]
    if not ast.unparse(kernel).startswith("CONSTANTS.c"):
        return
    values = dict(zip(_CONVOLUTIONS[operator], map(ast.literal_eval, rest), strict=False))
    before = known.get(image.id) if isinstance(image, ast.Name) else image
    pads: Any = (0, 0, 0, 0)
    if isinstance(before, ast.Call) and _operator(before) in _PADS:
        pads = ast.literal_eval(before.args[1])
    if not _is_volume(values):
        name = f"constants.{ast.unparse(kernel).removeprefix('CONSTANTS.c')}"
        calls.setdefault(name, _settings(operator, values, pads))


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

    A padding in front of it has the numbers `before`: left, right, top and bottom.
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
    padded = before != (0, 0, 0, 0)
    if own == "same":
        return None if padded else own
    rows, columns = _pair(0 if own == "valid" else own, 0)
    if len(before) != 4 or not all(type(number) is int for number in before):
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


METADATA = ".metadata"


def is_distributed(folder: pathlib.Path) -> bool:
    """Returns whether a folder is a checkpoint of ``torch.distributed.checkpoint``."""
    return (folder / METADATA).is_file() and next(folder.glob("*.distcp"), None) is not None


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a part of a tensor is saved."""

    file: str
    offset: int
    size: int


def read_distributed(folder: pathlib.Path) -> dict[str, Any]:
    """Reads a checkpoint that several processes have saved together.

    Args:
      folder: with the file ``.metadata`` and the files of values (``__0_0.distcp``).

    Returns:
      The state dict that was saved, in nested dictionaries; every tensor in one piece.

    Raises:
      FileNotFoundError: if a file of values is missing.
      ValueError: if it is damaged, or asks for code to be run.
    """
    with open_regular(folder / METADATA) as file:
        metadata = load_pickle(file, plain_symbol)
    listing = metadata.attributes() if isinstance(metadata, Inert) else {}
    tensors, storage = listing.get("state_dict_metadata"), listing.get("storage_data")
    if not isinstance(tensors, dict) or not isinstance(storage, dict):
        raise ValueError(f"{METADATA} holds no listing of tensors")
    places = _places(storage)
    paths = listing.get("planner_data")
    values = _Files(folder)
    tree: dict[str, Any] = {}
    for name, entry in tensors.items():
        if not isinstance(entry, Inert) or "chunks" not in entry.attributes():
            continue  # a number, or another object: saved as bytes
        path = paths.get(name) if isinstance(paths, dict) else None
        _insert(
            tree,
            path if isinstance(path, tuple) and path else (name,),
            _tensor(str(name), entry.attributes(), places, values),
        )
    return tree


def _insert(tree: dict[str, Any], path: tuple[Any, ...], array: StoredArray) -> None:
    node = tree
    for key in path[:-1]:
        node = node.setdefault(str(key), {})
        if not isinstance(node, dict):
            raise ValueError(f"a tensor below another: {str(path)[:80]}")
    node[str(path[-1])] = array


def _places(storage: Any) -> dict[tuple[str, tuple[int, ...]], _Place]:
    """Returns (name of a tensor, offset of a part) -> where the part is saved."""
    found: dict[tuple[str, tuple[int, ...]], _Place] = {}
    if len(storage) > MAX_CHUNKS:
        raise ValueError(f"tensors in more than {MAX_CHUNKS} parts")
    for index, info in storage.items():
        key, value = index.attributes(), info.attributes()
        if value.get("transform_descriptors"):
            raise ValueError("tensors that are saved compressed or otherwise changed: not read")
        place = _Place(value["relative_path"], value["offset"], value["length"])
        if not isinstance(place.file, str) or not all(
            type(number) is int and number >= 0 for number in (place.offset, place.size)
        ):
            raise ValueError("a tensor without a place")
        found[key["fqn"], tuple(key.get("offset") or ())] = place
    return found


class _Files:
    """The files of values of a distributed checkpoint."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._open: dict[str, np.ndarray] = {}

    def part(self, place: _Place) -> np.ndarray:
        """Returns the bytes of a part: uint8 (size,)."""
        if place.file not in self._open:
            name = place.file
            if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
                raise ValueError(f"refused: {name[:80]!r} lies outside its own folder")
            path = self._folder / name
            if path.is_symlink() or not path.is_file():
                raise FileNotFoundError(f"{path}: no such file, which {METADATA} expects")
            self._open[place.file] = map_file(path)
        return view(self._open[place.file], place.offset, np.dtype(np.uint8), (place.size,))


def _tensor(
    name: str,
    entry: Mapping[Any, Any],
    places: Mapping[tuple[str, tuple[int, ...]], _Place],
    values: _Files,
) -> StoredArray:
    """Returns a tensor put together from its parts when it is read."""
    shape = tuple(entry["size"])
    count = element_count(shape)
    dtype = _dtype(entry["properties"])
    parts: list[tuple[tuple[int, ...], tuple[int, ...], _Place]] = []
    for chunk in entry["chunks"]:
        fields = chunk.attributes()
        offsets, sizes = tuple(fields["offsets"]), tuple(fields["sizes"])
        element_count(offsets)
        element_count(sizes)
        ends = zip(offsets, sizes, shape, strict=True)
        if any(start + size > whole for start, size, whole in ends):
            raise ValueError(f"a part of {name!r} that reaches beyond its shape {shape}")
        place = places.get((name, offsets)) or places.get((name, ()))
        if place is None:
            raise ValueError(f"no place of a part of {name!r}")
        if element_count(sizes) * dtype.itemsize > values.part(place).size:
            raise ValueError(f"a part of {name!r} with {place.size} bytes for {sizes} of {dtype}")
        parts.append((offsets, sizes, place))
    filled = sum(element_count(sizes) for _, sizes, _ in parts)
    stored = sum(place.size for place in {place for *_, place in parts})
    if filled != count or count * dtype.itemsize > stored:
        raise ValueError(f"the parts of {name!r} do not fill its shape {shape}")

    def read() -> np.ndarray:
        if len(parts) == 1:
            return _part(name, values.part(parts[0][2]), shape, dtype)
        whole, known = np.zeros(shape, dtype), np.zeros(shape, bool)
        for offsets, sizes, place in parts:
            inside = tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))
            whole[inside] = _part(name, values.part(place), sizes, dtype)
            known[inside] = True
        # Parts that overlap leave zeros elsewhere.
        if not known.all():
            raise ValueError(f"the parts of {name!r} do not fill its shape {shape}")
        return whole

    return StoredArray(shape, dtype, read)


def _part(name: str, data: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    tensor = read_archive(data)
    if not isinstance(tensor, StoredArray) or tensor.shape != shape or tensor.dtype != dtype:
        raise ValueError(f"a part of {name!r} is no tensor {shape} of {dtype}")
    return tensor.read()


def _dtype(properties: Any) -> np.dtype:
    """Returns the element type that a ``TensorProperties`` states."""
    state = properties.states[-1] if isinstance(properties, Inert) and properties.states else None
    found = state.get("dtype") if isinstance(state, dict) else state[0] if state else None
    if isinstance(found, Symbol) and isinstance(found.value, np.dtype):
        return found.value
    raise ValueError("a tensor of an unknown element type")
