"""Recognises which network of the registry a state dict belongs to, by its names and shapes.

A state dict does not hold strides, paddings or the order of the layers; the network does. An
example: a file holds ``model.backbone.layer2.0.conv1.weight`` (128, 64, 3, 3). As a path of ours
that is ``model/backbone/layer2_0/conv1`` with a kernel (3, 3, 64, 128). ResNet-18 starts with
``conv1`` (7, 7, 3, 64), and the file has it behind ``model/backbone/``; every other convolution of
ResNet-18 is there too, with the same shape, and ``layer1`` to ``layer4`` hold nothing else. So the
file is a ResNet-18 with the prefix ``model.backbone.``.
"""

import functools
import gzip
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kernsym_jax.weights import flax_layer
from kernsym_jax.weights.load_into import without_blur

_TABLES = pathlib.Path(__file__).with_name("layer_tables.json.gz")
# The stored axes of a kernel, by the name of its array, as (kh, kw, in, out).
_AXES = {"weight": (2, 3, 1, 0), "kernel": (0, 1, 2, 3)}

Kernel = tuple[int, ...]


class Recognised(NamedTuple):
    """A network of the registry that fits the arrays of a source.

    Attributes:
      name: its name in the registry.
      prefix: the part of the names before the network's own, such as ``model.backbone.``.
      downsample: ``stride``, or ``blur`` if the source has the filters of BlurPool between layers.
      layers: path of a layer in our model -> its name in the source.
      extra: names of the source's other layers: heads, auxiliary branches.
      padding: ``zero``, or ``same`` if the names are those of a port of TensorFlow's weights.

    >>> from kernsym_jax import models
    >>> layers = {"layer1_0/conv1": "layer1.0.conv1"}
    >>> found = models.Recognised("resnet18", "model.", "stride", layers, ())
    >>> found.name, found.prefix
    ('resnet18', 'model.')
    """

    name: str
    prefix: str
    downsample: str
    layers: dict[str, str]
    extra: tuple[str, ...]
    padding: str = "zero"


class _Layer(NamedTuple):
    """A layer of the source: its name there, and its kernel (kh, kw, in, out) if that is known."""

    name: str
    kernel: Kernel | None


def recognise(shapes: Mapping[str, Sequence[int] | None]) -> list[Recognised]:
    """Finds the networks of the registry that a state dict belongs to.

    Args:
      shapes: name of an array -> its shape. ``…weight`` has PyTorch's layout (out, in, kh, kw),
        ``…kernel`` has (kh, kw, in, out). A shape that is not known may be None.

    Returns:
      The networks that fit, usually one or none. A network fits if every convolution of it that is
      larger than 1×1 is there with its shape (the image may have any number of channels), those of
      1×1 are there, except at its end, and agree as far as their shapes are known, and no container
      of its convolutions holds a layer that it lacks.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from kernsym_jax import models, symmetry
    >>> init = models.create("cifar_resnet20").init
    >>> variables = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    >>> kernels = symmetry.conv_kernels(variables)
    >>> shapes = {f"net/{path}": kernel.shape for path, kernel in kernels.items()}
    >>> (found,) = models.recognise(shapes)
    >>> found.name, found.prefix
    ('cifar_resnet20', 'net/')
    """
    names, downsample = without_blur(list(shapes))
    layers: dict[str, _Layer] = {}
    for array, name in zip(shapes, names, strict=True):
        if name is None:
            continue
        layer, _, leaf = name.replace("/", ".").rpartition(".")
        kernel, shape = None, shapes[array]
        if leaf in _AXES and shape is not None and len(shape) == 4:
            kernel = tuple(int(shape[axis]) for axis in _AXES[leaf])
        path = flax_layer(layer)
        if kernel is not None or path not in layers:
            layers[path] = _Layer(array[: -len(leaf) - 1], kernel)
    namings = [
        *((rename, "zero") for rename in (_as_it_is, _flat_mobilenet)),
        *((rename, "zero") for rename in (_timm_efficientnet, _timm_convnext)),
        *((_efficientnet_pytorch(counts), "same") for counts in _efficientnet_counts()),
    ]
    for rename, padding in namings:
        renamed = {rename(path): layer for path, layer in layers.items()}
        found = [
            match._replace(downsample=downsample, padding=padding) for match in _matches(renamed)
        ]
        if found:
            return found
    return []


def layer_rows(name: str) -> list[dict[str, Any]]:
    """Returns the audit of a network at its default input size.

    Args:
      name: of the registry.

    Returns:
      The attributes of a `geometry.LayerGeometry` for each layer, in forward order.

    >>> from kernsym_jax import models
    >>> rows = models.layer_rows("cifar_resnet20")
    >>> [row["layer"] for row in rows if row["stride"][0] > 1 and row["kind"] == "conv"]
    ['layer2_0/conv1', 'layer3_0/conv1']
    """
    return _tables()[name]["rows"]


@functools.cache
def _tables() -> dict[str, Any]:
    return json.loads(gzip.decompress(_TABLES.read_bytes()))


