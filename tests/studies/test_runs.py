import dataclasses
import json

import ml_collections
import pytest

from kernsym_jax.evaluation import Shifts
from kernsym_jax.studies import Consistency, load_study, runs
from kernsym_jax.training import config as configuration


@pytest.fixture
def started(request, tmp_path):
    """A run whose class weights were found in its masks, and its study."""
    study = load_study(request.path.with_name("micro_study.py"), "smoke")
    base = ml_collections.ConfigDict(study.base)
    base.class_balance = "median"
    study = dataclasses.replace(study, base=base)
    run = runs.plan_runs(study, tmp_path)[0]
    found = configuration.to_json(run.config)
    found["data"] |= {"mean": [0.5], "std": [0.25]}
    found["model"]["num_classes"] = 2
    run.path.mkdir(parents=True)
    (run.path / "config.json").write_text(json.dumps({**found, "class_weights": [0.5, 2.0]}))
    return run, study


def test_what_a_run_has_found_in_its_data_makes_it_no_other_run(started):
    run, _ = started
    assert runs.state(run) == runs.STARTED


def test_class_weights_that_nobody_asked_for_make_it_another_run(started, tmp_path):
    _, study = started
    base = ml_collections.ConfigDict(study.base)
    base.class_balance = "none"
    run = runs.plan_runs(dataclasses.replace(study, base=base), tmp_path)[0]
    with pytest.raises(ValueError, match="class_balance: median → none; class_weights"):
        runs.state(run)


@pytest.mark.parametrize(
    ("settings", "state"),
    [
        ({}, runs.FINISHED),
        ({"limit": 3}, runs.TRAINED),
        ({"ema": True}, runs.TRAINED),
        ({"data": "folder:elsewhere"}, runs.TRAINED),
    ],
)
def test_an_evaluation_of_something_else_is_none_of_the_studys(started, tmp_path, settings, state):
    _, study = started
    shifts = Shifts("circular", -1, 1)
    study = dataclasses.replace(study, consistency=Consistency(shifts))
    run = runs.plan_runs(study, tmp_path)[0]
    asked = {"limit": None, "ema": False, "data": run.config.data.source, **settings}
    found = {"settings": asked, "shift_consistency": {"settings": dataclasses.asdict(shifts)}}
    (run.path / "consistency.json").write_text(json.dumps(found))
    (run.path / "summary.json").write_text("{}")
    assert runs.state(run) == state
