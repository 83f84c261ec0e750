"""Files with cut, changed, moved and repeated bytes, read one after the other.

Run as a program for as long as wanted, it prints each that ends in anything but a clear error::

    python tests/support/damage.py --files=5000 --seed=1
"""

import argparse
import functools
import pathlib
import random
import shutil
import tempfile
import time

from kernsym_jax import geometry, weights

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


def damaged(content, rng):
    """A damaged copy of a file's bytes."""
    data = bytearray(content)
    kind = rng.randrange(8)
    if kind == 0:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = _place(len(data), rng)
        length = rng.choice((1, 2, 4, 8, 64))
        if kind in (1, 2, 3):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 4:
            data[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 5:
            data[place : place + length] = rng.choice((b"\x00", b"\xff")) * length
        elif kind == 6:
            del data[place : place + length]
        else:
            source = _place(len(data), rng)
            data[place : place + length] = data[source : source + length]
        if not data:
            return b""
    return bytes(data)


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


def faults(source, count, seed, folder, read=read_kernels):
    """Damages a file, or one file of a folder, again and again.

    Args:
      source: a file, or a folder with a checkpoint.
      count: number of damaged copies.
      seed: of the damage.
      folder: where to put the copies.
      read: the function that reads a copy.

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
        file.write_bytes(damaged(content, rng))
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
        for name, source in sources.items():
            share = SHARES.get(name, 1.0)
            count = int(arguments.files * share)
            problems = faults(source, count, arguments.seed, folder, reader(name))
            print(f"{name}: {len(problems)} problems", *problems, sep="\n  ", flush=True)
        for name in ("onnx", "tflite", "keras 3 keras", "keras 3 h5"):
            count = int(arguments.files * SHARES.get(name, 1.0))
            problems = faults(sources[name], count, arguments.seed, folder, reader(name, audit))
            print(f"{name}, audited: {len(problems)} problems", *problems, sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
