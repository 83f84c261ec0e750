"""A disk without space or without room for files: one line, and the last checkpoint is whole."""

import contextlib
import logging
import os
import pathlib
import subprocess
import sys
import time

import pytest
import tiny
from tiny import lines, saved_state

from kernsym_jax import report, training

CONFIG = """
import tiny

def get_config():
    return tiny.config(
        epochs=200.0, eval_every_epochs=200.0, checkpoint_every_epochs=2 / 22, keep_checkpoints=1000
    )
"""

HALFWAY = """
import contextlib, pathlib, resource, sys
import jax
from kernsym_jax.training.checkpoints import Checkpoints, quiet_orbax

with quiet_orbax():
    checkpoints = Checkpoints(pathlib.Path(sys.argv[1]), keep=3)
    state = {f"w{i}": jax.random.normal(jax.random.key(i), (300, 300)) for i in range(12)}
    checkpoints.save(1, state)
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    try:
        checkpoints.save(2, state)
        checkpoints.wait()
    except OSError as error:
        print(error)
    print(checkpoints.steps())
    with contextlib.suppress(OSError):
        checkpoints.close()
"""


@contextlib.contextmanager
def small_disk(folder, options):
    """Mounts a small file system in memory on a folder."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a small file system here: {error}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("options", ["size=400k", "size=64m,nr_inodes=150"])
def test_a_run_on_a_full_disk_ends_with_one_line_and_its_last_checkpoint(
    repository, tmp_path, options
):
    (tmp_path / "config.py").write_text(CONFIG)
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk, options):
        process = subprocess.Popen(
            [
                sys.executable, "-m", "kernsym_jax.train", f"--config={tmp_path}/config.py",
                f"--workdir={disk}/run",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": f"{repository}:{repository / 'tests' / 'support'}"},
        )  # fmt: skip
        errors = process.communicate(timeout=300)[1]
        ended = time.time()
        assert process.returncode == 2, errors
        (line,) = errors.splitlines()
        assert "No space left on device" in line
        assert len(line) < 300 + len(str(disk))
        metrics = disk / "run" / "metrics.jsonl"
        assert ended - metrics.stat().st_mtime < 30
        # What is on the disk is a run that goes on elsewhere.
        saved = saved_state(disk / "run", tiny.config())
        assert int(saved.step) >= 2
        assert [x["step"] for x in lines(disk / "run", "symmetry")][:2] == [0, 3]


def test_writes_that_fail_halfway_raise_one_error_and_print_nothing(tmp_path):
    """A limit on the length of files passes the look at the free space before a save."""
    ran = subprocess.run(
        [sys.executable, "-c", HALFWAY, str(tmp_path / "checkpoints")],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    line, steps = ran.stdout.splitlines()
    assert "checkpoint 2 cannot be saved, the ones before are kept" in line
    assert steps == "[1]"


def test_a_training_leaves_the_hooks_of_other_libraries_as_they_were(tmp_path):
    def hooks():
        return sys.unraisablehook, *(logging.getLogger(n).filters[:] for n in ("absl", "asyncio"))

    before = hooks()
    training.train_and_evaluate(tiny.config(), tmp_path / "run")
    assert hooks() == before


def test_colons_and_slashes_in_a_path_are_those_of_a_local_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = "file://a:b?c=d#e%20f@g//x"
    training.train_and_evaluate(tiny.config(), place)
    assert pathlib.Path("file:", "a:b?c=d#e%20f@g", "x", "checkpoints", "8").is_dir()
    (pathlib.Path(place) / "summary.json").unlink()
    assert training.train_and_evaluate(tiny.config(), place)["step"] == 8
    assert len(report.table(place).rows) == 2


@pytest.mark.parametrize("place", ["gs://bucket/run", "runs/s3://x"])
def test_a_path_that_orbax_would_take_for_a_bucket_is_refused(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="mount the bucket"):
        training.train_and_evaluate(tiny.config(), place)
    assert list(tmp_path.iterdir()) == []
