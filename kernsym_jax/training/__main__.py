"""A child process of `kernsym_jax.training.children`.

It trains the config in a file, or measures how fast it would train.
"""

import contextlib
import json
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax

from kernsym_jax import cli, data
from kernsym_jax.training.backend import choose_backend
from kernsym_jax.training.config import complete, resolve
from kernsym_jax.training.loop import train_and_evaluate
from kernsym_jax.training.processes import Preempted
from kernsym_jax.training.state import make_recipe

# A measurement of the speed takes this many steps, and between half a second and three.
_STEPS, _SHORTEST, _LONGEST = 200, 0.5, 3.0


def main(argv: Sequence[str]) -> int:
    """Runs the task ``train FILE WORKDIR`` or ``speed FILE``; returns the exit status."""
    task, file, *rest = argv
    settings = json.loads(pathlib.Path(file).read_text("utf-8"))
    try:
        if task == "speed":
            _tell_speed(settings["config"])
            return 0
        threading.Thread(target=_stop_with_parent, daemon=True).start()
        # The child of a population that was killed may still save this run.
        train_and_evaluate(settings["config"], rest[0], resume=settings["resume"], wait=True)
    except Preempted as stopped:
        print(stopped, flush=True)
        return cli.PREEMPTED
    except (ValueError, OSError) as error:
        print(cli.describe(error), file=sys.stderr, flush=True)
        return cli.BAD_INPUT
    return 0


def _stop_with_parent() -> None:
    """Asks the run to stop once the parent has ended, for any reason."""
    # Not through sys.stdin, whose lock would be held when this process ends first.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _tell_speed(config: dict[str, Any]) -> None:
    """Prints ``ready``, waits for a line, trains a few seconds and prints images per second."""
    with contextlib.redirect_stdout(sys.stderr):
        resolved = resolve(config)
        backend = choose_backend(resolved)
        dataset = data.open_dataset(resolved, backend)
        recipe = make_recipe(complete(resolved, dataset), dataset, backend.axis_name)
        state = backend.join([backend.initial_state(recipe, dataset.image_shape, resolved.seed)])
        step, keys = backend.compile_train(recipe), backend.keys([resolved.seed])
        batches = dataset.train.start(0)
        state, logs = step(state, next(batches), keys)
        jax.block_until_ready(logs)
    print("ready", flush=True)
    if not sys.stdin.readline():  # the parent has ended
        return
    started, steps, seconds = time.monotonic(), 0, 0.0
    while seconds < _SHORTEST or (steps < _STEPS and seconds < _LONGEST):
        state, logs = step(state, next(batches), keys)
        jax.block_until_ready(logs)
        steps += 1
        seconds = time.monotonic() - started
    print(steps * resolved.batch_size / seconds, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
