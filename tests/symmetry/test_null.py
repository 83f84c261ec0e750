"""The nulls: known moments, and p-values that mean what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernsym_jax import symmetry

# Kernel size: mean, standard deviation, 95 % point.
PLAIN = {
    2: (0.472, 0.108, 0.703),
    3: (0.482, 0.087, 0.650),
    5: (0.430, 0.045, 0.516),
    7: (0.413, 0.030, 0.469),
    9: (0.405, 0.022, 0.445),
    11: (0.400, 0.018, None),
}
CENTRED = {3: (0.449, 0.080, 0.610), 5: (0.419, 0.043, 0.501), 7: (0.407, 0.029, 0.461)}


@pytest.mark.parametrize(("k", "centered"), [*((k, False) for k in PLAIN), *((k, True) for k in CENTRED)])  # fmt: skip # noqa: E501
def test_null_has_its_known_moments(k, centered):
    mean, deviation, q95 = (CENTRED if centered else PLAIN)[k]
    scores = symmetry.null_scores((k, k), 20_000, jax.random.key(k), centered=centered)
    assert scores.shape == (20_000,)
    assert float(scores.mean()) == pytest.approx(mean, abs=0.005)
    assert float(scores.std()) == pytest.approx(deviation, abs=0.005)
    if q95 is not None:
        assert float(jnp.quantile(scores, 0.95)) == pytest.approx(q95, abs=0.01)


def test_mean_kernels_of_random_layers_follow_the_null():
    weights = jax.random.normal(jax.random.key(0), (3000, 3, 3, 4, 6))
    scores = symmetry.symmetry_score(symmetry.mean_kernel(weights))
    null = symmetry.null_scores((3, 3), 20_000, jax.random.key(1))
    for q in (0.05, 0.5, 0.95):
        assert float(jnp.quantile(scores, q)) == pytest.approx(
            float(jnp.quantile(null, q)), abs=0.015
        )
    p = symmetry.p_value(scores, null)
    assert float(jnp.mean((p < 0.05).astype(jnp.float32))) == pytest.approx(0.05, abs=0.015)


def test_p_value_counts_draws_at_least_as_high():
    null = jnp.array([0.1, 0.2, 0.3, 0.4])
    scores = jnp.array([[0.05, 0.3], [0.35, 0.9]])
    np.testing.assert_allclose(
        symmetry.p_value(scores, null), [[5 / 5, 3 / 5], [2 / 5, 1 / 5]], rtol=1e-6
    )
    assert np.isnan(symmetry.p_value(jnp.nan, null))
    assert float(symmetry.z_value(0.25, null)) == pytest.approx(0, abs=1e-6)


def test_permutation_null_keeps_an_offset_and_loses_the_alignment():
    aligned = jnp.array([[0.0, 1, 0], [1, 2, 1], [0, 1, 0]])[:, :, None, None]
    noise = 0.5 * jax.random.normal(jax.random.key(0), (3, 3, 8, 8))
    weight = aligned + noise
    score = symmetry.symmetry_score(symmetry.mean_kernel(weight))
    shuffled = symmetry.permutation_null(weight, 200, jax.random.key(1), centered=True)
    centred = symmetry.symmetry_score(symmetry.mean_kernel(weight), centered=True)
    assert float(symmetry.p_value(centred, shuffled)) == pytest.approx(1 / 201)
    # With the offset left in, chance alone already scores high: the confound the null is for.
    offset = symmetry.permutation_null(weight + 1, 200, jax.random.key(1))
    assert float(jnp.median(offset)) > 0.8
    assert float(score) > 0.9
    # Without any offset the shuffled kernel is as good as normal, with its mean held at zero.
    balanced = noise - noise.mean(axis=(0, 1), keepdims=True)
    random = symmetry.permutation_null(balanced, 400, jax.random.key(2))
    expected = symmetry.null_scores((3, 3), 20_000, jax.random.key(3), centered=True)
    assert float(random.mean()) == pytest.approx(float(expected.mean()), abs=0.02)


def test_permutation_null_is_the_same_for_the_same_key_and_under_jit():
    weight = jax.random.normal(jax.random.key(0), (5, 3, 4, 4))
    plain = symmetry.permutation_null(weight, 20, jax.random.key(7))
    jitted = jax.jit(symmetry.permutation_null, static_argnums=1)(weight, 20, jax.random.key(7))
    np.testing.assert_allclose(plain, jitted, atol=1e-6)
    assert len(np.unique(plain)) == 20
