import jax
import numpy as np
import pytest

from kernsym_jax.layers import AvgPool, Conv, window_scale

CASES = [
    {"kernel_size": 3},
    {"kernel_size": 5, "stride": 2},
    {"kernel_size": 3, "dilation": 2},
    {"kernel_size": (1, 7)},
    {"kernel_size": 3, "pad": 4},
]


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_every_position_follows_the_formula(fields):
    x = np.random.default_rng(1).normal(size=(2, 7, 8, 3)).astype(np.float32)
    layer = Conv(4, padding="partial", bias_init=jax.nn.initializers.ones, **fields)
    variables = layer.init(jax.random.key(0), x)
    bias, kernel = variables["params"]["bias"], variables["params"]["kernel"]
    plain = layer.clone(padding="zero", use_bias=False)
    summed = plain.apply({"params": {"kernel": kernel}}, x)
    ones = np.ones((*kernel.shape[:2], 1, 1), np.float32)
    counts = plain.clone(features=1).apply({"params": {"kernel": ones}}, np.ones_like(x[..., :1]))
    counts = np.asarray(counts)
    ratio = np.where(counts > 0, ones.size / np.maximum(counts, 1), 0)
    wanted = np.asarray(summed) * ratio + np.asarray(bias)
    np.testing.assert_allclose(layer.apply(variables, x), wanted, rtol=1e-5, atol=1e-6)


def test_it_is_zero_padding_away_from_the_borders():
    x = np.random.default_rng(2).normal(size=(1, 9, 9, 3)).astype(np.float32)
    partial, zero = Conv(4, 5, padding="partial"), Conv(4, 5)
    variables = zero.init(jax.random.key(0), x)
    difference = np.asarray(partial.apply(variables, x) - zero.apply(variables, x))
    assert not difference[:, 2:-2, 2:-2].any()
    border = np.ones((9, 9), bool)
    border[2:-2, 2:-2] = False
    assert difference[:, border].any(axis=-1).all()


def test_the_scale_of_a_corner_window_is_nine_quarters():
    scale = window_scale((6, 6), (3, 3), ((1, 1), (1, 1)), (1, 1))
    assert scale.dtype == np.float32
    np.testing.assert_allclose(scale[0, :2, :2, 0], [[9 / 4, 9 / 6], [9 / 6, 1]])


def test_windows_off_the_image_give_the_bias_alone():
    x = np.ones((1, 4, 4, 1), np.float32)
    layer = Conv(1, 3, pad=4, padding="partial", bias_init=jax.nn.initializers.ones)
    y, _ = layer.init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(y[0, 0], 1.0)
    assert not np.allclose(y[0, 5, 5], 1.0)


def test_partial_average_pooling_averages_the_image_only():
    x = np.ones((1, 5, 5, 2), np.float32)
    np.testing.assert_allclose(AvgPool(3, padding="partial").apply({}, x), x, rtol=1e-6)
    assert AvgPool(3).apply({}, x)[0, 0, 0, 0] == pytest.approx(4 / 9)
