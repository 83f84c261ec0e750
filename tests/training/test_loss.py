"""The projection holds after every step, and the loss term raises the score."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from kernsym_jax import symmetry, training
from kernsym_jax.symmetry import D4
from kernsym_jax.training.loss import SymmetryLever

EVERY_STEP = {"log_every": 1, "data__shift": 0}
BOTH = {"symmetry__project": True, "symmetry__loss_weight": 0.3}


# The distance of both quarter turns is the same.
MEASURED = tuple(name for name in D4 if name not in ("e", "r270"))


def distances(figures, elements):
    return np.array([[float(getattr(f, f"d_{name}")) for name in elements] for f in figures])


def mean_score(log):
    return float(np.mean([figures.score for figures in log["symmetry"].values()]))


@pytest.mark.parametrize(
    ("change", "projected", "group"),
    [
        ({}, ("conv1", "conv2"), MEASURED),
        ({"symmetry__elements": ("fliplr",)}, ("conv1", "conv2"), ("fliplr",)),
        (
            {"symmetry__elements": ("r180", "transpose"), "symmetry__layers": ("/conv[2-9]",)},
            ("conv2",),
            ("r180", "transpose", "antitranspose"),
        ),
    ],
    ids=["D4", "fliplr", "two mirrors of chosen layers"],
)
def test_projected_kernels_are_invariant_after_every_step_while_training_learns(
    change, projected, group
):
    steps = 40
    config = tiny.config(
        symmetry__project=True, ema_decay=0.9, epochs=steps / 22, **change, **EVERY_STEP
    )
    config.optimizer.learning_rate, config.optimizer.warmup_epochs = 0.5, 0.1
    run = tiny.parts(config)
    start = jax.device_get(jax.jit(symmetry.measure)(run.initial_state().params))
    _, logs = run.train(steps)
    rest = sorted(set(MEASURED) - set(group))
    for log in ({"symmetry": start}, *logs):
        for measured in [log[name] for name in ("symmetry", "ema_symmetry") if name in log]:
            found = {path.removesuffix("/kernel"): f for path, f in measured.items()}
            assert distances([found[name] for name in projected], group).max() <= 1e-6
            # A layer that is not chosen keeps its asymmetry.
            others = [found[name] for name in found.keys() - set(projected)]
            assert not rest or distances([found[projected[0]]], rest).min() > 1e-3
            assert not others or distances(others, MEASURED).min() > 1e-3
    losses = [float(log["meter"].loss / log["meter"].steps) for log in logs]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


@pytest.mark.parametrize(("tie", "elements"), [("fliplr", ("fliplr",)), ("d4", ())])
def test_tied_slices_are_invariant_to_the_last_bit_and_answers_follow_the_flip(tie, elements):
    config = tiny.config(symmetry__tie=tie, ema_decay=0.9, data__shift=0, log_every=1, epochs=3.0)
    config.optimizer.learning_rate, config.optimizer.warmup_epochs = 0.5, 0.1
    config.model.update({"depth": 2, "strided": ()})
    run = tiny.parts(config)
    state, logs = run.train(60)
    for params in (state.params, state.ema["params"]):
        for name in ("conv1", "conv2"):
            slices = np.moveaxis(np.asarray(params[name]["kernel"]), (2, 3), (0, 1))
            assert np.ptp(slices) > 0
            for element in symmetry.generated(elements):
                np.testing.assert_array_equal(symmetry.transform(slices, element), slices)
    losses = [float(log["meter"].loss / log["meter"].steps) for log in logs]
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
    # A network of invariant slices without strides gives an image and its mirror the same logits.
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    logits = [
        tiny.logits(run.recipe.model, state.variables, each)
        for each in (images, images[:, :, ::-1])
    ]
    np.testing.assert_allclose(*logits, atol=1e-5)


def test_the_loss_term_raises_the_score_with_its_weight():
    scores, losses = [], []
    for weight in (0.0, 0.2, 1.0):
        config = tiny.config(symmetry__loss_weight=weight, epochs=1.5, **EVERY_STEP)
        _, logs = tiny.parts(config).train(33)
        scores.append(mean_score(logs[-1]))
        losses.append(float(logs[0]["meter"].loss))
        if not weight:
            assert "symmetry_loss" not in logs[0]
            continue
        # The logged value is that of the weights before the step.
        for before, log in itertools.pairwise(logs):
            expected = weight * (1 - mean_score(before))
            assert float(log["symmetry_loss"]) == pytest.approx(expected, abs=1e-5)
    assert scores[0] + 0.1 < scores[1]
    assert scores[1] + 0.1 < scores[2]
    # The logged loss leaves the symmetry term out.
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_the_numbers_are_the_same_by_jit_by_pmap_and_in_a_population():
    change = {**BOTH, **EVERY_STEP, "symmetry__elements": ("flipud",)}
    state, logs = tiny.parts(tiny.config(**change, devices=1)).train(3)
    other, other_logs = tiny.parts(tiny.config(**change, devices=2, backend="pmap")).train(3)
    tiny.require_close(state.params, other.params)
    tiny.require_close(
        [log["symmetry_loss"] for log in logs], [log["symmetry_loss"] for log in other_logs]
    )
    population = tiny.parts(tiny.config(**change, devices=2), members=2)
    joined, joined_logs = population.train(3, seeds=(0, 1))
    tiny.require_close(state.params, population.backend.member(joined, 0).params)
    for log in joined_logs:
        assert log["symmetry_loss"].shape == (2,)
        assert np.max([figures.d_flipud for figures in log["symmetry"].values()]) <= 1e-6


def test_a_resumed_run_is_bit_equal_and_its_train_lines_have_the_symmetry_term(tmp_path):
    config = tiny.config(**BOTH, data__shift=0)
    training.train_and_evaluate(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "8")
    (tmp_path / "cut" / "summary.json").unlink()
    training.train_and_evaluate(config, tmp_path / "cut")
    whole, cut = (tiny.saved_state(tmp_path / name, config) for name in ("whole", "cut"))
    assert int(cut.step) == 8
    tiny.require_equal(whole, cut)
    assert tiny.lines(tmp_path / "whole") == tiny.lines(tmp_path / "cut")
    assert all(line["symmetry_loss"] < 1e-6 for line in tiny.lines(tmp_path / "cut", "train"))
    kept = json.loads((tmp_path / "cut" / "config.json").read_text())["symmetry"]
    wanted = {"loss_weight": 0.3, "project": True, "elements": [], "layers": [], "tie": "none"}
    assert kept == wanted


def test_the_loss_is_the_mean_over_chosen_layers_that_have_a_score_and_moves_no_others():
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 2, 4), "b": (5, 5, 2, 2), "c": (1, 3, 4, 4), "d": (3, 3, 2, 2)}
    params = {
        name: {"kernel": rng.normal(size=shape).astype(np.float32)}
        for name, shape in shapes.items()
    }
    params["zero"] = {"kernel": np.zeros((3, 3, 2, 2), np.float32)}
    params["one"] = {"kernel": np.ones((1, 1, 2, 2), np.float32)}
    lever = SymmetryLever(0.5, elements=("r90",), layers=("[abc]", "zero"))
    loss, slopes = jax.jit(jax.value_and_grad(lever.loss))(params)
    # A quarter turn of a kernel that is not square leaves the half turn.
    means = []
    for name, group in (("a", ("r90", "r180", "r270")), ("b", ("r90", "r180", "r270")),
                        ("c", ("r180",))):  # fmt: skip
        found = jax.jit(symmetry.transform_distances)(params[name]["kernel"].mean(axis=(2, 3)))
        distances_of = dict(zip(D4, found, strict=True))
        means.append(sum(float(distances_of[g]) for g in group) / (len(group) + 1))
    assert float(loss) == pytest.approx(0.5 * np.mean(means), abs=1e-6)
    for name, slope in slopes.items():
        assert np.isfinite(slope["kernel"]).all()
        assert bool(np.any(slope["kernel"])) == (name in "abc")


def test_a_lever_at_rest_leaves_the_program_as_it_is():
    programs = []
    for change in ({}, {"symmetry__elements": ("r180",), "symmetry__layers": ("conv2",)}):
        run = tiny.parts(tiny.config(data__shift=0, **change))
        batch, key = next(run.dataset.train.start(0)), run.backend.keys([0])
        step = run.backend.compile_train(run.recipe)
        programs.append(step.lower(run.initial_state(), batch, key).as_text())
    assert programs[0] == programs[1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"elements": ("flip",)},
            r"config.symmetry.elements: unknown transform 'flip'; the .* r90",
        ),
        ({"elements": (3,)}, r"config.symmetry.elements: got \(3,\), wanted names"),
        ({"elements": ("e",)}, "config.symmetry.elements: the identity alone leaves kernels"),
        ({"elements": "fliplr"}, "config.symmetry.elements: got 'fliplr', wanted a value like"),
        ({"layers": (1,)}, r"config.symmetry.layers: got \(1,\), wanted names"),
        ({"tie": "r45"}, "config.symmetry.tie: got 'r45', wanted none or fliplr or d4"),
        ({"tie": "d4", "project": True}, "tie keeps mean kernels invariant too; leave out project"),
        ({"loss_weight": -1.0}, "config.symmetry.loss_weight must be at least 0, got -1"),
        ({"loss_weights": 1.0}, "config.symmetry.loss_weights; did you mean 'loss_weight'"),
    ],
)
def test_levers_that_cannot_be_meant_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        training.resolve({"symmetry": change})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"symmetry__layers": ("conv1", "convo*")},
            r"layers: 'convo\*' matches no spatial convolution; there are conv1, conv2",
        ),
        ({"symmetry__layers": ("",)}, "layers: '' matches no spatial"),
        ({"symmetry__layers": ("head",)}, "layers: 'head' matches no spatial"),
        ({"model__kernel_size": 1}, "applies to none of .*: there are none"),
    ],
)
def test_layers_that_are_not_there_are_refused_before_anything_is_written(tmp_path, change, says):
    for lever in ({"symmetry__project": True}, {"symmetry__loss_weight": 1.0}):
        with pytest.raises(ValueError, match=f"^config.symmetry.*{says}"):
            training.train_and_evaluate(tiny.config(**change, **lever), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_layers_are_named_by_the_end_of_their_path_or_after_a_slash_by_all_of_it():
    config = {"model": {"name": "cifar_resnet20"}, "data": {"source": "noise:size=8,n=64,test=8"}}
    run = tiny.parts({**config, "batch_size": 8})
    shapes = jax.eval_shape(lambda: run.initial_state()).params
    for patterns, count in {
        (): 19,
        ("conv1",): 10,
        ("/conv1",): 1,
        ("layer3_*/conv?",): 6,
        ("layer1_0/conv1", "layer1_*/conv1"): 3,
    }.items():
        lever = SymmetryLever(project=True, layers=patterns)
        assert len(lever.chosen(shapes)) == count
