"""One training step with all its options on, against the same step computed by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from kernsym_jax import data, training

PLAIN = {"data__shift": 0, "optimizer__warmup_epochs": 0.0}
RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4


def by_hand(recipe, state, batch, parts=1, smoothing=0.0, clip=np.inf, ema=0.0):
    """The first step, from the published formulas."""
    images = data.normalize(jnp.asarray(batch["image"]), recipe.mean, recipe.std)

    @jax.jit
    def loss_of(params, batch_stats, images, labels):
        logits, updates = recipe.model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        log_p = logits - jax.scipy.special.logsumexp(logits, axis=-1, keepdims=True)
        right = log_p[jnp.arange(len(labels)), labels]
        losses = -(1 - smoothing) * right - smoothing * log_p.mean(-1)
        return losses.mean(), updates["batch_stats"]

    gradients, batch_stats, losses = [], state.batch_stats, []
    for part in range(parts):
        (loss, batch_stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, batch_stats, images[part::parts], jnp.asarray(batch["label"][part::parts])
        )
        gradients.append(gradient)
        losses.append(loss)
    gradient = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *gradients)
    length = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    gradient = jax.tree.map(lambda leaf: leaf * min(1, clip / length), gradient)

    def moved(weight, slope):
        slope = slope + DECAY * weight * (weight.ndim > 1)
        return weight - RATE * (1 + MOMENTUM) * slope

    params = jax.tree.map(moved, jax.device_get(state.params), gradient)
    share = min(ema, 2 / 11)
    average = jax.tree.map(
        lambda old, new: share * np.asarray(old) + (1 - share) * np.asarray(new),
        state.variables,
        {"params": params, "batch_stats": batch_stats},
    )
    return params, batch_stats, np.mean(losses), average


@pytest.mark.parametrize(
    ("change", "meant"),
    [
        ({}, {}),
        ({"optimizer__accumulate": 4}, {"parts": 4}),
        (
            {"label_smoothing": 0.1, "optimizer__clip_norm": 0.25, "ema_decay": 0.9},
            {"smoothing": 0.1, "clip": 0.25, "ema": 0.9},
        ),
    ],
    ids=["plain", "accumulate", "smoothing, clipping and averages"],
)
def test_a_step_is_the_one_computed_by_hand(change, meant):
    run = tiny.parts(tiny.config(**PLAIN, **change))
    start, batch = jax.device_get(run.initial_state()), run.dataset.take_static(64)
    step = run.backend.compile_train(run.recipe)
    placed = {name: run.backend.shard(array) for name, array in batch.items()}
    state, logs = step(run.initial_state(), placed, run.backend.keys([0]))
    params, batch_stats, loss, average = by_hand(run.recipe, start, batch, **meant)
    tiny.require_close(state.params, params)
    tiny.require_close(state.batch_stats, batch_stats)
    assert float(logs["meter"].loss) == pytest.approx(loss, rel=1e-5)
    assert bool(state.ema) == ("ema" in meant)
    if state.ema:
        tiny.require_close(state.ema, average)


def test_bfloat16_computes_while_weights_statistics_and_symmetry_stay_float32():
    full, half = tiny.parts(tiny.config()), tiny.parts(tiny.config(model__dtype="bfloat16"))
    (_, exact), (state, logs) = full.train(3), half.train(3)
    for leaf in jax.tree.leaves((state.params, state.batch_stats, state.opt_state, logs)):
        assert leaf.dtype in (np.float32, np.int32)
    one, other = float(exact[-1]["meter"].loss), float(logs[-1]["meter"].loss)
    assert one != other
    assert one == pytest.approx(other, rel=0.02)
    assert np.isfinite(logs[-1]["symmetry"]["conv2/kernel"].score)


def test_averaged_weights_are_evaluated_measured_and_saved(tmp_path):
    config = tiny.config(ema_decay=0.999)
    summary = training.train_and_evaluate(config, tmp_path / "run")
    state, run = tiny.saved_state(tmp_path / "run", config), tiny.parts(config)
    test = data.load("digits", "test")
    images = data.normalize(test.images, run.recipe.mean, run.recipe.std)
    logits = tiny.logits(run.recipe.model, state.ema, images)
    assert summary["eval_ema_accuracy"] == np.mean(np.asarray(logits).argmax(-1) == test.labels)
    assert summary["eval_ema_accuracy"] != summary["eval_accuracy"]
    assert 0.3 < summary["ema_mean_score"] < 1
    assert summary["ema_mean_score"] != summary["mean_score"]
    assert all("ema_accuracy" in line for line in tiny.lines(tmp_path / "run", "eval"))


def test_a_profile_of_a_few_steps_is_written_on_request(tmp_path):
    profile = tmp_path / "profile"
    training.train_and_evaluate(tiny.config(), tmp_path / "run", profile=str(profile))
    assert list(profile.rglob("*.xplane.pb"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["step"] == 8
