"""The files of a run directory: their names, and how each is written, read and checked.

A run directory holds ``config.json``, ``provenance.json``, ``layers.json``, ``metrics.jsonl``,
``summary.json``, ``consistency.json`` and the folders ``checkpoints`` and ``tensorboard``. Every
function here takes the directory, not a file in it. JSON files are replaced in one operation:
a reader sees the old file or the new one. Every ``read_`` function checks what it reads, and raises
one `ValueError` that names the file and the key if the file is damaged.
"""

import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kernsym_jax.cli import path_name

CONFIG = "config.json"
PROVENANCE = "provenance.json"
LAYERS = "layers.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
CONSISTENCY = "consistency.json"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
POPULATION = "population.json"

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "kernsym-jax")
# More than any JSON file of a run has; a larger one is not read into memory.
_MAX_BYTES = 64 << 20
# Characters of a wrong value that an error message shows.
_SHOWN = 80


class _Kind(NamedTuple):
    """What a value has to be, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _list_of(words: str, fits: Callable[[Any], bool]) -> _Kind:
    return _Kind(
        f"a list of {words}", lambda value: isinstance(value, list) and all(map(fits, value))
    )


def _or_null(kind: _Kind) -> _Kind:
    return _Kind(f"{kind.words} or null", lambda value: value is None or kind.fits(value))


_OBJECT = _Kind("an object", lambda value: isinstance(value, dict))
_TEXT = _Kind("text", lambda value: isinstance(value, str))
_INT = _Kind("a whole number", _is_int)
_NUMBER = _Kind("a number", _is_number)
_NUMBERS = _list_of("numbers", _is_number)
_TEXTS = _list_of("texts", _TEXT.fits)
_OBJECTS = _list_of("objects", _OBJECT.fits)


class _File(NamedTuple):
    """The check of one file: the error's words, the keys that it must have and those it may have.

    Keys are dotted paths, such as ``model.name``.
    """

    problem: str
    required: Mapping[str, _Kind]
    optional: Mapping[str, _Kind] = {}


_CONFIG_FILE = _File(
    "not the config of a run",
    {"model": _OBJECT, "model.name": _TEXT},
    {
        "seed": _INT,
        "model.num_classes": _INT,
        "data": _OBJECT,
        "data.source": _TEXT,
        "data.mean": _NUMBERS,
        "data.std": _NUMBERS,
        "class_weights": _NUMBERS,
    },
)
_PROVENANCE_FILE = _File("not the provenance of a run", {"sessions": _OBJECTS})
_SESSION = _File(
    "not the provenance of a run",
    {
        "python": _TEXT,
        "versions": _OBJECT,
        "git_revision": _or_null(_TEXT),
        "platform": _TEXT,
        "devices": _TEXTS,
    },
)
_LAYER = _File("no list of layers", {"layer": _TEXT})
_LINE = _File("not a line of a run's metrics", {"step": _INT, "split": _TEXT})
_SYMMETRY_LINE = _File(_LINE.problem, {"layers": _OBJECT})
_LAYER_SCORE = _File(_LINE.problem, {"score": _or_null(_NUMBER)})
_SUMMARY_FILE = _File("not the summary of a run", {}, {"step": _or_null(_INT)})
_CONSISTENCY_FILE = _File(
    "not an evaluation",
    {"settings": _OBJECT},
    {
        "images": _INT,
        "accuracy": _OBJECT,
        "mean_iou": _OBJECT,
        "shift_consistency": _OBJECT,
        "shift_consistency.settings": _OBJECT,
        "flip_consistency": _OBJECT,
    },
)


def is_run(path: str | os.PathLike) -> bool:
    """Returns whether a folder is a run directory.

    Other programs also write a ``config.json`` beside weights. A run directory has another of its
    own files too, from the moment that training has begun.

    Args:
      path: any path; it need not exist.
    """
    path = pathlib.Path(path)
    others = (PROVENANCE, LAYERS, CHECKPOINTS)
    return has_config(path) and any((path / name).exists() for name in others)


def is_population(path: pathlib.Path) -> bool:
    """Returns whether a folder holds the run directories of a population of several seeds."""
    return (path / POPULATION).exists()


def run_of(path: str | os.PathLike) -> pathlib.Path | None:
    """Returns the run directory that a path is, or of which it is one checkpoint; else None."""
    path = pathlib.Path(path)
    if is_run(path):
        return path
    folder = path.parent
    return folder.parent if folder.name == CHECKPOINTS and is_run(folder.parent) else None


def has_config(workdir: pathlib.Path) -> bool:
    """Returns whether there is a ``config.json``, the first file that training writes."""
    return (workdir / CONFIG).exists()


def has_ended(workdir: pathlib.Path) -> bool:
    """Returns whether there is a ``summary.json``, the last file that training writes."""
    return (workdir / SUMMARY).exists()


def runs_below(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the directories of all runs that have ended, at any depth, in the order of names."""
    found = sorted(path.parent for path in folder.glob(f"**/{SUMMARY}"))
    return [path for path in found if is_run(path)]


