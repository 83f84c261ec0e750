"""Audits a Keras model; the rows are those of the audit of a JAX function."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kernsym_jax.formats.arrays import naming
from kernsym_jax.formats.keras_config import Call, Layer, Model, Reference, read_file
from kernsym_jax.geometry.feature_map import FeatureMap, GraphAudit, Window, image_shape
from kernsym_jax.geometry.layer import FileAudit, NoGraphError

Result = FeatureMap | None

_Key = tuple[str, int]
"""A layer's name within its model, and the number of its call."""

_SAME_PLACES = frozenset((
    "Activation", "ActivityRegularization", "AlphaDropout", "BatchNormalization",
    "BatchNormalizationV1", "Dropout", "ELU", "GaussianDropout", "GaussianNoise",
    "GroupNormalization", "Identity", "LayerNormalization", "LeakyReLU", "Masking",
    "Normalization", "PReLU", "RMSNormalization", "RandomBrightness", "RandomContrast",
    "RandomFlip", "RandomHeight", "RandomRotation", "RandomTranslation", "RandomWidth",
    "RandomZoom", "ReLU", "Rescaling", "Softmax", "SpatialDropout1D", "SpatialDropout2D",
    "SpatialDropout3D", "SpectralNormalization", "SyncBatchNormalization",
    "ThresholdedReLU", "UnitNormalization",
))  # fmt: skip
_JOINING = frozenset(("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract"))
# Operations that Keras 2 writes as TFOpLambda or TensorFlowOpLayer, and Keras 3 as layers.
_OPERATIONS = frozenset((
    "abs", "add", "addv2", "cast", "clip", "clip_by_value", "divide", "elu", "exp", "gelu",
    "hard_sigmoid", "hard_swish", "hard_silu", "identity", "leaky_relu", "log", "maximum",
    "minimum", "mul", "multiply", "negative", "pow", "power", "realdiv", "relu", "relu6",
    "rsqrt", "sigmoid", "silu", "softmax", "softplus", "sqrt", "square", "sub", "subtract",
    "swish", "tanh", "true_divide", "truediv", "truedivide",
))  # fmt: skip


def audit_keras(
    path: str | os.PathLike, input_size: int | Sequence[int] | None = None
) -> FileAudit:
    """Reads the geometry of every convolution and pooling window from a Keras model.

    Layers have the names that `kernsym_jax.weights.read` gives them: ``backbone/conv1`` for a layer
    of a model inside the model. A layer that is called twice has two rows.

    Args:
      path: a ``.keras`` file, or an ``.h5`` file with the model's configuration.
      input_size: pixels of the images that go in, the same on every axis or one per axis; ``None``
        for the model's own fixed size.

    Returns:
      A row per layer. Layers behind one of an unknown class are in its ``left_out``.

    Raises:
      NoGraphError: naming the file, if it holds weights alone.
      ValueError: naming the file, if it is damaged, if its images have a
        dynamic size and ``input_size`` is not given, or if no shape of any layer can be inferred;
        naming the layer too, for an empty map, a kernel larger than its padded input, or maps that
        do not fit together.
      FileNotFoundError: if there is no such file.
    """
    with naming(path):
        status = os.stat(path)
        model = _model_of(os.fspath(path), status.st_mtime_ns, status.st_size)
        if model is not None:
            return audit_model(model, input_size)
    raise NoGraphError(f"{os.fspath(path)}: Keras weights without the model's configuration")


@functools.lru_cache(maxsize=1)
def _model_of(path: str, *_: int) -> Model | None:
    """Reads a file once, and again if it has changed: advice audits a model at many sizes."""
    return read_file(path)


def audit_model(model: Model, input_size: int | Sequence[int] | None = None) -> FileAudit:
    """Audits a configuration that is already read, as `audit_keras` does.

    Raises:
      ValueError: as `audit_keras`, without the name of a file.
    """
    audit, results = _walked(model, input_size)
    if audit.features and input_size is not None:
        try:
            own = _walked(model, None)[0].features
        except ValueError:  # the model has no size of its own
            own = {}
        for layer, features in audit.features.items():
            if own.get(layer, features) != features:
                audit.refuse(layer, own[layer], features)
    return audit.finish(results)


def _walked(
    model: Model, input_size: int | Sequence[int] | None
) -> tuple[GraphAudit, list[Result]]:
    audit = GraphAudit()
    images: list[Result] = []
    for name, shape, first in _inputs(model):
        sizes = image_shape(name, shape, input_size, channels_first=first)
        images.append(audit.image(sizes))
    return audit, _Walk(audit).model(model, images)


