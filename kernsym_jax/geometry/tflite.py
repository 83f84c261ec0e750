"""Audits a TensorFlow Lite model; the rows are those of the audit of a JAX function."""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence

import numpy as np

from kernsym_jax.formats.arrays import element_count, naming
from kernsym_jax.formats.tflite_graph import (
    CONV_2D,
    DEPTHWISE_CONV_2D,
    TRANSPOSE_CONV,
    Graph,
    Operator,
    read_graphs,
)
from kernsym_jax.geometry.arithmetic import output_size
from kernsym_jax.geometry.feature_map import FeatureMap, GraphAudit, Window, image_shape
from kernsym_jax.geometry.layer import FileAudit

Result = FeatureMap | None

SMALL = 64
"""The largest number of elements of a constant whose values the audit follows."""

# Numbers of BuiltinOperator.
_SAME_PLACES = frozenset((
    6, 8, 11, 13, 14, 19, 20, 21, 25, 28, 47, 50, 53, 54, 59, 73, 75, 76, 80, 92, 98, 101, 104,
    111, 114, 116, 117, 150,
))  # fmt: skip
"""DEQUANTIZE, FLOOR, L2_NORMALIZATION, LOCAL_RESPONSE_NORMALIZATION, LOGISTIC, RELU, RELU_N1_TO_1,
RELU6, SOFTMAX, TANH, EXP, LOG_SOFTMAX, CAST, PRELU, NEG, LOG, SQRT, RSQRT, FAKE_QUANT, SQUARE,
LEAKY_RELU, ABS, ROUND, ELU, QUANTIZE, CEIL, HARD_SWISH, GELU."""
_JOINING = frozenset((0, 18, 41, 42, 55, 57, 78, 99))
"""ADD, MUL, SUB, DIV, MAXIMUM, MINIMUM, POW, SQUARED_DIFFERENCE."""
_CONCATENATION = 2
_POOLS = {1: "avg_pool", 12: "pool", 17: "max_pool"}
_PADS = (34, 60, 100)
_MIRROR_PAD = 100
_MODES = ("reflect", "symmetric")
_RESHAPE, _SQUEEZE, _EXPAND_DIMS = 22, 43, 70
_RULES = ("SAME", "VALID")
_SHAPE, _STRIDED_SLICE, _PACK = 77, 45, 83
_SPACE_TO_BATCH, _BATCH_TO_SPACE = 38, 37
_ARITHMETIC: dict[int, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    0: np.add,
    18: np.multiply,
    41: np.subtract,
    55: np.maximum,
    57: np.minimum,
    90: np.floor_divide,
    95: np.mod,
}


def audit_tflite(
    path: str | os.PathLike, input_size: int | Sequence[int] | None = None
) -> FileAudit:
    """Reads the geometry of every convolution and pooling window from a TensorFlow Lite model.

    Layers have the names that `kernsym_jax.weights.read` gives them: those of their kernels.

    Args:
      path: the model.
      input_size: pixels of the images that go in, the same on every axis or one per axis; ``None``
        for the model's own fixed size.

    Returns:
      A row per layer, in the order of the graph. Layers behind an operator that cannot be followed
      are in its ``left_out``.

    Raises:
      ValueError: naming the file, if it is no such model or is damaged, if its images have a
        dynamic size and ``input_size`` is not given, or if no shape of any layer can be inferred;
        naming the layer too, for an empty map, a kernel larger than its padded input, or maps that
        do not fit together.
      FileNotFoundError: if there is no such file.
    """
    with naming(path):
        graphs = read_graphs(path)
        if not graphs or not graphs[0].operators:
            raise ValueError("a TensorFlow Lite model without operators")
        return _Walk(graphs[0]).run(input_size)


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """A map whose neighbours lie in different images of a batch, for a dilated convolution.

    Attributes:
      found: the map before.
      block: rows and columns of each block, which become the dilation.
      pads: (lo, hi) of each axis.
      convolution: the layer that has read the blocks: its name, kind, kernel, groups and features.
    """

    found: FeatureMap
    block: list[int]
    pads: list[int]
    convolution: tuple[str, str, tuple[int, int], int, int] | None = None


