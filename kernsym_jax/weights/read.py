"""Reads the convolution kernels of a file of any supported format, told by its content."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from kernsym_jax import run_directory
from kernsym_jax.formats import containers, flax_msgpack, guard, npz, orbax, pytorch, safetensors
from kernsym_jax.formats.arrays import StoredArray, naming, natural_order, open_regular
from kernsym_jax.formats.zip_archive import ZipMembers
from kernsym_jax.weights import checkpoint, keras, onnx, tflite
from kernsym_jax.weights.kernels import find_kernels
from kernsym_jax.weights.layout import (
    HWIO,
    OHWI,
    OIHW,
    ConvKernel,
    Padding,
    Pair,
    Weights,
    check_layout,
    checked,
)

SUPPORTED = (
    "supported are run directories, orbax checkpoints, Flax msgpack, safetensors (with its index), "
    "npz, npy, PyTorch (zip, legacy, TorchScript), ONNX, Keras (.keras, .h5, .weights.h5) and "
    "TensorFlow Lite"
)

_INDEX = ".index.json"
_MOST_KINDS = 100


@dataclasses.dataclass(frozen=True)
class _ArrayFile:
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


def read(
    source: Any,
    *,
    layout: str | None = None,
    fold_batchnorm: bool = False,
    which: str | None = None,
    trusted: bool = False,
) -> Weights:
    """Reads the convolution kernels of any supported file or directory, or of weights in memory.

    The reader needs no framework and runs nothing in the file. It maps arrays into memory and
    leaves their values on disk until they are used.

    Args:
      source: a run directory, an orbax checkpoint, or a file, whose content tells the format, not
        its name; or weights in memory: a state dict, a pytree of parameters, a TrainState, a
        module or state of ``flax.nnx``, or any object with a method ``state_dict``.
      layout: ``HWIO``, ``OIHW`` or ``OHWI``: the axes of kernels, for files that leave them open;
        None to decide them by what the file shows.
      fold_batchnorm: multiplies each kernel by the scale of the BatchNorm after it, where the file
        shows which BatchNorm that is.
      which: ``ema`` for the moving average of the weights that the source holds, ``raw`` for the
        weights; None for the weights, or for the average if there is nothing else.
      trusted: reads a file in this process. Otherwise a process of its own reads it, with limits on
        time, memory and the files that it may open (`formats.guard`).

    Returns:
      The kernels, in forward order where the format keeps it, and the reason why each other array
      is not among them.

    Raises:
      FileNotFoundError: if the path does not exist.
      ValueError: if the file is damaged, has an unsupported format, or asks for code to be run; if
        the layout is unknown, or is not that of a graph, which settles its own; if there are no
        weights of the kind asked for.
    """
    check_layout(layout)
    checkpoint.check_choice(which)
    if not isinstance(source, str | os.PathLike):
        name = type(source).__name__
        with naming(f"a {name} in memory"):
            return _kernels(_in_memory(source, which), name, layout, fold_batchnorm)
    if trusted:
        weights = read_file(source, layout, fold_batchnorm, which)
    else:
        arguments = (layout, fold_batchnorm, which)
        weights = guard.call(READER, source, *arguments, records=(Weights, ConvKernel))
    run = run_directory.run_of(pathlib.Path(source))
    return weights if run is None else _with_geometry(weights, run)


READER = (__name__, "read_file")
"""The reader behind `read`, for `formats.guard`."""


def read_file(
    source: str | os.PathLike,
    layout: str | None = None,
    fold_batchnorm: bool = False,
    which: str | None = None,
) -> Weights:
    """Reads a file or directory as `read` does, in this process."""
    with naming(source):
        location = _existing(source)
        weights = _read_graph(location, layout, fold_batchnorm, which)
        if weights is None:
            file = _array_file(location, which)
            weights = _kernels(file, os.fspath(source), layout, fold_batchnorm)
        return checked(weights)


def read_arrays(path: str | os.PathLike, *, trusted: bool = False) -> dict[str, StoredArray]:
    """Reads all named arrays of a network, kernels or not.

    Args:
      path: as for `read`, in a format that names arrays as the network does.
      trusted: as for `read`.

    Returns:
      name -> array, without the optimizer's state and without moving averages.

    Raises:
      FileNotFoundError: if the path does not exist.
      ValueError: if the file cannot be read.
    """
    return file_arrays(path) if trusted else guard.call((__name__, "file_arrays"), path)


def file_arrays(path: str | os.PathLike) -> dict[str, StoredArray]:
    """Reads the arrays of a file or directory as `read_arrays` does, in this process."""
    with naming(path):
        return _array_file(_existing(path)).arrays


def _kernels(file: _ArrayFile, source: str, layout: str | None, fold_batchnorm: bool) -> Weights:
    """Finds the kernels among named arrays."""
    found = find_kernels(
        file.arrays,
        rule=file.rule,
        usual=file.usual,
        layout=layout,
        fold_batchnorm=fold_batchnorm,
        in_order=file.ordered,
        drop_prefix=file.drop_prefix,
    )
    return Weights(
        kernels=found.kernels,
        skipped=found.skipped | file.skipped,
        source=source,
        format=file.format,
        order="file" if file.ordered else "name",
        layout=found.layout,
        notes=file.notes + found.notes,
        step=file.step,
        first=found.first,
    )


def _in_memory(source: Any, which: str | None) -> _ArrayFile:
    """Names the arrays of weights in memory."""
    tree = containers.in_memory(source)
    leaves = containers.leaves(tree)
    if not leaves.arrays:
        raise ValueError(
            "no arrays in it; supported are state dicts, pytrees of parameters, TrainStates, and "
            "modules with a state_dict or of flax.nnx"
        )
    kernels = checkpoint.kernel_leaves(leaves.arrays)
    # A mapping with dotted names is a state dict, in the order of the network's definition.
    flat = all("." in path[-1] for path, array in leaves.arrays.items() if len(array.shape) == 4)
    rule = OIHW if flat and kernels == {"weight"} else None
    file = _tree("in memory", leaves, "." if flat else "/", which, rule=rule, ordered=flat)
    return dataclasses.replace(file, step=containers.step(tree))


def _existing(path: str | os.PathLike) -> pathlib.Path:
    location = pathlib.Path(path)
    if not location.exists():
        raise FileNotFoundError(f"{os.fspath(path)}: no such file or directory")
    if not (location.is_file() or location.is_dir()):
        raise ValueError("neither a file nor a directory")
    return location


def _read_graph(
    path: pathlib.Path, layout: str | None, fold_batchnorm: bool, which: str | None
) -> Weights | None:
    """Reads a file that keeps the network's graph; returns None if its format keeps none."""
    if path.is_dir():
        return None
    head = _head(path)
    # These two formats begin with an offset or a size, which may look like another format.
    if head[4:8] == b"TFL3":
        _check_options("TensorFlow Lite", OHWI, layout, which)
        return tflite.read(path)
    if _is_safetensors(head):
        return None
    if head[:1] == b"\x08" or path.suffix.lower() == ".onnx":
        _check_options("ONNX", OIHW, layout, which)
        return onnx.read(path, fold_batchnorm=fold_batchnorm)
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        _check_options("Keras", None, layout, which)
        return keras.read_hdf5(path, layout=layout, fold_batchnorm=fold_batchnorm)
    if head[:2] == b"PK" and keras.is_keras_archive(ZipMembers(path).names):
        _check_options("Keras", None, layout, which)
        return keras.read_archive(path, layout=layout, fold_batchnorm=fold_batchnorm)
    return None


