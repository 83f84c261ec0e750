"""Finds the strides, paddings and order of layers, which a file of weights does not hold.

They come from the files of a run, from a graph, from the network that the user names, or from the
network of the registry that the names and shapes of the weights belong to.
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kernsym_jax import run_directory
from kernsym_jax.geometry import CONVOLUTIONS, LayerGeometry
from kernsym_jax.report.tables import RowsAt
from kernsym_jax.weights import Weights, flax_layer
from kernsym_jax.weights.kernels import POINTWISE

if TYPE_CHECKING:
    from kernsym_jax.models.recognition import Recognised
    from kernsym_jax.report.sources import Options

_FROM_TENSORFLOW = re.compile(r"(?<![a-z0-9])tf_efficientnet")
# Networks with the layers of others and with strides elsewhere; only the file's name tells.
_OTHER_STRIDES = re.compile(
    r"(resnet|resnext)aa\d|(resnet|resnext|efficientnet)_?blur|(resnet|resnext|r)\d+[-_]?(caffe|dc5)",
    re.IGNORECASE,
)

_RESNETS = ("resnet", "resnext", "wide_resnet")
# With such a head, the last stages of a ResNet mostly have dilations in place of strides, which
# the weights do not tell.
_DENSE_HEAD = re.compile(
    r"(?<![a-z])((aux_)?classifier|decode_head|auxiliary_head|fpa)\b|aspp|psp|ppm"
)
_DILATED = ("layer3", "layer4")
_OPEN = ", whose layer3 and layer4 may be dilated in place of strided: --model decides"

Geometry = tuple[Sequence[LayerGeometry], RowsAt | None]


def geometry_of(
    path: pathlib.Path | None, options: "Options", *, has_graph: bool = True
) -> Geometry:
    """Audits a source, if it can be audited.

    Args:
      path: the source; None for weights in memory.
      options: settings for reading it.
      has_graph: whether its format may keep a graph.

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
    if path is not None and has_graph:
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
    """Returns the audit of a network of ours by input size; the checkpoints of one run share it."""
    from kernsym_jax import geometry, models

    return functools.partial(geometry.audit_module, models.create(**json.loads(fields)))


def join(
    weights: Weights, source: str, geometry: Geometry, options: "Options"
) -> tuple[Weights, Sequence[LayerGeometry], RowsAt | None]:
    """Gives kernels and rows of an audit the same names, and the kernels the audit's facts.

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
        names, prefix = _layers_of_model(weights, rows, options.model)
        weights, rows = _fit(weights, rows, names, options.model)
        others = _besides(weights, names.values())
        if others:
            note = f"read as {options.model}{_behind(prefix)}{others}"
            weights = dataclasses.replace(weights, notes=(note, *weights.notes))
    elif not rows and weights.order != "forward":
        return _recognised(weights, source, options)
    return weights, rows, rows_at


def _recognised(
    weights: Weights, source: str, options: "Options"
) -> tuple[Weights, Sequence[LayerGeometry], RowsAt | None]:
    from kernsym_jax import models

    matches = models.recognise(_shapes(weights))
    stored = [name for match in matches for name in match.layers.values()]
    # Networks with the same layers count once; networks with other layers are all present.
    if not matches or len(set(stored)) < len(stored):
        return weights, (), None
    other = _OTHER_STRIDES.search(source)
    if other:
        note = f"{other[0]} has the layers of {matches[0].name} but other strides: --model decides"
        return dataclasses.replace(weights, notes=(note, *weights.notes)), (), None
    # TensorFlow's weights in timm have the names of the others.
    ported = bool(_FROM_TENSORFLOW.search(source)) or any(
        kernel.padding == "SAME" and max(kernel.stride or (1,)) > 1
        for kernel in weights.kernels.values()
    )
    said: list[str] = []
    rows: list[LayerGeometry] = []
    rows_at = None
    # Each network's kernels are put in front of all others.
    for found in reversed(matches):
        own, rows_at = _audit_of(found, options, ported=ported)
        if _differs(found, own, weights, ported=ported):
            note = f"its layers are those of {found.name}, but with other strides or paddings"
            return dataclasses.replace(weights, notes=(note, *weights.notes)), (), None
        is_open = found.name.startswith(_RESNETS) and _has_dense_head(found, weights)
        if is_open:
            own, rows_at = [row for row in own if not row.layer.startswith(_DILATED)], None
        weights, named = _fit(weights, own, found.layers, found.name)
        rows = [*named, *_behind_others(rows, len(named))]
        blur = " with blur pooling" if found.downsample == "blur" else ""
        said.insert(0, f"{found.name}{blur}{_behind(found.prefix)}{_OPEN if is_open else ''}")
    note = f"recognised as {' and '.join(said)}{_besides(weights, stored)}"
    weights = dataclasses.replace(weights, notes=(note, *weights.notes))
    # It looks for no size at which several networks are even.
    return weights, rows, rows_at if len(matches) == 1 else None


def _differs(
    found: "Recognised", rows: Sequence[LayerGeometry], weights: Weights, *, ported: bool
) -> bool:
    """Returns whether what the file says of a convolution is not so in a recognised network."""
    ported = ported and found.name.startswith("efficientnet")
    for row in rows:
        kernel = weights.kernels.get(found.layers.get(row.layer, ""))
        if kernel is None or kernel.stride is None:
            continue
        # A rule that keeps the size pads a step of 1 as the networks do, and others as TensorFlow.
        alike = isinstance(kernel.padding, str) and (ported or max(kernel.stride) == 1)
        padding = row.padding if alike else kernel.padding or ((0, 0), (0, 0))
        if (kernel.stride, kernel.dilation, padding) != (row.stride, row.dilation, row.padding):
            return True
    return False


def _has_dense_head(found: "Recognised", weights: Weights) -> bool:
    """Returns whether convolutions that answer for every pixel stand behind a network."""
    pointwise = {
        name.rpartition(".")[0] for name, why in weights.skipped.items() if why == POINTWISE
    }
    return any(
        _DENSE_HEAD.search(name) and (name in weights.kernels or name in pointwise)
        for name in found.extra
    )


def _audit_of(found: "Recognised", options: "Options", *, ported: bool) -> Geometry:
    """Returns the audit of a recognised network; ``ported`` EfficientNets are TensorFlow's."""
    ported = ported and found.name.startswith("efficientnet")
    padding = "same" if ported else found.padding
    if (padding, found.downsample, options.input_size) == ("zero", "stride", None):
        return _plain_rows(found.name), None
    fields = {"name": found.name, "padding": padding, "downsample": found.downsample}
    rows_at = _auditor(json.dumps(fields))
    from kernsym_jax import models

    return rows_at(options.input_size or models.default_input_size(found.name)), rows_at


