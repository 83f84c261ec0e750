"""Padding signature, odd moment and second moments: hand-computed values, nulls, invariances."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernsym_jax import symmetry

SHAPES = [(3, 3, 8, 8), (3, 3, 1, 1), (2, 2, 4, 4), (3, 5, 2, 6), (1, 7, 4, 4), (7, 7, 3, 16)]


def random_weight(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def exact_signature(weight):
    sizes = np.sqrt((np.asarray(weight, np.float64) ** 2).mean(axis=(2, 3)))
    sizes /= sizes.sum()
    y, x = np.mgrid[: sizes.shape[0], : sizes.shape[1]]
    return [((g - (n - 1) / 2) * sizes).sum() for g, n in ((x, sizes.shape[1]), (y, len(sizes)))]


def test_a_tap_that_is_larger_moves_the_signature_to_its_side_whatever_the_signs():
    weight = np.ones((3, 3, 2, 4), np.float32)
    weight[2, 2] = 3  # the bottom right: shares 3/11 and 1/11
    sizes = np.full((3, 3), 1 / 11)
    sizes[2, 2] = 3 / 11
    signs = np.sign(random_weight(weight.shape))
    for signed in (weight, -weight, weight * signs):
        np.testing.assert_allclose(symmetry.rms_kernel(signed), sizes, rtol=1e-6)
        np.testing.assert_allclose(symmetry.padding_signature(signed), [2 / 11, 2 / 11], rtol=1e-5)
    # A lean along one axis alone.
    bottom = np.ones((3, 3, 2, 4), np.float32)
    bottom[2] = 2
    np.testing.assert_allclose(symmetry.padding_signature(bottom), [0, 3 / 12], atol=1e-6)


@hypothesis.given(
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-30, -1.0, 1e25]),
)
def test_the_signature_follows_its_definition_and_ignores_scale_and_sign(shape, seed, scale):
    weight = random_weight(shape, seed)
    found = jax.jit(symmetry.padding_signature)(weight * np.float32(scale))
    np.testing.assert_allclose(found, exact_signature(weight), atol=2e-6)
    assert float(symmetry.rms_kernel(weight).sum()) == pytest.approx(1, abs=1e-5)
    rows = weight[::-1]
    np.testing.assert_allclose(symmetry.padding_signature(rows), [found[0], -found[1]], atol=2e-6)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 3), 6**0.5 / 9),  # three cells at −1 and three at +1 along x
        ((2, 2), 1 / 4),  # four cells at ±½
        ((5, 5), 50**0.5 / 25),
        ((1, 7), 28**0.5 / 7),
    ],
)
def test_the_null_of_the_signature_has_the_deviation_worked_out_by_hand(shape, expected):
    slices = 128
    sd_x, sd_y = symmetry.signature_sd(*shape, slices)
    assert sd_x == pytest.approx(expected / math.sqrt(2 * slices), rel=2e-3)
    assert sd_y == pytest.approx(sd_x if shape[0] == shape[1] else 0, rel=1e-6)
    # One slice: the sizes are |normal|, of mean √(2/π) and variance 1 − 2/π.
    kappa = math.sqrt((1 - 2 / math.pi) / (2 / math.pi))
    assert symmetry.signature_sd(*shape, 1)[0] == pytest.approx(expected * kappa, rel=1e-6)
    # The exact value and the series meet where one takes over from the other.
    near = symmetry.signature_sd(*shape, 1000)[0] / symmetry.signature_sd(*shape, 1001)[0]
    assert near == pytest.approx(math.sqrt(1001 / 1000), rel=1e-6)


@pytest.mark.parametrize(
    "shape", [(3, 3, 1, 1), (3, 3, 1, 4), (3, 3, 4, 8), (2, 2, 2, 2), (3, 5, 2, 3), (1, 7, 2, 4)]
)
@pytest.mark.parametrize("function", [symmetry.signature_z, symmetry.odd_moment_z])
def test_z_of_random_layers_is_standard_normal_even_of_few_slices(shape, function):
    weights = jnp.asarray(random_weight((6000, *shape), seed=1))
    z = np.asarray(jax.jit(function)(weights))
    assert z.shape == (6000, 2)
    assert np.isnan(z[:, 1]).all() == (shape[0] == 1)
    for axis in range(2 if shape[0] > 1 else 1):
        assert z[:, axis].mean() == pytest.approx(0, abs=0.05)
        assert z[:, axis].std() == pytest.approx(1, abs=0.06)
        p = np.asarray(symmetry.two_sided_p(z[:, axis]))
        assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.015)
    share = (np.asarray(symmetry.direction_p(z)) < 0.05).mean()
    # In a single slice the odd moment is at most √8 long, which makes its p too large, never small.
    assert 0.035 < share < 0.065 or (share < 0.035 and shape[2:] == (1, 1))


def test_p_values_of_normal_z():
    np.testing.assert_allclose(
        symmetry.two_sided_p(jnp.array([0.0, 1.0, -2.0])), [1, 0.3173105, 0.0455003], rtol=1e-5
    )
    assert float(symmetry.two_sided_p(jnp.float32(50))) == pytest.approx(1.1754944e-38)
    z = jnp.array([[0.0, 0.0], [3.0, 4.0], [2.0, jnp.nan], [jnp.nan, -2.0], [jnp.nan, jnp.nan]])
    np.testing.assert_allclose(
        symmetry.direction_p(z), [1, math.exp(-12.5), 0.0455003, 0.0455003, np.nan], rtol=1e-5
    )


def test_heavy_tailed_weights_need_the_permutation_null():
    """A few slices of huge weights: the normal null calls their lean significant, wrongly."""
    rng = np.random.default_rng(2)
    shuffled_p, normal_p = [], []
    permutation_null = jax.jit(
        symmetry.permutation_null, static_argnums=1, static_argnames="statistic"
    )
    for index in range(40):
        weight = rng.standard_t(2, size=(3, 3, 4, 8)).astype(np.float32)
        lean = symmetry.padding_signature
        null = permutation_null(weight, 99, jax.random.key(index), statistic=lean)
        assert null.shape == (99, 2)
        found = float(lean(weight)[0])
        shuffled_p.append(float(symmetry.p_value(abs(found), jnp.abs(null[:, 0]))))
        normal_p.append(float(symmetry.two_sided_p(symmetry.signature_z(weight)[0])))
    assert np.mean(np.array(normal_p) < 0.05) > 0.3
    assert np.mean(np.array(shuffled_p) < 0.05) < 0.15
    # A real lean of the same layer is found by both.
    weight[:, 2] *= 3
    null = permutation_null(weight, 99, jax.random.key(0), statistic=symmetry.padding_signature)
    assert float(symmetry.p_value(symmetry.padding_signature(weight)[0], null[:, 0])) < 0.011


def test_the_odd_moment_is_the_mean_kernels_and_ignores_an_offset():
    weight = random_weight((3, 3, 16, 16), seed=3)
    kernel = weight.astype(np.float64).mean(axis=(2, 3))
    unit = weight.std(ddof=1) * math.sqrt(6) / 16
    expected = [
        (kernel[:, 2] - kernel[:, 0]).sum() / unit,
        (kernel[2] - kernel[0]).sum() / unit,
    ]
    np.testing.assert_allclose(symmetry.odd_moment_z(weight), expected, rtol=1e-4)
    np.testing.assert_allclose(symmetry.odd_moment_z(-weight), -np.array(expected), rtol=1e-4)
    np.testing.assert_allclose(symmetry.odd_moment_z(weight + 5), expected, rtol=1e-3)
    # A common slope of one standard deviation per cell in every slice: √6·√(256) deviations.
    sloped = weight * 1e-3 + np.array([-1, 0, 1], np.float32)[None, :, None, None]
    assert float(symmetry.odd_moment_z(sloped)[0]) == pytest.approx(
        6 / (math.sqrt(6) * math.sqrt(2 / 3)) * 16, rel=1e-2
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_measure_finds_the_same_in_one_pass(shape):
    weight = random_weight(shape, seed=4) + np.float32(0.3)
    found = jax.jit(symmetry.measure)({"kernel": weight})["kernel"]
    z = symmetry.signature_z(weight)
    np.testing.assert_allclose([found.sig_x, found.sig_y], exact_signature(weight), atol=2e-6)
    np.testing.assert_allclose(found.sig_p, symmetry.direction_p(z), rtol=1e-3)
    np.testing.assert_allclose(
        [found.odd_z_x, found.odd_z_y], symmetry.odd_moment_z(weight), rtol=2e-3, atol=1e-4
    )


def test_a_zero_or_constant_weight_is_undefined_where_it_says_nothing():
    for transformed in (lambda function: function, jax.jit):
        zero = np.zeros((3, 3, 2, 2), np.float32)
        for function in (symmetry.rms_kernel, symmetry.padding_signature, symmetry.signature_z,
                         symmetry.odd_moment_z, symmetry.moment_distances):  # fmt: skip
            assert np.isnan(transformed(function)(zero)).all()
        constant = np.full((3, 3, 2, 2), 0.7, np.float32)
        assert np.isnan(transformed(symmetry.odd_moment_z)(constant)).all()
        np.testing.assert_allclose(transformed(symmetry.signature_z)(constant), 0, atol=1e-5)
        row = transformed(symmetry.measure)({"kernel": constant})["kernel"]
        assert np.isnan([row.odd_z_x, row.odd_z_y]).all()
        assert abs(float(row.sig_x)) < 1e-6
        # Too large to be squared in float32: undefined, and the mean kernel's figures stay.
        row = transformed(symmetry.measure)({"kernel": random_weight((3, 3, 2, 2)) * 1e30})[
            "kernel"
        ]
        assert np.isnan([row.sig_x, row.sig_p, row.odd_z_x]).all()
        assert np.isfinite(row.score)


@pytest.mark.parametrize("value", ["sig_x", "odd_z_y", "score"])
def test_figures_of_sizes_have_finite_gradients_at_taps_without_weights(value):
    weight = random_weight((3, 3, 4, 4), seed=5)
    weight[0, 0] = 0
    slope = jax.jit(jax.grad(lambda w: getattr(symmetry.measure({"kernel": w})["kernel"], value)))(
        weight
    )
    assert np.isfinite(slope).all()
    assert float(jnp.abs(slope).max()) > 0


def test_second_moments_are_those_of_the_slices():
    weight = random_weight((2, 3, 4, 5), seed=6)
    slices = weight.reshape(6, 20).astype(np.float64)
    moments = symmetry.slice_moments(weight)
    assert moments.shape == (6, 6)
    np.testing.assert_allclose(moments, slices @ slices.T / 20, atol=1e-6)
    sizes = np.sqrt(np.diag(moments)).reshape(2, 3)
    np.testing.assert_allclose(symmetry.rms_kernel(weight), sizes / sizes.sum(), atol=1e-6)
    batched = symmetry.slice_moments(np.stack([weight, 2 * weight]))
    np.testing.assert_allclose(batched[1], 4 * moments, rtol=1e-5)


def test_moment_distances_of_one_slice_are_worked_out_by_hand():
    # One slice w with its image T w: ‖T C Tᵀ − C‖² = 2(1 − ⟨w, T w⟩²) for unit w.
    weight = np.zeros((3, 3, 1, 1), np.float32)
    weight[0, 0] = weight[0, 1] = 1
    overlap = {"e": 2, "fliplr": 1, "flipud": 0, "r180": 0, "r90": 0, "r270": 0, "transpose": 1,
               "antitranspose": 0}  # fmt: skip
    expected = [0.5 * math.sqrt(2 * (1 - (overlap[name] / 2) ** 2)) for name in symmetry.D4]
    np.testing.assert_allclose(symmetry.moment_distances(weight), expected, atol=1e-6)
    wide = symmetry.moment_distances(random_weight((1, 3, 2, 2)))
    assert np.isnan(wide).tolist() == [name not in symmetry.RECTANGLE for name in symmetry.D4]


@pytest.mark.parametrize("name", ["fliplr", "r90", "transpose"])
def test_slices_that_come_with_their_images_have_symmetric_moments_though_each_is_directed(name):
    weight = random_weight((3, 3, 2, 4), seed=7)
    images = [jnp.moveaxis(jnp.asarray(weight), (2, 3), (0, 1))]
    for _ in range(3):
        images.append(symmetry.transform(images[-1], name))
    closed = jnp.moveaxis(jnp.concatenate(images), (0, 1), (2, 3))
    index = symmetry.D4.index(name)
    assert float(symmetry.moment_distances(closed)[index]) < 1e-6
    assert float(symmetry.moment_distances(weight)[index]) > 0.1
    # A sign per slice leaves the second moments as they are, and the mean kernel not.
    signs = np.sign(random_weight((1, 1, *closed.shape[2:]), seed=8))
    assert float(symmetry.moment_distances(closed * signs)[index]) < 1e-6
    assert float(symmetry.transform_distances(symmetry.mean_kernel(closed * signs))[index]) > 0.1


@pytest.mark.parametrize(("name", "shape"), [("fliplr", (3, 3, 4, 8)), ("r90", (3, 3, 4, 8)), ("flipud", (2, 3, 4, 8))])  # fmt: skip # noqa: E501
def test_the_null_of_moment_distances_holds_its_level_and_finds_a_direction(name, shape):
    moment_null = jax.jit(symmetry.moment_null, static_argnums=(1, 2))
    distance = jax.jit(lambda w: symmetry.moment_distances(w)[symmetry.D4.index(name)])
    p = []
    for index in range(60):
        weight = random_weight(shape, seed=100 + index)
        null = moment_null(weight, name, 99, jax.random.key(index))
        p.append(float(symmetry.p_value(distance(weight), null)))
    assert np.mean(np.array(p) <= 0.1) < 0.25
    assert np.mean(np.array(p) > 0.5) > 0.3
    weight[0, :2] *= 2
    null = moment_null(weight, name, 99, jax.random.key(0))
    assert float(symmetry.p_value(distance(weight), null)) < 0.025


def test_a_null_of_moment_distances_needs_an_element_that_moves_cells_of_the_kernel():
    for name in ("e", "r90", "r45"):
        with pytest.raises(ValueError, match=rf"one of r180, fliplr, flipud .* not {name}"):
            symmetry.moment_null(random_weight((2, 3, 1, 1)), name, 3, jax.random.key(0))


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 0, 4)])
def test_what_is_no_weight_is_refused(shape):
    for function in (symmetry.rms_kernel, symmetry.slice_moments, symmetry.invariant_slices):
        with pytest.raises(ValueError, match=r"kh, kw, in, out"):
            function(np.zeros(shape, np.float32))


@pytest.mark.parametrize("elements", [(), ("fliplr",), ("r90",)])
@pytest.mark.parametrize("shape", [(3, 3, 4, 8), (2, 5, 3, 2), (4, 4, 1, 1)])
def test_invariant_slices_are_invariant_to_the_last_bit_and_the_nearest(elements, shape):
    weight = random_weight(shape, seed=9)
    tied = np.asarray(jax.jit(symmetry.invariant_slices, static_argnums=1)(weight, elements))
    group = set(symmetry.generated(elements)) & set(symmetry.elements(*shape[:2]))
    slices = np.moveaxis(tied, (2, 3), (0, 1))
    for name in group:
        np.testing.assert_array_equal(symmetry.transform(slices, name), slices)
    np.testing.assert_allclose(symmetry.invariant_slices(tied, elements), tied, rtol=3e-7)
    parts = symmetry.invariant_part(np.moveaxis(weight, (2, 3), (0, 1)), elements)
    np.testing.assert_allclose(slices, parts, atol=1e-6)
    half = symmetry.invariant_slices(weight.astype(jnp.bfloat16), elements)
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(3, 3, 6, 20), (1, 5, 8, 8), (5, 3, 4, 16)])
def test_the_closed_form_of_the_shuffled_null_is_the_spread_of_its_draws(shape):
    weight = np.random.default_rng(0).standard_t(6, shape).astype(np.float32)
    kh, kw, *_ = shape
    null = symmetry.permutation_null(
        weight, 2000, jax.random.key(0), statistic=symmetry.padding_signature
    )
    squares = np.square(weight).reshape(kh * kw, -1)
    spread = squares.var(axis=0, ddof=1).sum()
    deviations = symmetry.shuffled_sd(kh, kw, float(squares.sum()), float(spread))
    np.testing.assert_allclose(np.std(null, axis=0), deviations, rtol=0.06, atol=1e-9)


def test_a_zero_weight_has_no_shuffled_null():
    assert np.isnan(symmetry.shuffled_sd(3, 3, 0.0, 0.0)).all()