def _check_options(name: str, rule: str | None, layout: str | None, which: str | None) -> None:
    """Refuses what the user asks of a format that leaves no choice."""
    if rule is not None and layout not in (None, rule):
        raise ValueError(f"--layout={layout} does not apply: {name} itself says {rule}")
    if which == checkpoint.EMA:
        raise ValueError(f"no moving average in it: {name} keeps one copy of the weights")


def _array_file(path: pathlib.Path, which: str | None = None) -> _ArrayFile:
    """Reads the named arrays of a file or directory."""
    if path.is_dir():
        return _directory(path, which)
    if path.name.endswith(_INDEX):
        return _sharded(path, which)
    head = _head(path)
    if _is_safetensors(head):
        return _flat("safetensors", safetensors.read_arrays(path), which)
    if head[:2] == b"PK":
        return _zip(path, which)
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return _pickle(path, head, which)
    if head[:6] == b"\x93NUMPY":
        return _ArrayFile("npy", npz.read_npy(path), ordered=True)
    if head[:1] and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        tree = flax_msgpack.read_tree(path)
        return _checkpoint("Flax msgpack", tree, "/", which, usual=HWIO)
    raise ValueError(f"unknown format; {SUPPORTED}" if head else "the file is empty")


def _head(path: pathlib.Path) -> bytes:
    with open_regular(path) as file:
        return file.read(16)


def _is_safetensors(head: bytes) -> bool:
    return head[6:9] == b"\0\0{"


def _directory(path: pathlib.Path, which: str | None) -> _ArrayFile:
    if run_directory.is_run(path):
        return _orbax(path / run_directory.CHECKPOINTS, "run directory", which)
    if orbax.is_checkpoint(path):
        return _orbax(path, "orbax", which)
    indices = sorted(path.glob(f"*{_INDEX}")) or sorted(path.glob("*.safetensors"))
    if len(indices) == 1:
        return _array_file(indices[0], which)
    raise ValueError(f"a folder with no checkpoint in it; {SUPPORTED}")


