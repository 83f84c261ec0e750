"""The optimizer and its schedule, against hand-computed steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from kernsym_jax.training.state import learning_rate, optimizer


def recipe(**changes):
    return tiny.parts(tiny.config(**changes)).recipe


def test_weight_decay_leaves_batch_norm_and_biases_alone():
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.ones(2)},
        "bn": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        "head": {"kernel": jnp.ones((2, 2))},
    }
    rule = optimizer(recipe(optimizer__weight_decay=0.1, optimizer__warmup_epochs=0.0))
    updates, _ = rule.update(jax.tree.map(jnp.zeros_like, params), rule.init(params), params)
    moved = jax.tree.map(lambda leaf: bool((leaf != 0).any()), updates)
    assert moved == {
        "conv": {"kernel": True, "bias": False},
        "bn": {"scale": False, "bias": False},
        "head": {"kernel": True},
    }


@pytest.mark.parametrize("clip", [0.0, 1.5])
def test_sgd_follows_nesterov_by_hand_with_gradients_of_bounded_length(clip):
    rule = optimizer(
        recipe(
            epochs=1e6,
            optimizer__weight_decay=0.0,
            optimizer__warmup_epochs=0.0,
            optimizer__clip_norm=clip,
        )
    )
    weights, velocity = np.array([1.0, -0.5]), np.zeros(2)
    params = {"a": jnp.float32(1.0), "b": jnp.float32(-0.5)}
    carried = rule.init(params)
    for _ in range(5):
        gradient = 2 * weights
        if clip:
            gradient = gradient * min(1, clip / np.hypot(*gradient))
        velocity = 0.9 * velocity + gradient
        weights = weights - 0.1 * (0.9 * velocity + gradient)
        updates, carried = rule.update(jax.tree.map(lambda w: 2 * w, params), carried, params)
        params = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_allclose([params["a"], params["b"]], weights, rtol=1e-5)


def test_learning_rate_warms_up_and_falls_to_zero_along_a_cosine():
    rate = learning_rate(recipe(epochs=10.0, optimizer__learning_rate=0.4))
    assert float(rate(0)) == 0
    assert float(rate(11)) == pytest.approx(0.2)
    assert float(rate(22)) == pytest.approx(0.4)
    assert float(rate(121)) == pytest.approx(0.2)
    assert float(rate(220)) == pytest.approx(0, abs=1e-7)


def test_a_run_of_one_step_has_a_learning_rate():
    one = recipe(epochs=1e-6)
    assert one.total_steps == 1
    assert float(learning_rate(one)(0)) == pytest.approx(0.1)
