"""The story of a run, from a config and a directory to a trained network."""

import pathlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from kernsym_jax import data, geometry, models, symmetry
from kernsym_jax.training import config as configuration
from kernsym_jax.training import run_directory
from kernsym_jax.training.checkpoints import Checkpoints
from kernsym_jax.training.metrics import MetricsWriter, Progress
from kernsym_jax.training.state import (
    NEVER,
    Meter,
    TrainState,
    create_state,
    learning_rate,
    optimizer,
    total_steps,
)
from kernsym_jax.training.step import Recipe, jit_steps, logs_at


class Preempted(Exception):
    """The run was asked to stop, and has saved its state."""


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path, resume: bool = False
) -> dict[str, Any]:
    """Trains a network, or goes on where the directory's newest checkpoint ends.

    Args:
      config: any part of the keys of `kernsym_jax.training.config.default`.
      workdir: the run directory; made if it is not there.
      resume: agrees that a run with another config goes on with this one.

    Returns:
      What ``summary.json`` holds.

    Raises:
      ValueError: if the config, the data or the directory cannot be used, or a loss is not finite.
      FileNotFoundError: if the data are not there.
      Preempted: after SIGTERM or SIGINT, once the state is saved.
    """
    workdir = pathlib.Path(workdir)
    config = configuration.resolve(config)
    train_set = data.load(config.data.source, "train")
    test_set = data.load(config.data.source, "test")
    config = complete(config, train_set)
    batches = data.DeviceBatches(
        train_set, config.batch_size, config.seed, jax.device_put, jax.device_put
    )
    steps = total_steps(config, batches.steps_per_epoch)
    recipe = make_recipe(config, batches.steps_per_epoch)
    state = initial_state(recipe, config, train_set)
    layers = layer_geometry(recipe, state, train_set)

    changed = open_run(workdir, config, resume)
    checkpoints = Checkpoints(workdir / run_directory.CHECKPOINTS, config.keep_checkpoints)
    try:
        state = checkpoints.restore_newest(state) or state
        # Only now, since a changed config may not fit the checkpoints.
        run_directory.write_json(workdir / run_directory.CONFIG, configuration.to_json(config))
        run_directory.write_json(workdir / run_directory.LAYERS, layers)
        step = int(state.step)
        run_directory.add_session(
            workdir, seed=config.seed, resumed_at_step=step, changed_config=changed
        )
        writer = MetricsWriter(workdir, step)
        try:
            return _Run(config, workdir, recipe, checkpoints, writer, test_set).go(
                state, batches, steps
            )
        finally:
            writer.close()
    finally:
        checkpoints.close()


