"""Training on masks: the pixels that count, the figures of an evaluation, and refused settings."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.tree_util import Partial
from PIL import Image

from kernsym_jax import data, evaluation, models, training
from kernsym_jax.training import loss
from kernsym_jax.training.config import complete
from kernsym_jax.training.consistency import ConsistencyProbe
from kernsym_jax.training.processes import Stop

SIZE, TRAIN, TEST, VOID_VALUE = 8, 16, 6, 9
DIGITS = {"data__source": "digits", "data__void": ()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noise with masks of bright and dark pixels; each image has void rows of its own."""
    root, random = tmp_path_factory.mktemp("masks"), np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("test", TEST)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (SIZE, SIZE, 1), np.uint8)
            mask = (pixels[..., 0] > 150).astype(np.uint8)
            mask[: number % 5] = VOID_VALUE
            name = f"{number:02d}.png"
            Image.fromarray(pixels[..., 0]).save(root / split / "images" / name)
            Image.fromarray(mask).save(root / split / "masks" / name)
    return root


def config(folder, **changes):
    small = training.default()
    small.model.update({"name": "unet", "width": 4, "depth": 1})
    small.data.update({"source": f"masks:{folder}", "void": (VOID_VALUE,)})
    small.batch_size, small.epochs, small.log_every = TRAIN, 4.0, 2
    small.eval_batch_size, small.consistency.images = 4, 0
    small.eval_every_epochs = small.checkpoint_every_epochs = 2.0
    small.optimizer.warmup_epochs = 0.0
    for key, value in changes.items():
        *path, name = key.split("__")
        node = small
        for part in path:
            node = node[part]
        node[name] = value
    return small


def by_hand(recipe, state, batch, parts=1, smoothing=0.0, weights=(1.0, 1.0)):
    """Loss and gradient of the first step: the mean over the pixels that count of all parts."""
    images = data.normalize(jnp.asarray(batch["image"]), recipe.mean, recipe.std)
    counts = np.array([*weights, 0.0], np.float32)[np.minimum(batch["label"], 2)]
    labels = np.where(batch["label"] == data.VOID, 0, batch["label"])

    @functools.partial(jax.jit, static_argnums=2)
    def loss_of(params, batch_stats, part):
        logits, updates = models.vary(recipe.model, bn_axis_name=None).apply(
            {"params": params, "batch_stats": batch_stats},
            images[part::parts],
            train=True,
            mutable=["batch_stats"],
        )
        log_p = logits - jax.scipy.special.logsumexp(logits, axis=-1, keepdims=True)
        right = jnp.take_along_axis(log_p, labels[part::parts, ..., None].astype(int), -1)[..., 0]
        losses = -(1 - smoothing) * right - smoothing * log_p.mean(-1)
        return jnp.sum(losses * counts[part::parts]) / counts.sum(), updates["batch_stats"]

    total, batch_stats, slopes = 0.0, state.batch_stats, []
    for part in range(parts):
        (value, batch_stats), slope = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, batch_stats, part
        )
        total, slopes = total + value, [*slopes, slope]
    return float(total), jax.tree.map(lambda *leaves: sum(leaves), *slopes)


@pytest.mark.parametrize(
    ("change", "meant"),
    [
        ({}, {}),
        ({"optimizer__accumulate": 2, "devices": 4}, {"parts": 2}),
        ({"devices": 8, "backend": "pmap"}, {}),
        (
            {"label_smoothing": 0.1, "class_weights": (0.5, 3.0), "devices": 8},
            {"smoothing": 0.1, "weights": (0.5, 3.0)},
        ),
    ],
    ids=["plain", "accumulate over devices", "pmap", "smoothing and class weights"],
)
def test_the_loss_is_the_mean_over_the_pixels_that_count_of_the_whole_batch(folder, change, meant):
    plain = {
        "optimizer__weight_decay": 0.0,
        "optimizer__momentum": 0.0,
        "optimizer__nesterov": False,
    }
    run = tiny.parts(config(folder, **plain, **change))
    start, batch = jax.device_get(run.initial_state()), run.dataset.take_static(TRAIN)
    voids = (batch["label"] == data.VOID).sum((1, 2))
    assert len(set(voids)) == 5
    step = run.backend.compile_train(run.recipe)
    placed = {name: run.backend.shard(array) for name, array in batch.items()}
    state, logs = step(run.initial_state(), placed, run.backend.keys([0]))
    value, slope = by_hand(run.recipe, start, batch, **meant)
    assert float(logs["meter"].loss) == pytest.approx(value, rel=1e-5)
    assert float(logs["meter"].images) == (batch["label"] != data.VOID).sum()
    moved = jax.tree.map(lambda new, old: (old - np.asarray(new)) / 0.1, state.params, start.params)
    tiny.require_close(moved, slope, 2e-5)