class _Walk:
    """A pass over the layers of a model and of the models inside it."""

    def __init__(self, audit: GraphAudit):
        self.audit = audit

    def model(self, model: Model, images: Sequence[Result]) -> list[Result]:
        """Follows images through a model; returns what it returns."""
        values: dict[_Key, list[Result]] = {}
        names = [reference.layer for reference in model.inputs] or list(model.layers)[:1]
        begins = dict(zip(names, images, strict=False))
        for key in _in_order(model):
            layer, called = model.layers[key[0]], _called(model.layers[key[0]], key[1])
            read = [_value(model, values, reference) for reference in called.reads]
            if not called.reads and key[0] in begins:
                read = [begins[key[0]]]
            values[key] = self._call(layer, called, read)
        if model.sequential:
            return list(values.values())[-1] if values else list(images)
        return [_value(model, values, reference) for reference in model.outputs]

    def _call(self, layer: Layer, called: Call, read: list[Result]) -> list[Result]:
        if layer.kind == "InputLayer":
            return read
        self.audit.count()
        if layer.model is not None:
            return self.model(layer.model, read)
        return [self.apply(layer, called, read)]

    def apply(self, layer: Layer, call: Call, read: Sequence[Result]) -> Result:
        """Returns the maps that a layer makes; None if its class or its inputs are unknown."""
        if layer.kind in _WINDOWS:
            return _WINDOWS[layer.kind](self.audit, layer, read[0] if read else None)
        maps = [each for each in read if each is not None]
        if len(maps) < len(read) or not maps:
            return None
        operation = _operation(layer)
        if layer.kind in _SAME_PLACES:
            return maps[0]
        if layer.kind in _JOINING or operation in _OPERATIONS:
            return self.audit.together(layer.path, maps)
        if layer.kind == "Concatenate" or operation in ("concat", "concatenate"):
            axis = call.arguments.get("axis", layer.settings.get("axis", -1))
            return self.audit.concatenated(layer.path, maps, axis) if type(axis) is int else None
        if layer.kind in _HANDLERS:
            return _HANDLERS[layer.kind](self.audit, layer, maps[0])
        for each in maps:
            self.audit.leave(each)
        return None


def _value(model: Model, values: Mapping[_Key, list[Result]], reference: Reference) -> Result:
    found = values.get(_key(model, reference), [])
    return found[reference.index] if 0 <= reference.index < len(found) else None


def _in_order(model: Model) -> list[_Key]:
    """Returns the calls of a model's layers, each behind those that it reads."""
    done: dict[_Key, None] = {}
    entered: set[_Key] = set()
    for name, layer in model.layers.items():
        pending = [(name, call) for call in reversed(range(max(len(layer.calls), 1)))]
        while pending:
            key = pending[-1]
            if key in entered:
                done.setdefault(pending.pop())
                continue
            entered.add(key)
            called = _called(model.layers[key[0]], key[1])
            before = [_key(model, reference) for reference in called.reads]
            pending += [each for each in reversed(before) if each[0] and each not in entered]
    return list(done)


def _key(model: Model, reference: Reference) -> _Key:
    """Returns the call that a reference names, or the only call of the layer."""
    layer = model.layers.get(reference.layer)
    if layer is None:
        return "", 0
    return reference.layer, reference.call if 0 <= reference.call < len(layer.calls) else 0


def _called(layer: Layer, call: int) -> Call:
    return layer.calls[call] if layer.calls else Call(())


def _inputs(model: Model) -> list[tuple[str, list[int], bool]]:
    """Returns (name, shape, whether channels come first) of each input; a size below 1 is open."""
    references = [each.layer for each in model.inputs] or list(model.layers)[:1]
    found = []
    for name in references:
        layer = model.layers.get(name)
        shape = _shape_of(layer) if layer else None
        shape = shape or model.build_shape
        if not _is_shape(shape):
            # Without a shape, take images of the rank that the first window needs, in colour.
            rank = next((_rank(each) for each in _deep(model) if _rank(each)), 2)
            shape = [None] * (rank + 1) + [3]
        first = any(_is_channels_first(each) for each in _deep(model))
        found.append((name, [size if type(size) is int else 0 for size in shape], first))
    return found


def _deep(model: Model) -> list[Layer]:
    layers = []
    for layer in model.layers.values():
        layers += [layer, *(_deep(layer.model) if layer.model else [])]
    return layers


def _shape_of(layer: Layer) -> Any:
    for setting in ("batch_shape", "batch_input_shape"):
        if _is_shape(layer.settings.get(setting)):
            return layer.settings[setting]
    if _is_shape(layer.settings.get("input_shape")):
        return [None, *layer.settings["input_shape"]]
    if layer.model is not None and layer.model.layers:
        names = [each.layer for each in layer.model.inputs] or list(layer.model.layers)[:1]
        inner = layer.model.layers.get(names[0])
        return (inner and _shape_of(inner)) or layer.model.build_shape
    return layer.build_shape


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(size is None or type(size) is int for size in value)


