"""What `analyze` is pointed at: files, run directories, folders of them and patterns."""

import dataclasses
import glob
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from kernsym_jax.geometry import CONVOLUTIONS, LayerGeometry
from kernsym_jax.report.layer_table import NetworkTable, network_table
from kernsym_jax.weights import Weights

_SUFFIXES = (
    ".safetensors", ".safetensors.index.json", ".npz", ".msgpack", ".pt", ".pth", ".th", ".bin",
    ".ckpt", ".onnx", ".keras", ".h5", ".hdf5", ".tflite",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """How sources are read.

    Attributes:
      layout: ``HWIO``, ``OIHW`` or ``OHWI`` for files that leave it open.
      fold_batchnorm: multiplies kernels by the scale of the BatchNorm after them.
      model: name of a registry model that the weights are of, which tells strides and paddings that
        their files do not.
      input_size: pixels of the images, for the audit of ``model`` and of ONNX graphs.
    """

    layout: str | None = None
    fold_batchnorm: bool = False
    model: str | None = None
    input_size: int | None = None


def find_sources(places: Sequence[str]) -> list[pathlib.Path]:
    """All sources that are meant by what stands on a command line.

    Args:
      places: files, run directories, checkpoints, other folders (which stand for every run
        directory and file of weights below them), and patterns such as ``runs/*``.

    Returns:
      The sources, each once, in order.

    Raises:
      FileNotFoundError: if a place does not exist, or a folder or pattern holds nothing to read.
    """
    found: dict[pathlib.Path, None] = {}
    for place in places:
        path = pathlib.Path(place)
        if path.exists():
            matches = [path]
        else:
            matches = [pathlib.Path(match) for match in sorted(glob.glob(place, recursive=True))]
            if not matches:
                raise FileNotFoundError(f"{place}: no such file or directory")
        inside = [source for match in matches for source in _below(match)]
        if not inside:
            raise FileNotFoundError(f"{place}: no run directory and no file of weights in it")
        found |= dict.fromkeys(inside)
    return list(found)


def read_table(path: str | pathlib.Path, options: Options | None = None) -> NetworkTable:
    """Reads one source and measures it.

    Args:
      path: a run directory or a file of weights.
      options: how to read it.

    Returns:
      Its table.

    Raises:
      ValueError: if it cannot be read or has no spatial convolution.
      FileNotFoundError: if it does not exist.
    """
    from kernsym_jax import weights

    path, options = pathlib.Path(path), options or Options()
    found = weights.read(path, options.layout, options.fold_batchnorm)
    if not found.kernels:
        raise ValueError(
            f"{path}: no spatial convolution among its {len(found.skipped)} entries, "
            "nothing to measure"
        )
    history = []
    if (path / "metrics.jsonl").is_file():
        lines = _json_lines(path / "metrics.jsonl")
        history = [line for line in lines if line.get("split") == "symmetry"]
    geometry = _geometry(path, options)
    if options.model is not None:
        found, geometry = _fit(found, geometry, options.model)
    return network_table(found, str(path), geometry, history)


def _below(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_file() or _is_source(path):
        return [path]
    found = []
    for entry in sorted(path.iterdir()):
        if entry.is_dir():
            found += _below(entry)
        elif entry.name.lower().endswith(_SUFFIXES):
            found.append(entry)
    return found


def _is_source(folder: pathlib.Path) -> bool:
    # The half-written run too: that it cannot be read is then said, instead of passing it over.
    if (folder / "config.json").is_file() and (folder / "provenance.json").is_file():
        return True
    from kernsym_jax.weights import orbax

    return orbax.is_checkpoint(folder)


def _geometry(path: pathlib.Path, options: Options) -> list[LayerGeometry]:
    """The rows of the audit, as far as the source or the options tell what to audit."""
    from kernsym_jax import geometry

    if options.model is not None:
        return _model_geometry(options.model, options.input_size)
    if (path / "layers.json").is_file():
        rows = geometry.read_rows(path / "layers.json")
        return geometry.layers_at(rows, options.input_size) if options.input_size else rows
    if path.suffix.lower() == ".onnx":
        try:
            return geometry.audit_onnx(path, options.input_size)
        except ValueError:
            # Without a size a graph may leave its maps open: then nothing is known about them.
            if options.input_size:
                raise
    return []


def _model_geometry(name: str, input_size: int | None) -> list[LayerGeometry]:
    from kernsym_jax import geometry, models

    size = input_size or models.default_input_size(name)
    return geometry.audit_module(models.create(name), size)


def _fit(
    weights: Weights, geometry: list[LayerGeometry], model: str
) -> tuple[Weights, list[LayerGeometry]]:
    """The kernels in the model's forward order, with its strides, and its rows by their names."""
    names = {_path(name): name for name in weights.kernels}
    rows, kernels = [], {}
    for row in geometry:
        name = names.get(row.layer)
        kernel = weights.kernels.get(name or "")
        if name is None or kernel is None:
            rows.append(row)
            continue
        if kernel.shape[:2] != row.kernel:
            raise ValueError(
                f"{weights.source} is no {model}: {name} has a kernel of {kernel.shape[:2]}, "
                f"{row.layer} of {row.kernel}"
            )
        rows.append(dataclasses.replace(row, layer=name))
        # A kernel of two axes has a row of two axes.
        facts: dict[str, Any] = {
            fact: getattr(row, fact) for fact in ("stride", "padding", "dilation", "groups")
        }
        kernels[name] = dataclasses.replace(kernel, **facts)
    spatial = [row.layer for row in geometry if max(row.kernel) > 1 and row.kind in CONVOLUTIONS]
    missing = [layer for layer in spatial if layer not in names]
    extra = [name for name in weights.kernels if name not in kernels]
    if missing or extra:
        raise ValueError(
            f"{weights.source} is no {model}: {len(missing)} of its layers are missing "
            f"({', '.join(missing[:3])}), {len(extra)} kernels are not of it "
            f"({', '.join(extra[:3])})"
        )
    return dataclasses.replace(weights, kernels=kernels, order="forward"), rows


def _path(name: str) -> str:
    """``module.layer1.0.conv1`` of PyTorch as our models name it, ``layer1_0/conv1``."""
    return re.sub(r"\.(\d+)(?=\.|$)", r"_\1", name.removeprefix("module.")).replace(".", "/")


def _json_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    # The last line may be cut off while a run is writing it.
    lines = [line for line in path.read_text("utf-8").splitlines(True) if line.endswith("\n")]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
