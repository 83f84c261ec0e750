"""The story of a run, from its config to its summary.

`train_and_evaluate` opens the run and makes the state. Then for each step it gets a batch, trains
and logs; when it is due, it also evaluates and saves. A population of several networks takes the
same way: the states of all members are one state, and each member has a run directory.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from kernsym_jax import data, run_directory, symmetry
from kernsym_jax.training import processes
from kernsym_jax.training.backend import Backend, choose_backend, choose_way
from kernsym_jax.training.checkpoints import newest_whole, quiet_orbax
from kernsym_jax.training.children import choose_places, train_members
from kernsym_jax.training.config import complete, member_configs, resolve
from kernsym_jax.training.consistency import ConsistencyProbe
from kernsym_jax.training.pace import (
    STEPS_AHEAD,
    Ahead,
    Profile,
    Progress,
    consistency_line,
    evaluation_line,
    show,
)
from kernsym_jax.training.processes import Preempted, Stop, stop_on_signal
from kernsym_jax.training.run import (
    Run,
    ended_summary,
    finish_population,
    only_writer,
    open_population,
    require_finite,
)
from kernsym_jax.training.state import Recipe, TrainState, layer_rows, make_recipe, require_fit
from kernsym_jax.training.step import Logs

Summary = dict[str, Any]


class _MembersApart(Exception):
    """The members of a population have no checkpoint of a common step."""


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    *,
    resume: bool = False,
    profile: str | None = None,
    wait: bool = False,
) -> Summary:
    """Trains a network, or continues from the newest checkpoint of its run directory.

    With ``config.seeds`` above 1 it trains a population: each network gets a run directory
    ``seed_000``, ``seed_001``, … with the results that it would have if it trained alone.

    Args:
      config: some of the keys of `kernsym_jax.training.config.default`.
      workdir: the run directory; it is made if it does not exist. Several processes share it.
      resume: whether a run with another config continues with this one.
      profile: folder for a profile of a few steps; None for no profile.
      wait: whether to wait if another process writes the directory now.

    Returns:
      The content of ``summary.json``.

    Raises:
      ValueError: if the config, the data or the directory cannot be used, another process writes
        the directory, or a loss is not finite.
      OSError: if the data are missing, or a file cannot be written.
      Preempted: after SIGTERM or SIGINT, once the state is saved.

    >>> import contextlib, io, tempfile
    >>> from kernsym_jax import training
    >>> config = {"epochs": 2, "batch_size": 8, "consistency": {"images": 0}}
    >>> config["data"] = {"source": "noise:size=4,n=16,test=8"}
    >>> config["model"] = {"width": 2, "depth": 2, "strided": (2,)}
    >>> with contextlib.redirect_stdout(io.StringIO()) as printed:
    ...     summary = training.train_and_evaluate(config, tempfile.mkdtemp())
    ...
    >>> summary["step"], printed.getvalue().count("evaluation after step")
    (4, 2)
    """
    workdir = pathlib.Path(workdir)
    config = resolve(config)
    with stop_on_signal() as stop, quiet_orbax():
        if config.seeds == 1:
            return _train([config], [workdir], stop, resume=resume, profile=profile, wait=wait)[0]
        with only_writer(workdir, stop, wait=wait):
            return _train_population(config, workdir, stop, resume=resume, profile=profile)


def _train_population(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    stop: Stop,
    *,
    resume: bool,
    profile: str | None,
) -> Summary:
    """Trains the members of a population as one program, side by side or one after another."""
    configs, way = member_configs(config), choose_way(config)
    folders = open_population(workdir, config)
    summaries: list[Summary] = []
    if way != "turn":
        with contextlib.suppress(_MembersApart):
            summaries = _train(configs, folders, stop, resume=resume, profile=profile, way=way)
    if not summaries and profile is None:
        unfinished = [
            member
            for member, folder in zip(configs, folders, strict=True)
            if not run_directory.has_ended(folder)
        ]
        if places := choose_places(config, unfinished, workdir, stop):
            train_members(configs, folders, stop, places=places, resume=resume)
            summaries = [run_directory.read_summary(folder) for folder in folders]
    if not summaries:
        for index, (member, folder) in enumerate(zip(configs, folders, strict=True)):
            show(f"{folder.name}:")
            recorded = profile if index == 0 else None
            summaries += _train([member], [folder], stop, resume=resume, profile=recorded)
    return finish_population(workdir, folders, summaries)


@dataclasses.dataclass(frozen=True)
class _Session:
    """The fixed parts of a session of training.

    Attributes:
      runs: the run of each network, in the order of the members of the state.
      backend: the devices.
      recipe: the settings of the steps.
      dataset: the data.
      stop: the request to stop.
      consistency: the measurement at every evaluation; None for none.
      evaluate_every: steps between two evaluations.
      save_every: steps between two checkpoints.
    """

    runs: Sequence[Run]
    backend: Backend
    recipe: Recipe
    dataset: data.Dataset
    stop: Stop
    consistency: ConsistencyProbe | None
    evaluate_every: int
    save_every: int

    def evaluates_at(self, step: int) -> bool:
        """Returns whether an evaluation is due after that many completed steps."""
        return step % self.evaluate_every == 0 or step == self.recipe.total_steps

    def saves_at(self, step: int) -> bool:
        """Returns whether a checkpoint is due after that many completed steps."""
        return step % self.save_every == 0 or step == self.recipe.total_steps

    def due(self, step: int) -> list[str]:
        """Returns the splits that have a line after that many completed steps."""
        if step == 0:
            return ["symmetry"]
        splits = ["train", "symmetry"] if self.recipe.logs_at(step) else []
        if self.evaluates_at(step):
            splits += ["eval"] if self.consistency is None else ["eval", "consistency"]
        return splits

    def written(self, step: int, split: str) -> bool:
        """Returns whether all runs have a line of that split and step."""
        # A list, because every process has to ask for every run.
        return all([run.written(step, split) for run in self.runs])  # noqa: C419

    def of_run(self, tree: Any, index: int) -> Any:
        """Returns the part of one run of host arrays."""
        return jax.tree.map(lambda leaf: leaf[index], tree) if self.backend.members else tree

    def show(self, run: Run, line: str) -> None:
        """Prints a line about one run."""
        show(f"{run.name}: {line}" if len(self.runs) > 1 else line)


def _train(
    configs: Sequence[ml_collections.ConfigDict],
    folders: Sequence[pathlib.Path],
    stop: Stop,
    *,
    resume: bool,
    profile: str | None,
    wait: bool = True,
    way: str = "turn",
) -> list[Summary]:
    """Trains one network, or the members of a population as one program.

    By default it waits while a process of a killed population still saves one of these runs.
    """
    members = 0 if way == "turn" else len(configs)
    backend = choose_backend(configs[0], members, products=way == "products")
    dataset = processes.together(lambda: data.open_dataset(configs[0], backend))
    configs = [complete(config, dataset) for config in configs]
    recipe = make_recipe(configs[0], dataset, backend.axis_name)
    ended = [
        ended_summary(folder, config, recipe.total_steps)
        for folder, config in zip(folders, configs, strict=True)
    ]
    if processes.first_says(None not in ended):
        return [summary or {} for summary in ended]

    # Finds what is wrong with the config or the data before it writes a file.
    states = [backend.initial_state(recipe, dataset.image_shape, c.seed) for c in configs]
    require_fit(recipe, states[0], dataset)
    layers = layer_rows(recipe, states[0], dataset.image_shape)
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.enter_context(only_writer(folder, stop, wait=wait))
        runs = [
            stack.enter_context(contextlib.closing(Run(config, folder, resume=resume)))
            for config, folder in zip(configs, folders, strict=True)
        ]
        consistency = None
        if configs[0].consistency.images:
            consistency = ConsistencyProbe(configs[0], backend, recipe, dataset)
        per_epoch = dataset.train.steps_per_epoch
        session = _Session(
            runs=runs,
            backend=backend,
            recipe=recipe,
            dataset=dataset,
            stop=stop,
            consistency=consistency,
            evaluate_every=max(1, round(configs[0].eval_every_epochs * per_epoch)),
            save_every=max(1, round(configs[0].checkpoint_every_epochs * per_epoch)),
        )
        states = _restore(session, states)
        for run in runs:
            run.begin(int(states[0].step), layers)
        return _run_session(session, backend.join(states), profile)


def _restore(session: _Session, states: list[TrainState]) -> list[TrainState]:
    """Returns the states of the newest checkpoint that all runs can use, or the initial states."""
    runs = session.runs
    step = newest_whole(
        [run.checkpoints for run in runs],
        # A list, because every process has to ask for every run.
        lambda step: all([run.is_recorded(step, session.due) for run in runs]),  # noqa: C419
    )
    if step is None:
        if any(run.checkpoints.steps() for run in runs):
            if len(runs) > 1:
                raise _MembersApart
            processes.together(runs[0].refuse_damage)
        return states
    for run in runs:
        for later in run.checkpoints.steps():
            if later > step:
                run.checkpoints.remove(later)
    return [run.checkpoints.restore(step, state) for run, state in zip(runs, states, strict=True)]


def _run_session(session: _Session, state: TrainState, profile: str | None) -> list[Summary]:
    """Trains to the end and returns the summaries of the runs.

    Args:
      session: the fixed parts.
      state: the state to start from; the first step donates it.
      profile: folder for a profile of a few steps, or None.

    Raises:
      ValueError: if a loss is not finite.
      OSError: if a checkpoint cannot be saved.
      Preempted: after a request to stop, once the state is saved.
    """
    started, step = time.monotonic(), int(state.step)
    if step == 0 and not session.written(0, "symmetry"):
        _log_initial_symmetry(session, state)
    images_per_step = session.runs[0].config.batch_size * len(session.runs)
    progress = Progress(session.recipe.total_steps, images_per_step, step)
    # From here on an implicit copy between host and device is an error.
    with Ahead(session.dataset.train.start(step)) as batches, jax.transfer_guard("disallow"):
        # An earlier session may have stopped during the evaluation that is due at this step.
        complete = step == 0 or _evaluate(session, step, state)
        if complete:
            state, complete = _run_steps(
                session, state, step, batches, progress, Profile(profile, step)
            )
            step = int(jax.device_get(state.step))
        if not complete:
            _save(session, step, state)
    _wait_and_trim(session)
    if not complete:
        total = session.recipe.total_steps
        raise Preempted(f"stopped after step {step} of {total}, which is saved")
    speed = progress.images_per_second
    facts = {
        "step": step,
        "epochs": step / session.dataset.train.steps_per_epoch,
        "images_per_second": speed / len(session.runs) if speed is not None else None,
        "waiting_share": batches.waited / progress.seconds if progress.seconds else None,
        "seconds": time.monotonic() - started,
    }
    return [run.finish(**facts) for run in session.runs]


def _run_steps(
    session: _Session,
    state: TrainState,
    step: int,
    batches: Ahead,
    progress: Progress,
    profile: Profile,
) -> tuple[TrainState, bool]:
    """Takes all remaining steps.

    Returns:
      The state, and whether it is that of the end, rather than of a request to stop.
    """
    train_step = session.backend.compile_train(session.recipe)
    keys = session.backend.keys([run.config.seed for run in session.runs])
    total, first, complete = session.recipe.total_steps, step, True
    logs: Logs | None = None
    unwritten: tuple[int, Logs] | None = None
    progress.resume(step)
    while complete and step < total and not session.stop.agreed(step):
        profile.before(step)
        state, logs = train_step(state, batches.batch(), keys)
        step += 1
        batches.started(logs["meter"])
        if step == first + 1:
            # The speed leaves out the time to compile.
            jax.block_until_ready(logs)
            progress.restart(step)
        # The host writes the logs of a step while the devices compute the next one.
        _log(session, unwritten, progress)
        unwritten = (step, logs) if session.recipe.logs_at(step) else None
        if session.evaluates_at(step) or session.saves_at(step):
            _log(session, unwritten, progress)
            unwritten = None
            progress.pause()
            _require_finite(session, logs)
            complete = _evaluate(session, step, state)
            if complete and session.saves_at(step):
                _save(session, step, state)
            progress.resume(step)
    profile.close()
    _log(session, unwritten, progress)
    progress.pause()
    if logs is not None:
        _require_finite(session, logs)
    return state, complete and step == total


def _log(session: _Session, unwritten: tuple[int, Logs] | None, progress: Progress) -> None:
    """Writes and prints the logs of a step, if there are any."""
    if unwritten is None:
        return
    step, logs = unwritten
    logs = jax.device_get(logs)
    figures = [run.log(step, session.of_run(logs, i)) for i, run in enumerate(session.runs)]
    means = {name: float(np.mean([one[name] for one in figures])) for name in figures[0]}
    progress.line(step, means)


def _log_initial_symmetry(session: _Session, state: TrainState) -> None:
    """Writes the symmetry of the weights before the first step."""
    measure = symmetry.measure
    if session.backend.members:
        measure = jax.vmap(measure)
    logs = {"symmetry": jax.device_get(jax.jit(measure)(state.params))}
    if state.ema:
        logs["ema_symmetry"] = logs["symmetry"]
    for index, run in enumerate(session.runs):
        run.log_symmetry(0, session.of_run(logs, index))


def _evaluate(session: _Session, step: int, state: TrainState) -> bool:
    """Evaluates if that is due and not yet done; returns False if a request to stop ended it."""
    if not session.evaluates_at(step):
        return True
    if not session.written(step, "eval") and not _evaluate_accuracy(session, step, state):
        return False
    if session.consistency is None or session.written(step, "consistency"):
        return True
    return _evaluate_consistency(session, session.consistency, step, state)


def _evaluate_accuracy(session: _Session, step: int, state: TrainState) -> bool:
    """Evaluates on all test images; returns False if a request to stop ended it."""
    eval_step = session.backend.compile_eval(session.recipe)
    parts: list[Any] = []
    with contextlib.closing(session.dataset.evaluation()) as batches:
        for batch in batches:
            if session.stop.asked():
                return False
            parts.append(eval_step(state, batch))
            if len(parts) > STEPS_AHEAD:
                jax.block_until_ready(parts[-STEPS_AHEAD])
    parts = jax.device_get(parts)
    for index, run in enumerate(session.runs):
        sums = {
            name: sum(np.asarray(session.of_run(part[name], index), np.float64) for part in parts)
            for name in parts[0]
        }
        figures = run.log_evaluation(step, sums)
        session.show(run, f"evaluation after step {step}: {evaluation_line(figures)}")
    return True


def _evaluate_consistency(
    session: _Session, consistency: ConsistencyProbe, step: int, state: TrainState
) -> bool:
    """Measures the consistency of a few answers; returns False if a request to stop ended it."""
    found = consistency.measure(state, session.stop)
    if found is None:
        return False
    for run, figures in zip(session.runs, found, strict=True):
        run.log_consistency(step, figures)
        session.show(run, f"same answer: {consistency_line(figures)}")
    return True


def _save(session: _Session, step: int, state: TrainState) -> None:
    """Saves the state of every run."""
    _wait_and_trim(session)
    for index, run in enumerate(session.runs):
        run.save(step, session.backend.member(state, index))


def _wait_and_trim(session: _Session) -> None:
    """Waits until all checkpoints are on disk, and removes old ones.

    Nothing is removed earlier: whenever a process dies, all members have a common checkpoint.
    """
    for run in session.runs:
        run.checkpoints.wait()
    for run in session.runs:
        run.checkpoints.trim()


def _require_finite(session: _Session, logs: Logs) -> None:
    meter = jax.device_get(logs["meter"])
    for index in range(len(session.runs)):
        require_finite(session.of_run(meter, index))
