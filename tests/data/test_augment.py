"""Variation of images inside a jitted step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernsym_jax import data, training


def varied(images, how, seed=0):
    vary = jax.jit(data.augment, static_argnums=2)
    return np.asarray(vary(jnp.asarray(images), jax.random.key(seed), how))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(1, 256, (64, 5, 5, 2), np.uint8)


def test_shifts_move_each_image_by_its_own_whole_pixels_and_fill_with_black(images):
    shifted = varied(images, data.Augment(shift=2))
    assert shifted.dtype == np.uint8
    seen = set()
    for before, after in zip(images, shifted, strict=True):
        padded = np.pad(before, ((2, 2), (2, 2), (0, 0)))
        offsets = [
            (dy, dx)
            for dy in range(5)
            for dx in range(5)
            if (padded[dy : dy + 5, dx : dx + 5] == after).all()
        ]
        assert len(offsets) == 1
        seen.update(offsets)
    assert len(seen) > 15


@pytest.mark.parametrize(
    ("flip", "images_of"),
    [
        ("none", lambda x: [x]),
        ("horizontal", lambda x: [x, x[:, ::-1]]),
        ("vertical", lambda x: [x, x[::-1]]),
        (
            "d4",
            lambda x: [t for k in range(4) for t in (np.rot90(x, k), np.rot90(x, k)[:, ::-1])],
        ),
    ],
)
def test_flips_give_every_image_of_their_group_about_equally_often(images, flip, images_of):
    many = np.repeat(images[:1], 800, axis=0)
    flipped = varied(many, data.Augment(flip=flip))
    group = images_of(images[0])
    counts = [sum((after == image).all() for after in flipped) for image in group]
    assert sum(counts) == 800
    assert min(counts) > 0.7 * 800 / len(group)


def test_normalize_maps_bytes_to_zero_mean_and_unit_deviation(images):
    mean, deviation = data.channel_statistics(images)
    normal = data.normalize(jnp.asarray(images), mean, deviation)
    assert normal.dtype == jnp.float32
    np.testing.assert_allclose(normal.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(normal.std((0, 1, 2)), 1, atol=1e-4)


def test_crops_come_first_and_give_each_image_a_window_of_its_own(images):
    how = data.Augment(crop_size=7, crop_scale=(0.3, 0.8), shift=1, flip="horizontal")
    varied_images = varied(np.repeat(images[:1], 16, axis=0), how)
    assert varied_images.shape == (16, 7, 7, 2)
    assert varied_images.dtype == np.uint8
    assert len({image.tobytes() for image in varied_images}) == 16
    again = varied(np.repeat(images[:1], 16, axis=0), how)
    np.testing.assert_array_equal(varied_images, again)


def test_a_config_says_how_images_are_varied():
    config = training.default().data
    assert data.Augment.from_config(config) == data.Augment()
    config.update({"shift": 2, "flip": "d4", "crop_size": 9, "crop_scale": (0.5, 1.0)})
    assert data.Augment.from_config(config) == data.Augment(2, "d4", 9, (0.5, 1.0), (3 / 4, 4 / 3))


def test_impossible_variations_are_refused(images):
    with pytest.raises(ValueError, match="unknown flip 'diagonal'"):
        data.Augment(flip="diagonal")
    with pytest.raises(ValueError, match="≥ 0"):
        data.Augment(shift=-1)
    with pytest.raises(ValueError, match="a shift of 5 pixels"):
        varied(images, data.Augment(shift=5))
    with pytest.raises(ValueError, match="square"):
        varied(images[:, :4], data.Augment(flip="d4"))