def _matches(layers: Mapping[str, _Layer]) -> Iterator[Recognised]:
    # A file may have tens of thousands of layers, and few of them the name of a first layer.
    by_end: dict[str, dict[str, _Layer]] = {}
    for path, layer in layers.items():
        by_end.setdefault(path.rpartition("/")[2], {})[path] = layer
    for name, table in _tables().items():
        wanted: dict[str, list[int] | None] = table["layers"]
        first = next(row["layer"] for row in table["rows"] if row["layer"] in wanted)
        alike = by_end.get(first.rpartition("/")[2], {})
        for prefix in _prefixes(alike, first, wanted[first]):
            inside = {
                path.removeprefix(prefix): layer
                for path, layer in layers.items()
                if path.startswith(prefix)
            }
            if _fits(inside, table, first):
                known = {path: inside[path].name for path in wanted if path in inside}
                mine = set(known.values())
                extra = tuple(layer.name for layer in layers.values() if layer.name not in mine)
                before = _stored_prefix(known[first], prefix)
                yield Recognised(name, before, "stride", known, extra)


def _prefixes(
    layers: Mapping[str, _Layer], first: str, kernel: Sequence[int] | None
) -> Iterator[str]:
    """Yields the parts before the name of the first layer, wherever its kernel is."""
    for path, layer in layers.items():
        if layer.kernel is None or kernel is None or not f"/{path}".endswith(f"/{first}"):
            continue
        height, width, _, outputs = layer.kernel
        if [height, width, outputs] == [kernel[0], kernel[1], kernel[3]]:
            yield path.removesuffix(first)


def _fits(inside: Mapping[str, _Layer], table: Mapping[str, Any], first: str) -> bool:
    wanted: Mapping[str, Sequence[int] | None] = table["layers"]
    missing = False
    for path in dict.fromkeys(row["layer"] for row in table["rows"]):
        kernel = wanted.get(path)
        if kernel is None or path == first:
            continue
        there = inside.get(path)
        if there is None or there.kernel is None:
            if max(kernel[:2]) > 1:
                return False
        elif list(there.kernel) != list(kernel):
            return False
        # A backbone may lack the last layers, as that in front of the classifier of EfficientNet.
        if missing and there is not None:
            return False
        missing = missing or there is None
    containers = {_container(path) for path, kernel in wanted.items() if kernel is not None}
    return not any(_container(path) in containers for path in inside if path not in wanted)


def _container(path: str) -> str:
    """Returns the outermost name without numbers: ``layer1`` for ``layer1_0/conv1``."""
    return re.sub(r"(_\d+)+$", "", path.partition("/")[0])


def _stored_prefix(stored: str, prefix: str) -> str:
    """Returns the part of a stored name that has this prefix as a path of ours."""
    parts = re.split(r"(?<=[./])", stored)
    starts = ("".join(parts[:end]) for end in range(1, len(parts)))
    return next((start for start in starts if f"{flax_layer(start[:-1])}/" == prefix), "")


def _renamer(rules: Sequence[tuple[str, str | Callable[[re.Match], str]]]) -> Callable[[str], str]:
    """Returns a function that renames the end of a path by the first rule that fits it."""
    compiled = [(re.compile(rf"(^|/){pattern}$"), new) for pattern, new in rules]

    def rename(path: str) -> str:
        for pattern, new in compiled:
            match = pattern.search(path)
            if match:
                end = new(match) if callable(new) else match.expand(new)
                return f"{path[: match.start()]}{match[1]}{end}"
        return path

    return rename


def _as_it_is(path: str) -> str:
    return path


# The names of MobileNetV2 whose blocks are one Sequential without containers (left), as in
# tonylins/pytorch-mobilenet-v2, as torchvision's. The first block expands nothing.
_flat_mobilenet = _renamer(
    [
        ("features_1/conv_0", "features_1/conv_0_0"),
        ("features_1/conv_1", "features_1/conv_0_1"),
        ("features_1/conv_3", "features_1/conv_1"),
        ("features_1/conv_4", "features_1/conv_2"),
        (r"features_(\d+)/conv_0", r"features_\2/conv_0_0"),
        (r"features_(\d+)/conv_1", r"features_\2/conv_0_1"),
        (r"features_(\d+)/conv_3", r"features_\2/conv_1_0"),
        (r"features_(\d+)/conv_4", r"features_\2/conv_1_1"),
        (r"features_(\d+)/conv_6", r"features_\2/conv_2"),
        (r"features_(\d+)/conv_7", r"features_\2/conv_3"),
    ]
)


def _stage(text: str) -> Callable[[re.Match], str]:
    """Returns a rule's new name, in which {0} is the next stage, {1} the block, {2} the rest."""
    return lambda match: text.format(
        int(match["stage"]) + 1, match["block"], match.groupdict().get("rest")
    )


_BLOCK = r"blocks_(?P<stage>{})_(?P<block>\d+)/"
_FIRST, _LATER = _BLOCK.format("0"), _BLOCK.format(r"\d+")

