"""One run in its directory: its checkpoints, its figures, and the directory of a population."""

import contextlib
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import ml_collections
import numpy as np

from kernsym_jax import json_file, lock, run_directory, symmetry
from kernsym_jax.evaluation.measure import margins, mean_class_iou, pixel_accuracy
from kernsym_jax.training import config as configuration
from kernsym_jax.training import processes
from kernsym_jax.training.checkpoints import Checkpoints
from kernsym_jax.training.pace import MetricsWriter
from kernsym_jax.training.processes import Preempted, Stop
from kernsym_jax.training.state import NEVER, Meter, TrainState

_LIKE_A_BUCKET = re.compile(r"\b(gs|s3):/")


class Run:
    """A run directory while its network trains. Only the first of several processes writes.

    Args:
      config: the complete config of the run.
      workdir: the run directory, which exists.
      resume: whether a run with another config continues with this one.

    Attributes:
      config: the config of the run.
      name: name of the directory.
      checkpoints: the checkpoints of the run.
      figures: the latest figures of each split, as in ``summary.json``.

    Raises:
      ValueError: if the directory holds something else.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, workdir: pathlib.Path, *, resume: bool
    ) -> None:
        self.config, self.name, self._workdir = config, workdir.name, workdir
        first = processes.is_first()
        self._changed = processes.together(
            lambda: _open_directory(workdir, config, resume=resume) if first else []
        )
        self.checkpoints = Checkpoints(
            workdir / run_directory.CHECKPOINTS, config.keep_checkpoints, config.keep_best
        )
        self.figures: dict[str, Any] = {}
        self._writer: MetricsWriter | None = None
        self._latest: dict[str, int] = {}

    def begin(self, step: int, layers: list[dict[str, Any]]) -> None:
        """Starts a session.

        Args:
          step: completed steps. Metrics of an earlier session about later steps are removed,
            because this session writes them again.
          layers: the content of ``layers.json``.
        """
        if not processes.is_first():
            return
        # This comes last, because the checkpoints may not fit a changed config.
        run_directory.set_aside_damaged(self._workdir)
        run_directory.write_config(self._workdir, configuration.to_json(self.config))
        run_directory.write_layers(self._workdir, layers)
        run_directory.add_session(
            self._workdir,
            seed=self.config.seed,
            resumed_at_step=step,
            changed_config=self._changed,
        )
        self._writer = MetricsWriter(self._workdir, step)
        for line in self._writer.earlier:
            self._remember(line["step"], line["split"], line)

    def is_recorded(self, step: int, due: Callable[[int], Sequence[str]]) -> bool:
        """Returns whether the metrics are whole up to a step, on every process.

        Args:
          step: completed steps, from which the run would go on.
          due: the splits that have a line after that many completed steps.
        """
        return bool(processes.first_says(processes.is_first() and self._is_recorded(step, due)))

    def _is_recorded(self, step: int, due: Callable[[int], Sequence[str]]) -> bool:
        metrics = run_directory.scan_metrics(self._workdir)
        if metrics.damage is None and not metrics.cut:
            return True
        last = metrics.lines[-1]["step"] if metrics.lines else 0
        if step < last:
            return True
        there = {(line["step"], line["split"]) for line in metrics.lines}
        # Lines of the step itself that follow an evaluation are written when the run goes on.
        wanted = [(s, split) for s in range(last, step + 1) for split in due(s)]
        again = {(step, "eval"), (step, "consistency")}
        return there.issuperset(set(wanted) - again)

    def refuse_damage(self) -> NoReturn:
        """Raises `ValueError`, naming the first damaged line of the metrics."""
        found = run_directory.scan_metrics(self._workdir)
        damage = found.damage or f"{self._workdir / run_directory.METRICS}: half a line at its end"
        raise ValueError(
            f"{damage}; no checkpoint is old enough to write it again: remove the line to go on "
            "without it"
        )

    def written(self, step: int, split: str) -> bool:
        """Returns whether the latest line of a split is of that step; every process has to ask."""
        return bool(processes.first_says(self._latest.get(split) == step))

    def log(self, step: int, logs: Mapping[str, Any]) -> dict[str, float]:
        """Writes the logs of a training step.

        Args:
          step: completed steps.
          logs: the logs of `step.train_step`, as host arrays.

        Returns:
          The figures to print.
        """
        meter: Meter = logs["meter"]
        require_finite(meter)
        figures = {
            "loss": float(meter.loss / meter.steps),
            # The accuracy is undefined if no pixel since the last log line has a label.
            "accuracy": float(meter.correct / meter.images) if meter.images else np.nan,
        }
        if "symmetry_loss" in logs:
            figures["symmetry_loss"] = float(logs["symmetry_loss"])
        self._write(step, "train", figures)
        return {**figures, "symmetry": self.log_symmetry(step, logs)}

    def log_symmetry(self, step: int, logs: Mapping[str, Any]) -> float:
        """Writes the symmetry of all layers and returns the mean score."""
        figures: dict[str, Any] = _mean_scores(logs["symmetry"])
        if "ema_symmetry" in logs:
            averaged = _mean_scores(logs["ema_symmetry"])
            figures |= {f"ema_{name}": value for name, value in averaged.items()}
        figures["layers"] = {
            path.removesuffix("/kernel"): {
                name: float(f"{value:.6g}") for name, value in layer.as_dict().items()
            }
            for path, layer in logs["symmetry"].items()
        }
        self._write(step, "symmetry", figures)
        return figures["mean_score"]

    def log_evaluation(self, step: int, sums: Mapping[str, Any]) -> dict[str, Any]:
        """Writes an evaluation and returns its figures.

        Args:
          step: completed steps.
          sums: the sums of `step.eval_step` over all images.
        """
        figures: dict[str, Any] = {}
        for prefix in ("", "ema_"):
            if f"{prefix}loss" in sums:
                found = _evaluated(sums, prefix)
                figures |= {f"{prefix}{name}": float(value) for name, value in found.items()}
        figures["images"] = int(sums["images"])
        self._write(step, "eval", figures)
        return figures

    def log_consistency(self, step: int, figures: dict[str, Any]) -> None:
        """Writes the consistency of the answers under shifts and flips."""
        self._write(step, "consistency", figures)

    def save(self, step: int, state: TrainState) -> None:
        """Saves a state, with the accuracy if this step has been evaluated.

        With masks mean IoU ranks the checkpoints: in street scenes a network classifies nine pixels
        of ten correctly without knowing any of the small classes.
        """
        quality = None
        if self._latest.get("eval") == step:
            quality = self.figures.get("eval_mean_iou", self.figures.get("eval_accuracy"))
        known = quality is not None and np.isfinite(quality)
        self.checkpoints.save(step, state, quality if known else None)

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Writes ``summary.json`` and returns its content."""
        summary = {**facts, **self.figures}
        if processes.is_first():
            run_directory.write_summary(self._workdir, summary)
        return summary

    def close(self) -> None:
        """Waits for the checkpoints and closes the files."""
        try:
            self.checkpoints.close()
        finally:
            if self._writer is not None:
                self._writer.close()

    def _write(self, step: int, split: str, figures: dict[str, Any]) -> None:
        self._remember(step, split, figures)
        if self._writer is not None:
            self._writer.write(step, split, figures)

    def _remember(self, step: int, split: str, figures: Mapping[str, Any]) -> None:
        prefix = "" if split == "symmetry" else f"{split}_"
        self.figures |= {
            f"{prefix}{name}": value
            for name, value in figures.items()
            if name not in ("step", "split", "layers")
        }
        self._latest[split] = step