@functools.lru_cache(maxsize=16)
def _plain_rows(name: str) -> tuple[LayerGeometry, ...]:
    """Returns the audit of a network without options; the checkpoints of one run share it."""
    from kernsym_jax import models

    return tuple(LayerGeometry.from_dict(row) for row in models.layer_rows(name))


def _behind_others(rows: Sequence[LayerGeometry], count: int) -> list[LayerGeometry]:
    """Returns the rows with what they read renumbered, for `count` rows in front of them."""
    return [
        row
        if row.reads is None
        else dataclasses.replace(
            row, reads=tuple(place if place < 0 else place + count for place in row.reads)
        )
        for row in rows
    ]


def _shapes(weights: Weights) -> dict[str, tuple[int, ...] | None]:
    """Returns the names of a source's arrays -> their shapes, as `models.recognise` takes them."""
    shapes: dict[str, tuple[int, ...] | None] = dict.fromkeys(weights.skipped)
    return shapes | {f"{name}.kernel": kernel.shape for name, kernel in weights.kernels.items()}


def _behind(prefix: str) -> str:
    return f" (prefix {prefix})" if prefix else ""


def _besides(weights: Weights, known: Iterable[str]) -> str:
    mine = set(known)
    others = [name for name in weights.kernels if name not in mine]
    more = ", …" if len(others) > 3 else ""
    return f"; besides it {', '.join(others[:3])}{more}" if others else ""


def _layers_of_model(
    weights: Weights, rows: Sequence[LayerGeometry], model: str
) -> tuple[dict[str, str], str]:
    """Finds the layers of a model that the user names.

    Returns:
      path of a layer -> its name in the source; and what stands before the names.

    Raises:
      ValueError: if layers are missing, or others lie among them.
    """
    from kernsym_jax import models

    for found in models.recognise(_shapes(weights)):
        if found.name == model:
            return found.layers, found.prefix
    # Variants with layers of their own, and networks of the user's own, are in no table.
    paths = {flax_layer(name): name for name in weights.kernels}
    spatial = [row.layer for row in rows if max(row.kernel) > 1 and row.kind in CONVOLUTIONS]
    prefixes = [
        path.removesuffix(spatial[0])
        for path in paths
        if spatial and f"/{path}".endswith(f"/{spatial[0]}")
    ]
    before = max(
        prefixes, key=lambda each: sum(each + layer in paths for layer in spatial), default=""
    )
    names = {path.removeprefix(before): name for path, name in paths.items()}
    _require_same_layers(weights, rows, spatial, names, model)
    return names, before


def _require_same_layers(
    weights: Weights,
    rows: Sequence[LayerGeometry],
    spatial: Sequence[str],
    names: Mapping[str, str],
    model: str,
) -> None:
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
