"""The study binary as a user meets it: exit statuses, one line for bad input, real signals."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import compiler
import pytest

from kernsym_jax.training import children


@pytest.fixture
def micro(repository):
    return repository / "tests" / "studies" / "micro_study.py"


def start(repository, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(repository), "PYTHONUNBUFFERED": "1"}
    # One device is enough, and starts faster than the suite's eight.
    environment["XLA_FLAGS"] = compiler.one_device()
    return subprocess.Popen(
        [sys.executable, "-m", "kernsym_jax.study", *map(str, arguments)],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process):
    out, errors = process.communicate(timeout=240)
    return process.returncode, out, errors


def wait_for(path: pathlib.Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--workdir={t}/s"], "--study is missing: a name (--study=list shows them) or a file"),
        (["--study={m}", "--workdir={t}/s", "--size=huge"], "unknown size 'huge'"),
        (["--study={m}", "--workdir={t}/s", "--gather"], "none of the 4 runs of micro"),
        (["--study={m}", "--workdir={t}/s", "--parallel=many"], "a number or auto; got 'many'"),
    ],
)
def test_bad_input_is_one_line_with_status_two(run_binary, micro, tmp_path, arguments, says):
    filled = [argument.format(m=micro, t=tmp_path) for argument in arguments]
    status, _, errors = run_binary("study", *filled)
    assert status == 2
    (line,) = errors.splitlines()
    assert says in line
    assert not (tmp_path / "s").exists()


def test_children_that_are_stopped_exit_75_and_end_like_runs_in_one_process(
    repository, run_binary, micro, tmp_path
):
    parts = (f"--study={micro}", "--size=cpu")
    status, out, errors = run_binary("study", *parts, f"--workdir={tmp_path}/whole")
    assert status == 0, errors
    assert "E4: too few seeds. Uneven padding skews." in out
    assert "what the primary tests can find, before the runs" in out

    stopped = start(repository, *parts, f"--workdir={tmp_path}/parts", "--parallel=2")
    wait_for(tmp_path / "parts/runs/even/seed_000/metrics.jsonl")
    stopped.send_signal(signal.SIGTERM)
    status, out, _ = finish(stopped)
    assert status == 75
    assert "what has been trained is saved" in out
    assert not (tmp_path / "parts/study.html").exists()

    status, _, errors = run_binary("study", *parts, f"--workdir={tmp_path}/parts")
    assert status == 0, errors
    for name in ("results.csv", "layers.csv"):
        texts = [(tmp_path / folder / name).read_text() for folder in ("whole", "parts")]
        assert texts[0] == texts[1]
    claims = [
        json.loads((tmp_path / folder / "claims.json").read_text())["claims"]
        for folder in ("whole", "parts")
    ]
    assert claims[0] == claims[1]


@pytest.mark.skipif(children.cores() < 2, reason="a single core has no choice")
def test_auto_measures_one_process_against_one_per_core_and_trains_everything(
    run_binary, micro, tmp_path
):
    parts = (f"--study={micro}", "--size=cpu", f"--workdir={tmp_path}/s", "--parallel=auto")
    status, out, errors = run_binary("study", *parts)
    assert status == 0, errors
    (line,) = [line for line in out.splitlines() if line.startswith("measured: ")]
    assert line.count("img/s") == 2
    side_by_side = line.endswith("side by side")
    assert ("even/seed_000: ended with status 0" in out) == side_by_side
    assert "E4: too few seeds. Uneven padding skews." in out


def test_listing_and_emitting_train_nothing(run_binary, micro, tmp_path):
    parts = ("study", f"--study={micro}", "--size=cpu", f"--workdir={tmp_path}/s")
    status, out, _ = run_binary(*parts, "--dry_run")
    assert status == 0
    assert "even/seed_000  missing" in out
    status, out, _ = run_binary(*parts, "--emit=commands")
    assert status == 0
    assert (tmp_path / "s/jobs/commands.sh").read_text().count("--only=") == 2
    assert not (tmp_path / "s/runs").exists()
