"""A Keras model's configuration: its layers in order, their settings, and what feeds what."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kernsym_jax.weights.conv_kernel import Padding, Pair

MAX_DEPTH = 16

_MODELS = ("Functional", "Model", "Sequential")


@dataclasses.dataclass(frozen=True)
class KerasLayer:
    """A layer as the configuration describes it.

    Attributes:
      path: its name, after those of the models around it: ``backbone/conv1``.
      kind: the class, such as ``Conv2D``.
      settings: its arguments.
      inputs: paths of the layers that feed it.
      key: what a ``.weights.h5`` file calls it, such as ``conv2d_1``, after those around it.
    """

    path: str
    kind: str
    settings: Mapping[str, Any]
    inputs: tuple[str, ...]
    key: str

    def pair(self, setting: str) -> Pair | None:
        """A setting that has a number for rows and one for columns, or one for both."""
        value = self.settings.get(setting)
        if isinstance(value, int):
            return value, value
        return (
            (int(value[0]), int(value[1])) if isinstance(value, list) and len(value) == 2 else None
        )


def read_layers(config: Any) -> dict[str, KerasLayer]:
    """The layers of a model in the order of its configuration, models inside it opened.

    Args:
      config: what ``config.json`` of a ``.keras`` file or the attribute ``model_config`` holds.

    Returns:
      path -> layer.

    Raises:
      ValueError: if it is no configuration of a model.
    """
    return {layer.path: layer for layer in _layers(config, "", "", 0)}


def padding_before(layer: KerasLayer, layers: Mapping[str, KerasLayer]) -> Padding | None:
    """The padding of a convolution, with that of a ZeroPadding2D in front of it."""
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


def _layers(config: Any, path: str, key: str, depth: int) -> Iterator[KerasLayer]:
    inner = config.get("config") if isinstance(config, dict) else None
    entries = inner if isinstance(inner, list) else inner.get("layers") if inner else None
    if not isinstance(entries, list) or depth > MAX_DEPTH:
        raise ValueError("a Keras configuration that is none of a model with layers")
    counts: dict[str, int] = {}
    previous: tuple[str, ...] = ()
    for entry in entries:
        kind, settings = str(entry["class_name"]), entry["config"]
        settings = settings if isinstance(settings, dict) else {"layers": settings}
        name = f"{path}{settings.get('name') or entry.get('name') or kind}"
        snake = _snake(kind)
        own_key = f"{key}{snake}_{counts[snake]}" if snake in counts else f"{key}{snake}"
        counts[snake] = counts.get(snake, 0) + 1
        feeding = tuple(f"{path}{source}" for source in _sources(entry.get("inbound_nodes")))
        yield KerasLayer(name, kind, settings, feeding or previous, own_key)
        if kind in _MODELS:
            yield from _layers(entry, f"{name}/", f"{own_key}/", depth + 1)
        previous = (name,)


def _sources(nodes: Any) -> list[str]:
    """The names of the layers in a layer's inbound nodes, as Keras 2 and Keras 3 write them."""
    found: list[str] = []
    pending = [nodes]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            history = node.get("keras_history")
            if isinstance(history, list) and history:
                found.append(str(history[0]))
            pending.extend(node.values())
        elif isinstance(node, list):
            if len(node) >= 3 and isinstance(node[0], str) and isinstance(node[1], int):
                found.append(node[0])
            else:
                pending.extend(node)
    return list(dict.fromkeys(found))


def _snake(name: str) -> str:
    """``DepthwiseConv2D`` as ``depthwise_conv2d``, the way Keras names groups after classes."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
