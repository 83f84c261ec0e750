"""The files of a run directory: their names, and how each is written, read and checked.

A run directory holds ``config.json``, ``provenance.json``, ``layers.json``, ``metrics.jsonl``,
``summary.json``, ``consistency.json`` and the folders ``checkpoints`` and ``tensorboard``. Every
function here takes the directory, not a file in it. Every ``read_`` function checks the file, and
raises one `ValueError` that names the file and the key if the file is damaged.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from kernsym_jax.cli import path_name
from kernsym_jax.json_file import (
    INT,
    NUMBER,
    NUMBERS,
    OBJECT,
    OBJECTS,
    TEXT,
    TEXTS,
    Form,
    check,
    or_null,
    parse,
    read_json,
    shown,
    write_json,
    write_text,
)

CONFIG = "config.json"
PROVENANCE = "provenance.json"
LAYERS = "layers.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
CONSISTENCY = "consistency.json"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
POPULATION = "population.json"
UNREADABLE = "unreadable"
"""Folder for damaged files and checkpoints that the run writes again."""

LOCK = ".lock"
"""Lock of the process that writes a run, a population or a study, see `kernsym_jax.lock`."""

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "kernsym-jax")

_DATA_INTS = ("data.seed", "data.rotate", "data.image_size", "data.crop_size")
_DATA_LISTS = ("data.scale_to", "data.void", "data.mask_values")
_CONFIG_FORM = Form(
    "not the config of a run",
    {"model": OBJECT, "model.name": TEXT},
    {
        "seed": INT,
        "model.num_classes": INT,
        "data": OBJECT,
        "data.source": TEXT,
        "data.mean": NUMBERS,
        "data.std": NUMBERS,
        **dict.fromkeys(_DATA_INTS, INT),
        **dict.fromkeys(_DATA_LISTS, NUMBERS),
        "data.on_broken": TEXT,
        "data.classes": TEXTS,
        "class_weights": NUMBERS,
    },
)
_PROVENANCE_FORM = Form("not the provenance of a run", {"sessions": OBJECTS})
_SESSION = Form(
    "not the provenance of a run",
    {
        "python": TEXT,
        "versions": OBJECT,
        "git_revision": or_null(TEXT),
        "platform": TEXT,
        "devices": TEXTS,
    },
)
_LAYER = Form("no list of layers", {"layer": TEXT})
_LINE = Form("not a line of a run's metrics", {"step": INT, "split": TEXT})
_FIGURE = or_null(NUMBER)
# Last words of the names of what is no figure, in the metrics and the summary.
_KINDS = {"split": TEXT, "mode": TEXT, "layers": OBJECT, "flips": OBJECT, "members": OBJECT}
_SYMMETRY_LINE = Form(_LINE.problem, {"layers": OBJECT})
_LAYER_SCORE = Form(_LINE.problem, {"score": _FIGURE})
_SUMMARY_FORM = Form("not the summary of a run", {}, {"step": or_null(INT)})
_CONSISTENCY_FORM = Form(
    "not an evaluation",
    {"settings": OBJECT},
    {
        "images": INT,
        "accuracy": OBJECT,
        "mean_iou": OBJECT,
        "shift_consistency": OBJECT,
        "shift_consistency.settings": OBJECT,
        "flip_consistency": OBJECT,
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


def is_vacant(workdir: pathlib.Path) -> bool:
    """Returns whether a folder holds nothing but what a process killed at its start leaves.

    Args:
      workdir: an existing folder.
    """
    leftovers = (f".{CONFIG}.", f".{POPULATION}.")
    names = [path.name for path in workdir.iterdir()]
    return all(name == LOCK or name.startswith(leftovers) for name in names)


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
    needed = {key: _CONFIG_FORM.optional[key] for key in keys}
    required = {**_CONFIG_FORM.required, **needed}
    return _read_object(workdir / CONFIG, _CONFIG_FORM._replace(required=required))


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
    rows = _read(path, _LAYER.problem)
    if not isinstance(rows, list):
        raise ValueError(f"{path_name(path)}: {_LAYER.problem} (got {shown(rows)})")
    for number, row in enumerate(rows):
        check(row, path_name(path), _LAYER, f"[{number}]")
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
    path = workdir / SUMMARY
    summary = _read_object(path, _SUMMARY_FORM)
    _check_figures(summary, path_name(path), _SUMMARY_FORM.problem)
    return summary


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
    return _read_object(workdir / CONSISTENCY, _CONSISTENCY_FORM)


class Metrics(NamedTuple):
    """The lines of ``metrics.jsonl`` up to the first damaged one.

    Attributes:
      lines: the lines, each with ``step`` and ``split``.
      cut: whether half a line follows, as a process leaves it that is killed while it writes.
      damage: the error that names the first damaged line and its key; None without one.
    """

    lines: list[dict[str, Any]]
    cut: bool
    damage: str | None


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Reads ``metrics.jsonl``.

    Returns:
      Its lines in order, each with ``step`` and ``split``; [] if there is no such file. A last line
      without its end is left out: the process was killed while it wrote that line.

    Raises:
      ValueError: naming the line, if the file is damaged.
    """
    found = scan_metrics(workdir)
    if found.damage is not None:
        raise ValueError(found.damage)
    return found.lines


