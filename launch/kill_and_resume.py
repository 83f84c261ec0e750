"""Kills a training run at random moments, and checks that its end is that of an undisturbed run.

python launch/kill_and_resume.py --kills=10 --workdir=/tmp/killed --config=configs/digits.py

One run trains undisturbed. Another is killed (SIGKILL) and restarted several times; its final state
must be bit-equal to that of the first run, and its metrics.jsonl the same, without a gap or a
duplicate. The arguments after ``--`` are those of kernsym_jax.train.
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

_CONFIG = flags.DEFINE_string("config", "configs/digits.py", "The run's config, a Python file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the two runs; it must not exist.")
_KILLS = flags.DEFINE_integer("kills", 10, "Number of times that the run is killed.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random moments.")


def main(argv: Sequence[str]) -> None:
    """Runs both and compares them."""
    if _WORKDIR.value is None:
        raise ValueError("--workdir is needed")
    folder = pathlib.Path(_WORKDIR.value)
    folder.mkdir(parents=True)
    whole, killed = folder / "whole", folder / "killed"
    finish(start(whole, argv[1:]))
    steps = run_directory.read_summary(whole)["step"]
    draw = random.Random(_SEED.value)
    # Not up to the end, which the run may reach before the signal arrives.
    moments = sorted(draw.randrange(steps * 4 // 5) for _ in range(_KILLS.value))
    deaths = [kill_after(killed, moment, draw.random(), argv[1:]) for moment in moments]
    finish(start(killed, argv[1:]))
    compare(killed, whole, steps)
    print(f"killed after steps {deaths} of {steps}: the same final state and metrics", flush=True)


def start(workdir: pathlib.Path, arguments: Sequence[str]) -> subprocess.Popen:
    """Starts or resumes a run."""
    command = [sys.executable, "-m", "kernsym_jax.train", f"--config={_CONFIG.value}"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *arguments], stdout=subprocess.DEVNULL
    )


def finish(process: subprocess.Popen) -> None:
    """Waits for a run, and raises `ValueError` unless its exit status is 0."""
    if process.wait() != 0:
        raise ValueError(f"a run ended with status {process.returncode}")


def kill_after(workdir: pathlib.Path, step: int, share: float, arguments: Sequence[str]) -> int:
    """Kills a run soon after a step, and returns the last step in its metrics.

    Args:
      workdir: the run directory.
      step: the step to wait for in the metrics; if they are beyond it, any new line.
      share: further time to wait, in tenths of a second, so that any moment may be hit.
      arguments: further arguments of the run.
    """
    process, before = start(workdir, arguments), last_step(workdir)
    while process.poll() is None:
        now = last_step(workdir)
        if now >= step and now != before:
            time.sleep(share / 10)
            break
        time.sleep(0.001)
    process.kill()
    if process.wait() == 0:
        raise ValueError(f"the run ended before it could be killed after step {step}")
    return last_step(workdir)


def last_step(workdir: pathlib.Path) -> int:
    """Returns the step of the last whole line of the metrics, -1 if there is none."""
    # Only the last line is parsed, because this is asked every millisecond.
    path = workdir / run_directory.METRICS
    lines = path.read_text().splitlines(True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return json.loads(whole[-1])["step"] if whole else -1


def compare(one: pathlib.Path, other: pathlib.Path, step: int) -> None:
    """Raises `ValueError` unless two runs have the same metrics and the same final state."""
    logs = [(folder / run_directory.METRICS).read_text() for folder in (one, other)]
    if logs[0] != logs[1]:
        raise ValueError(f"{one} and {other} have other lines in {run_directory.METRICS}")
    checkpoints = [folder / run_directory.CHECKPOINTS / str(step) for folder in (one, other)]
    arrays = [orbax.read_arrays(checkpoint) for checkpoint in checkpoints]
    if arrays[0].keys() != arrays[1].keys():
        raise ValueError(f"{one} and {other} have saved different arrays")
    for path, array in arrays[0].items():
        if not np.array_equal(array.read(), arrays[1][path].read()):
            raise ValueError(f"{one} and {other} differ in {'/'.join(path)}")


if __name__ == "__main__":
    cli.run(main)
