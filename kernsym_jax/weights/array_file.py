"""Names the arrays of a network in a file or folder of any format that keeps no graph."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from kernsym_jax import run_directory
from kernsym_jax.formats import (
    containers,
    darknet,
    named_arrays,
    orbax,
    pytorch,
    tensor_bundle,
    torch_export,
)
from kernsym_jax.formats.archive import ZipMembers, read_hdf5
from kernsym_jax.formats.arrays import StoredArray, leaf_name, natural_order, open_regular
from kernsym_jax.weights import checkpoint
from kernsym_jax.weights.kernels import KERNEL_LEAVES, without_prefix
from kernsym_jax.weights.layout import DEPTHWISE, HWIO, OIHW, TRANSPOSED

SUPPORTED = (
    "supported are run directories, orbax, msgpack, safetensors, npz, npy, eqx, PyTorch, ONNX, "
    "Keras, TensorFlow, TFLite, Darknet"
)

_INDEX = ".index.json"
_MOST_KINDS = 100
_WEIGHT_PARTS = re.compile(r"weight_(orig|v)$")
HDF5 = b"\x89HDF\r\n\x1a\n"
"""The first bytes of an HDF5 file."""


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """The named arrays of a network in one file or directory.

    Attributes:
      format: the format's name.
      arrays: name -> array, in the file's order, or in natural order of the names if it has none.
      rule: the layout of kernels that the format prescribes, or None.
      usual: the layout that most files of the format have, or None.
      drop_prefix: whether a container's name that all kernels have is taken off their names.
      ordered: whether the arrays come in the order of the network's definition.
      skipped: name of an array or a group of arrays that does not belong to the network -> why.
      notes: remarks for the reader of a report.
      step: the number of steps or epochs after which the file says that it was saved.
      calls: name of a kernel -> stride, padding, dilation and groups of the convolution that reads
        it, and whether it is transposed, in forward order; or only what `find_kernels` uses.
      forward: whether the calls come in forward order.
    """

    format: str
    arrays: dict[str, StoredArray]
    rule: str | None = None
    usual: str | None = None
    drop_prefix: bool = True
    ordered: bool = False
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    step: int | None = None
    calls: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    forward: bool = True


def read_array_file(path: pathlib.Path, which: str | None = None) -> ArrayFile:
    """Reads the named arrays of a file or directory.

    Args:
      path: the file or directory, which exists.
      which: ``ema`` or ``raw``, or None.

    Raises:
      ValueError: if it is damaged, or of a format that is not supported.
    """
    if path.is_dir():
        return _directory(path, which)
    if path.name.endswith(_INDEX):
        return _sharded(path, which)
    if path.name == orbax.METADATA or path.suffix == ".distcp":
        return _directory(path.parent, which)
    index = tensor_bundle.index_of(path)
    if index is not None:
        return _bundle(index, which)
    head = file_head(path)
    if is_safetensors(head):
        arrays, skipped = named_arrays.read_safetensors(path)
        return _flat("safetensors", arrays, which, skipped=skipped)
    if head[:2] == b"PK":
        return _zip(path, which)
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return _pickle(path, head, which)
    if path.suffix.lower() == ".eqx" or (head[:1] in b"{\x93" and named_arrays.has_records(path)):
        return ArrayFile("Equinox", named_arrays.read_records(path), OIHW, ordered=True)
    if darknet.is_darknet(path, head):
        return _darknet(path)
    if head.startswith(HDF5):
        return _hdf5(path, which)
    if head[:6] == b"\x93NUMPY":
        return ArrayFile("npy", named_arrays.read_npy(path), ordered=True)
    if head[:1] and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        tree = named_arrays.read_msgpack(path)
        return _checkpoint("Flax msgpack", tree, "/", which, usual=HWIO)
    raise ValueError(f"unknown format; {SUPPORTED}" if head else "the file is empty")


def in_memory(source: Any, which: str | None) -> ArrayFile:
    """Names the arrays of weights in memory.

    Args:
      source: see `weights.read`.
      which: ``ema`` or ``raw``, or None.

    Raises:
      ValueError: if there are no arrays in it.
    """
    tree = containers.in_memory(source)
    leaves = containers.leaves(tree)
    if not leaves.arrays:
        raise ValueError(
            "no arrays in it; supported are state dicts, pytrees of parameters, TrainStates, and "
            "modules with a state_dict, of flax.nnx or of Keras"
        )
    kernels = checkpoint.kernel_leaves(leaves.arrays)
    # A mapping with dotted names is a state dict, in the order of the network's definition.
    flat = all("." in path[-1] for path, array in leaves.arrays.items() if len(array.shape) == 4)
    rule = OIHW if flat and kernels == {"weight"} else None
    file = _tree("in memory", leaves, "." if flat else "/", which, rule=rule, ordered=flat)
    convolutions = containers.torch_convolutions(source)
    for path, facts in containers.nnx_convolutions(source).items():
        convolutions["/".join((*path, "kernel"))] = facts
    if convolutions:
        file = _with_convolutions(file, convolutions)
    return dataclasses.replace(file, step=containers.step(tree))


def existing(path: str | os.PathLike) -> pathlib.Path:
    """Returns the path of a source; of a TensorFlow checkpoint's prefix or listing, its index's."""
    location = pathlib.Path(path)
    if not location.exists() or location.name == "checkpoint":
        index = tensor_bundle.index_of(location)
        if index is not None and not location.is_dir():
            return index
    if not location.exists():
        raise FileNotFoundError(f"{os.fspath(path)}: no such file or directory")
    if not (location.is_file() or location.is_dir()):
        raise ValueError("neither a file nor a directory")
    return location


def file_head(path: pathlib.Path) -> bytes:
    """Returns the first bytes of a file."""
    with open_regular(path) as file:
        return file.read(16)


def is_safetensors(head: bytes) -> bool:
    """Returns whether a file with these first bytes is a safetensors file."""
    return head[6:9] == b"\0\0{"


def _directory(path: pathlib.Path, which: str | None) -> ArrayFile:
    if run_directory.is_run(path):
        return _orbax(path / run_directory.CHECKPOINTS, "run directory", which)
    if orbax.is_checkpoint(path):
        return _orbax(path, "orbax", which)
    if orbax.is_distributed(path):
        tree = orbax.read_distributed(path)
        return _checkpoint("PyTorch distributed", tree, ".", which, rule=OIHW, ordered=True)
    index = tensor_bundle.index_of(path)
    if index is not None:
        return _bundle(index, which)
    indices = sorted(path.glob(f"*{_INDEX}")) or sorted(path.glob("*.safetensors"))
    if len(indices) == 1:
        return read_array_file(indices[0], which)
    weights = sorted(path.glob("*.weights"))
    if len(weights) == 1:
        return read_array_file(weights[0], which)
    raise ValueError(f"a folder with no checkpoint in it; {SUPPORTED}")


def _orbax(path: pathlib.Path, name: str, which: str | None) -> ArrayFile:
    leaves = containers.Leaves(orbax.read_arrays(path, checkpoint.is_needed))
    file = _tree(name, leaves, "/", which, usual=HWIO)
    step = containers.step({place[0]: a for place, a in leaves.arrays.items() if len(place) == 1})
    return dataclasses.replace(file, step=step)


def _zip(path: pathlib.Path, which: str | None) -> ArrayFile:
    names = ZipMembers(path).names
    if torch_export.is_exported(names):
        exported = torch_export.read_exported(path)
        file = _checkpoint("torch.export", exported.tree, ".", which, rule=OIHW, ordered=True)
        return dataclasses.replace(file, calls=_padded(exported.calls))
    if any(name.endswith("data.pkl") for name in names):
        script = any(name.endswith("constants.pkl") for name in names)
        name = "TorchScript" if script else "PyTorch"
        tree = pytorch.read_archive(path)
        file = _checkpoint(name, tree, ".", which, rule=OIHW, ordered=True)
        calls = _padded(torch_export.frozen_calls(path)) if script else {}
        return dataclasses.replace(file, calls=calls, forward=True) if calls else file
    if names and all(name.endswith(".npy") for name in names):
        arrays, skipped = named_arrays.read_npz(path)
        # Sorted names come from a sorted tree and do not tell the order of the layers.
        ordered = list(arrays) != sorted(arrays)
        return _flat("npz", arrays, which, ordered=ordered, skipped=skipped)
    raise ValueError(f"a zip archive, but of no supported format; {SUPPORTED}")


def _padded(calls: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Names the padding of PyTorch's ``same`` as others do."""
    return {
        name: {**call, "padding": "SAME"} if call.get("padding") == "same" else call
        for name, call in calls.items()
    }


