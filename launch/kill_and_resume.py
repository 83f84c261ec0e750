"""Kills training at random moments, and checks that its end is that of undisturbed training.

python launch/kill_and_resume.py --kills=10 --workdir=/tmp/killed --config=configs/digits.py
python launch/kill_and_resume.py --kills=10 --workdir=/tmp/killed -- --config.seeds=3
python launch/kill_and_resume.py --workdir=/tmp/killed --study=configs/studies/emergence.py

One run, population or study is never disturbed. Another is killed (SIGKILL) and started again
several times: soon after a line of the metrics, and every fifth time while it starts. At the end
all final states must be bit-equal and every metrics.jsonl the same, without a gap or a duplicate;
of a study the tables too. The arguments after ``--`` are those of kernsym_jax.train or
kernsym_jax.study.
"""

import json
import pathlib
import random
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
from absl import flags

from kernsym_jax import cli, run_directory
from kernsym_jax.formats import orbax

_CONFIG = flags.DEFINE_string("config", "configs/digits.py", "The config, a Python file.")
_STUDY = flags.DEFINE_string("study", None, "A study, a Python file, in place of a config.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for both results; it must not exist.")
_KILLS = flags.DEFINE_integer("kills", 10, "Number of times that it is killed.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random moments.")

_TABLES = ("results.csv", "layers.csv", "claims.json")
# Of the runs: of one, of the members of a population, and of a study.
_PLACES = ("", "*/", "runs/*/*/")
COMMAND = cli.Command(
    name="kill_and_resume",
    summary="Kills training at random moments, and checks that its end is that of undisturbed "
    "training.",
    usage=("[flags] [-- FLAGS OF TRAIN OR STUDY]",),
    groups={"The test": "config=FILE study=FILE workdir=DIR kills seed"},
    examples={
        "--workdir=/tmp/killed": "The digits, killed ten times",
        "--workdir=/tmp/killed -- --config.seeds=3": "A population",
        "--workdir=/tmp/killed --study=configs/studies/emergence.py": "A study",
    },
    choices=dict,
)
# Every so many kills, one comes before the first new line of the metrics.
_WHILE_STARTING = 5


