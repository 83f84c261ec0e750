"""Two trainers in one directory: the second ends with one line, and the first loses nothing."""

import os
import signal
import subprocess
import sys
import time

import compiler
import pytest
import tiny
from tiny import lines, saved_state

from kernsym_jax import run_directory, training

STEPS = 24
LONG = {"epochs": STEPS / 22, "eval_every_epochs": 1 / 22, "checkpoint_every_epochs": 6 / 22}
CONFIG = """
import tiny

def get_config():
    return tiny.config(**{settings})
"""


@pytest.fixture
def flags(tmp_path):
    """Writes a config and returns the flags of a training in ``tmp_path / "run"``."""

    def flags(**settings):
        (tmp_path / "config.py").write_text(CONFIG.format(settings={**LONG, **settings}))
        return [f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run"]

    return flags


@pytest.fixture
def start(repository, flags):
    """Starts a training in a process of its own."""

    def start(**settings):
        return subprocess.Popen(
            [sys.executable, "-m", "kernsym_jax.train", *flags(**settings)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={
                **os.environ,
                "PYTHONPATH": f"{repository}:{repository / 'tests' / 'support'}",
                "XLA_FLAGS": compiler.one_device(),
            },
        )  # fmt: skip

    return start


@pytest.fixture
def train(run_binary, flags):
    """Trains in this process: exit status, output, errors."""
    return lambda **settings: run_binary("train", *flags(**settings))


def wait_for(condition, process):
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def require_whole(run, seed=0):
    """Fails unless the run has ended, with each line and the last state."""
    assert [line["step"] for line in lines(run, "train")] == list(range(3, STEPS + 1, 3))
    assert [line["step"] for line in lines(run, "eval")] == list(range(1, STEPS + 1))
    assert int(saved_state(run, tiny.config(**LONG, seed=seed)).step) == STEPS
    assert run_directory.has_ended(run)
    assert not (run / run_directory.LOCK).exists()


def test_the_second_trainer_ends_with_one_line_and_the_first_is_as_if_alone(start, train, tmp_path):
    run = tmp_path / "run"
    first = start()
    wait_for(lambda: (run / "metrics.jsonl").exists(), first)
    # Stopped, so that it cannot end before the second has seen it.
    first.send_signal(signal.SIGSTOP)
    status, out, errors = train()
    first.send_signal(signal.SIGCONT)
    assert status == 2, errors
    (line,) = errors.splitlines()
    assert f"{run}: process {first.pid} on " in line
    assert out == ""
    out, errors = first.communicate(timeout=240)
    assert first.returncode == 0, errors
    require_whole(run)


def test_a_run_whose_process_was_killed_goes_on_and_another_hosts_is_refused(
    start, train, tmp_path
):
    run = tmp_path / "run"
    first = start()
    wait_for(lambda: list((run / "checkpoints").glob("6")), first)
    first.kill()
    first.communicate()
    text = (run / run_directory.LOCK).read_text()
    (run / run_directory.LOCK).write_text(text.replace('"host": "', '"host": "other'))
    before = (run / "metrics.jsonl").read_bytes()
    status, _, errors = train()
    assert status == 2
    (line,) = errors.splitlines()
    assert line.endswith(f"remove {run / run_directory.LOCK}")
    assert (run / "metrics.jsonl").read_bytes() == before
    (run / run_directory.LOCK).write_text(text)
    status, _, errors = train()
    assert status == 0, errors
    require_whole(run)


def test_what_was_killed_before_its_first_file_is_still_an_empty_directory(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.json.x1y2").write_text("{")
    (run / run_directory.LOCK).write_text("")
    assert training.train_and_evaluate(tiny.config(), run)["step"] == 8


def test_a_population_locks_its_directory_and_waits_for_what_still_saves_a_member(
    start, train, tmp_path
):
    run = tmp_path / "run"
    settings = {"seeds": 2, "population": "processes"}
    first = start(**settings)
    wait_for(lambda: (run / "seed_001" / "metrics.jsonl").exists(), first)
    status, _, errors = train(**settings)
    assert status == 2
    (line,) = errors.splitlines()
    assert f"{run}: process {first.pid} on " in line
    # Its children are left alone; they save and end while the next population starts.
    first.kill()
    first.communicate()
    status, _, errors = train(**settings)
    assert status == 0, errors
    for seed in (0, 1):
        require_whole(run / f"seed_{seed:03d}", seed)
