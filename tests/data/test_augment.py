"""Variation of images inside a jitted step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernsym_jax import data, training
from kernsym_jax.data import decode
from kernsym_jax.data.augment import crop


def varied(images, how, seed=0):
    vary = jax.jit(data.augment, static_argnums=2)
    return np.asarray(vary(jnp.asarray(images), jax.random.key(seed), how))


def varied_pairs(images, masks, how, seed=0):
    vary = jax.jit(data.augment, static_argnums=2)
    return map(np.asarray, vary(images, jax.random.key(seed), how, masks))


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


@pytest.fixture
def pairs():
    """Images whose first channel is their mask, void as 255."""
    rng = np.random.default_rng(1)
    masks = rng.choice(np.array([0, 3, 9, data.VOID], np.uint8), (48, 7, 7))
    return np.stack([masks, rng.integers(1, 256, masks.shape, np.uint8)], -1), masks


@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical", "d4"])
def test_masks_are_shifted_and_flipped_with_their_images_and_void_enters(pairs, flip):
    images, masks = pairs
    how = data.Augment(shift=3, flip=flip)
    varied_images, varied_masks = varied_pairs(images, masks, how, 3)
    np.testing.assert_array_equal(varied_images, varied(images, how, 3))
    assert (varied_masks.dtype, varied_masks.shape) == (np.uint8, masks.shape)
    entered = varied_images[..., 1] == 0
    assert entered.any()
    np.testing.assert_array_equal(varied_masks, np.where(entered, 255, varied_images[..., 0]))


def test_masks_are_cropped_with_their_images_to_values_that_they_have():
    # A gradient tells where a window lies: each mask pixel must lie where its image's pixel does.
    ramp = np.add.outer(np.arange(40), np.arange(56)).astype(np.uint8)
    images = np.repeat(ramp[None, :, :, None], 24, 0)
    steps = np.array([4, 250, 0, 9, 40], np.uint8)
    masks = steps[images[..., 0] // 20]
    how = data.Augment(crop_size=10, crop_scale=(0.05, 0.4), flip="d4")
    varied_images, varied_masks = varied_pairs(images, masks, how)
    assert varied_masks.shape == (24, 10, 10)
    assert set(np.unique(varied_masks)) <= set(steps)
    # Nearest and linear interpolation differ by less than two pixels of these windows.
    levels = varied_images[..., 0].astype(int)
    nearby = [steps[np.clip(levels + by, 0, 99) // 20] for by in (-4, 0, 4)]
    assert np.any([varied_masks == one for one in nearby], axis=0).all()
    assert (varied_masks == nearby[1]).mean() > 0.9
    assert len({mask.tobytes() for mask in varied_masks}) > 12


def test_a_window_of_the_whole_image_enlarges_its_mask_by_repeating_pixels(pairs):
    images, masks = pairs
    how = data.Augment(crop_size=21, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    _, enlarged = varied_pairs(images, masks, how)
    np.testing.assert_array_equal(enlarged, masks.repeat(3, 1).repeat(3, 2))


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


@pytest.mark.parametrize("size", [12, 40])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_device_cuts_the_windows_that_the_host_cuts(size, channels):
    images = np.random.default_rng(0).integers(0, 256, (6, 30, 21, channels), np.uint8)
    key = jax.random.key(3)
    cut = jax.jit(crop, static_argnums=(2, 3, 4))(images, key, size, (0.08, 1.0), (3 / 4, 4 / 3))
    assert cut.shape == (6, size, size, channels)
    assert cut.dtype == np.uint8
    draws = np.asarray(jax.random.uniform(key, (6, decode.DRAWS)), np.float64)
    view = decode.View(crop_size=size)
    expected = np.stack([decode.look_at(*pair) for pair in _with(view, images, draws)])
    assert np.abs(np.asarray(cut, int) - expected).max() <= 1


def _with(view, images, draws):
    return [(image, view, row) for image, row in zip(images, draws, strict=True)]


def test_a_window_of_the_whole_image_leaves_it_as_it_is():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    whole = jax.jit(lambda array: crop(array, jax.random.key(0), 8, (1.0, 1.0), (1.0, 1.0)))
    np.testing.assert_array_equal(whole(images), images)
    floats = images.astype(np.float32) / 255
    np.testing.assert_allclose(whole(floats), floats, atol=1e-6)
