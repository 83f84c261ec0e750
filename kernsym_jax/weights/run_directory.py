"""Our own run directories: the newest checkpoint, with the layers' geometry beside it."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from kernsym_jax.weights import json_text
from kernsym_jax.weights.conv_kernel import ConvKernel, Padding, Pair, Weights

_CONFIG, _LAYERS, _CHECKPOINTS = "config.json", "layers.json", "checkpoints"


def is_run_directory(path: pathlib.Path) -> bool:
    """Whether a folder is one that our training writes."""
    return (path / _CONFIG).is_file() and (path / _CHECKPOINTS).is_dir()


def checkpoints(path: pathlib.Path) -> pathlib.Path:
    """The folder of a run's checkpoints."""
    return path / _CHECKPOINTS


def with_geometry(weights: Weights, path: pathlib.Path) -> Weights:
    """Adds what ``layers.json`` says: the forward order, strides, paddings, dilations and groups.

    Args:
      weights: as read from the run's checkpoint.
      path: the run directory.

    Returns:
      The same kernels, those of ``layers.json`` first and in its order.

    Raises:
      ValueError: if ``layers.json`` is not what training writes.
    """
    file = path / _LAYERS
    if not file.is_file():
        return weights
    rows = json_text.parse(file.read_bytes())
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{_LAYERS} is no list of layers")
    found = {str(row.get("layer")): row for row in reversed(rows)}
    order = dict.fromkeys(str(row.get("layer")) for row in rows)
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