def _rank(layer: Layer) -> int:
    digits = [letter for letter in layer.kind if letter.isdigit()]
    return int(digits[0]) if layer.kind in _WINDOWS else 0


def _is_channels_first(layer: Layer) -> bool:
    return layer.settings.get("data_format") == "channels_first"


def _operation(layer: Layer) -> str | None:
    """Returns the operation of a layer that Keras made from a function call."""
    if layer.kind == "TFOpLambda":
        return str(layer.settings.get("function", "")).split(".")[-1].lower()
    if layer.kind == "TensorFlowOpLayer":
        node = layer.settings.get("node_def")
        return str(node.get("op", "")).lower() if isinstance(node, dict) else None
    return layer.kind.lower()


def _numbers(layer: Layer, setting: str, n: int, default: Any = 1) -> tuple[int, ...]:
    """Returns a setting of one number for every axis, or one per axis."""
    value = layer.settings.get(setting)
    value = default if value is None else value
    if type(value) is int:
        return (value,) * n
    if isinstance(value, list) and len(value) == n and all(type(each) is int for each in value):
        return tuple(value)
    raise ValueError(f"{layer.path}: {setting} is {value!r}, wanted {n} numbers")


def _number(layer: Layer, *settings: str, default: int | None = None) -> int:
    for setting in settings:
        value = layer.settings.get(setting)
        if type(value) is int and 0 < value < 1 << 31:
            return value
    if default is not None:
        return default
    raise ValueError(f"{layer.path}: its number of {settings[0]} is missing")


def _pairs(layer: Layer, setting: str, n: int) -> list[tuple[int, int]]:
    """Returns (lo, hi) of each axis from one number, one per axis, or a pair per axis."""
    value = layer.settings.get(setting)
    if type(value) is int:
        return [(value, value)] * n
    if n == 1 and isinstance(value, list) and len(value) == 2:
        value = [value]
    pairs = [[each] * 2 if type(each) is int else each for each in value or []]
    if len(pairs) != n or not all(
        isinstance(pair, list) and len(pair) == 2 and all(type(m) is int and m >= 0 for m in pair)
        for pair in pairs
    ):
        raise ValueError(f"{layer.path}: {setting} is {value!r}, wanted a pair for each axis")
    return [(pair[0], pair[1]) for pair in pairs]


def _window(layer: Layer, n: int, kernel: tuple[int, ...], groups: int = 1) -> Window:
    stride = _numbers(layer, "strides", n, list(kernel) if "Pool" in layer.kind else 1)
    dilation = _numbers(layer, "dilation_rate", n)
    rule = str(layer.settings.get("padding", "valid")).upper()
    padding: Any = rule
    if rule == "CAUSAL":
        spans = zip(kernel, dilation, strict=True)
        padding = [(d * (k - 1), 0) for k, d in spans]
    elif rule not in ("SAME", "VALID"):
        raise ValueError(f"{layer.path}: unknown padding {rule!r}")
    return Window(kernel, stride, dilation, padding, groups)


def _convolution(audit: GraphAudit, layer: Layer, found: Result) -> Result:
    n = _rank(layer)
    groups = _number(layer, "groups", default=1)
    window = _window(layer, n, _numbers(layer, "kernel_size", n, None), groups)
    first = _is_channels_first(layer)
    features = _number(layer, "filters")
    return audit.window(layer.path, "conv", found, window, features=features, channels_first=first)


def _depthwise(audit: GraphAudit, layer: Layer, found: Result) -> Result:
    n, first = _rank(layer), _is_channels_first(layer)
    channels = found.shape[1 if first else -1] if found and len(found.shape) == n + 2 else 1
    window = _window(layer, n, _numbers(layer, "kernel_size", n, None), channels)
    features = channels * _number(layer, "depth_multiplier", default=1)
    made = audit.window(
        layer.path, "depthwise", found, window, features=features, channels_first=first
    )
    if not layer.kind.startswith("Separable"):
        return made
    ones = (1,) * n
    return audit.window(
        f"{layer.path}/pointwise_kernel",
        "conv",
        made,
        Window(ones, ones, ones, "VALID"),
        features=_number(layer, "filters"),
        channels_first=first,
    )


def _transposed(audit: GraphAudit, layer: Layer, found: Result) -> Result:
    n, first = _rank(layer), _is_channels_first(layer)
    window = _window(layer, n, _numbers(layer, "kernel_size", n, None))
    outputs = None
    if layer.settings.get("output_padding") is not None and found is not None:
        sizes = found.shape[2:] if first else found.shape[1:-1]
        more = _numbers(layer, "output_padding", n)
        axes = zip(sizes, window.kernel, window.stride, window.dilation, more, strict=True)
        same = window.padding == "SAME"
        outputs = [_padded_output(size, (k - 1) * d + 1, s, m, same) for size, k, s, d, m in axes]
    return audit.window(
        layer.path,
        "transposed",
        found,
        window,
        features=_number(layer, "filters"),
        channels_first=first,
        outputs=outputs,
    )