@contextlib.contextmanager
def only_writer(workdir: pathlib.Path, stop: Stop, *, wait: bool) -> Iterator[None]:
    """Keeps other runs from writing a directory inside the block.

    Args:
      workdir: the directory of a run or a population; it is made if it does not exist. The first of
        several processes locks it for all.
      stop: request to stop, which ends the wait.
      wait: whether to wait for the process that writes it now.

    Raises:
      ValueError: naming the process that writes it.
      Preempted: if a request to stop ends the wait.
    """

    def take() -> None:
        if processes.is_first():
            if found := _LIKE_A_BUCKET.search(str(workdir.absolute())):
                raise ValueError(
                    f"{workdir}: orbax takes {found[0]} in a path for a bucket; choose another "
                    "folder, or mount the bucket and name the folder where it is"
                )
            workdir.mkdir(parents=True, exist_ok=True)
            path = workdir / run_directory.LOCK
            stack.enter_context(lock.only_writer(path, lambda: wait and not stop.asked()))

    with contextlib.ExitStack() as stack:
        try:
            processes.together(take)
        except lock.Locked as error:
            if wait and stop.asked():
                raise Preempted(f"stopped before its start: {error}") from None
            raise
        yield


def ended_summary(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, steps: int
) -> dict[str, Any] | None:
    """Returns the summary of a run, or None unless it has this config and has reached its end."""
    if not run_directory.has_ended(workdir):
        return None
    try:
        summary = run_directory.read_summary(workdir)
    # The run goes on from its last checkpoint, and writes it again.
    except ValueError:
        return None
    old = run_directory.read_config(workdir)
    same = not configuration.differences(old, config) and summary.get("step") == steps
    return summary if same else None


