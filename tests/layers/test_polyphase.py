import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernsym_jax.layers import (
    Conv,
    Downsample,
    MaxPool,
    PhaseLogits,
    aps_weights,
    lps_weights,
    mix,
    polyphase,
)


def random_map(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def downsample(method, x, **call):
    down = Downsample(method, 2)
    variables = down.init(jax.random.key(1), x)
    return down.apply(variables, x, **call)


def test_the_components_hold_every_pixel_once():
    x = random_map(2, 6, 9, 3)
    phases = polyphase(x, 3)
    assert [phase.shape for phase in phases] == [(2, 2, 3, 3)] * 9
    np.testing.assert_array_equal(phases[5], x[:, 1::3, 2::3])
    assert sorted(np.concatenate(phases, None)) == sorted(np.ravel(x))


def test_odd_maps_are_first_extended_circularly_by_one():
    x = random_map(1, 5, 4, 1)
    extended = jnp.concatenate([x, x[:, :1]], axis=1)
    for phase, wanted in zip(polyphase(x, 2), polyphase(extended, 2), strict=True):
        np.testing.assert_array_equal(phase, wanted)


def test_aps_keeps_the_component_of_largest_norm_of_each_sample():
    x = np.full((2, 4, 4, 2), 0.1, np.float32)
    x[0, 1, 2, 0] = -5.0
    x[1, 3, 3, 1] = 4.0
    phases = polyphase(jnp.asarray(x), 2)
    weights = aps_weights(phases)
    np.testing.assert_array_equal(weights, [[0, 0, 1, 0], [0, 0, 0, 1]])
    kept = mix(phases, weights)
    np.testing.assert_array_equal(kept[0], x[0, 1::2, 0::2])
    np.testing.assert_array_equal(kept[1], x[1, 1::2, 1::2])


@pytest.mark.parametrize("method", ["aps", "lps"])
def test_a_rolled_map_gives_a_rolled_result_for_every_shift(method):
    x = random_map(1, 6, 6, 2)
    shifts = list(itertools.product(range(6), range(6)))
    rolled = jnp.concatenate([jnp.roll(x, shift, (1, 2)) for shift in shifts])
    results, weights = downsample(method, rolled)
    assert results.shape == (36, 3, 3, 2)
    assert len({tuple(w) for w in np.asarray(weights)}) == 4
    for result in np.asarray(results):
        matches = [
            np.allclose(np.roll(result, shift, (0, 1)), results[0])
            for shift in itertools.product(range(3), range(3))
        ]
        assert any(matches)


@pytest.mark.parametrize("method", ["aps", "lps"])
def test_a_shortcut_takes_the_choice_of_its_branch(method):
    x, branch = random_map(3, 6, 6, 2), random_map(3, 6, 6, 5)[:, ::-1]
    down = Downsample(method, 2)
    variables = down.init(jax.random.key(1), branch)
    _, phases = down.apply(variables, branch)
    shortcut, shared = down.apply({}, x, phases=phases)
    np.testing.assert_array_equal(shared, phases)
    np.testing.assert_array_equal(shortcut, mix(polyphase(x, 2), phases))
    np.testing.assert_array_equal(phases.sum(axis=1), 1.0)


def test_lps_mixes_by_a_gumbel_softmax_in_training_and_takes_the_best_otherwise():
    logits = jnp.log(jnp.array([[0.1, 0.2, 0.3, 0.4]]).repeat(4000, axis=0))
    weights = lps_weights(logits, jax.random.key(0))
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-5)
    chosen = np.bincount(weights.argmax(axis=1), minlength=4) / 4000
    np.testing.assert_allclose(chosen, [0.1, 0.2, 0.3, 0.4], atol=0.03)
    cold = lps_weights(logits, jax.random.key(0), temperature=1e-3)
    np.testing.assert_allclose(cold.max(axis=1).mean(), 1.0, atol=1e-2)
    np.testing.assert_array_equal(lps_weights(logits, None)[:2], [[0, 0, 0, 1]] * 2)


def test_lps_scores_components_by_shared_weights():
    phases = polyphase(random_map(2, 8, 8, 3), 2)
    module = PhaseLogits(hidden=4)
    logits, variables = module.init_with_output(jax.random.key(0), phases)
    assert logits.shape == (2, 4)
    swapped = module.apply(variables, phases[::-1])
    np.testing.assert_allclose(swapped, logits[:, ::-1], rtol=1e-5)
    rolled = module.apply(variables, [jnp.roll(phase, 1, 1) for phase in phases])
    np.testing.assert_allclose(rolled, logits, rtol=1e-4, atol=1e-6)


def test_lps_learns_from_the_training_mixture():
    x = random_map(2, 8, 8, 3)
    down = Downsample("lps", 2)
    variables = down.init(jax.random.key(0), x)

    def loss(variables):
        y, _ = down.apply(variables, x, True, rngs={"downsample": jax.random.key(1)})
        return jnp.square(y).sum()

    for leaf in jax.tree.leaves(jax.grad(loss)(variables)["params"]["logits"]["conv1"]):
        assert np.isfinite(leaf).all()
        assert leaf.any()


@pytest.mark.parametrize("method", ["blur", "aps", "lps"])
def test_poolings_and_convolutions_are_stepped_alike(method):
    x = random_map(1, 8, 8, 2)
    down = Downsample(method, 2)
    for layer in (MaxPool(3, down.inside, "circular"), Conv(4, 3, down.inside, "circular")):
        y, _ = layer.init_with_output(jax.random.key(0), x)
        assert y.shape[1:3] == (8, 8)
        stepped, _ = downsample(method, y)
        assert stepped.shape == (1, 4, 4, y.shape[3])


@pytest.mark.parametrize("method", ["aps", "lps"])
def test_choices_are_float32_and_maps_keep_their_type(method):
    x = random_map(2, 6, 6, 3).astype(jnp.bfloat16)
    down = Downsample(method, 2, dtype=jnp.bfloat16)
    (y, phases), variables = down.init_with_output(jax.random.key(0), x)
    assert (y.dtype, phases.dtype) == (jnp.bfloat16, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} <= {jnp.dtype("float32")}
    y, _ = down.apply(variables, x, True, rngs={"downsample": jax.random.key(1)})
    assert y.dtype == jnp.bfloat16
