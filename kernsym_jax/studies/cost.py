"""What is left to do in a study, and what it will cost."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from kernsym_jax.studies import runs as planned
from kernsym_jax.studies.results import FinishedRun
from kernsym_jax.studies.runs import PlannedRun
from kernsym_jax.studies.study import Study
from kernsym_jax.training.pace import duration


def dry_run(study: Study, workdir: str | pathlib.Path) -> str:
    """The runs, how far they are, and what the rest will cost.

    Args:
      study: the study.
      workdir: of the study; need not be there.

    Returns:
      A table as text. Costs are those of finished runs of the same variant; where there is none,
      of the study's other runs, and of the study's own record if no run is finished. Of networks,
      which of them are there, and where to get the others.
    """
    everything = planned.plan_runs(study, pathlib.Path(workdir))
    states = {run.name: planned.state(run) for run in everything}
    if study.networks:
        return _files(everything, states)
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
    return "\n".join([*lines, f"{count} of {len(states)} runs to do, one after another: {total}"])


def missing_file(run: PlannedRun) -> str:
    """Where a network was looked for, and where it is to be had, in one line."""
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
        seconds = sum(one["seconds"] for one in summaries) / len(summaries)
        speeds = [one["images_per_second"] for one in summaries if one["images_per_second"]]
        of = run.variant if of_variant else "other variants"
        speed = f" at {sum(speeds) / len(speeds):,.0f} img/s" if speeds else ""
        return seconds, f"as {len(summaries)} runs of {of} took{speed}"
    if study.cost:
        return study.cost[0], study.cost[1]
    return None, ""