def open_population(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> list[pathlib.Path]:
    """Makes the directory of a population, or checks that the existing one is of a population.

    Args:
      workdir: the directory, which exists.
      config: the resolved config of the population.

    Returns:
      The members' run directories, which need not exist.

    Raises:
      ValueError: if the directory holds something else.
    """
    names = [f"seed_{config.seed + index:03d}" for index in range(config.seeds)]

    def prepare() -> None:
        path = workdir / run_directory.POPULATION
        if not run_directory.is_population(workdir) and not run_directory.is_vacant(workdir):
            raise ValueError(f"{workdir} is not empty and has no {path.name}: not a population")
        json_file.write_json(path, {"members": names, "config": configuration.to_json(config)})

    processes.together(lambda: prepare() if processes.is_first() else None)
    return [workdir / name for name in names]


def finish_population(
    workdir: pathlib.Path, folders: Sequence[pathlib.Path], summaries: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Writes the ``summary.json`` of a population.

    Args:
      workdir: the directory of the population.
      folders: the members' run directories.
      summaries: the members' summaries.

    Returns:
      The mean of every figure over the members, and each member's summary under ``members``.
    """
    means = {
        name: float(np.mean([summary[name] for summary in summaries]))
        for name in summaries[0]
        if all(isinstance(summary.get(name), float) for summary in summaries)
    }
    members = {folder.name: summary for folder, summary in zip(folders, summaries, strict=True)}
    summary = {**means, "step": summaries[0].get("step"), "members": members}
    if processes.is_first():
        run_directory.write_summary(workdir, summary)
    return summary


def require_finite(meter: Meter) -> None:
    """Raises `ValueError`, naming the step, if a loss or the weights have not been finite."""
    bad = int(meter.bad_step)
    if bad != NEVER:
        raise ValueError(
            f"the loss or the weights were not finite at step {bad}: stopped, earlier checkpoints "
            "are kept; a smaller config.optimizer.learning_rate may help"
        )


def _open_directory(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, *, resume: bool
) -> list[str]:
    """Starts a run in an empty directory, or checks that the one there is of this run.

    Returns:
      The differences between the old config and the new one.

    Raises:
      ValueError: if the directory holds something else.
    """
    if run_directory.has_config(workdir):
        changed = configuration.differences(run_directory.read_config(workdir), config)
        if changed and not resume:
            raise ValueError(
                f"{workdir} holds a run with another config ({'; '.join(changed)}); choose another "
                "--workdir, or --resume to go on with the new config"
            )
        return changed
    if not run_directory.is_vacant(workdir):
        raise ValueError(
            f"{workdir} is not empty and has no {run_directory.CONFIG}: not a run directory"
        )
    run_directory.write_config(workdir, configuration.to_json(config))
    return []


def _evaluated(sums: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Returns the figures of an evaluation from its sums; of pixels if the images have masks."""
    loss = sums[f"{prefix}loss"]
    if f"{prefix}correct" in sums:
        images = sums["images"]
        return {"loss": loss / images, "accuracy": sums[f"{prefix}correct"] / images}
    counts = margins(sums[f"{prefix}confusion"])
    return {
        "loss": loss / max(counts[1].sum(), 1),
        "accuracy": pixel_accuracy(counts),
        "mean_iou": mean_class_iou(counts),
    }


def _mean_scores(measured: dict[str, symmetry.KernelSymmetry]) -> dict[str, float]:
    """Returns the means over the layers whose score is defined; NaN if there is no such layer."""
    rows = np.stack([figures.row for figures in measured.values()])
    means = {}
    # An infinite score makes an invalid sum.
    with np.errstate(invalid="ignore"):
        for name in ("score", "score_centered"):
            column = rows[:, symmetry.FIELDS.index(name)]
            undefined = np.isnan(column).all()
            means[f"mean_{name}"] = np.nan if undefined else float(np.nanmean(column))
    return means
