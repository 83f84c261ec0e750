"""The console's width, text from files made safe to print, and the nearest word."""

import difflib
import os
import re
from collections.abc import Iterable
from typing import Any

PIPE_WIDTH = 200
"""Columns of a table that is not printed to a terminal."""


def console() -> Any:
    """Returns the rich console on which every binary prints its tables."""
    from rich.console import Console

    terminal = Console()
    # A pipe has no width of its own, and its reader wants every row on one line.
    return terminal if terminal.is_terminal else Console(width=PIPE_WIDTH)


def printable(text: str) -> str:
    """Returns the text with every character that controls a terminal replaced by its escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Returns the text without line breaks, and `printable`."""
    return printable(" ".join(text.split()))


def path_name(path: str | os.PathLike) -> str:
    """Returns a path as valid Unicode text, with escapes for other bytes in its name."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def nearest(word: str, known: Iterable[str], *, before: str = "") -> str:
    """Returns the end of an error message that offers the known word closest to an unknown one.

    Args:
      word: the unknown word.
      known: the words that would be right.
      before: text in front of the offered word, such as ``--``.

    Returns:
      ``"; did you mean 'digits'?"``, or nothing if no known word is close.
    """
    by_letters = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(word).lower(), by_letters, n=1)
    return f"; did you mean {before + by_letters[close[0]]!r}?" if close else ""


def input_size(text: str | None) -> int | tuple[int, int] | None:
    """Reads a flag that gives the pixels of images, one number or two as ``HxW``.

    Raises:
      ValueError: if it is neither.
    """
    if not re.fullmatch(r"([1-9]\d*(x[1-9]\d*)?)?", text or ""):
        raise ValueError(f"--input_size is one number, or two as HxW; got {text!r}")
    sizes = [int(number) for number in (text or "").split("x") if number]
    return (sizes[0], sizes[1]) if len(sizes) == 2 else sizes[0] if sizes else None
