"""The record of a convolution kernel, and what shapes tell: axes of kernels and the first layer."""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import StoredArray, is_floating, leaf_name, shortened

Pair = tuple[int, int]
Padding = tuple[Pair, Pair] | str

CONV, DEPTHWISE, TRANSPOSED = "conv", "depthwise", "transposed"


class _Float32:
    """A dataclass field that stores an array with its own dtype and returns it as float32."""

    def __get__(self, instance: Any, owner: type | None = None) -> np.ndarray:
        if instance is None:
            raise AttributeError("weight")  # tells dataclasses that there is no default
        with np.errstate(over="ignore", invalid="ignore"):
            return instance.__dict__["weight"].astype(np.float32, copy=False)

    def __set__(self, instance: Any, value: Any) -> None:
        array = np.asarray(value)
        if array.ndim != 4:
            raise ValueError(f"a kernel has the axes (kh, kw, in, out); got {array.shape}")
        instance.__dict__["weight"] = array


@dataclasses.dataclass(frozen=True, eq=False)
class ConvKernel:
    """One two-dimensional convolution kernel; a fact that the file does not state is None.

    A weight that its file stores as float32 is a read-only view of the file. A weight of another
    dtype is converted at each access, so that a network takes no more memory than its file.

    Attributes:
      weight: (kh, kw, in, out) float32, `in` counted per group: a depthwise kernel has in = 1.
      kind: ``conv``, ``depthwise`` (a group per input channel) or ``transposed``.
      stride: (rows, columns).
      padding: ((top, bottom), (left, right)) in pixels, or the rule ``SAME`` (TensorFlow's) or
        ``SAME_LOWER``.
      dilation: (rows, columns).
      groups: number of channel groups.

    >>> import numpy as np
    >>> from kernsym_jax import weights
    >>> kernel = weights.ConvKernel(np.ones((3, 3, 4, 8), np.float32), stride=(2, 2))
    >>> kernel.shape, kernel.kind, kernel.padding
    ((3, 3, 4, 8), 'conv', None)
    """

    weight: np.ndarray = _Float32()  # type: ignore[assignment]
    kind: str = CONV
    stride: Pair | None = None
    padding: Padding | None = None
    dilation: Pair | None = None
    groups: int | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(kh, kw, in, out), without reading the weight."""
        return self.__dict__["weight"].shape


@dataclasses.dataclass(frozen=True)
class Weights:
    """The kernels of one file or directory.

    Attributes:
      kernels: layer name -> kernel, for every convolution with kh·kw > 1, in forward order where
        the format keeps it.
      skipped: name -> why it is not among the kernels, for every other array or group of arrays.
      source: the path that was read.
      format: the format's name, such as ``safetensors``.
      order: the order of `kernels`: ``forward`` (from a graph, or from our run's layers), ``file``
        (the order of definition), or ``name`` (the natural order of names, where nothing tells
        another).
      layout: the stored axes and how the reader knows them, such as ``OIHW (recognised)``.
      notes: remarks for the reader of a report, such as the number of folded BatchNorms.
      step: the number of steps or epochs after which the file says that it was saved, or None.
      first: the layer whose input is the image, where a graph or the channels tell it; it is not
        among `kernels` if it has no spatial extent or if its values are not known.

    >>> import pathlib
    >>> import tempfile
    >>> import numpy as np
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.npz"
    >>> np.savez(path, **{"conv/kernel": np.ones((3, 3, 4, 8)), "conv/bias": np.ones(8)})
    >>> from kernsym_jax import weights
    >>> found = weights.read(path, trusted=True)
    >>> list(found.kernels), list(found.skipped), found.order
    (['conv'], ['conv/bias'], 'file')
    """

    kernels: dict[str, ConvKernel]
    skipped: dict[str, str]
    source: str
    format: str
    order: str
    layout: str
    notes: tuple[str, ...] = ()
    step: int | None = None
    first: str | None = None


MAX_NAME = 4000
"""Characters of a layer's name; no framework nests containers so deep that it needs more."""

_FREE_BYTES, _SHARED = 64 << 20, 64


def checked(weights: Weights) -> Weights:
    """Refuses kernels that no network has, and makes every name printable in UTF-8.

    Args:
      weights: as a reader has found them.

    Raises:
      ValueError: if a name has more than `MAX_NAME` characters, or if the kernels share so few
        bytes that measuring them would take far longer than reading them.
    """
    for name in weights.kernels:
        if len(name) > MAX_NAME:
            raise ValueError(f"a layer whose name has {len(name)} characters: {name[:40]!r}…")
    arrays = [kernel.__dict__["weight"] for kernel in weights.kernels.values()]
    elements, stored = sum(array.size for array in arrays), _distinct_bytes(arrays)
    if 4 * elements > _FREE_BYTES + _SHARED * stored:
        raise ValueError(f"refused: {len(arrays)} kernels of {elements} elements in {stored} bytes")
    return dataclasses.replace(
        weights,
        kernels={_in_utf8(name): kernel for name, kernel in weights.kernels.items()},
        skipped={
            _in_utf8(shortened(name, MAX_NAME)): _in_utf8(reason)
            for name, reason in weights.skipped.items()
        },
    )


def _distinct_bytes(arrays: list[np.ndarray]) -> int:
    """Returns the bytes that arrays take together, counting overlaps once."""
    total = reached = 0
    for start, end in sorted(map(np.lib.array_utils.byte_bounds, arrays)):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _in_utf8(name: str) -> str:
    """Returns the name with escapes for halves of surrogate pairs, which UTF-8 cannot hold."""
    return name.encode("utf-8", "backslashreplace").decode()


HWIO, OIHW, OHWI = "HWIO", "OIHW", "OHWI"
LAYOUTS = (HWIO, OIHW, OHWI)
"""The orders of axes in which kernels are stored: H height, W width, I in (per group), O out."""

# Vision transformers cut patches of up to 32; the largest dense kernels are 31 wide.
_LARGEST = 32
_LARGEST_USUAL = 15

Shape = tuple[int, ...]


@functools.lru_cache(maxsize=8)
def axes_to_hwio(layout: str) -> tuple[int, int, int, int]:
    """Returns the permutation that brings a layout's axes to (height, width, in, out)."""
    height, width, inputs, outputs = (layout.index(letter) for letter in HWIO)
    return height, width, inputs, outputs


def transposed_to_hwio(weight: np.ndarray, groups: int) -> np.ndarray:
    """Brings a transposed convolution's weight from the axes of PyTorch and ONNX to ours.

    Args:
      weight: (in, out / groups, kh, kw).
      groups: number of channel groups, a divisor of `in`.

    Returns:
      (kh, kw, in / groups, out).
    """
    inputs, outputs, kh, kw = weight.shape
    split = weight.reshape(groups, inputs // groups, outputs, kh, kw)
    return split.transpose(3, 4, 1, 0, 2).reshape(kh, kw, inputs // groups, groups * outputs)


def check_layout(layout: str | None) -> None:
    """Raises a ValueError unless the layout is known, or None."""
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; wanted one of {', '.join(LAYOUTS)}")


def looks_like_kernel(layout: str, shape: Shape) -> int:
    """Rates how much an array looks like a kernel if its axes have a given layout.

    Args:
      layout: one of `LAYOUTS`.
      shape: four sizes.

    Returns:
      3 for the usual square sizes, 2 for other squares up to 32, 1 for odd oblongs such as 1×7,
      0 for sizes that no kernel has.
    """
    height, width, *_ = axes_to_hwio(layout)
    kh, kw = shape[height], shape[width]
    if not (1 <= kh <= _LARGEST and 1 <= kw <= _LARGEST):
        return 0
    if kh == kw:
        if kh <= 4 or (kh % 2 and kh <= _LARGEST_USUAL):
            return 3
        # Batches of small images have such shapes, and so have patches of vision transformers.
        return 0 if layout == OHWI else 2
    return 1 if kh % 2 and kw % 2 and max(kh, kw) <= _LARGEST_USUAL else 0


GIVEN, BY_FORMAT, BY_NAME, RECOGNISED = "as given", "the format's rule", "by name", "recognised"
"""How the axes of an array are known."""

# Leaves of Flax and Keras; a name that ends in ``:0`` is TensorFlow's.
_HWIO_LEAVES = frozenset(("kernel", "depthwise_kernel", "pointwise_kernel"))
_HAIKU_LEAF = "w"
_TORCH_STATISTICS = frozenset(("running_mean", "running_var", "num_batches_tracked"))
_BIASES = ("bias", "b", "biases", "B")


def decide(
    arrays: Mapping[str, StoredArray],
    *,
    given: str | None = None,
    rule: str | None = None,
    usual: str | None = None,
) -> dict[str, tuple[str, str]]:
    """Finds the layout of each four-dimensional array of a file, by the strongest evidence.

    The evidence is, in this order: what the user says; the array's leaf or the format's rule; the
    length of the bias beside it; the majority of the file; its own shape; what the leaf or format
    usually has.

    Args:
      arrays: name -> array, also those that are no kernels.
      given: the layout that the user gives.
      rule: the layout that the format prescribes.
      usual: the layout that files of the format usually have.

    Returns:
      name -> layout and how it is known, one of `GIVEN`, `BY_FORMAT`, `BY_NAME` and `RECOGNISED`;
      without the arrays whose layout is open, or of which no axes look like a kernel's.
    """
    shapes = {name: a.shape for name, a in arrays.items() if len(a.shape) == 4 and 0 not in a.shape}
    if given is not None:
        return dict.fromkeys(shapes, (given, GIVEN))
    shapes = {name: shape for name, shape in shapes.items() if is_floating(arrays[name].dtype)}
    ratings = {
        name: {layout: looks_like_kernel(layout, shape) for layout in LAYOUTS}
        for name, shape in shapes.items()
    }
    torch_names = any(leaf_name(name) in _TORCH_STATISTICS for name in arrays)
    found: dict[str, tuple[str, str]] = {}
    for name, rating in ratings.items():
        known = _settled(name, rating, rule)
        if known is None:
            known = _by_neighbours(name, shapes[name], rating, arrays, torch_names)
        if known is not None:
            found[name] = known
    majority = _majority(ratings, {name: layout for name, (layout, _) in found.items()})
    for name, rating in ratings.items():
        if majority == OHWI and rating[OHWI] == max(rating.values()):
            # In such a file, an array that could have a usual layout as well has this one.
            if found.get(name, (None, None))[0] != HWIO and rule is None:
                found[name] = OHWI, RECOGNISED
        elif name not in found:
            layout = _by_file_and_shape(name, rating, majority, usual)
            if layout is not None:
                found[name] = layout, RECOGNISED
    return found


def _settled(name: str, rating: Mapping[str, int], rule: str | None) -> tuple[str, str] | None:
    """Returns what the name or the format settles; where they differ, the shape chooses."""
    named = leaf_name(name).removesuffix(":0") in _HWIO_LEAVES or name.endswith(":0")
    possible = rule == HWIO or rating[HWIO] or not any(rating.values())
    if named and possible and (rule in (None, HWIO) or not rating[rule]):
        return HWIO, BY_NAME
    return (rule, BY_FORMAT) if rule is not None else None


def _by_neighbours(
    name: str,
    shape: Shape,
    rating: Mapping[str, int],
    arrays: Mapping[str, StoredArray],
    torch_names: bool,
) -> tuple[str, str] | None:
    """Returns the layout that has the outputs where the bias has as many entries."""
    leaf = leaf_name(name)
    stem = name.removesuffix(leaf)
    biases = [f"{stem}{other}" for other in _BIASES]
    if leaf.endswith(("_w", "_W")):
        biases.append(f"{name[:-1]}{'b' if leaf.endswith('w') else 'B'}")
    bias = next((arrays[other].shape for other in biases if other in arrays), ())
    outputs = bias[0] if bias and all(size == 1 for size in bias[1:]) else None
    if outputs is not None and shape[0] != shape[3]:
        if outputs == shape[3] and rating[HWIO]:
            return HWIO, BY_NAME
        if outputs == shape[0] and rating[OIHW] and rating[OIHW] >= rating[OHWI]:
            return OIHW, BY_NAME
    if leaf == _HAIKU_LEAF and rating[HWIO]:
        return HWIO, BY_NAME
    if torch_names and leaf.startswith("weight") and rating[OIHW]:
        return OIHW, BY_NAME
    return None


def _majority(ratings: Mapping[str, Mapping[str, int]], known: Mapping[str, str]) -> str | None:
    """Returns the layout of most arrays, by what is known of them or by their shapes."""
    votes = dict.fromkeys(LAYOUTS, 0)
    for name, rating in ratings.items():
        layout = known.get(name) or _best(rating)
        if rating[OHWI] > rating.get(layout or OHWI, 0):
            layout = OHWI
        if layout is not None:
            # Squares of 16 or 32 are channels more often than patches.
            votes[layout] += 10 if name in known or rating[layout] == 3 else 1
    return _best(votes)


def _by_file_and_shape(
    name: str, rating: Mapping[str, int], majority: str | None, usual: str | None
) -> str | None:
    if majority is not None and rating[majority]:
        return majority
    own = _best(rating)
    if own is not None and rating[own] >= 2:
        return own
    choice = majority or _usual_name(name) or usual
    return choice if choice and rating[choice] else None


def _best(rating: Mapping[str, int]) -> str | None:
    top = [layout for layout in (HWIO, OIHW) if rating[layout] == max(rating.values())]
    if rating[OHWI] > max(rating[HWIO], rating[OIHW]):
        return OHWI
    return top[0] if len(top) == 1 else None


def _usual_name(name: str) -> str | None:
    leaf = leaf_name(name)
    if leaf == "weights" and "/" in name:  # as TensorFlow's slim has it
        return HWIO
    return OIHW if leaf.startswith("weight") else None


_FIRST_NAMES = re.compile(r"stem|conv_in|conv_?1\b|conv_?0\b|first|patch_embed|features\.0\b")


def first_layer(shapes: Mapping[str, Shape], transposed: Mapping[str, Shape]) -> str | None:
    """Returns the convolution whose inputs no other makes, or None if the channels do not tell.

    Args:
      shapes: name -> (kh, kw, in, out) of every convolution but the transposed ones, those of 1×1
        included, `in` counted per group.
      transposed: the same for the transposed ones, of which one is the first layer of a decoder.
    """
    made = Counter(shape[3] for shape in shapes.values())
    uses = Counter(shape[2] for shape in shapes.values())
    both = made + Counter(shape[3] for shape in transposed.values())
    heads = [name for name, shape in transposed.items() if _is_unmade(shape, both)]
    made = both if heads else made
    several = {name: shape for name, shape in shapes.items() if shape[2] > 1}
    single = [name for name, shape in shapes.items() if shape[2] == 1 < shape[3]]
    # Groups of 4 channels, as in a ResNeXt, come several times. A decoder ends with an image.
    images = [
        name
        for name, (_, _, inputs, outputs) in several.items()
        if (inputs == 3 or (inputs <= 4 and uses[inputs] == 1)) and not (heads and outputs <= 3)
    ]
    unmade = {name: shape for name, shape in several.items() if _is_unmade(shape, made)}
    if images:
        # An autoencoder makes images too, with its last layer.
        likely = [name for name in images if name in unmade] or images
        return _earliest([name for name in likely if shapes[name][2] == 3] or likely)
    if heads:
        return heads[0]
    if len(single) == 1 and (not unmade or _earliest(list(shapes)) == single[0]):
        return single[0]
    spectral = [name for name, shape in unmade.items() if shape[2] <= 32 and uses[shape[2]] == 1]
    if spectral:
        return _earliest(spectral)
    # A depthwise layer has the channels of another layer, unless it reads grey images.
    others = Counter(shape[3] for shape in several.values())
    grey = [name for name in single if not others[shapes[name][3]]] or single
    if grey:
        return _earliest(grey)
    fewest = min((shape[2] for shape in unmade.values()), default=0)
    smallest = [name for name, shape in unmade.items() if shape[2] == fewest]
    return smallest[0] if len(smallest) == 1 else None


def _is_unmade(shape: Shape, made: Mapping[int, int]) -> bool:
    """Returns whether no layer but perhaps itself makes what a layer reads."""
    return made[shape[2]] == (1 if shape[2] == shape[3] else 0)


_ORDINARY = re.compile(r"(^|/)conv2d(_\d+)?$")


def turned_note(
    shapes: Mapping[str, tuple[int, ...]],
    told: Collection[str],
    first: str | None,
    known: Collection[str],
) -> tuple[str, ...]:
    """Names kernels of Keras and TensorFlow that may be those of other kinds of convolutions.

    Args:
      shapes: layer -> (kh, kw, in, out) as a convolution has them that is not transposed.
      told: the layers that are known to be so.
      first: the layer whose input is the image, if the channels tell.
      known: the layers whose kind is known, however many inputs and outputs they have.
    """
    made = Counter(shape[3] for shape in shapes.values())
    image = shapes[first][2] if first is not None and first in shapes else 3
    odd, alike = [], []
    for name, (kh, kw, inputs, outputs) in shapes.items():
        unmade = inputs not in (1, image) and inputs < outputs and not made[inputs]
        if unmade and made[outputs] > 1 and name not in told:
            odd.append(name)
        even = inputs == outputs or (outputs == 1 and name not in told)
        if even and kh * kw > 1 < inputs and name not in known and not _ORDINARY.search(name):
            alike.append(name)
    notes = (
        ("may be transposed, with inputs and outputs exchanged", odd),
        ("read as ordinary convolutions, but may be transposed or depthwise", alike),
    )
    return tuple(
        f"{what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}; the file does not say"
        for what, names in notes
        if names
    )


def _earliest(names: Sequence[str]) -> str:
    """Returns the first layer whose name marks it as the first, or else the first of all."""
    return next((name for name in names if _FIRST_NAMES.search(name)), names[0])
