"""What the readers of named arrays have in common: the record they make of a file."""

import dataclasses

from kernsym_jax.weights.stored_array import StoredArray


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """The arrays of a network in one file or directory.

    Attributes:
      format: the format's name.
      arrays: name -> array, in the file's order, or in natural order of the names if it has none.
      rule: the layout of kernels that the format prescribes, or None.
      ordered: whether the order is that of the network's definition.
      skipped: name of an array group that is not the network's -> why.
      notes: remarks for the reader of a report.
    """

    format: str
    arrays: dict[str, StoredArray]
    rule: str | None = None
    ordered: bool = False
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
