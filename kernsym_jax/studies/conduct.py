"""Conducting a study: training the missing runs, gathering the finished ones, and the dry run."""

import contextlib
import os
import pathlib
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from kernsym_jax import json_file, lock, run_directory, training
from kernsym_jax.cli import path_name
from kernsym_jax.studies import runs as planned
from kernsym_jax.studies.page import PLAN, write_outcome
from kernsym_jax.studies.results import FinishedRun, Results, collect
from kernsym_jax.studies.runs import PlannedRun, job_command
from kernsym_jax.studies.study import Study
from kernsym_jax.training import children
from kernsym_jax.training.pace import duration
from kernsym_jax.training.processes import stop_on_signal

_PLAN_FORM = json_file.Form("not the plan of a study", {})
_GATHERING = ".gathering"


def conduct(
    study: Study, workdir: str | pathlib.Path, command: Sequence[str], parallel: int | None = 0
) -> Results:
    """Trains the missing runs, one after another or side by side, and gathers all.

    For a study of networks it prints which files are missing and gathers the others.

    Args:
      study: the study.
      workdir: its folder; created if needed.
      command: the command line of this study, for child processes and the page.
      parallel: number of runs at once, each in its own process; 0 trains all in this process, where
        on an accelerator the seeds of a variant train as one program. None means 0 on an
        accelerator; on a CPU it measures whether a single-threaded process per core is faster.

    Returns:
      The results.

    Raises:
      ValueError: if the study or the folder cannot be used, another process conducts a study in
        it, or a run fails; the other runs are trained and gathered first.
      Preempted: after SIGTERM or SIGINT, when the current runs are saved.

    >>> import pathlib
    >>> import tempfile
    >>> import numpy as np
    >>> from kernsym_jax import studies
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> weight = np.arange(36, dtype=np.float32).reshape(4, 1, 3, 3)
    >>> np.savez(folder / "net.npz", **{"conv.weight": weight})
    >>> score = studies.Measure("score", lambda run: run.table.rows[0]["score"])
    >>> study = studies.Study(
    ...     name="mine", size="cpu", title="How symmetric is it?", data="one file", files=folder,
    ...     variants={"read": {}}, networks={"net": studies.Network("net.npz", "mine", "my disk")},
    ...     measures={"score": score}, claims={}, contrasts={},
    ... )
    >>> results = studies.conduct(study, folder / "mine", command=[])
    mine: 1 of 1 networks are there
    >>> [round(score, 2) for score in results.of("read", "score")]
    [0.91]
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with lock.only_writer(workdir / run_directory.LOCK):
        _write_plan(study, workdir)
        return _conduct(study, workdir, command, parallel)


def _conduct(
    study: Study, workdir: pathlib.Path, command: Sequence[str], parallel: int | None
) -> Results:
    everything = planned.plan_runs(study, workdir)
    missing = [run for run in everything if planned.state(run, repair=True) != planned.FINISHED]
    there = f"{len(everything) - len(missing)} of {len(everything)}"
    if study.networks:
        print(f"{study.name}: {there} networks are there")
        for run in missing:
            print(missing_file(run))
        return gather(study, workdir, command)
    print(f"{study.name}: {there} runs are finished")
    print(power_table(study))
    environments = _places(missing, workdir) if parallel is None else _of_devices(parallel)
    if environments:
        failed = _in_children(missing, workdir, command, environments)
    else:
        failed = _here(missing)
    if len(failed) == len(everything):
        raise ValueError(next(iter(failed.values())))
    results = gather(study, workdir, command)
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise ValueError(f"{len(failed)} of {len(everything)} runs failed: {reasons}")
    return results


def train_one(study: Study, workdir: str | pathlib.Path, name: str) -> dict[str, Any]:
    """Trains one run unless it is finished; this is the job that `emit` writes.

    Args:
      study: the study.
      workdir: its folder; created if needed.
      name: ``variant/seed_003``.

    Returns:
      The summary of the run.

    Raises:
      ValueError: if the study does not have the run, or trains none.
      Preempted: after SIGTERM or SIGINT, when the state is saved.

    >>> import contextlib
    >>> import io
    >>> import tempfile
    >>> import ml_collections
    >>> from kernsym_jax import studies
    >>> config = {"epochs": 2, "batch_size": 8, "consistency": {"images": 0}}
    >>> config["data"] = {"source": "noise:size=4,n=16,test=8"}
    >>> config["model"] = {"width": 2, "depth": 2, "strided": (2,)}
    >>> study = studies.Study(
    ...     name="mine", size="cpu", title="Does it learn?", data="noise", seeds=(0,),
    ...     base=ml_collections.ConfigDict(config), variants={"plain": {}},
    ...     measures={}, claims={}, contrasts={},
    ... )
    >>> with contextlib.redirect_stdout(io.StringIO()):
    ...     summary = studies.train_one(study, tempfile.mkdtemp(), "plain/seed_000")
    ...
    >>> summary["step"]
    4
    """
    workdir = pathlib.Path(workdir)
    if study.networks:
        raise ValueError(f"study {study.name} reads trained networks: it has no run to train")
    found = {run.name: run for run in planned.plan_runs(study, workdir)}
    if name not in found:
        raise ValueError(f"study {study.name} has no run {name!r}; it has {', '.join(found)}")
    _write_plan(study, workdir)
    run = found[name]
    with _alone(run):
        if planned.state(run, repair=True) == planned.FINISHED:
            return FinishedRun(run.variant, run.seed, run.path).summary
        summary = training.train_and_evaluate(run.config, run.path)
        planned.evaluate(run)
        return summary


def gather(study: Study, workdir: str | pathlib.Path, command: Sequence[str]) -> Results:
    """Decides the claims from the finished runs and writes tables, figures and the page.

    Args:
      study: the study.
      workdir: its folder.
      command: the command line of this study, for the page.

    Returns:
      The results.

    Raises:
      ValueError: if no run is finished, or a directory holds something else.

    >>> import pathlib
    >>> import tempfile
    >>> import numpy as np
    >>> from kernsym_jax import studies
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> weight = np.arange(36, dtype=np.float32).reshape(4, 1, 3, 3)
    >>> np.savez(folder / "net.npz", **{"conv.weight": weight})
    >>> score = studies.Measure("score", lambda run: run.table.rows[0]["score"])
    >>> study = studies.Study(
    ...     name="mine", size="cpu", title="How symmetric is it?", data="one file", files=folder,
    ...     variants={"read": {}}, networks={"net": studies.Network("net.npz", "mine", "my disk")},
    ...     measures={"score": score}, claims={}, contrasts={},
    ... )
    >>> results = studies.gather(study, folder / "mine", command=[])
    >>> len(results.finished), (folder / "mine" / "study.html").exists()
    (1, True)
    """
    workdir = pathlib.Path(workdir)
    results = collect(study, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    # Not the lock of `conduct`: the finished runs can be gathered while the others train.
    with lock.only_writer(workdir / _GATHERING, lambda: True):
        plan = study.plan()
        before = _read_plan(workdir) if (workdir / PLAN).exists() else plan
        changed = sorted(k for k in before.keys() | plan.keys() if before.get(k) != plan.get(k))
        if study.networks:
            run_directory.add_session(workdir)
        write_outcome(results, workdir, command, changed)
    return results


def _write_plan(study: Study, workdir: pathlib.Path) -> None:
    """Writes the plan unless there is one: the page lists later changes of the study."""
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / PLAN).exists():
        json_file.write_json(workdir / PLAN, study.plan())


def _read_plan(workdir: pathlib.Path) -> dict[str, Any]:
    plan = json_file.read_json(workdir / PLAN, _PLAN_FORM.problem)
    json_file.check(plan, path_name(workdir / PLAN), _PLAN_FORM)
    return plan


def _here(missing: Sequence[PlannedRun]) -> dict[str, str]:
    """Trains runs in this process; returns the reasons of those that failed."""
    failed: dict[str, str] = {}
    groups = _groups(missing)
    with stop_on_signal() as stop:
        for number, group in enumerate(groups, 1):
            if stop.asked():
                raise training.Preempted("stopped between two runs; what has been trained is saved")
            names = ", ".join(run.name for run in group)
            print(f"[{number}/{len(groups)}] {names}", flush=True)
            try:
                _train(group)
            except ValueError as error:
                print(f"{names}: {error}", file=sys.stderr)
                failed |= {run.name: str(error) for run in group}
    return failed


def _train(group: Sequence[PlannedRun]) -> None:
    """Trains one run, or several seeds of a variant as one program."""
    config, path = ml_collections.ConfigDict(group[0].config), group[0].path
    if len(group) > 1:
        config.seeds, path = len(group), path.parent
    with contextlib.ExitStack() as stack:
        for run in group:
            stack.enter_context(_alone(run))
        training.train_and_evaluate(config, path)
        for run in group:
            planned.evaluate(run)


def _groups(missing: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    """Groups the runs that train as one program: on accelerators, consecutive seeds."""
    import jax

    groups: list[list[PlannedRun]] = []
    for run in missing:
        together = (
            jax.default_backend() != "cpu"
            and groups
            and groups[-1][-1].variant == run.variant
            and int(groups[-1][-1].seed) + 1 == run.seed
            # A folder of single runs stays one; a stopped population continues as a population.
            and (not run.path.parent.exists() or run_directory.is_population(run.path.parent))
        )
        if together:
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups


def _places(missing: Sequence[PlannedRun], workdir: pathlib.Path) -> list[dict[str, str]]:
    """Returns the environments of children that train at once; none if one process is faster."""
    import jax

    places = min(children.cores(), len(missing))
    if places < 2 or jax.default_backend() != "cpu":
        return []
    folder = _logs(workdir)
    with stop_on_signal() as stop:
        speeds = children.compare_speeds(missing[0].config, folder, stop, places)
    if speeds is None:
        print(f"no speed was measured, see {folder}/speed.log: runs train one after another")
        return []
    print(f"measured: {speeds}", flush=True)
    return [children.one_thread(folder / "compiled")] * speeds.choice


def _of_devices(parallel: int) -> list[dict[str, str]]:
    """Returns the environments of so many children, each with one of the GPUs of this process."""
    devices = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    if len(devices) < 2:
        return [dict(os.environ)] * parallel
    return [
        {**os.environ, "CUDA_VISIBLE_DEVICES": devices[place % len(devices)]}
        for place in range(parallel)
    ]


def _in_children(
    missing: Sequence[PlannedRun],
    workdir: pathlib.Path,
    command: Sequence[str],
    environments: Sequence[dict[str, str]],
) -> dict[str, str]:
    """Trains runs in processes of their own; returns the reasons of those that failed."""
    jobs = [
        children.Job(
            run.name,
            job_command(command, run.name, sys.executable),
            _logs(workdir) / f"{run.variant}-{run.path.name}.log",
        )
        for run in missing
    ]
    with stop_on_signal() as stop:
        return children.run_jobs(jobs, stop, environments)


def _logs(workdir: pathlib.Path) -> pathlib.Path:
    folder = workdir / "logs"
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def _alone(run: PlannedRun) -> Iterator[None]:
    """Waits until no other process on this machine trains the run, as a killed study's child may.

    Raises:
      ValueError: if a process on another machine trains it, or was killed there.
    """
    # Beside the runs, because other studies may share them.
    folder = run.path.parent.parent / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    with lock.only_writer(folder / f"{run.variant}-{run.path.name}", lambda: True):
        yield


def dry_run(study: Study, workdir: str | pathlib.Path) -> str:
    """Lists the runs, how far they are, what the others will cost, and what the tests can find.

    Args:
      study: the study.
      workdir: its folder; it need not exist.

    Returns:
      A table as text. The cost of a run is that of finished runs of its variant; without those, of
      the other variants; without those, the study's own record. For a study of networks, the files
      that are there, and where to get the others.

    >>> import tempfile
    >>> from kernsym_jax import cli, studies
    >>> study = studies.load_study(cli.find_shipped("study", "downsampling"), "smoke")
    >>> print(studies.dry_run(study, tempfile.mkdtemp()).splitlines()[-1].split(",")[0])
    9 of 9 runs to do
    """
    everything = planned.plan_runs(study, pathlib.Path(workdir))
    states = {run.name: planned.state(run) for run in everything}
    if study.networks:
        return "\n".join([power_table(study), _files(everything, states)])
    recorded: dict[str, list[dict[str, Any]]] = {}
    for run in everything:
        if states[run.name] == planned.FINISHED:
            summary = FinishedRun(run.variant, run.seed, run.path).summary
            recorded.setdefault(run.variant, []).append(summary)
    lines, left, known = [], 0.0, True
    width = max(map(len, states))
    for run in everything:
        text = f"{run.name:{width}}  {states[run.name]:8}"
        if states[run.name] != planned.FINISHED:
            seconds, source = _cost(study, run, recorded)
            known = known and seconds is not None
            left += seconds or 0.0
            text += f"  {duration(seconds) if seconds else 'unknown':>8}  {source}".rstrip()
        lines.append(text)
    total = duration(left) if known else f"more than {duration(left)}" if left else "unknown"
    count = sum(found != planned.FINISHED for found in states.values())
    lines.append(f"{count} of {len(states)} runs to do, one after another: {total}")
    return "\n".join([power_table(study), *lines])


def power_table(study: Study) -> str:
    """Returns, as text, the power and the smallest detectable effect of every primary test."""
    power = study.power()
    lines = ["what the primary tests can find, before the runs:"]
    for name, test in study.primaries.items():
        known = power.get(name)
        text = f"  {test.claim}, {name}: matters from {test.smallest:g}"
        if known is None or known.detectable is None:
            lines.append(f"{text}; detectable effect unknown: no pilot, or too few cases")
            continue
        what = "confirms a margin" if test.expected == "zero" else "detects an effect"
        text += f"; {what} of {known.detectable:.3g} with 80 % power (n = {known.n}"
        if known.power is not None and known.sd is not None:
            text += f", sd {known.sd:.3g}); power {100 * known.power:.0f} % ({known.source})"
        else:
            text += ")"
        lines.append(text)
    return "\n".join(lines)


def pilot_table(results: Results) -> str:
    """Returns a pilot's result for each primary contrast, as lines of Python for the study file.

    Args:
      results: the results of `Study.as_pilot`.

    >>> from kernsym_jax import cli, studies
    >>> from kernsym_jax.studies.results import decide
    >>> study = studies.load_study(cli.find_shipped("study", "downsampling"), "smoke")
    >>> found = {"zero16": (0.06, 0.05), "same16": (0.01, -0.01)}
    >>> values = {
    ...     (variant, 100 + place): {"signature": value}
    ...     for variant, both in found.items() for place, value in enumerate(both)
    ... }
    >>> print(studies.pilot_table(decide(study.as_pilot(2), values)))
    PILOTS = {
        "signature": Pilot(0.055, 0.0071, "seeds 100 to 101 of size smoke"),
    }
    """
    seeds = results.study.seeds
    source = f"seeds {seeds[0]} to {seeds[-1]} of size {results.study.size}"
    lines = ["PILOTS = {"]
    for test in results.tests:
        found = list(test.differences.values())
        if test.primary and test.name in results.study.contrasts and len(found) > 1:
            mean, sd = statistics.mean(found), statistics.stdev(found)
            lines.append(f'    "{test.name}": Pilot({mean:.3g}, {sd:.2g}, "{source}"),')
    return "\n".join([*lines, "}"])


def missing_file(run: PlannedRun) -> str:
    """Returns, in one line, where a network is expected and where to get it."""
    origin = "" if run.network is None else f"; get it from {run.network.origin}"
    return f"{run.name}: no {run.path}{origin}"


def _files(everything: Sequence[PlannedRun], states: Mapping[str, str]) -> str:
    missing = [run for run in everything if states[run.name] != planned.FINISHED]
    lines = [f"{run.name}: {run.path}" for run in everything if run not in missing]
    lines += [missing_file(run) for run in missing]
    return "\n".join([*lines, f"{len(missing)} of {len(everything)} networks are missing"])


def _cost(
    study: Study, run: PlannedRun, recorded: dict[str, list[dict[str, Any]]]
) -> tuple[float | None, str]:
    of_variant = recorded.get(run.variant)
    summaries = of_variant or [one for found in recorded.values() for one in found]
    if summaries:
        seconds = sum(one.get("seconds") or 0.0 for one in summaries) / len(summaries)
        speeds = [speed for one in summaries if (speed := one.get("images_per_second"))]
        source = run.variant if of_variant else "other variants"
        speed = f" at {sum(speeds) / len(speeds):,.0f} img/s" if speeds else ""
        return seconds, f"as {len(summaries)} runs of {source} took{speed}"
    if study.cost:
        return study.cost[0], study.cost[1]
    return None, ""