def _hdf5(path: pathlib.Path, which: str | None) -> ArrayFile:
    """Reads a file that other programs than Keras write, if it has arrays named as kernels are."""
    arrays = read_hdf5(path).arrays
    if not any(leaf_name(name) in KERNEL_LEAVES for name in arrays):
        raise ValueError("an HDF5 file that is not from Keras and names no array like a kernel")
    return _flat("HDF5", arrays, which)


def _bundle(index: pathlib.Path, which: str | None) -> ArrayFile:
    """Reads a checkpoint of TensorFlow."""
    found = tensor_bundle.read_bundle(index)
    arrays, calls = _telling_names(found)
    for name, array in arrays.items():
        if name not in calls and leaf_name(name) == "kernel" and len(array.shape) == 4:
            # TensorFlow keeps the channels of a depthwise kernel as inputs.
            calls[name] = {"depthwise": False}
            if found.plain:
                calls[name]["transposed"] = name not in found.plain
    file = _flat(
        "TensorFlow", arrays, which, rule=HWIO, ordered=found.ordered, skipped=found.skipped
    )
    return dataclasses.replace(file, calls=calls)


def _telling_names(
    bundle: tensor_bundle.Bundle,
) -> tuple[dict[str, StoredArray], dict[str, dict[str, Any]]]:
    """Gives depthwise kernels and biases the names that they have in other formats.

    Returns:
      name -> array; and name -> what the graph of a SavedModel says, as for `find_kernels`.

    Keras 3 gives the kernel of a depthwise convolution (kh, kw, in, multiplier) the same name as
    that of any other. It is depthwise if its bias has in · multiplier numbers. Without a bias, one
    with multiplier 1 is depthwise if `in` numbers follow, or a kernel with `in` inputs. Behind a
    layer that makes one channel, it is the kernel (kh, kw, out, 1) of a transposed convolution.
    """
    arrays = bundle.arrays
    names = list(arrays)
    renamed: dict[str, StoredArray] = {}
    labels: dict[str, str] = {}
    made = 0
    for place, name in enumerate(names):
        shape, (stem, _, leaf) = arrays[name].shape, name.rpartition("/")
        if leaf == "depthwise_weights":
            leaf = "depthwise_kernel"
        elif leaf == "biases":
            leaf = "bias"
        elif name in bundle.uses:
            depthwise = leaf == "kernel" and bundle.uses[name].kind == DEPTHWISE
            leaf = "depthwise_kernel" if depthwise else leaf
        elif leaf == "kernel" and len(shape) == 4 and shape[2] > 1 and name not in bundle.plain:
            bias = arrays.get(f"{stem}/bias")
            depthwise = bias is not None and bias.shape == (shape[2] * shape[3],)
            if bias is None and shape[3] == 1:
                following = (arrays[each].shape for each in names[place + 1 :])
                after = next((each for each in following if len(each) in (1, 4)), ())
                told = after == (shape[2],) or (len(after) == 4 and after[2] == shape[2])
                told = told or bool(bundle.plain)
                depthwise = "depthwise" in stem.lower() or (bundle.ordered and told)
            depthwise &= not (bundle.plain and made == 1 == shape[3])
            leaf = "depthwise_kernel" if depthwise else leaf
        if len(shape) == 4:
            ordinary = name in bundle.plain or not bundle.plain
            made = shape[2] * (shape[3] if leaf == "depthwise_kernel" else 1)
            made = shape[3] if ordinary and leaf == "kernel" else made
        label = f"{stem}/{leaf}" if stem else leaf
        renamed[label] = arrays[name]
        labels[name] = label
    calls = {
        labels[name]: _call(use, arrays[name].shape)
        for name, use in bundle.uses.items()
        if name in arrays and len(arrays[name].shape) == 4
    }
    return renamed, calls


