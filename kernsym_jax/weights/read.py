"""Reads the convolution kernels of a file of any supported format; its content tells the format."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from kernsym_jax import run_directory
from kernsym_jax.formats import guard, tensor_bundle
from kernsym_jax.formats.archive import ZipMembers
from kernsym_jax.formats.arrays import StoredArray, layer_name, naming, what_it_is
from kernsym_jax.formats.containers import is_keras
from kernsym_jax.weights import checkpoint, graph, keras
from kernsym_jax.weights.array_file import (
    HDF5,
    SUPPORTED,
    ArrayFile,
    existing,
    file_head,
    in_memory,
    is_safetensors,
    read_array_file,
)
from kernsym_jax.weights.kernels import find_kernels
from kernsym_jax.weights.layout import (
    CONV,
    DEPTHWISE,
    OHWI,
    OIHW,
    TRANSPOSED,
    ConvKernel,
    Padding,
    Pair,
    Weights,
    check_layout,
    checked,
)


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
        module or state of ``flax.nnx``, a model of Keras, or any object with a method
        ``state_dict``.
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
        weights of the requested kind.

    >>> import pathlib
    >>> import tempfile
    >>> import numpy as np
    >>> from kernsym_jax import weights
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.npz"
    >>> np.savez(path, **{"conv/kernel": np.ones((3, 3, 4, 8)), "conv/bias": np.ones(8)})
    >>> found = weights.read(path, trusted=True)
    >>> found.format, found.kernels["conv"].shape
    ('npz', (3, 3, 4, 8))
    """
    check_layout(layout)
    checkpoint.check_choice(which)
    if not isinstance(source, str | os.PathLike):
        name = type(source).__name__
        with naming(f"a {name} in memory"):
            if is_keras(source):
                _check_options("Keras", None, layout, which)
                return keras.read_live(source, layout=layout, fold_batchnorm=fold_batchnorm)
            return _kernels(in_memory(source, which), name, layout, fold_batchnorm)
    if trusted:
        weights = read_file(source, layout, fold_batchnorm, which)
    else:
        arguments = (layout, fold_batchnorm, which)
        weights = guard.call(READER, source, *arguments, records=(Weights, ConvKernel))
    run = run_directory.run_of(pathlib.Path(source))
    return weights if run is None else _with_geometry(weights, run)


READER = (__name__, "read_file")
"""The reader behind `read`, for `formats.guard`."""


def begin_reading(
    source: str | os.PathLike,
    *,
    layout: str | None = None,
    fold_batchnorm: bool = False,
    which: str | None = None,
    trusted: bool = False,
) -> None:
    """Begins to read a file or directory in a process of its own, for a later `read` of it.

    Args:
      source: as for `read`, which takes the same arguments.
      layout: as for `read`.
      fold_batchnorm: as for `read`.
      which: as for `read`.
      trusted: as for `read`; nothing is begun if it is set.

    >>> import pathlib
    >>> import tempfile
    >>> import numpy as np
    >>> from kernsym_jax import weights
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.npz"
    >>> np.savez(path, **{"conv/kernel": np.ones((3, 3, 4, 8))})
    >>> weights.begin_reading(path)  # the process reads while this one does something else
    >>> list(weights.read(path).kernels)
    ['conv']
    """
    if not trusted:
        guard.begin(READER, source, layout, fold_batchnorm, which)


def read_file(
    source: str | os.PathLike,
    layout: str | None = None,
    fold_batchnorm: bool = False,
    which: str | None = None,
) -> Weights:
    """Reads a file or directory as `read` does, in this process."""
    with naming(source):
        location = existing(source)
        hint = what_it_is(location)
        if hint is not None:
            raise ValueError(f"{hint}; {SUPPORTED}")
        weights = _read_graph(location, layout, fold_batchnorm, which)
        if weights is None:
            file = read_array_file(location, which)
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

    >>> import pathlib
    >>> import tempfile
    >>> import numpy as np
    >>> from kernsym_jax import weights
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.npz"
    >>> np.savez(path, **{"conv/kernel": np.ones((3, 3, 4, 8)), "conv/bias": np.ones(8)})
    >>> {name: array.shape for name, array in weights.read_arrays(path, trusted=True).items()}
    {'conv/kernel': (3, 3, 4, 8), 'conv/bias': (8,)}
    """
    return file_arrays(path) if trusted else guard.call((__name__, "file_arrays"), path)


def file_arrays(path: str | os.PathLike) -> dict[str, StoredArray]:
    """Reads the arrays of a file or directory as `read_arrays` does, in this process."""
    with naming(path):
        return read_array_file(existing(path)).arrays


def _kernels(file: ArrayFile, source: str, layout: str | None, fold_batchnorm: bool) -> Weights:
    """Finds the kernels among named arrays."""
    found = find_kernels(
        file.arrays,
        rule=file.rule,
        usual=file.usual,
        layout=layout,
        fold_batchnorm=fold_batchnorm,
        in_order=file.ordered,
        drop_prefix=file.drop_prefix,
        calls=file.calls,
    )
    weights = Weights(
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
    calls = {layer_name(name): call for name, call in file.calls.items() if "stride" in call}
    return _with_calls(weights, calls, forward=file.forward)


def _with_calls(
    weights: Weights, calls: Mapping[str, Mapping[str, Any]], *, forward: bool
) -> Weights:
    """Adds the strides, paddings, dilations, groups and perhaps order that a format keeps."""
    kernels = {}
    for layer, call in calls.items():
        kernel = weights.kernels.get(layer)
        if kernel is not None:
            made = _described(kernel, call)
            grouped = made.kind == CONV and (made.groups or 1) > 1 and made.shape[2] == 1
            kernels[layer] = dataclasses.replace(made, kind=DEPTHWISE) if grouped else made
    if not (kernels and forward):
        both = {name: kernels.get(name, kernel) for name, kernel in weights.kernels.items()}
        return dataclasses.replace(weights, kernels=both)
    rest = {name: kernel for name, kernel in weights.kernels.items() if name not in kernels}
    first = next(iter(calls))
    return dataclasses.replace(weights, kernels=kernels | rest, order="forward", first=first)


def _read_graph(
    path: pathlib.Path, layout: str | None, fold_batchnorm: bool, which: str | None
) -> Weights | None:
    """Reads a file that keeps the network's graph; returns None if its format keeps none."""
    # The values of a TensorFlow checkpoint may begin with anything.
    if path.is_dir() or tensor_bundle.index_of(path) is not None:
        return None
    head = file_head(path)
    # These two formats begin with an offset or a size, which may look like another format.
    if head[4:8] == b"TFL3":
        _check_options("TensorFlow Lite", OHWI, layout, which)
        return graph.read_tflite(path)
    if is_safetensors(head):
        return None
    if head[:1] == b"\x08" or path.suffix.lower() == ".onnx":
        _check_options("ONNX", OIHW, layout, which)
        return graph.read_onnx(path, fold_batchnorm=fold_batchnorm)
    if head.startswith(HDF5):
        weights = keras.read_hdf5(path, layout=layout, fold_batchnorm=fold_batchnorm)
        if weights is not None:
            _check_options("Keras", None, layout, which)
        return weights
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
    kinds = (CONV, DEPTHWISE, TRANSPOSED)
    first = next((row["layer"] for row in rows if row.get("kind") in kinds), None)
    return dataclasses.replace(weights, kernels=kernels | missing, order="forward", first=first)


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
