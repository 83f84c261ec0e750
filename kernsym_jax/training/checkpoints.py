"""The checkpoints of a run; training touches orbax only here.

A checkpoint is a folder named by the number of completed steps. Beside orbax's files it holds
``manifest.json``: the SHA-256 of each of them, by which damage is found before a run resumes.
"""

import hashlib
import logging
import math
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax

from kernsym_jax import json_file, run_directory
from kernsym_jax.training import processes

_MANIFEST = "manifest.json"
_UNFINISHED = ".orbax-checkpoint-tmp"
_STEP = re.compile("0|[1-9][0-9]{0,17}")
# Bytes that orbax writes besides the arrays.
_OVERHEAD = 1 << 17
# Files of the smallest checkpoint with their locks, and bytes for which there is a further one.
_FILES, _BYTES_A_FILE = 64, 1 << 26


class Checkpoints:
    """The checkpoints of one run.

    Saving is asynchronous: `save` copies the state and returns, and the folder gets its final name
    only when it is complete.

    Args:
      directory: folder of the checkpoints; it is made if it does not exist.
      keep: number of newest checkpoints to keep.
      keep_best: number of best checkpoints to keep besides.
    """

    def __init__(self, directory: pathlib.Path, keep: int, keep_best: int = 0) -> None:
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._directory = directory.resolve()
        self._keep, self._keep_best = keep, keep_best
        self._pending: tuple[int, float | None] | None = None
        processes.together(self._prepare)
        # Orbax's own CheckpointManager calls a single item "default"; with that name it opens these
        # checkpoints too.
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(default=ocp.StandardCheckpointHandler()),
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._finish),
        )

    def save(self, step: int, state: Any, accuracy: float | None = None) -> None:
        """Saves a state, unless that step is saved already.

        Args:
          step: completed steps.
          state: arrays that every device holds whole.
          accuracy: figure that ranks the best checkpoints (mean IoU with masks); None if unknown.

        Raises:
          OSError: if this checkpoint or the one before cannot be written.
        """
        self.wait()
        if step in self.steps():
            return
        self._pending = (step, accuracy)
        # Orbax makes small host arrays of its own, which the guard of the training loop forbids.
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
          OSError: if a checkpoint cannot be written.
        """
        with self._one_line():
            self._checkpointer.wait_until_finished()

    def trim(self) -> None:
        """Removes all checkpoints but the newest and the best."""
        steps = self.steps()
        rated = [(_read_manifest(self._folder(step)).get("accuracy"), step) for step in steps]
        best = sorted(
            (accuracy, step)
            for accuracy, step in rated
            if accuracy is not None and math.isfinite(accuracy)
        )
        kept = steps[-self._keep :] + [step for _, step in best[len(best) - self._keep_best :]]
        for step in set(steps) - set(kept):
            self.remove(step)

    def remove(self, step: int) -> None:
        """Removes one checkpoint."""
        if processes.is_first():
            _remove(self._folder(step))

    def set_aside_if_damaged(self, step: int) -> bool:
        """Returns whether a checkpoint is damaged; if it is, moves it away and warns."""
        damaged = False
        if processes.is_first():
            reason = _damage(self._folder(step))
            if reason is not None:
                self._set_aside(step, reason)
                damaged = True
        return bool(processes.first_says(damaged))

    def restore(self, step: int, like: Any) -> Any:
        """Reads a checkpoint.

        Args:
          step: one of `steps`.
          like: a state with the shapes, dtypes and shardings to restore to.

        Returns:
          The state.

        Raises:
          ValueError: if the saved shapes are others, or orbax cannot read the checkpoint.
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
        """Returns the saved steps in order."""
        names = (path.name for path in self._directory.iterdir())
        # Not 007 or other forms, which name no folder of ours.
        return sorted(int(name) for name in names if _STEP.fullmatch(name))

    def close(self) -> None:
        """Waits until everything is on disk, and ends orbax's threads."""
        with self._one_line():
            self._checkpointer.close()

    def _prepare(self) -> None:
        if processes.is_first():
            if os.path.lexists(self._directory) and not self._directory.is_dir():
                raise ValueError(f"{self._directory}: wanted a folder of checkpoints")
            self._directory.mkdir(parents=True, exist_ok=True)
            for leftover in self._directory.glob(f"*{_UNFINISHED}*"):
                _remove(leftover)

    def _set_aside(self, step: int, reason: str) -> None:
        logging.getLogger("absl").warning(
            "checkpoint %s is damaged and set aside: %s", self._folder(step), reason
        )
        aside = self._directory.parent / run_directory.UNREADABLE / str(step)
        _remove(aside)
        aside.parent.mkdir(exist_ok=True)
        shutil.move(self._folder(step), aside)

    def _folder(self, step: int) -> pathlib.Path:
        return self._directory / str(step)

    def _finish(self) -> None:
        """Writes the manifest; orbax calls it once all files are written, before the rename."""
        assert self._pending is not None
        step, accuracy = self._pending
        (unfinished,) = self._directory.glob(f"{step}{_UNFINISHED}*")
        _write_manifest(unfinished, step=step, accuracy=accuracy)

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """Turns any error of a save into an `OSError` of one line."""
        try:
            yield
        # The type of orbax's error depends on the file that found the disk full.
        except Exception as error:
            step = self._pending[0] if self._pending else "?"
            raise OSError(
                f"{self._directory}: checkpoint {step} cannot be saved, the ones before are kept: "
                f"{_first_line(error)}"
            ) from error


