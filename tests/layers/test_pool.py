import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernsym_jax.layers import AvgPool, MaxPool, adaptive_average_pool


def negative_map(*shape):
    return -1.0 - np.random.default_rng(0).random(shape).astype(np.float32)


@pytest.mark.parametrize("padding", ["zero", "partial", "same"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, jnp.int32])
def test_max_pooling_never_takes_its_padding_for_a_maximum(padding, dtype):
    x = jnp.asarray(50 * negative_map(1, 6, 6, 2), dtype)
    y = MaxPool(3, 2, padding, pad=1).apply({}, x)
    assert y.dtype == dtype
    assert (np.asarray(y, np.float32) < 0).all()
    assert np.isfinite(np.asarray(y, np.float32)).all()


def test_max_pooling_takes_the_largest_value_of_each_window():
    x = negative_map(2, 6, 7, 3)
    y = MaxPool((3, 2), (2, 1), pad=0).apply({}, x)
    wanted = np.array(
        [
            [[x[b, 2 * i : 2 * i + 3, j : j + 2].max((0, 1)) for j in range(6)] for i in range(2)]
            for b in range(2)
        ]
    )
    np.testing.assert_array_equal(y, wanted)


def test_circular_pooling_commutes_with_rolls():
    x = jnp.asarray(negative_map(1, 6, 6, 1))
    for pool in (MaxPool(3, padding="circular"), AvgPool(3, padding="circular")):
        rolled = pool.apply({}, jnp.roll(x, (1, 2), (1, 2)))
        np.testing.assert_allclose(rolled, jnp.roll(pool.apply({}, x), (1, 2), (1, 2)), rtol=1e-6)


def test_average_pooling_counts_zero_padding():
    x = np.ones((1, 4, 4, 1), np.float32)
    y = AvgPool(3, 1).apply({}, x)[0, :2, :2, 0]
    np.testing.assert_allclose(y, [[4 / 9, 6 / 9], [6 / 9, 1]], rtol=1e-6)


@pytest.mark.parametrize(("size", "grid"), [(13, 6), (2, 7), (1, 6), (12, 6), (7, 3), (5, 5)])
def test_adaptive_cells_run_from_the_floor_to_the_ceiling(size, grid):
    x = negative_map(2, size, 8, 3)
    y = adaptive_average_pool(jnp.asarray(x), (grid, 3))
    rows = [(i * size // grid, -(-(i + 1) * size // grid)) for i in range(grid)]
    columns = [(0, 3), (2, 6), (5, 8)]
    wanted = [[x[:, a:b, c:d].mean((1, 2)) for c, d in columns] for a, b in rows]
    np.testing.assert_allclose(y, np.array(wanted).transpose(2, 0, 1, 3), rtol=1e-6)


def test_adaptive_pooling_of_an_empty_map_says_so():
    with pytest.raises(ValueError, match="the input map is empty"):
        adaptive_average_pool(jnp.zeros((1, 0, 4, 3)), 7)


def test_a_pool_larger_than_its_map_names_the_layer():
    with pytest.raises(ValueError, match="MaxPool: kernel 3x3"):
        MaxPool(3, 2, pad=0).apply({}, jnp.zeros((1, 2, 2, 1)))
    with pytest.raises(ValueError, match="AvgPool: unknown padding 'none'"):
        AvgPool(3, padding="none").apply({}, jnp.zeros((1, 4, 4, 1)))


def test_gradients_of_the_pools_are_finite():
    x = jnp.asarray(negative_map(1, 5, 5, 2))
    for pool in (MaxPool(3, 2), AvgPool(3, 2, "partial")):
        gradient = jax.grad(lambda x, pool=pool: pool.apply({}, x).sum())(x)
        assert np.isfinite(gradient).all()
        assert gradient.any()