def test_images_and_masks_are_varied_alike(folder):
    varied = config(folder, epochs=60.0, data__shift=2, data__flip="d4")
    run = tiny.parts(varied)
    _, logs = run.train(60)
    meter = logs[-1]["meter"]
    assert meter.correct / meter.images > 0.95


@pytest.mark.parametrize("streamed", [{}, {"data__streaming": True, "devices": 8}])
def test_networks_side_by_side_train_on_masks_as_each_would_alone(folder, streamed):
    joined, logs = tiny.parts(config(folder, **streamed), members=2).train(2, seeds=(0, 1))
    for index in (0, 1):
        alone, own = tiny.parts(config(folder, seed=index)).train(2, seeds=(index,))
        tiny.require_close(jax.tree.map(lambda leaf, i=index: leaf[i], joined.params), alone.params)
        assert logs[-1]["meter"].images[index] == own[-1]["meter"].images


def test_devices_add_up_to_one_confusion_matrix(folder):
    found = []
    for place in ({"devices": 1}, {"devices": 8}, {"devices": 8, "backend": "pmap"}):
        run = tiny.parts(config(folder, **place))
        state, evaluate = run.initial_state(), run.backend.compile_eval(run.recipe)
        found.append([jax.device_get(evaluate(state, part)) for part in run.dataset.evaluation()])
        tiny.require_close(found[-1], found[0])
    ((sums,),) = found[:1]
    test = run.dataset.take_test(TEST)["label"]
    of_class = [np.sum(test == label) for label in (0, 1)]
    np.testing.assert_array_equal(sums["confusion"].sum(1), of_class)


def test_a_batch_of_void_alone_changes_nothing_but_statistics(folder):
    run = tiny.parts(config(folder, optimizer__weight_decay=0.0))
    start, batch = jax.device_get(run.initial_state()), run.dataset.take_static(TRAIN)
    batch["label"] = np.full_like(batch["label"], data.VOID)
    placed = {name: run.backend.shard(array) for name, array in batch.items()}
    state, logs = run.backend.compile_train(run.recipe)(
        run.initial_state(), placed, run.backend.keys([0])
    )
    tiny.require_equal(state.params, start.params)
    assert float(logs["meter"].loss) == 0


def test_where_all_masks_are_void_there_is_no_accuracy_and_no_best_checkpoint(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "set")
    for path in (tmp_path / "set").glob("*/masks/*.png"):
        if (path.parts[-3], path.name) != ("train", "00.png"):
            Image.fromarray(np.full((SIZE, SIZE), VOID_VALUE, np.uint8)).save(path)
    void = config(tmp_path / "set", batch_size=2, log_every=1, epochs=0.5, eval_every_epochs=1.0)
    summary = training.train_and_evaluate(void, tmp_path / "run")
    assert np.isnan(summary["eval_accuracy"])
    found = [line["accuracy"] for line in tiny.lines(tmp_path / "run", "train")]
    assert found.count(None) >= 3
    manifest = tmp_path / "run" / "checkpoints" / "4" / "manifest.json"
    assert json.loads(manifest.read_text())["accuracy"] is None


def test_a_run_tells_accuracy_and_mean_iou_of_the_pixels_that_count(folder, tmp_path, capsys):
    changed = config(folder, model__depth=2, ema_decay=0.5, class_balance="median")
    summary = training.train_and_evaluate(changed, tmp_path / "run")
    state, run = tiny.saved_state(tmp_path / "run", changed), tiny.parts(changed)
    test = data.load(
        f"masks:{folder}", "test", coding=data.MaskCoding((VOID_VALUE,), (0, 1), ("0", "1"))
    )
    images = data.normalize(test.images, run.recipe.mean, run.recipe.std)
    known = test.labels != data.VOID
    labels = test.labels[known]
    for prefix, variables in {"": state.variables, "ema_": state.ema}.items():
        logits = tiny.logits(run.recipe.model, variables, images)
        answers = np.asarray(logits).argmax(-1)[known]
        shares = [
            np.sum((answers == c) & (labels == c)) / np.sum((answers == c) | (labels == c))
            for c in (0, 1)
        ]
        assert summary[f"eval_{prefix}accuracy"] == pytest.approx(np.mean(answers == labels))
        assert summary[f"eval_{prefix}mean_iou"] == pytest.approx(np.mean(shares))
    assert summary["eval_images"] == TEST
    last = tiny.lines(tmp_path / "run", "eval")[-1]
    assert last["mean_iou"] == summary["eval_mean_iou"]
    assert f"mean iou {last['mean_iou']:.4f}" in capsys.readouterr().out
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    masks = run.dataset.take_static(TRAIN)["label"]
    shares = [np.mean(masks[masks != data.VOID] == c) for c in (0, 1)]
    np.testing.assert_allclose(written["class_weights"], np.median(shares) / shares, rtol=1e-5)
    manifest = tmp_path / "run" / "checkpoints" / "4" / "manifest.json"
    assert json.loads(manifest.read_text())["accuracy"] == summary["eval_mean_iou"]


