"""Optimizer, schedule and config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernsym_jax import training
from kernsym_jax.training import config as configuration
from kernsym_jax.training import state


def test_weight_decay_leaves_batch_norm_and_biases_alone():
    config = training.resolve({"optimizer": {"weight_decay": 0.1, "warmup_epochs": 0.0}})
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.ones(2)},
        "bn": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        "head": {"kernel": jnp.ones((2, 2))},
    }
    rule = state.optimizer(config, state.learning_rate(config, 10))
    updates, _ = rule.update(jax.tree.map(jnp.zeros_like, params), rule.init(params), params)
    moved = jax.tree.map(lambda leaf: bool((leaf != 0).any()), updates)
    assert moved == {
        "conv": {"kernel": True, "bias": False},
        "bn": {"scale": False, "bias": False},
        "head": {"kernel": True},
    }


def test_sgd_follows_nesterov_by_hand():
    config = training.resolve(
        {"epochs": 1e9, "optimizer": {"weight_decay": 0.0, "warmup_epochs": 0.0}}
    )
    rule = state.optimizer(config, state.learning_rate(config, 10))
    weight, velocity = np.float64(1.0), 0.0
    params, carried = jnp.float32(1.0), None
    carried = rule.init(params)
    for _ in range(5):
        gradient = 2 * weight
        velocity = 0.9 * velocity + gradient
        weight -= 0.1 * (0.9 * velocity + gradient)
        updates, carried = rule.update(2 * params, carried, params)
        params = params + updates
    assert float(params) == pytest.approx(weight, rel=1e-5)


def test_learning_rate_warms_up_and_falls_to_zero_along_a_cosine():
    config = training.resolve({"epochs": 10.0, "optimizer": {"learning_rate": 0.4}})
    rate = state.learning_rate(config, 20)
    assert float(rate(0)) == 0
    assert float(rate(10)) == pytest.approx(0.2)
    assert float(rate(20)) == pytest.approx(0.4)
    assert float(rate(110)) == pytest.approx(0.2)
    assert float(rate(200)) == pytest.approx(0, abs=1e-7)


def test_a_run_of_one_step_has_a_learning_rate():
    config = training.resolve({"epochs": 1e-6})
    assert state.total_steps(config, 22) == 1
    assert float(state.learning_rate(config, 22)(0)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epoch": 3.0}, "unknown config key config.epoch; did you mean 'epochs'"),
        ({"data": {"shfit": 1}}, "unknown config key config.data.shfit; did you mean 'shift'"),
        ({"batch_size": 0}, "config.batch_size must be at least 1"),
        ({"epochs": -1.0}, "config.epochs must be above 0"),
        ({"epochs": "ten"}, "config.epochs: got 'ten'"),
        ({"data": 3}, "config.data: got 3"),
        ({"seed": -1}, "config.seed must lie in"),
        ({"model": {"dtype": "float16"}}, "float32 or bfloat16"),
    ],
)
def test_configs_that_no_run_can_use_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        training.resolve(change)


def test_a_config_is_the_defaults_with_the_changes_and_fields_of_the_model():
    config = training.resolve({"epochs": 3, "model": {"width": 8}, "data": {"mean": [0.5]}})
    assert config.epochs == 3.0
    assert isinstance(config.epochs, float)
    assert config.model.width == 8
    assert config.data.mean == (0.5,)
    assert config.batch_size == training.default().batch_size
    assert configuration.differences(training.default(), config) == [
        "data.mean: [] → [0.5]",
        "epochs: 10.0 → 3.0",
        "model.width: absent → 8",
    ]
