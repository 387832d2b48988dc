"""Sums over the answers of packed pairs whose prompt stands in the row once (data/shared_prefix.py).

Letters: B rows, T positions, S pairs in a row.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def branch_sums(
    values: Float[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    branches: Int[Array, "B T"],
    pairs: int,
) -> Float[Array, "B S 2"]:
    """Sum of `values` over branch 1 (chosen) and branch 2 (rejected) of each of S = `pairs` segments.

    Pair s is segment s + 1; 0 where a row has fewer. Values of padding and of shared tokens are left out.
    """
    # Padding and shared tokens fall behind the last slot, where segment_sum drops them.
    slot = jnp.where(branches > 0, 2 * (segment_ids - 1) + branches - 1, 2 * pairs)

    def one(row: Array, slots: Array) -> Array:
        return jax.ops.segment_sum(row, slots, num_segments=2 * pairs)

    return jax.vmap(one)(values, slot).reshape(-1, pairs, 2)
