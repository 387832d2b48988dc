"""Predicted bytes against compiled train steps: what devices send by axis, and what one device holds.

XLA:CPU stands in for accelerators: it has no reduce-scatter (an all-reduce of the whole gradient is in its
place, twice the bytes) and no ragged exchange (whole lanes travel), and both are counted so here.
"""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from configs.schema import OptimConfig
from gemma4_jax.build import transformer
from gemma4_jax.hlo import Program
from gemma4_jax.model.transformer import abstract_params, logical_axes
from gemma4_jax.parallel.expert_dispatch import FURTHER_TURNS
from gemma4_jax.plan.memory import bytes_by_part, peak
from gemma4_jax.plan.traffic import exchanges
from gemma4_jax.plan.workload import Workload, sizes_of
from gemma4_jax.presets import preset
from gemma4_jax.sharding import make_mesh, shardings
from tests.train.helpers import random_batch
from train.losses import make_sft_loss
from train.optim import make_optimizer
from train.placement import own_rows, state_shardings
from train.step import StepOptions, init_state, make_train_step

# model, mesh, rows, tokens: each axis alone, with documents longer than a window and rows longer than a shard.
CASES = {
    "fsdp": ("tiny-dense", {"fsdp": 4}, 4, 256),
    "tensor": ("tiny-dense", {"tensor": 2}, 4, 256),
    "seq": ("tiny-dense", {"seq": 4}, 4, 512),
    "expert": ("tiny-moe", {"expert": 4}, 4, 256),
    "per-layer": ("tiny-ple", {"fsdp": 4}, 4, 256),
}


@functools.cache
def compiled(case):
    """(workload, compiled train step)."""
    name, mesh_sizes, rows, tokens = CASES[case]
    config = preset(name)
    # In loops, as the released models: without them XLA merges passes.
    shared = config.num_kv_shared_layers > 0
    config = dataclasses.replace(
        config,
        layer_types=("sliding", "sliding", "full") * (4 if shared else 2),
        num_kv_shared_layers=6 if shared else 0,
    )
    params = abstract_params(config)
    work = Workload(
        config=config,
        tokens=tokens,
        rows=rows,
        sizes=sizes_of(mesh_sizes),
        remat="full",
        compute_dtype="float32",
    )
    module, mesh = transformer(config, "float32", "full"), make_mesh(mesh_sizes)
    optimizer, options = make_optimizer(OptimConfig(), 10), StepOptions()
    with jax.set_mesh(mesh):
        places = shardings(logical_axes(config), params, mesh)
        state = jax.eval_shape(lambda p: init_state(p, optimizer, 0, options), params)
        all_places = state_shardings(state, places, mesh)
        state = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            state,
            all_places,
        )
        batch = random_batch(rows, tokens, config.vocab_size)
        batch = own_rows(jax.tree.map(np.asarray, dict(batch)), mesh)
        loss = make_sft_loss(module, config)
        step = make_train_step(loss, optimizer, lambda _: 1e-3, options, all_places)
        return work, step.lower(state, batch, None).compile()


def sent_bytes(work, text):
    """Operation -> bytes that a device sends in the whole program, counted as `plan.traffic` counts them.

    Integers, exchanges of less than a kilobyte and further turns of experts are left out, as there.
    """
    total = {}
    for one in Program(text, {FURTHER_TURNS: 0}).collectives(work.mesh):
        parts = math.prod(work.mesh[axis] for axis in one.axes)
        if one.shape[0] not in "bf" or one.bytes < 1024 or parts == 1:
            continue
        share = {
            "all-reduce": 2 * (parts - 1) / parts,
            "reduce-scatter": parts - 1,
            "collective-permute": 1,
        }.get(one.operation, (parts - 1) / parts)
        total[one.operation] = total.get(one.operation, 0) + one.count * one.bytes * share
    return total


def as_cpu_does(work):
    """Operation of XLA:CPU -> predicted bytes."""
    total = {}
    for found in exchanges(work, ragged=False):
        operation, sent = found.operation, found.sent
        if found.cause == "gradients" and operation == "reduce-scatter":
            operation, sent = "all-reduce", 2 * sent
        if operation in ("permute", "ring"):
            operation = "collective-permute"
        total[operation] = total.get(operation, 0) + sent
    tensor = work.mesh["tensor"]
    if tensor > 1:
        # Gradients of one input from several projections are summed over devices each, not added before:
        # q, k, v (where heads are cut) and gate, up.
        column = work.tokens_here * work.config.d_model * work.compute * 2 * (tensor - 1) / tensor
        more = 0
        for layer in work.config.layers:
            heads = 0 if layer.num_kv_heads % tensor else 1 if layer.value_from_key else 2
            more += heads + 1
        total["all-reduce"] += more * column
    return total


@pytest.mark.parametrize("case", CASES)
def test_bytes_sent_are_those_of_the_compiled_step(case):
    work, program = compiled(case)
    found, expected = sent_bytes(work, program.as_text()), as_cpu_does(work)
    total = sum(found.values())
    assert 0.95 * total <= sum(expected.values()) <= 1.05 * total
    for operation, sent in expected.items():
        if sent > 0.05 * total:
            assert 0.9 * found[operation] <= sent <= 1.1 * found[operation], operation


@pytest.mark.parametrize("case", CASES)
def test_state_is_exact_and_the_rest_within_a_factor(case):
    """The rest is meant for models whose layers are larger than a chunk of logits."""
    work, program = compiled(case)
    parts, analysis = bytes_by_part(work), program.memory_analysis()
    state = parts["weights"] + parts["optimizer"]
    # Beside it a step is given its batch, of five numbers a token at most, and counters.
    batch = 5 * 4 * work.tokens_here + 256
    assert state < analysis.argument_size_in_bytes <= state + batch
    assert 0.9 <= (peak(parts) - state) / analysis.temp_size_in_bytes <= 1.35
