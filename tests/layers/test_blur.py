import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from kernsym_jax.layers import Conv, Downsample, binomial, blur_pool


def random_map(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "row"),
    [(1, [1]), (2, [1, 1]), (3, [1, 2, 1]), (4, [1, 3, 3, 1]), (7, [1, 6, 15, 20, 15, 6, 1])],
)
def test_the_filter_is_the_normalised_row_of_pascals_triangle(size, row):
    np.testing.assert_allclose(binomial(size), np.array(row) / 2.0 ** (size - 1))


@pytest.mark.parametrize("size", range(1, 8))
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_it_is_a_reflect_padded_depthwise_convolution_with_the_outer_product(size, stride):
    x = random_map(2, 8, 9, 3)
    near, far = (size - 1) // 2, size - 1 - (size - 1) // 2
    padded = np.pad(x, ((0, 0), (near, far), (near, far), (0, 0)), mode="reflect")
    kernel = np.outer(binomial(size), binomial(size))[:, :, None, None].repeat(3, axis=3)
    wanted = lax.conv_general_dilated(
        padded,
        kernel,
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    )
    y = blur_pool(jnp.asarray(x), size, stride)
    assert y.shape == (2, -(-8 // stride), -(-9 // stride), 3)
    np.testing.assert_allclose(y, wanted, atol=1e-6)


@pytest.mark.parametrize("size", [7, 8])
def test_one_tap_is_plain_striding(size):
    x = random_map(1, size, size, 2)
    down, plain = Downsample("blur", 2, blur_size=1), Downsample("stride", 2)
    conv = Conv(4, 3, stride=down.inside)
    variables = conv.init(jax.random.key(0), x)
    blurred, phases = down.apply({}, conv.apply(variables, x))
    assert phases is None
    strided = conv.clone(stride=plain.inside).apply(variables, x)
    np.testing.assert_allclose(blurred, strided, atol=1e-6)


def test_a_blurred_constant_stays_the_constant():
    y = blur_pool(jnp.full((1, 6, 6, 1), 3.0, jnp.bfloat16), 4, 2)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y.astype(jnp.float32), 3.0)


def test_too_small_a_map_or_an_impossible_size_names_the_layer():
    with pytest.raises(ValueError, match="Downsample: reflect padding by 2 needs a map of"):
        Downsample("blur", 2).apply({}, jnp.zeros((1, 2, 2, 1)))
    with pytest.raises(ValueError, match="Downsample: blur size must be 1 to 7, got 8"):
        Downsample("blur", 2, blur_size=8).apply({}, jnp.zeros((1, 9, 9, 1)))
