"""Files with cut, changed, moved, repeated and foreign bytes, read one after the other.

Run as a program for as long as wanted, it prints each that ends in anything but a clear error::

    python tests/support/damage.py --files=5000 --seed=1
"""

import argparse
import functools
import io
import itertools
import pathlib
import random
import shutil
import tarfile
import tempfile
import time

import numpy as np
from PIL import Image

from kernsym_jax import data, geometry, weights

# The HDF5 library crashes on damaged files, so a process of its own reads each of them. This takes
# ten times as long as reading in this process, where no limit hides what a reader does.
GUARDED = frozenset(("keras hdf5", "keras 3 keras", "keras 3 h5", "keras 3 weights.h5"))
SHARES = {
    "keras hdf5": 0.1,
    "keras 3 keras": 0.1,
    "keras 3 h5": 0.1,
    "keras 3 weights.h5": 0.1,
}

SECONDS = 5.0
"""The longest that reading a damaged file may take."""


# What a length may be changed to: none, one, more than the file has, more than any file has.
_LENGTHS = (0, 1, 0xFF, 0xFFFF, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


def damaged(content, rng, other=b""):
    """A damaged copy of a file's bytes.

    Args:
      content: the bytes.
      rng: decides what happens to them.
      other: the bytes of another file, of which the copy may get a part.
    """
    changed = bytearray(content)
    kind = rng.randrange(11)
    if kind == 0:
        return bytes(changed[: rng.randrange(len(changed))])
    if kind == 8:
        return _spliced(content, other or content, rng)
    if kind == 9:
        return _with_other_lengths(changed, rng)
    if kind == 10:
        return _with_repeats(content, rng)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = _place(len(changed), rng)
        length = rng.choice((1, 2, 4, 8, 64))
        if kind in (1, 2, 3):
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 4:
            changed[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 5:
            changed[place : place + length] = rng.choice((b"\x00", b"\xff")) * length
        elif kind == 6:
            del changed[place : place + length]
        else:
            source = _place(len(changed), rng)
            changed[place : place + length] = changed[source : source + length]
        if not changed:
            return b""
    return bytes(changed)


def _spliced(content, other, rng):
    """The beginning of one file and the end of another, or a part of the other in the middle."""
    place = _place(len(content), rng)
    start = _place(len(other), rng)
    if rng.randrange(2):
        return content[:place] + other[start:]
    part = other[start : start + rng.choice((8, 64, 1024))]
    return content[:place] + part + content[place + rng.choice((0, len(part))) :]


def _with_other_lengths(content, rng):
    """Bytes with small numbers, which are lengths and offsets as a rule, replaced by others."""
    order = rng.choice(("little", "big"))
    width = rng.choice((2, 4, 8))
    for _ in range(rng.choice((1, 1, 3))):
        for _ in range(50):
            place = _place(len(content), rng)
            number = int.from_bytes(content[place : place + width], order)
            if 0 < number <= 2 * len(content) and place + width <= len(content):
                near = number + rng.choice((-8, -1, 1, 8, len(content)))
                new = rng.choice((near, *_LENGTHS)) % (1 << 8 * width)
                content[place : place + width] = new.to_bytes(width, order)
                break
    return bytes(content)


def _with_repeats(content, rng):
    """A part, such as an entry of a directory, again and again where it is or at the end."""
    place, length = _place(len(content), rng), rng.choice((8, 46, 64, 200, 1024))
    part = content[place : place + length]
    where = rng.choice((place, len(content)))
    return content[:where] + part * rng.choice((1, 10, 1000)) + content[where:]


def _place(size, rng):
    # Headers and directories lie at the ends, values between them.
    near = min(size, 2048)
    return rng.choice((rng.randrange(size), rng.randrange(near), size - 1 - rng.randrange(near)))


def read_kernels(path, *, trusted=False):
    """Reads every kernel of a file of weights."""
    for kernel in weights.read(path, trusted=trusted).kernels.values():
        assert kernel.weight.shape == kernel.shape


def audit(path, *, trusted=False):
    """Audits a model of a format that keeps its graph."""
    for row in geometry.audit_file(path, 32, trusted=trusted):
        assert row.to_dict()["layer"]


def reader(name, read=read_kernels):
    """Returns the function that reads a format: in this process, unless its library may crash."""
    return functools.partial(read, trusted=name not in GUARDED)


def fault(path, read=read_kernels):
    """Returns what is wrong with the way in which a damaged file is read; None if nothing is."""
    start = time.monotonic()
    try:
        read(path)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        if "\n" in message or len(message) > 300 or str(path) not in message:
            return f"unclear message: {message[:300]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - start
    return f"took {seconds:.1f} s" if seconds > SECONDS else None


def read_images(path):
    """Reads the test images of an archive."""
    assert len(data.load(f"folder:{path}", "test").images)


def image_archives(folder):
    """Writes small archives of class folders: name -> path."""
    rng = np.random.default_rng(0)
    written = {}
    for name, mode in (("tar", "w"), ("tar.gz", "w:gz"), ("tar.xz", "w:xz")):
        written[name] = pathlib.Path(folder) / f"images.{name}"
        with tarfile.open(written[name], mode) as archive:
            for number in range(6):
                picture = io.BytesIO()
                pixels = rng.integers(0, 256, (5, 5, 3), np.uint8)
                Image.fromarray(pixels).save(picture, "png" if number % 2 else "jpeg")
                member = tarfile.TarInfo(f"test/{'ab'[number // 3]}/{number}.png")
                member.size = picture.tell()
                archive.addfile(member, io.BytesIO(picture.getvalue()))
    return written


def faults(source, count, seed, folder, read=read_kernels, other=b""):
    """Damages a file, or one file of a folder, again and again.

    Args:
      source: a file, or a folder with a checkpoint.
      count: number of damaged copies.
      seed: of the damage.
      folder: where to put the copies.
      read: the function that reads a copy.
      other: the bytes of another file, for splices.

    Returns:
      What went wrong, with the number of the copy.
    """
    found = []
    source = pathlib.Path(source)
    target = pathlib.Path(folder) / f"damaged-{source.name}"
    if source.is_dir():
        shutil.copytree(source, target)
    inside = sorted(file for file in target.rglob("*") if file.is_file() and file.stat().st_size)
    for number in range(count):
        rng = random.Random(f"{seed} {source.name} {number}")
        file = rng.choice(inside) if source.is_dir() else target
        content = file.read_bytes() if source.is_dir() else source.read_bytes()
        file.write_bytes(damaged(content, rng, other))
        problem = fault(target, read)
        if problem is not None:
            found.append(f"{source.name}, copy {number}: {problem}")
        if source.is_dir():
            file.write_bytes(content)
    return found


def main():
    """Damages files of every format and prints what went wrong."""
    import writers

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000, help="of each format")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sources = writers.write_all(folder)
        contents = [path.read_bytes() for path in sources.values() if path.is_file()]
        others = itertools.cycle(contents[1:] + contents[:1])
        for name, source in sources.items():
            share = SHARES.get(name, 1.0)
            count = int(arguments.files * share)
            read = reader(name)
            problems = faults(source, count, arguments.seed, folder, read, next(others))
            print(f"{name}: {len(problems)} problems", *problems, sep="\n  ", flush=True)
        for name in ("onnx", "tflite", "keras 3 keras", "keras 3 h5"):
            count = int(arguments.files * SHARES.get(name, 1.0))
            problems = faults(sources[name], count, arguments.seed, folder, reader(name, audit))
            print(f"{name}, audited: {len(problems)} problems", *problems, sep="\n  ", flush=True)
        for name, source in image_archives(folder).items():
            problems = faults(source, arguments.files, arguments.seed, folder, read_images)
            print(f"{name}: {len(problems)} problems", *problems, sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
