"""Two processes over loopback are one run."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import tiny
from tiny import lines, require_close, saved_state

from kernsym_jax.training import processes

# An evaluation at every step makes the run last until a signal has arrived.
LONG = {"epochs": 900 / 22, "eval_every_epochs": 1 / 22, "checkpoint_every_epochs": 1.0}
CONFIG = f"""
import tiny

def get_config():
    return tiny.config(**{LONG})
"""


def train_in_two_processes(repository, folder, lines_to_wait_for):
    """Starts or resumes a run, and stops it by a signal to its second process."""
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": f"{repository}:{repository / 'tests' / 'support'}",
        "CONFIG": str(folder / "config.py"),
        "WORKDIR": str(folder / "run"),
    }
    metrics = folder / "run" / "metrics.jsonl"
    script = subprocess.Popen(
        ["bash", repository / "launch" / "local_multi_host.sh"],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (metrics.exists() and metrics.read_text().count("\n") > lines_to_wait_for):
        assert time.monotonic() < deadline
        assert script.poll() is None, script.communicate()
        time.sleep(0.02)
    children = pathlib.Path(f"/proc/{script.pid}/task/{script.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGTERM)
    out, errors = script.communicate(timeout=200)
    assert script.returncode == 75, errors
    assert out.count("of 900, which is saved") == 1
    return int(re.search(r"stopped after step (\d+)", out)[1])


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_two_processes_stopped_together_by_a_signal_to_one_and_resumed_are_as_one(
    repository, tmp_path
):
    (tmp_path / "config.py").write_text(CONFIG)
    first = train_in_two_processes(repository, tmp_path, 10)
    written = len(lines(tmp_path / "run"))
    last = train_in_two_processes(repository, tmp_path, written + 10)
    assert 0 < first < last
    one = tiny.parts(tiny.config(**LONG))
    state, logs = one.train(last)
    saved = saved_state(tmp_path / "run", tiny.config(**LONG))
    assert int(saved.step) == last
    require_close(saved.params, state.params)
    require_close(saved.batch_stats, state.batch_stats)
    written = lines(tmp_path / "run", "train")
    assert [line["step"] for line in written] == list(range(3, last + 1, 3))
    for line in written:
        meter = logs[line["step"] - 1]["meter"]
        assert line["loss"] == pytest.approx(meter.loss / meter.steps, rel=1e-4)


def test_a_failure_is_raised_as_it_is_in_a_single_process():
    def fail():
        raise FileNotFoundError("data: no such folder")

    with pytest.raises(FileNotFoundError, match="data: no such folder"):
        processes.together(fail)


def test_half_a_description_of_the_processes_is_refused():
    with pytest.raises(ValueError, match="the number of processes together with"):
        processes.start(coordinator="127.0.0.1:1", processes=2)


def test_alone_no_process_is_joined():
    processes.start()
    processes.start(mode="off", coordinator="127.0.0.1:1", processes=2, process=0)
    assert processes.is_first()
    assert processes.first_says(3) == 3


def test_a_dry_run_prints_the_commands(repository):
    script = repository / "launch" / "local_multi_host.sh"
    done = subprocess.run(
        ["bash", script, "--dry_run", "--", "--config.seed=1"],
        env={"PATH": os.environ["PATH"], "NAME": "two", "PORT": "1234", "PYTHON": "python3"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    common = (
        "env JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=1 python3 -m "
        "kernsym_jax.train --config=configs/cifar10_resnet20.py --workdir=runs/two "
        "--coordinator=127.0.0.1:1234 --processes=2"
    )
    assert done.stdout.splitlines() == [
        f"{common} --process={index} --config.seed=1 &" for index in (0, 1)
    ]
