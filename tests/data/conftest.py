"""Small sets of image files, and a cache that no test shares with another or with the user."""

import numpy as np
import pytest
from PIL import Image

from kernsym_jax.data import cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("cache") / "kernsym_jax"
    monkeypatch.setenv(cache.VARIABLE, str(place))
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
