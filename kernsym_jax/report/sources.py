"""Sources of networks: files, run directories, folders of them and patterns."""

import dataclasses
import functools
import glob
import pathlib
from collections.abc import Sequence
from typing import Any

from kernsym_jax import run_directory
from kernsym_jax.cli import path_name
from kernsym_jax.geometry import CONVOLUTIONS, LayerGeometry
from kernsym_jax.report.summary import check_evaluation
from kernsym_jax.report.tables import NetworkTable, RowsAt, network_table
from kernsym_jax.weights import Weights, flax_layer

_SUFFIXES = (
    ".safetensors", ".safetensors.index.json", ".npz", ".msgpack", ".pt", ".pth", ".th", ".bin",
    ".ckpt", ".onnx", ".keras", ".h5", ".hdf5", ".tflite",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings for reading sources.

    Attributes:
      layout: ``HWIO``, ``OIHW`` or ``OHWI`` for files that leave the layout open.
      fold_batchnorm: multiplies each kernel by the scale of the BatchNorm after it.
      model: name of the registry model with these weights; it adds strides and paddings that files
        of weights alone do not keep.
      padding: padding of that model, one of ``layers.PADDINGS``.
      downsample: downsampling of that model, one of ``layers.DOWNSAMPLINGS``.
      input_size: pixels of the images, one number or (height, width), for the audit of ``model``,
        of runs and of ONNX graphs.
    """

    layout: str | None = None
    fold_batchnorm: bool = False
    model: str | None = None
    padding: str = "zero"
    downsample: str = "stride"
    input_size: int | tuple[int, int] | None = None


def find_sources(places: Sequence[str]) -> list[pathlib.Path]:
    """Finds the sources that a command line names.

    Args:
      places: files, run directories, checkpoints, other folders (for every run directory and file
        of weights below them), and patterns such as ``runs/*``.

    Returns:
      The sources, each once, in order.

    Raises:
      FileNotFoundError: if a place does not exist, or a folder or pattern contains no source.
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
      options: settings for reading it.

    Returns:
      Its table.

    Raises:
      ValueError: if it cannot be read or has no spatial convolution.
      FileNotFoundError: if it does not exist.
    """
    from kernsym_jax import weights

    path, options = pathlib.Path(path), options or Options()
    found = weights.read(path, layout=options.layout, fold_batchnorm=options.fold_batchnorm)
    if not found.kernels:
        raise ValueError(
            f"{path_name(path)}: no spatial convolution among its {len(found.skipped)} entries, "
            f"nothing to measure{_open_layouts(found)}"
        )
    history = _symmetry_lines(path) if run_directory.is_run(path) else []
    rows, rows_at = _geometry(path, options)
    if options.model is not None:
        found, rows = _fit(found, rows, options.model)
    return network_table(found, str(path), rows, rows_at, history, _evaluation(path))


def _open_layouts(weights: Weights) -> str:
    """The arrays that would be kernels if their layout were known."""
    open_ones = [f"{name}: {why}" for name, why in weights.skipped.items() if "--layout" in why]
    return f" ({'; '.join(open_ones[:3])})" if open_ones else ""


def _below(path: pathlib.Path, above: frozenset[pathlib.Path] = frozenset()) -> list[pathlib.Path]:
    if not path.is_dir() or _is_source(path):
        return [path]
    # A link may lead back to a folder above it.
    here = path.resolve()
    if here in above:
        return []
    found = []
    for entry in sorted(path.iterdir()):
        if entry.is_dir():
            found += _below(entry, above | {here})
        elif entry.name.lower().endswith(_SUFFIXES):
            found.append(entry)
    return found


def _is_source(folder: pathlib.Path) -> bool:
    # A half-written run counts too, so that reading it reports the failure.
    if run_directory.is_run(folder):
        return True
    from kernsym_jax.formats import orbax

    return orbax.is_checkpoint(folder)


def _geometry(
    path: pathlib.Path, options: Options
) -> tuple[Sequence[LayerGeometry], RowsAt | None]:
    """The rows of the audit, and the audit at other sizes, if the source can be audited."""
    from kernsym_jax import geometry, models

    rows_at: RowsAt
    fields: dict[str, Any] | None = None
    if options.model is not None:
        fields = {"name": options.model, "padding": options.padding}
        fields["downsample"] = options.downsample
    elif run_directory.is_run(path) and (path / run_directory.LAYERS).exists():
        fields = run_directory.read_config(path)["model"]
    if fields is not None:
        rows_at = functools.partial(geometry.audit_module, models.create(**fields))
        if options.model is None and options.input_size is None:
            return geometry.read_rows(path), rows_at
        return rows_at(options.input_size or models.default_input_size(fields["name"])), rows_at
    if path.suffix.lower() == ".onnx":
        rows_at = functools.partial(geometry.audit_onnx, path)
        try:
            return rows_at(options.input_size), rows_at
        except ValueError:
            # A graph may leave the size of its maps open; it is then audited at --input_size only.
            if options.input_size:
                raise
    return (), None


def _fit(
    weights: Weights, geometry: Sequence[LayerGeometry], model: str
) -> tuple[Weights, Sequence[LayerGeometry]]:
    """Gives the kernels the model's forward order and strides, and the rows the kernels' names."""
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
        # The audit of a network for images has two axes, as its kernels have.
        facts: dict[str, Any] = {
            fact: getattr(row, fact) for fact in ("stride", "padding", "dilation", "groups")
        }
        kernels[name] = dataclasses.replace(kernel, **facts)
    spatial = [row.layer for row in geometry if max(row.kernel) > 1 and row.kind in CONVOLUTIONS]
    missing = [layer for layer in spatial if layer not in names]
    extra = [name for name in weights.kernels if name not in kernels]
    problems = {"of its layers are missing": missing, "kernels are not of it": extra}
    if missing or extra:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for what, names in problems.items()
            if names
        ]
        raise ValueError(f"{weights.source} is no {model}: {', '.join(parts)}")
    return dataclasses.replace(weights, kernels=kernels, order="forward"), rows


def _path(name: str) -> str:
    return flax_layer(name.removeprefix("module."))


def _evaluation(source: pathlib.Path) -> dict[str, Any] | None:
    """The evaluation of a source.

    A run directory has ``consistency.json`` in it. A file of weights may have one beside it, which
    is an evaluation of this file if it names the file; the folder may hold others.
    """
    folder = source if source.is_dir() else source.parent
    if not (folder / run_directory.CONSISTENCY).exists():
        return None
    found = run_directory.read_consistency(folder)
    try:
        weights = pathlib.Path(str(found["settings"]["weights"])).name
        if source.is_file() and weights != source.name:
            return None
        check_evaluation(found)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        path = path_name(folder / run_directory.CONSISTENCY)
        raise ValueError(f"{path}: not an evaluation ({error})") from error
    return found


def _symmetry_lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the steps and scores of the metrics' lines that hold scores of layers."""
    return [
        {
            "step": line["step"],
            "scores": {layer: row["score"] for layer, row in line["layers"].items()},
        }
        for line in run_directory.read_metrics(workdir)
        if line["split"] == "symmetry"
    ]
