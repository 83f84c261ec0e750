"""What kind of file this is, and the reading of it."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from kernsym_jax import run_directory
from kernsym_jax.formats import flax_msgpack, npz, orbax, pytorch, safetensors
from kernsym_jax.formats.arrays import Path, StoredArray, naming, natural_order
from kernsym_jax.formats.zip_archive import ZipMembers
from kernsym_jax.weights import checkpoint, keras, onnx, tflite
from kernsym_jax.weights.conv_kernel import ConvKernel, Padding, Pair, Weights
from kernsym_jax.weights.kernels import find_kernels
from kernsym_jax.weights.layout import HWIO, OIHW, check_layout

SUPPORTED = (
    "supported are run directories, orbax checkpoints, Flax msgpack, safetensors (with its index), "
    "npz, npy, PyTorch (zip, legacy, TorchScript), ONNX, Keras (.keras, .h5, .weights.h5) and "
    "TensorFlow Lite"
)

_INDEX = ".index.json"


@dataclasses.dataclass(frozen=True)
class _ArrayFile:
    """The arrays of a network in one file or directory.

    Attributes:
      format: the format's name.
      arrays: name -> array, in the file's order, or in natural order of the names if it has none.
      rule: the layout of kernels that the format prescribes, or None.
      ordered: whether the order is that of the network's definition.
      skipped: name of an array group that is not the network's -> why.
      notes: remarks for the reader of a report.
    """

    format: str
    arrays: dict[str, StoredArray]
    rule: str | None = None
    ordered: bool = False
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read(
    path: str | os.PathLike, layout: str | None = None, fold_batchnorm: bool = False
) -> Weights:
    """Reads the convolution kernels of any supported file or directory.

    No framework is needed and nothing in the file is run. Arrays stay where they are, mapped into
    memory, until they are looked at.

    Args:
      path: a run directory, an orbax checkpoint, or a file; its content tells the format, not its
        name.
      layout: ``HWIO``, ``OIHW`` or ``OHWI``: the axes of kernels in a file that leaves them open
        (``.npz``, ``.npy``, ``.safetensors``).
      fold_batchnorm: multiplies each kernel by the scale of the BatchNorm after it, where the file
        shows which that is.

    Returns:
      The kernels in forward order where the format keeps it, and why every other array was left
      out.

    Raises:
      FileNotFoundError: if there is nothing at the path.
      ValueError: if it is damaged, of an unsupported format, refused because it asks for code to
        be run, or the layout is unknown.
    """
    check_layout(layout)
    with naming(path):
        location = _existing(path)
        graph = _graph_reader(location)
        if graph is not None:
            return graph(path, fold_batchnorm)
        file = _array_file(location)
        found = find_kernels(file.arrays, file.rule, layout, fold_batchnorm, file.ordered)
        weights = Weights(
            kernels=found.kernels,
            skipped=found.skipped | file.skipped,
            source=os.fspath(path),
            format=file.format,
            order="file" if file.ordered else "name",
            layout=found.layout,
            notes=file.notes + found.notes,
        )
        if run_directory.is_run(location):
            weights = _with_geometry(weights, location)
        return weights


def read_arrays(path: str | os.PathLike) -> dict[str, StoredArray]:
    """Reads a network's named arrays, kernels or not, as a file has them.

    Args:
      path: as for `read`, of a format that keeps arrays by their names in the network.

    Returns:
      name -> array; the optimizer's state and moving averages are left out.

    Raises:
      FileNotFoundError: if there is nothing at the path.
      ValueError: if it cannot be read.
    """
    with naming(path):
        return _array_file(_existing(path)).arrays


def _existing(path: str | os.PathLike) -> pathlib.Path:
    location = pathlib.Path(path)
    if not location.exists():
        raise FileNotFoundError(f"{os.fspath(path)}: no such file or directory")
    if not (location.is_file() or location.is_dir()):
        raise ValueError("neither a file nor a directory")
    return location


def _graph_reader(path: pathlib.Path) -> Callable[..., Weights] | None:
    """The reader of a format that keeps the network's graph; None for the other formats."""
    if path.is_dir():
        return None
    with path.open("rb") as file:
        head = file.read(16)
    # An offset or a size comes first in these two; it may begin as other formats do.
    if head[4:8] == b"TFL3":
        return tflite.read
    if _is_safetensors(head):
        return None
    if head[:1] == b"\x08" or path.suffix.lower() == ".onnx":
        return onnx.read
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return keras.read_hdf5
    if head[:2] == b"PK" and keras.is_keras_archive(ZipMembers(path).names):
        return keras.read_archive
    return None


def _array_file(path: pathlib.Path) -> _ArrayFile:
    if path.is_dir():
        return _directory(path)
    if path.name.endswith(_INDEX):
        return _sharded(path)
    with path.open("rb") as file:
        head = file.read(16)
    if _is_safetensors(head):
        return _by_name("safetensors", safetensors.read_arrays(path))
    if head[:2] == b"PK":
        return _zip(path)
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return _checkpoint("PyTorch legacy", pytorch.read_legacy(path), OIHW, ".", ordered=True)
    if head[:6] == b"\x93NUMPY":
        return _ArrayFile("npy", npz.read_npy(path), ordered=True)
    if head[:1] and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        return _checkpoint("Flax msgpack", flax_msgpack.read_tree(path), HWIO, "/", ordered=False)
    raise ValueError(f"not a format that is known; {SUPPORTED}" if head else "the file is empty")


