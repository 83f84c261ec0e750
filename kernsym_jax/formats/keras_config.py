"""Reads the configuration of a Keras model, from a file of Keras 1, 2 or 3 or from a live model."""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from kernsym_jax.formats import archive
from kernsym_jax.formats.archive import ZipMembers
from kernsym_jax.formats.arrays import StoredArray, open_regular, parse_json
from kernsym_jax.formats.containers import is_keras, keras_classes, keras_values

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
_CLASSES = {
    "conv2d": "Conv2D",
    "conv2d_transpose": "Conv2DTranspose",
    "depthwise_conv2d": "DepthwiseConv2D",
    "separable_conv2d": "SeparableConv2D",
    "batch_normalization": "BatchNormalization",
    "dense": "Dense",
}
# The variables of a layer in a .weights.h5 file have numbers instead of names.
_VARIABLES = {
    "SeparableConv2D": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "Dense": ("kernel", "bias"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}
# The attributes in which a layer keeps its layers a second time; TensorFlow's begin so, too.
_SECOND_LISTS = re.compile(r"_layers|_functional|_operations|_self_\w+")
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


def class_of(name: str) -> str:
    """Returns the class of a layer that has the name which Keras gives it; "" for other names."""
    return _CLASSES.get(re.sub(r"_\d+$", "", name.rsplit("/", 1)[-1]), "")


def variable_names(kind: str, known: Layer | None) -> tuple[str, ...]:
    """Returns the names of a layer's variables in the order of their numbers.

    Args:
      kind: the layer's class.
      known: the layer, if the configuration lists it.
    """
    names = _VARIABLES.get(kind, ("kernel", "bias") if "Conv" in kind else ())
    absent = set()
    if kind == "BatchNormalization" and known is not None:
        absent = {"gamma"} if known.settings.get("scale") is False else set()
        absent |= {"beta"} if known.settings.get("center") is False else set()
    return tuple(name for name in names if name not in absent)


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


class LiveLayer(NamedTuple):
    """A layer of a model in memory.

    Attributes:
      path: its name behind the names of the layers around it, as in a ``.keras`` file.
      kind: the nearest of Keras' own classes that it is of, such as ``Conv2D``.
      settings: its arguments.
      arrays: name -> array, of its own variables.
    """

    path: str
    kind: str
    settings: dict[str, Any]
    arrays: dict[str, StoredArray]


def live_model(model: Any) -> dict[str, Layer]:
    """Returns the layers that the configuration of a model in memory lists: path -> layer.

    There are none for a layer, for a model of the user's own class, and for a model that cannot
    be written into a file.
    """
    kinds = keras_classes(model)
    if not {"Functional", "Sequential"} & set(kinds):
        return {}
    try:
        text = model.to_json()
    # The code of the user's own layers runs here and may raise anything.
    except Exception:
        return {}
    return all_layers(read_model(parse_json(text.encode())))


def live_layers(model: Any) -> list[LiveLayer]:
    """Returns the layers of a model in memory that have variables, in the order of definition."""
    found: list[LiveLayer] = []
    _visit(model, "", found, set())
    return found


def live_optimizer(model: Any) -> dict[str, StoredArray]:
    """Returns the variables of a model's optimizer, with names as in a file."""
    variables = getattr(getattr(model, "optimizer", None), "variables", ())
    if callable(variables):
        variables = variables()
    return {f"optimizer/vars/{n}": keras_values(each) for n, each in enumerate(variables)}


def _visit(layer: Any, path: str, found: list[LiveLayer], seen: set[int]) -> None:
    """Adds a layer, and then those inside it that were not seen before."""
    seen.add(id(layer))
    place = len(found)
    for inner, child in _children(layer, path):
        if id(child) not in seen:
            _visit(child, inner, found, seen)
    kind = keras_classes(layer)[0]
    mine = [each for each in layer.weights if id(each) not in seen]
    seen.update(map(id, mine))
    if mine:
        # A variable of Keras 2 has the names of the layers around it.
        names = [each.name.split(":")[0].rpartition("/")[2] for each in mine]
        arrays = {name: keras_values(each) for name, each in zip(names, mine, strict=True)}
        settings = layer.get_config() if "Conv" in kind else {}
        lists = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
        found.insert(place, LiveLayer(path or layer.name, kind, lists, arrays))


def _children(layer: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields the layers that a layer holds, by their paths."""
    above = f"{path}/" if path else ""
    kinds = keras_classes(layer)
    if "Functional" in kinds or "Sequential" in kinds:
        yield from ((f"{above}{child.name}", child) for child in layer.layers)
    attributes = {name: value for name, value in vars(layer).items() if name != "optimizer"}
    for name in sorted(attributes, key=lambda name: _SECOND_LISTS.fullmatch(name) is not None):
        value = attributes[name]
        if is_keras(value):
            # What a wrapper such as TimeDistributed applies has the wrapper's name.
            yield path if "Wrapper" in kinds and path else f"{above}{value.name}", value
        else:
            # Sorted by name, the lists behind `layers`, that of all layers, add none to a file.
            late = "Model" in kinds and (name.startswith("_") or name > "layers")
            inside = "" if late or _SECOND_LISTS.fullmatch(name) else f"{name}/"
            for place, each in _listed(value, inside, MAX_DEPTH):
                yield f"{above}{place if inside else ''}{each.name}", each


def _listed(value: Any, place: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Yields the layers in a list, a tuple or a dictionary, with the place of each."""
    value = list(value.values()) if isinstance(value, dict) else value
    if isinstance(value, list | tuple) and depth:
        lists = 0
        for each in value:
            if is_keras(each):
                yield place, each
            elif isinstance(each, list | tuple | dict):
                inside = f"{place}container_{lists}/" if lists else f"{place}container/"
                yield from _listed(each, inside, depth - 1)
                lists += 1


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
