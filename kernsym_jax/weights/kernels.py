"""Finds the convolution kernels among the named arrays of a file."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from kernsym_jax.formats.arrays import StoredArray, is_floating, layer_name, leaf_name
from kernsym_jax.weights import fold
from kernsym_jax.weights.conv_kernel import CONV, DEPTHWISE, TRANSPOSED, ConvKernel
from kernsym_jax.weights.layout import (
    HWIO,
    LAYOUTS,
    OIHW,
    axes_to_hwio,
    looks_like_kernel,
    recognise,
    transposed_to_hwio,
)

_KERNEL_LEAVES = frozenset(
    ["weight", "kernel", "weights", "w", "weight_orig", "original", "depthwise_kernel"]
)
# Four-dimensional arrays that networks keep beside their convolutions.
_NOT_KERNELS = re.compile(
    r"pos|bias|embed|anchor|grid|mask|token|table|mean|var|running|cache|index", re.IGNORECASE
)
_FIXED_FILTERS = frozenset(("filt", "blur_kernel", "blur_filter"))
_PREFIXES = ("module.", "params/", "params.")
POINTWISE = "1×1 convolution: no spatial extent"

_AXES = {
    0: "a scalar",
    1: "a bias, norm or statistic",
    2: "a dense layer",
    3: "a 1-D convolution, attention or embedding",
    5: "a 3-D convolution, or several networks in one",
}


@dataclasses.dataclass(frozen=True)
class FoundKernels:
    """The kernels of a file, and the reasons why its other arrays are left out.

    Attributes:
      kernels: layer name -> kernel.
      skipped: array name -> reason.
      layout: the stored axes of the kernels and how they are known.
      notes: remarks on folding.
    """

    kernels: dict[str, ConvKernel]
    skipped: dict[str, str]
    layout: str
    notes: tuple[str, ...]


def find_kernels(
    arrays: Mapping[str, StoredArray],
    *,
    rule: str | None,
    layout: str | None,
    fold_batchnorm: bool,
    in_order: bool,
) -> FoundKernels:
    """Separates a network's convolution kernels from its other arrays.

    Args:
      arrays: name -> array, in the order of the layers as far as that is known.
      rule: the layout that the format prescribes, or None.
      layout: the layout that the user gives for a format without such a rule, or None to recognise
        the layout of each array.
      fold_batchnorm: multiplies each kernel by the scale of the BatchNorm that follows it.
      in_order: whether the arrays come in the order of the network's definition.
    """
    arrays = _without_prefix(arrays)
    arrays, skipped = fold.merge_weight_norm(arrays)
    layouts = _layouts(arrays, rule or layout)
    kernels: dict[str, ConvKernel] = {}
    used: dict[str, None] = {}
    first = True
    for name, array in arrays.items():
        reason = _why_not(name, array, layouts.get(name), rule is not None)
        if reason is None:
            kernel = _kernel(name, arrays, layouts[name], first)
            first = False
            used[layouts[name]] = None
            if kernel.shape[:2] == (1, 1):
                reason = POINTWISE
            else:
                layer = layer_name(name)
                kernels[layer if layer not in kernels else name] = kernel
        if reason is not None:
            skipped[name] = reason
    notes: tuple[str, ...] = ()
    if fold_batchnorm:
        kernels, notes = fold.fold(kernels, arrays, in_order)
    known = "the format's rule" if rule else "as given" if layout else "recognised"
    return FoundKernels(kernels, skipped, f"{' and '.join(used) or 'none'} ({known})", notes)


def _without_prefix(arrays: Mapping[str, StoredArray]) -> dict[str, StoredArray]:
    """Removes the name of a container that holds every kernel."""
    kernels = [name for name, array in arrays.items() if len(array.shape) == 4]
    for prefix in _PREFIXES:
        if kernels and all(name.startswith(prefix) for name in kernels):
            return {name.removeprefix(prefix): array for name, array in arrays.items()}
    return dict(arrays)


def describe_axes(array: StoredArray) -> str:
    """Says what an array may be that is not the kernel of a two-dimensional convolution."""
    if not is_floating(array.dtype):
        return f"{array.dtype} array: not floating-point weights"
    axes = len(array.shape)
    return f"{axes}-D array: {_AXES.get(axes, 'no convolution of images')}"


def _layouts(arrays: Mapping[str, StoredArray], known: str | None) -> dict[str, str]:
    shapes = {name: a.shape for name, a in arrays.items() if len(a.shape) == 4 and 0 not in a.shape}
    if known is not None:
        return dict.fromkeys(shapes, known)
    shapes = {name: shape for name, shape in shapes.items() if is_floating(arrays[name].dtype)}
    return {name: layout for name, layout in recognise(shapes).items() if layout is not None}


def _why_not(name: str, array: StoredArray, layout: str | None, by_rule: bool) -> str | None:
    """Returns the reason why an array is not a convolution kernel; None if it is one."""
    shape = array.shape
    if not is_floating(array.dtype) or len(shape) != 4:
        return describe_axes(array)
    if 0 in shape:
        return "an empty array"
    leaf = leaf_name(name)
    if leaf in _FIXED_FILTERS:
        return "a fixed blurring filter, not trained"
    if leaf not in _KERNEL_LEAVES and _NOT_KERNELS.search(leaf):
        return f"4-D array {shape}: its name {leaf!r} is not one of a kernel"
    if layout is None and any(looks_like_kernel(choice, shape) for choice in LAYOUTS):
        return f"the axes of {shape} may be HWIO or OIHW: --layout decides"
    plausible = layout is not None and (
        looks_like_kernel(layout, shape) or (by_rule and leaf in _KERNEL_LEAVES)
    )
    return (
        None if plausible else f"4-D array {shape}: no two axes can be a kernel's height and width"
    )


def _kernel(name: str, arrays: Mapping[str, StoredArray], layout: str, first: bool) -> ConvKernel:
    leaf = leaf_name(name)
    stored = arrays[name].read()
    weight = np.transpose(stored, axes_to_hwio(layout))
    kh, kw, inputs, outputs = weight.shape
    if leaf == "depthwise_kernel":
        return ConvKernel(weight.reshape(kh, kw, 1, inputs * outputs), DEPTHWISE, groups=inputs)
    bias = arrays.get(f"{name.removesuffix(leaf)}bias")
    if bias is not None and len(bias.shape) == 1 and bias.shape != (outputs,):
        # A transposed convolution stores its output channels where others store their inputs.
        groups, rest = divmod(bias.shape[0], inputs)
        if layout == OIHW and groups and not rest and outputs % groups == 0:
            return ConvKernel(transposed_to_hwio(stored, groups), TRANSPOSED, groups=groups)
        if layout == HWIO and bias.shape == (inputs,):
            return ConvKernel(np.swapaxes(weight, 2, 3), TRANSPOSED, groups=1)
    # The first convolution of a network for grey images has one input channel too.
    return ConvKernel(weight, DEPTHWISE if inputs == 1 < outputs and not first else CONV)
