"""A population: networks that differ in nothing but their seeds, in one directory."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from kernsym_jax import run_directory
from kernsym_jax.training import config as configuration
from kernsym_jax.training import processes

POPULATION = "population.json"


class Apart(Exception):
    """The members have been saved at different steps, so that each has to go on by itself."""


def member_configs(config: ml_collections.ConfigDict) -> list[ml_collections.ConfigDict]:
    """The configs with which the members would train alone."""
    members = []
    for index in range(config.seeds):
        member = ml_collections.ConfigDict(config)
        member.seed, member.seeds, member.population = config.seed + index, 1, "auto"
        members.append(member)
    return members


def trains_as_one(config: ml_collections.ConfigDict) -> bool:
    """Whether the members train as one program or one after another.

    Vmapped convolutions become grouped ones, which XLA runs well on accelerators and many times
    slower than one after another on the CPU (``launch/bench.py population`` measures it).

    Args:
      config: of the population, resolved.

    Raises:
      ValueError: if one program is asked for over several processes.
    """
    several = jax.process_count() > 1
    if config.population == "vmap" and several:
        raise ValueError("config.population=vmap needs a single process; several take turn")
    if config.population == "auto":
        return not several and jax.default_backend() != "cpu"
    return config.population == "vmap"


def open_directory(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> list[pathlib.Path]:
    """Makes the directory of a population, or makes sure that the one there is of one.

    Args:
      workdir: the directory.
      config: of the population, resolved.

    Returns:
      The members' run directories, which need not be there.

    Raises:
      ValueError: if the directory holds something else.
    """
    names = [f"seed_{config.seed + index:03d}" for index in range(config.seeds)]

    def prepare() -> None:
        path = workdir / POPULATION
        if workdir.exists() and any(workdir.iterdir()) and not path.exists():
            raise ValueError(f"{workdir} is not empty and has no {path.name}: not a population")
        workdir.mkdir(parents=True, exist_ok=True)
        run_directory.write_json(path, {"members": names, "config": configuration.to_json(config)})

    processes.together(lambda: prepare() if processes.is_first() else None)
    return [workdir / name for name in names]


def finish(
    workdir: pathlib.Path, folders: Sequence[pathlib.Path], summaries: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Writes the population's ``summary.json``.

    Args:
      workdir: of the population.
      folders: of the members.
      summaries: of the members.

    Returns:
      What it holds: the mean of every figure over the members, and each member's own.
    """
    means = {
        name: float(np.mean([summary[name] for summary in summaries]))
        for name in summaries[0]
        if all(isinstance(summary.get(name), float) for summary in summaries)
    }
    members = {folder.name: summary for folder, summary in zip(folders, summaries, strict=True)}
    summary = {**means, "step": summaries[0].get("step"), "members": members}
    if processes.is_first():
        run_directory.write_json(workdir / run_directory.SUMMARY, summary)
    return summary
