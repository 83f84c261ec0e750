"""The runs of a study as jobs of a scheduler; every job can be started again at any time."""

import pathlib
import shlex
from collections.abc import Sequence

from kernsym_jax.studies.runs import PlannedRun, plan_runs
from kernsym_jax.studies.study import Study

KINDS = ("commands", "slurm", "skypilot")
_BUCKETS = ("gs://", "s3://", "r2://", "https://")
_MOUNT = "/kernsym_runs"


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
    """
    if kind not in KINDS:
        raise ValueError(f"jobs: got {kind!r}, wanted {' or '.join(KINDS)}")
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
