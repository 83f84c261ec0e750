"""A run from config to summary: interrupted, resumed, and refused for other settings."""

import json
import os
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest
import tiny
from tiny import lines, require_equal, saved_state

from kernsym_jax import data, symmetry, training


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    summary = training.train_and_evaluate(tiny.config(), workdir)
    return workdir, summary


def test_a_run_writes_every_file_of_a_run_directory(finished):
    workdir, summary = finished
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        "config.json",
        "provenance.json",
        "layers.json",
        "metrics.jsonl",
        "checkpoints",
        "tensorboard",
        "summary.json",
    }
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert summary["step"] == 8
    assert 0 <= summary["waiting_share"] < 1
    assert list((workdir / "tensorboard").iterdir())
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["num_classes"] == 10
    assert config["data"]["mean"] == pytest.approx([0.305237])
    (session,) = json.loads((workdir / "provenance.json").read_text())["sessions"]
    assert session["versions"]["jax"] == jax.__version__
    assert session["seed"] == 0
    layers = json.loads((workdir / "layers.json").read_text())
    assert [row["layer"] for row in layers] == ["conv1", "conv2"]
    assert [row["uneven"] for row in layers] == [[0, 0], [1, 1]]


def test_figures_are_logged_when_they_are_due_and_at_the_end(finished):
    workdir, _ = finished
    assert [line["step"] for line in lines(workdir, "train")] == [3, 6, 8]
    assert [line["step"] for line in lines(workdir, "symmetry")] == [0, 3, 6, 8]
    assert [line["step"] for line in lines(workdir, "eval")] == [4, 8]
    assert all(line["images"] == 360 for line in lines(workdir, "eval"))


def test_logged_symmetry_is_that_of_the_saved_weights(finished):
    workdir, _ = finished
    measured = jax.jit(symmetry.measure)(saved_state(workdir, tiny.config()).params)
    logged = lines(workdir, "symmetry")[-1]["layers"]
    assert sorted(logged) == ["conv1", "conv2"]
    for path, figures in measured.items():
        for name, value in figures.as_dict().items():
            expected = logged[path.removesuffix("/kernel")][name]
            assert float(value) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_logged_loss_is_the_mean_over_the_steps_since_the_last_line(tmp_path, finished):
    training.train_and_evaluate(tiny.config(log_every=1), tmp_path / "each")
    each = {line["step"]: line for line in lines(tmp_path / "each", "train")}
    workdir, _ = finished
    for line, steps in zip(lines(workdir, "train"), [(1, 2, 3), (4, 5, 6), (7, 8)], strict=True):
        for name in ("loss", "accuracy"):
            mean = np.mean([each[step][name] for step in steps])
            assert line[name] == pytest.approx(mean, rel=1e-4)


def test_evaluation_counts_every_test_image_once(finished):
    workdir, summary = finished
    state, recipe = saved_state(workdir, tiny.config()), tiny.parts(tiny.config()).recipe
    test = data.load("digits", "test")
    images = data.normalize(test.images, recipe.mean, recipe.std)
    logits = np.asarray(tiny.logits(recipe.model, state.variables, images))
    assert summary["eval_accuracy"] == np.mean(logits.argmax(-1) == test.labels)
    spread = np.log(np.exp(logits).sum(-1)) - logits[np.arange(360), test.labels]
    assert summary["eval_loss"] == pytest.approx(spread.mean(), rel=1e-4)