def _is_safetensors(head: bytes) -> bool:
    return head[6:9] == b"\0\0{"


def _directory(path: pathlib.Path) -> _ArrayFile:
    if run_directory.is_run(path):
        return _orbax(path / run_directory.CHECKPOINTS, "run directory")
    if orbax.is_checkpoint(path):
        return _orbax(path, "orbax")
    indices = sorted(path.glob(f"*{_INDEX}")) or sorted(path.glob("*.safetensors"))
    if len(indices) == 1:
        return _array_file(indices[0])
    raise ValueError(f"a folder with no checkpoint in it; {SUPPORTED}")


def _orbax(path: pathlib.Path, name: str) -> _ArrayFile:
    return _tree(name, orbax.read_arrays(path, checkpoint.is_needed), HWIO, "/", ordered=False)


def _zip(path: pathlib.Path) -> _ArrayFile:
    names = ZipMembers(path).names
    if any(name.endswith("data.pkl") for name in names):
        script = any(name.endswith("constants.pkl") for name in names)
        name = "TorchScript" if script else "PyTorch"
        return _checkpoint(name, pytorch.read_archive(path), OIHW, ".", ordered=True)
    if names and all(name.endswith(".npy") for name in names):
        arrays, skipped = npz.read_npz(path)
        # Names from A to Z are a sorted tree's, whatever the order of its layers.
        if list(arrays) == sorted(arrays):
            return dataclasses.replace(_by_name("npz", arrays), skipped=skipped)
        return _ArrayFile("npz", arrays, ordered=True, skipped=skipped)
    raise ValueError(f"a zip archive of something else; {SUPPORTED}")


def _sharded(path: pathlib.Path) -> _ArrayFile:
    arrays: dict[str, StoredArray] = {}
    shards: dict[str, Mapping[str, StoredArray]] = {}
    weight_map = safetensors.read_weight_map(path)
    for name, file in weight_map.items():
        if file not in shards:
            shards[file] = _array_file(_existing(path.parent / file)).arrays
        if name not in shards[file]:
            raise ValueError(f"{file} has no array {name!r}, which the index places there")
        arrays[name] = shards[file][name]
    if all(file.endswith(".safetensors") for file in shards):
        return _by_name("safetensors, sharded", arrays)
    return _ArrayFile("PyTorch, sharded", arrays, OIHW, ordered=True)


def _by_name(name: str, arrays: Mapping[str, StoredArray]) -> _ArrayFile:
    return _ArrayFile(name, {key: arrays[key] for key in sorted(arrays, key=natural_order)})


def _checkpoint(name: str, tree: Any, rule: str, separator: str, ordered: bool) -> _ArrayFile:
    return _tree(name, checkpoint.leaves(tree), rule, separator, ordered)


def _tree(
    name: str, leaves: Mapping[Path, StoredArray], rule: str, separator: str, ordered: bool
) -> _ArrayFile:
    model = checkpoint.model_arrays(leaves)
    arrays = {separator.join(path): array for path, array in model.arrays.items()}
    file = _ArrayFile(name, arrays, rule, ordered, model.skipped, model.notes)
    return file if ordered else dataclasses.replace(file, arrays=_by_name(name, arrays).arrays)


def _with_geometry(weights: Weights, path: pathlib.Path) -> Weights:
    """Adds what ``layers.json`` says: the forward order, strides, paddings, dilations and groups.

    Args:
      weights: as read from the run's checkpoint.
      path: the run directory.

    Returns:
      The same kernels, those of ``layers.json`` first and in its order.

    Raises:
      ValueError: if ``layers.json`` is not what training writes.
    """
    if not (path / run_directory.LAYERS).exists():
        return weights
    rows = run_directory.read_layers(path)
    found = {row["layer"]: row for row in reversed(rows)}
    order = dict.fromkeys(row["layer"] for row in rows)
    kernels = {
        name: _described(weights.kernels[name], found[name])
        for name in order
        if name in weights.kernels
    }
    missing = {name: kernel for name, kernel in weights.kernels.items() if name not in kernels}
    return dataclasses.replace(
        weights, kernels=kernels | missing, order="forward" if kernels else weights.order
    )


def _described(kernel: ConvKernel, row: Mapping[str, Any]) -> ConvKernel:
    return dataclasses.replace(
        kernel,
        kind=row.get("kind", kernel.kind),
        stride=_pair(row.get("stride")),
        padding=_padding(row.get("padding")),
        dilation=_pair(row.get("dilation")),
        groups=row.get("groups"),
    )


def _pair(value: Any) -> Pair | None:
    if value is None:
        return None
    first, second = value
    return int(first), int(second)


def _padding(value: Any) -> Padding | None:
    if value is None or isinstance(value, str):
        return value
    rows, columns = (_pair(ends) for ends in value)
    assert rows is not None
    assert columns is not None
    return rows, columns