def _call(use: tensor_bundle.Use, shape: tuple[int, ...]) -> dict[str, Any]:
    """Describes a convolution of a graph as `find_kernels` takes it."""
    call = {"stride": use.stride, "dilation": use.dilation, "padding": use.padding}
    kinds = {"transposed": use.kind == TRANSPOSED, "depthwise": use.kind == DEPTHWISE}
    groups = {DEPTHWISE: shape[2], TRANSPOSED: 1}.get(use.kind)
    return {**call, **kinds, "groups": groups}


def _darknet(path: pathlib.Path) -> ArrayFile:
    found = darknet.read_darknet(path)
    calls = {
        f"{name}.weight": {
            "stride": layer.stride,
            "padding": ((layer.padding, layer.padding),) * 2,
            "dilation": (layer.dilation, layer.dilation),
            "groups": layer.groups,
            "transposed": False,
        }
        for name, layer in found.layers.items()
    }
    cut = f"the file ends before the last {found.missing} layers of its configuration"
    notes = (cut,) if found.missing else ()
    return ArrayFile("Darknet", found.arrays, OIHW, ordered=True, notes=notes, calls=calls)


def _pickle(path: pathlib.Path, head: bytes, which: str | None) -> ArrayFile:
    """Reads PyTorch's old format, or a plain pickle of any framework's arrays."""
    tree = pytorch.read_legacy(path)
    if head.startswith(pytorch.LEGACY_HEAD):
        return _checkpoint("PyTorch legacy", tree, ".", which, rule=OIHW, ordered=True)
    leaves = containers.leaves(tree)
    names = [path[-1] for path in leaves.arrays]
    flat = bool(leaves.foreign) or any("." in name for name in names)
    # JAX sorts the trees that it handles, so only a state dict keeps the order of definition.
    ordered = flat or names != sorted(names)
    return _checkpoint("pickle", tree, "." if flat else "/", which, ordered=ordered)


