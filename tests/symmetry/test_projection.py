"""Groups, the projection of mean kernels, and the term of a loss that leads to it."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernsym_jax import symmetry
from kernsym_jax.symmetry import D4

SOBEL = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], np.float32)
_project = jax.jit(symmetry.project_mean_kernel, static_argnums=1)
_asymmetry = jax.jit(symmetry.asymmetry, static_argnums=1)
GENERATORS = [(), ("fliplr",), ("r90",), ("transpose", "r180")]
SHAPES = [(3, 3, 4, 8), (5, 5, 3, 7), (1, 7, 4, 4), (2, 2, 1, 1)]


def random_weight(shape, seed=0, offset=0.0):
    return np.random.default_rng(seed).normal(offset, 1, shape).astype(np.float32)


def group_for(weight, elements):
    return [
        name
        for name in symmetry.generated(elements)
        if name in symmetry.elements(*weight.shape[:2])
    ]


def exact_mean(weight):
    return np.asarray(weight, np.float64).mean(axis=(2, 3))


def exact_invariant(kernel, group):
    images = [np.asarray(symmetry.transform(np.arange(kernel.size).reshape(kernel.shape), name))
              for name in group]  # fmt: skip
    return np.mean([kernel.ravel()[order] for order in images], axis=0)


def measured(weight):
    return jax.jit(symmetry.measure)({"conv": {"kernel": weight}})["conv/kernel"]


@pytest.mark.parametrize(
    ("names", "group"),
    [
        ((), D4),
        (("e",), ("e",)),
        (("fliplr",), ("e", "fliplr")),
        (("r270",), ("e", "r90", "r180", "r270")),
        (("fliplr", "flipud"), ("e", "r180", "fliplr", "flipud")),
        (("transpose", "r180"), ("e", "r180", "transpose", "antitranspose")),
        (("fliplr", "transpose"), D4),
        (("r90", "flipud"), D4),
    ],
)
def test_elements_generate_the_group_worked_out_by_hand(names, group):
    assert symmetry.generated(names) == group


def test_unknown_elements_are_refused():
    for call in (
        lambda: symmetry.generated(["r45"]),
        lambda: symmetry.invariant_part(SOBEL, ["fliplr", "r45"]),
        lambda: symmetry.project_mean_kernel(random_weight((3, 3, 1, 1)), ["r45"]),
        lambda: symmetry.asymmetry(SOBEL, ["r45"]),
    ):
        with pytest.raises(ValueError, match="unknown transform 'r45'; the elements of D4 are e, "):
            call()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("elements", GENERATORS)
def test_the_invariant_part_is_invariant_the_nearest_and_its_own(shape, elements):
    weight = random_weight(shape)
    kernel = symmetry.mean_kernel(weight)
    part = symmetry.invariant_part(kernel, elements)
    group = group_for(weight, elements)
    np.testing.assert_allclose(part, exact_invariant(np.asarray(kernel), group), atol=1e-6)
    np.testing.assert_allclose(symmetry.invariant_part(part, elements), part, atol=1e-6)
    # Orthogonal to what is left, so nearer than any other invariant kernel.
    assert abs(float(jnp.sum(part * (kernel - part)))) < 1e-6
    for name in group:
        np.testing.assert_allclose(symmetry.transform(part, name), part, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("elements", GENERATORS)
def test_the_mean_kernel_becomes_its_invariant_part_and_all_slices_change_alike(shape, elements):
    weight = random_weight(shape, seed=1)
    projected = _project(weight, elements)
    assert projected.shape == shape
    assert projected.dtype == np.float32
    group, before = group_for(weight, elements), exact_mean(weight)
    wanted = exact_invariant(before, group)
    np.testing.assert_allclose(exact_mean(projected), wanted, atol=3e-7)
    change = np.asarray(projected, np.float64) - weight
    alike = np.broadcast_to((wanted - before)[..., None, None], shape)
    np.testing.assert_allclose(change, alike, atol=1e-6)
    # No change that has this mean is shorter: any other adds slices that sum to nothing.
    other = random_weight(shape, seed=2)
    other = other - other.mean(axis=(2, 3), keepdims=True)
    assert np.linalg.norm(change) <= np.linalg.norm(change + other) + 1e-5


@hypothesis.given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-30, 1e-8, 1.0, 1e20]),
    offset=st.sampled_from([0.0, 3.0, -300.0]),
    elements=st.sampled_from(GENERATORS),
)
def test_distances_vanish_whatever_the_scale_and_offset(seed, scale, offset, elements):
    weight = random_weight((3, 3, 4, 8), seed, offset) * np.float32(scale)
    figures = measured(_project(weight, elements)).as_dict()
    for name in set(symmetry.generated(elements)) - {"e", "r270"}:
        assert float(figures[f"d_{name}"]) <= 1e-6


@pytest.mark.parametrize("channels", [(1, 32), (64, 64), (512, 512)])
def test_neither_many_channels_nor_a_small_invariant_part_leave_rounding_behind(channels):
    """Weights that all lie on the same coarse grid lose a small change, or round it all one way."""
    weight = random_weight((3, 3, *channels), seed=3)
    mean = exact_mean(weight)
    invariant = exact_invariant(mean, D4)
    for share, tolerance in {1.0: 1e-7, 0.1: 1e-6}.items():
        # The invariant part of random weights, and a tenth of it under the same lopsided rest.
        start = (weight - ((1 - share) * invariant)[..., None, None]).astype(np.float32)
        kernel = exact_mean(_project(start, ()))
        kernel /= np.linalg.norm(kernel)
        images = [exact_invariant(kernel, [name]) for name in D4]
        assert max(np.linalg.norm(image - kernel) / 2 for image in images) <= tolerance
    assert float(measured(_project(weight, ())).score) >= 1 - 1e-6


def test_projecting_twice_changes_nothing_that_matters_and_an_invariant_weight_stays():
    once = _project(random_weight((3, 3, 8, 8), seed=4), ())
    np.testing.assert_allclose(_project(once, ()), once, atol=1e-6)
    constant = np.full((3, 3, 4, 4), 0.3, np.float32)
    np.testing.assert_array_equal(_project(constant, ()), constant)
    zero = np.zeros((3, 3, 4, 4), np.float32)
    np.testing.assert_array_equal(_project(zero, ()), zero)


def test_a_kernel_without_an_invariant_part_is_left_with_rounding_alone():
    weight = np.broadcast_to(SOBEL[..., None, None], (3, 3, 4, 4)) * np.float32(0.1)
    left = np.abs(exact_mean(_project(weight, ())))
    assert left.max() < 1e-7
    # It has a symmetry of its own, which stays under the group of that alone.
    np.testing.assert_allclose(_project(weight, ("flipud",)), weight, atol=1e-7)


def test_the_projection_is_linear_to_derivatives_and_works_under_vmap():
    weight = jnp.asarray(random_weight((3, 3, 4, 6), seed=5))
    direction = random_weight((3, 3, 4, 6), seed=6)

    @jax.jit
    def derivative(weight, direction):
        return jax.jvp(symmetry.project_mean_kernel, (weight,), (direction,))[1]

    @jax.jit
    def slope_along(weight, direction):
        return jax.grad(lambda w: jnp.sum(symmetry.project_mean_kernel(w) * direction))(weight)

    moved = derivative(weight, direction)
    np.testing.assert_allclose(moved, _project(direction, ()), atol=1e-6)
    # An orthogonal projection is its own transpose.
    np.testing.assert_allclose(slope_along(weight, direction), moved, atol=1e-6)
    together = jax.jit(jax.vmap(symmetry.project_mean_kernel))(jnp.stack([weight, 5 * weight]))
    np.testing.assert_allclose(together[0], _project(weight, ()), atol=1e-6)
    np.testing.assert_allclose(together[1], _project(5 * weight, ()), atol=1e-5)


def test_half_precision_weights_keep_their_type_and_become_as_symmetric_as_it_allows():
    weight = random_weight((3, 3, 16, 16), seed=7).astype(jnp.bfloat16)
    projected = _project(weight, ())
    assert projected.dtype == jnp.bfloat16
    assert float(measured(projected).score) > 0.995 > 0.9 > float(measured(weight).score)


@pytest.mark.parametrize("weight", [np.ones((3, 3)), np.ones((3, 3, 2, 2), int), np.ones((3,) * 5)])
def test_what_is_no_weight_is_refused(weight):
    with pytest.raises(ValueError, match=r"the axes \(kh, kw, in, out\) and a float dtype, got"):
        symmetry.project_mean_kernel(weight)


@pytest.mark.parametrize("shape", [(3, 3), (5, 5), (2, 3)])
def test_asymmetry_over_all_of_the_group_is_what_the_score_lacks_to_1(shape):
    kernels = np.random.default_rng(8).normal(size=(20, *shape)).astype(np.float32)
    expected = 1 - symmetry.symmetry_score(kernels)
    np.testing.assert_allclose(symmetry.asymmetry(kernels), expected, atol=1e-6)


def test_asymmetry_counts_the_identity_and_what_the_elements_generate():
    # d_fliplr = d_r180 = 1, d_flipud = 0, and 1/√2 for the rest.
    for elements, expected in {
        ("flipud",): 0,
        ("fliplr",): 1 / 2,
        ("r180",): 1 / 2,
        ("r90",): (2 * 0.5**0.5 + 1) / 4,
        ("fliplr", "flipud"): 2 / 4,
    }.items():
        assert float(_asymmetry(SOBEL, elements)) == pytest.approx(expected, abs=1e-6)
    assert float(symmetry.asymmetry(np.array([[1.0, 2, 3]], np.float32), ("transpose",))) == 0


@pytest.mark.parametrize("elements", [(), ("fliplr",)])
def test_the_gradient_is_that_of_the_definition_and_finite_where_that_has_none(elements):
    slope = jax.jit(jax.grad(lambda k: jnp.sum(symmetry.asymmetry(k, elements))))
    kernel = random_weight((3, 3), seed=9)
    found = np.asarray(slope(kernel))
    for cell in np.ndindex(3, 3):
        ends = []
        for sign in (1, -1):
            moved = kernel.astype(np.float64)
            moved[cell] += sign * 1e-5
            unit = moved / np.linalg.norm(moved)
            group = symmetry.generated(elements)
            ends.append(
                np.mean([np.linalg.norm(exact_invariant(unit, [g]) - unit) / 2 for g in group])
            )
        assert found[cell] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-4)
    symmetric = np.array([[1, 2, 1], [2, 5, 2], [1, 2, 1]], np.float32)
    nearly = symmetric + np.float32(1e-7) * random_weight((3, 3), seed=10)
    flat = [np.zeros((3, 3), np.float32), np.ones((3, 3), np.float32), symmetric, nearly]
    for kernel in flat:
        np.testing.assert_array_equal(slope(kernel), 0)
        assert float(_asymmetry(kernel, elements)) == 0
    for kernel in (np.float32(1e-38) * SOBEL, np.float32(1e37) * SOBEL, np.eye(3, 3, 1)):
        assert np.isfinite(slope(jnp.asarray(kernel, jnp.float32))).all()


def test_negligible_kernels_count_as_zero_and_undefined_ones_stay_undefined():
    kernels = jnp.asarray(np.stack([SOBEL, 1e-6 * SOBEL, np.nan * SOBEL]), jnp.float32)
    assert float(symmetry.asymmetry(kernels)[1]) > 0.5
    found = symmetry.asymmetry(kernels, (), jnp.float32([1e-5, 1e-5, 1e-5]))
    assert float(found[0]) > 0.5
    assert float(found[1]) == 0
    assert np.isnan(found[2])


def test_a_projected_kernel_gives_the_loss_nothing_to_do():
    weight = _project(random_weight((3, 3, 16, 16), seed=11), ())
    slope = jax.jit(jax.grad(lambda w: symmetry.asymmetry(symmetry.mean_kernel(w))))(weight)
    np.testing.assert_array_equal(slope, 0)
