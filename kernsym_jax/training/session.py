"""From a config and a directory to trained networks."""

import contextlib
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections

from kernsym_jax import data
from kernsym_jax.training import config as configuration
from kernsym_jax.training import population, processes
from kernsym_jax.training.backend import choose_backend
from kernsym_jax.training.checkpoints import newest_whole
from kernsym_jax.training.loop import Loop
from kernsym_jax.training.metrics import show
from kernsym_jax.training.recipe import complete, make_recipe, require_fit
from kernsym_jax.training.run import Run, finished, layer_geometry
from kernsym_jax.training.state import TrainState
from kernsym_jax.training.stop import Stop, stop_on_signal

Summary = dict[str, Any]


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    resume: bool = False,
    profile: str | None = None,
) -> Summary:
    """Trains a network, or goes on where the directory's newest checkpoint ends.

    With ``config.seeds`` above 1 it trains a population: a run directory ``seed_000``,
    ``seed_001``, … for each network, as if that had trained alone.

    Args:
      config: any part of the keys of `kernsym_jax.training.config.default`.
      workdir: the run directory; made if it is not there. Several processes have to share it.
      resume: agrees that a run with another config goes on with this one.
      profile: folder for a profile of a few steps, or ``None``.

    Returns:
      What ``summary.json`` holds.

    Raises:
      ValueError: if the config, the data or the directory cannot be used, or a loss is not finite.
      OSError: if the data are not there, or a file cannot be written.
      Preempted: after SIGTERM or SIGINT, once the state is saved.
    """
    workdir = pathlib.Path(workdir)
    config = configuration.resolve(config)
    with stop_on_signal() as stop:
        if config.seeds == 1:
            return _train([config], [workdir], resume, profile, stop)[0]
        configs = population.member_configs(config)
        as_one = population.trains_as_one(config)
        folders = population.open_directory(workdir, config)
        summaries: list[Summary] = []
        if as_one:
            with contextlib.suppress(population.Apart):
                summaries = _train(configs, folders, resume, profile, stop, as_one)
        if not summaries:
            for member, folder in zip(configs, folders, strict=True):
                show(f"{folder.name}:")
                summaries += _train([member], [folder], resume, profile, stop)
                profile = None
        return population.finish(workdir, folders, summaries)


def _train(
    configs: Sequence[ml_collections.ConfigDict],
    folders: Sequence[pathlib.Path],
    resume: bool,
    profile: str | None,
    stop: Stop,
    as_one: bool = False,
) -> list[Summary]:
    """Trains one network, or the members of a population as one program."""
    backend = choose_backend(configs[0], len(configs) if as_one else 0)
    dataset = processes.together(lambda: data.open_dataset(configs[0], backend))
    configs = [complete(config, dataset) for config in configs]
    recipe = make_recipe(configs[0], dataset, backend.axis_name)
    ended = [
        finished(folder, config, recipe.total_steps)
        for folder, config in zip(folders, configs, strict=True)
    ]
    if processes.first_says(None not in ended):
        return [summary or {} for summary in ended]
    # All that can be wrong with the config and the data is found before anything is written.
    states = [backend.initial_state(recipe, dataset.image_shape, c.seed) for c in configs]
    require_fit(recipe, states[0].variables, dataset)
    layers = layer_geometry(recipe, states[0], dataset.image_shape)
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(contextlib.closing(Run(config, folder, resume)))
            for config, folder in zip(configs, folders, strict=True)
        ]
        states = _restored(runs, states)
        for run in runs:
            run.begin(int(states[0].step), layers)
        loop = Loop(runs, backend, recipe, dataset, stop, profile)
        return loop.go(backend.join(states))


def _restored(runs: Sequence[Run], states: list[TrainState]) -> list[TrainState]:
    """The states from the newest checkpoint that all runs have, or the given ones."""
    step = newest_whole([run.checkpoints for run in runs])
    if step is None:
        if any(run.checkpoints.steps() for run in runs):
            raise population.Apart
        return states
    for run in runs:
        for later in run.checkpoints.steps():
            if later > step:
                run.checkpoints.remove(later)
    return [run.checkpoints.restore(step, state) for run, state in zip(runs, states, strict=True)]
