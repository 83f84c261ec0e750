"""JSON out of a file, of a size that a listing of arrays can have."""

import json
from collections.abc import Callable
from typing import Any

MAX_BYTES = 32 << 20


def parse(content: bytes | str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parses JSON.

    Args:
      content: UTF-8, or text.
      pairs: makes an object of its (name, value) pairs.

    Raises:
      ValueError: if it is no JSON, or larger than any listing of arrays.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"{len(content)} bytes of JSON, where at most {MAX_BYTES} are expected")
    return json.loads(content, object_pairs_hook=pairs)