def test_a_run_resumed_after_a_lost_session_ends_bit_equal(tmp_path, finished):
    workdir, summary = finished
    other = tmp_path / "resumed"
    shutil.copytree(workdir, other)
    # As after a kill in the middle: the newest checkpoint is of step 4, later lines are written.
    shutil.rmtree(other / "checkpoints" / "8")
    (other / "summary.json").unlink()
    with (other / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "split": "tr')
    again = training.train_and_evaluate(tiny.config(), other)
    require_equal(saved_state(other, tiny.config()), saved_state(workdir, tiny.config()))
    assert lines(other) == lines(workdir)
    timing = ("seconds", "images_per_second", "waiting_share")
    assert {k: v for k, v in again.items() if k not in timing} == {
        k: v for k, v in summary.items() if k not in timing
    }
    sessions = json.loads((other / "provenance.json").read_text())["sessions"]
    assert [session["resumed_at_step"] for session in sessions] == [0, 4]


def test_a_finished_run_is_left_as_it_is(finished):
    workdir, summary = finished
    before = {p: p.read_bytes() for p in workdir.glob("*.json*") if p.name != "provenance.json"}
    again = training.train_and_evaluate(tiny.config(), workdir)
    assert again["step"] == 8
    assert again["eval_accuracy"] == summary["eval_accuracy"]
    assert {p: p.read_bytes() for p in before} == before


def test_another_config_is_refused_unless_resume_agrees(tmp_path, finished):
    workdir, _ = finished
    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    longer = tiny.config(epochs=10 / 22)
    before = (other / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"another config \(epochs: 0.36.* → 0.45"):
        training.train_and_evaluate(longer, other)
    assert (other / "config.json").read_bytes() == before
    assert training.train_and_evaluate(longer, other, resume=True)["step"] == 10
    sessions = json.loads((other / "provenance.json").read_text())["sessions"]
    assert sessions[-1]["changed_config"][0].startswith("epochs:")


def test_a_config_that_does_not_fit_the_checkpoints_changes_nothing(tmp_path, finished):
    workdir, _ = finished
    other = tmp_path / "wider"
    shutil.copytree(workdir, other)
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"arrays differ, the first is params/bn1/bias \(\(4,\)"):
        training.train_and_evaluate(tiny.config(model__width=8), other, resume=True)
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"is not empty and has no config\.json"):
        training.train_and_evaluate(tiny.config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    training.train_and_evaluate(tiny.config(epochs=4 / 22), tmp_path / "run")
    wild = tiny.config(epochs=12 / 22, optimizer__learning_rate=1e30)
    with pytest.raises(ValueError, match=r"not finite at step [5-9]: stopped"):
        training.train_and_evaluate(wild, tmp_path / "run", resume=True)
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir() if p.is_dir()) == ["4"]
    assert all(np.isfinite(line["loss"]) for line in lines(tmp_path / "run", "train"))


def test_labels_beyond_the_number_of_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="labels up to 9 are out of range"):
        training.train_and_evaluate(tiny.config(model__num_classes=4), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_is_compiled_after_the_first_steps(tmp_path):
    def programs(steps):
        counted = []
        listener = lambda event, _, **__: counted.append(event)  # noqa: E731
        jax.monitoring.register_event_duration_secs_listener(listener)
        try:
            training.train_and_evaluate(tiny.config(epochs=steps / 22), tmp_path / str(steps))
        finally:
            jax.monitoring.unregister_event_duration_listener(listener)
        return sum(event.endswith("jaxpr_trace_duration") for event in counted)

    programs(5)
    # Twice as many steps, logs, evaluations and checkpoints: not one program more.
    assert programs(13) == programs(7) > 0


def test_hidden_copies_between_host_and_device_are_forbidden_in_the_loop():
    run = tiny.parts(tiny.config())
    train_step, key = run.backend.compile_train(run.recipe), run.backend.keys([0])
    state, batch = run.initial_state(), run.dataset.take_static(64)
    with jax.transfer_guard("disallow"):
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            train_step(state, batch, key)
        on_device = {name: run.backend.shard(array) for name, array in batch.items()}
        _, logs = train_step(state, on_device, key)
    assert np.isfinite(logs["meter"].loss)


def stop_when(condition):
    """Asks this process to stop as soon as a condition holds."""

    def watch():
        while not condition():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    assert threading.current_thread() is threading.main_thread()
    threading.Thread(target=watch, daemon=True).start()


def test_a_stop_during_an_evaluation_leaves_it_for_the_next_session(tmp_path):
    # One image a batch: the evaluation lasts, and starts when the line of step 4 is written.
    slow = tiny.config(eval_batch_size=1, log_every=4)
    run = tmp_path / "run"
    stop_when(lambda: (run / "metrics.jsonl").exists() and len(lines(run, "train")) == 1)
    with pytest.raises(training.Preempted, match="stopped after step 4 of 8, which is saved"):
        training.train_and_evaluate(slow, run)
    assert lines(run, "eval") == []
    training.train_and_evaluate(slow, run)
    training.train_and_evaluate(slow, tmp_path / "whole")
    assert lines(run) == lines(tmp_path / "whole")
    assert (run / "summary.json").exists()


def test_a_stop_before_the_first_step_is_a_stop_after_step_0(tmp_path):
    run = tmp_path / "run"
    stop_when((run / "config.json").exists)
    with pytest.raises(training.Preempted, match="stopped after step 0 of 8, which is saved"):
        training.train_and_evaluate(tiny.config(), run)
    assert training.train_and_evaluate(tiny.config(), run)["step"] == 8
    assert [line["step"] for line in lines(run, "symmetry")] == [0, 3, 6, 8]
