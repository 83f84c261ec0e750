"""Loading a study, and the runs that it asks for: where they lie and how far they are."""

import dataclasses
import importlib.util
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from kernsym_jax import evaluation, run_directory
from kernsym_jax.studies.study import Consistency, Network, Study
from kernsym_jax.training import config as configuration

SIZES = ("smoke", "cpu", "gpu", "full")
FINISHED, TRAINED, STARTED, MISSING = "finished", "trained", "started", "missing"
RUNS = "runs"


class UnknownSize(ValueError):
    """A study does not have the size."""


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a study, or one network that it reads.

    Attributes:
      variant: the variant.
      seed: the seed, or the name of a network.
      path: the run directory, or the file of a network.
      config: the resolved config; empty for a network.
      consistency: how the run is evaluated afterwards; None for not at all.
      network: the network that is read; None for a run that is trained.
    """

    variant: str
    seed: int | str
    path: pathlib.Path
    config: ml_collections.ConfigDict
    consistency: Consistency | None = None
    network: Network | None = None

    @property
    def name(self) -> str:
        """``variant/seed_003``, the directory below ``runs``; or the name of the network."""
        return f"{self.variant}/{self.path.name}" if self.network is None else str(self.seed)


def pick_size(size: str, sizes: Mapping[str, Callable[[], Study]]) -> Study:
    """Makes the study in one of its sizes.

    Args:
      size: the size.
      sizes: size -> function that makes the study.

    Returns:
      The study.

    Raises:
      UnknownSize: if the study does not have the size.
    """
    if size not in sizes:
        raise UnknownSize(f"unknown size {size!r}; the study has {', '.join(sizes)}")
    return sizes[size]()


def load_study(
    path: str | pathlib.Path,
    size: str,
    data: str | None = None,
    runs: str | pathlib.Path | None = None,
) -> Study:
    """Loads a study from its file.

    Args:
      path: a Python file with ``get_study(size)``.
      size: the size.
      data: a data source that replaces that of the base config; for a study of networks, the folder
        of their files; None for the study's own.
      runs: folder of the run directories; None for the study's own. A study of networks also reads
        the finished runs in it.

    Returns:
      The study.

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: if the file is not a study.
      UnknownSize: if the study does not have the size.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(f"kernsym_study_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: a study is a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    # The file is the user's code and may raise anything.
    except Exception as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, "get_study", None)):
        raise ValueError(f"{path} has no get_study(size)")
    study: Study = module.get_study(size)
    if runs is not None:
        study = dataclasses.replace(study, runs=pathlib.Path(runs))
    if study.networks:
        own = {} if study.runs is None else _networks_of_runs(study.runs)
        files = study.files if data is None else pathlib.Path(data)
        return dataclasses.replace(study, networks={**study.networks, **own}, files=files)
    if data is None:
        return study
    base = ml_collections.ConfigDict(study.base)
    base.data.source = data
    return dataclasses.replace(study, base=base, data=data)


def plan_runs(study: Study, workdir: pathlib.Path) -> list[PlannedRun]:
    """Lists all runs of a study, variant by variant, or all networks that it reads.

    Args:
      study: the study.
      workdir: its folder.

    Returns:
      The runs, whether or not their directories exist.

    Raises:
      ValueError: if a config has an unknown key or a wrong value.
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
    """Returns how far a run is.

    Args:
      run: the run.

    Returns:
      ``finished``, ``trained`` (not evaluated yet), ``started`` or ``missing``.

    Raises:
      ValueError: if the directory holds a run with another config, or the file is another one.
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
    """Evaluates the consistency of a trained run, unless it is done or not wanted."""
    if run.consistency is None or _evaluated(run):
        return
    model, photos = evaluation.read_run(run.path)
    shifts, limit = run.consistency.shifts, run.consistency.limit
    subject = evaluation.open_subject(model, run.path, photos, shifts, limit=limit)
    found = evaluation.evaluate(subject, shifts)
    evaluation.write_results(found, run.path / run_directory.CONSISTENCY)


def _networks_of_runs(folder: pathlib.Path) -> dict[str, Network]:
    """Returns the finished runs in a folder as networks of one family."""
    found = run_directory.runs_below(folder)
    if not found:
        raise FileNotFoundError(f"{folder}: no finished run in it")
    networks = {}
    for path in found:
        file = path.relative_to(folder).as_posix()
        name = re.sub(r"[^\w-]", "-", file, flags=re.ASCII)
        networks[f"run-{name}"] = Network(file, "own-runs", "trained here", is_run=True)
    return networks


def _evaluated(run: PlannedRun) -> bool:
    """Returns whether the run has the evaluation that the study asks for."""
    if run.consistency is None or not (run.path / run_directory.CONSISTENCY).exists():
        return False
    found = run_directory.read_consistency(run.path)
    shifts, settings = found.get("shift_consistency", {}).get("settings"), found["settings"]
    source = run.config.data.source
    return (
        shifts == dataclasses.asdict(run.consistency.shifts)
        and settings.get("limit") == run.consistency.limit
        # The user may have evaluated the moving averages, or on other images.
        and not settings.get("ema", False)
        and settings.get("data", source) == source
    )


def _completed(wanted: ml_collections.ConfigDict, found: dict[str, Any]) -> dict[str, Any]:
    """Returns the wanted config with the values that training takes from the data filled in."""
    completed = configuration.to_json(wanted)
    for name in ("mean", "std"):
        completed["data"][name] = completed["data"][name] or found["data"][name]
    classes = completed["model"]["num_classes"] or found["model"]["num_classes"]
    completed["model"]["num_classes"] = classes
    if completed["class_balance"] != "none":
        completed["class_weights"] = completed["class_weights"] or found.get("class_weights", [])
    return completed
