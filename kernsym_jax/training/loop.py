"""The story of training, step by step: of one network, or of a population side by side."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from kernsym_jax import data, symmetry
from kernsym_jax.training import ahead
from kernsym_jax.training.backend import Backend
from kernsym_jax.training.consistency import Consistency
from kernsym_jax.training.metrics import Progress, show
from kernsym_jax.training.profile import Profile
from kernsym_jax.training.recipe import Recipe
from kernsym_jax.training.run import Run, require_finite
from kernsym_jax.training.state import TrainState
from kernsym_jax.training.step import Logs
from kernsym_jax.training.stop import Preempted, Stop


class Loop:
    """What the parts of the loop share.

    Args:
      runs: of the networks that train side by side, in the order of the state's members.
      backend: on which they train.
      recipe: of their steps.
      dataset: their data.
      stop: whether they have been asked to stop.
      profile: folder for a profile of a few steps, or ``None``.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        backend: Backend,
        recipe: Recipe,
        dataset: data.Dataset,
        stop: Stop,
        profile: str | None = None,
    ) -> None:
        self._runs, self._backend, self._recipe = runs, backend, recipe
        self._dataset, self._stop, self._profile = dataset, stop, profile
        self._train_step = backend.compile_train(recipe)
        self._eval_step = backend.compile_eval(recipe)
        self._config, per_epoch = runs[0].config, dataset.train.steps_per_epoch
        self._consistency: Consistency | None = None
        if self._config.consistency.images:
            self._consistency = Consistency(self._config, backend, recipe, dataset)
        self._evaluate_at = round(self._config.eval_every_epochs * per_epoch) or 1
        self._save_at = round(self._config.checkpoint_every_epochs * per_epoch) or 1
        self._images_per_step = self._config.batch_size * len(runs)
        self._speeds: list[float] = []
        self._seconds = self._waited = 0.0

    def go(self, state: TrainState) -> list[dict[str, Any]]:
        """Trains to the end and returns the summaries of the runs.

        Args:
          state: where to start; it is donated to the first step.

        Raises:
          ValueError: if a loss is not finite.
          OSError: if a checkpoint cannot be saved.
          Preempted: after a request to stop, once the state is saved.
        """
        started, steps = time.monotonic(), self._recipe.total_steps
        first = int(state.step)
        keys = self._backend.keys([run.config.seed for run in self._runs])
        if not first and not self._written(0, "symmetry"):
            self._measure_start(state)
        # From here on every copy between host and device is written out in the code.
        with jax.transfer_guard("disallow"):
            # A request to stop may have cut the evaluation short that was due here.
            complete = not first or self._evaluate(first, state)
            if complete:
                state, complete = self._steps(state, first, keys)
            step = int(jax.device_get(state.step))
            if not complete:
                self._save(step, state)
        for run in self._runs:
            run.checkpoints.wait()
        for run in self._runs:
            run.checkpoints.trim()
        if not complete:
            raise Preempted(f"stopped after step {step} of {steps}, which is saved")
        epochs = step / self._dataset.train.steps_per_epoch
        speed = float(np.median(self._speeds)) / len(self._runs) if self._speeds else None
        waiting = self._waited / self._seconds if self._seconds else None
        facts = {"step": step, "epochs": epochs, "images_per_second": speed}
        facts |= {"waiting_share": waiting, "seconds": time.monotonic() - started}
        return [run.finish(**facts) for run in self._runs]

    def _steps(self, state: TrainState, step: int, keys: jax.Array) -> tuple[TrainState, bool]:
        """All remaining steps, and whether they came to the end."""
        steps, first, logs = self._recipe.total_steps, step, None
        progress, profile = Progress(steps, step), Profile(self._profile, step)
        flight = ahead.Ahead(self._dataset.train.start(step))
        unwritten: tuple[int, Logs] | None = None
        complete, resumed = True, time.monotonic()
        while complete and step < steps and not self._stop.agreed(step):
            profile.before(step)
            state, logs = self._train_step(state, flight.batch(), keys)
            step += 1
            flight.started(logs["meter"])
            if step == first + 1:
                jax.block_until_ready(logs)
                progress.restart(step)
            # What a step has logged is written while the next one runs.
            self._write(unwritten, progress)
            unwritten = (step, logs) if self._recipe.logs_at(step) else None
            if step % self._evaluate_at == 0 or step % self._save_at == 0 or step == steps:
                self._write(unwritten, progress)
                unwritten = None
                self._seconds += time.monotonic() - resumed
                complete = self._pause(step, state, logs)
                progress.restart(step)
                resumed = time.monotonic()
        profile.close()
        self._write(unwritten, progress)
        self._seconds += time.monotonic() - resumed
        self._waited = flight.waited
        if logs is not None:
            self._require_finite(logs)
        return state, complete and step == steps

    def _pause(self, step: int, state: TrainState, logs: Logs) -> bool:
        """Evaluates and saves where that is due; whether it came to the end."""
        self._require_finite(logs)
        last = step == self._recipe.total_steps
        if not self._evaluate(step, state):
            return False
        if step % self._save_at == 0 or last:
            self._save(step, state)
        return True

    def _evaluate(self, step: int, state: TrainState) -> bool:
        """Evaluates if that is due and not done; whether it came to the end."""
        if step % self._evaluate_at != 0 and step != self._recipe.total_steps:
            return True
        if not self._written(step, "eval") and not self._test(step, state):
            return False
        if self._consistency is None or self._written(step, "consistency"):
            return True
        found = self._consistency.measure(state, self._stop)
        for run, figures in zip(self._runs, found or [], strict=False):
            run.log_consistency(step, figures)
            kept = {"shifted": figures.get("shifts"), **figures["flips"]}
            shown = "  ".join(
                f"{name} {kept[name]:.4f}"
                for name in ("shifted", "fliplr", "flipud")
                if kept[name] is not None
            )
            show(f"{self._named(run)}same answer: {shown}  ({figures['images']} images)")
        return found is not None

    def _test(self, step: int, state: TrainState) -> bool:
        """Evaluates on the test images; whether it came to the end."""
        parts: list[Any] = []
        for batch in self._dataset.evaluation():
            if self._stop.asked():
                return False
            parts.append(self._eval_step(state, batch))
            if len(parts) > ahead.STEPS:
                jax.block_until_ready(parts[-ahead.STEPS])
        parts = jax.device_get(parts)
        for index, run in enumerate(self._runs):
            sums = {
                name: sum(np.asarray(self._of(part[name], index), np.float64) for part in parts)
                for name in parts[0]
            }
            figures = run.log_evaluation(step, sums)
            shown = "  ".join(
                f"{name.replace('_', ' ')} {figures[name]:.4f}"
                for name in ("accuracy", "mean_iou", "loss")
                if name in figures
            )
            show(
                f"{self._named(run)}evaluation after step {step}: {shown}  "
                f"({figures['images']} images)"
            )
        return True

    def _named(self, run: Run) -> str:
        return f"{run.name}: " if len(self._runs) > 1 else ""

    def _save(self, step: int, state: TrainState) -> None:
        # The members' older checkpoints go only when all newer ones are on disk: whenever a process
        # dies, there is a step that all of them have.
        for run in self._runs:
            run.checkpoints.wait()
        for run in self._runs:
            run.checkpoints.trim()
        for index, run in enumerate(self._runs):
            run.save(step, self._backend.member(state, index))

    def _written(self, step: int, split: str) -> bool:
        # Every process has to ask for every run.
        return all([run.written(step, split) for run in self._runs])  # noqa: C419

    def _write(self, unwritten: tuple[int, Logs] | None, progress: Progress) -> None:
        if unwritten is None:
            return
        step, logs = unwritten
        logs = jax.device_get(logs)
        shown = [run.log(step, self._of(logs, index)) for index, run in enumerate(self._runs)]
        means = {name: float(np.mean([one[name] for one in shown])) for name in shown[0]}
        self._speeds.append(progress.line(step, self._images_per_step, means))

    def _measure_start(self, state: TrainState) -> None:
        measure = jax.jit(jax.vmap(symmetry.measure) if self._backend.members else symmetry.measure)
        logs = {"symmetry": jax.device_get(measure(state.params))}
        if state.ema:
            logs["ema_symmetry"] = logs["symmetry"]
        for index, run in enumerate(self._runs):
            run.log_symmetry(0, self._of(logs, index))

    def _require_finite(self, logs: Logs) -> None:
        meter = jax.device_get(logs["meter"])
        for index in range(len(self._runs)):
            require_finite(self._of(meter, index))

    def _of(self, tree: Any, index: int) -> Any:
        """What belongs to one run, of host arrays."""
        return jax.tree.map(lambda leaf: leaf[index], tree) if self._backend.members else tree
