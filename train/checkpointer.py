"""Checkpoints of a run: train state and data position together, written in the background.

A thin wrapper around Orbax's CheckpointManager (its v0 interface). A checkpoint becomes visible by renaming
a finished folder, so a run killed inside a save goes on from the one before; older ones are deleted only after
that. Each holds a checksum of its arrays: one that does not read back as it was written is put aside, and
the one before it used. Not here: exports for other programs (gemma4_jax/checkpoint), what is worth
saving when (loop.py).
"""

import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from gemma4_jax.distributed import everywhere, is_main, main_first
from gemma4_jax.errors import UserError
from train.checksum import tree_checksum
from train.data.pipeline import Batches
from train.step import TrainState

# The metric that `keep_best` goes by; smaller is better.
BEST = "validation_loss"


class Checkpointer:
    """Saves and restores (TrainState, position in the data) under numbered steps of one folder."""

    def __init__(self, folder: str | Path, keep: int, keep_every: int = 0, keep_best: int = 0):
        """folder: created if needed. What stays: the last `keep`, those at multiples of `keep_every`, and the
        `keep_best` of the smallest validation loss (0: none for that reason); others are deleted."""
        self._folder = Path(folder).absolute()
        kept: list[Any] = [policies.LatestN(keep)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        if keep_best:
            kept.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[BEST],
                    reverse=True,
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,  # what kills and full disks left takes room
        )
        for name in ("absl", "asyncio"):  # of Orbax and of the tasks it leaves behind
            logging.getLogger(name).addFilter(_without_stacks)
        self._manager = self._open()
        self._last: int | None = None  # the step whose save was started last
        self._failed: str | None = None  # why it was not written

    def _open(self) -> ocp.CheckpointManager:
        try:
            return ocp.CheckpointManager(self._folder, options=self._options)
        except OSError as error:
            raise UserError(
                f"cannot use {self._folder} for checkpoints: {error.strerror or error}"
            ) from None

    def latest_step(self) -> int | None:
        """Number of the newest whole checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(
        self, step: int, state: TrainState, iterator: Batches, loss: float | None = None
    ) -> None:
        """Start saving; returns once the arrays are safe from the next step's donation.

        loss: of validation, what `keep_best` goes by. A save that fails (a full disk) is a warning, and the
        next one tries again; `close` raises if the last one failed.
        """
        if self._manager.latest_step() == step:
            return
        # Otherwise the failure of the save before would be raised by this one, in its place.
        self._wait()
        self._last = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    # One number for all processes. (grain's own handler writes a file for each of them,
                    # which another number of processes does not find.)
                    data=ocp.args.JsonSave(iterator.get_state()),
                    checksum=ocp.args.JsonSave({"state": tree_checksum(state)}),
                ),
                metrics=None if loss is None else {BEST: loss},
                force=True,
            )
            self._failed = None
        except Exception as error:  # what tensorstore, the system or Orbax's own threads raise
            self._give_up(error)

    def _wait(self) -> None:
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._give_up(error)

    def restore(self, like: TrainState, iterator: Batches) -> tuple[int, TrainState] | None:
        """Step and state of the newest checkpoint that is whole; moves `iterator` to its position.

        like: a state of the same shapes (arrays or ShapeDtypeStructs), whose sharding is used. Newer ones that
        are damaged are renamed, with a warning. None if there are none; UserError if all are damaged.
        """
        failed: list[tuple[int, str]] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            state, why = None, "another process could not read it"
            try:
                state = self._restore(step, like, iterator)
            except (
                Exception
            ) as error:  # a damaged file makes tensorstore, json or zlib raise anything
                why = _first_line(error)
            whole = everywhere(state is not None)
            if state is None or not whole:
                failed.append((step, why))
                continue
            self._put_aside(failed, step)
            return step, state
        if failed:
            step, why = failed[0]
            raise UserError(
                f"none of the {len(failed)} checkpoints in {self._folder} can be read (step {step}: {why}); "
                "restore them from a backup, or use another run.workdir to start over"
            )
        return None

    def _put_aside(self, failed: list[tuple[int, str]], used: int) -> None:
        """Rename newer checkpoints that could not be read, so that their steps can be saved again."""
        if not failed:
            return
        self._manager.close()
        with main_first("damaged checkpoints"):
            for step, why in failed if is_main() else ():
                aside = self._folder / f"damaged-{step}"
                shutil.rmtree(aside, ignore_errors=True)  # of an earlier time
                (self._folder / str(step)).rename(aside)
                _warn(
                    f"checkpoint {step} cannot be read ({why}): it is now {aside}, going on from {used}"
                )
        self._manager = self._open()

    def _restore(self, step: int, like: TrainState, iterator: Batches) -> TrainState:
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(shapes),
                data=ocp.args.JsonRestore(),
                checksum=ocp.args.JsonRestore(),
            ),
        )
        state: TrainState = restored["state"]
        if tree_checksum(state) != restored["checksum"]["state"]:
            raise ValueError("its arrays are not those that were saved")
        iterator.set_state(restored["data"])
        return state

    def close(self) -> None:
        """Wait until everything is on disk; UserError if the last save failed."""
        self._wait()
        try:
            self._manager.close()
        except Exception as error:
            self._give_up(error)
        if self._failed is not None:
            good = [path.name for path in self._folder.iterdir() if path.name.isdigit()]
            newest = f"step {max(map(int, good))}" if good else "none"
            raise UserError(
                f"the last checkpoint could not be written to {self._folder} ({self._failed}); the newest "
                f"whole one: {newest}; make room there, and the same command goes on from it"
            )

    def _give_up(self, error: Exception) -> None:
        self._failed = _first_line(error)
        _warn(f"the checkpoint of step {self._last} could not be written: {self._failed}")
        # What the failed save left would be in the way of the next one.
        try:
            self._manager.close()
        except Exception as closing:
            self._failed = self._failed or _first_line(closing)
        self._manager = self._open()


def _without_stacks(record: logging.LogRecord) -> bool:
    """Keeps Orbax's errors to a line each: a full disk fails every array, each with stacks in several threads.

    Tasks of a failed save are reported by asyncio when they are collected, maybe after our own last sentence;
    what they raised has been said by then.
    """
    if record.name == "asyncio":
        return "orbax" not in record.getMessage()
    if record.exc_info and "orbax" in record.pathname:
        record.msg, record.args = record.getMessage().split("\n", 1)[0][:300], ()
        record.exc_info = record.exc_text = None
    return True


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
