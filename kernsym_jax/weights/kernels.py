"""Finds the convolution kernels among the named arrays of a file."""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import StoredArray, is_floating, layer_name, leaf_name
from kernsym_jax.weights import fold
from kernsym_jax.weights.layout import (
    CONV,
    DEPTHWISE,
    GIVEN,
    HWIO,
    LAYOUTS,
    OIHW,
    RECOGNISED,
    TRANSPOSED,
    ConvKernel,
    axes_to_hwio,
    decide,
    first_layer,
    looks_like_kernel,
    transposed_to_hwio,
    turned_note,
)

KERNEL_LEAVES = frozenset(
    ["weight", "kernel", "weights", "w", "W", "weight_orig", "depthwise_kernel"]
)
"""The last names of kernels."""

# Four-dimensional arrays that networks keep beside their convolutions.
_NOT_KERNELS = re.compile(
    r"pos|bias|embed|anchor|grid|mask|token|table|mean|var|running|cache|index", re.IGNORECASE
)
_FIXED_FILTERS = frozenset(("filt", "blur_kernel", "blur_filter"))
FIXED = "a fixed filter, not trained"
_OPEN = "may be HWIO or OIHW: --layout decides"
# A blur is small; a layer of this many values is not read to look for one.
_LARGEST_FILTER = 1 << 20
_TRANSPOSED_NAMES = re.compile(
    r"(^|[^a-z])(conv(2_?d)?_?transpose(2_?d)?|deconv(2d)?|upscore)(_?\d+)?$", re.IGNORECASE
)
# Keras and Haiku store the outputs of a transposed convolution before its inputs; Flax does not.
_KERAS_NAMES = re.compile(r"2_?d_?transpose", re.IGNORECASE)
_PARAMETRIZED = ".parametrizations."
_SCALES = ("weight", "gamma", "scale")
_PREFIXES = ("module.", "_orig_mod.", "params/", "params.")
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
      notes: remarks on folding, and on arrays whose layout is open.
      first: the layer whose input is the image, if the channels tell.
    """

    kernels: dict[str, ConvKernel]
    skipped: dict[str, str]
    layout: str
    notes: tuple[str, ...]
    first: str | None


@dataclasses.dataclass(frozen=True)
class _Found:
    """An array that is a kernel.

    Attributes:
      layout: its stored axes, such as ``HWIO``.
      shape: (kh, kw, in, out) as the layout has it.
      transposed: whether a transposed convolution reads it.
      groups: number of channel groups, if known.
      outputs_first: whether a transposed kernel has its outputs where the layout has inputs.
      depthwise: whether it has a group for each channel; None if open.
    """

    layout: str
    shape: tuple[int, ...]
    transposed: bool
    groups: int | None = None
    outputs_first: bool = True
    depthwise: bool | None = None

    @property
    def outputs(self) -> int:
        """Returns the number of channels that it makes."""
        turned = self.transposed and self.outputs_first
        return self.shape[2] * (self.groups or 1) if turned else self.shape[3]

    @property
    def in_place(self) -> tuple[int, ...]:
        """(kh, kw, in, out) of a transposed one, with its channels where they belong."""
        return (*self.shape[:2], self.shape[3 if self.outputs_first else 2], self.outputs)


def find_kernels(
    arrays: Mapping[str, StoredArray],
    *,
    rule: str | None,
    usual: str | None,
    layout: str | None,
    fold_batchnorm: bool,
    in_order: bool,
    drop_prefix: bool = True,
    calls: Mapping[str, Mapping[str, Any]] | None = None,
) -> FoundKernels:
    """Separates a network's convolution kernels from its other arrays.

    Args:
      arrays: name -> array, in the order of the layers as far as that is known.
      rule: the layout that the format prescribes, or None.
      usual: the layout that most files of the format have, or None.
      layout: the layout that the user gives, or None to decide it for each array.
      fold_batchnorm: multiplies each kernel by the scale of the BatchNorm that follows it.
      in_order: whether the arrays come in the order of the network's definition.
      drop_prefix: whether a container's name that all kernels have is taken off their names.
      calls: name of a kernel -> the settings of the convolution that reads it, as far as the format
        keeps them: ``groups``; whether it is ``transposed``, and then has its ``outputs_first``;
        whether it is ``depthwise``, and then has its channels in place of its inputs.
    """
    calls = calls or {}
    stored = without_prefix(arrays) if drop_prefix else dict(arrays)
    arrays, skipped = fold.merge_parts(stored)
    layouts = decide(arrays, given=layout, rule=rule, usual=usual)
    found, others = _sort(arrays, layouts, calls, in_order=in_order)
    skipped |= others
    shapes = {name: each.shape for name, each in found.items() if not each.transposed}
    turned = {name: each.in_place for name, each in found.items() if each.transposed}
    first = first_layer(_with_unknown(shapes, stored, skipped), turned)
    kernels: dict[str, ConvKernel] = {}
    layers: dict[str, str] = {}
    for name, each in found.items():
        if each.shape[:2] == (1, 1):
            skipped[name] = POINTWISE
            continue
        layer = layer_name(name.removesuffix(":0"))
        layers[name] = layer if layer not in kernels else name
        kernels[layers[name]] = _kernel(name, arrays, each, is_first=name == first)
    notes: tuple[str, ...] = ()
    if fold_batchnorm:
        kernels, notes = fold.fold(kernels, arrays, in_order=in_order)
    if rule == HWIO:
        known = {layer_name(name) for name in shapes if "transposed" in calls.get(name, {})}
        notes += turned_note(
            {layer_name(name): shape for name, shape in shapes.items()},
            known | {layer_name(name) for name in shapes if _bias(name, arrays)},
            first and layer_name(first),
            known,
        )
    return FoundKernels(
        kernels,
        skipped,
        _describe_layouts(
            {layouts[name]: None for name in found if found[name].shape[:2] != (1, 1)}
        ),
        notes + _open_note(skipped),
        None if first is None else layers.get(first, layer_name(first)),
    )


def _with_unknown(
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Mapping[str, StoredArray],
    skipped: Mapping[str, str],
) -> dict[str, tuple[int, ...]]:
    """Adds the layers of PyTorch whose weights are not known, in the order of the file.

    Args:
      shapes: name of a kernel -> (kh, kw, in, out).
      arrays: all arrays of the file.
      skipped: name of an array -> why it is left out.
    """
    unknown: dict[str, tuple[int, ...]] = {}
    places: dict[str, int] = {}
    for place, (name, array) in enumerate(arrays.items()):
        layer, _, end = name.partition(_PARAMETRIZED)
        layer = layer if end else layer_name(name)
        places.setdefault(layer, place)
        if end and len(array.shape) == 4 and skipped.get(name) == fold.UNKNOWN:
            shape = tuple(array.shape[axis] for axis in axes_to_hwio(OIHW))
            # Of a length and a direction, the direction has the shape of the kernel.
            unknown[f"{layer}.{end.partition('.')[0]}"] = shape
    both = {**unknown, **shapes}
    return {name: both[name] for name in sorted(both, key=lambda n: places.get(layer_name(n), 0))}


def _sort(
    arrays: Mapping[str, StoredArray],
    layouts: Mapping[str, tuple[str, str]],
    calls: Mapping[str, Mapping[str, Any]],
    *,
    in_order: bool,
) -> tuple[dict[str, _Found], dict[str, str]]:
    """Returns the arrays that are kernels, and the reason why each other one is none."""
    found: dict[str, _Found] = {}
    skipped: dict[str, str] = {}
    norms = _following_norms(arrays) if in_order else {}
    before: str | None = None
    for name, array in arrays.items():
        axes, how = layouts.get(name, (None, ""))
        reason = _why_not(name, array, arrays, axes, how)
        if reason is not None:
            skipped[name] = reason
        elif axes is not None:
            each = _found(name, arrays, axes, calls.get(name, {}), norms.get(name))
            if before is not None:
                lone = name not in norms and _bias(name, arrays) is None
                chained = lone and _container(name) == _container(before)
                each = _behind(each, found[before], chained=chained)
            found[name] = each
            before = name if in_order else None
    return found, skipped


def _describe_layouts(used: Mapping[tuple[str, str], None]) -> str:
    axes = dict.fromkeys(layout for layout, _ in used)
    known = dict.fromkeys(how for _, how in used)
    return f"{' and '.join(axes) or 'none'} ({', '.join(known) or 'no kernels'})"


def _open_note(skipped: Mapping[str, str]) -> tuple[str, ...]:
    names = [name for name, reason in skipped.items() if reason.endswith(_OPEN)]
    if not names:
        return ()
    listed = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return (f"the layout of {len(names)} left-out arrays is open ({listed}): --layout decides",)


def without_prefix(arrays: Mapping[str, StoredArray]) -> dict[str, StoredArray]:
    """Removes the names of containers that hold every kernel, such as those of wrappers."""
    kernels = [name for name, array in arrays.items() if len(array.shape) == 4]
    for prefix in _PREFIXES:
        if kernels and all(name.startswith(prefix) for name in kernels):
            return without_prefix(
                {name.removeprefix(prefix): array for name, array in arrays.items()}
            )
    return dict(arrays)


def describe_axes(array: StoredArray) -> str:
    """Describes an array that is not the kernel of a two-dimensional convolution."""
    if not is_floating(array.dtype):
        return f"{array.dtype} array: not floating-point weights"
    axes = len(array.shape)
    return f"{axes}-D array: {_AXES.get(axes, 'no convolution of images')}"


def _why_not(
    name: str,
    array: StoredArray,
    arrays: Mapping[str, StoredArray],
    layout: str | None,
    how: str,
) -> str | None:
    """Returns the reason why an array is not a convolution kernel; None if it is one."""
    shape = array.shape
    if not is_floating(array.dtype) or len(shape) != 4:
        return describe_axes(array)
    if 0 in shape:
        return "an empty array"
    leaf = leaf_name(name)
    if leaf in _FIXED_FILTERS:
        return FIXED
    if leaf not in KERNEL_LEAVES and _NOT_KERNELS.search(leaf):
        return f"4-D array {shape}: its name {leaf!r} is not one of a kernel"
    if layout is None and any(looks_like_kernel(choice, shape) for choice in LAYOUTS):
        return f"the axes of {shape} {_OPEN}"
    plausible = layout is not None and looks_like_kernel(layout, shape)
    if layout is not None and how == GIVEN and not plausible:
        height, width, *_ = (shape[axis] for axis in axes_to_hwio(layout))
        return f"--layout={layout} makes its kernel {height}×{width}, which no convolution has"
    if not plausible and (layout is None or how == RECOGNISED or leaf not in KERNEL_LEAVES):
        return f"4-D array {shape}: no two axes can be a kernel's height and width"
    return FIXED if _is_fixed(name, array, arrays, layout or HWIO) else None


def _is_fixed(
    name: str, array: StoredArray, arrays: Mapping[str, StoredArray], layout: str
) -> bool:
    """Returns whether an array is a filter that no training has changed, such as a blur.

    A blur has the same taps for every channel. A filter of one channel is a blur if it is perfectly
    symmetric, or if its name is not that of a parameter.
    """
    kh, kw, inputs, outputs = (array.shape[axis] for axis in axes_to_hwio(layout))
    leaf = leaf_name(name)
    stem = name.removesuffix(leaf)
    if (
        1 not in (inputs, outputs)
        or kh * kw == 1
        or f"{stem}bias" in arrays
        or f"{stem}b" in arrays
    ):
        return False
    if inputs * outputs > 1 and kh * kw * inputs * outputs > _LARGEST_FILTER:
        return False
    taps = np.transpose(array.read(), axes_to_hwio(layout)).astype(np.float32)
    taps = taps.reshape(kh, kw, inputs * outputs)
    one = taps[..., 0]
    if not np.isfinite(taps).all() or not one.any() or (taps != one[..., None]).any():
        return False
    if inputs * outputs > 1 or leaf not in KERNEL_LEAVES:
        return True
    turned = [one[::-1], one[:, ::-1], one.T if kh == kw else one]
    return all(np.allclose(one, other, rtol=1e-5, atol=1e-8) for other in turned)


def _following_norms(arrays: Mapping[str, StoredArray]) -> dict[str, int]:
    """Returns the length of the norm right behind each kernel, in the same container."""
    lengths: dict[str, int] = {}
    for name, after in itertools.pairwise(arrays):
        shape = arrays[after].shape
        is_norm = len(shape) == 1 and shape[0] > 1 and leaf_name(after) in _SCALES
        # DenseNet's layers end with a convolution and begin with a norm, that of all inputs.
        if is_norm and len(arrays[name].shape) == 4 and _container(name) == _container(after):
            lengths[name] = shape[0]
    return lengths


def _container(name: str) -> str:
    """Returns the name of what holds a layer: ``block1`` for ``block1.conv.weight``."""
    return re.sub(r"(^|[/.])[^/.]*$", "", layer_name(name))


def _found(
    name: str,
    arrays: Mapping[str, StoredArray],
    layout: str,
    call: Mapping[str, Any],
    norm: int | None,
) -> _Found:
    """Describes a kernel; its call, bias, norm or name tells if a transposed convolution reads it.

    Args:
      name: of the kernel.
      arrays: all arrays of the file.
      layout: of the kernel.
      call: what the format says of the convolution, as for `find_kernels`.
      norm: the length of the norm that follows the kernel, if one does.
    """
    leaf = leaf_name(name)
    kh, kw, inputs, outputs = shape = tuple(arrays[name].shape[a] for a in axes_to_hwio(layout))
    depthwise = call.get("depthwise")
    if leaf == "depthwise_kernel" or depthwise:
        return _Found(layout, (kh, kw, 1, inputs * outputs), transposed=False, depthwise=True)
    stem = name.removesuffix(leaf)
    bias = _bias(name, arrays)
    numbers = bias.shape[0] if bias is not None and len(bias.shape) == 1 else None
    if "transposed" in call:
        first, groups = call.get("outputs_first", True), call.get("groups")
        if groups is None and call["transposed"] and layout == OIHW and numbers is not None:
            told, rest = divmod(numbers, inputs)
            groups = told if told and not rest and outputs % told == 0 else None
        return _Found(layout, shape, call["transposed"], groups, first, depthwise)
    if bias is None and norm is not None and norm != outputs:
        numbers = norm if norm == inputs else None
    layer = re.split(r"[/.]", stem.rstrip("/."))[-1]
    transposed = _TRANSPOSED_NAMES.search(layer) is not None
    outputs_first = _KERAS_NAMES.search(layer) is not None
    if numbers is not None and numbers != outputs:
        # A transposed convolution stores its output channels where others store their inputs.
        groups, rest = divmod(numbers, inputs)
        if layout == OIHW:
            transposed = bool(groups) and not rest and outputs % groups == 0
            return _Found(layout, shape, transposed, groups)
        outputs_first = layout == HWIO and numbers == inputs
        transposed = outputs_first
    elif numbers is not None and inputs != outputs:
        outputs_first = False
        transposed = transposed and layout != OIHW
    turned = outputs_first or layout == OIHW
    return _Found(layout, shape, transposed, outputs_first=turned, depthwise=depthwise)


def _bias(name: str, arrays: Mapping[str, StoredArray]) -> StoredArray | None:
    stem = name.removesuffix(leaf_name(name))
    return arrays.get(f"{stem}bias", arrays.get(f"{stem}b"))


def _behind(found: _Found, former: _Found, *, chained: bool) -> _Found:
    """Describes a kernel by the one before it, in a file that has the order of definition.

    Args:
      found: the kernel.
      former: the one before it.
      chained: whether both lie in one container, and the kernel has neither a bias nor a norm.
    """
    *_, inputs, outputs = found.shape
    if inputs == 1 < outputs and found.depthwise is None and former.outputs == 1:
        return dataclasses.replace(found, depthwise=False)
    # So ends a generator: of 64 channels, its last layer makes the 3 of an image.
    fits = former.transposed and former.outputs == outputs > inputs
    if chained and fits and found.layout == OIHW:
        return dataclasses.replace(found, transposed=True)
    return found


def _kernel(
    name: str, arrays: Mapping[str, StoredArray], found: _Found, *, is_first: bool
) -> ConvKernel:
    stored = arrays[name].read()
    weight = np.transpose(stored, axes_to_hwio(found.layout))
    kh, kw, inputs, outputs = weight.shape
    if found.depthwise:
        return ConvKernel(weight.reshape(kh, kw, 1, inputs * outputs), DEPTHWISE, groups=inputs)
    if found.transposed and found.layout == OIHW:
        groups = found.groups or 1
        if outputs % groups:
            raise ValueError(f"{name}: {groups} groups do not divide its {outputs} channels")
        return ConvKernel(transposed_to_hwio(stored, groups), TRANSPOSED, groups=groups)
    if found.transposed:
        return ConvKernel(
            np.swapaxes(weight, 2, 3) if found.outputs_first else weight, TRANSPOSED, groups=1
        )
    # The first convolution of a network for grey images has one input channel too.
    single = inputs == 1 < outputs and not is_first and found.depthwise is not False
    return ConvKernel(weight, DEPTHWISE if single else CONV)


def same_values(kernel: ConvKernel, other: ConvKernel | None) -> bool:
    """Returns whether two kernels have the same values, in any order of their axes."""
    if other is None or kernel.weight.size != other.weight.size:
        return False
    return np.array_equal(np.sort(kernel.weight, None), np.sort(other.weight, None))
