"""Random windows: where they lie, and that device and host cut them alike."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernsym_jax.data import crop, picture

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def boxes(count, height, width, scale=SCALE, ratio=RATIO):
    draws = np.random.default_rng(0).random((count, crop.DRAWS))
    return np.array([crop.random_box(row, height, width, scale, ratio) for row in draws], float)


@given(
    st.integers(2, 600),
    st.integers(2, 600),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    st.tuples(st.floats(0.2, 4), st.floats(0.2, 4)).map(sorted),
    st.integers(0, 2**32 - 1),
)
def test_a_window_lies_in_the_image_and_has_an_allowed_shape(height, width, scale, ratio, seed):
    draws = np.random.default_rng(seed).random(crop.DRAWS)
    top, left, tall, wide = map(float, crop.random_box(draws, height, width, scale, ratio))
    slack = 1e-9 * max(height, width)
    assert top >= -slack
    assert left >= -slack
    assert top + tall <= height + slack
    assert left + wide <= width + slack
    assert ratio[0] * (1 - 1e-9) <= wide / tall <= ratio[1] * (1 + 1e-9)
    assert tall * wide <= scale[1] * height * width * (1 + 1e-9) or tall in (
        height,
        width / ratio[0],
    )


def test_areas_and_places_of_windows_are_spread_evenly():
    # Windows so small that all fit, so that the first of the ten tries is taken.
    top, left, tall, wide = boxes(4000, 90, 120, scale=(0.1, 0.4)).T
    share = tall * wide / (90 * 120)
    for value, low, high in (
        (share, 0.1, 0.4),
        (np.log(wide / tall), np.log(RATIO[0]), np.log(RATIO[1])),
        (top / (90 - tall), 0, 1),
        (left / (120 - wide), 0, 1),
    ):
        assert value.min() >= low - 1e-9
        assert value.max() <= high + 1e-9
        counts, _ = np.histogram(value, 5, (low, high))
        assert counts.min() > 0.88 * 800


def test_where_no_size_fits_the_window_is_the_largest_in_the_middle():
    assert np.allclose(boxes(5, 10, 100, scale=(1.0, 1.0)), (0, 50 - 20 / 3, 10, 40 / 3))
    assert np.allclose(boxes(5, 100, 10, scale=(1.0, 1.0)), (50 - 20 / 3, 0, 40 / 3, 10))


@pytest.mark.parametrize("size", [12, 40])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_device_cuts_the_windows_that_the_host_cuts(size, channels):
    images = np.random.default_rng(0).integers(0, 256, (6, 30, 21, channels), np.uint8)
    key = jax.random.key(3)
    cut = jax.jit(crop.crop, static_argnums=(2, 3, 4))(images, key, size, SCALE, RATIO)
    assert cut.shape == (6, size, size, channels)
    assert cut.dtype == np.uint8
    draws = np.asarray(jax.random.uniform(key, (6, crop.DRAWS)), np.float64)
    view = picture.View(crop_size=size)
    expected = np.stack([picture.look_at(*pair) for pair in _with(view, images, draws)])
    assert np.abs(np.asarray(cut, int) - expected).max() <= 1


def _with(view, images, draws):
    return [(image, view, row) for image, row in zip(images, draws, strict=True)]


def test_a_window_of_the_whole_image_leaves_it_as_it_is():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    whole = jax.jit(lambda array: crop.crop(array, jax.random.key(0), 8, (1.0, 1.0), (1.0, 1.0)))
    np.testing.assert_array_equal(whole(images), images)
    floats = images.astype(np.float32) / 255
    np.testing.assert_allclose(whole(floats), floats, atol=1e-6)
