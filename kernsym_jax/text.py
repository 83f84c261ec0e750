"""Text that comes out of files, made harmless for whoever shows it."""

import os


def printable(text: str) -> str:
    """The text with everything that a terminal would act on written out as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """The text without line breaks, and `printable`."""
    return printable(" ".join(text.split()))


def path_name(path: str | os.PathLike) -> str:
    """A path as text that every encoding of Unicode can hold, whatever bytes are in its name."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
