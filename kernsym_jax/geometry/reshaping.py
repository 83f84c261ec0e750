"""What becomes of the axes of a map when it is reshaped."""

import math
from collections.abc import Sequence

from kernsym_jax.geometry.axis import Axes, Axis, repeated, unknown


def reshaped(axes: Axes, old: Sequence[int], new: Sequence[int]) -> Axes:
    """The axes of a reshaped array: those that are neither split nor merged stay known."""
    if 0 in old or 0 in new:
        return tuple(unknown(size) for size in new)
    result: list[Axis | None] = []
    i = j = 0
    while i < len(old) or j < len(new):
        before, after = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(before), j + len(after)
        while (a := math.prod(old[p] for p in before)) != (b := math.prod(new[p] for p in after)):
            if a < b:
                before.append(i)
                i += 1
            else:
                after.append(j)
                j += 1
        result += _regrouped(
            [axes[p] for p in before], [old[p] for p in before], [new[p] for p in after]
        )
    return tuple(result)


def _regrouped(axes: Sequence[Axis | None], old: Sequence[int], new: Sequence[int]) -> Axes:
    """The axes of one group of dimensions that a reshape splits or merges among themselves."""
    wide = [i for i, size in enumerate(old) if size > 1]
    targets = [j for j, size in enumerate(new) if size > 1] or list(range(len(new)))[:1]
    result: list[Axis | None] = [None] * len(new)
    known = [i for i, axis in enumerate(axes) if axis is not None]
    if len(targets) > 1 or (len(known) > 1 and len(wide) > 1):
        features = all(axis is None or axis.source.role == "feature" for axis in axes)
        role = "feature" if known and features else None
        return tuple(unknown(size, role) if size > 1 else None for size in new)
    if targets and known:
        (target,) = targets
        kept = [i for i in known if i in wide] or known[:1]
        axis = axes[kept[0]]
        repeats = math.prod(old[kept[0] + 1 :])
        tiles = math.prod(old[: kept[0]])
        result[target] = axis if axis is None else repeated(axis, repeats, tiles)
    return tuple(result)
