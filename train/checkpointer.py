"""Checkpoints of a run: train state and data position together, written in the background.

A thin wrapper around Orbax's CheckpointManager (its v0 interface). A checkpoint becomes visible by
renaming a finished folder, so a run killed inside a save goes on from the one before. Not here: exports
for other programs (gemma4_jax/checkpoint), what is worth saving when (loop.py).
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from gemma4_jax.errors import UserError
from train.data.pipeline import Batches
from train.step import TrainState


class Checkpointer:
    """Saves and restores (TrainState, position in the data) under numbered steps of one folder."""

    def __init__(self, folder: str | Path, keep: int):
        """folder: created if needed. keep: how many checkpoints stay; older ones are deleted."""
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        try:
            self._manager = ocp.CheckpointManager(Path(folder).absolute(), options=options)
        except OSError as error:
            raise UserError(
                f"cannot use {folder} for checkpoints: {error.strerror or error}"
            ) from None

    def latest_step(self) -> int | None:
        """Number of the newest whole checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, iterator: Batches) -> None:
        """Start saving; returns once the arrays are safe from the next step's donation."""
        if self._manager.latest_step() == step:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                # One number for all processes. (grain's own handler writes a file for each of them, which
                # another number of processes does not find.)
                data=ocp.args.JsonSave(iterator.get_state()),
            ),
            force=True,
        )

    def restore(self, step: int, like: TrainState, iterator: Batches) -> TrainState:
        """State saved at `step`; moves `iterator` to its position of that time.

        like: a state of the same shapes (arrays or ShapeDtypeStructs), whose sharding is used.
        """
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like)),
                data=ocp.args.JsonRestore(),
            ),
        )
        iterator.set_state(restored["data"])
        return restored["state"]

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()
