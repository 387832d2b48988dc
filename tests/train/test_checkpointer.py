"""Checkpoints that are damaged, disks that are full, and what is kept."""

import os
import shutil
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gemma4_jax.errors import UserError
from train.checkpointer import Checkpointer
from train.checksum import tree_checksum
from train.data.order import Part
from train.data.pipeline import iterate
from train.step import TrainState, init_state


class Rows:
    """Numbers as a data set."""

    length = 1
    lengths = np.ones(64, int)
    parts = (Part(0, 64, Fraction(1)),)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.padded(index, 1)

    def padded(self, index: int, length: int) -> dict[str, np.ndarray]:
        return {"row": np.asarray(index)}


def state_at(step: int, size: int = 1000) -> TrainState:
    params = {"w": jnp.arange(size, dtype=jnp.float32) + step}
    state = init_state(params, optax.adamw(1e-3), 0)
    return TrainState(**{**vars(state), "step": jnp.int32(step), "tokens": jnp.uint32([step, 1])})


def like(size: int = 1000) -> TrainState:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: state_at(0, size))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)


def rows():
    return iterate(Rows(), 4, 0)


def save(folder: Path, steps: range, size: int = 1000, **options) -> None:
    checkpointer = Checkpointer(folder, options.pop("keep", 10), **options)
    iterator = rows()
    for step in steps:
        next(iterator)
        checkpointer.save(step, state_at(step, size), iterator, loss=abs(step - 3.2))
    checkpointer.close()


def whole(folder: Path) -> set[int]:
    return {int(path.name) for path in folder.iterdir() if path.name.isdigit()}


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def damage(folder: Path, how: str) -> None:
    file = largest_file(folder / "state")
    if how == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    elif how == "flipped":
        data = bytearray(file.read_bytes())
        for at in range(len(data) // 4, 3 * len(data) // 4):
            data[at] ^= 0x10
        file.write_bytes(data)
    elif how == "missing":
        file.unlink()
    else:
        shutil.rmtree(folder / how)


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "data", "checksum"])
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_used(tmp_path, capsys, how):
    save(tmp_path, range(1, 4))
    damage(tmp_path / "3", how)
    checkpointer, iterator = Checkpointer(tmp_path, 10), rows()
    step, state = checkpointer.restore(like(), iterator)
    assert step == 2 and int(state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, state, state_at(2))
    reference = rows()
    next(reference), next(reference)
    np.testing.assert_array_equal(next(iterator)["row"], next(reference)["row"])
    assert (tmp_path / "damaged-3").is_dir() and whole(tmp_path) == {1, 2}
    text = capsys.readouterr().err
    assert "checkpoint 3 cannot be read" in text and "going on from 2" in text
    # Its step can be saved again.
    checkpointer.save(3, state_at(3), iterator)
    checkpointer.close()
    assert whole(tmp_path) == {1, 2, 3}


def test_arrays_that_read_back_otherwise_are_noticed(tmp_path):
    """Damage that no file format notices: another checkpoint's arrays in its place."""
    save(tmp_path, range(1, 3))
    shutil.rmtree(tmp_path / "2" / "state")
    shutil.copytree(tmp_path / "1" / "state", tmp_path / "2" / "state")
    checkpointer = Checkpointer(tmp_path, 10)
    step, _ = checkpointer.restore(like(), rows())
    checkpointer.close()
    assert step == 1


def test_if_all_are_damaged_none_is_touched(tmp_path):
    save(tmp_path, range(1, 3))
    for step in ("1", "2"):
        damage(tmp_path / step, "truncated")
    checkpointer = Checkpointer(tmp_path, 10)
    with pytest.raises(UserError, match=r"none of the 2 checkpoints .* can be read") as error:
        checkpointer.restore(like(), rows())
    checkpointer.close()
    assert "\n" not in str(error.value)
    assert whole(tmp_path) == {1, 2}


def test_no_checkpoint_is_no_error(tmp_path):
    checkpointer = Checkpointer(tmp_path, 1)
    assert checkpointer.latest_step() is None and checkpointer.restore(like(), rows()) is None
    checkpointer.close()


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep": 2}, {9, 10}),
        ({"keep": 1, "keep_every": 4}, {4, 8, 10}),
        ({"keep": 1, "keep_best": 2}, {3, 4, 10}),
    ],
)
def test_what_is_kept(tmp_path, options, kept):
    save(tmp_path, range(1, 11), **options)
    assert whole(tmp_path) == kept


def test_a_full_disk_costs_the_new_checkpoint_and_never_the_old(small_disk, capfd):
    disk = small_disk(4)
    size = 100_000  # 1.2 MB a checkpoint, with both moments
    folder = disk / "checkpoints"
    save(folder, range(1, 2), size, keep=1)
    filler = disk / "filler"
    free = shutil.disk_usage(disk).free
    filler.write_bytes(np.random.default_rng(0).bytes(free - 300_000))

    checkpointer, iterator = Checkpointer(folder, 1), rows()
    checkpointer.save(2, state_at(2, size), iterator)
    with pytest.raises(UserError, match="the newest whole one: step 1; make room") as error:
        checkpointer.close()
    assert "\n" not in str(error.value)
    assert "could not be written" in capfd.readouterr().err
    assert whole(folder) == {1}

    # The run goes on, and its next checkpoint is written once there is room.
    checkpointer = Checkpointer(folder, 1)
    checkpointer.save(3, state_at(3, size), iterator)
    checkpointer.save(4, state_at(4, size), iterator)
    assert "the checkpoint of step 3 could not be written" in capfd.readouterr().err
    filler.unlink()
    checkpointer.save(5, state_at(5, size), iterator)
    checkpointer.close()
    assert whole(folder) == {5}
    checkpointer = Checkpointer(folder, 1)
    step, state = checkpointer.restore(like(size), rows())
    checkpointer.close()
    assert step == 5 and tree_checksum(state) == tree_checksum(state_at(5, size))