class _Walk:
    """A pass over the operators of a graph."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.audit = GraphAudit()
        self.values: dict[int, Result] = {}
        self.blocks: dict[int, _Blocks] = {}
        self.computed: dict[int, np.ndarray] = {}

    def run(self, input_size: int | Sequence[int] | None) -> FileAudit:
        graph = self.graph
        for index in graph.inputs:
            shape = graph.shape(index) or ()
            # A vector beside the images keeps its size.
            size = input_size if len(shape) == 4 else None
            sizes = image_shape(graph.name(index), shape, size, channels_first=False)
            self.values[index] = self.audit.image(sizes)
        for operator in graph.operators:
            self.audit.count()
            number = self.compute(operator)
            if number is not None:
                self.computed[operator.outputs[0]] = number
                continue
            result = self.operator(operator)
            if result is None and not self.values.keys() & set(operator.inputs):
                # The slopes of a PReLU, dequantized: constants still.
                continue
            self.values |= dict.fromkeys(operator.outputs)
            if operator.outputs:
                self.values[operator.outputs[0]] = result
        return self.audit.finish([self.values.get(index) for index in graph.outputs])

    def operator(self, operator: Operator) -> Result:
        """Returns the maps that an operator makes; None if they are unknown."""
        code, read = operator.code, operator.inputs
        if code in (CONV_2D, DEPTHWISE_CONV_2D):
            return self.convolution(operator)
        if code == TRANSPOSE_CONV:
            return self.transposed(operator)
        if code in _POOLS:
            return self.pool(operator)
        depends = [index for index in read if index in self.values]
        if code == _BATCH_TO_SPACE or (code in _SAME_PLACES and read[0] in self.blocks):
            return self.unblock(operator)
        known = [found for found in map(self.values.get, depends) if found is not None]
        if len(known) < len(depends) or not known:
            return None
        name = self.graph.name(operator.outputs[0]) if operator.outputs else "an operator"
        if code in _SAME_PLACES:
            return known[0]
        if code in _JOINING:
            return self.audit.together(name, known + self.constants(read))
        if code == _CONCATENATION:
            return self.audit.concatenated(name, known + self.constants(read), operator.option(0))
        if code in _HANDLERS:
            return _HANDLERS[code](self, operator, known[0])
        for found in known:
            self.audit.leave(found)
        return None

    def constants(self, read: Sequence[int]) -> list[FeatureMap]:
        """Returns the inputs that do not depend on the network's input."""
        others = [index for index in read if index >= 0 and index not in self.values]
        shapes = [self.graph.shape(index) or () for index in others]
        return [FeatureMap(shape, (None,) * len(shape)) for shape in shapes]

    def numbers(self, operator: Operator, place: int) -> list[int] | None:
        """Returns an input of integers as a list; None if it is absent or unknown."""
        if not 0 <= place < len(operator.inputs):
            return None
        array = self.constant(operator.inputs[place])
        return None if array is None else [int(number) for number in array.reshape(-1)]

    def constant(self, index: int) -> np.ndarray | None:
        """Returns a small array of integers; None for any other array."""
        if index < 0 or index in self.computed:
            return self.computed.get(index)
        array = self.graph.array(index)
        if array is None or array.dtype.kind not in "iu" or element_count(array.shape) > SMALL:
            return None
        return array.read()

    def compute(self, operator: Operator) -> np.ndarray | None:
        """Computes a shape, or amounts of padding made from shapes; None for anything else."""
        code, read = operator.code, operator.inputs
        if code == _SHAPE:
            found = self.values.get(read[0])
            return None if found is None else np.array(found.shape)
        if code not in (_STRIDED_SLICE, _PACK, _CONCATENATION, _RESHAPE, *_ARITHMETIC):
            return None
        values = [self.constant(index) for index in read]
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values) or sum(value.size for value in known) > SMALL:
            return None
        if code == _PACK:
            return np.stack(known, operator.option(1))
        if code == _CONCATENATION:
            return np.concatenate([value.reshape(-1) for value in known])
        if code == _RESHAPE:
            return known[0].reshape(-1)
        if code in _ARITHMETIC:
            with np.errstate(all="ignore"):
                return _ARITHMETIC[code](known[0], known[1])
        begin, end, step = (value.reshape(-1) for value in known[1:4])
        masks = [operator.option(field) for field in range(5)]
        if masks[2] or masks[3]:
            return None
        places: list[slice | int] = []
        for d, (start, stop, stride) in enumerate(zip(begin, end, step, strict=True)):
            first = None if masks[0] >> d & 1 else int(start)
            last = None if masks[1] >> d & 1 else int(stop)
            places.append(int(start) if masks[4] >> d & 1 else slice(first, last, int(stride)))
        return known[0][tuple(places)]

    def kernel(self, operator: Operator) -> tuple[str, tuple[int, ...]]:
        layer = self.graph.layer(operator)
        shape = self.graph.shape(self.graph.source(operator.inputs[1])) or ()
        if len(shape) != 4 or min(shape) < 1:
            raise ValueError(f"{layer}: a kernel of shape {shape}")
        return layer, shape

    def convolution(self, operator: Operator) -> Result:
        layer, (outputs, height, width, inputs) = self.kernel(operator)
        found = self.values.get(operator.inputs[0])
        stride = operator.option(2), operator.option(1)
        if operator.code == DEPTHWISE_CONV_2D:
            dilation = operator.option(6, default=1), operator.option(5, default=1)
            groups, outputs = found.shape[-1] if found else 1, inputs
        else:
            dilation = operator.option(5, default=1), operator.option(4, default=1)
            groups = max(found.shape[-1] // inputs, 1) if found else 1
        window = Window((height, width), stride, dilation, _rule(operator), groups)
        kind = "depthwise" if operator.code == DEPTHWISE_CONV_2D else "conv"
        blocks = self.blocks.get(operator.inputs[0])
        if blocks is not None and (*stride, *dilation) == (1, 1, 1, 1):
            groups = blocks.found.shape[-1] // (1 if kind == "depthwise" else inputs)
            read = (layer, kind, (height, width), max(groups, 1), outputs)
            self.blocks[operator.outputs[0]] = dataclasses.replace(blocks, convolution=read)
            self.audit.left_out[layer] = "it reads blocks of a map that are not put together again"
            return None
        return self.audit.window(layer, kind, found, window, features=outputs)

    def block(self, operator: Operator, found: FeatureMap) -> Result:
        block, pads = self.numbers(operator, 1), self.numbers(operator, 2)
        if block is not None and pads is not None and (len(block), len(pads)) == (2, 4):
            self.blocks[operator.outputs[0]] = _Blocks(found, block, pads)
        return None

    def unblock(self, operator: Operator) -> Result:
        """Passes blocks on, or joins them: the convolution between is a dilated one."""
        blocks = self.blocks.get(operator.inputs[0])
        if operator.code != _BATCH_TO_SPACE or blocks is None or blocks.convolution is None:
            if blocks is not None and operator.code != _BATCH_TO_SPACE:
                self.blocks[operator.outputs[0]] = blocks
            return None
        crops = self.numbers(operator, 2)
        if self.numbers(operator, 1) != blocks.block or crops is None or len(crops) != 4:
            return None
        layer, kind, kernel, groups, features = blocks.convolution
        del self.audit.left_out[layer]
        amounts = [pad - crop for pad, crop in zip(blocks.pads, crops, strict=True)]
        padding = list(zip(amounts[::2], amounts[1::2], strict=True))
        window = Window(kernel, (1, 1), (blocks.block[0], blocks.block[1]), padding, groups)
        return self.audit.window(layer, kind, blocks.found, window, features=features)

    def transposed(self, operator: Operator) -> Result:
        layer, (features, height, width, _) = self.kernel(operator)
        found = self.values.get(operator.inputs[2])
        stride, kernel = (operator.option(2), operator.option(1)), (height, width)
        wanted, rule = self.numbers(operator, 0), _rule(operator)
        outputs = wanted[1:3] if wanted is not None and len(wanted) == 4 else None
        if found is not None and outputs is not None and len(found.shape) == 4:
            # The file holds the sizes for the images that the converter assumed.
            for n, k, s, out in zip(found.shape[1:3], kernel, stride, outputs, strict=True):
                if output_size(out, k, s, rule) != n:
                    raise ValueError(f"{layer}: {n} pixels of its map do not make {out}")
        window = Window(kernel, stride, (1, 1), rule)
        return self.audit.window(
            layer, "transposed", found, window, features=features, outputs=outputs
        )

    def pool(self, operator: Operator) -> Result:
        kernel = operator.option(4), operator.option(3)
        stride = operator.option(2), operator.option(1)
        window = Window(kernel, stride, (1, 1), _rule(operator))
        found = self.values.get(operator.inputs[0])
        return self.audit.window(None, _POOLS[operator.code], found, window)

    def pad(self, operator: Operator, found: FeatureMap) -> Result:
        pads = self.numbers(operator, 1)
        if pads is None or len(pads) != 2 * len(found.shape):
            return None
        ends = zip(pads[::2], pads[1::2], strict=True)
        amounts = {d: pair for d, pair in enumerate(ends) if any(pair)}
        mode = "constant"
        if operator.code == _MIRROR_PAD:
            mode = _MODES[operator.option(0, "<b") & 1]
        return self.audit.padded(found, amounts, mode)

    def reduce(self, operator: Operator, found: FeatureMap) -> Result:
        dims = self.numbers(operator, 1)
        if dims is None or not all(-len(found.shape) <= d < len(found.shape) for d in dims):
            return None
        return self.audit.reduced(found, dims, keep=bool(operator.option(0, "<b")))

    def resize(self, operator: Operator, found: FeatureMap) -> Result:
        sizes = self.numbers(operator, 1)
        if sizes is None or len(sizes) != 2 or len(found.shape) != 4:
            return None
        return self.audit.resized(found, {1: sizes[0], 2: sizes[1]})

    def reshape(self, operator: Operator, found: FeatureMap) -> Result:
        shape = self.numbers(operator, 1) if operator.code == _RESHAPE else None
        axes = self.numbers(operator, 1) if operator.code == _EXPAND_DIMS else None
        if axes is not None and len(axes) == 1:
            shape = list(found.shape)
            shape.insert(axes[0] % (len(shape) + 1), 1)
        stated = self.graph.shape(operator.outputs[0])
        result = self.audit.reshaped(found, shape if shape is not None else list(stated or ()))
        if result is None and shape is not None and operator.code == _RESHAPE:
            wanted = math.prod(size for size in shape if size > 0)
            name = self.graph.name(operator.outputs[0])
            self.audit.refuse(name, wanted, math.prod(found.shape))
        return result

    def tile(self, operator: Operator, found: FeatureMap) -> Result:
        counts = self.numbers(operator, 1)
        if counts is None or len(counts) != len(found.shape) or min(counts) < 1:
            return None
        sizes = {d: found.shape[d] * count for d, count in enumerate(counts) if count > 1}
        return self.audit.resized(found, sizes)

    def transpose(self, operator: Operator, found: FeatureMap) -> Result:
        order = self.numbers(operator, 1)
        return None if order is None else self.audit.permuted(found, order)

    def dense(self, operator: Operator, found: FeatureMap) -> Result:
        weight = self.graph.shape(operator.inputs[1]) or ()
        if len(weight) != 2 or found.shape[-1] != weight[1]:
            if len(weight) == 2:
                name = self.graph.name(operator.inputs[1])
                self.audit.refuse(name, weight[1], found.shape[-1])
            self.audit.leave(found)
            return None
        return self.audit.dense(found, weight[0])

    def strided_slice(self, operator: Operator, found: FeatureMap) -> Result:
        begin, end, step = (self.numbers(operator, place) for place in (1, 2, 3))
        masks = [operator.option(field) for field in range(5)]
        if begin is None or end is None or step is None or any(masks[2:]) or min(step) < 1:
            return None
        ranges = {}
        for d, (start, stop, stride) in enumerate(zip(begin, end, step, strict=True)):
            first = None if masks[0] >> d & 1 else start
            last = None if masks[1] >> d & 1 else stop
            places = range(*slice(first, last, stride).indices(found.shape[d]))
            if not places:
                return None
            if places != range(found.shape[d]):
                ranges[d] = places
        return self.audit.sliced(found, ranges)


def _rule(operator: Operator) -> str:
    return _RULES[operator.option(0, "<b") & 1]


_HANDLERS: dict[int, Callable[[_Walk, Operator, FeatureMap], Result]] = {
    **dict.fromkeys(_PADS, _Walk.pad),
    **dict.fromkeys((40, 74, 82, 89), _Walk.reduce),  # MEAN, SUM, REDUCE_MAX, REDUCE_MIN
    **dict.fromkeys((23, 97), _Walk.resize),  # RESIZE_BILINEAR, RESIZE_NEAREST_NEIGHBOR
    **dict.fromkeys((_RESHAPE, _SQUEEZE, _EXPAND_DIMS), _Walk.reshape),
    9: _Walk.dense,  # FULLY_CONNECTED
    39: _Walk.transpose,  # TRANSPOSE
    69: _Walk.tile,  # TILE
    _SPACE_TO_BATCH: _Walk.block,
    _STRIDED_SLICE: _Walk.strided_slice,
}
