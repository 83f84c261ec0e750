"""Conducts a study: trains the missing runs and gives every claim a verdict.

kernsym-study --study=downsampling --workdir=runs/downsampling
"""

from collections.abc import Sequence

from absl import flags

from kernsym_jax import cli

_STUDY = flags.DEFINE_string(
    "study",
    None,
    "The study: a name (--study=list shows them), or a Python file with get_study(size).",
)
_SIZE = flags.DEFINE_string("size", "smoke", "smoke (minutes), cpu (an hour), gpu or full.")
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


_SIZES = {
    "smoke": "minutes on a laptop",
    "cpu": "about an hour on two cores",
    "gpu": "one GPU",
    "full": "as in the paper, on several accelerators",
}
COMMAND = cli.Command(
    name="study",
    summary="Conducts a study: trains the runs that are missing, and gives a verdict on every "
    "claim. Stopped, it goes on where it was.",
    usage=("--study=NAME|FILE --workdir=DIR [flags]", "--report=FILE"),
    groups={
        "The study": "study=NAME|FILE size=NAME workdir=DIR data=SOURCE runs=DIR parallel=N|auto",
        "A part of the work": "dry_run pilot emit only=RUN gather",
        "The results": "keep=DIR report=FILE",
    },
    examples={
        "--study=downsampling --workdir=runs/downsampling --dry_run": (
            "What it would train, at what cost, and the effects it could detect"
        ),
        "--study=downsampling --workdir=runs/downsampling": "The smallest size, in minutes",
        "--study=remedies --size=full --workdir=runs/remedies --emit=slurm": (
            "A large size as jobs of a cluster"
        ),
    },
    choices=lambda: {"study": cli.list_shipped(cli.STUDIES), "size": _SIZES},
)


def main(argv: Sequence[str]) -> int:
    """Conducts a study; the exit status is 75 if a signal stopped it after it was saved."""
    if len(argv) > 1:
        raise ValueError(f"unexpected arguments: {' '.join(argv[1:])}")
    from kernsym_jax import studies, training

    if _REPORT.value is not None:
        print(f"{_REPORT.value}: {studies.write_claims_page(_REPORT.value)} studies")
        return 0
    if _STUDY.value is None:
        raise ValueError("--study is missing: a name (--study=list shows them) or a file")
    path = cli.find_shipped(cli.STUDIES, _STUDY.value)
    workdir = cli.folder("workdir", _WORKDIR.value, f"runs/{path.stem}")
    study = studies.load_study(path, _SIZE.value, _DATA.value, _RUNS.value)
    command = ["-m", "kernsym_jax.study", f"--study={_STUDY.value}", f"--size={_SIZE.value}"]
    flags_given = {"workdir": workdir, "data": _DATA.value, "runs": _RUNS.value}
    command += [f"--{name}={value}" for name, value in flags_given.items() if value]
    if _PILOT.value:
        study = study.as_pilot(_PILOT.value)
        command.append(f"--pilot={_PILOT.value}")
    if _DRY_RUN.value:
        print(studies.dry_run(study, workdir))
        return 0
    if _EMIT.value is not None:
        print(*studies.emit(study, workdir, command, _EMIT.value), sep="\n")
        return 0
    try:
        if _ONLY.value is not None:
            studies.train_one(study, workdir, _ONLY.value)
            return 0
        conduct = studies.gather if _GATHER.value else studies.conduct
        options = {} if _GATHER.value else {"parallel": _parallel(_PARALLEL.value)}
        results = conduct(study, workdir, command, **options)
    except training.Preempted as stopped:
        print(stopped)
        return cli.PREEMPTED
    if _PILOT.value:
        print(studies.pilot_table(results))
        return 0
    for claim, verdict in results.verdicts.items():
        print(f"{claim}: {verdict}. {study.claims[claim].text}")
    if _KEEP.value is not None:
        print(f"kept: {studies.keep(study, workdir, _KEEP.value)}")
    print(f"page: {workdir}/study.html")
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
    cli.run(main, COMMAND)


if __name__ == "__main__":
    run()
