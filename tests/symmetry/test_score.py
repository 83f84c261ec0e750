"""The measure against values worked out by hand and against a second implementation in NumPy."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernsym_jax import symmetry

NUMPY_ACTIONS = {
    "e": lambda k: k,
    "r90": lambda k: np.rot90(k, 1),
    "r180": lambda k: np.rot90(k, 2),
    "r270": lambda k: np.rot90(k, 3),
    "fliplr": np.fliplr,
    "flipud": np.flipud,
    "transpose": np.transpose,
    "antitranspose": lambda k: np.rot90(k, 2).T,
}


def numpy_distances(kernel):
    """The definition of d_T, in double precision."""
    unit = np.asarray(kernel, np.float64) / np.linalg.norm(np.asarray(kernel, np.float64))
    images = {name: action(unit) for name, action in NUMPY_ACTIONS.items()}
    return np.array(
        [
            0.5 * np.linalg.norm(image - unit) if image.shape == unit.shape and fits(name, unit)
            else np.nan
            for name, image in images.items()
        ]
    )  # fmt: skip


def fits(name, kernel):
    return kernel.shape[0] == kernel.shape[1] or name in symmetry.RECTANGLE


def cell(row, column, k=3):
    kernel = np.zeros((k, k))
    kernel[row, column] = 1
    return kernel


ORACLES = {
    "constant": (np.ones((3, 3)), 1, 1),
    "constant 5x5": (np.full((5, 5), -0.3), 1, 1),
    "centre only": (cell(1, 1), 1, 1),
    "sobel x": ([[1, 0, -1], [2, 0, -2], [1, 0, -1]], 0.3964, 0.3102),
    "edge cell": (cell(0, 1), 0.4697, 0.3939),
    "corner cell": (cell(0, 0), 0.4697, 0.3939),
    "axis contrast": ([[0, 1, 0], [-1, 0, -1], [0, 1, 0]], 0.5000, 0.4286),
    "middle row": ([[0, 0, 0], [1, 1, 1], [0, 0, 0]], 0.7113, 0.6701),
    "rows 1-2-1": ([[1, 1, 1], [2, 2, 2], [1, 1, 1]], 0.8821, 0.8653),
    "identity matrix": (np.eye(3), 0.7113, 0.6701),
    "weak first column": ([[0.5, 1, 1]] * 3, 0.8448, 0.8227),
    "1 to 9": (np.arange(1, 10).reshape(3, 3), 0.7120, 0.6709),
}


@pytest.mark.parametrize(("kernel", "with_identity", "without"), ORACLES.values(), ids=ORACLES)
def test_score_equals_the_value_worked_out_by_hand(kernel, with_identity, without):
    kernel = jnp.asarray(kernel, jnp.float32)
    compiled = jax.jit(symmetry.symmetry_score, static_argnames="identity")
    for function in (symmetry.symmetry_score, compiled):
        assert float(function(kernel, identity=True)) == pytest.approx(with_identity, abs=1e-4)
        assert float(function(kernel, identity=False)) == pytest.approx(without, abs=1e-4)


def test_distances_of_the_sobel_kernel():
    sobel = jnp.array([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    half = 0.5**0.5
    expected = [0, half, 1, half, 1, 0, half, half]
    np.testing.assert_allclose(symmetry.transform_distances(sobel), expected, atol=1e-6)


def test_noise_with_an_offset_scores_as_computed():
    noise = jax.random.normal(jax.random.key(3), (20_000, 3, 3))
    for offset, expected in {0.0: 0.40, 0.5: 0.47, 1.0: 0.58, 2.0: 0.74, 5.0: 0.89}.items():
        score = jnp.mean(symmetry.symmetry_score(noise + offset, identity=False))
        assert float(score) == pytest.approx(expected, abs=0.01)


def test_scores_with_and_without_the_identity_are_tied():
    kernel = jax.random.normal(jax.random.key(0), (100, 5, 5))
    s8 = symmetry.symmetry_score(kernel)
    s7 = symmetry.symmetry_score(kernel, identity=False)
    np.testing.assert_allclose(s7, 1 - 8 / 7 * (1 - s8), atol=1e-6)


def test_score_stays_within_its_bounds_and_its_least_value_is_reached():
    kernels = jax.random.normal(jax.random.key(1), (5000, 5, 5))
    scores = symmetry.symmetry_score(kernels)
    assert float(scores.min()) >= 0.3385
    assert float(scores.max()) <= 1
    # Down the slope from several starts; a 3×3 kernel has too few cells to get all the way.
    descend = jax.jit(jax.grad(lambda k: jnp.sum(symmetry.symmetry_score(k))))
    lowest = kernels[:50] / 5
    for _ in range(400):
        lowest = lowest - 0.05 * descend(lowest)
    assert float(symmetry.symmetry_score(lowest).min()) == pytest.approx(0.3386, abs=1e-4)
    without = float(symmetry.symmetry_score(lowest, identity=False).min())
    assert without == pytest.approx(0.2441, abs=1e-4)


shapes = st.one_of(
    st.sampled_from([(1, 7), (7, 1), (2, 2), (3, 3), (5, 5), (7, 7), (11, 11), (3, 2), (1, 2)]),
    st.tuples(st.integers(1, 11), st.integers(1, 11)).filter(lambda s: s[0] * s[1] > 1),
)


@hypothesis.given(shape=shapes, seed=st.integers(0, 2**31), offset=st.sampled_from([0.0, 0.5, 3.0]))
def test_figures_of_any_kernel_follow_their_definitions(shape, seed, offset):
    rng = np.random.default_rng(seed)
    kernel = (rng.normal(size=shape) + offset).astype(np.float32)
    square = shape[0] == shape[1]
    figures = {k: float(v) for k, v in jax.jit(symmetry.kernel_symmetry)(kernel).as_dict().items()}
    distances = numpy_distances(kernel)
    for index, name in enumerate(symmetry.D4):
        if f"d_{name}" in figures:
            assert figures[f"d_{name}"] == pytest.approx(distances[index], abs=1e-5, nan_ok=True)
    assert figures["score"] == pytest.approx(1 - np.nanmean(distances), abs=1e-5)
    assert figures["score_no_identity"] == pytest.approx(1 - np.nanmean(distances[1:]), abs=1e-5)
    centred = numpy_distances(kernel - kernel.mean())
    assert figures["score_centered"] == pytest.approx(1 - np.nanmean(centred), abs=1e-4)

    exact = kernel.astype(np.float64)
    energy = np.sum(exact**2)
    assert figures["dc_share"] == pytest.approx(exact.size * exact.mean() ** 2 / energy, abs=1e-5)
    y, x = np.mgrid[: shape[0], : shape[1]]
    x, y = x - (shape[1] - 1) / 2, y - (shape[0] - 1) / 2
    assert figures["skew_x"] == pytest.approx((x * exact).sum() / np.abs(exact).sum(), abs=1e-5)
    assert figures["skew_y"] == pytest.approx((y * exact).sum() / np.abs(exact).sum(), abs=1e-5)

    odd = (exact - np.rot90(exact, 2)) / 2
    assert figures["E"] == pytest.approx(np.sum(odd**2) / energy, abs=1e-5)
    energies = [figures[name] for name in symmetry.IRREPS]
    assert np.nansum(energies) == pytest.approx(1, abs=1e-5)
    assert np.isnan(energies).tolist() == [False, False, not square, not square, False]
    mean_square = np.nanmean(distances**2)
    assert mean_square == pytest.approx((1 - figures["A1"]) / 2, abs=1e-5)


@hypothesis.given(
    shape=shapes, seed=st.integers(0, 2**31), scale=st.sampled_from([1e-30, -1.0, 1e-3, 1e30])
)
def test_score_ignores_scale_sign_and_transforms_and_distances_follow_them(shape, seed, scale):
    kernel = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    score = jax.jit(symmetry.symmetry_score, static_argnames=("identity", "centered"))
    distances = np.asarray(jax.jit(symmetry.transform_distances)(kernel))
    images = {n: NUMPY_ACTIONS[n](kernel) for n in symmetry.elements(*shape)}
    for centered, identity in itertools.product((False, True), (False, True)):
        reference = float(score(kernel, identity=identity, centered=centered))
        scaled = float(score(kernel * np.float32(scale), identity=identity, centered=centered))
        assert scaled == pytest.approx(reference, abs=1e-5)
        for image in images.values():
            transformed = float(score(image, identity=identity, centered=centered))
            assert transformed == pytest.approx(reference, abs=1e-5)
    # d_T(g K) = d_{g⁻¹ T g}(K): transforming the kernel permutes its distances by conjugation.
    if shape[0] == shape[1]:
        probe = np.arange(9).reshape(3, 3)
        inverse = {"r90": "r270", "r270": "r90"}
        for g, image in images.items():
            moved = np.asarray(jax.jit(symmetry.transform_distances)(image))
            for index, t in enumerate(symmetry.D4):
                back = NUMPY_ACTIONS[inverse.get(g, g)]
                conjugate = back(NUMPY_ACTIONS[t](NUMPY_ACTIONS[g](probe)))
                same = [n for n in symmetry.D4 if (NUMPY_ACTIONS[n](probe) == conjugate).all()]
                expected = distances[symmetry.D4.index(same[0])]
                assert moved[index] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", symmetry.D4)
def test_transform_acts_as_numpy_does(name):
    kernel = np.arange(2 * 4 * 4).reshape(2, 4, 4)
    expected = np.stack([NUMPY_ACTIONS[name](part) for part in kernel])
    np.testing.assert_array_equal(symmetry.transform(kernel, name), expected)


def test_transform_refuses_what_does_not_apply():
    with pytest.raises(ValueError, match="r90 needs a square kernel, got 3×5"):
        symmetry.transform(np.zeros((3, 5)), "r90")
    with pytest.raises(ValueError, match="unknown transform 'rot90'"):
        symmetry.transform(np.zeros((3, 3)), "rot90")
    with pytest.raises(ValueError, match="kh, kw"):
        symmetry.transform(np.zeros(3), "e")


@pytest.mark.parametrize("kernel", [np.zeros((3, 3)), np.zeros((1, 7)), np.full((3, 3), np.nan)])
def test_a_kernel_without_direction_is_undefined_in_every_figure(kernel):
    kernel = jnp.asarray(kernel, jnp.float32)
    # Compiled too: a compiler is free to reorder what a NaN meets.
    for transformed in (lambda function: function, jax.jit):
        row = transformed(symmetry.kernel_symmetry)(kernel).row
        assert np.isnan(row).all()
        among_others = transformed(symmetry.kernel_symmetry)(jnp.stack([kernel, kernel + 1])).row
        assert np.isnan(among_others[0]).all()
        assert np.isnan(transformed(symmetry.transform_distances)(kernel)).all()
        assert np.isnan(transformed(symmetry.irrep_energies)(kernel)).all()


@pytest.mark.parametrize("value", [0.1, -7.3, 1e-20, 1e20])
def test_a_constant_kernel_is_symmetric_but_undefined_once_centred(value):
    kernel = jnp.full((5, 5), value, jnp.float32)
    assert float(symmetry.symmetry_score(kernel)) == 1
    assert np.isnan(symmetry.symmetry_score(kernel, centered=True))
    assert float(symmetry.dc_share(kernel)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 3), (4, 4), (1, 7), (5, 3)])
def test_gradients_are_finite_and_match_finite_differences(shape):
    kernel = jax.random.normal(jax.random.key(5), shape)
    direction = jax.random.normal(jax.random.key(6), shape)
    for centered in (False, True):
        score = jax.jit(lambda k, c=centered: symmetry.symmetry_score(k, centered=c))
        slope = float(jnp.sum(jax.jit(jax.grad(score))(kernel) * direction))
        step = 1e-2
        numeric = (score(kernel + step * direction) - score(kernel - step * direction)) / (2 * step)
        assert slope == pytest.approx(float(numeric), abs=2e-3)
    row_slope = jax.jit(jax.jacrev(lambda k: symmetry.kernel_symmetry(k).row))(kernel)
    assert np.isfinite(row_slope).all()


@pytest.mark.parametrize("kernel", [np.ones((3, 3)), np.eye(3), cell(1, 1, 3)])
def test_gradients_are_finite_at_symmetric_kernels(kernel):
    slope = jax.grad(lambda k: symmetry.symmetry_score(k))(jnp.asarray(kernel, jnp.float32))
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int8])
def test_arithmetic_is_float32_whatever_the_dtype(dtype):
    weight = (jax.random.normal(jax.random.key(0), (3, 3, 64, 64)) * 20).astype(dtype)
    mean = symmetry.mean_kernel(weight)
    assert mean.dtype == jnp.float32
    exact = np.asarray(weight, np.float64).mean(axis=(2, 3))
    np.testing.assert_allclose(mean, exact, rtol=1e-4, atol=1e-6)
    assert symmetry.symmetry_score(mean.astype(jnp.float16)).dtype == jnp.float32


def test_mean_of_many_channels_keeps_float32_precision():
    weight = jax.random.normal(jax.random.key(2), (3, 3, 512, 512)) + 1
    exact = np.asarray(weight, np.float64).mean(axis=(2, 3))
    np.testing.assert_allclose(symmetry.mean_kernel(weight), exact, rtol=2e-6)


def test_leading_axes_and_vmap_agree():
    weights = jax.random.normal(jax.random.key(4), (6, 3, 3, 4, 5))
    for function in (symmetry.mean_kernel, symmetry.neuron_score, symmetry.single_score):
        one_by_one = jax.jit(jax.vmap(function))(weights)
        np.testing.assert_allclose(jax.jit(function)(weights), one_by_one, atol=1e-6)
    kernels = weights[..., 0]
    for function in (
        symmetry.symmetry_score,
        symmetry.transform_distances,
        symmetry.irrep_energies,
        symmetry.skew,
        symmetry.dc_share,
    ):
        stacked = jnp.moveaxis(kernels, -1, 0)
        twice = jax.jit(jax.vmap(jax.vmap(function)))(stacked)
        np.testing.assert_allclose(jax.jit(function)(stacked), twice, atol=1e-6)


def test_neuron_and_single_scores_average_over_their_kernels():
    weight = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
    singles = [
        1 - numpy_distances(weight[:, :, i, o]).mean() for i in range(4) for o in range(5)
    ]  # fmt: skip
    neurons = [1 - numpy_distances(weight[:, :, :, o].mean(-1)).mean() for o in range(5)]
    assert float(symmetry.single_score(weight)) == pytest.approx(np.mean(singles), abs=1e-5)
    assert float(symmetry.neuron_score(weight)) == pytest.approx(np.mean(neurons), abs=1e-5)
    weight[:, :, :, 0] = 0
    assert float(symmetry.single_score(weight)) == pytest.approx(
        np.mean([singles[i * 5 + o] for i in range(4) for o in range(1, 5)]), abs=1e-5
    )
    assert float(symmetry.neuron_score(weight)) == pytest.approx(np.mean(neurons[1:]), abs=1e-5)
    assert np.isnan(symmetry.single_score(np.zeros((3, 3, 2, 2))))


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 4), (3, 3, 0, 4), (0, 3, 4, 4)])
def test_mean_kernel_refuses_what_is_no_weight(shape):
    with pytest.raises(ValueError, match=r"kh, kw, in, out"):
        symmetry.mean_kernel(np.zeros(shape, np.float32))
