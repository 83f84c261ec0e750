"""Reads FlatBuffers table by table, as views of a mapped file."""

import struct
from typing import Any

import numpy as np

MAX_TABLES = 500_000


class Table:
    """One table, which reads a field when it is used and checks every offset first.

    Reference: https://flatbuffers.dev/internals
    """

    def __init__(self, data: np.ndarray, position: int, opened: list[int] | None = None):
        """Opens the table at a position.

        Args:
          data: uint8 (bytes,), the whole buffer.
          position: offset of the table in bytes.
          opened: the number of tables opened so far, in a list that all tables of the buffer share,
            because a small file can name one table again and again.

        Raises:
          ValueError: if the table lies outside the buffer.
        """
        self._opened = [0] if opened is None else opened
        self._allow(1)
        self._opened[0] += 1
        self._data = data
        self._position = position
        self._vtable = position - _number(data, position, "<i")
        self._vtable_size = _number(data, self._vtable, "<H")

    @classmethod
    def root(cls, data: np.ndarray) -> "Table":
        """Opens the root table of a buffer."""
        return cls(data, _number(data, 0, "<I"))

    def number(self, field: int, layout: str, default: Any = 0) -> Any:
        """Returns a field that is a number.

        Args:
          field: its number in the schema.
          layout: its type in the notation of `struct`, such as ``<i``.
          default: the value if the field is absent.
        """
        offset = self._offset(field)
        return _number(self._data, self._position + offset, layout) if offset else default

    def numbers(self, field: int, dtype: np.dtype) -> np.ndarray:
        """Returns a vector of numbers, (n,); empty if the field is absent."""
        start, count = self._vector(field)
        if start + count * dtype.itemsize > self._data.size:
            raise ValueError("a FlatBuffer vector that reaches beyond the end")
        return self._data[start : start + count * dtype.itemsize].view(dtype)

    def text(self, field: int) -> str:
        """Returns a string; empty if the field is absent."""
        return self.numbers(field, np.dtype(np.uint8)).tobytes().decode("utf-8")

    def table(self, field: int) -> "Table | None":
        """Returns a table, or None if the field is absent."""
        offset = self._offset(field)
        return self._at(self._position + offset) if offset else None

    def tables(self, field: int) -> list["Table"]:
        """Returns a vector of tables."""
        start, count = self._vector(field)
        if start + 4 * count > self._data.size:
            raise ValueError("a FlatBuffer vector that reaches beyond the end")
        self._allow(count)
        return [self._at(start + 4 * index) for index in range(count)]

    def _allow(self, more: int) -> None:
        if self._opened[0] + more > MAX_TABLES:
            raise ValueError(f"a FlatBuffer of more than {MAX_TABLES} tables")

    def _at(self, place: int) -> "Table":
        return Table(self._data, place + _number(self._data, place, "<I"), self._opened)

    def _vector(self, field: int) -> tuple[int, int]:
        offset = self._offset(field)
        if not offset:
            return 0, 0
        place = self._position + offset
        start = place + _number(self._data, place, "<I")
        return start + 4, _number(self._data, start, "<I")

    def _offset(self, field: int) -> int:
        entry = 4 + 2 * field
        if entry + 2 > self._vtable_size:
            return 0
        return int(_number(self._data, self._vtable + entry, "<H"))


def _number(data: np.ndarray, position: int, layout: str) -> Any:
    if not 0 <= position <= data.size - struct.calcsize(layout):
        raise ValueError("a FlatBuffer offset that points outside the file")
    return struct.unpack_from(layout, data.data, position)[0]