def _sharded(path: pathlib.Path, which: str | None) -> ArrayFile:
    """Reads a checkpoint in several files through its index."""
    arrays: dict[str, StoredArray] = {}
    skipped: dict[str, str] = {}
    shards: dict[str, tuple[Mapping[str, StoredArray], Mapping[str, str]]] = {}
    weight_map = named_arrays.read_weight_map(path)
    for name, file in weight_map.items():
        if file not in shards:
            shards[file] = _shard(existing(path.parent / file))
        found, left_out = shards[file]
        if name in found:
            arrays[name] = found[name]
        elif name in left_out:
            skipped[name] = left_out[name]
        else:
            raise ValueError(f"{file} lacks the array {name!r}, which the index expects there")
    kinds = {pathlib.PurePath(file).suffix for file in shards}
    if kinds == {".safetensors"}:
        return _flat("safetensors, sharded", arrays, which, skipped=skipped)
    if kinds == {".msgpack"}:
        return _flat("Flax msgpack, sharded", arrays, which, usual=HWIO, skipped=skipped)
    return _flat("PyTorch, sharded", arrays, which, rule=OIHW, ordered=True, skipped=skipped)


def _shard(path: pathlib.Path) -> tuple[Mapping[str, StoredArray], Mapping[str, str]]:
    """Returns all arrays of one file of several: name -> array, and name -> why it is not read."""
    head = file_head(path)
    if is_safetensors(head):
        return named_arrays.read_safetensors(path)
    if head[:2] != b"PK" and head[:1] != b"\x80":
        return read_array_file(path).arrays, {}
    tree = pytorch.read_archive(path) if head[:2] == b"PK" else pytorch.read_legacy(path)
    return {".".join(place): array for place, array in containers.leaves(tree).arrays.items()}, {}


