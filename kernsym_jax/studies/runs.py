"""The runs that a study asks for, and how far each of them is."""

import dataclasses
import pathlib
from typing import Any

import ml_collections

from kernsym_jax.studies.study import Study
from kernsym_jax.training import config as configuration
from kernsym_jax.training import run_directory

FINISHED, STARTED, MISSING = "finished", "started", "missing"
RUNS = "runs"


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes:
      variant: of the study.
      seed: of the run.
      path: its run directory.
      config: resolved.
    """

    variant: str
    seed: int
    path: pathlib.Path
    config: ml_collections.ConfigDict

    @property
    def name(self) -> str:
        """``variant/seed_003``, as its directory is called below the study's ``runs``."""
        return f"{self.variant}/{self.path.name}"


def plan_runs(study: Study, workdir: pathlib.Path) -> list[PlannedRun]:
    """All runs of a study, variant by variant.

    Args:
      study: the study.
      workdir: of the study.

    Returns:
      The runs, whether or not there is anything in their directories.

    Raises:
      ValueError: if a config has a key or value that no run knows.
    """
    folder = workdir / RUNS
    return [
        PlannedRun(
            variant, seed, folder / variant / f"seed_{seed:03d}", study.config(variant, seed)
        )
        for variant in study.variants
        for seed in study.seeds
    ]


def state(run: PlannedRun) -> str:
    """How far a run is: ``finished``, ``started`` or ``missing``.

    Raises:
      ValueError: if its directory holds a run with another config.
    """
    if not (run.path / run_directory.CONFIG).exists():
        return MISSING
    found = run_directory.read_json(run.path / run_directory.CONFIG)
    changed = configuration.differences(found, _completed(run.config, found))
    if changed:
        raise ValueError(
            f"{run.path} holds a run with another config ({'; '.join(changed)}); choose another "
            "--workdir"
        )
    return FINISHED if (run.path / run_directory.SUMMARY).exists() else STARTED


def _completed(wanted: ml_collections.ConfigDict, found: dict[str, Any]) -> dict[str, Any]:
    """The wanted config, with what it leaves to the data as the found one has it."""
    completed = configuration.to_json(wanted)
    for name in ("mean", "std"):
        completed["data"][name] = completed["data"][name] or found["data"][name]
    classes = completed["model"]["num_classes"] or found["model"]["num_classes"]
    completed["model"]["num_classes"] = classes
    return completed
