"""Recognises which axes of a stored four-dimensional array are a kernel's rows and columns."""

from collections.abc import Mapping

import numpy as np

HWIO, OIHW, OHWI = "HWIO", "OIHW", "OHWI"
LAYOUTS = (HWIO, OIHW, OHWI)
"""The orders of axes in which kernels are stored: H height, W width, I in (per group), O out."""

# Vision transformers cut patches of up to 32; the largest dense kernels are 31 wide.
_LARGEST = 32
_LARGEST_USUAL = 15

Shape = tuple[int, ...]


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


def recognise(arrays: Mapping[str, Shape]) -> dict[str, str | None]:
    """Finds the layout of each four-dimensional array of a file whose format has no rule.

    If one layout is the most plausible for an array, the array has that layout. The other arrays
    follow the layout that suits the whole file best, or else their names: PyTorch says ``weight``,
    Flax and Keras say ``kernel``.

    Args:
      arrays: name -> shape of four axes.

    Returns:
      name -> layout; None if the file does not tell, or no axes look like a kernel's.
    """
    ratings = {
        name: {layout: looks_like_kernel(layout, shape) for layout in LAYOUTS}
        for name, shape in arrays.items()
    }
    whole = _best({layout: sum(each[layout] for each in ratings.values()) for layout in LAYOUTS})
    found: dict[str, str | None] = {}
    for name, rating in ratings.items():
        own = _best(rating)
        if own is not None and rating[own] >= 2:
            found[name] = own
        else:
            choice = whole or _by_name(name)
            found[name] = choice if choice and rating[choice] else None
    if whole == OHWI:
        # In a file of such arrays, one that could have a usual layout as well has this one.
        found |= {name: OHWI for name, each in ratings.items() if each[OHWI] == max(each.values())}
    return found


def _best(rating: Mapping[str, int]) -> str | None:
    top = [layout for layout in (HWIO, OIHW) if rating[layout] == max(rating.values())]
    if rating[OHWI] > max(rating[HWIO], rating[OIHW]):
        return OHWI
    return top[0] if len(top) == 1 else None


def _by_name(name: str) -> str | None:
    leaf = name.replace("/", ".").rsplit(".", 1)[-1].split(":")[0]
    if leaf.startswith("weight"):
        return OIHW
    return HWIO if leaf.endswith("kernel") else None
