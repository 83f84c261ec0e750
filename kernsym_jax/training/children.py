"""Runs side by side on one machine, each in a child process.

On a CPU a small network leaves most threads idle: one single-threaded process per core trains more
images per second in total. `compare_speeds` measures on this machine whether that is so, and
`run_jobs` starts the processes and waits for them.

A run has the same results, bit for bit, in any process with the same number of threads. Sums over
several threads round differently from sums over one.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
import ml_collections

from kernsym_jax import data
from kernsym_jax.training.backend import choose_backend
from kernsym_jax.training.config import to_json
from kernsym_jax.training.pace import show
from kernsym_jax.training.processes import Preempted, Stop

_POLL_SECONDS = 0.2
_MARGIN = 1.1
"""Several processes must be this many times as fast, because each compiles by itself."""

_WORTH_MEASURING = 200_000
"""Images of all runs together; fewer would be trained before a measurement ends."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A child process.

    Attributes:
      name: name of the run.
      command: arguments, the interpreter first.
      log: file for its output.
    """

    name: str
    command: Sequence[str]
    log: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Speeds:
    """Training speeds of one network and of several at once on this machine.

    Attributes:
      together: images per second of one process with all threads.
      apart: images per second of all single-threaded processes in sum.
      processes: number of single-threaded processes.
    """

    together: float
    apart: float
    processes: int

    @property
    def choice(self) -> int:
        """How many processes to use; 0 for one process after another with all threads."""
        return self.processes if self.apart > _MARGIN * self.together else 0

    def __str__(self) -> str:
        chosen = "runs train side by side" if self.choice else "runs train one after another"
        return (
            f"{self.processes} single-threaded processes {self.apart:,.0f} img/s, one process with "
            f"all threads {self.together:,.0f} img/s: {chosen}"
        )


def cores() -> int:
    """Returns the number of cores on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def one_thread(cache: pathlib.Path) -> dict[str, str]:
    """Returns the environment in which a child computes on a single thread.

    Args:
      cache: folder of compiled programs for all children, unless the environment names one.
    """
    # XLA takes NPROC for the number of cores. XLA_FLAGS would limit one of its two thread pools,
    # and keep children from programs that other processes have compiled.
    threads = dict.fromkeys(("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {"JAX_COMPILATION_CACHE_DIR": str(cache), **os.environ, **threads}


def choose_places(
    config: ml_collections.ConfigDict,
    configs: Sequence[ml_collections.ConfigDict],
    workdir: pathlib.Path,
    stop: Stop,
) -> int:
    """Returns how many members of a population train at once in child processes; 0 for none.

    With ``config.population=auto`` it measures first, on a CPU with several cores and for runs that
    are long enough to be worth it.

    Args:
      config: the resolved config of the population.
      configs: those of the members that have not ended.
      workdir: the directory of the population.
      stop: request to stop.

    Raises:
      ValueError: if the config asks for child processes in a run of several processes.
    """
    several = jax.process_count() > 1
    if config.population == "processes" and several:
        raise ValueError("config.population=processes needs a run of a single process")
    places = min(cores(), len(configs))
    if config.population == "processes":
        return places
    on_one_cpu = not several and jax.default_backend() == "cpu"
    if config.population != "auto" or not on_one_cpu or places < 2:
        return 0
    if _images(configs[0]) * len(configs) < _WORTH_MEASURING:
        return 0
    speeds = compare_speeds(configs[0], _logs(workdir), stop, places)
    show(f"measured: {speeds}" if speeds else "no speed was measured: runs train one after another")
    return speeds.choice if speeds else 0


def train_members(
    configs: Sequence[ml_collections.ConfigDict],
    folders: Sequence[pathlib.Path],
    stop: Stop,
    *,
    places: int,
    resume: bool,
) -> None:
    """Trains members of a population in single-threaded child processes.

    Args:
      configs: the resolved configs of the members.
      folders: their run directories, in the directory of the population.
      stop: request to stop.
      places: how many train at once.
      resume: whether a run with another config continues with this one.

    Raises:
      ValueError: if members failed, once all others have ended; it says which and why.
      Preempted: after a request to stop, once the children have saved their state.
    """
    logs = _logs(folders[0].parent)
    jobs = []
    for config, folder in zip(configs, folders, strict=True):
        file = logs / f"{folder.name}.json"
        file.write_text(json.dumps({"config": to_json(config), "resume": resume}), "utf-8")
        log = logs / f"{folder.name}.log"
        jobs.append(Job(folder.name, _command("train", file, folder), log))
    failed = run_jobs(jobs, stop, [one_thread(logs / "compiled")] * places)
    if failed:
        raise ValueError("; ".join(f"{name}: {reason}" for name, reason in failed.items()))


def run_jobs(
    jobs: Sequence[Job], stop: Stop, environments: Sequence[dict[str, str]]
) -> dict[str, str]:
    """Runs jobs, as many at once as there are environments, and waits for all of them.

    Args:
      jobs: the jobs, in the order in which they start.
      stop: request to stop; it reaches every child as SIGTERM.
      environments: environment variables of each place in which a job can run.

    Returns:
      By name of each job that failed, the reason in one line.

    Raises:
      Preempted: after a request to stop, once the children have saved their state.
    """
    failed: dict[str, str] = {}
    waiting, free = list(jobs), list(range(len(environments)))
    running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
    while running or (waiting and not stop.asked()):
        while waiting and free and not stop.asked():
            job, place = waiting.pop(0), free.pop(0)
            running[place] = job, _start(job, environments[place])
            show(f"{job.name}: started, see {job.log}")
        if stop.asked():
            for _, child in running.values():
                child.terminate()
        time.sleep(_POLL_SECONDS)
        for place, (job, child) in list(running.items()):
            if child.poll() is None:
                continue
            _end(child)
            del running[place]
            free.append(place)
            if child.returncode and not stop.asked():
                failed[job.name] = _reason(job, child.returncode)
            show(f"{job.name}: {_ending(child.returncode)}")
    if stop.asked():
        raise Preempted("stopped; what has been trained is saved")
    return failed


def compare_speeds(
    config: ml_collections.ConfigDict, folder: pathlib.Path, stop: Stop, processes: int
) -> Speeds | None:
    """Trains a few steps in one process with all threads, and in several of one thread at once.

    Args:
      config: the resolved config of one network.
      folder: existing folder for the compiled programs and the output of the processes.
      stop: request to stop.
      processes: number of single-threaded processes.

    Returns:
      The speeds; None if a measurement failed or was stopped.
    """
    path = folder / "speed.json"
    path.write_text(json.dumps({"config": to_json(config)}), "utf-8")
    command, log = _command("speed", path), folder / "speed.log"
    single = one_thread(folder / "compiled")
    every = {"JAX_COMPILATION_CACHE_DIR": single["JAX_COMPILATION_CACHE_DIR"], **os.environ}
    together = _speed([Job("speed", command, log)], [every], stop)
    if not together:
        return None
    apart = _speed([Job("speed", command, log)] * processes, [single] * processes, stop)
    return Speeds(together, apart, processes) if apart else None


def _speed(jobs: Sequence[Job], environments: Sequence[dict[str, str]], stop: Stop) -> float:
    """Returns the images per second of all jobs in sum; 0 if one of them failed."""
    with contextlib.ExitStack() as stack:
        children = [
            _start(job, environment, stdout=subprocess.PIPE)
            for job, environment in zip(jobs, environments, strict=True)
        ]
        for child in children:
            stack.callback(_end, child)
        # Each has compiled its step when it says so; from then on they run at the same time.
        if not all(_line(child, stop) == b"ready\n" for child in children):
            return 0.0
        for child in children:
            if child.stdin is not None:
                child.stdin.write(b"go\n")
                child.stdin.flush()
        answers = [_line(child, stop) for child in children]
        return sum(map(float, answers)) if all(answers) else 0.0


def _start(
    job: Job, environment: dict[str, str], stdout: int | None = None
) -> subprocess.Popen[bytes]:
    # A child imports what this process can import: a network may be a class of the user's own.
    path = os.pathsep.join(sys.path)
    with job.log.open("ab") as log:
        return subprocess.Popen(
            job.command,
            stdin=subprocess.PIPE,  # closing it tells the child that this process has ended
            stdout=log if stdout is None else stdout,
            stderr=log,
            env={**environment, "PYTHONPATH": path},
            start_new_session=True,  # a key pressed here stops this process, which stops the child
        )


def _line(child: subprocess.Popen[bytes], stop: Stop) -> bytes:
    """Returns the next line that a child prints; empty if it ends, or on a request to stop."""
    if child.stdout is None:
        return b""
    while not stop.asked():
        if select.select([child.stdout], [], [], _POLL_SECONDS)[0]:
            return child.stdout.readline()
    return b""


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends a child if it still runs, and closes the pipes to it."""
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
    child.terminate()
    child.wait()


def _reason(job: Job, status: int) -> str:
    if status < 0:
        return _ending(status)
    lines = job.log.read_text("utf-8", "replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), _ending(status))


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _images(config: ml_collections.ConfigDict) -> float:
    """Returns the number of images on which a run trains, counting each epoch."""
    backend = choose_backend(config)
    train = data.open_dataset(config, backend).train
    return config.epochs * train.steps_per_epoch * config.batch_size


def _logs(workdir: pathlib.Path) -> pathlib.Path:
    """Makes the folder of the children's logs and compiled programs."""
    folder = workdir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _command(task: str, *paths: pathlib.Path) -> list[str]:
    return [sys.executable, "-m", "kernsym_jax.training", task, *map(str, paths)]
