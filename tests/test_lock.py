"""One process at a time writes a folder; its lock ends with it, and no other host's is broken."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys

import pytest

from kernsym_jax import lock

HOLDER = """
import errno, pathlib, sys
path, *options = sys.argv[1:]
if "no-flock" in options:
    import fcntl
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")
    fcntl.flock = refuse
from kernsym_jax import lock
try:
    with lock.only_writer(pathlib.Path(path), lambda: "wait" in options):
        print("held", flush=True)
        sys.stdin.read()
except lock.Locked as error:
    print(error, flush=True)
"""


@pytest.fixture
def start(repository, tmp_path):
    """Starts a process that takes the lock and holds it until its input ends."""
    stack = contextlib.ExitStack()

    def start(*options, path=tmp_path / ".lock", **environment):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path), *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(repository), **environment},
        )  # fmt: skip
        # In the other order: the process is killed, and then waited for.
        stack.enter_context(process)
        stack.callback(process.kill)
        return process

    with stack:
        yield start


def record(**changes):
    mine = {
        "host": socket.gethostname(), "pid": os.getpid(), "started": "2026-01-01T00:00:00+00:00",
        "ticks": None, "job": None,
    }  # fmt: skip
    return json.dumps({**mine, **changes})


def test_a_lock_names_its_process_and_goes_with_the_block(tmp_path):
    path = tmp_path / ".lock"
    with lock.only_writer(path):
        written = json.loads(path.read_text())
        assert (written["host"], written["pid"]) == (socket.gethostname(), os.getpid())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), lock.only_writer(path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [(), ("no-flock",)])
def test_a_second_process_is_refused_in_one_line_and_the_first_keeps_the_lock(
    start, tmp_path, options
):
    first = start(*options)
    assert first.stdout.readline() == "held\n"
    written = (tmp_path / ".lock").read_text()
    refused = start(*options).communicate()[0]
    assert refused.count("\n") == 1
    assert f"{tmp_path}: process {first.pid} on {socket.gethostname()} has been" in refused
    assert (tmp_path / ".lock").read_text() == written
    first.communicate()
    assert not (tmp_path / ".lock").exists()
    after = start(*options)
    assert after.stdout.readline() == "held\n"


@pytest.mark.parametrize("options", [(), ("no-flock",)])
def test_the_lock_of_a_killed_process_is_taken_over(start, tmp_path, options):
    first = start(*options)
    assert first.stdout.readline() == "held\n"
    first.kill()
    first.wait()
    assert (tmp_path / ".lock").exists()
    second = start(*options)
    assert second.stdout.readline() == "held\n"
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == second.pid


def test_of_many_processes_at_once_one_holds_the_lock_at_any_time(start, tmp_path):
    waiting = [start("wait") for _ in range(5)]
    for number in range(5):
        ready, _, _ = select.select([process.stdout for process in waiting], [], [], 60)
        (holder,) = [process for process in waiting if process.stdout in ready]
        assert holder.stdout.readline() == "held\n"
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == holder.pid
        waiting.remove(holder)
        # Some end in order, others are killed.
        if number % 2:
            holder.kill()
        holder.stdin.close()
        holder.wait(60)


def test_a_number_that_another_process_has_now_is_no_lock(tmp_path):
    # Process 1 runs on every machine, and started at another time than this lock says.
    (tmp_path / ".lock").write_text(record(pid=1, ticks=-5))
    with lock.only_writer(tmp_path / ".lock"):
        pass


@pytest.mark.parametrize(
    "content", ["", "null", "[]", "{", record(pid="x"), "[" * 4000, record(pid=2**70), "\0" * 300]
)
def test_a_damaged_lock_that_nobody_holds_is_taken_over(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    with lock.only_writer(tmp_path / ".lock"):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_another_hosts_lock_is_refused_with_the_file_to_remove(tmp_path):
    path = tmp_path / ".lock"
    path.write_text(record(host="else\nwhere", pid=7))
    before = path.read_bytes()
    with (
        pytest.raises(lock.LockedElsewhere, match=r"process 7 on else\\nwhere .* remove ") as found,
        lock.only_writer(path, lambda: True),
    ):
        pass
    assert str(found.value).endswith(f"if that process has ended, remove {path}")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("variables", "owner", "taken"),
    [
        ({"SKYPILOT_TASK_ID": "a"}, "SKYPILOT_TASK_ID=a", True),
        ({"SKYPILOT_TASK_ID": "b"}, "SKYPILOT_TASK_ID=a", False),
        ({"SLURM_JOB_ID": "3", "SLURM_RESTART_COUNT": "1"}, "SLURM_JOB_ID=3", True),
        ({"SLURM_JOB_ID": "3"}, "SLURM_JOB_ID=3", False),
        ({"SLURM_JOB_ID": "4", "SLURM_RESTART_COUNT": "1"}, "SLURM_JOB_ID=3", False),
        ({"KERNSYM_JAX_JOB": "mine"}, "KERNSYM_JAX_JOB=mine", True),
        ({}, None, False),
    ],
)
def test_a_job_that_is_started_again_on_another_host_keeps_its_lock(
    tmp_path, monkeypatch, variables, owner, taken
):
    for name in ("SKYPILOT_TASK_ID", "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "KERNSYM_JAX_JOB"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".lock").write_text(record(host="elsewhere", job=owner))
    if taken:
        with lock.only_writer(tmp_path / ".lock"):
            assert json.loads((tmp_path / ".lock").read_text())["host"] == socket.gethostname()
    else:
        with pytest.raises(lock.LockedElsewhere), lock.only_writer(tmp_path / ".lock"):
            pass


def test_two_threads_do_not_share_a_lock(tmp_path):
    path = tmp_path / ".lock"
    with lock.only_writer(path), pytest.raises(lock.Locked), lock.only_writer(path):
        pass
    assert not path.exists()


def test_who_waits_gets_the_lock_when_it_is_free_and_says_that_it_waits(start):
    first = start()
    assert first.stdout.readline() == "held\n"
    second = start("wait")
    assert "waiting: " in second.stderr.readline()
    first.send_signal(signal.SIGKILL)
    assert second.stdout.readline() == "held\n"


def test_a_link_in_place_of_a_lock_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("text")
    (tmp_path / ".lock").symlink_to("precious")
    with pytest.raises(OSError, match=r"\.lock"), lock.only_writer(tmp_path / ".lock"):
        pass
    assert (tmp_path / "precious").read_text() == "text"


def test_a_lock_that_is_removed_and_taken_by_another_is_left_to_it(start, tmp_path):
    path = tmp_path / ".lock"
    with lock.only_writer(path):
        path.unlink()
        second = start()
        assert second.stdout.readline() == "held\n"
    assert json.loads(path.read_text())["pid"] == second.pid
