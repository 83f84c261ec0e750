"""Small sets of image files, a data set on one device, and a cache that no two tests share."""

import contextlib
import dataclasses
import pathlib
import re
import struct
import time
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from kernsym_jax import data, training
from kernsym_jax.data import reading


@dataclasses.dataclass(frozen=True)
class OneDevice:
    """A backend of one device, as one of several processes if a test asks for it."""

    seeds: tuple[int, ...] = (0,)
    members: int = 0
    process_index: int = 0
    process_count: int = 1
    parts: int = 1

    def replicate(self, tree):
        return jax.device_put(tree)

    def shard(self, tree):
        return jax.device_put(tree)

    def shard_train(self, tree):
        return jax.device_put(tree)


@pytest.fixture(scope="session")
def one_device():
    """Makes a backend: one seed for one network, or a tuple of seeds for a population."""

    def make(seed=0, index=0, count=1):
        if isinstance(seed, int):
            return OneDevice((seed,), process_index=index, process_count=count)
        return OneDevice(seed, len(seed), index, count)

    return make


@pytest.fixture(scope="session")
def opened(one_device):
    """Opens a data set with changed keys of ``config.data``."""

    def open_with(seed=0, batch_size=4, eval_batch_size=4, data_seed=0, **keys):
        config = training.default()
        config.batch_size, config.eval_batch_size = batch_size, eval_batch_size
        config.data.update({**keys, "seed": data_seed})
        return data.open_dataset(config, one_device(seed))

    return open_with


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("cache") / "kernsym_jax"
    monkeypatch.setenv(reading.CACHE_VARIABLE, str(place))
    return place


@pytest.fixture
def image_folder(tmp_path):
    """5×7 colour images, 4 of each of two classes to train on and 2 to validate on."""
    rng = np.random.default_rng(1)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (5, 7, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path


def in_memory(key):
    """Bytes of this process, as the kernel counts them."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+)", status).group(1)) * 1024


@pytest.fixture(scope="session")
def bounded():
    """Fails if what is done within takes more than 8 s, or more memory than is given."""

    @contextlib.contextmanager
    def limits(most_bytes):
        before, started = in_memory("VmRSS"), time.perf_counter()
        # Sets the peak back to what is used now.
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        yield
        assert time.perf_counter() - started < 8
        assert in_memory("VmHWM") - before < most_bytes

    return limits


@pytest.fixture(scope="session")
def black_png():
    """Makes the bytes of a black PNG file of any size, without holding its pixels."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    def make(height, width, channels=3):
        packer, row = zlib.compressobj(1), bytes(1 + channels * width)
        rows = [packer.compress(row) for _ in range(height)]
        header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
        parts = (
            chunk(b"IHDR", header),
            chunk(b"IDAT", b"".join([*rows, packer.flush()])),
            chunk(b"IEND", b""),
        )
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    return make
