"""The verdict on a network: how evenly it applies its padding, and what would help."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from kernsym_jax.geometry.input_size import even_input_sizes
from kernsym_jax.geometry.layer import LayerGeometry


@dataclasses.dataclass(frozen=True)
class Advice:
    """What an audit comes to.

    Attributes:
      total: number of convolutions and pooling windows.
      strided: layers with a kernel of several taps and a stride. Others have no padding to lose to
        their stride, or no stride.
      uneven: those among them whose windows meet more padding at one end than at the other.
      nearest: the nearest input size at which no layer is uneven, pixels, one number or one per
        axis; ``None`` where none was found or none is needed.
    """

    total: int
    strided: int
    uneven: int
    nearest: int | tuple[int, ...] | None

    @property
    def verdict(self) -> str:
        """One sentence: ``"uneven at 5 of 5 strided layers; 225 is the nearest size …"``."""
        if not self.total:
            return "neither convolutions nor pooling windows"
        layers = f"{self.strided} strided layer{'s' if self.strided > 1 else ''}"
        if not self.strided:
            return "no strided layers: no input size makes padding uneven"
        if not self.uneven:
            return f"even at all {layers}" if self.strided > 1 else "even at the one strided layer"
        found = f"uneven at {self.uneven} of {layers}"
        if self.nearest is None:
            return f"{found}; no size nearby where none is"
        size = self.nearest
        name = "x".join(map(str, size)) if isinstance(size, tuple) else str(size)
        return f"{found}; {name} is the nearest size where none is"


def advise(
    rows: Sequence[LayerGeometry],
    rows_at: Callable[[Any], Sequence[LayerGeometry]] | None = None,
    input_size: int | Sequence[int] | None = None,
    reach: int = 64,
) -> Advice:
    """Judges a network at the input size that it was audited at.

    Args:
      rows: of the audit.
      rows_at: the audit of the same network at another input size, one number or one per axis.
        Without it, sizes are worked out from the rows, see `even_input_sizes`.
      input_size: that the rows were audited at; ``None`` for the input of the first layer.
      reach: how far from the audited size to look for a better one.

    Returns:
      The counts and the nearest even size.

    Raises:
      ValueError: without ``rows_at``, where the rows do not say enough about other sizes.
    """
    strided = [row for row in rows if row.strided]
    uneven = sum(not row.even for row in strided)
    nearest = None
    if uneven:
        if input_size is None:
            first = next((row for row in rows if -1 in (row.reads or ())), rows[0]).input_size
            input_size = first[0] if len(set(first)) == 1 else first
        sizes = even_input_sizes(rows_at or rows, input_size, count=1, reach=reach)
        nearest = sizes[0] if sizes else None
    return Advice(len(rows), len(strided), uneven, nearest)