@pytest.mark.parametrize(
    ("mode", "place"), [("circular", {}), ("zero", {"devices": 2, "backend": "pmap"})]
)
def test_consistency_while_training_is_that_of_an_evaluation(folder, mode, place):
    changed = config(
        folder,
        data__scale_to=(8, 10),
        model__depth=2,
        consistency__images=TEST,
        consistency__mode=mode,
        consistency__shift=2,
        **place,
    )
    run = tiny.parts(changed)
    state, _ = run.train(3)
    asked = complete(training.resolve(changed), run.dataset)
    with jax.transfer_guard("disallow"):
        (found,) = ConsistencyProbe(asked, run.backend, run.recipe, run.dataset).measure(
            state, Stop()
        )
    taken = run.dataset.take_test(TEST)
    images = data.normalize(taken["image"], run.recipe.mean, run.recipe.std)
    network = models.vary(run.recipe.model, bn_axis_name=None)
    answers = evaluation.measure(
        Partial(network.apply, jax.device_get(state.variables)),
        [{"image": images, "label": taken["label"]}],
        evaluation.Shifts(mode, -2, 2),
        devices=jax.devices()[:1],
    )
    # A pixel whose classes tie may be decided by rounding; an evaluation counts rest as an offset.
    share = (1 + 24 * found["shifts"]) / 25
    assert 0.5 < share < 0.99
    assert share == pytest.approx(answers.shift_agreement.mean(), abs=1e-3)
    assert {*found["flips"], "e"} == {*answers.flips} == {"e", "r180", "fliplr", "flipud"}
    for name, kept in found["flips"].items():
        assert kept == pytest.approx(np.mean(answers.flips[name].agrees), abs=3e-3), name


def test_weights_of_the_config_win_over_those_of_the_masks(folder, tmp_path):
    given = config(folder, class_balance="median", class_weights=(1.0, 2.0), epochs=1.0)
    training.train_and_evaluate(given, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["class_weights"] == [1, 2]


def test_median_frequency_weights_are_those_computed_by_hand():
    masks = np.array([[[0, 0, 0, 1]], [[0, 0, data.VOID, data.VOID]]], np.uint8)
    # Class 0 has 5 of the 6 pixels of both masks, class 1 one of the 4 of the mask that has it.
    median = (5 / 6 + 1 / 4) / 2
    weights = loss.median_frequency_weights(masks, 3)
    assert weights == pytest.approx((median / (5 / 6), median / (1 / 4), 1.0), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"data__source": "digits", "data__void": ()},
            r"UNet gives .* class labels want \(1, 10\)",
        ),
        (
            {"model": {"name": "small_cnn"}},
            r"SmallCNN gives logits of shape \(1, 2\) .* masks want \(1, 8, 8, 2\)",
        ),
        ({"class_weights": (1.0,)}, "class_weights: 1 numbers for 2 classes"),
        ({"class_weights": (1.0, -1.0)}, "class_weights: numbers ≥ 0"),
        ({"class_balance": "mean"}, "class_balance: got 'mean', wanted none or median"),
        (DIGITS | {"class_balance": "median"}, "class_balance=median is for masks"),
        ({"model__num_classes": 1}, "out of range for config.model.num_classes=1"),
        (
            {"data__flip": "d4", "data__scale_to": (8, 10)},
            "config.data.flip=d4 needs square images, got 8×10",
        ),
        ({"model__num_classes": 300}, "at most 255 classes, got config.model.num_classes=300"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(folder, tmp_path, changes, says):
    changed = config(folder)
    if "model" in changes:
        changed.model = {**training.default().model.to_dict(), **changes.pop("model")}
    for key, value in changes.items():
        *path, name = key.split("__")
        (changed[path[0]] if path else changed)[name] = value
    with pytest.raises(ValueError, match=says) as told:
        training.train_and_evaluate(changed, tmp_path / "run")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()
