"""Consistency while training: the same numbers as an evaluation of the same images."""

import json

import jax
import numpy as np
import pytest
import tiny
from jax.tree_util import Partial

from kernsym_jax import data, evaluation, training
from kernsym_jax.training.config import complete
from kernsym_jax.training.consistency import ConsistencyProbe
from kernsym_jax.training.processes import Stop


def measured(changed, members=0, steps=2):
    """The figures after a short training, the parts of the run, and its state."""
    parts = tiny.parts(changed, members)
    config = complete(training.resolve(changed), parts.dataset)
    state, _ = parts.train(steps, seeds=range(members) if members else (0,))
    consistency = ConsistencyProbe(config, parts.backend, parts.recipe, parts.dataset)
    with jax.transfer_guard("disallow"):
        return consistency.measure(state, Stop()), parts, state


@pytest.mark.parametrize("mode", ["circular", "zero"])
def test_the_figures_are_those_of_an_evaluation(mode):
    changed = tiny.config(consistency__images=90, consistency__mode=mode, eval_batch_size=32)
    (figures,), parts, state = measured(changed)
    taken = parts.dataset.take_test(90)
    images = data.normalize(taken["image"], parts.recipe.mean, parts.recipe.std)
    answers = evaluation.measure(
        Partial(parts.recipe.model.apply, jax.device_get(state.variables)),
        [{"image": images, "label": taken["label"]}],
        evaluation.Shifts(mode, -1, 1),
        devices=jax.devices()[:1],
    )
    # An evaluation counts the image at rest among the nine offsets.
    assert (1 + 8 * figures["shifts"]) / 9 == pytest.approx(answers.shift_agreement.mean())
    for name, share in figures["flips"].items():
        assert share == pytest.approx(np.mean(answers.flips[name].agrees)), name
    assert {*figures["flips"], "e"} == set(answers.flips)
    assert (figures["images"], figures["mode"], figures["reach"]) == (90, mode, 1)


@pytest.mark.parametrize("where", [{"backend": "pmap", "devices": 4}, {"devices": 8}])
def test_devices_share_the_images_and_find_the_same(where):
    alone, *_ = measured(tiny.config(consistency__images=50))
    shared, *_ = measured(tiny.config(consistency__images=50, **where))
    # One answer of 50 may be a tie that rounding decides.
    assert shared[0]["shifts"] == pytest.approx(alone[0]["shifts"], abs=1 / 50 + 1e-9)
    assert shared[0]["flips"] == pytest.approx(alone[0]["flips"], abs=1 / 50 + 1e-9)


def test_every_member_of_a_population_has_its_own_figures():
    found, *_ = measured(tiny.config(consistency__images=64, devices=2), members=2)
    assert len(found) == 2
    assert found[0] != found[1]


def test_moving_averages_are_compared_too():
    (figures,), *_ = measured(tiny.config(consistency__images=16, ema_decay=0.9))
    assert {"shifts", "flips", "ema_shifts", "ema_flips"} < figures.keys()


def test_without_shifts_only_flips_are_compared():
    (figures,), *_ = measured(tiny.config(consistency__images=8, consistency__shift=0))
    assert "shifts" not in figures
    assert figures["flips"]


def test_a_request_to_stop_ends_it_without_figures():
    parts = tiny.parts(tiny.config())
    config = complete(training.resolve(tiny.config()), parts.dataset)
    stop = Stop()
    stop.ask()
    consistency = ConsistencyProbe(config, parts.backend, parts.recipe, parts.dataset)
    assert consistency.measure(parts.initial_state(), stop) is None


def test_a_run_writes_them_at_every_evaluation_and_once_only(tmp_path):
    training.train_and_evaluate(tiny.config(), tmp_path / "run")
    steps = [line["step"] for line in tiny.lines(tmp_path / "run", "consistency")]
    assert steps == [line["step"] for line in tiny.lines(tmp_path / "run", "eval")] == [4, 8]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    last = tiny.lines(tmp_path / "run", "consistency")[-1]
    assert summary["consistency_shifts"] == last["shifts"]


def test_none_are_measured_where_none_are_asked_for(tmp_path):
    training.train_and_evaluate(tiny.config(consistency__images=0), tmp_path / "run")
    assert tiny.lines(tmp_path / "run", "consistency") == []


def test_shifts_beyond_the_image_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"config\.consistency\.shift=8 .* 8×8"):
        training.train_and_evaluate(tiny.config(consistency__shift=8), tmp_path / "run")
    assert not (tmp_path / "run").exists()
