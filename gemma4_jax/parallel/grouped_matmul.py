"""Grouped matrix product for platforms where `lax.ragged_dot` multiplies every row by every expert.

XLA:CPU and, compiled for an H100 by jax 0.11.2, XLA:GPU lower ragged_dot to a dense product over all E experts:
E times the useful work, and on GPU an array of all rows for each expert (44 GiB for a layer of 26B-A4B at 8192
tokens). Here rows (sorted by expert) are taken in blocks that belong to one expert each, so the work is what is
useful plus at most one partly filled block per expert.

Letters: M rows, D in, F out, E experts, R rows per block.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_MIN_BLOCK, _MAX_BLOCK = 8, 256


def _block_rows(rows: int, experts: int) -> int:
    """R: about the mean group, a power of two. Never 1: XLA:CPU multiplies a single bf16 row 8 x slower."""
    mean = max(1, rows // experts)
    return int(min(_MAX_BLOCK, max(_MIN_BLOCK, 1 << (mean - 1).bit_length())))


def expert_blocks(group_sizes: Array, rows: int, size: int) -> tuple[Array, Array, Array, Array]:
    """Number of blocks in use; and expert, first row and end of its group for each possible block."""
    ends = jnp.cumsum(group_sizes)
    per_group = -(-group_sizes // size)
    block_ends = jnp.cumsum(per_group)
    bound = -(-rows // size) + min(group_sizes.shape[0], rows)
    block = jnp.arange(bound, dtype=jnp.int32)
    expert = jnp.searchsorted(block_ends, block, side="right").astype(jnp.int32)
    expert = jnp.minimum(expert, group_sizes.shape[0] - 1)
    within = block - (block_ends - per_group)[expert]
    start = (ends - group_sizes)[expert] + within * size
    return block_ends[-1], expert, start, ends[expert]


@jax.custom_vjp
def blocked_grouped_matmul(
    rows: Float[Array, "M D"], weights: Float[Array, "E D F"], group_sizes: Int[Array, " E"]
) -> Float[Array, "M F"]:
    """rows[m] @ weights[e(m)], rows sorted by expert and group_sizes summing to M; as `lax.ragged_dot`."""
    return _forward(rows, weights, group_sizes)[0]


def _forward(rows: Array, weights: Array, group_sizes: Array) -> tuple[Array, Any]:
    count, size = rows.shape[0], _block_rows(rows.shape[0], weights.shape[0])
    used, expert, start, _ = expert_blocks(group_sizes, count, size)
    padded = jnp.pad(rows, ((0, size), (0, 0)))

    def body(j: Array, out: Array) -> Array:
        # A block may run into the next group's rows; that group's own blocks come later and overwrite.
        block = jax.lax.dynamic_slice_in_dim(padded, start[j], size)
        return jax.lax.dynamic_update_slice_in_dim(out, block @ weights[expert[j]], start[j], 0)

    out = jnp.zeros((count + size, weights.shape[2]), rows.dtype)
    return jax.lax.fori_loop(0, used, body, out)[:count], (rows, weights, group_sizes)


def _backward(saved: Any, grad: Array) -> tuple[Any, ...]:
    rows, weights, group_sizes = saved
    count, size = rows.shape[0], _block_rows(rows.shape[0], weights.shape[0])
    used, expert, start, end = expert_blocks(group_sizes, count, size)
    padded, padded_grad = (jnp.pad(x, ((0, size), (0, 0))) for x in (rows, grad))

    def body(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        d_rows, d_weights = carry
        e = expert[j]
        block = jax.lax.dynamic_slice_in_dim(padded, start[j], size)
        g = jax.lax.dynamic_slice_in_dim(padded_grad, start[j], size)
        mine = (start[j] + jnp.arange(size) < end[j])[:, None]
        d_rows = jax.lax.dynamic_update_slice_in_dim(d_rows, g @ weights[e].T, start[j], 0)
        product = jnp.matmul(
            jnp.where(mine, block, 0).T, jnp.where(mine, g, 0), preferred_element_type=jnp.float32
        )
        return d_rows, d_weights.at[e].add(product)

    carry = jnp.zeros_like(padded), jnp.zeros(weights.shape, jnp.float32)
    d_rows, d_weights = jax.lax.fori_loop(0, used, body, carry)
    none = np.zeros(group_sizes.shape, jax.dtypes.float0)
    return d_rows[:count], d_weights.astype(weights.dtype), none


blocked_grouped_matmul.defvjp(_forward, _backward)
