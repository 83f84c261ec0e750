"""Kills a training run at random moments, and checks that nothing of it shows in the end.

python launch/kill_and_resume.py --kills=10 --workdir=/tmp/killed --config=configs/digits.py

One run goes through undisturbed. Another is killed (SIGKILL) again and again and started anew; its
final state must be bit-equal to the other's and its metrics.jsonl the same, without gap or
duplicate. The arguments after ``--`` are passed on to kernsym_jax.train.
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

from kernsym_jax import cli
from kernsym_jax.formats import orbax

_CONFIG = flags.DEFINE_string("config", "configs/digits.py", "The run's config, a Python file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the two runs; must not be there.")
_KILLS = flags.DEFINE_integer("kills", 10, "How often the run is killed.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")


def main(argv: Sequence[str]) -> None:
    """Runs both and compares them."""
    if _WORKDIR.value is None:
        raise ValueError("--workdir is needed")
    folder = pathlib.Path(_WORKDIR.value)
    folder.mkdir(parents=True)
    whole, killed = folder / "whole", folder / "killed"
    finish(start(whole, argv[1:]))
    steps = json.loads((whole / "summary.json").read_text())["step"]
    draw = random.Random(_SEED.value)
    # Not quite to the end, which a run may reach before the signal does.
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
    """Waits for a run that must end well."""
    if process.wait() != 0:
        raise ValueError(f"a run ended with status {process.returncode}")


def kill_after(workdir: pathlib.Path, step: int, share: float, arguments: Sequence[str]) -> int:
    """Kills a run soon after a step; returns the last step in its metrics.

    Args:
      workdir: of the run.
      step: that has to appear in the metrics first, or any, if they are further already.
      share: of a tenth of a second to wait then, so that any moment may be hit.
      arguments: of the run.
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
    """The step of the last whole line of a run's metrics, -1 if there is none."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return json.loads(whole[-1])["step"] if whole else -1


def compare(one: pathlib.Path, other: pathlib.Path, step: int) -> None:
    """Raises `ValueError` unless two runs have come to the same end."""
    logs = [(folder / "metrics.jsonl").read_text() for folder in (one, other)]
    if logs[0] != logs[1]:
        raise ValueError(f"{one}/metrics.jsonl is not {other}/metrics.jsonl")
    arrays = [orbax.read_arrays(folder / "checkpoints" / str(step)) for folder in (one, other)]
    if arrays[0].keys() != arrays[1].keys():
        raise ValueError(f"{one} and {other} have saved different arrays")
    for path, array in arrays[0].items():
        if not np.array_equal(array.read(), arrays[1][path].read()):
            raise ValueError(f"{one} and {other} differ in {'/'.join(path)}")


if __name__ == "__main__":
    cli.run(main)
