"""Grouped matrix product on GPU by our own kernels: every row times the matrix of its expert, and nothing else.

`triton_grouped_matmul` equals `lax.ragged_dot`. Rows, sorted by expert, are taken in blocks of one expert each
(`expert_blocks`), all blocks and columns at once; partly filled blocks are masked. **Interpreted on CPU and
compiled for H100; never run on a GPU**: `kernels.py` takes it only where a run asks for it.

Letters: M rows, D in, F out, E experts.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float, Int

from gemma4_jax.parallel.grouped_matmul import blocked_grouped_matmul, expert_blocks

# Rows of a block, and the largest sides of tiles of D and F; the tensor cores' smallest side.
_ROWS, _TILE, _SMALLEST = 128, 128, 16
# Rows that a tile of a matrix's gradient takes at a time.
_CHUNK = 64


def triton_grouped_matmul(
    rows: Float[Array, "M D"],
    weights: Float[Array, "E D F"],
    group_sizes: Int[Array, " E"],
    interpret: bool = False,
) -> Float[Array, "M F"]:
    """rows[m] @ weights[e(m)], rows sorted by expert, 0 for rows behind the last group.

    Widths whose largest power of 2 is below 16 go to `blocked_grouped_matmul`.
    """
    if min(_tile(size) for size in weights.shape[1:]) < _SMALLEST:
        return blocked_grouped_matmul(rows, weights, group_sizes)
    return _product(interpret, rows, weights, group_sizes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(interpret: bool, rows: Array, weights: Array, group_sizes: Array) -> Array:
    return _of_rows(interpret, rows, weights, group_sizes, turned=False)


def _forward(interpret: bool, rows: Array, weights: Array, group_sizes: Array) -> tuple[Array, Any]:
    return _product(interpret, rows, weights, group_sizes), (rows, weights, group_sizes)


def _backward(interpret: bool, saved: Any, grad: Array) -> tuple[Any, ...]:
    rows, weights, group_sizes = saved
    none = np.zeros(group_sizes.shape, jax.dtypes.float0)
    of_rows = _of_rows(interpret, grad, weights, group_sizes, turned=True).astype(rows.dtype)
    return of_rows, _of_weights(interpret, rows, grad, weights, group_sizes), none


_product.defvjp(_forward, _backward)


def _tile(size: int) -> int:
    """The largest power of 2 that divides a width, at most `_TILE`."""
    return min(_TILE, size & -size)


def _of_rows(
    interpret: bool, rows: Array, weights: Array, group_sizes: Array, *, turned: bool
) -> Array:
    """Each row times its expert's matrix, or the transpose of it."""
    inner, width = (weights.shape[2], weights.shape[1]) if turned else weights.shape[1:]
    used, expert, start, end = expert_blocks(group_sizes, rows.shape[0], _ROWS)
    end = jnp.where(jnp.arange(len(expert)) < used, end, 0)  # of blocks that are none: no rows
    columns = _tile(width)
    out = jax.ShapeDtypeStruct((rows.shape[0], width), rows.dtype)
    found: Array = pl.pallas_call(
        functools.partial(_rows_program, inner=_tile(inner), columns=columns, turned=turned),
        grid=(width // columns, len(expert)),
        out_shape=out,
        # What no block writes stays 0.
        input_output_aliases={5: 0},
        name="grouped_rows",
        compiler_params=pltriton.CompilerParams(num_warps=8, num_stages=3),
        interpret=interpret,
    )(expert, start, end, rows, weights, jnp.zeros(out.shape, out.dtype))
    return found


def _rows_program(
    expert: Any, start: Any, end: Any, rows: Any, weights: Any, _: Any, out: Any,
    *, inner: int, columns: int, turned: bool,
) -> None:  # fmt: skip
    block = pl.program_id(1)
    which, first, last = expert[block], start[block], end[block]
    mine, across = pl.ds(first, _ROWS), pl.ds(pl.program_id(0) * columns, columns)
    inside = (first + jnp.arange(_ROWS) < last)[:, None]

    def step(number: Array, sums: Array) -> Array:
        along = pl.ds(number * inner, inner)
        part = pltriton.load(rows.at[mine, along], mask=inside, other=0.0)
        matrix = weights[which, across, along] if turned else weights[which, along, across]
        axes = (((1,), (1 if turned else 0,)), ((), ()))
        return sums + jax.lax.dot_general(part, matrix, axes, preferred_element_type=jnp.float32)

    steps = (first < last).astype(jnp.int32) * (rows.shape[1] // inner)
    sums = jax.lax.fori_loop(0, steps, step, jnp.zeros((_ROWS, columns), jnp.float32))
    pltriton.store(out.at[mine, across], sums.astype(out.dtype), mask=inside)


def _of_weights(
    interpret: bool, rows: Array, grad: Array, weights: Array, group_sizes: Array
) -> Array:
    """The sum over an expert's rows of row times gradient, for each expert."""
    experts, inner, width = weights.shape
    high, wide = _tile(inner), _tile(width)
    end = jnp.cumsum(group_sizes).astype(jnp.int32)
    found: Array = pl.pallas_call(
        functools.partial(_weights_program, high=high, wide=wide),
        grid=(width // wide, inner // high, experts),
        out_shape=jax.ShapeDtypeStruct(weights.shape, weights.dtype),
        name="grouped_weights",
        compiler_params=pltriton.CompilerParams(num_warps=8, num_stages=3),
        interpret=interpret,
    )(end - group_sizes, end, rows, grad)
    return found


def _weights_program(
    start: Any, end: Any, rows: Any, grad: Any, out: Any, *, high: int, wide: int
) -> None:
    which = pl.program_id(2)
    across, down = pl.ds(pl.program_id(0) * wide, wide), pl.ds(pl.program_id(1) * high, high)
    first, last = start[which], end[which]

    def step(number: Array, sums: Array) -> Array:
        at = first + number * _CHUNK
        inside = (at + jnp.arange(_CHUNK) < last)[:, None]
        part = pltriton.load(rows.at[pl.ds(at, _CHUNK), down], mask=inside, other=0.0)
        change = pltriton.load(grad.at[pl.ds(at, _CHUNK), across], mask=inside, other=0.0)
        axes = (((0,), (0,)), ((), ()))
        return sums + jax.lax.dot_general(part, change, axes, preferred_element_type=jnp.float32)

    steps = jax.lax.div(last - first + _CHUNK - 1, _CHUNK)
    sums = jax.lax.fori_loop(0, steps, step, jnp.zeros((high, wide), jnp.float32))
    out[which, down, across] = sums.astype(out.dtype)
