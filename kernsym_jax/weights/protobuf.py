"""Protocol buffers, field by field, as views of a mapped file."""

import numpy as np

MAX_FIELDS = 1_000_000
MAX_PACKED = 8_000_000

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}


class Message:
    """One level of a message: what is inside its submessages is read when they are opened.

    Reference: https://protobuf.dev/programming-guides/encoding
    """

    def __init__(self, data: np.ndarray):
        """Splits a message into its fields.

        Args:
          data: uint8 (bytes,).

        Raises:
          ValueError: if the bytes are no message, or cut.
        """
        self._fields: dict[int, list[int | np.ndarray]] = {}
        position, count, raw = 0, 0, data.data
        while position < data.size:
            count += 1
            if count > MAX_FIELDS:
                raise ValueError(f"a protocol buffer of more than {MAX_FIELDS} fields")
            tag, position = _varint(raw, position)
            number, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                value, position = _varint(raw, position)
                self._fields.setdefault(number, []).append(value)
                continue
            if wire == _BYTES:
                size, position = _varint(raw, position)
            elif wire in _WIDTHS:
                size = _WIDTHS[wire]
            else:
                raise ValueError(f"not a protocol buffer (field {number} of kind {wire})")
            if number == 0 or position + size > data.size:
                raise ValueError("a protocol buffer that is cut or bent")
            self._fields.setdefault(number, []).append(data[position : position + size])
            position += size

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    def integer(self, number: int, default: int = 0) -> int:
        """The last value of a field of type int."""
        value = self._fields.get(number, [default])[-1]
        if not isinstance(value, int):
            raise ValueError(f"field {number} of a protocol buffer is no integer")
        return _signed(value)

    def integers(self, number: int) -> np.ndarray:
        """All values of a repeated field of type int, packed or not, int64 (n,)."""
        parts = [np.empty(0, np.int64)]
        for value in self._fields.get(number, []):
            if isinstance(value, int):
                parts.append(np.array([_signed(value)], np.int64))
            else:
                parts.append(varints(value))
        return parts[-1] if len(parts) <= 2 else np.concatenate(parts)

    def floating(self, number: int, default: float) -> float:
        """The value of a field of type float."""
        values = self.fixed(number, np.dtype("<f4"))
        return float(values[-1]) if values.size else default

    def fixed(self, number: int, dtype: np.dtype) -> np.ndarray:
        """All values of a repeated field of type float or double, packed or not."""
        parts = [part.view(dtype) for part in self.parts(number)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype), *parts])

    def parts(self, number: int) -> list[np.ndarray]:
        """All values of a field of bytes."""
        values = self._fields.get(number, [])
        found = [value for value in values if isinstance(value, np.ndarray)]
        if len(found) != len(values):
            raise ValueError(f"field {number} of a protocol buffer is no bytes")
        return found

    def texts(self, number: int) -> list[str]:
        """All values of a field of type string."""
        return [part.tobytes().decode("utf-8") for part in self.parts(number)]

    def text(self, number: int) -> str:
        """The last value of a field of type string; empty if there is none."""
        return (self.texts(number) or [""])[-1]

    def messages(self, number: int) -> list["Message"]:
        """All submessages of a field."""
        return [Message(part) for part in self.parts(number)]


def varints(data: np.ndarray) -> np.ndarray:
    """Packed integers, int64 (n,)."""
    if data.size > MAX_PACKED:
        raise ValueError(f"{data.size} bytes of packed integers")
    ends = np.flatnonzero(data < 0x80)
    if data.size and (not ends.size or ends[-1] != data.size - 1):
        raise ValueError("packed integers that are cut")
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[: ends.size]
    lengths = ends - starts + 1
    if lengths.size and lengths.max() > 10:
        raise ValueError("a packed integer of more than 64 bits")
    values = np.zeros(ends.size, np.uint64)
    for index in range(int(lengths.max()) if lengths.size else 0):
        inside = index < lengths
        part = data[starts[inside] + index].astype(np.uint64) & np.uint64(0x7F)
        values[inside] |= part << np.uint64(7 * index)
    return values.view(np.int64)


def _varint(raw: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(raw) or shift > 63:
            raise ValueError("a protocol buffer that is cut or bent")
        byte = raw[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
        shift += 7


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
