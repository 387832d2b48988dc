"""Experts on the devices that hold them give what all experts on every device give; what travels is counted."""

import dataclasses
import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gemma4_jax.errors import UserError
from gemma4_jax.model.moe import experts_of_tokens, routing_sums
from gemma4_jax.model.weights import Adapted, quantize
from gemma4_jax.parallel import expert_dispatch
from gemma4_jax.parallel.expert_dispatch import dispatch, dispatch_experts, lane_rows, route
from gemma4_jax.parallel.grouped_matmul import blocked_grouped_matmul
from gemma4_jax.sharding import make_mesh, tokens_spec

from ..train.helpers import assert_trees_close

BATCH, TOKENS, ACTIVE, EXPERTS, D, F, RANK = 8, 6, 2, 8, 16, 12, 3


def draw(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def matrices_of(kind, rng):
    """(gate, up, down), of which what is trained is float32."""
    shapes = (EXPERTS, D, F), (EXPERTS, D, F), (EXPERTS, F, D)

    def matrix(shape):
        base = draw(rng, *shape) / shape[1] ** 0.5
        if kind in ("int8", "nf4"):
            return quantize(base, kind, lead=1, inputs=1)
        if kind == "plain":
            return base
        base = quantize(base, "int8", lead=1, inputs=1) if kind == "qlora" else base
        a, b = draw(rng, EXPERTS, shape[1], RANK), draw(rng, EXPERTS, RANK, shape[2])
        return Adapted(base, a, b, scale=0.5)

    return tuple(map(matrix, shapes))


def routings(rng):
    """Indices [B, T, A] by name, from even to as uneven as there can be."""
    even = np.argsort(rng.random((BATCH, TOKENS, EXPERTS)), axis=-1)[..., :ACTIVE]
    one = np.broadcast_to(np.asarray([5, 4]), even.shape)  # two experts, of one part
    few = np.where(even % 2 == 0, even, even - 1)  # every other expert, all parts
    few[..., 1] = (few[..., 0] + 2) % EXPERTS
    rows = np.arange(BATCH)[:, None]
    by_row = np.stack(np.broadcast_arrays(rows % EXPERTS, (rows + 3) % EXPERTS), -1)
    by_row = np.broadcast_to(by_row[:, :1], even.shape)  # a device's tokens go two ways
    return {"even": even, "one": one, "few": few, "by-row": by_row}


def loss_and_gradients(routed, mesh=None):
    """jit of (normed, weights, index, floats of matrices) -> (loss, output), gradients."""

    def loss(trained, index, fixed, ct):
        normed, weights, matrices = trained[0], trained[1], merge(trained[2], fixed)
        out = routed(normed, weights, index, matrices, blocked_grouped_matmul, jnp.float32)
        return (out * ct).sum(), out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def is_float(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def part_floats(matrices):
    return (
        jax.tree.map(lambda x: x if is_float(x) else None, matrices),
        jax.tree.map(lambda x: None if is_float(x) else x, matrices),
    )


def merge(floats, fixed):
    return jax.tree.map(
        lambda a, b: b if a is None else a, floats, fixed, is_leaf=lambda x: x is None
    )


MESHES = [
    ({"expert": 2}, "plain"),
    ({"expert": 4, "data": 2}, "plain"),
    ({"expert": 2, "tensor": 2, "fsdp": 2}, "plain"),
    ({"expert": 2, "seq": 2, "tensor": 2}, "qlora"),
    ({"expert": 8}, "nf4"),
    ({"tensor": 4}, "lora"),
]


@pytest.mark.parametrize("sizes, kind", MESHES)
def test_equal(sizes, kind):
    rng = np.random.default_rng(0)
    normed, ct = draw(rng, BATCH, TOKENS, D), draw(rng, BATCH, TOKENS, D)
    weights = jnp.abs(draw(rng, BATCH, TOKENS, ACTIVE))
    floats, fixed = part_floats(matrices_of(kind, rng))
    trained = normed, weights, floats
    theirs, ours = loss_and_gradients(experts_of_tokens), loss_and_gradients(dispatch_experts)
    for name, index in routings(rng).items():
        index = jnp.asarray(index, jnp.int32)
        expected = theirs(trained, index, fixed, ct)
        with jax.set_mesh(make_mesh(sizes)):
            found = ours(trained, index, fixed, ct)
        assert_trees_close(found, expected, 1e-5)