def _flat(
    name: str,
    arrays: Mapping[str, StoredArray],
    which: str | None,
    *,
    rule: str | None = None,
    usual: str | None = None,
    ordered: bool = False,
    skipped: Mapping[str, str] | None = None,
) -> ArrayFile:
    """Finds the network among arrays whose whole names the file gives.

    Args:
      name: the format's name.
      arrays: name -> array.
      which: ``ema`` or ``raw``, or None.
      rule, usual, ordered: as in `ArrayFile`.
      skipped: name of an array that was not read -> why.
    """
    leaves = containers.Leaves({tuple(key.split("/")): array for key, array in arrays.items()})
    model = checkpoint.model_arrays(leaves.arrays, which=which, unwrap=False)
    found = {"/".join(path): array for path, array in model.arrays.items()}
    if not ordered:
        found = {key: found[key] for key in sorted(found, key=natural_order)}
    # Beside an optimizer's arrays, the name of the network's container tells the two apart.
    alone = len(found) == len(arrays)
    left_out = {**(skipped or {}), **model.skipped}
    return ArrayFile(name, found, rule, usual, alone, ordered, left_out, model.notes)


def _checkpoint(
    name: str,
    tree: Any,
    separator: str,
    which: str | None,
    *,
    rule: str | None = None,
    usual: str | None = None,
    ordered: bool = False,
) -> ArrayFile:
    leaves = containers.leaves(tree)
    file = _tree(name, leaves, separator, which, rule=rule, usual=usual, ordered=ordered)
    return dataclasses.replace(file, step=containers.step(tree))


def _tree(
    name: str,
    leaves: containers.Leaves,
    separator: str,
    which: str | None,
    *,
    rule: str | None = None,
    usual: str | None = None,
    ordered: bool = False,
) -> ArrayFile:
    """Finds the network among the arrays of nested containers."""
    model = checkpoint.model_arrays(leaves.arrays, leaves.optimizers, which)
    arrays = {separator.join(path): array for path, array in model.arrays.items()}
    if not ordered:
        arrays = {key: arrays[key] for key in sorted(arrays, key=natural_order)}
    skipped = model.skipped | {
        kind: f"not run: {count} object{'s' if count > 1 else ''}, read as plain records"
        for kind, count in list(leaves.foreign.items())[:_MOST_KINDS]
    }
    file = ArrayFile(name, arrays, rule, usual, True, ordered, skipped, model.notes)
    calls = {
        _WEIGHT_PARTS.sub("weight", name): leaves.calls[id(array)]
        for name, array in arrays.items()
        if id(array) in leaves.calls
    }
    return _with_convolutions(file, calls) if calls else file


def _with_convolutions(file: ArrayFile, calls: Mapping[str, Mapping[str, Any]]) -> ArrayFile:
    """Adds what the modules of PyTorch say, which have no forward order, to their weights."""
    arrays = without_prefix(file.arrays)
    cut = len(next(iter(file.arrays))) - len(next(iter(arrays)))
    calls = _padded({name[cut:]: call for name, call in calls.items()})
    return dataclasses.replace(file, arrays=arrays, calls=calls, drop_prefix=False, forward=False)