def main(argv: Sequence[str]) -> None:
    """Trains both and compares them."""
    if _WORKDIR.value is None:
        raise ValueError("--workdir is needed")
    folder = pathlib.Path(_WORKDIR.value)
    folder.mkdir(parents=True)
    whole, killed = folder / "whole", folder / "killed"
    started = time.monotonic()
    process = start(whole, argv[1:])
    while process.poll() is None and not runs_in(whole):
        time.sleep(0.01)
    seconds = time.monotonic() - started
    finish(process)
    steps = steps_of(whole)
    draw = random.Random(_SEED.value)
    # Not up to the end, which may be reached before the signal arrives.
    moments = sorted(draw.randrange(steps * 4 // 5) for _ in range(_KILLS.value))
    deaths = []
    for number, moment in enumerate(moments, 1):
        if number % _WHILE_STARTING:
            deaths.append(kill_after(killed, moment, draw.random() / 10, argv[1:]))
        else:
            deaths.append(kill_while_starting(killed, draw.random() * seconds, argv[1:]))
    finish(start(killed, argv[1:]))
    compare(killed, whole)
    print(f"killed after steps {deaths} of {steps}: the same final state and metrics", flush=True)


def start(workdir: pathlib.Path, arguments: Sequence[str]) -> subprocess.Popen:
    """Starts or resumes the training."""
    if _STUDY.value is None:
        command = ["kernsym_jax.train", f"--config={_CONFIG.value}"]
    else:
        command = ["kernsym_jax.study", f"--study={_STUDY.value}"]
    return subprocess.Popen(
        [sys.executable, "-m", *command, f"--workdir={workdir}", *arguments],
        stdout=subprocess.DEVNULL,
    )


def finish(process: subprocess.Popen) -> None:
    """Waits for the training, and raises `ValueError` unless its exit status is 0."""
    if process.wait() != 0:
        raise ValueError(f"the training ended with status {process.returncode}")


def kill_after(workdir: pathlib.Path, step: int, seconds: float, arguments: Sequence[str]) -> int:
    """Kills the training soon after a step, and returns the steps in its metrics.

    Args:
      workdir: its directory.
      step: the step to wait for in the metrics; if they are beyond it, any new line.
      seconds: further time to wait, so that any moment may be hit.
      arguments: further arguments of the training.
    """
    process, before = start(workdir, arguments), steps_of(workdir)
    while process.poll() is None:
        now = steps_of(workdir)
        if now >= step and now != before:
            time.sleep(seconds)
            break
        time.sleep(0.001)
    return kill(process, workdir)


def kill_while_starting(workdir: pathlib.Path, seconds: float, arguments: Sequence[str]) -> int:
    """Kills the training some time after its start, and returns the steps in its metrics.

    A busy machine can take less time to start than it took before; the first new line of the
    metrics ends the wait, so that the training cannot end first.
    """
    process, before, ends = start(workdir, arguments), steps_of(workdir), time.monotonic() + seconds
    while time.monotonic() < ends and steps_of(workdir) <= before:
        time.sleep(0.001)
    return kill(process, workdir)


def kill(process: subprocess.Popen, workdir: pathlib.Path) -> int:
    """Kills the training, and returns the steps in its metrics."""
    process.kill()
    if process.wait() == 0:
        raise ValueError("the training ended before it could be killed")
    return steps_of(workdir)


def runs_in(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the run directories in a directory, which may be one itself."""
    # Not at any depth, because training makes and removes folders of checkpoints meanwhile.
    return sorted(
        path.parent for place in _PLACES for path in workdir.glob(place + run_directory.METRICS)
    )


def steps_of(workdir: pathlib.Path) -> int:
    """Returns the sum of the last steps in the metrics of all runs."""
    return sum(last_step(run) for run in runs_in(workdir))


def last_step(run: pathlib.Path) -> int:
    """Returns the step of the last whole line of the metrics, 0 if there is none."""
    # Only the last line is parsed, because this is asked every millisecond.
    lines = (run / run_directory.METRICS).read_text().splitlines(True)
    whole = [line for line in lines if line.endswith("\n")]
    return json.loads(whole[-1])["step"] if whole else 0


def compare(one: pathlib.Path, other: pathlib.Path) -> None:
    """Raises `ValueError` unless two directories have the same metrics, states and tables."""
    places = [[run.relative_to(folder) for run in runs_in(folder)] for folder in (one, other)]
    if places[0] != places[1]:
        raise ValueError(f"{one} and {other} have other runs")
    for place in places[0]:
        compare_runs(one / place, other / place)
    for name in _TABLES if _STUDY.value is not None else ():
        # The command in the claims names the folder.
        texts = [(folder / name).read_text().replace(str(folder), "") for folder in (one, other)]
        if texts[0] != texts[1]:
            raise ValueError(f"{one} and {other} have other numbers in {name}")


def compare_runs(one: pathlib.Path, other: pathlib.Path) -> None:
    """Raises `ValueError` unless two runs have the same metrics and the same final state."""
    logs = [(folder / run_directory.METRICS).read_text() for folder in (one, other)]
    if logs[0] != logs[1]:
        raise ValueError(f"{one} and {other} have other lines in {run_directory.METRICS}")
    step = str(run_directory.read_summary(other)["step"])
    checkpoints = [folder / run_directory.CHECKPOINTS / step for folder in (one, other)]
    arrays = [orbax.read_arrays(checkpoint) for checkpoint in checkpoints]
    if arrays[0].keys() != arrays[1].keys():
        raise ValueError(f"{one} and {other} have saved different arrays")
    for path, array in arrays[0].items():
        if not np.array_equal(array.read(), arrays[1][path].read()):
            raise ValueError(f"{one} and {other} differ in {'/'.join(path)}")


if __name__ == "__main__":
    cli.run(main, COMMAND)
