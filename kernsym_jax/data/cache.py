"""Decoded images kept on disk, so that the next run need not decode them again."""

import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import time
import zlib

import numpy as np
from absl import logging

from kernsym_jax.data.encoded_set import Decoded, EncodedSet, decode_all
from kernsym_jax.data.image_set import ImageSet
from kernsym_jax.data.picture import View

VARIABLE = "KERNSYM_JAX_CACHE"
"""Environment variable with the cache's folder; set but empty, nothing is cached."""

WORTH_SECONDS = 1.0
"""Sets that took less time to decode are not cached."""

_FORMAT = 1
_ABOUT = "about.json"
_ARRAYS = ("images", "labels")


def place() -> pathlib.Path | None:
    """The cache's folder: of the user, unless `VARIABLE` names another; ``None`` for none."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return pathlib.Path(named).expanduser() if named else None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "kernsym_jax"


def decoded(
    encoded: EncodedSet, view: View, on_broken: str, worth_seconds: float = WORTH_SECONDS
) -> Decoded:
    """What `decode_all` gives, from the cache if it is there.

    An entry is of these very files (their names, sizes and times of change) and options. One that
    is damaged is made anew; a cache that cannot be written is a warning.

    Args:
      encoded: the set.
      view: what is done to every image.
      on_broken: ``fail`` or ``skip``.
      worth_seconds: the time to decode from which the result is kept.

    Returns:
      The images, mapped from the file if they come from the cache.

    Raises:
      ValueError: as `decode_all` does.
    """
    entry = _entry(encoded, view, on_broken)
    found = lookup(encoded, view, on_broken)
    if found is not None or entry is None:
        return found or decode_all(encoded, view, on_broken)
    started = time.monotonic()
    result = decode_all(encoded, view, on_broken)
    if time.monotonic() - started >= worth_seconds:
        try:
            _write(entry, encoded.place, result)
        except OSError as error:
            logging.warning("%s: not cached (%s)", encoded.place, error)
    return result


def lookup(encoded: EncodedSet, view: View, on_broken: str) -> Decoded | None:
    """What the cache has of these very files and options; ``None`` if nothing, or damaged."""
    entry = _entry(encoded, view, on_broken)
    if entry is None or not entry.is_dir():
        return None
    try:
        return _read(entry)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        logging.warning("%s: damaged, decoded anew (%s)", entry, error)
        return None


def _entry(encoded: EncodedSet, view: View, on_broken: str) -> pathlib.Path | None:
    cache = place()
    if cache is None:
        return None
    import PIL

    # Of one set and its options there is one entry, that of its newest files.
    masks = [] if encoded.coding is None else [encoded.coding]
    subject = _digest(_FORMAT, PIL.__version__, encoded.place, view, on_broken, *masks)
    return cache / f"{subject}-{_digest(encoded.identity())}"


def _read(entry: pathlib.Path) -> Decoded:
    about = json.loads((entry / _ABOUT).read_text(encoding="utf-8"))
    arrays = {}
    for name in _ARRAYS:
        array = np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        if _checksum(array) != about["checksums"][name]:
            raise ValueError(f"{name} are not what was written")
        arrays[name] = array
    labels = arrays["labels"]
    if labels.ndim == 1:
        labels = np.array(labels)
    images = ImageSet(arrays["images"], labels, tuple(about["classes"]))
    return Decoded(images, tuple(about["skipped"]))


def _write(entry: pathlib.Path, source: str, result: Decoded) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and then renamed: whoever reads finds all of it or nothing.
    fresh = pathlib.Path(tempfile.mkdtemp(dir=entry.parent, prefix=".fresh-"))
    try:
        arrays = {"images": result.images.images, "labels": result.images.labels}
        for name, array in arrays.items():
            np.save(fresh / f"{name}.npy", array)
        about = {
            "source": source,
            "classes": result.images.classes,
            "skipped": result.skipped,
            "checksums": {name: _checksum(array) for name, array in arrays.items()},
        }
        (fresh / _ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        for old in entry.parent.glob(f"{entry.name.partition('-')[0]}-*"):
            shutil.rmtree(old, ignore_errors=True)
        try:
            fresh.rename(entry)
        except OSError:
            # Another process may have been faster, with the same images.
            if not entry.is_dir():
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]
