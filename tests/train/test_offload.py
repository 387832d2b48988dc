"""Moments in host memory: the same numbers, in the same place after every step and after a restore."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.schema import OptimConfig
from gemma4_jax.sharding import make_mesh
from train.checkpointer import Checkpointer
from train.checksum import tree_checksum
from train.offload import HOST
from train.optim import make_optimizer, make_schedule
from train.placement import put_tree, state_shardings
from train.step import StepOptions, init_state, make_train_step

from .test_checkpointer import rows
from .test_step import NUMBERS, linear_loss, number_batch


def make(offload: bool, name: str = "adamw"):
    config = OptimConfig(name=name, peak_lr=1e-2, schedule="constant", warmup_fraction=0)
    optimizer = make_optimizer(config, 10)
    options = StepOptions(offload=offload)
    step = make_train_step(linear_loss, optimizer, make_schedule(config, 10), options)
    # q_proj with heads, as Muon knows it.
    params = {n: jnp.array(np.stack(4 * [p], -1), jnp.float32) for n, p in NUMBERS.items()}
    state = init_state(params, optimizer, 0, options)
    return step, put_tree(state, places(state, offload))


def places(state, offload: bool = True):
    """Where a state is between steps, on one device."""
    mesh = make_mesh({})
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return state_shardings(state, jax.tree.map(lambda _: whole, state.params), mesh, offload)


def kinds(tree, scalars: bool) -> set[str]:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if (leaf.ndim == 0) == scalars]
    assert leaves
    return {leaf.sharding.memory_kind for leaf in leaves}


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_steps_are_the_same_and_moments_stay_in_host_memory(name):
    step, state = make(True, name)
    plain_step, plain = make(False, name)
    for slope in (1.0, -2.0, float("nan"), 3.0):
        assert kinds(state.opt_state, scalars=False) == {HOST}
        assert kinds(state.opt_state, scalars=True) == {"device"}
        assert kinds(state.params, scalars=False) == {"device"}
        state, metrics = step(state, number_batch(slope), None)
        plain, _ = plain_step(plain, number_batch(slope), None)
    assert kinds(state.opt_state, scalars=False) == {HOST} and metrics["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, state, plain)
    assert kinds(plain.opt_state, scalars=False) == {"device"}
    assert step._cache_size() == 1
    assert tree_checksum(state) == tree_checksum(plain)


def test_a_program_for_gpus_copies_each_moment_in_and_out():
    step, state = make(True)
    moments = sum(leaf.ndim > 0 for leaf in jax.tree.leaves(state.opt_state))
    traced = step.trace(state, number_batch(), None)
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert program.count('_xla_buffer_placement = "device"') == moments == 4
    assert program.count('_xla_buffer_placement = "pinned_host"') == moments
    # Arguments and results: each is where it is between steps, and donated.
    assert program.count('mhlo.memory_kind = "pinned_host"') == 2 * moments


def test_checkpoints_restore_into_host_memory(tmp_path):
    step, state = make(True)
    state, _ = step(state, number_batch(), None)
    checkpointer = Checkpointer(tmp_path, 1)
    checkpointer.save(1, state, rows())
    checkpointer.close()
    like = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        state,
        places(state),
    )
    checkpointer = Checkpointer(tmp_path, 1)
    _, restored = checkpointer.restore(like, rows())
    checkpointer.close()
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert kinds(restored.opt_state, scalars=False) == {HOST}
    assert kinds(restored.params, scalars=False) == {"device"}
    step(restored, number_batch(), None)
    assert step._cache_size() == 1