# timm's names of EfficientNet (left) as torchvision's.
_timm_efficientnet = _renamer(
    [
        (_FIRST + "conv_dw", _stage("features_{0}_{1}/block_0_0")),
        (_FIRST + "bn1", _stage("features_{0}_{1}/block_0_1")),
        (_FIRST + "se/conv_reduce", _stage("features_{0}_{1}/block_1/fc1")),
        (_FIRST + "se/conv_expand", _stage("features_{0}_{1}/block_1/fc2")),
        (_FIRST + "conv_pw", _stage("features_{0}_{1}/block_2_0")),
        (_FIRST + "bn2", _stage("features_{0}_{1}/block_2_1")),
        (_LATER + "conv_pw", _stage("features_{0}_{1}/block_0_0")),
        (_LATER + "bn1", _stage("features_{0}_{1}/block_0_1")),
        (_LATER + "conv_dw", _stage("features_{0}_{1}/block_1_0")),
        (_LATER + "bn2", _stage("features_{0}_{1}/block_1_1")),
        (_LATER + "se/conv_reduce", _stage("features_{0}_{1}/block_2/fc1")),
        (_LATER + "se/conv_expand", _stage("features_{0}_{1}/block_2/fc2")),
        (_LATER + "conv_pwl", _stage("features_{0}_{1}/block_3_0")),
        (_LATER + "bn3", _stage("features_{0}_{1}/block_3_1")),
        # What else lies in a block keeps its name, so that it counts as alien to the network.
        (_LATER + "(?P<rest>.+)", _stage("features_{0}_{1}/{2}")),
        ("conv_stem", "features_0_0"),
        ("bn1", "features_0_1"),
        ("conv_head", "features_8_0"),
        ("bn2", "features_8_1"),
        ("classifier", "classifier_1"),
    ]
)


_EFFICIENTNET_PYTORCH = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_se_reduce": "se/conv_reduce", "_se_expand": "se/conv_expand", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
_EFFICIENTNET_PYTORCH_FIRST = {
    **_EFFICIENTNET_PYTORCH, "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2",
}  # fmt: skip
_EFFICIENTNET_PYTORCH_ENDS = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
    "_fc": "classifier",
}  # fmt: skip


def _efficientnet_pytorch(counts: Sequence[int]) -> Callable[[str], str]:
    """Returns the renaming of EfficientNet-PyTorch, which numbers all blocks in one row.

    Its weights are TensorFlow's, and padded by TensorFlow's SAME.

    Args:
      counts: number of blocks of each stage.
    """
    places = [(stage, block) for stage, count in enumerate(counts) for block in range(count)]

    def rename(path: str) -> str:
        match = re.search(r"(^|/)(?:_blocks_(\d+)/)?(_[a-z]\w*)$", path)
        if match is None:
            return path
        if match[2] is None:
            end = _EFFICIENTNET_PYTORCH_ENDS.get(match[3])
        elif int(match[2]) >= len(places):
            return path
        else:
            stage, block = places[int(match[2])]
            words = _EFFICIENTNET_PYTORCH if stage else _EFFICIENTNET_PYTORCH_FIRST
            end = words.get(match[3])
            end = end and f"blocks_{stage}_{block}/{end}"
        return path if end is None else _timm_efficientnet(path[: match.end(1)] + end)

    return rename


@functools.cache
def _efficientnet_counts() -> list[tuple[int, ...]]:
    """Returns the number of blocks of each stage, of every EfficientNet of the registry."""
    found = set()
    for name, table in _tables().items():
        if name.startswith("efficientnet"):
            places = {path.partition("/")[0] for path in table["layers"] if "/" in path}
            stages = [int(place.split("_")[1]) for place in places]
            found.add(tuple(stages.count(stage) for stage in range(1, max(stages) + 1)))
    return sorted(found)


def _convnext_block(end: str = "") -> Callable[[re.Match], str]:
    def name(match: re.Match) -> str:
        inner = match.groupdict().get("rest", end)
        return f"features_{2 * int(match['stage']) + 1}_{match['block']}{inner}"

    return name


def _convnext_step(match: re.Match) -> str:
    return f"features_{2 * int(match['stage'])}_{match['place']}"


_CONVNEXT = r"stages_(?P<stage>\d+)/blocks_(?P<block>\d+)"

# timm's names of ConvNeXt (left) as torchvision's.
_timm_convnext = _renamer(
    [
        (r"stem_(\d)", r"features_0_\2"),
        (r"stages_(?P<stage>\d+)/downsample_(?P<place>\d)", _convnext_step),
        (_CONVNEXT + "/conv_dw", _convnext_block("/block_0")),
        (_CONVNEXT + "/norm", _convnext_block("/block_2")),
        (_CONVNEXT + "/mlp/fc1", _convnext_block("/block_3")),
        (_CONVNEXT + "/mlp/fc2", _convnext_block("/block_5")),
        (_CONVNEXT, _convnext_block()),
        (_CONVNEXT + "(?P<rest>/.+)", _convnext_block()),
        ("head/norm", "classifier_0"),
        ("head/fc", "classifier_2"),
    ]
)
