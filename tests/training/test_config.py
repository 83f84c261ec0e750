"""The configuration of a run."""

import pytest

from kernsym_jax import training
from kernsym_jax.training import config as configuration


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
        ({"seed": 2**32 - 2, "seeds": 3}, "config.seed must lie in"),
        ({"model": {"dtype": "float16"}}, "float32 or bfloat16"),
        ({"backend": "gmap"}, "config.backend: got 'gmap', wanted jit or pmap"),
        ({"ema_decay": 1.0}, "config.ema_decay must lie in 0 to 1"),
        ({"optimizer": {"accumulate": 0}}, "config.optimizer.accumulate must be at least 1"),
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


def test_where_a_run_computes_is_no_difference_and_missing_keys_have_their_defaults():
    old = configuration.to_json(training.default())
    del old["ema_decay"]
    assert configuration.differences(old, training.resolve({"devices": 8})) == []
    assert configuration.differences(old, training.resolve({"ema_decay": 0.9})) == [
        "ema_decay: 0.0 → 0.9"
    ]
