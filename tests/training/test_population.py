"""Several seeds, as one program or one after another: each is as if it had trained alone."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from tiny import lines, require_close, require_equal, saved_state

from kernsym_jax import training
from kernsym_jax.training import backend

TWENTY = {"epochs": 20 / 22, "eval_every_epochs": 10 / 22, "checkpoint_every_epochs": 10 / 22}
MEMBERS = ("seed_003", "seed_004", "seed_005", "seed_006")


@pytest.fixture(scope="module")
def populations(tmp_path_factory):
    """Four seeds: as one program of either kind on eight devices, and one after another."""
    folder = tmp_path_factory.mktemp("populations")
    four = {"seed": 3, "seeds": 4, **TWENTY}
    for folder_name, way in (("together", "vmap"), ("products", "products")):
        training.train_and_evaluate(
            tiny.config(**four, population=way, devices=8), folder / folder_name
        )
    training.train_and_evaluate(tiny.config(**four), folder / "turn")
    return folder


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("way", ["together", "products"])
def test_members_of_one_program_are_as_if_trained_alone(populations, way, member):
    together, alone = populations / way / member, populations / "turn" / member
    states = [saved_state(folder, tiny.config(**TWENTY)) for folder in (together, alone)]
    assert int(states[0].step) == 20
    require_close(states[0].params, states[1].params)
    require_close(states[0].batch_stats, states[1].batch_stats)
    for one, other in zip(lines(together), lines(alone), strict=True):
        assert (one["step"], one["split"]) == (other["step"], other["split"])
        for name in one.keys() - {"step", "split", "layers", "mode"}:
            # One answer of 256 may be a tie that rounding decides.
            close = 5e-3 if one["split"] == "consistency" else 1e-3
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=close)
    assert (together / "layers.json").read_bytes() == (alone / "layers.json").read_bytes()
    configs = [json.loads((folder / "config.json").read_text()) for folder in (together, alone)]
    assert configs[0] == {**configs[1], "devices": 8}
    assert {path.name for path in together.iterdir()} == {path.name for path in alone.iterdir()}


def test_a_member_that_took_its_turn_is_bit_equal_to_a_run_of_its_seed(populations, tmp_path):
    single = tiny.config(seed=5, **TWENTY)
    training.train_and_evaluate(single, tmp_path / "run")
    member = populations / "turn" / "seed_005"
    require_equal(saved_state(tmp_path / "run", single), saved_state(member, single))
    assert lines(tmp_path / "run") == lines(member)
    assert (tmp_path / "run/config.json").read_bytes() == (member / "config.json").read_bytes()


def test_members_differ_and_the_summary_holds_all_of_them(populations):
    summary = json.loads((populations / "together" / "summary.json").read_text())
    assert tuple(summary["members"]) == MEMBERS
    losses = [member["eval_loss"] for member in summary["members"].values()]
    assert len(set(losses)) == 4
    assert summary["eval_loss"] == pytest.approx(np.mean(losses))
    assert summary["step"] == 20


def test_whether_to_measure_is_one_decision_for_all_members():
    run = tiny.parts(tiny.config(devices=8), members=4)
    state = run.backend.join([run.initial_state(seed) for seed in range(4)])
    batch, keys = next(run.dataset.train.start(0)), run.backend.keys(range(4))
    program = jax.make_jaxpr(run.backend.compile_train(run.recipe))(state, batch, keys)
    # A decision per member would have become a selection, with both branches run at every step.
    assert "cond[" in str(program)
    assert state.step.shape == ()
    assert {leaf.shape[0] for leaf in jax.tree.leaves(state.params)} == {4}
    assert len(jax.tree.leaves(state.params)[0].addressable_shards[0].data) == 1


def test_a_population_goes_on_from_the_newest_step_that_all_members_have(populations, tmp_path):
    shutil.copytree(populations / "together", tmp_path / "cut")
    for member in MEMBERS:
        (tmp_path / "cut" / member / "summary.json").unlink()
    shutil.rmtree(tmp_path / "cut" / MEMBERS[1] / "checkpoints" / "20")
    config = tiny.config(seed=3, seeds=4, **TWENTY, population="vmap", devices=8)
    training.train_and_evaluate(config, tmp_path / "cut")
    for member in MEMBERS:
        one, other = tmp_path / "cut" / member, populations / "together" / member
        require_equal(
            saved_state(one, tiny.config(**TWENTY)), saved_state(other, tiny.config(**TWENTY))
        )
        assert lines(one) == lines(other)


def test_members_with_no_step_in_common_go_on_one_after_another(populations, tmp_path):
    shutil.copytree(populations / "together", tmp_path / "apart")
    for member, kept in zip(MEMBERS, ("10", "10", "20", "20"), strict=True):
        (tmp_path / "apart" / member / "summary.json").unlink()
        removed = {"10": "20", "20": "10"}[kept]
        shutil.rmtree(tmp_path / "apart" / member / "checkpoints" / removed)
    config = tiny.config(seed=3, seeds=4, **TWENTY, population="vmap", devices=8)
    training.train_and_evaluate(config, tmp_path / "apart")
    for member in MEMBERS:
        one, other = tmp_path / "apart" / member, populations / "together" / member
        states = [saved_state(folder, tiny.config(**TWENTY)) for folder in (one, other)]
        require_close(states[0].params, states[1].params)
        assert [line["step"] for line in lines(one)] == [line["step"] for line in lines(other)]


def test_members_take_turn_on_the_cpu_unless_told_otherwise():
    assert backend.choose_way(training.resolve({"seeds": 8})) == "turn"
    for way in ("vmap", "products", "turn"):
        assert backend.choose_way(training.resolve({"seeds": 8, "population": way})) == way


def test_a_program_of_products_has_no_convolution():
    for products in (False, True):
        run = tiny.parts(tiny.config(), members=2)
        one = dataclasses.replace(run.backend, products=products)
        state = one.join([run.initial_state(seed) for seed in range(2)])
        batch, keys = next(run.dataset.train.start(0)), one.keys(range(2))
        program = str(jax.make_jaxpr(one.compile_train(run.recipe))(state, batch, keys))
        assert ("conv_general_dilated" in program) != products


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"not empty and has no population\.json"):
        training.train_and_evaluate(tiny.config(seeds=2), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
