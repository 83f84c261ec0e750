"""The runs that a study asks for, and how far each of them is."""

import dataclasses
import pathlib
from typing import Any

import ml_collections

from kernsym_jax import evaluation, run_directory
from kernsym_jax.studies.network import Network
from kernsym_jax.studies.study import Consistency, Study
from kernsym_jax.training import config as configuration

FINISHED, TRAINED, STARTED, MISSING = "finished", "trained", "started", "missing"
RUNS = "runs"


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a study, or one network that it reads.

    Attributes:
      variant: of the study.
      seed: of the run; the name of a network.
      path: its run directory; the file of a network.
      config: resolved; empty for a network.
      consistency: how it is evaluated afterwards; ``None`` for not at all.
      network: that is read; ``None`` for a run that is trained.
    """

    variant: str
    seed: int | str
    path: pathlib.Path
    config: ml_collections.ConfigDict
    consistency: Consistency | None = None
    network: Network | None = None

    @property
    def name(self) -> str:
        """``variant/seed_003``, as its directory is called below the study's ``runs``; the name of
        a network."""
        return f"{self.variant}/{self.path.name}" if self.network is None else str(self.seed)


def plan_runs(study: Study, workdir: pathlib.Path) -> list[PlannedRun]:
    """All runs of a study, variant by variant, or all networks that it reads.

    Args:
      study: the study.
      workdir: of the study.

    Returns:
      The runs, whether or not there is anything in their directories.

    Raises:
      ValueError: if a config has a key or value that no run knows.
    """
    folder = study.runs or workdir / RUNS
    if study.networks:
        (variant,) = study.variants
        return [
            PlannedRun(
                variant,
                name,
                (folder if network.is_run else study.files) / network.file,
                study.base,
                network=network,
            )
            for name, network in study.networks.items()
        ]
    return [
        PlannedRun(
            variant,
            seed,
            folder / variant / f"seed_{seed:03d}",
            study.config(variant, seed),
            study.consistency,
        )
        for variant in study.variants
        for seed in study.seeds
    ]


def state(run: PlannedRun) -> str:
    """How far a run is: ``finished``, ``trained`` (not yet evaluated), ``started`` or ``missing``.

    Raises:
      ValueError: if its directory holds a run with another config, or its file is another one.
    """
    if run.network is not None:
        return FINISHED if run.network.is_at(run.path) else MISSING
    if not run_directory.has_config(run.path):
        return MISSING
    found = run_directory.read_config(run.path, "data.mean", "data.std", "model.num_classes")
    changed = configuration.differences(found, _completed(run.config, found))
    if changed:
        raise ValueError(
            f"{run.path} holds a run with another config ({'; '.join(changed)}); choose another "
            "--workdir"
        )
    if not run_directory.has_ended(run.path):
        return STARTED
    return FINISHED if run.consistency is None or _evaluated(run) else TRAINED


def evaluate(run: PlannedRun) -> None:
    """Measures the shift and flip consistency of a trained run, unless that has been done."""
    if run.consistency is None or _evaluated(run):
        return
    model, photos = evaluation.read_run(run.path)
    shifts, limit = run.consistency.shifts, run.consistency.limit
    subject = evaluation.open_subject(model, run.path, photos, shifts, limit=limit)
    found = evaluation.evaluate(subject, shifts)
    evaluation.write_results(found, run.path / run_directory.CONSISTENCY)


def _evaluated(run: PlannedRun) -> bool:
    """Whether the run's evaluation is there, and is the one that the study asks for."""
    if run.consistency is None or not (run.path / run_directory.CONSISTENCY).exists():
        return False
    found = run_directory.read_consistency(run.path)
    shifts, settings = found.get("shift_consistency", {}).get("settings"), found["settings"]
    source = run.config.data.source
    return (
        shifts == dataclasses.asdict(run.consistency.shifts)
        and settings.get("limit") == run.consistency.limit
        # Someone may have evaluated the moving averages, or on other images.
        and not settings.get("ema", False)
        and settings.get("data", source) == source
    )


def _completed(wanted: ml_collections.ConfigDict, found: dict[str, Any]) -> dict[str, Any]:
    """The wanted config, with what it leaves to the data as the found one has it."""
    completed = configuration.to_json(wanted)
    for name in ("mean", "std"):
        completed["data"][name] = completed["data"][name] or found["data"][name]
    classes = completed["model"]["num_classes"] or found["model"]["num_classes"]
    completed["model"]["num_classes"] = classes
    if completed["class_balance"] != "none":
        completed["class_weights"] = completed["class_weights"] or found.get("class_weights", [])
    return completed
