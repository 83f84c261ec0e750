"""Checkpoints of a run: all that touches orbax when training."""

import contextlib
import logging
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax

from kernsym_jax.training import manifest, processes

UNREADABLE = "unreadable"
"""Folder beside the checkpoints for those that are damaged."""

_UNFINISHED = ".orbax-checkpoint-tmp"
# Bytes of what orbax writes besides the arrays.
_OVERHEAD = 1 << 17


class Checkpoints:
    """The checkpoints of one run, numbered by completed steps.

    Saving is asynchronous: the state is copied, the step goes on, and the folder appears under its
    number only when it is complete, with a manifest of its files.

    Args:
      directory: made if it is not there.
      keep: how many of the newest are kept.
      keep_best: how many of the best are kept besides.
    """

    def __init__(self, directory: pathlib.Path, keep: int, keep_best: int = 0) -> None:
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._directory = directory.resolve()
        self._keep, self._keep_best = keep, keep_best
        self._pending: tuple[int, float | None] | None = None
        self._hush = contextlib.ExitStack()
        self._hush.enter_context(_hushed())
        # The name that orbax's own CheckpointManager gives to a single item: it can open them too.
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(default=ocp.StandardCheckpointHandler()),
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._finish),
        )
        processes.together(self._prepare)

    def save(self, step: int, state: Any, accuracy: float | None = None) -> None:
        """Saves a state, unless that step is saved already.

        Args:
          step: completed steps.
          state: whole on every device.
          accuracy: by which the best are told, mean IoU of masks; ``None`` if it is not known.

        Raises:
          OSError: if this checkpoint or the one before cannot be written.
        """
        self.wait()
        if step in self.steps():
            return
        self._pending = (step, accuracy)
        # Orbax makes small host arrays of its own, which a guarded training loop forbids.
        with self._one_line(), jax.transfer_guard("allow"):
            if processes.is_first():
                _require_room(self._directory, state)
            self._checkpointer.save(
                self._directory / str(step),
                args=self._ocp.args.Composite(default=self._ocp.args.StandardSave(state)),
            )

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
          OSError: if it cannot be written.
        """
        with self._one_line():
            self._checkpointer.wait_until_finished()

    def trim(self) -> None:
        """Removes those that need not be kept."""
        steps = self.steps()
        rated = [(manifest.read(self._folder(step)).get("accuracy"), step) for step in steps]
        best = sorted((accuracy, step) for accuracy, step in rated if accuracy is not None)
        kept = steps[-self._keep :] + [step for _, step in best[len(best) - self._keep_best :]]
        for step in set(steps) - set(kept):
            self.remove(step)

    def remove(self, step: int) -> None:
        """Removes one."""
        if processes.is_first():
            shutil.rmtree(self._folder(step))

    def set_aside_if_damaged(self, step: int) -> bool:
        """Whether a checkpoint is damaged; if so it is moved away and a warning given."""
        damaged = False
        if processes.is_first() and (reason := manifest.damage(self._folder(step))):
            logging.getLogger("absl").warning(
                "checkpoint %s is damaged and set aside: %s", self._folder(step), reason
            )
            aside = self._directory.parent / UNREADABLE / str(step)
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            shutil.move(self._folder(step), aside)
            damaged = True
        return bool(processes.first_says(damaged))

    def restore(self, step: int, like: Any) -> Any:
        """Reads a checkpoint.

        Args:
          step: one of `steps`.
          like: a state, or its `jax.ShapeDtypeStruct`s, with the shardings to restore to.

        Returns:
          The state.

        Raises:
          ValueError: if it is of a state of other shapes than ``like``, or cannot be read.
        """
        folder, like = self._folder(step), jax.tree.map(_abstract, like)
        try:
            saved = self._checkpointer.metadata(folder).item_metadata["default"].tree
        except Exception as error:
            raise ValueError(f"{folder}: orbax cannot read it: {_first_line(error)}") from error
        _require_same_shapes(folder, _shapes(saved), _shapes(like))
        try:
            args = self._ocp.args.Composite(default=self._ocp.args.StandardRestore(like))
            return jax.block_until_ready(self._checkpointer.restore(folder, args=args)["default"])
        except Exception as error:
            raise ValueError(f"{folder}: orbax cannot read it: {_first_line(error)}") from error

    def steps(self) -> list[int]:
        """The steps that are saved, in order."""
        names = (path.name for path in self._directory.iterdir())
        return sorted(int(name) for name in names if name.isdecimal())

    def close(self) -> None:
        """Waits, and lets go of the directory."""
        with self._hush, self._one_line():
            self._checkpointer.close()

    def _prepare(self) -> None:
        if processes.is_first():
            self._directory.mkdir(parents=True, exist_ok=True)
            for leftover in self._directory.glob(f"*{_UNFINISHED}*"):
                shutil.rmtree(leftover)

    def _folder(self, step: int) -> pathlib.Path:
        return self._directory / str(step)

    def _finish(self) -> None:
        """Called by orbax when the files of a checkpoint are written, before it is renamed."""
        assert self._pending is not None
        step, accuracy = self._pending
        (unfinished,) = self._directory.glob(f"{step}{_UNFINISHED}*")
        manifest.write(unfinished, step=step, accuracy=accuracy)

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """Makes an OSError of whatever goes wrong while saving."""
        try:
            yield
        # What orbax raises depends on where the disk was full; it has no class for that.
        except Exception as error:
            step = self._pending[0] if self._pending else "?"
            raise OSError(
                f"{self._directory}: checkpoint {step} cannot be saved, the ones before are kept: "
                f"{_first_line(error)}"
            ) from error


def newest_whole(every: Sequence[Checkpoints]) -> int | None:
    """The newest step that several runs have all saved; damaged checkpoints are set aside.

    Args:
      every: of one run, or of the members of a population.

    Returns:
      The step; ``None`` if there is none.
    """
    common = set.intersection(*(set(checkpoints.steps()) for checkpoints in every))
    for step in sorted(common, reverse=True):
        damaged = [checkpoints.set_aside_if_damaged(step) for checkpoints in every]
        if not any(damaged):
            return step
    return None


@contextmanager
def _hushed() -> Iterator[None]:
    """What is said about a failed save is in the error that is raised; orbax says it many times."""

    def wanted(record: logging.LogRecord) -> bool:
        ours = "orbax" not in pathlib.Path(record.pathname).parts
        return ours and _UNFINISHED not in record.getMessage()

    def report(unraisable: Any) -> None:
        # From writes that go on when the first has failed and the rest are no longer waited for.
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before, sys.unraisablehook = sys.unraisablehook, report
    for logger in loggers:
        logger.addFilter(wanted)
    try:
        yield
    finally:
        sys.unraisablehook = before
        for logger in loggers:
            logger.removeFilter(wanted)


def _require_room(folder: pathlib.Path, state: Any) -> None:
    """Raises an `OSError` before a save that cannot succeed."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _OVERHEAD
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"No space left on device: {free} bytes are free, up to {needed} are needed")


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def _require_same_shapes(
    folder: pathlib.Path, saved: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]
) -> None:
    names = [name for name in {**wanted, **saved} if saved.get(name) != wanted.get(name)]
    if names:
        first = names[0]
        raise ValueError(
            f"{folder}: saved from another model or optimizer: {len(names)} arrays differ, the "
            f"first is {first} ({saved.get(first, 'absent')} saved, "
            f"{wanted.get(first, 'absent')} wanted)"
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
