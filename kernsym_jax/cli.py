"""The start and the end of every binary, its console, and text from files made safe to print."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

BAD_INPUT = 2
PREEMPTED = 75
PIPE_WIDTH = 200
"""Columns of a table that is not printed to a terminal."""


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Parses the flags, calls ``main(argv)`` and exits with its status.

    Args:
      main: takes the positional arguments (the program's name first) and returns an exit status,
        ``None`` for 0.

    Raises:
      SystemExit: always; status 2 with one line on stderr for bad usage, and for any ``ValueError``
        or ``OSError`` from ``main``, which in this project mean unusable input.
        ``--verbosity=1`` shows the traceback instead.
    """
    flags.FLAGS.set_gnu_getopt(True)

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        # Parsing the flags runs the config file and checks its overrides, so any error is the
        # user's.
        except Exception as error:
            fail(describe(error))

    def guarded(argv: Sequence[str]) -> int | None:
        if not flags.FLAGS["verbosity"].present:
            # Libraries report each of their steps at the level INFO.
            logging.set_verbosity(logging.WARNING)
        try:
            return main(argv)
        except (ValueError, OSError) as error:
            if flags.FLAGS.verbosity >= 1:
                raise
            fail(describe(error))

    app.run(guarded, flags_parser=parse)


def describe(error: BaseException) -> str:
    """Returns the error as one line."""
    text = f"unknown key {error}" if isinstance(error, KeyError | AttributeError) else str(error)
    return one_line(text) or type(error).__name__


def input_size(text: str | None) -> int | tuple[int, int] | None:
    """Reads a flag that gives the pixels of images, one number or two as ``HxW``.

    Raises:
      ValueError: if it is neither.
    """
    if not re.fullmatch(r"([1-9]\d*(x[1-9]\d*)?)?", text or ""):
        raise ValueError(f"--input_size is one number, or two as HxW; got {text!r}")
    sizes = [int(number) for number in (text or "").split("x") if number]
    return (sizes[0], sizes[1]) if len(sizes) == 2 else sizes[0] if sizes else None


def fail(message: str) -> NoReturn:
    """Prints one line on stderr and exits with status 2."""
    print(f"{sys.argv[0].rsplit('/', 1)[-1]}: {message}", file=sys.stderr)
    raise SystemExit(BAD_INPUT)


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
