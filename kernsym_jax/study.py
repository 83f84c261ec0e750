"""Conducts a study: what is missing is trained, and every claim gets a verdict.

python -m kernsym_jax.study --study=configs/studies/downsampling.py --workdir=runs/downsampling
"""

from collections.abc import Sequence

from absl import flags

from kernsym_jax import cli

_STUDY = flags.DEFINE_string("study", None, "The study, a Python file with get_study(size).")
_SIZE = flags.DEFINE_string("size", "smoke", "smoke (minutes), cpu (an hour) or full.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The study's folder; made if it is not there.")
_DATA = flags.DEFINE_string("data", None, "A source in place of the study's own.")
_RUNS = flags.DEFINE_string("runs", None, "The runs' folder; workdir/runs by default.")
_PARALLEL = flags.DEFINE_string(
    "parallel",
    "0",
    "Runs at once, each a process with one of CUDA_VISIBLE_DEVICES; 0: in this one; auto: on a CPU "
    "one single-threaded process per core, if a measurement finds that faster.",
)
_PILOT = flags.DEFINE_integer(
    "pilot",
    0,
    "Train this many seeds that do not count, from 100 on, and print the lines for the study file "
    "from which the power is computed.",
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only list the runs, their state and their cost.")
_EMIT = flags.DEFINE_enum(
    "emit", None, ["commands", "slurm", "skypilot"], "Only write the runs as jobs."
)
_ONLY = flags.DEFINE_string("only", None, "Only train this run, variant/seed_003.")
_GATHER = flags.DEFINE_bool("gather", False, "Only gather what is finished.")
_KEEP = flags.DEFINE_string(
    "keep", None, "Copy tables, claims and figures into this folder afterwards."
)
_REPORT = flags.DEFINE_string("report", None, "Only write this table of all claims kept.")


def main(argv: Sequence[str]) -> int:
    """Conducts a study; the exit status is 75 if a signal stopped it after it was saved."""
    if len(argv) > 1:
        raise ValueError(f"unexpected arguments: {' '.join(argv[1:])}")
    from kernsym_jax import studies, training

    if _REPORT.value is not None:
        print(f"{_REPORT.value}: {studies.write_claims_page(_REPORT.value)} studies")
        return 0
    if _STUDY.value is None or _WORKDIR.value is None:
        raise ValueError("--study and --workdir are needed")
    study = studies.load_study(_STUDY.value, _SIZE.value, _DATA.value, _RUNS.value)
    command = ["-m", "kernsym_jax.study", f"--study={_STUDY.value}", f"--size={_SIZE.value}"]
    command += [f"--workdir={_WORKDIR.value}"] + [f"--data={_DATA.value}"] * bool(_DATA.value)
    command += [f"--runs={_RUNS.value}"] * bool(_RUNS.value)
    if _PILOT.value:
        study = study.as_pilot(_PILOT.value)
        command.append(f"--pilot={_PILOT.value}")
    if _DRY_RUN.value:
        print(studies.dry_run(study, _WORKDIR.value))
        return 0
    if _EMIT.value is not None:
        print(*studies.emit(study, _WORKDIR.value, command, _EMIT.value), sep="\n")
        return 0
    try:
        if _ONLY.value is not None:
            studies.train_one(study, _WORKDIR.value, _ONLY.value)
            return 0
        conduct = studies.gather if _GATHER.value else studies.conduct
        options = {} if _GATHER.value else {"parallel": _parallel(_PARALLEL.value)}
        results = conduct(study, _WORKDIR.value, command, **options)
    except training.Preempted as stopped:
        print(stopped)
        return cli.PREEMPTED
    if _PILOT.value:
        print(studies.pilot_table(results))
        return 0
    for claim, verdict in results.verdicts.items():
        print(f"{claim}: {verdict}. {study.claims[claim].text}")
    if _KEEP.value is not None:
        print(f"kept: {studies.keep(study, _WORKDIR.value, _KEEP.value)}")
    print(f"page: {_WORKDIR.value}/study.html")
    return 0


def _parallel(text: str) -> int | None:
    """Returns the number of runs at once; None for ``auto``."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise ValueError(f"--parallel is a number or auto; got {text!r}")
    return int(text)


def run() -> None:
    """The console script."""
    cli.run(main)


if __name__ == "__main__":
    run()
