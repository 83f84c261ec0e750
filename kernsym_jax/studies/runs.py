"""Loading a study; the runs that it asks for, where they lie, and the jobs that train them."""

import dataclasses
import importlib.util
import pathlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from kernsym_jax import evaluation, run_directory
from kernsym_jax.cli import nearest
from kernsym_jax.studies.study import Consistency, Network, Study
from kernsym_jax.training import config as configuration

SIZES = ("smoke", "cpu", "gpu", "full")
FINISHED, TRAINED, STARTED, MISSING = "finished", "trained", "started", "missing"
RUNS = "runs"

JOB_KINDS = ("commands", "slurm", "skypilot")
_BUCKETS = ("gs://", "s3://", "r2://", "https://")
_MOUNT = "/kernsym_runs"


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

    >>> from kernsym_jax import cli, studies
    >>> study = studies.load_study(cli.find_shipped("study", "downsampling"), "smoke")
    >>> studies.pick_size("smoke", {"smoke": lambda: study}).size
    'smoke'
    >>> studies.pick_size("smoek", {"smoke": lambda: study})
    Traceback (most recent call last):
        ...
    kernsym_jax.studies.runs.UnknownSize: unknown size 'smoek'; the study has smoke; did you
    mean 'smoke'?
    """
    if size not in sizes:
        raise UnknownSize(
            f"unknown size {size!r}; the study has {', '.join(sizes)}{nearest(size, sizes)}"
        )
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

    >>> from kernsym_jax import cli, studies
    >>> study = studies.load_study(cli.find_shipped("study", "downsampling"), "smoke")
    >>> study.name, list(study.variants)[:2], study.seeds
    ('downsampling', ['zero16', 'same16'], (0, 1, 2))
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


def state(run: PlannedRun, *, repair: bool = False) -> str:
    """Returns how far a run is.

    Args:
      run: the run.
      repair: whether a run with a damaged summary or evaluation counts as one without, which will
        be written again.

    Returns:
      ``finished``, ``trained`` (not evaluated yet), ``started`` or ``missing``.

    Raises:
      ValueError: if the directory holds a run with another config or a damaged file, or the file of
        a network is another one.
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
    try:
        run_directory.read_summary(run.path)
    except ValueError:
        if repair:
            return STARTED
        raise
    return FINISHED if run.consistency is None or _evaluated(run, repair=repair) else TRAINED


def evaluate(run: PlannedRun) -> None:
    """Evaluates the consistency of a trained run, unless it is done or not wanted."""
    if run.consistency is None or _evaluated(run, repair=True):
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


def _evaluated(run: PlannedRun, *, repair: bool) -> bool:
    """Returns whether the run has the evaluation that the study asks for."""
    if run.consistency is None or not (run.path / run_directory.CONSISTENCY).exists():
        return False
    try:
        found = run_directory.read_consistency(run.path)
    except ValueError:
        if repair:
            return False
        raise
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


def job_command(command: Sequence[str], run: str, python: str = "python") -> list[str]:
    """Returns the command that trains one run of a study.

    Args:
      command: the command line of the whole study, after the interpreter.
      run: ``variant/seed_003``.
      python: the interpreter.

    Returns:
      The command's parts.
    """
    return [python, *command, f"--only={run}"]


