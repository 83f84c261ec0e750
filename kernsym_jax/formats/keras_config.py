"""Reads the configuration of a Keras model, as Keras 1, 2 and 3 write it into their files."""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kernsym_jax.formats import archive
from kernsym_jax.formats.archive import ZipMembers
from kernsym_jax.formats.arrays import open_regular, parse_json

CONFIG = "config.json"
"""The member of a ``.keras`` file that holds the configuration."""

MAX_DEPTH = 16
"""The deepest nesting of models."""

MAX_LAYERS = 20_000
"""The most layers of a model, counting those of the models inside it."""

# Keras 1 has other names for classes and settings.
_CLASSES_1 = {
    "Convolution1D": "Conv1D",
    "Convolution2D": "Conv2D",
    "AtrousConvolution2D": "Conv2D",
    "Deconvolution2D": "Conv2DTranspose",
    "SeparableConvolution2D": "SeparableConv2D",
}
_SETTINGS_1 = {
    "nb_filter": "filters",
    "subsample": "strides",
    "subsample_length": "strides",
    "border_mode": "padding",
    "atrous_rate": "dilation_rate",
    "filter_length": "kernel_size",
}
_ORDERINGS_1 = {"th": "channels_first", "tf": "channels_last"}


@dataclasses.dataclass(frozen=True)
class Reference:
    """A result of a layer.

    Attributes:
      layer: the layer's name, without those of the models around it.
      call: which of the layer's calls made it.
      index: which of the call's results it is.
    """

    layer: str
    call: int = 0
    index: int = 0


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a layer.

    Attributes:
      reads: the results that it reads, in order.
      arguments: its other arguments by name, such as the axis of a concatenation.
    """

    reads: tuple[Reference, ...]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer as the configuration describes it.

    Attributes:
      path: its name behind the names of the models around it: ``backbone/conv1``.
      kind: its class, such as ``Conv2D``, by its name in Keras 2 and 3.
      settings: its arguments, by their names in Keras 2 and 3.
      inputs: paths of the layers that feed it.
      key: its name in a ``.weights.h5`` file, such as ``conv2d_1``, behind those of the models
        around it.
      calls: its calls; none for an input.
      build_shape: the shape of its input as Keras noted it, or None.
      model: the model that it is, or None.
    """

    path: str
    kind: str
    settings: Mapping[str, Any]
    inputs: tuple[str, ...]
    key: str
    calls: tuple[Call, ...] = ()
    build_shape: Any = None
    model: "Model | None" = None

    def pair(self, setting: str) -> tuple[int, int] | None:
        """Returns a setting that holds (rows, columns), or one number for both."""
        value = self.settings.get(setting)
        if isinstance(value, int):
            return value, value
        return (
            (int(value[0]), int(value[1])) if isinstance(value, list) and len(value) == 2 else None
        )


@dataclasses.dataclass(frozen=True)
class Model:
    """The layers of a model.

    Attributes:
      layers: by name, in the configuration's order.
      sequential: whether each layer reads the one before it.
      inputs: the results of its input layers; empty for a sequential model.
      outputs: the results that it returns; empty for a sequential model.
      build_shape: the shape of its input as Keras noted it, or None.
    """

    layers: Mapping[str, Layer]
    sequential: bool
    inputs: tuple[Reference, ...] = ()
    outputs: tuple[Reference, ...] = ()
    build_shape: Any = None


def read_file(path: str | os.PathLike) -> Model | None:
    """Returns the model in a ``.keras`` or ``.h5`` file; None if the file holds weights alone.

    Args:
      path: a zip archive or an HDF5 file.

    Raises:
      ValueError: if it is damaged, or its model has no list of layers.
    """
    with open_regular(path) as file:
        zipped = file.read(2) == b"PK"
    if zipped:
        members = ZipMembers(path)
        content = members.read(CONFIG).tobytes() if CONFIG in members else None
    else:
        content = archive.read_hdf5_attributes(path).get("model_config")
    return read_model(parse_json(content)) if content else None


def read_model(config: Any) -> Model:
    """Returns a model with the models inside it.

    Args:
      config: the content of ``config.json`` in a ``.keras`` file, or of the attribute
        ``model_config``.

    Raises:
      ValueError: if it is not the configuration of a model with layers.
    """
    return _model(config, "", "", 0, [0])


def all_layers(model: Model) -> dict[str, Layer]:
    """Returns the layers of a model and of the models inside it: path -> layer, in their order."""
    return {layer.path: layer for layer in _flattened(model)}


def owner(key: str, keys: Mapping[str, Layer]) -> tuple[Layer | None, tuple[str, ...]]:
    """Returns the layer of a group, or of the nearest one around it, and the names between."""
    parts = tuple(key.split("/"))
    for end in range(len(parts), 0, -1):
        layer = keys.get("/".join(parts[:end]))
        if layer is not None:
            return layer, parts[end:]
    return None, parts


def wrapped(layer: Layer) -> Layer:
    """Returns what a wrapper such as TimeDistributed applies, under the wrapper's name."""
    inner = layer.settings.get("layer")
    if not isinstance(inner, dict) or not isinstance(inner.get("config"), dict):
        return layer
    return dataclasses.replace(layer, kind=str(inner.get("class_name")), settings=inner["config"])


def padding_before(
    layer: Layer, layers: Mapping[str, Layer]
) -> tuple[tuple[int, int], tuple[int, int]] | str | None:
    """Returns the padding of a convolution, including that of a ZeroPadding2D in front of it."""
    rule = layer.settings.get("padding")
    if rule == "same":
        return "SAME"
    if rule != "valid":
        return None
    feeding = [layers[path] for path in layer.inputs if path in layers]
    if len(feeding) == 1 and feeding[0].kind == "ZeroPadding2D":
        value = feeding[0].settings.get("padding")
        if isinstance(value, int):
            return (value, value), (value, value)
        if isinstance(value, list) and len(value) == 2:
            rows, columns = (([side] * 2 if isinstance(side, int) else side) for side in value)
            return (int(rows[0]), int(rows[1])), (int(columns[0]), int(columns[1]))
    return (0, 0), (0, 0)


def _flattened(model: Model) -> Iterator[Layer]:
    for layer in model.layers.values():
        yield layer
        if layer.model is not None:
            yield from _flattened(layer.model)


def _entries(config: Any) -> list[Any] | None:
    inner = config.get("config") if isinstance(config, dict) else None
    if isinstance(inner, dict):
        inner = inner.get("layers")
    return inner if isinstance(inner, list) else None


def _model(config: Any, path: str, key: str, depth: int, count: list[int]) -> Model:
    entries = _entries(config)
    if entries is None or depth > MAX_DEPTH:
        raise ValueError("a Keras configuration, but not of a model with layers")
    count[0] += len(entries)
    if count[0] > MAX_LAYERS:
        raise ValueError(f"a Keras configuration of more than {MAX_LAYERS} layers")
    settings = config["config"] if isinstance(config["config"], dict) else {}
    sequential = "input_layers" not in settings
    layers: dict[str, Layer] = {}
    counts: dict[str, int] = {}
    previous: str | None = None
    for entry in entries:
        snake = snake_case(str(entry["class_name"]))
        own_key = f"{key}{snake}_{counts[snake]}" if snake in counts else f"{key}{snake}"
        counts[snake] = counts.get(snake, 0) + 1
        name, layer = _layer(entry, previous if sequential else None, path, own_key, depth, count)
        layers[name] = layer
        previous = name
    return Model(
        layers,
        sequential,
        tuple(_references(settings.get("input_layers"))),
        tuple(_references(settings.get("output_layers"))),
        settings.get("build_input_shape") or settings.get("batch_input_shape"),
    )


def _layer(
    entry: Any, previous: str | None, path: str, key: str, depth: int, count: list[int]
) -> tuple[str, Layer]:
    """Returns a layer by its name; `previous` is the one that it reads unless it lists others."""
    kind, settings = str(entry["class_name"]), entry["config"]
    settings = settings if isinstance(settings, dict) else {"layers": settings}
    name = str(settings.get("name") or entry.get("name") or kind)
    nodes = entry.get("inbound_nodes")
    calls = tuple(map(_call, nodes)) if isinstance(nodes, list) else ()
    calls = tuple(call for call in calls if call.reads)
    if not calls and previous is not None:
        calls = (Call((Reference(previous),)),)
    built = entry.get("build_config")
    feeding = dict.fromkeys(f"{path}{each.layer}" for call in calls for each in call.reads)
    is_model = kind in ("Functional", "Model", "Sequential") or "input_layers" in settings
    inner = _model(entry, f"{path}{name}/", f"{key}/", depth + 1, count) if is_model else None
    return name, Layer(
        f"{path}{name}",
        _CLASSES_1.get(kind, kind),
        _renamed(settings),
        tuple(feeding),
        key,
        calls,
        built.get("input_shape") if isinstance(built, dict) else None,
        inner,
    )


def _renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings by the names that Keras 2 and 3 give them."""
    renamed = {_SETTINGS_1.get(name, name): value for name, value in settings.items()}
    if "nb_row" in settings and "nb_col" in settings:
        renamed["kernel_size"] = [settings["nb_row"], settings["nb_col"]]
    if settings.get("dim_ordering") in _ORDERINGS_1:
        renamed["data_format"] = _ORDERINGS_1[settings["dim_ordering"]]
    return renamed


def _call(node: Any) -> Call:
    """Returns a call; Keras 2 lists the results that it reads, Keras 3 its arguments."""
    named = node.get("kwargs") if isinstance(node, dict) else None
    if isinstance(node, list) and node and isinstance(node[0], list) and len(node[0]) > 3:
        named = node[0][3]
    return Call(tuple(_references(node)), named if isinstance(named, dict) else {})


def _references(node: Any) -> list[Reference]:
    """Returns the results that a part of a configuration names, in order.

    Keras 2 writes ``[layer, call, index, arguments]``, and Keras 3 a ``keras_history``.
    """
    found: list[Reference] = []
    pending = [node]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            history = item.get("keras_history")
            pending.extend([history] if history else reversed(item.values()))
        elif isinstance(item, list):
            name, *numbers = item[:3] if item else [None]
            if isinstance(name, str) and len(numbers) == 2 and all(type(n) is int for n in numbers):
                found.append(Reference(name, *numbers))
                pending.extend(reversed(item[3:]))
            else:
                pending.extend(reversed(item))
    return found


def snake_case(name: str) -> str:
    """Turns ``DepthwiseConv2D`` into ``depthwise_conv2d``, as Keras does to name a group."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