class _Run:
    """What the parts of the loop share."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: pathlib.Path,
        recipe: Recipe,
        checkpoints: Checkpoints,
        writer: MetricsWriter,
        test_set: data.ImageSet,
    ) -> None:
        self._config, self._workdir, self._recipe = config, workdir, recipe
        self._checkpoints, self._writer, self._test_set = checkpoints, writer, test_set
        self._train_step, self._eval_step = jit_steps(recipe)
        self._figures: dict[str, float] = {}
        self._speeds: list[float] = []

    def go(self, state: TrainState, batches: data.DeviceBatches, steps: int) -> dict[str, Any]:
        config, started = self._config, time.monotonic()
        key = jax.random.key(config.seed)
        evaluate_at = round(config.eval_every_epochs * batches.steps_per_epoch) or 1
        save_at = round(config.checkpoint_every_epochs * batches.steps_per_epoch) or 1
        step = first = int(state.step)
        if not step:
            measured = jax.device_get(jax.jit(symmetry.measure)(state.params))
            self._write_symmetry(0, measured)
        progress = Progress(steps, step)
        stream = batches.start(step)
        # From here on every copy between host and device is written out in the code.
        with stop_requests() as stop, jax.transfer_guard("disallow"):
            while step < steps and not stop.is_set():
                state, logs = self._train_step(state, next(stream), key)
                step += 1
                if step == first + 1:
                    jax.block_until_ready(logs)
                    progress.restart(step)
                paused = step % evaluate_at == 0 or step % save_at == 0 or step == steps
                if logs_at(self._recipe, step):
                    self._log(step, logs, progress)
                if paused:
                    require_finite(logs["meter"])
                    if step % evaluate_at == 0 or step == steps:
                        self._evaluate(step, state)
                    if step % save_at == 0 or step == steps:
                        self._checkpoints.save(step, state)
                    progress.restart(step)
            if step < steps:
                if step > first:
                    require_finite(logs["meter"])
                self._checkpoints.save(step, state)
                self._checkpoints.wait()
                raise Preempted(f"stopped after step {step} of {steps}, which is saved")
            if step == first:
                self._evaluate(step, state, write=False)
                self._figures |= _mean_scores(
                    jax.device_get(jax.jit(symmetry.measure)(state.params))
                )
        self._checkpoints.wait()
        summary = {
            "step": step,
            "epochs": step / batches.steps_per_epoch,
            **self._figures,
            "images_per_second": float(np.median(self._speeds)) if self._speeds else None,
            "seconds": time.monotonic() - started,
        }
        if step > first:
            run_directory.write_json(self._workdir / run_directory.SUMMARY, summary)
        return summary

    def _log(self, step: int, logs: dict[str, Any], progress: Progress) -> None:
        logs = jax.device_get(logs)
        meter: Meter = logs["meter"]
        require_finite(meter)
        figures = {
            "loss": float(meter.loss / meter.steps),
            "accuracy": float(meter.correct / meter.images),
        }
        self._figures |= {f"train_{name}": value for name, value in figures.items()}
        self._writer.write(step, "train", figures)
        score = self._write_symmetry(step, logs["symmetry"])
        self._speeds.append(
            progress.line(step, self._config.batch_size, {**figures, "symmetry": score})
        )

    def _write_symmetry(self, step: int, measured: dict[str, Any]) -> float:
        means = _mean_scores(measured)
        self._figures |= means
        layers = {
            path.removesuffix("/kernel"): {
                name: float(f"{value:.6g}") for name, value in figures.as_dict().items()
            }
            for path, figures in measured.items()
        }
        self._writer.write(step, "symmetry", {**means, "layers": layers})
        return means["mean_score"]

    def _evaluate(self, step: int, state: TrainState, write: bool = True) -> None:
        batches = data.evaluation_batches(
            self._test_set, self._config.eval_batch_size, jax.device_put
        )
        sums = [self._eval_step(state, batch) for batch in batches]
        totals = {
            name: sum(float(part[name]) for part in jax.device_get(sums))
            for name in ("loss", "correct", "images")
        }
        figures = {
            "loss": totals["loss"] / totals["images"],
            "accuracy": totals["correct"] / totals["images"],
            "images": int(totals["images"]),
        }
        self._figures |= {f"eval_{name}": value for name, value in figures.items()}
        if write:
            self._writer.write(step, "eval", figures)
        print(
            f"evaluation after step {step}: accuracy {figures['accuracy']:.4f}  "
            f"loss {figures['loss']:.4f}  ({figures['images']} images)",
            flush=True,
        )


def complete(
    config: ml_collections.ConfigDict, train_set: data.ImageSet
) -> ml_collections.ConfigDict:
    """The config with what the training images decide: their statistics, the number of classes."""
    config = ml_collections.ConfigDict(config)
    channels = train_set.images.shape[-1]
    means, deviations = data.channel_statistics(train_set.images)
    config.data.mean = tuple(config.data.mean) or means
    config.data.std = tuple(config.data.std) or deviations
    for name in ("mean", "std"):
        if len(config.data[name]) != channels:
            raise ValueError(
                f"config.data.{name} has {len(config.data[name])} numbers for {channels} channels"
            )
    if min(config.data.std) <= 0:
        raise ValueError(f"config.data.std must be above 0, got {config.data.std}")
    classes = len(train_set.classes)
    if 0 < config.model.num_classes < classes:
        raise ValueError(
            f"labels up to {classes - 1} are out of range for "
            f"config.model.num_classes={config.model.num_classes}"
        )
    config.model.num_classes = config.model.num_classes or classes
    return config


def make_recipe(config: ml_collections.ConfigDict, steps_per_epoch: int) -> Recipe:
    """All that is fixed about a step of this run.

    Args:
      config: of the run, resolved and complete.
      steps_per_epoch: training steps in an epoch.

    Returns:
      The recipe.
    """
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config.model.to_dict().items()
    }
    fields["dtype"] = jnp.dtype(fields["dtype"])
    return Recipe(
        model=models.create(**fields),
        transformation=optimizer(config, learning_rate(config, steps_per_epoch)),
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        augment=data.Augment(config.data.shift, config.data.flip),
        log_every=config.log_every,
        total_steps=total_steps(config, steps_per_epoch),
    )


def initial_state(
    recipe: Recipe, config: ml_collections.ConfigDict, images: data.ImageSet
) -> TrainState:
    """The state before the first step, from the run's seed alone."""
    example = jax.ShapeDtypeStruct((1, *images.images.shape[1:]), jnp.float32)
    # A key of its own, so that the initial weights share no bits with the first step.
    key = jax.random.fold_in(jax.random.key(config.seed), NEVER)
    create = jax.jit(lambda key: create_state(recipe.model, recipe.transformation, key, example))
    return create(key)


