"""Restores a kernel from what a file keeps apart from it.

BatchNorm scales, masks and lengths are multiplied into a kernel; integers get their scales; and
kernels that ONNX Runtime stores in blocks of channels get back their usual order.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import StoredArray, dequantized
from kernsym_jax.formats.onnx_graph import Graph, Node, walk
from kernsym_jax.weights.layout import ConvKernel

EPSILON = 1e-5
"""The default of PyTorch and Flax, whose files do not hold epsilon."""

_LEAVES = {
    "scale": ("weight", "scale", "gamma"),
    "mean": ("running_mean", "mean", "moving_mean"),
    "variance": ("running_var", "var", "moving_variance"),
}
_PARTNERS = ("bn", "norm", "BatchNorm", "batchnorm", "batch_norm", "batch_normalization")

PART = "part of the weight of its layer"
"""Why an array is left out from which another one is made."""

UNKNOWN = "its layer computes the weight from it by a parametrization that the file does not tell"

_PARAMETRIZED = re.compile(r"(.*)parametrizations\.([^.]+)\.original(\d?)", re.DOTALL)
_OF_PARAMETRIZATION = re.compile(r"(.*parametrizations\.[^.]+\.)(?:\d+\.)?(.+)", re.DOTALL)
_KNOWN, _MOST = ("mask", "_u", "_v"), 4

BLOCKED = "com.microsoft.nchwc."
"""The domain whose operators ONNX Runtime substitutes for one kind of processor."""

# Operators that may stand between a ConvInteger and the multiplication by its scales.
_ON_THE_WAY = ("Add", "Cast", "Identity")
_MAX_STEPS = 4

Values = Mapping[str, StoredArray]
"""Name -> array that is stored, or made from stored ones."""


@dataclasses.dataclass(frozen=True)
class Norm:
    """The part of a BatchNorm that scales the channels after training.

    Attributes:
      scale: (channels,) learned scale, or None if the layer has none.
      variance: (channels,) running variance.
      epsilon: the constant that is added to the variance.
    """

    scale: np.ndarray | None
    variance: np.ndarray
    epsilon: float = EPSILON

    def fold(self, kernel: ConvKernel) -> ConvKernel:
        """Returns the kernel with each output channel multiplied by the norm's factor for it."""
        factor = 1 / np.sqrt(self.variance.astype(np.float32) + np.float32(self.epsilon))
        if self.scale is not None:
            factor = factor * self.scale.astype(np.float32)
        return dataclasses.replace(kernel, weight=kernel.weight * factor)


def fold(
    kernels: Mapping[str, ConvKernel],
    arrays: Mapping[str, StoredArray],
    *,
    in_order: bool,
    epsilon: float = EPSILON,
) -> tuple[dict[str, ConvKernel], tuple[str, ...]]:
    """Folds into each kernel the BatchNorm that belongs to it by name or by place.

    The BatchNorm of a convolution has the convolution's name with ``bn`` or ``norm`` in place of
    ``conv`` or behind it, or has the next number in a sequence; where the order of definition is
    known it may also be the next layer of the same block. It has as many channels as the
    convolution has outputs, and the network never defines it before the convolution.

    Args:
      kernels: layer name -> kernel.
      arrays: name -> array, of the same file.
      in_order: whether the arrays come in the order of the network's definition.
      epsilon: the constant that the network adds to each variance.

    Returns:
      The kernels, folded where possible, and a remark that tells how many were folded.
    """
    layers = list(dict.fromkeys(_layer(name) for name in arrays))
    norms = _norms(arrays, epsilon)
    place = {layer: index for index, layer in enumerate(layers)}
    folded = dict(kernels)
    done = 0
    for layer, kernel in kernels.items():
        for candidate in _candidates(layer, layers if in_order else ()):
            norm = norms.get(candidate)
            early = in_order and place.get(candidate, 0) < place.get(layer, 0)
            if norm is not None and not early and norm.variance.shape == kernel.shape[-1:]:
                folded[layer] = norm.fold(kernel)
                done += 1
                break
    return folded, (f"BatchNorm folded into {done} of {len(kernels)} kernels, ε = {epsilon:g}",)


def _norms(arrays: Mapping[str, StoredArray], epsilon: float) -> dict[str, Norm]:
    parts: dict[str, dict[str, StoredArray]] = {}
    for name, array in arrays.items():
        leaf = re.split(r"[./]", name)[-1]
        for part, leaves in _LEAVES.items():
            if leaf in leaves and len(array.shape) == 1:
                parts.setdefault(_layer(name), {})[part] = array
    return {
        layer: Norm(
            found["scale"].read() if "scale" in found else None, found["variance"].read(), epsilon
        )
        for layer, found in parts.items()
        if "variance" in found and "mean" in found
    }


