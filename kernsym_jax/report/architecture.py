"""The strides, paddings and order of a source's layers, which a file of weights does not hold.

They come from the files of a run, from a graph, from the network that the user names, or from the
network of the registry that the names and shapes of the weights belong to.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kernsym_jax import run_directory
from kernsym_jax.geometry import CONVOLUTIONS, LayerGeometry
from kernsym_jax.report.tables import RowsAt
from kernsym_jax.weights import Weights, flax_layer

if TYPE_CHECKING:
    from kernsym_jax.report.sources import Options

Geometry = tuple[Sequence[LayerGeometry], RowsAt | None]


def geometry_of(path: pathlib.Path | None, options: "Options") -> Geometry:
    """Audits a source, if it can be audited.

    Args:
      path: the source; None for weights in memory.
      options: settings for reading it.

    Returns:
      The rows of the audit, and a function that audits the network at another input size.

    Raises:
      ValueError: if it cannot be audited at the size that the options name.
    """
    from kernsym_jax import geometry, models

    run = None if path is None else run_directory.run_of(path)
    fields: dict[str, Any] | None = None
    if options.model is not None:
        fields = {"name": options.model, "padding": options.padding}
        fields["downsample"] = options.downsample
    elif run is not None and (run / run_directory.LAYERS).exists():
        from kernsym_jax.models.registry import is_own

        fields = run_directory.read_config(run)["model"]
        # Reading a run runs no code that its files name.
        if is_own(fields["name"]):
            if options.input_size is not None:
                raise ValueError(
                    f"{run}: its network {fields['name']} is no network of this package; the audit "
                    "binary imports it and takes another --input_size"
                )
            return geometry.read_rows(run), None
    rows_at: RowsAt
    if fields is not None:
        rows_at = _auditor(json.dumps(fields))
        if options.model is None and options.input_size is None and run is not None:
            return geometry.read_rows(run), rows_at
        return rows_at(options.input_size or models.default_input_size(fields["name"])), rows_at
    if path is not None:
        rows_at = geometry.FileAudits(path, trusted=options.trusted)
        try:
            return rows_at(options.input_size), rows_at
        except geometry.NoGraphError:
            return (), None
        except ValueError:
            # A graph may leave the size of its maps open; it is then audited at --input_size only.
            if options.input_size:
                raise
    return (), None


@functools.lru_cache(maxsize=16)
def _auditor(fields: str) -> RowsAt:
    """The audit of a network of ours by input size; the checkpoints of one run share it."""
    from kernsym_jax import geometry, models

    return functools.partial(geometry.audit_module, models.create(**json.loads(fields)))


def join(
    weights: Weights, source: str, geometry: Geometry, options: "Options"
) -> tuple[Weights, Sequence[LayerGeometry], RowsAt | None]:
    """Gives kernels and rows of an audit the same names, and the kernels what the audit tells.

    Args:
      weights: the kernels of a source.
      source: its path, or the type of what is in memory.
      geometry: from `geometry_of`.
      options: settings for reading the source.

    Returns:
      The kernels, the rows, and the audit at other sizes. A source without an audit has that of the
      network that `models.recognise` finds, and a note that says so.

    Raises:
      ValueError: if the weights are not of the model that the options name.
    """
    rows, rows_at = geometry
    if options.model is not None:
        names = {_path(name): name for name in weights.kernels}
        _require_same_layers(weights, rows, names, options.model)
        weights, rows = _fit(weights, rows, names, options.model)
    elif not rows and weights.order != "forward":
        return _recognised(weights, source, options)
    return weights, rows, rows_at


def _recognised(
    weights: Weights, source: str, options: "Options"
) -> tuple[Weights, Sequence[LayerGeometry], RowsAt | None]:
    from kernsym_jax import models

    shapes: dict[str, tuple[int, ...] | None] = dict.fromkeys(weights.skipped)
    shapes |= {f"{name}.kernel": kernel.shape for name, kernel in weights.kernels.items()}
    matches = models.recognise(shapes)
    if len(matches) != 1:
        return weights, (), None
    (found,) = matches
    # TensorFlow's weights in timm have the names of the others.
    padding = "same" if pathlib.Path(source).name.startswith("tf_") else "zero"
    published = (padding, found.downsample, options.input_size) == ("zero", "stride", None)
    rows_at: RowsAt | None = None
    if published:
        rows = [LayerGeometry.from_dict(row) for row in models.layer_rows(found.name)]
    else:
        fields = {"name": found.name, "padding": padding, "downsample": found.downsample}
        rows_at = _auditor(json.dumps(fields))
        rows = list(rows_at(options.input_size or models.default_input_size(found.name)))
    weights, named = _fit(weights, rows, found.layers, found.name)
    prefix = f" (prefix {found.prefix})" if found.prefix else ""
    blur = " with blur pooling" if found.downsample == "blur" else ""
    note = f"recognised as {found.name}{blur}{prefix}"
    others = [name for name in weights.kernels if name not in found.layers.values()]
    if others:
        note += f"; besides it {', '.join(others[:3])}{', …' if len(others) > 3 else ''}"
    return dataclasses.replace(weights, notes=(note, *weights.notes)), named, rows_at


def _require_same_layers(
    weights: Weights, rows: Sequence[LayerGeometry], names: Mapping[str, str], model: str
) -> None:
    spatial = [row.layer for row in rows if max(row.kernel) > 1 and row.kind in CONVOLUTIONS]
    layers = {row.layer for row in rows}
    missing = [layer for layer in spatial if layer not in names]
    extra = [name for path, name in names.items() if path not in layers]
    problems = {"of its layers are missing": missing, "kernels are not of it": extra}
    parts = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for what, names in problems.items()
        if names
    ]
    if parts:
        raise ValueError(f"{weights.source} is no {model}: {', '.join(parts)}")


def _fit(
    weights: Weights, geometry: Sequence[LayerGeometry], names: Mapping[str, str], model: str
) -> tuple[Weights, Sequence[LayerGeometry]]:
    """Gives the kernels the model's forward order and strides, and the rows the kernels' names."""
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
    kernels |= {name: kernel for name, kernel in weights.kernels.items() if name not in kernels}
    return dataclasses.replace(weights, kernels=kernels, order="forward"), rows


def _path(name: str) -> str:
    return flax_layer(name.removeprefix("module."))
