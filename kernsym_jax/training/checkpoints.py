"""Checkpoints of a run: all that touches orbax when training."""

import pathlib
import shutil
from typing import Any

import jax
from absl import logging

UNREADABLE = "unreadable"
"""Folder beside the checkpoints for those that could not be read again."""


class Checkpoints:
    """The checkpoints of one run, numbered by completed steps.

    Saving is asynchronous: the state is copied, the step goes on, and the file appears under its
    name only when it is complete.

    Args:
      directory: made if it is not there.
      keep: how many of the newest are kept.
    """

    def __init__(self, directory: pathlib.Path, keep: int) -> None:
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._directory = directory.resolve()
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep),
            # Named, so that the metadata of an earlier session's checkpoints can be read as well.
            item_handlers=ocp.StandardCheckpointHandler(),
        )

    def save(self, step: int, state: Any) -> None:
        """Saves a state, unless that step is saved already."""
        if step not in self._manager.all_steps():
            # Orbax makes small host arrays of its own, which a guarded training loop forbids.
            with jax.transfer_guard("allow"):
                self._manager.save(step, args=self._ocp.args.StandardSave(state))

    def restore_newest(self, like: Any) -> Any | None:
        """Reads the newest checkpoint that can be read.

        Args:
          like: a state, or its `jax.ShapeDtypeStruct`s, with the shardings to restore to.

        Returns:
          The state, or ``None`` if there is no checkpoint.

        Raises:
          ValueError: if there are checkpoints, of a state of other shapes than ``like``.
        """
        like = jax.tree.map(_abstract, like)
        for step in sorted(self._manager.all_steps(), reverse=True):
            # What a damaged file raises depends on where the damage is; orbax has no class for it.
            try:
                saved = _shapes(self._manager.item_metadata(step).tree)
            except Exception as error:
                self._set_aside(step, error)
                continue
            self._require_same_shapes(step, saved, _shapes(like))
            try:
                state = self._manager.restore(step, args=self._ocp.args.StandardRestore(like))
                return jax.block_until_ready(state)
            except Exception as error:
                self._set_aside(step, error)
        return None

    def steps(self) -> list[int]:
        """The steps that are saved, in order."""
        return sorted(self._manager.all_steps())

    def wait(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the directory."""
        self._manager.close()

    def _require_same_shapes(
        self, step: int, saved: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]
    ) -> None:
        names = [name for name in {**wanted, **saved} if saved.get(name) != wanted.get(name)]
        if names:
            first = names[0]
            raise ValueError(
                f"{self._directory / str(step)}: saved from another model or optimizer: "
                f"{len(names)} arrays differ, the first is {first} "
                f"({saved.get(first, 'absent')} saved, {wanted.get(first, 'absent')} wanted)"
            )

    def _set_aside(self, step: int, error: Exception) -> None:
        reason = str(error).strip().split("\n")[0][:200]
        logging.warning("checkpoint %d cannot be read and is set aside: %s", step, reason)
        aside = self._directory.parent / UNREADABLE
        aside.mkdir(exist_ok=True)
        target = aside / str(step)
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(self._directory / str(step), target)
        self._manager.reload()


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }
