"""What a checkpoint holds, written beside it: the digest of every file, to tell damage by."""

import hashlib
import pathlib
from typing import Any

from kernsym_jax.run_directory import read_json, write_json

FILE = "manifest.json"


def write(folder: pathlib.Path, **facts: Any) -> None:
    """Writes the manifest of a checkpoint whose files are complete.

    Args:
      folder: of the checkpoint. What lies in its subfolders counts; what orbax still writes beside
        them at the end does not.
      **facts: what else to record, of JSON types.
    """
    digests = {str(file.relative_to(folder)): _digest(file) for file in _files(folder)}
    write_json(folder / FILE, {**facts, "sha256": digests})


def read(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of a checkpoint, empty if there is none that can be read."""
    try:
        manifest = read_json(folder / FILE)
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def damage(folder: pathlib.Path) -> str | None:
    """What is wrong with the files of a checkpoint, ``None`` if they are what was written."""
    expected = read(folder).get("sha256")
    if not isinstance(expected, dict) or not expected:
        return f"no {FILE} that tells what its files must be"
    found = {str(file.relative_to(folder)): file for file in _files(folder)}
    if missing := sorted(expected.keys() - found.keys()):
        return f"{missing[0]} is missing"
    for name, digest in expected.items():
        if _digest(found[name]) != digest:
            return f"{name} is not what was written"
    return None


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(file for file in folder.glob("*/**/*") if file.is_file())


def _digest(file: pathlib.Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
