"""One run: its directory, its checkpoints, and the figures it has come to."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from kernsym_jax import geometry, run_directory, symmetry
from kernsym_jax.evaluation import confusion
from kernsym_jax.training import config as configuration
from kernsym_jax.training import processes
from kernsym_jax.training.checkpoints import Checkpoints
from kernsym_jax.training.metrics import MetricsWriter
from kernsym_jax.training.recipe import Recipe
from kernsym_jax.training.state import NEVER, Meter, TrainState


class Run:
    """A run directory while its network trains. Only the first of several processes writes.

    Args:
      config: of the run, complete.
      workdir: the run directory; made if it is not there.
      resume: agrees that a run with another config goes on with this one.

    Attributes:
      config: of the run.
      name: of the directory.
      checkpoints: of the run.
      figures: the latest of each kind, as ``summary.json`` holds them.

    Raises:
      ValueError: if the directory holds something else.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, workdir: pathlib.Path, resume: bool
    ) -> None:
        self.config, self.name, self._workdir = config, workdir.name, workdir
        first = processes.is_first()
        self._changed = processes.together(
            lambda: open_directory(workdir, config, resume) if first else []
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
          step: completed steps. What an earlier session wrote about later ones is taken out, since
            this one will write it again.
          layers: for ``layers.json``.
        """
        if not processes.is_first():
            return
        # Only now, since a changed config may not fit the checkpoints.
        run_directory.write_json(
            self._workdir / run_directory.CONFIG, configuration.to_json(self.config)
        )
        run_directory.write_json(self._workdir / run_directory.LAYERS, layers)
        run_directory.add_session(
            self._workdir,
            seed=self.config.seed,
            resumed_at_step=step,
            changed_config=self._changed,
        )
        self._writer = MetricsWriter(self._workdir, step)
        for line in self._writer.earlier:
            self._remember(line["step"], line["split"], line)

    def written(self, step: int, split: str) -> bool:
        """Whether the latest line of that split is of that step."""
        return bool(processes.first_says(self._latest.get(split) == step))

    def log(self, step: int, logs: Mapping[str, Any]) -> dict[str, float]:
        """Writes what a step has logged.

        Args:
          step: completed steps.
          logs: of that step, as host arrays.

        Returns:
          What is worth showing.
        """
        meter: Meter = logs["meter"]
        require_finite(meter)
        figures = {
            "loss": float(meter.loss / meter.steps),
            # Of masks that are all void there is none.
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
        """Writes an evaluation, given its sums over all images, and returns its figures."""
        figures: dict[str, Any] = {}
        for prefix in ("", "ema_"):
            if f"{prefix}loss" in sums:
                figures |= {
                    f"{prefix}{name}": float(value)
                    for name, value in _evaluated(sums, prefix).items()
                }
        figures["images"] = int(sums["images"])
        self._write(step, "eval", figures)
        return figures

    def log_consistency(self, step: int, figures: dict[str, Any]) -> None:
        """Writes how often answers have survived shifts and flips."""
        self._write(step, "consistency", figures)

    def save(self, step: int, state: TrainState) -> None:
        """Saves a state, with the accuracy of this step if it has been evaluated.

        Of masks mean IoU decides which is the best: in street scenes a network is right about nine
        pixels of ten without knowing any of the small classes.
        """
        quality = None
        if self._latest.get("eval") == step:
            quality = self.figures.get("eval_mean_iou", self.figures.get("eval_accuracy"))
        known = quality is not None and np.isfinite(quality)
        self.checkpoints.save(step, state, quality if known else None)

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Writes ``summary.json`` and returns what it holds."""
        summary = {**facts, **self.figures}
        if processes.is_first():
            run_directory.write_json(self._workdir / run_directory.SUMMARY, summary)
        return summary

    def close(self) -> None:
        """Waits for the files."""
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


def finished(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, steps: int
) -> dict[str, Any] | None:
    """The summary of a run of this config that has come to its end; ``None`` of any other."""
    if not (workdir / run_directory.SUMMARY).exists():
        return None
    summary = run_directory.read_json(workdir / run_directory.SUMMARY)
    old = run_directory.read_json(workdir / run_directory.CONFIG)
    same = not configuration.differences(old, config) and summary.get("step") == steps
    return summary if same else None


def open_directory(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, resume: bool
) -> list[str]:
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


def layer_geometry(
    recipe: Recipe, state: TrainState, image_shape: tuple[int, ...]
) -> list[dict[str, Any]]:
    """The convolutions and poolings in forward order, as ``layers.json`` holds them."""
    example = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    rows = geometry.audit(
        lambda v, x: recipe.model.apply(v, x, train=False), state.variables, example
    )
    return [row.to_dict() for row in rows]


def require_finite(meter: Meter) -> None:
    """Raises `ValueError`, naming the step, if a loss or the weights have not been finite."""
    bad = int(meter.bad_step)
    if bad != NEVER:
        raise ValueError(
            f"the loss or the weights were not finite at step {bad}: stopped, what was saved "
            "before is kept; "
            "a smaller config.optimizer.learning_rate may help"
        )


def _evaluated(sums: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    loss = sums[f"{prefix}loss"]
    if f"{prefix}correct" in sums:
        images = sums["images"]
        return {"loss": loss / images, "accuracy": sums[f"{prefix}correct"] / images}
    counts = confusion.margins(sums[f"{prefix}confusion"])
    return {
        "loss": loss / max(counts[1].sum(), 1),
        "accuracy": confusion.pixel_accuracy(counts),
        "mean_iou": confusion.mean_class_iou(counts),
    }


def _mean_scores(measured: dict[str, symmetry.KernelSymmetry]) -> dict[str, float]:
    rows = np.stack([figures.row for figures in measured.values()])
    names = ("score", "score_centered")
    # Layers that are undefined do not count; a network in which all are has no mean.
    with np.errstate(invalid="ignore"):
        return {
            f"mean_{name}": float(np.nanmean(column)) if not np.isnan(column).all() else np.nan
            for name, column in ((n, rows[:, symmetry.FIELDS.index(n)]) for n in names)
        }
