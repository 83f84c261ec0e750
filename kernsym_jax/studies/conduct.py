"""Conducting a study: what is missing is trained, what is finished is gathered and decided."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections

from kernsym_jax import json_file, run_directory, training
from kernsym_jax.studies import runs as planned
from kernsym_jax.studies.cost import missing_file
from kernsym_jax.studies.jobs import job_command
from kernsym_jax.studies.outcome import CLAIMS, LAYERS, RESULTS, write_outcome
from kernsym_jax.studies.results import FinishedRun, Results, collect
from kernsym_jax.studies.runs import PlannedRun
from kernsym_jax.studies.study import Study
from kernsym_jax.training.processes import stop_on_signal

PLAN = "study.json"
_POLL_SECONDS = 0.2


def conduct(
    study: Study, workdir: str | pathlib.Path, command: Sequence[str], parallel: int = 0
) -> Results:
    """Trains what is missing, one run after another or side by side, and gathers.

    Of networks it tells which files are missing, and gathers what is there.

    Args:
      study: the study.
      workdir: of the study; made if it is not there.
      command: that does this, for the children and for the page.
      parallel: how many runs at once, each in a process of its own; 0 for all in this one, where
        on an accelerator the seeds of a variant train as one program.

    Returns:
      The results.

    Raises:
      ValueError: if the study or the directory cannot be used, or a run cannot be finished; the
        others are, and gathered, before.
      Preempted: after SIGTERM or SIGINT, once what runs is saved.
    """
    workdir = pathlib.Path(workdir)
    _write_plan(study, workdir)
    everything = planned.plan_runs(study, workdir)
    missing = [run for run in everything if planned.state(run) != planned.FINISHED]
    there = f"{len(everything) - len(missing)} of {len(everything)}"
    if study.networks:
        print(f"{study.name}: {there} networks are there")
        for run in missing:
            print(missing_file(run))
        return gather(study, workdir, command)
    print(f"{study.name}: {there} runs are finished")
    failed = _in_children(missing, workdir, command, parallel) if parallel else _here(missing)
    if len(failed) == len(everything):
        raise ValueError(next(iter(failed.values())))
    results = gather(study, workdir, command)
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise ValueError(f"{len(failed)} of {len(everything)} runs failed: {reasons}")
    return results


def train_one(study: Study, workdir: str | pathlib.Path, name: str) -> dict[str, Any]:
    """Trains one run, or finds it finished; the job that `emit` writes for it.

    Args:
      study: the study.
      workdir: of the study; made if it is not there.
      name: ``variant/seed_003``.

    Returns:
      The run's summary.

    Raises:
      ValueError: if the study has no such run, or trains none.
      Preempted: after SIGTERM or SIGINT, once the state is saved.
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
        if planned.state(run) == planned.FINISHED:
            return FinishedRun(run.variant, run.seed, run.path).summary
        summary = training.train_and_evaluate(run.config, run.path)
        planned.evaluate(run)
        return summary


def gather(study: Study, workdir: str | pathlib.Path, command: Sequence[str]) -> Results:
    """Writes tables, claims, figures and the page from the runs that are finished.

    Args:
      study: the study.
      workdir: of the study.
      command: for the page.

    Returns:
      The results.

    Raises:
      ValueError: if no run is finished, or a directory holds something else.
    """
    workdir = pathlib.Path(workdir)
    results = collect(study, workdir)
    path, plan = workdir / PLAN, study.plan()
    before = json_file.read_json(path) if path.exists() else plan
    changed = sorted(k for k in before.keys() | plan.keys() if before.get(k) != plan.get(k))
    if study.networks:
        run_directory.add_session(workdir)
    write_outcome(results, workdir, command, changed)
    return results


def keep(study: Study, workdir: str | pathlib.Path, folder: str | pathlib.Path) -> pathlib.Path:
    """Copies the small files of a gathered study to where results are kept.

    Args:
      study: the study.
      workdir: of the study.
      folder: where results are kept.

    Returns:
      The study's folder in it, ``name/size``.
    """
    target = pathlib.Path(folder) / study.name / study.size
    target.mkdir(parents=True, exist_ok=True)
    for name in (PLAN, RESULTS, LAYERS, CLAIMS):
        shutil.copyfile(pathlib.Path(workdir) / name, target / name)
    return target


def _write_plan(study: Study, workdir: pathlib.Path) -> None:
    """The first plan stays: what is changed later is told on the page."""
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / PLAN).exists():
        json_file.write_json(workdir / PLAN, study.plan())


def _here(missing: Sequence[PlannedRun]) -> dict[str, str]:
    """Trains runs in this process; the reasons of those that failed."""
    failed: dict[str, str] = {}
    with stop_on_signal() as stop:
        for number, group in enumerate(groups := _groups(missing), 1):
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
    """The runs that train together: those of one variant, of seeds without a gap, where one program
    for all of them is the faster way."""
    import jax

    groups: list[list[PlannedRun]] = []
    for run in missing:
        together = (
            jax.default_backend() != "cpu"
            and groups
            and groups[-1][-1].variant == run.variant
            and int(groups[-1][-1].seed) + 1 == run.seed
            # A folder of single runs stays one; a population that was stopped goes on as one.
            and (not run.path.parent.exists() or run_directory.is_population(run.path.parent))
        )
        if together:
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups


def _in_children(
    missing: Sequence[PlannedRun], workdir: pathlib.Path, command: Sequence[str], parallel: int
) -> dict[str, str]:
    """Trains runs in processes of their own; the reasons of those that failed."""
    # Each child has one of the GPUs that this process may use, so that no two share one.
    devices = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    failed: dict[str, str] = {}
    waiting, free = list(missing), list(range(parallel))
    running: dict[int, tuple[PlannedRun, subprocess.Popen[bytes]]] = {}
    logs = workdir / "logs"
    logs.mkdir(exist_ok=True)
    with stop_on_signal() as stop:
        while running or (waiting and not stop.asked()):
            while waiting and free and not stop.asked():
                run, slot = waiting.pop(0), free.pop(0)
                environment = dict(os.environ)
                if len(devices) > 1:
                    environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
                with _log(logs, run).open("wb") as log:
                    child = subprocess.Popen(
                        job_command(command, run.name, sys.executable),
                        stdout=log, stderr=subprocess.STDOUT, env=environment,
                        start_new_session=True,
                    )  # fmt: skip
                running[slot] = run, child
                print(f"{run.name}: started, see {_log(logs, run)}", flush=True)
            if stop.asked():
                for _, child in running.values():
                    child.terminate()
            time.sleep(_POLL_SECONDS)
            for slot, (run, child) in list(running.items()):
                if child.poll() is None:
                    continue
                del running[slot]
                free.append(slot)
                if child.returncode and not stop.asked():
                    lines = _log(logs, run).read_text("utf-8", "replace").split("\n")
                    failed[run.name] = next((x for x in reversed(lines) if x.strip()), "no output")
                print(f"{run.name}: ended with status {child.returncode}", flush=True)
        if stop.asked():
            raise training.Preempted("stopped; what has been trained is saved")
    return failed


def _log(folder: pathlib.Path, run: PlannedRun) -> pathlib.Path:
    return folder / f"{run.variant}-{run.path.name}.log"


@contextlib.contextmanager
def _alone(run: PlannedRun) -> Iterator[None]:
    """Waits until no other process of this machine trains the run, as a killed study's child may.

    The lock ends with the process that holds it, whatever ends that.
    """
    import fcntl

    # Beside the runs, which another study may share.
    folder = run.path.parent.parent / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{run.variant}-{run.path.name}").open("w") as file:
        # Shared folders and buckets may know no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