def _layer(name: str) -> str:
    leaf = re.split(r"[./]", name)[-1]
    return re.sub(r"^batch_stats[./]", "", name[: len(name) - len(leaf) - 1])


def _candidates(layer: str, layers: Sequence[str]) -> list[str]:
    """Returns the names that a convolution's BatchNorm may have, the likeliest first."""
    last = re.split(r"[./]", layer)[-1]
    head = layer[: len(layer) - len(last)]
    found = [f"{layer}_{word}" for word in _PARTNERS]
    before, _, after = last.lower().rpartition("conv")
    if "conv" in last.lower():
        before = last[: len(before)]
        found += [f"{head}{before}{word}{after}" for word in _PARTNERS]
    number = re.search(r"(?:^|(?<=_))[0-9]{1,9}$", last)
    if number:
        found.append(f"{layer[: len(layer) - len(number[0])]}{int(number[0]) + 1}")
    if layer in layers and layers.index(layer) + 1 < len(layers):
        following = layers[layers.index(layer) + 1]
        if following.startswith(head) and not re.search(r"[./]", following[len(head) :]):
            found.append(following)
    return found


def merge_parts(
    arrays: Mapping[str, StoredArray],
) -> tuple[dict[str, StoredArray], dict[str, str]]:
    """Replaces the parts from which PyTorch makes a weight by the weight, under its usual name.

    The parts are those of weight normalisation (length and direction), spectral normalisation
    (weight and singular vectors) and pruning (weight and mask), in PyTorch's older and newer form.

    Args:
      arrays: name -> array.

    Returns:
      The arrays with each ``weight`` in place of its parts, and the names of the other parts -> the
      reason why they are left out.

    Reference: Salimans & Kingma, "Weight Normalization", 2016; Miyato et al., "Spectral
      Normalization", 2018; torch.nn.utils.prune.
    """
    merged: dict[str, StoredArray] = {}
    used = _unknown_parametrizations(arrays)
    for name, array in arrays.items():
        if name in used:
            continue
        weight, parts, made = _weight_of(name, array, arrays)
        taken = weight in merged or (weight != name and weight in arrays)
        same = arrays.get(weight, merged.get(weight))
        if taken and parts and same is not None and made.shape == same.shape:
            # The first versions of spectral normalisation save the weight too.
            used |= dict.fromkeys((name, *parts), PART)
            continue
        merged[name if taken else weight] = array if taken else made
        used |= dict.fromkeys(() if taken else parts, PART)
    return {name: array for name, array in merged.items() if name not in used}, used


def _unknown_parametrizations(arrays: Mapping[str, StoredArray]) -> dict[str, str]:
    """Returns name -> reason for the arrays of parametrizations that only their code tells."""
    groups: dict[str, dict[str, str]] = {}
    for name in arrays:
        found = _OF_PARAMETRIZATION.fullmatch(name)
        if found is not None:
            groups.setdefault(found[1], {})[name] = found[2]
    known = {*_KNOWN, "original", "original0", "original1"}
    return {
        name: UNKNOWN
        for ends in groups.values()
        for name in ends
        if set(ends.values()) == {"original"} or not known.issuperset(ends.values())
    }


def _weight_of(
    name: str, array: StoredArray, arrays: Mapping[str, StoredArray]
) -> tuple[str, list[str], StoredArray]:
    """Returns, for the main part of a weight, that weight's name, other parts and values."""
    found = _PARAMETRIZED.fullmatch(name)
    made, parts = array, list[str]()
    if found is not None:
        weight = f"{found[1]}{found[2]}"
        stem = name.removesuffix(f"original{found[3]}")
        if found[3]:
            product = _product(arrays.get(f"{stem}original0"), array)
            if found[3] != "1" or product is None:
                return name, [], array
            made, parts = product, [f"{stem}original0"]
        candidates = [[f"{stem}{n}.{part}" for part in _KNOWN] for n in range(_MOST)]
    elif name.endswith("_orig") or (name.endswith("weight_bar") and f"{name[:-4]}_u" in arrays):
        weight = name.removesuffix("_orig").removesuffix("_bar")
        candidates = [[f"{weight}_{part}" for part in ("mask", "u", "v")]]
    elif name.endswith("weight_v"):
        weight, length = name.removesuffix("_v"), f"{name.removesuffix('_v')}_g"
        product = _product(arrays.get(length), array)
        return (name, [], array) if product is None else (weight, [length], product)
    elif name.endswith("weight"):
        masks = (f"{name}_mask", f"{name.removesuffix('weight')}mask")
        used = next((each for each in masks if _is_mask(arrays.get(each), array)), None)
        return (name, [used], _masked(array, arrays[used])) if used else (name, [], array)
    else:
        return name, [], array
    for names in candidates:
        mask, left, right = (arrays.get(part) for part in names)
        if mask is not None and mask.shape == array.shape:
            made = _masked(made, mask)
            parts.append(names[0])
        if left is not None and right is not None:
            made = _spectral(made, left, right)
            parts += names[1:]
    return weight, parts, made


