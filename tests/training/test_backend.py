"""The same numbers on one device, on eight, by jit and by pmap."""

import jax
import numpy as np
import pytest
import tiny

from kernsym_jax import training

BACKENDS = {
    "one": {"devices": 1},
    "eight": {"devices": 8},
    "pmap": {"devices": 8, "backend": "pmap"},
}


@pytest.fixture(scope="module")
def trained():
    """Five steps with everything that depends on the split of a batch, then an evaluation."""
    varied = {"data__flip": "d4", "model__downsample": "sbpool", "optimizer__accumulate": 2}
    results = {}
    for name, place in BACKENDS.items():
        run = tiny.parts(tiny.config(**varied, **place))
        state, logs = run.train(5)
        evaluate = run.backend.compile_eval(run.recipe)
        sums = [jax.device_get(evaluate(state, batch)) for batch in run.dataset.evaluation()]
        results[name] = state, logs, sums
    return results


@pytest.mark.parametrize("name", ["eight", "pmap"])
def test_five_steps_are_the_same_on_eight_devices_as_on_one(trained, name):
    (state, logs, sums), (other_state, other_logs, other_sums) = trained["one"], trained[name]
    for part in ("params", "batch_stats", "opt_state"):
        tiny.require_close(getattr(state, part), getattr(other_state, part))
    tiny.require_close([log["meter"] for log in logs], [log["meter"] for log in other_logs])
    tiny.require_close([log["symmetry"] for log in logs], [log["symmetry"] for log in other_logs])
    tiny.require_close(sums, other_sums)
    assert len(jax.tree.leaves(state.params)[0].sharding.device_set) == 1
    for leaf in jax.tree.leaves(other_state):
        assert len(leaf.sharding.device_set) == 8
        assert leaf.sharding.is_fully_replicated


def test_symmetry_is_measured_at_logged_steps_only(trained):
    for _, logs, _ in trained.values():
        measured = [np.isfinite(log["symmetry"]["conv1/kernel"].score) for log in logs]
        assert measured == [False, False, True, False, False]


def test_a_batch_lies_on_the_devices_in_equal_parts():
    for name, shape in (("eight", (8, 8, 8, 1)), ("pmap", (1, 8, 8, 8, 1))):
        run = tiny.parts(tiny.config(**BACKENDS[name]))
        batch = next(run.dataset.train.start(0))
        assert {shard.data.shape for shard in batch["image"].addressable_shards} == {shape}
        assert len(batch["image"].sharding.device_set) == 8


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 60, "devices": 8}, r"batch_size=60 cannot .* 8 devices × 1 parts: .* of 8"),
        (
            {"batch_size": 60, "optimizer__accumulate": 8},
            r"batch_size=60 cannot .* 1 devices × 8 parts: wanted a multiple of 8",
        ),
        ({"devices": 9}, r"config.devices=9: there are 8 devices of 1 process,"),
    ],
)
def test_batches_and_devices_that_do_not_fit_are_refused(tmp_path, change, says):
    with pytest.raises(ValueError, match=says):
        training.train_and_evaluate(tiny.config(**change), tmp_path / "run")
    assert not (tmp_path / "run").exists()
