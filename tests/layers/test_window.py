import numpy as np
import pytest

from kernsym_jax.layers import crop, crop_to_common, subsample


def test_subsampling_keeps_every_other_pixel_from_the_first():
    x = np.arange(35, dtype=np.float32).reshape(1, 5, 7, 1)
    np.testing.assert_array_equal(subsample(x, 2), x[:, ::2, ::2])
    np.testing.assert_array_equal(subsample(x, 1), x)


def test_cropping_removes_the_margin_on_every_side():
    x = np.arange(35).reshape(1, 5, 7, 1)
    np.testing.assert_array_equal(crop(x, (1, 2)), x[:, 1:4, 2:5])
    np.testing.assert_array_equal(crop(x, 0), x)


def test_maps_are_cropped_about_their_centre_to_the_smallest():
    large, wide = np.arange(49).reshape(1, 7, 7, 1), np.arange(21).reshape(1, 3, 7, 1)
    cropped = crop_to_common([large, wide, large[:, :, 1:6]])
    assert [x.shape[1:3] for x in cropped] == [(3, 5)] * 3
    np.testing.assert_array_equal(cropped[0], large[:, 2:5, 1:6])


def test_subsampling_an_empty_map_names_the_layer():
    with pytest.raises(ValueError, match="shortcut: the input map is empty"):
        subsample(np.zeros((1, 0, 3, 1), np.float32), 2, layer="shortcut")