def layer_geometry(
    recipe: Recipe, state: TrainState, images: data.ImageSet
) -> list[dict[str, Any]]:
    """The convolutions of the network in forward order, as ``layers.json`` holds them."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    example = jax.ShapeDtypeStruct((1, *images.images.shape[1:]), jnp.float32)
    rows = geometry.audit(lambda v, x: recipe.model.apply(v, x, train=False), variables, example)
    return [row.to_dict() for row in rows if not row.kind.endswith("_pool")]


def open_run(workdir: pathlib.Path, config: ml_collections.ConfigDict, resume: bool) -> list[str]:
    """Makes a run directory, or makes sure that the one there is of this run.

    Args:
      workdir: the directory.
      config: of the run, complete.
      resume: agrees that a run with another config goes on with this one.

    Returns:
      The differences between the old config and the new one.

    Raises:
      ValueError: if the directory holds something else.
    """
    path = workdir / run_directory.CONFIG
    changed: list[str] = []
    if path.exists():
        changed = configuration.differences(run_directory.read_json(path), config)
        if changed and not resume:
            raise ValueError(
                f"{workdir} holds a run with another config ({'; '.join(changed)}); choose another "
                "--workdir, or --resume to go on with the new config"
            )
    elif workdir.exists() and any(workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and has no {path.name}: not a run directory")
    else:
        workdir.mkdir(parents=True, exist_ok=True)
        run_directory.write_json(path, configuration.to_json(config))
    return changed


def require_finite(meter: Meter) -> None:
    """Raises `ValueError`, naming the step, if a loss has not been finite."""
    bad = int(jax.device_get(meter.bad_step))
    if bad != NEVER:
        raise ValueError(
            f"the loss was not finite at step {bad}: stopped, the last checkpoint is kept; "
            "a smaller config.optimizer.learning_rate may help"
        )


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, so that a step in progress is finished first."""
    stop = threading.Event()
    # Only the main thread may handle signals; elsewhere the caller keeps them.
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _mean_scores(measured: dict[str, symmetry.KernelSymmetry]) -> dict[str, float]:
    rows = np.stack([figures.row for figures in measured.values()])
    names = ("score", "score_centered")
    # Layers that are undefined do not count; a network in which all are has no mean.
    with np.errstate(invalid="ignore"):
        return {
            f"mean_{name}": float(np.nanmean(column)) if not np.isnan(column).all() else np.nan
            for name, column in ((n, rows[:, symmetry.FIELDS.index(n)]) for n in names)
        }