def _padded_output(size: int, span: int, stride: int, more: int, same: bool) -> int:
    """Returns the output size of a transposed convolution with ``output_padding``."""
    return (size - 1) * stride + span - (span // 2 * 2 if same else 0) + more


def _pooling(audit: GraphAudit, layer: Layer, found: Result) -> Result:
    n = _rank(layer)
    kernel = _numbers(layer, "pool_size" if "pool_size" in layer.settings else "pool_length", n, 2)
    kind = "max_pool" if layer.kind.startswith("Max") else "avg_pool"
    first = _is_channels_first(layer)
    return audit.window(layer.path, kind, found, _window(layer, n, kernel), channels_first=first)


def _space(layer: Layer, found: FeatureMap) -> range:
    """Returns the spatial axes of a map."""
    rank = len(found.shape)
    return range(2, rank) if _is_channels_first(layer) else range(1, rank - 1)


def _zero_padding(audit: GraphAudit, layer: Layer, found: FeatureMap) -> Result:
    space = _space(layer, found)
    return audit.padded(found, dict(zip(space, _pairs(layer, "padding", len(space)), strict=True)))


def _cropping(audit: GraphAudit, layer: Layer, found: FeatureMap) -> Result:
    space = _space(layer, found)
    pairs = _pairs(layer, "cropping", len(space))
    amounts = {d: (-lo, -hi) for d, (lo, hi) in zip(space, pairs, strict=True)}
    return audit.padded(found, amounts)


def _upsampling(audit: GraphAudit, layer: Layer, found: FeatureMap) -> Result:
    space = _space(layer, found)
    factors = _numbers(layer, "size", len(space), 2)
    scaled = zip(space, factors, strict=True)
    return audit.resized(found, {d: found.shape[d] * factor for d, factor in scaled})


def _resizing(audit: GraphAudit, layer: Layer, found: FeatureMap) -> Result:
    space = _space(layer, found)
    sizes = (_number(layer, "height"), _number(layer, "width"))
    return audit.resized(found, dict(zip(space, sizes, strict=True)))


def _global_pooling(audit: GraphAudit, layer: Layer, found: FeatureMap) -> Result:
    keep = layer.settings.get("keepdims") is True
    return audit.reduced(found, _space(layer, found), keep=keep)


def _flatten(audit: GraphAudit, _: Layer, found: FeatureMap) -> Result:
    return audit.reshaped(found, (found.shape[0], -1))


def _reshape(audit: GraphAudit, layer: Layer, found: FeatureMap) -> Result:
    target = layer.settings.get("target_shape")
    if not isinstance(target, list) or not all(type(size) is int for size in target):
        return None
    return audit.reshaped(found, (found.shape[0], *target))


def _permute(audit: GraphAudit, layer: Layer, found: FeatureMap) -> Result:
    return audit.permuted(found, (0, *_numbers(layer, "dims", len(found.shape) - 1, None)))


def _dense(audit: GraphAudit, layer: Layer, found: FeatureMap) -> Result:
    audit.features[layer.path] = found.shape[-1]
    return audit.dense(found, _number(layer, "units", "output_dim"))


_AXES = ("1D", "2D", "3D")
_WINDOWS: dict[str, Callable[[GraphAudit, Layer, Result], Result]] = {
    **dict.fromkeys((f"Conv{n}" for n in _AXES), _convolution),
    **dict.fromkeys((f"DepthwiseConv{n}" for n in _AXES), _depthwise),
    **dict.fromkeys((f"SeparableConv{n}" for n in _AXES), _depthwise),
    **dict.fromkeys((f"Conv{n}Transpose" for n in _AXES), _transposed),
    **{f"{kind}Pooling{n}": _pooling for kind in ("Max", "Average") for n in _AXES},
}
_HANDLERS: dict[str, Callable[[GraphAudit, Layer, FeatureMap], Result]] = {
    **dict.fromkeys((f"ZeroPadding{n}" for n in _AXES), _zero_padding),
    **dict.fromkeys((f"Cropping{n}" for n in _AXES), _cropping),
    **dict.fromkeys((f"UpSampling{n}" for n in _AXES), _upsampling),
    **{f"Global{kind}Pooling{n}": _global_pooling for kind in ("Max", "Average") for n in _AXES},
    "Resizing": _resizing,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    "Dense": _dense,
}