def emit(
    study: Study, workdir: str | pathlib.Path, command: Sequence[str], kind: str
) -> list[pathlib.Path]:
    """Writes the jobs of a study, one per run, finished or not.

    A job ends at once if its run is finished, resumes a stopped run, and touches no other run.
    ``--gather`` collects the results.

    Args:
      study: the study.
      workdir: folder of the study as the jobs see it; for ``skypilot`` it may be a bucket.
      command: the command line of the whole study, after the interpreter.
      kind: ``commands`` (a shell script, one line per run), ``slurm`` (a job array) or
        ``skypilot`` (one file per run).

    Returns:
      The files, in ``jobs/`` below the folder of the study, or below the current directory if that
      is a bucket.

    Raises:
      ValueError: if the kind is unknown, the jobs cannot see the bucket, or the study trains
        nothing.

    >>> import tempfile
    >>> from kernsym_jax import cli, studies
    >>> study = studies.load_study(cli.find_shipped("study", "downsampling"), "smoke")
    >>> files = studies.emit(study, tempfile.mkdtemp(), ["-m", "kernsym_jax.study"], "commands")
    >>> files[0].read_text().splitlines()[2]
    'python -m kernsym_jax.study --only=zero16/seed_000'
    """
    if kind not in JOB_KINDS:
        raise ValueError(f"jobs: got {kind!r}, wanted {' or '.join(JOB_KINDS)}")
    if study.networks:
        raise ValueError(f"study {study.name} reads trained networks: it has no runs to write")
    bucket = str(workdir).startswith(_BUCKETS)
    if bucket and kind != "skypilot":
        raise ValueError(f"{kind} jobs need a folder that they can see, got {workdir}")
    folder = (pathlib.Path() if bucket else pathlib.Path(workdir)) / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    runs = plan_runs(study, pathlib.Path(workdir))
    name = f"{study.name}-{study.size}"
    if kind == "commands":
        files = {"commands.sh": _commands(runs, command)}
    elif kind == "slurm":
        files = {"slurm.sh": _slurm(runs, command, name, str(workdir))}
    else:
        files = {
            f"{run.name.replace('/', '-')}.yaml": _skypilot(run, command, name, str(workdir))
            for run in runs
        }
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    return [folder / file for file in files]


def _commands(runs: Sequence[PlannedRun], command: Sequence[str]) -> str:
    lines = [shlex.join(job_command(command, run.name)) for run in runs]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            "# One line a run, in any order, on any machines that share the folder.",
            *lines,
            "",
        ]
    )


def _slurm(runs: Sequence[PlannedRun], command: Sequence[str], name: str, workdir: str) -> str:
    names = "\n".join(f"  {shlex.quote(run.name)}" for run in runs)
    return f"""#!/usr/bin/env bash
# sbatch this file from the repository's root; partition, account and GPUs as options of sbatch.
#SBATCH --job-name={name}
#SBATCH --array=0-{len(runs) - 1}
#SBATCH --requeue
#SBATCH --signal=B:TERM@180
#SBATCH --output={workdir}/logs/slurm-%a.log
#SBATCH --open-mode=append
runs=(
{names}
)
{shlex.join(["python", *command])} --only="${{runs[$SLURM_ARRAY_TASK_ID]}}" &
child=$!
trap 'kill -TERM "$child"' TERM
status=0
wait "$child" || status=$?
# A signal ends the first wait before the run has saved itself.
if ((status > 128)); then
  status=0
  wait "$child" || status=$?
fi
if ((status == 75)); then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
"""


def _skypilot(run: PlannedRun, command: Sequence[str], name: str, workdir: str) -> str:
    lines = [
        "# sky jobs launch --gpus=<kind> this file, from the repository's root.",
        f"name: {name}-{run.name.replace('/', '-').replace('_', '-')}",
        "workdir: .",
        "resources:",
        "  use_spot: true",
        "  job_recovery:",
        "    max_restarts_on_errors: 3",
    ]
    if workdir.startswith(_BUCKETS):
        scheme, _, rest = workdir.partition("://")
        bucket, _, folder = rest.partition("/")
        place = f"{_MOUNT}/{folder}".rstrip("/")
        command = [f"--workdir={place}" if _is_workdir(part) else part for part in command]
        lines += [
            "file_mounts:",
            f"  {_MOUNT}:",
            f"    source: {scheme}://{bucket}",
            "    mode: MOUNT",
        ]
    return "\n".join(
        [
            *lines,
            "setup: python -m pip install --quiet --editable .",
            "run: |",
            f"  {shlex.join(job_command(command, run.name))}",
            "",
        ]
    )


def _is_workdir(part: str) -> bool:
    return part.startswith("--workdir=")
