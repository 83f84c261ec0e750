"""Checkpoints come back as saved, damaged ones are set aside, and a failed save is one error."""

import gc
import os
import resource
import shutil
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
from tiny import lines, require_close, require_equal, saved_state

from kernsym_jax import training
from kernsym_jax.training.checkpoints import Checkpoints, newest_whole, quiet_orbax


def state(number):
    """A state of a megabyte that does not compress."""
    noise = np.random.default_rng(number).normal(size=(256, 1024))
    return jax.device_put({"params": {"a": jnp.asarray(noise, jnp.float32)}, "none": {}})


@pytest.fixture
def saved(tmp_path):
    """Checkpoints after steps 1 and 2, in ``tmp_path / "checkpoints"``."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=5)
    for step in (1, 2):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    yield checkpoints
    checkpoints.close()


def test_the_newest_checkpoint_comes_back_as_it_was(saved):
    assert newest_whole([saved]) == 2
    require_equal(saved.restore(2, state(0)), state(2))


def test_orbax_alone_opens_a_checkpoint(saved, tmp_path):
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        assert manager.latest_step() == 2
        restored = manager.restore(2, args=ocp.args.StandardRestore(state(0)))
    require_equal(restored, state(2))


def damages(folder):
    """Yields damages of every file that the manifest lists, and of the manifest."""
    files = sorted(folder.glob("default/**/*"))
    files = [file for file in files if file.is_file()]
    assert len(files) > 5
    yield "a missing manifest", (folder / "manifest.json").unlink
    yield "a cut manifest", lambda: os.truncate(folder / "manifest.json", 100)
    for file in files:
        name = str(file.relative_to(folder))
        yield f"{name} missing", file.unlink
        if file.stat().st_size:
            yield f"{name} cut", lambda file=file: os.truncate(file, file.stat().st_size - 1)
            yield f"{name}, one bit", lambda file=file: flip_a_bit(file)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_whatever_is_damaged_the_checkpoint_is_set_aside_and_the_one_before_used(
    saved, tmp_path, caplog
):
    folder, intact = tmp_path / "checkpoints" / "2", tmp_path / "intact"
    shutil.copytree(folder, intact)
    for name, damage in damages(folder):
        damage()
        caplog.clear()
        assert newest_whole([saved]) == 1, name
        assert "checkpoints/2 is damaged and set aside" in caplog.text
        assert (tmp_path / "unreadable" / "2").is_dir()
        shutil.copytree(intact, folder)
    assert newest_whole([saved]) == 2
    require_equal(saved.restore(2, state(0)), state(2))


def test_without_a_whole_checkpoint_there_is_none(saved, tmp_path):
    for step in (1, 2):
        (tmp_path / "checkpoints" / str(step) / "manifest.json").unlink()
    assert newest_whole([saved]) is None
    assert saved.steps() == []


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, keep_best=1)
    for step, accuracy in enumerate([0.5, 0.9, None, 0.9, 0.7, 0.8, None], start=1):
        checkpoints.save(step, {"a": jnp.float32(step)}, accuracy)
    checkpoints.wait()
    checkpoints.trim()
    assert checkpoints.steps() == [4, 6, 7]
    checkpoints.close()


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path):
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    checkpoints.close()


def test_a_disk_that_refuses_more_is_one_line_and_keeps_the_last_checkpoint(saved, tmp_path, capfd):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        # As a training does, whichever loggers earlier tests have set up.
        with quiet_orbax():
            saved.save(3, state(3))
            with pytest.raises(OSError, match=r"checkpoint 3 cannot be saved.*kept") as error:
                saved.wait()
            gc.collect()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""
    assert newest_whole([saved]) == 2
    saved.save(4, state(4))
    saved.wait()
    require_equal(saved.restore(4, state(0)), state(4))


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        training.train_and_evaluate(tiny.config(), tmp_path / "file" / "run")


def test_a_run_whose_newest_checkpoint_is_damaged_ends_bit_equal(tmp_path):
    training.train_and_evaluate(tiny.config(), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "torn")
    (tmp_path / "torn" / "summary.json").unlink()
    files = list((tmp_path / "torn" / "checkpoints" / "8" / "default" / "d").iterdir())
    flip_a_bit(max(files, key=lambda file: file.stat().st_size))
    training.train_and_evaluate(tiny.config(), tmp_path / "torn")
    assert (tmp_path / "torn" / "unreadable" / "8").is_dir()
    states = [saved_state(tmp_path / name, tiny.config()) for name in ("torn", "whole")]
    require_equal(*states)
    assert lines(tmp_path / "torn") == lines(tmp_path / "whole")


@pytest.mark.parametrize(("first", "then"), [(8, 1), (1, 8)])
def test_saved_on_some_devices_opened_on_others(tmp_path, first, then):
    workdir = tmp_path / "run"
    # Evaluation batches need not fit the devices: 100 images become 104 on eight.
    on = {devices: tiny.config(devices=devices, eval_batch_size=100) for devices in (1, 8)}
    summary = training.train_and_evaluate(on[first], workdir)
    expected, logged = saved_state(workdir, on[first]), lines(workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    (workdir / "summary.json").unlink()
    again = training.train_and_evaluate(on[then], workdir)
    state = saved_state(workdir, on[then])
    assert len(jax.tree.leaves(state)[0].sharding.device_set) == then
    require_close(state.params, expected.params)
    assert again["eval_accuracy"] == pytest.approx(summary["eval_accuracy"], abs=0.01)
    assert again["eval_images"] == 360
    assert [line["step"] for line in lines(workdir)] == [line["step"] for line in logged]


def test_a_stop_while_every_step_is_being_saved_loses_nothing(tmp_path):
    assert threading.current_thread() is threading.main_thread()
    long = {"epochs": 20 / 22, "eval_every_epochs": 1.0}
    training.train_and_evaluate(tiny.config(**long), tmp_path / "whole")
    config = tiny.config(**long, checkpoint_every_epochs=1 / 22)

    def stop_at_a_save():
        while not list((tmp_path / "run").glob("checkpoints/[5-9]*tmp*")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=stop_at_a_save, daemon=True)
    watcher.start()
    with pytest.raises(training.Preempted, match="of 20, which is saved"):
        training.train_and_evaluate(config, tmp_path / "run")
    training.train_and_evaluate(config, tmp_path / "run")
    require_equal(
        saved_state(tmp_path / "run", config), saved_state(tmp_path / "whole", tiny.config(**long))
    )
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
