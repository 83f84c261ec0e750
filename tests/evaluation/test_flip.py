import jax.numpy as jnp
import numpy as np
import pytest

from kernsym_jax import evaluation, symmetry
from kernsym_jax.evaluation.flip import roll_matters


@pytest.fixture
def square():
    return np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)


@pytest.mark.parametrize("name", symmetry.D4)
def test_images_flip_as_kernels_do(name, square):
    flipped = np.asarray(evaluation.flip(jnp.asarray(square), name))
    kernels = symmetry.transform(jnp.asarray(square.transpose(0, 3, 1, 2)), name)
    np.testing.assert_array_equal(flipped, np.asarray(kernels).transpose(0, 2, 3, 1))


@pytest.mark.parametrize("name", symmetry.RECTANGLE)
def test_images_that_are_not_square_flip_too(name):
    image = np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1)
    flipped = np.asarray(evaluation.flip(jnp.asarray(image), name))
    expected = symmetry.transform(jnp.asarray(image[0, :, :, 0]), name)
    np.testing.assert_array_equal(flipped[0, :, :, 0], np.asarray(expected))


@pytest.mark.parametrize("name", symmetry.D4)
def test_with_the_roll_pixel_0_stays_and_strided_pixels_stay_strided(name):
    size = 6
    even = np.zeros((1, size, size, 1), np.float32)
    even[:, ::2, ::2] = 1
    even[:, 0, 0] = 2
    rolled = np.asarray(evaluation.flip(jnp.asarray(even), name, rolled=True))
    np.testing.assert_array_equal(rolled, even)


@pytest.mark.parametrize("name", ["fliplr", "flipud", "r90", "r180", "r270", "antitranspose"])
def test_without_the_roll_a_flip_of_even_size_swaps_even_and_odd_pixels(name):
    even = np.zeros((1, 6, 6, 1), np.float32)
    even[:, ::2, ::2] = 1
    assert not np.asarray(evaluation.flip(jnp.asarray(even), name))[:, ::2, ::2].any()
    assert roll_matters(name, 6, 6)
    assert not roll_matters(name, 7, 7)


def test_odd_sizes_have_no_roll():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 5, 1)), jnp.float32)
    for name in symmetry.D4:
        np.testing.assert_array_equal(
            np.asarray(evaluation.flip(image, name, rolled=True)),
            np.asarray(evaluation.flip(image, name)),
        )