@contextmanager
def quiet_orbax() -> Iterator[None]:
    """Hides what orbax's threads print inside the block; a save that fails still raises one error.

    Orbax goes on writing between two calls of `Checkpoints`, so the block spans a whole training.
    """
    before = sys.unraisablehook

    def report(unraisable: Any) -> None:
        # After the first failed write orbax closes its event loop, and the others fail with this.
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    def is_wanted(record: logging.LogRecord) -> bool:
        by_orbax = "orbax" in pathlib.Path(record.pathname).parts
        return not by_orbax and _UNFINISHED not in record.getMessage()

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    sys.unraisablehook = report
    for logger in loggers:
        logger.addFilter(is_wanted)
    try:
        yield
    finally:
        sys.unraisablehook = before
        for logger in loggers:
            logger.removeFilter(is_wanted)


def newest_whole(
    every: Sequence[Checkpoints], usable: Callable[[int], bool] = lambda step: True
) -> int | None:
    """Returns the newest step that several runs have all saved, or None if there is none.

    Damaged checkpoints are set aside.

    Args:
      every: the checkpoints of one run, or of each member of a population.
      usable: returns whether the runs can go on from a step.
    """
    common = set.intersection(*(set(checkpoints.steps()) for checkpoints in every))
    for step in sorted(common, reverse=True):
        damaged = [checkpoints.set_aside_if_damaged(step) for checkpoints in every]
        if not any(damaged) and usable(step):
            return step
    return None


def _remove(path: pathlib.Path) -> None:
    """Removes a folder, or whatever is in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_manifest(folder: pathlib.Path, **facts: Any) -> None:
    """Writes the manifest of a checkpoint with all its files.

    Args:
      folder: folder of the checkpoint.
      **facts: further facts to record, of JSON types.
    """
    digests = {str(file.relative_to(folder)): _digest(file) for file in _files(folder)}
    json_file.write_json(folder / _MANIFEST, {**facts, "sha256": digests})


def _read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the manifest of a checkpoint, {} if there is none or it is damaged."""
    try:
        manifest = json_file.read_json(folder / _MANIFEST)
    except (OSError, ValueError):
        return {}
    if not isinstance(manifest, dict):
        return {}
    rated = json_file.NUMBER.fits(manifest.get("accuracy"))
    return manifest if rated else {**manifest, "accuracy": None}


def _damage(folder: pathlib.Path) -> str | None:
    """Returns the damage of a checkpoint in words, or None if its files are as written."""
    manifest = _read_manifest(folder)
    expected = manifest.get("sha256")
    if not isinstance(expected, dict) or not expected:
        return f"it has no {_MANIFEST} with the digests of its files"
    if manifest.get("step") != int(folder.name):
        return f"it is the checkpoint of step {json_file.shown(manifest.get('step'))}"
    found = {str(file.relative_to(folder)): file for file in _files(folder)}
    missing = sorted(expected.keys() - found.keys())
    if missing:
        return f"{missing[0]} is missing"
    for name, digest in expected.items():
        if _digest(found[name]) != digest:
            return f"{name} has changed since it was written"
    return None


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    # In subfolders only: orbax adds files beside them after the manifest is written.
    return sorted(file for file in folder.glob("*/**/*") if file.is_file())


def _digest(file: pathlib.Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _require_room(folder: pathlib.Path, state: Any) -> None:
    """Raises `OSError` before a save that cannot succeed.

    Without room for another file orbax's threads wait for each other, minutes or for ever.
    """
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _OVERHEAD
    system = os.statvfs(folder)
    free = system.f_bavail * system.f_frsize
    if free < needed:
        raise OSError(f"No space left on device: {free} bytes are free, up to {needed} are needed")
    # File systems without a limit on files say that there are 0.
    files = _FILES + needed // _BYTES_A_FILE
    if system.f_files and system.f_favail < files:
        raise OSError(
            f"No space left on device: room for {system.f_favail} more files, up to {files} are "
            "needed"
        )


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
