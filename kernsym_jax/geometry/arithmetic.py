"""Convolution arithmetic: where the windows of a convolution or pooling lie on its input.

All numbers count pixels of the input along one axis. ``lo`` and ``hi`` are the padding at the near
end (top, left) and at the far end (bottom, right); a negative padding crops. A kernel with k taps
and dilation d spans d(k-1)+1 pixels. The first window starts at the near end of the padded axis, so
the rows that a stride does not reach are at the far end.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import numpy as np

PerAxis = int | Sequence[int]
"""One number for all axes, or one per axis."""

Padding = int | str | Sequence[int] | Sequence[Sequence[int]]
"""An int: the padding at both ends of every axis. ``(lo, hi)``: that at the two ends of every axis.
``((lo, hi), (lo, hi))``: that at the two ends of each axis. ``"SAME"``: TensorFlow's rule, which
puts an odd pixel at the far end; ``"SAME_LOWER"``: the same with the odd pixel at the near end;
``"VALID"``: no padding."""

_Figure = TypeVar("_Figure")


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of a layer along one axis.

    Attributes:
      size: pixels of the input.
      kernel: number of taps.
      stride: step between windows.
      lo: padding at the near end.
      hi: padding at the far end.
      dilation: step between taps.

    Raises:
      ValueError: if the size, kernel, stride or dilation is below 1, or if the kernel spans more
        than the padded input.

    >>> from kernsym_jax import geometry
    >>> windows = geometry.Windows(size=32, kernel=3, stride=2, lo=1, hi=1)
    >>> windows.output_size, windows.uneven, windows.centre_drift
    (16, 1, -0.5)
    """

    size: int
    kernel: int
    stride: int = 1
    lo: int = 0
    hi: int = 0
    dilation: int = 1

    def __post_init__(self) -> None:
        if min(self.size, self.kernel, self.stride, self.dilation) < 1:
            raise ValueError(
                "size, kernel, stride and dilation must be at least 1, got "
                f"{self.size}, {self.kernel}, {self.stride} and {self.dilation}"
            )
        if self._room < 0:
            raise ValueError(
                f"a kernel of {self.kernel} at dilation {self.dilation} spans {self.span} pixels, "
                f"more than the {self.size + self.lo + self.hi} of the padded input "
                f"({self.size} with padding {self.lo} and {self.hi})"
            )

    @property
    def span(self) -> int:
        """Pixels from the first tap to the last: d(k-1) + 1."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def _room(self) -> int:
        """The largest distance by which the first window can move within the padded axis."""
        return self.size + self.lo + self.hi - self.span

    @property
    def output_size(self) -> int:
        """Number of windows: ⌊(size + lo + hi - d(k-1) - 1) / stride⌋ + 1."""
        return self._room // self.stride + 1

    @property
    def uneven(self) -> int:
        """Rows at the far end that no window touches, u = (size + lo + hi - d(k-1) - 1) mod stride.

        If the padding is the same at both ends, u = 0 means that the windows see it evenly. If
        u > 0, they see all of the padding at the near end, and u rows fewer at the far end.

        If the paddings differ, u alone does not decide. TensorFlow's SAME always has u = 0, and
        BlurPool with four taps has u = 1 on even maps; yet the windows of the first are off centre
        by half a pixel, and those of the second are exactly centred. `centre_drift` decides in
        every case.

        Reference: Alsallakh et al., "Mind the Pad", arXiv 2010.02178.
        """
        return self._room % self.stride

    @property
    def dropped(self) -> int:
        """Rows of the image that no window touches at its ends: max(0, u - hi), and cropped rows.

        Rows between windows do not count; they occur if the stride is larger than the kernel.
        """
        return min(self.size, max(0, self.uneven - self.hi) + max(0, -self.lo))

    @property
    def centre_drift(self) -> float:
        """Mean of the window centres minus the centre of the image, in pixels: (hi - lo - u) / 2.

        It is zero exactly if windows touch as much padding at the near end as at the far end,
        lo = hi - u. It is negative if the windows lie nearer to the near end (top, left), as with
        equal padding and u > 0, and positive if they lie nearer to the far end.
        """
        return (self.hi - self.lo - self.uneven) / 2

    @property
    def exposure(self) -> np.ndarray:
        """The share of the windows in which each tap lies on padding: (kernel,) float64."""
        return self._on_padding / self.output_size

    @property
    def exposure_gap(self) -> float:
        """The sum of `exposure` over the near half of the taps minus that over the far half.

        For k = 3, padding 1 and stride 2 it is 1/h' on an even map and 0 on an odd one, where h' is
        the output size. Under zero padding the weights lean away from the side that meets padding
        more often: a positive gap predicts larger weights at the bottom or right, a negative one at
        the top or left.
        """
        taps = self._on_padding
        half = self.kernel // 2
        near, far = taps[:half].sum(), taps[self.kernel - half :].sum()
        return float(near - far) / self.output_size

    @property
    def _on_padding(self) -> np.ndarray:
        """The number of windows in which each tap lies on padding."""
        # Tap t of window w lies at w * stride + offset[t] on the padded axis.
        offset = self.dilation * np.arange(self.kernel)
        before_image = -((offset - self.lo) // self.stride)
        before_end = -((offset - self.lo - self.size) // self.stride)
        before, upto = np.clip([before_image, before_end], 0, self.output_size)
        return before + self.output_size - upto


def windows(
    size: PerAxis,
    kernel: PerAxis,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
) -> tuple[Windows, ...]:
    """Places the windows of a layer along each axis.

    Args:
      size: pixels of the input.
      kernel: number of taps.
      stride: step between windows.
      padding: see `Padding`.
      dilation: step between taps.

    Returns:
      One `Windows` per axis; a single one if no argument is given per axis.

    Raises:
      ValueError: if the arguments are for different numbers of axes, if the padding is unknown, or
        as `Windows` does.

    >>> from kernsym_jax import geometry
    >>> height, width = geometry.windows((32, 33), 3, 2, 1)
    >>> height.uneven, width.uneven
    (1, 0)
    """
    arguments = [size, kernel, stride, dilation]
    pairs = not isinstance(padding, int | str) and any(isinstance(p, Sequence) for p in padding)
    counts = {len(value) for value in arguments if isinstance(value, Sequence)}
    if not isinstance(padding, int | str) and pairs:
        counts.add(len(padding))
    if len(counts) > 1:
        raise ValueError(
            f"size {size}, kernel {kernel}, stride {stride}, padding {padding} and dilation "
            f"{dilation} are for different numbers of axes"
        )
    placed = []
    for i in range(counts.pop() if counts else 1):
        n, k, s, d = (operator.index(v[i] if isinstance(v, Sequence) else v) for v in arguments)
        lo, hi = _ends(padding[i] if pairs else padding, n, d * (k - 1) + 1, s)  # type: ignore[index]  # pairs are no int
        placed.append(Windows(n, k, s, lo, hi, d))
    return tuple(placed)


@overload
def output_size(
    size: int, kernel: int, stride: int = 1, padding: int | str = 0, dilation: int = 1
) -> int: ...


@overload
def output_size(
    size: PerAxis,
    kernel: PerAxis,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
) -> int | tuple[int, ...]: ...


def output_size(
    size: PerAxis,
    kernel: PerAxis,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
) -> int | tuple[int, ...]:
    """Counts the windows of a layer, see `Windows.output_size`.

    Args:
      size: pixels of the input.
      kernel: number of taps.
      stride: step between windows.
      padding: see `Padding`.
      dilation: step between taps.

    Returns:
      Pixels of the output: one number if no argument is given per axis, otherwise one per axis.

    Raises:
      ValueError: as `windows` does.

    >>> from kernsym_jax import geometry
    >>> geometry.output_size(224, kernel=7, stride=2, padding=3)
    112
    >>> geometry.output_size((32, 48), kernel=3, stride=2, padding="SAME")
    (16, 24)
    """
    arguments = (size, kernel, stride, padding, dilation)
    return _figure(operator.attrgetter("output_size"), *arguments)


@overload
def uneven_padding(
    size: int, kernel: int, stride: int, padding: int | str = 0, dilation: int = 1
) -> int: ...


@overload
def uneven_padding(
    size: PerAxis,
    kernel: PerAxis,
    stride: PerAxis,
    padding: Padding = 0,
    dilation: PerAxis = 1,
) -> int | tuple[int, ...]: ...


def uneven_padding(
    size: PerAxis,
    kernel: PerAxis,
    stride: PerAxis,
    padding: Padding = 0,
    dilation: PerAxis = 1,
) -> int | tuple[int, ...]:
    """Counts the rows at the far end that no window touches, see `Windows.uneven`.

    Args:
      size: pixels of the input.
      kernel: number of taps.
      stride: step between windows.
      padding: see `Padding`.
      dilation: step between taps.

    Returns:
      u, from 0 to stride - 1: one number if no argument is given per axis, otherwise one per axis.

    Raises:
      ValueError: as `windows` does.

    Reference: Alsallakh et al., "Mind the Pad", arXiv 2010.02178.

    >>> from kernsym_jax import geometry
    >>> geometry.uneven_padding(224, kernel=7, stride=2, padding=3)
    1
    >>> geometry.uneven_padding(225, kernel=7, stride=2, padding=3)
    0
    """
    return _figure(operator.attrgetter("uneven"), size, kernel, stride, padding, dilation)


def padding_amounts(
    size: PerAxis,
    kernel: PerAxis,
    stride: PerAxis,
    padding: Padding = 0,
    dilation: PerAxis = 1,
) -> tuple[int, int] | tuple[tuple[int, int], ...]:
    """Returns the rows that a padding adds at the near end and at the far end.

    Args:
      size: pixels of the input.
      kernel: number of taps.
      stride: step between windows.
      padding: see `Padding`.
      dilation: step between taps.

    Returns:
      ``(lo, hi)``: one pair if no argument is given per axis, otherwise one per axis.

    Raises:
      ValueError: as `windows` does.

    >>> from kernsym_jax import geometry
    >>> geometry.padding_amounts(224, kernel=7, stride=2, padding="SAME")
    (2, 3)
    """
    return _figure(operator.attrgetter("lo", "hi"), size, kernel, stride, padding, dilation)


def skew_direction(gaps: Sequence[float]) -> str | None:
    """Returns the direction to which weights lean under zero padding.

    Args:
      gaps: `Windows.exposure_gap` of each axis, for one to three axes.

    Returns:
      For example ``"bottom right"``; ``None`` if no axis has a gap.

    >>> from kernsym_jax import geometry
    >>> geometry.skew_direction([0.1, 0.1]), geometry.skew_direction([0.0, -0.1])
    ('bottom right', 'left')
    """
    names = (("front", "back"), ("top", "bottom"), ("left", "right"))[-len(gaps) :]
    words = [far if gap > 0 else near for gap, (near, far) in zip(gaps, names, strict=True) if gap]
    return " ".join(words) or None


def _figure(figure: Callable[[Windows], _Figure], *arguments: Any) -> Any:
    size, kernel, stride, padding, dilation = arguments
    figures = tuple(map(figure, windows(size, kernel, stride, padding, dilation)))
    lists = [v for v in (size, kernel, stride, dilation) if isinstance(v, Sequence)]
    pairs = isinstance(padding, Sequence) and any(isinstance(p, list | tuple) for p in padding)
    return figures if lists or pairs else figures[0]


def _ends(padding: Any, size: int, span: int, stride: int) -> tuple[int, int]:
    """Returns the padding of one axis as (lo, hi)."""
    if isinstance(padding, str):
        step = max(stride, 1)
        total = max((-(-size // step) - 1) * step + span - size, 0)
        rules = {
            "VALID": (0, 0),
            "SAME": (total // 2, total - total // 2),
            "SAME_LOWER": (total - total // 2, total // 2),
        }
        if padding.upper() not in rules:
            raise ValueError(f"unknown padding {padding!r}; wanted a number or one of {[*rules]}")
        return rules[padding.upper()]
    if isinstance(padding, Sequence):
        if len(padding) != 2:
            raise ValueError(f"padding of an axis is (lo, hi), got {padding!r}")
        return operator.index(padding[0]), operator.index(padding[1])
    return operator.index(padding), operator.index(padding)
