"""The files of a run directory other than its checkpoints, each written whole or not at all."""

import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

CONFIG = "config.json"
PROVENANCE = "provenance.json"
LAYERS = "layers.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
CONSISTENCY = "consistency.json"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "kernsym-jax")


def is_run(path: pathlib.Path) -> bool:
    """Returns whether a folder is a run directory, finished or not.

    Args:
      path: the folder.
    """
    return (path / CONFIG).is_file() and (
        (path / CHECKPOINTS).is_dir() or (path / PROVENANCE).is_file()
    )


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file in one go.

    Args:
      path: the file.
      value: of JSON types; a float that is not finite becomes null.
    """
    write_text(path, json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file in one go: a reader sees the old file or the new one, never half of it.

    Raises:
      OSError: naming the file, if that is not possible; the old one stays.
    """
    # In the same folder, since only there does a rename replace the file in one operation.
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
    """Reads a JSON file of a run.

    Raises:
      FileNotFoundError: if it is not there.
      ValueError: if it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path.parent}: no {path.name} there, not a run directory or a half-written one"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, without a last line that was cut off while written."""
    path = workdir / METRICS
    lines = []
    if path.exists():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(True), 1):
            if not line.endswith("\n"):
                break
            try:
                lines.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not valid JSON ({error})") from error
    return lines


def finite(value: Any) -> Any:
    """The value with every float that is not finite replaced by ``None``, which JSON can say."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def add_session(workdir: pathlib.Path, **facts: Any) -> None:
    """Adds to ``provenance.json`` who computes what from here on, with what and where.

    Args:
      workdir: the run directory.
      **facts: what else to record, of JSON types.
    """
    import jax

    path = workdir / PROVENANCE
    record = read_json(path) if path.exists() else {"sessions": []}
    record["sessions"].append(
        {
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
    )
    write_json(path, record)


def _versions() -> Iterator[tuple[str, str]]:
    for library in _LIBRARIES:
        try:
            yield library, importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue


def _git_revision() -> str | None:
    """The revision of the code if it runs from a checkout, marked if the checkout was changed."""
    folder = pathlib.Path(__file__).parent
    try:
        describe = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return describe.stdout.strip()
