"""JSON files: each is replaced in one operation, and checked when it is read.

A reader sees the old file or the new one, never a part. A `Form` says which keys a file must have,
and of which kind; a file of another form is one `ValueError` that names the file and the key.
"""

import json
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kernsym_jax.cli import path_name

# More than any JSON file of a run has; a larger one is not read into memory.
_MAX_BYTES = 64 << 20
# Characters of a wrong value that an error message shows.
_SHOWN = 80
_MISSING = object()


class Kind(NamedTuple):
    """The kind of a value, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


class Form(NamedTuple):
    """The form of an object in a file.

    Attributes:
      problem: the error of another form in words, such as ``not the config of a run``.
      required: keys that the object must have, as dotted paths such as ``model.name``.
      optional: keys that the object may have.
    """

    problem: str
    required: Mapping[str, Kind]
    optional: Mapping[str, Kind] = {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _list_of(words: str, fits: Callable[[Any], bool]) -> Kind:
    return Kind(
        f"a list of {words}", lambda value: isinstance(value, list) and all(map(fits, value))
    )


OBJECT = Kind("an object", lambda value: isinstance(value, dict))
TEXT = Kind("text", lambda value: isinstance(value, str))
INT = Kind("a whole number", _is_int)
NUMBER = Kind("a number", _is_number)
NUMBERS = _list_of("numbers", _is_number)
TEXTS = _list_of("texts", TEXT.fits)
OBJECTS = _list_of("objects", OBJECT.fits)


def or_null(kind: Kind) -> Kind:
    """Returns the kind of a value that may also be null."""
    return Kind(f"{kind.words} or null", lambda value: value is None or kind.fits(value))


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file in one operation.

    Args:
      path: the file.
      value: of JSON types; a float that is not finite becomes null.

    Raises:
      OSError: naming the file, if it cannot be written; the old one stays.
    """
    write_text(path, json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file in one operation.

    Raises:
      OSError: naming the file, if it cannot be written; the old one stays.
    """
    try:
        # In the same folder, because only there a rename replaces the file in one operation.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        pathlib.Path(name).unlink(missing_ok=True)


def read_json(path: pathlib.Path, problem: str = "not a file of JSON") -> Any:
    """Reads a JSON file.

    Args:
      path: the file.
      problem: the error of another file in words.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: naming the file, if it is not JSON, too large, or no file.
    """
    where = path_name(path)
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ValueError(f"{where}: {problem} ({size} bytes, wanted {_MAX_BYTES} at most)")
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path_name(path.parent)}: no {path.name} there") from None
    except OSError as error:
        raise ValueError(f"{where}: {problem} ({error.strerror})") from error
    return parse(content, where, problem)


def parse(content: bytes, where: str, problem: str) -> Any:
    """Parses JSON.

    Args:
      content: UTF-8.
      where: the file, perhaps with a line number.
      problem: the error of other content in words.

    Raises:
      ValueError: naming the file, if it is not JSON.
    """
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{where}: {problem} (nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"{where}: {problem} (not valid JSON: {error})") from error


def check(value: Any, where: str, form: Form, part: str = "") -> None:
    """Raises `ValueError`, naming the first key that is missing or of the wrong kind.

    Args:
      value: the parsed file, or an object in it.
      where: the file, perhaps with a line number.
      form: the form that the value has to have.
      part: the key of the value in the file; empty for the whole file.
    """
    if not isinstance(value, dict):
        found = f"{part} is" if part else "got"
        raise ValueError(f"{where}: {form.problem} ({found} {shown(value)}, wanted an object)")
    for key in (*form.required, *form.optional):
        kind = form.required.get(key) or form.optional[key]
        found, name = _look_up(value, key), f"{part}.{key}" if part else key
        if found is _MISSING:
            if key in form.required:
                raise ValueError(f"{where}: {form.problem} ({name} is missing)")
        elif not kind.fits(found):
            raise ValueError(
                f"{where}: {form.problem} ({name} is {shown(found)}, wanted {kind.words})"
            )


def finite(value: Any) -> Any:
    """Returns the value with None in place of every float that is not finite.

    JSON has no word for infinity and NaN.
    """
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def shown(value: Any) -> str:
    """Returns a parsed value as JSON, cut to a length that fits an error message."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "a deeply nested value"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _look_up(value: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return _MISSING
        value = value[part]
    return value