def _orbax(path: pathlib.Path, name: str, which: str | None) -> _ArrayFile:
    leaves = containers.Leaves(orbax.read_arrays(path, checkpoint.is_needed))
    return _tree(name, leaves, "/", which, usual=HWIO)


def _zip(path: pathlib.Path, which: str | None) -> _ArrayFile:
    names = ZipMembers(path).names
    if any(name.endswith("data.pkl") for name in names):
        script = any(name.endswith("constants.pkl") for name in names)
        name = "TorchScript" if script else "PyTorch"
        tree = pytorch.read_archive(path)
        return _checkpoint(name, tree, ".", which, rule=OIHW, ordered=True)
    if names and all(name.endswith(".npy") for name in names):
        arrays, skipped = npz.read_npz(path)
        # Names from A to Z come from a sorted tree and say nothing about the order of its layers.
        ordered = list(arrays) != sorted(arrays)
        file = _flat("npz", arrays, which, ordered=ordered)
        return dataclasses.replace(file, skipped=skipped | file.skipped)
    raise ValueError(f"a zip archive, but of no supported format; {SUPPORTED}")


def _pickle(path: pathlib.Path, head: bytes, which: str | None) -> _ArrayFile:
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


def _sharded(path: pathlib.Path, which: str | None) -> _ArrayFile:
    """Reads a checkpoint in several files through its index."""
    arrays: dict[str, StoredArray] = {}
    shards: dict[str, Mapping[str, StoredArray]] = {}
    weight_map = safetensors.read_weight_map(path)
    for name, file in weight_map.items():
        if file not in shards:
            shards[file] = _array_file(_existing(path.parent / file)).arrays
        if name not in shards[file]:
            raise ValueError(f"{file} lacks the array {name!r}, which the index expects there")
        arrays[name] = shards[file][name]
    if all(file.endswith(".safetensors") for file in shards):
        return _flat("safetensors, sharded", arrays, which)
    return _flat("PyTorch, sharded", arrays, which, rule=OIHW, ordered=True)


def _flat(
    name: str,
    arrays: Mapping[str, StoredArray],
    which: str | None,
    *,
    rule: str | None = None,
    ordered: bool = False,
) -> _ArrayFile:
    """Finds the network among arrays whose whole names the file gives."""
    leaves = containers.Leaves({tuple(key.split("/")): array for key, array in arrays.items()})
    model = checkpoint.model_arrays(leaves.arrays, which=which, unwrap=False)
    found = {"/".join(path): array for path, array in model.arrays.items()}
    if not ordered:
        found = {key: found[key] for key in sorted(found, key=natural_order)}
    # Beside an optimizer's arrays, the name of the network's container tells the two apart.
    alone = len(found) == len(arrays)
    return _ArrayFile(
        name, found, rule, None, alone, ordered, skipped=model.skipped, notes=model.notes
    )


def _checkpoint(
    name: str,
    tree: Any,
    separator: str,
    which: str | None,
    *,
    rule: str | None = None,
    usual: str | None = None,
    ordered: bool = False,
) -> _ArrayFile:
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
) -> _ArrayFile:
    """Finds the network among the arrays of nested containers."""
    model = checkpoint.model_arrays(leaves.arrays, leaves.optimizers, which)
    arrays = {separator.join(path): array for path, array in model.arrays.items()}
    if not ordered:
        arrays = {key: arrays[key] for key in sorted(arrays, key=natural_order)}
    skipped = model.skipped | {
        kind: f"not run: {count} object{'s' if count > 1 else ''}, read as plain records"
        for kind, count in list(leaves.foreign.items())[:_MOST_KINDS]
    }
    return _ArrayFile(name, arrays, rule, usual, True, ordered, skipped, model.notes)


def _with_geometry(weights: Weights, workdir: pathlib.Path) -> Weights:
    """Adds the forward order, strides, paddings, dilations and groups that ``layers.json`` holds.

    Args:
      weights: the kernels of the run's checkpoint.
      workdir: the run directory.

    Returns:
      The same kernels, those of ``layers.json`` first and in its order.

    Raises:
      ValueError: if ``layers.json`` is damaged.
    """
    try:
        rows = run_directory.read_layers(workdir)
    except FileNotFoundError:
        return weights
    found = {row["layer"]: row for row in reversed(rows)}
    order = dict.fromkeys(row["layer"] for row in rows)
    with naming(workdir / run_directory.LAYERS):
        kernels = {
            name: _described(weights.kernels[name], found[name])
            for name in order
            if name in weights.kernels
        }
    missing = {name: kernel for name, kernel in weights.kernels.items() if name not in kernels}
    if not kernels:
        return weights
    # The run knows its forward order, so its first layer is the first.
    return dataclasses.replace(weights, kernels=kernels | missing, order="forward", first=None)


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
    rows, columns = value
    (top, bottom), (left, right) = rows, columns
    return (int(top), int(bottom)), (int(left), int(right))