def _is_mask(array: StoredArray | None, weight: StoredArray) -> bool:
    """Returns whether an array has a 0 or a 1 for each element of a weight."""
    if array is None or array.shape != weight.shape:
        return False
    return array.dtype == bool or bool(np.isin(array.read(), (0, 1)).all())


def _masked(weight: StoredArray, mask: StoredArray) -> StoredArray:
    def read() -> np.ndarray:
        return weight.read().astype(np.float32) * mask.read().astype(np.float32)

    return StoredArray(weight.shape, np.dtype(np.float32), read)


def _spectral(weight: StoredArray, left: StoredArray, right: StoredArray) -> StoredArray:
    """Returns the weight divided by its largest singular value, which two vectors estimate."""
    shape = weight.shape
    # The rows of the matrix are the outputs, the second axis of a transposed convolution.
    axis = 0 if left.shape == shape[:1] else 1
    rows = shape[axis] if axis < len(shape) else 0
    if left.shape != (rows,) or right.shape != (math.prod(shape) // max(rows, 1),):
        return weight

    def read() -> np.ndarray:
        values = weight.read().astype(np.float32)
        matrix = np.moveaxis(values, axis, 0).reshape(rows, -1)
        norm = left.read().astype(np.float32) @ matrix @ right.read().astype(np.float32)
        return values / (norm if norm else np.float32(1))

    return StoredArray(shape, np.dtype(np.float32), read)


def _goes_with(length: StoredArray, direction: StoredArray) -> bool:
    # Without an axis of its own, one length is that of the whole weight.
    axes = zip(length.shape or direction.shape, direction.shape, strict=False)
    return len(length.shape) in (0, len(direction.shape)) and all(a in (1, b) for a, b in axes)


def _product(length: StoredArray | None, direction: StoredArray) -> StoredArray | None:
    """Returns the weight of weight normalisation; None if the two do not belong together."""
    if length is None or not _goes_with(length, direction):
        return None

    def read() -> np.ndarray:
        values = direction.read().astype(np.float32)
        scale = length.read().astype(np.float32)
        axes = tuple(axis for axis, size in enumerate(scale.shape) if size == 1)
        norm = np.sqrt(np.sum(values**2, axis=axes if scale.shape else None, keepdims=True))
        return values * (scale / np.where(norm == 0, np.float32(1), norm))

    return StoredArray(direction.shape, np.dtype(np.float32), read)


def made_once(array: StoredArray) -> StoredArray:
    """Returns the same array, computed at the first reading and then kept."""
    return StoredArray(array.shape, array.dtype, functools.cache(array.read))


def dequantize(
    array: StoredArray, values: Values, scale: str, zero: str, axis: int
) -> StoredArray | None:
    """Turns integers into numbers by stored scales, as DequantizeLinear and QLinearConv name them.

    Args:
      array: integers.
      values: the other arrays.
      scale: name of the scales.
      zero: name of the integers that stand for 0; empty for 0 itself.
      axis: which axis has scales of its own.

    Returns:
      The numbers; None if a scale or zero is computed, not stored.

    Raises:
      ValueError: if there is more than one scale and not one for each index of the axis.
    """
    if scale not in values or (zero and zero not in values):
        return None
    zeros = values[zero].read() if zero else None
    return made_once(dequantized(array, values[scale].read(), zeros, axis))


def dequantize_conv_integer(
    node: Node, array: StoredArray, graph: Graph, values: Values
) -> tuple[StoredArray | None, bool]:
    """Turns the kernel of a ConvInteger into numbers; the nodes behind it apply its scales.

    Args:
      node: the convolution.
      array: the integers of its kernel, (out, in, kh, kw).
      graph: the graph that contains it.
      values: the arrays.

    Returns:
      The kernel, None if its zero is computed, not stored; and whether its scales are known.
      Unknown scales count as 1, as if all outputs had the same one.
    """
    zero = node.input(3)
    if zero and zero not in values:
        return None, False
    zeros = values[zero].read() if zero else None
    scale = _scale_behind(node, len(array.shape), graph, values)
    if scale is None or scale.size not in (1, array.shape[0]):
        return made_once(dequantized(array, np.ones(1), zeros, 0)), False
    return made_once(dequantized(array, scale, zeros, 0)), True


def block_size(graph: Graph, values: Values) -> int | None:
    """Returns how many channels ONNX Runtime stored together: 8, 16, or None if unknown.

    The numbers of output channels are multiples of it, the least for the channels that are used. A
    convolution that reads a plain image has fewer input channels; the others have multiples of it.

    Args:
      graph: of the network.
      values: the arrays stored in it.
    """
    sizes = {8, 16}
    for node in (node for inner in walk(graph) for node in inner.nodes):
        used = node.integer("channels", 0) if "ReorderOutput" in node.op else 0
        conv = graph.makers.get(node.input(0)) if used > 0 else node
        kernel = None if conv is None else values.get(conv.input(1))
        if conv is None or kernel is None or conv.op != f"{BLOCKED}Conv" or len(kernel.shape) != 4:
            continue
        outputs, inputs = kernel.shape[:2]
        grouped = conv.integer("group", 1) > 1
        if not _reads_blocks(conv, graph):
            sizes = {size for size in sizes if inputs < size or grouped}
        elif not grouped:
            sizes = {size for size in sizes if inputs % size == 0}
        sizes = {size for size in sizes if -(-(used or outputs) // size) * size == outputs}
    return sizes.pop() if len(sizes) == 1 else None


def unblocked(node: Node, array: StoredArray, graph: Graph, block: int) -> StoredArray:
    """Puts the channels of a kernel of ONNX Runtime's NCHWc operators back in order.

    Args:
      node: the convolution.
      array: its kernel, (out, in, kh, kw) in name; stored as (out / block, in, kh, kw, block), or
        (out / block, in / block, kh, kw, block of in, block of out) if its input is blocked too.
      graph: the graph that contains it.
      block: the number of channels that are stored together.

    Returns:
      The kernel, (out, in, kh, kw), without the channels that only fill the last block.

    Raises:
      ValueError: if its channels are not a multiple of the block.
    """
    outputs, inputs, kh, kw = array.shape
    depthwise = inputs == 1 and node.integer("group", 1) > 1
    inner = block if _reads_blocks(node, graph) and not depthwise else 1
    if outputs % block or inputs % inner:
        raise ValueError(f"{node.layer}: a kernel {array.shape} has no blocks of {block} channels")
    stored = (outputs // block, inputs // inner, kh, kw, inner, block)

    @functools.cache
    def read() -> np.ndarray:
        plain = array.read().reshape(stored).transpose(0, 5, 1, 4, 2, 3).reshape(array.shape)
        used_outputs = _used(np.any(plain, (1, 2, 3)), block)
        used_inputs = _used(np.any(plain, (0, 2, 3)), inner)
        return plain[:used_outputs, :used_inputs]

    return StoredArray(read().shape, array.dtype, read)


def _used(channels: Any, block: int) -> int:
    """Returns the number of channels before those that only fill the last block."""
    last = np.flatnonzero(channels[len(channels) - block + 1 :])
    return len(channels) - block + 1 + (int(last[-1]) + 1 if last.size else 0)


def _reads_blocks(node: Node, graph: Graph) -> bool:
    maker = graph.makers.get(node.input(0))
    return maker is not None and maker.op.startswith(BLOCKED) and "ReorderOutput" not in maker.op


def _scale_behind(node: Node, axes: int, graph: Graph, values: Values) -> np.ndarray | None:
    """Returns the scales of a kernel's integers, (1,) or (out,); None if they are not certain."""
    images = graph.makers.get(node.input(0))
    if images is None or images.op not in ("DynamicQuantizeLinear", "QuantizeLinear"):
        return None
    scale_of_images = images.input(1)
    if images.op == "DynamicQuantizeLinear":
        scale_of_images = images.outputs[1]
    behind = graph.only_user(node)
    before = node
    for _ in range(_MAX_STEPS):
        if behind is None or behind.op not in _ON_THE_WAY:
            break
        before, behind = behind, graph.only_user(behind)
    if behind is None or behind.op != "Mul":
        return None
    products = [graph.makers.get(name) for name in behind.inputs if name not in before.outputs]
    if len(products) != 1 or products[0] is None or products[0].op != "Mul":
        return None
    names = list(products[0].inputs)
    if scale_of_images not in names:
        return None
    names.remove(scale_of_images)
    scale = values.get(names[0]) if names else None
    return _by_output(scale, axes) if scale is not None else None


def _by_output(scale: StoredArray, axes: int) -> np.ndarray | None:
    """Returns the scales as one row if they differ along the outputs only; else None."""
    shape = (1,) * (axes - len(scale.shape)) + scale.shape
    along_outputs = len(shape) == axes and shape == (1, shape[1]) + (1,) * (axes - 2)
    return scale.read().reshape(-1) if along_outputs else None