def scan_metrics(workdir: pathlib.Path) -> Metrics:
    """Reads ``metrics.jsonl`` as far as it is whole.

    Raises:
      ValueError: if it is no file, or cannot be read at all.
    """
    path = workdir / METRICS
    if not path.exists():
        return Metrics([], cut=False, damage=None)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path_name(path)}: {_LINE.problem} ({error.strerror})") from error
    lines: list[dict[str, Any]] = []
    *whole, rest = content.split(b"\n")
    for number, line in enumerate(whole, 1):
        try:
            lines.append(_metrics_line(line, f"{path_name(path)}, line {number}"))
        except ValueError as error:
            return Metrics(lines, cut=False, damage=str(error))
    return Metrics(lines, cut=bool(rest), damage=None)


def _metrics_line(line: bytes, where: str) -> dict[str, Any]:
    figures = parse(line, where, _LINE.problem)
    check(figures, where, _LINE)
    if figures["split"] == "symmetry":
        check(figures, where, _SYMMETRY_LINE)
        for layer, row in figures["layers"].items():
            check(row, where, _LAYER_SCORE, f"layers.{layer}")
    _check_figures(figures, where, _LINE.problem)
    return figures


def _check_figures(figures: Mapping[str, Any], where: str, problem: str) -> None:
    kinds = {name: _KINDS.get(name.rpartition("_")[2], _FIGURE) for name in figures}
    check(figures, where, Form(problem, {}, kinds))


def cut_metrics(workdir: pathlib.Path, step: int) -> list[dict[str, Any]]:
    """Removes from ``metrics.jsonl`` what was written after a step, and what is damaged.

    A run that resumes at an earlier step writes those lines again.

    Args:
      workdir: the run directory.
      step: completed steps.

    Returns:
      The lines that stay.

    Raises:
      ValueError: if it is no file.
    """
    lines = [line for line in scan_metrics(workdir).lines if line["step"] <= step]
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
    sessions = _read_object(path, _PROVENANCE_FORM)["sessions"]
    for number, session in enumerate(sessions):
        check(session, path_name(path), _SESSION, f"sessions[{number}]")
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


def set_aside_damaged(workdir: pathlib.Path) -> None:
    """Moves away, with a warning, damaged files that a run writes again when it goes on."""
    readers: dict[str, Callable[[pathlib.Path], Any]] = {
        LAYERS: read_layers,
        PROVENANCE: read_provenance,
        SUMMARY: read_summary,
    }
    for name, read in readers.items():
        try:
            read(workdir)
        except FileNotFoundError:
            continue
        except ValueError as error:
            _set_aside(workdir / name, str(error))
    events = workdir / TENSORBOARD
    if os.path.lexists(events) and not events.is_dir():
        _set_aside(events, f"{path_name(events)}: wanted a folder")


def _set_aside(path: pathlib.Path, reason: str) -> None:
    aside = path.parent / UNREADABLE
    aside.mkdir(exist_ok=True)
    earlier = [found.name for found in aside.glob(f"{path.name}*")]
    path.rename(aside / f"{path.name}.{len(earlier)}")
    logging.warning("%s; it is moved to %s and written again", reason, path_name(aside))


def _read(path: pathlib.Path, problem: str) -> Any:
    try:
        return read_json(path, problem)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}, not a run directory or a half-written one") from None


def _read_object(path: pathlib.Path, form: Form) -> dict[str, Any]:
    value = _read(path, form.problem)
    check(value, path_name(path), form)
    return value


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
