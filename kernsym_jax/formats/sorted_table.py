"""Reads sorted tables as LevelDB writes them, and the protocol buffers that TensorFlow puts in."""

from collections.abc import Iterator
from typing import Any

import numpy as np

MAX_INDEX = 64 << 20
"""Bytes of a table, and of all its blocks together once they are unpacked."""

MAX_ENTRIES = 200_000
MAX_NAME = 1000

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48
_PLAIN, _SNAPPY = 0, 1


def read_table(data: np.ndarray) -> Iterator[tuple[bytes, bytes]]:
    """Yields the (key, value) pairs of a sorted table."""
    if data.size > MAX_INDEX or data.size < _FOOTER or data[-8:].tobytes() != _MAGIC:
        raise ValueError("not the index of a TensorFlow checkpoint, or cut")
    content = data.tobytes()
    footer = content[-_FOOTER:]
    _, place = varint(footer, 0)
    _, place = varint(footer, place)
    room = [MAX_INDEX]
    count = 0
    for _, handle in _block(content, footer[place:], room):
        for pair in _block(content, handle, room):
            count += 1
            if count > MAX_ENTRIES:
                raise ValueError(f"a checkpoint of more than {MAX_ENTRIES} variables")
            yield pair


def _block(content: bytes, handle: bytes, room: list[int]) -> Iterator[tuple[bytes, bytes]]:
    """Yields the pairs of the block at a place.

    Args:
      content: of the file.
      handle: the block's offset and size.
      room: the bytes that all blocks together may still unpack to.
    """
    offset, place = varint(handle, 0)
    size, _ = varint(handle, place)
    # A byte for the compression and four for a checksum follow.
    if offset + size + 5 > len(content):
        raise ValueError("a block of the index that reaches beyond its end")
    block, kind = content[offset : offset + size], content[offset + size]
    if kind not in (_PLAIN, _SNAPPY):
        raise ValueError(f"a block of the index with compression {kind}")
    if kind == _SNAPPY:
        block = unpack_snappy(block, room[0])
    room[0] -= len(block)
    if room[0] < 0 or len(block) < 4:
        raise ValueError("blocks of the index of no sensible size")
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")
    place, key = 0, b""
    while place < end:
        shared, place = varint(block, place)
        own, place = varint(block, place)
        length, place = varint(block, place)
        if shared > len(key) or shared + own > MAX_NAME or place + own + length > end:
            raise ValueError("an entry of the index that reaches beyond its block")
        key = key[:shared] + block[place : place + own]
        yield key, block[place + own : place + own + length]
        place += own + length


def unpack_snappy(data: bytes, limit: int) -> bytes:
    """Returns what Snappy has compressed, of at most `limit` bytes."""
    size, place = varint(data, 0)
    if size > limit:
        raise ValueError(f"refused: a block that unpacks to {size} bytes")
    made = bytearray()
    while place < len(data):
        tag = data[place]
        place += 1
        if tag & 3 == 0:
            length = (tag >> 2) + 1
            if length > 60:
                width = length - 60
                length = int.from_bytes(data[place : place + width], "little") + 1
                place += width
            if place + length > len(data) or len(made) + length > size:
                raise ValueError("a block that is cut")
            made += data[place : place + length]
            place += length
        else:
            width = (1, 2, 4)[(tag & 3) - 1]
            length = (tag >> 2) + 1 if tag & 3 > 1 else (tag >> 2 & 7) + 4
            high = tag >> 5 << 8 if tag & 3 == 1 else 0
            back = high | int.from_bytes(data[place : place + width], "little")
            place += width
            if not 0 < back <= len(made) or len(made) + length > size:
                raise ValueError("a block with a copy from outside itself")
            part = bytes(made[-back:][:length])
            made += (part * (length // len(part) + 1))[:length]
    if len(made) != size:
        raise ValueError(f"a block of {size} bytes that unpacks to {len(made)}")
    return bytes(made)


def fields_of(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yields (number, value) of the fields of a protocol buffer: integers, or bytes."""
    place = 0
    while place < len(data):
        tag, place = varint(data, place)
        kind = tag & 7
        if kind == 0:
            value, place = varint(data, place)
            yield tag >> 3, value
            continue
        length = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            length, place = varint(data, place)
        if length is None or place + length > len(data):
            raise ValueError("a protocol buffer that is cut or damaged")
        yield tag >> 3, data[place : place + length]
        place += length


def message(data: Any) -> dict[int, list[Any]]:
    """Returns the fields of a protocol buffer by number."""
    if not isinstance(data, bytes):
        raise ValueError("a number in place of a protocol buffer")
    fields: dict[int, list[Any]] = {}
    for number, value in fields_of(data):
        fields.setdefault(number, []).append(value)
    return fields


def value_of(fields: dict[int, list[Any]], number: int, default: Any) -> Any:
    """Returns a field, of the type that its default has."""
    value = fields.get(number, [default])[0]
    if not isinstance(value, type(default)):
        raise ValueError("a field of another type in a protocol buffer")
    return value


def string_of(fields: dict[int, list[Any]], number: int) -> str:
    """Returns a field that is text."""
    text = value_of(fields, number, b"").decode("utf-8", "replace")
    if len(text) > MAX_NAME:
        raise ValueError(f"a name of {len(text)} characters: {text[:40]!r}…")
    return text


def varint(data: bytes, place: int) -> tuple[int, int]:
    """Returns a number of seven bits a byte, and the place behind it."""
    number = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise ValueError("a number that is cut or too large")
        number |= (data[place] & 0x7F) << shift
        place += 1
        if data[place - 1] < 0x80:
            return number, place
        shift += 7
