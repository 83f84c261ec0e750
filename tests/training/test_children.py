"""Runs in child processes: same numbers, and no failure, signal or death that goes unnoticed."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
import tiny
from tiny import lines, require_close, saved_state

from kernsym_jax import cli, run_directory, training
from kernsym_jax.training import children
from kernsym_jax.training.processes import Stop


def job(folder, name, code):
    return children.Job(name, [sys.executable, "-c", code], folder / f"{name}.log")


def run(jobs, places=2, stop=None):
    return children.run_jobs(jobs, stop or Stop(), [dict(os.environ)] * places)


def wait_for(condition):
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_members_in_processes_are_as_if_trained_alone(tmp_path, capsys):
    config = tiny.config(seed=3, seeds=2, population="processes")
    summary = training.train_and_evaluate(config, tmp_path / "population")
    assert list(summary["members"]) == ["seed_003", "seed_004"]
    assert "seed_004: ended with status 0" in capsys.readouterr().out
    single = tiny.config(seed=4)
    training.train_and_evaluate(single, tmp_path / "run")
    member = tmp_path / "population" / "seed_004"
    states = [saved_state(folder, single) for folder in (member, tmp_path / "run")]
    require_close(states[0].params, states[1].params)
    kinds = [[(x["split"], x["step"]) for x in lines(f)] for f in (member, tmp_path / "run")]
    assert kinds[0] == kinds[1]
    found, wanted = (run_directory.read_config(f) for f in (member, tmp_path / "run"))
    assert found == wanted
    before = (member / "metrics.jsonl").read_bytes()
    assert training.train_and_evaluate(config, tmp_path / "population") == summary
    assert (member / "metrics.jsonl").read_bytes() == before


def test_a_member_that_fails_is_named_and_the_others_end(tmp_path):
    config = tiny.config(seeds=2, population="processes")
    broken = tmp_path / "seed_001"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    (tmp_path / "population.json").write_text(json.dumps({"members": ["seed_000", "seed_001"]}))
    with pytest.raises(ValueError, match=r"^seed_001: ") as caught:
        training.train_and_evaluate(config, tmp_path)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert run_directory.has_ended(tmp_path / "seed_000")


def test_failures_are_told_in_the_last_line_of_a_child_and_kills_by_their_signal(tmp_path):
    jobs = [
        job(tmp_path, "good", "print('done')"),
        job(tmp_path, "bad", "import sys; print('first'); sys.exit('no such file')"),
        job(tmp_path, "silent", "raise SystemExit(3)"),
        job(tmp_path, "killed", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
    ]
    assert run(jobs) == {
        "bad": "no such file",
        "silent": "ended with status 3",
        "killed": "killed by SIGKILL",
    }
    assert (tmp_path / "good.log").read_text() == "done\n"


def test_no_more_jobs_run_at_once_than_there_are_places(tmp_path):
    code = (
        "import os, pathlib, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "mine = folder / f'{os.getpid()}.here'\n"
        "mine.touch()\n"
        "time.sleep(0.3)\n"
        "print(len(list(folder.glob('*.here'))))\n"
        "mine.unlink()\n"
    )
    jobs = [job(tmp_path, f"job{n}", code) for n in range(4)]
    assert run(jobs) == {}
    counts = [int(one.log.read_text()) for one in jobs]
    assert max(counts) <= 2


def test_a_request_to_stop_saves_the_members_and_another_call_ends_them(tmp_path):
    long = {"epochs": 4000 / 22, "eval_every_epochs": 200.0, "checkpoint_every_epochs": 200.0}
    config = tiny.config(seeds=2, population="processes", **long)
    folders = [tmp_path / "seed_000", tmp_path / "seed_001"]

    def interrupt():
        wait_for(lambda: all((folder / "metrics.jsonl").exists() for folder in folders))
        wait_for(lambda: all(lines(folder, "train") for folder in folders))
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=interrupt)
    asking.start()
    with pytest.raises(training.Preempted):
        training.train_and_evaluate(config, tmp_path)
    asking.join()
    for folder in folders:
        assert not run_directory.has_ended(folder)
        assert list((folder / "checkpoints").iterdir())
        log = (tmp_path / "logs" / f"{folder.name}.log").read_text().splitlines()
        assert log[-1].startswith("stopped after step ")


def test_a_child_whose_parent_dies_saves_its_run_and_ends(tmp_path):
    config = tiny.config(epochs=4000 / 22, eval_every_epochs=200.0, checkpoint_every_epochs=200.0)
    settings = {"config": training.resolve(config).to_dict(), "resume": False}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "kernsym_jax.training", "train"]
    workdir = tmp_path / "run"
    child = subprocess.Popen(
        [*command, str(tmp_path / "config.json"), str(workdir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=children.one_thread(tmp_path),
    )
    wait_for(lambda: (workdir / "metrics.jsonl").exists() and lines(workdir, "train"))
    child.stdin.close()
    assert child.wait(120) == cli.PREEMPTED
    assert int(saved_state(workdir, config).step) > 0


def test_speeds_are_measured_both_ways_and_the_faster_one_is_chosen(tmp_path):
    config = training.resolve(tiny.config())
    speeds = children.compare_speeds(config, tmp_path, Stop(), 2)
    assert speeds.together > 0
    assert speeds.apart > 0
    assert "img/s" in str(speeds)
    assert children.Speeds(1000.0, 1500.0, 4).choice == 4
    assert children.Speeds(1000.0, 1050.0, 4).choice == 0


def test_a_measurement_that_fails_or_is_stopped_has_no_speeds(tmp_path):
    config = training.resolve(tiny.config(data__source=f"folder:{tmp_path}/none"))
    assert children.compare_speeds(config, tmp_path, Stop(), 2) is None
    assert "none" in (tmp_path / "speed.log").read_text()
    stop = Stop()
    stop.ask()
    assert children.compare_speeds(training.resolve(tiny.config()), tmp_path, stop, 2) is None


def test_a_child_of_one_thread_has_one_core_for_xla_and_keeps_a_given_cache(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/given")
    environment = children.one_thread(pathlib.Path("/ours"))
    assert environment["NPROC"] == "1"
    assert environment["JAX_COMPILATION_CACHE_DIR"] == "/given"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    assert children.one_thread(pathlib.Path("/ours"))["JAX_COMPILATION_CACHE_DIR"] == "/ours"


@pytest.mark.parametrize("population", ["auto", "turn"])
def test_short_runs_and_those_that_take_turn_are_not_measured(population, tmp_path):
    config = training.resolve(tiny.config(seeds=2, population=population))
    members = [training.resolve(tiny.config(seed=seed)) for seed in (0, 1)]
    assert children.choose_places(config, members, tmp_path, Stop()) == 0
    assert not list(tmp_path.iterdir())