def read_config(workdir: pathlib.Path, *keys: str) -> dict[str, Any]:
    """Reads ``config.json``.

    Args:
      workdir: the run directory.
      *keys: dotted keys that the caller needs besides ``model.name``, such as ``data.mean``.

    Returns:
      The config; ``config["model"]`` holds the arguments of `models.create`.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is damaged or lacks a key.
    """
    value = _read(workdir / CONFIG, _CONFIG_FILE)
    needed = {key: _CONFIG_FILE.optional[key] for key in keys}
    _check(value, workdir / CONFIG, _CONFIG_FILE._replace(required=needed))
    return value


def write_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Writes ``config.json``, given the complete config as plain values."""
    write_json(workdir / CONFIG, config)


def read_layers(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Reads ``layers.json``.

    Returns:
      The convolutions and poolings in forward order, each with its name under ``layer``;
      `geometry.LayerGeometry.from_dict` checks the rest.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is damaged.
    """
    path = workdir / LAYERS
    rows = _read(path, _LAYER._replace(required={}), list)
    for number, row in enumerate(rows):
        _check(row, path, _LAYER, f"[{number}]")
    return rows


def write_layers(workdir: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes ``layers.json``, given a row for each convolution and pooling in forward order."""
    write_json(workdir / LAYERS, rows)


def read_summary(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads ``summary.json``.

    Returns:
      The final figures by name.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is damaged.
    """
    return _read(workdir / SUMMARY, _SUMMARY_FILE)


def write_summary(workdir: pathlib.Path, summary: Mapping[str, Any]) -> None:
    """Writes ``summary.json``; a run without it counts as unfinished."""
    write_json(workdir / SUMMARY, summary)


def read_consistency(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads ``consistency.json``.

    Args:
      workdir: the run directory, or the folder of a file of weights that was evaluated.

    Returns:
      The results of an evaluation with their ``settings``.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is damaged.
    """
    return _read(workdir / CONSISTENCY, _CONSISTENCY_FILE)


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Reads ``metrics.jsonl``.

    Returns:
      Its lines in order, each with ``step`` and ``split``; [] if there is no such file. A last line
      without its end is left out: the process was killed while it wrote that line.

    Raises:
      ValueError: naming the line, if the file is damaged.
    """
    path = workdir / METRICS
    if not path.exists():
        return []
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path_name(path)}: {_LINE.problem} ({error.strerror})") from error
    lines = []
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        where = f"{path_name(path)}, line {number}"
        figures = _parse(line, where, _LINE.problem)
        _check(figures, where, _LINE)
        if figures["split"] == "symmetry":
            _check(figures, where, _SYMMETRY_LINE)
            for layer, row in figures["layers"].items():
                _check(row, where, _LAYER_SCORE, f"layers.{layer}")
        lines.append(figures)
    return lines


def cut_metrics(workdir: pathlib.Path, step: int) -> list[dict[str, Any]]:
    """Removes from ``metrics.jsonl`` what was written after a step.

    A run that resumes at an earlier step writes those lines again.

    Args:
      workdir: the run directory.
      step: completed steps.

    Returns:
      The lines that stay.

    Raises:
      ValueError: naming the line, if the file is damaged.
    """
    lines = [line for line in read_metrics(workdir) if line["step"] <= step]
    write_text(workdir / METRICS, "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def read_provenance(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Reads ``provenance.json``.

    Returns:
      The sessions in order: each with its command, library versions, git revision and devices.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is damaged.
    """
    path = workdir / PROVENANCE
    sessions = _read(path, _PROVENANCE_FILE)["sessions"]
    for number, session in enumerate(sessions):
        _check(session, path, _SESSION, f"sessions[{number}]")
    return sessions


def add_session(workdir: pathlib.Path, **facts: Any) -> None:
    """Adds a session to ``provenance.json``: command, library versions, git revision, devices.

    Args:
      workdir: the run directory.
      **facts: further facts to record, of JSON types.
    """
    import jax

    earlier = read_provenance(workdir) if (workdir / PROVENANCE).exists() else []
    session = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": sys.version.split()[0],
        "versions": dict(_versions()),
        "git_revision": _git_revision(),
        "platform": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        **facts,
    }
    write_json(workdir / PROVENANCE, {"sessions": [*earlier, session]})


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
    """Writes a file in one operation: a reader sees the old file or the new one, never a part.

    Raises:
      OSError: naming the file, if it cannot be written; the old one stays.
    """
    # In the same folder, because only there a rename replaces the file in one operation.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        pathlib.Path(name).unlink(missing_ok=True)


def read_json(path: pathlib.Path) -> Any:
    """Reads any JSON file.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: naming the file, if it is not JSON.
    """
    return _parse(_read_bytes(path, "not a file of JSON"), path_name(path), "not a file of JSON")


def finite(value: Any) -> Any:
    """Returns the value with ``None`` in place of every float that is not finite.

    JSON has no word for infinity and NaN.
    """
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _read(path: pathlib.Path, file: _File, kind: type = dict) -> Any:
    """Reads and checks a JSON file whose outermost value is an object or a list."""
    value = _parse(_read_bytes(path, file.problem), path_name(path), file.problem)
    if kind is list:
        if not isinstance(value, list):
            raise ValueError(f"{path_name(path)}: {file.problem} (got {_shown(value)})")
        return value
    _check(value, path, file)
    return value


def _read_bytes(path: pathlib.Path, problem: str) -> bytes:
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ValueError(
                f"{path_name(path)}: {problem} ({size} bytes, wanted {_MAX_BYTES} at most)"
            )
        return path.read_bytes()
    except FileNotFoundError:
        where = path_name(path.parent)
        raise FileNotFoundError(
            f"{where}: no {path.name} there, not a run directory or a half-written one"
        ) from None
    except OSError as error:
        raise ValueError(f"{path_name(path)}: {problem} ({error.strerror})") from error


def _parse(content: bytes, where: str, problem: str) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{where}: {problem} (nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"{where}: {problem} (not valid JSON: {error})") from error


def _check(value: Any, where: pathlib.Path | str, file: _File, part: str = "") -> None:
    """Raises `ValueError`, naming the first key that is missing or of the wrong kind.

    Args:
      value: the parsed file, or a part of it.
      where: the file, as a path or as text with a line number.
      file: what the value has to be.
      part: the key of the part in the file; empty for the whole file.
    """
    if isinstance(where, pathlib.Path):
        where = path_name(where)
    if not isinstance(value, dict):
        found = f"{part} is" if part else "got"
        raise ValueError(f"{where}: {file.problem} ({found} {_shown(value)}, wanted an object)")
    for keys, needed in ((file.required, True), (file.optional, False)):
        for key, kind in keys.items():
            found, name = _look_up(value, key), f"{part}.{key}" if part else key
            if found is _MISSING:
                if needed:
                    raise ValueError(f"{where}: {file.problem} ({name} is missing)")
            elif not kind.fits(found):
                raise ValueError(
                    f"{where}: {file.problem} ({name} is {_shown(found)}, wanted {kind.words})"
                )


_MISSING = object()


def _look_up(value: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        return "a deeply nested value"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _versions() -> Iterator[tuple[str, str]]:
    for library in _LIBRARIES:
        try:
            yield library, importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue


def _git_revision() -> str | None:
    """Returns the revision of the checkout that the code runs from, marked if it was changed."""
    folder = pathlib.Path(__file__).parent
    try:
        describe = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return describe.stdout.strip()
