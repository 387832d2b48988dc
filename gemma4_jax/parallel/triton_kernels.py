"""The programs of attention on a GPU, in Pallas for Triton: output, gradients of queries, of keys, of values.

Each program owns one tile of tokens of one head and walks over the tiles that it may meet
(`attention_bounds`), so that scores never leave the chip and hidden tiles are never visited. The mask of a pair
of tiles is `visible` itself. Softmax is in float32, by a running maximum; products take the inputs' type and
sum in float32. K/V heads are read where they lie: query head n reads head n // G.

Not here: rows of any length, the gradient rule, meshes (`triton_attention`).

Letters: B batch, T tokens, N query heads, K key/value heads, G = N // K, H head dim.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float

from gemma4_jax.model.visibility import TokenFacts, visible
from gemma4_jax.parallel.attention_bounds import Facts, meetings, run_of

# Scores of hidden pairs, and the running maximum before any: exp(_HIDDEN - _NOTHING) is 0, so that tiles in
# which a query sees nothing add nothing. Every query sees a key in the end: itself.
_HIDDEN = -2e38
_NOTHING = -1e30


@dataclasses.dataclass(frozen=True)
class How:
    """What is static about one attention. interpret: run the programs without a GPU."""

    window: int | None
    bidirectional: Literal["vision"] | None
    interpret: bool

    def sees(self, queries: Facts, keys: Facts) -> Array:
        """[t, s]: which of a tile's queries see which of a tile's keys."""
        return visible(
            TokenFacts(**queries),
            TokenFacts(**keys),
            window=self.window,
            bidirectional=self.bidirectional,
        )

    def meetings(self, facts: Facts, tiles: "Tiles") -> Array:
        """`attention_bounds.meetings` of these tiles."""
        return meetings(facts, tiles.queries, tiles.keys, self.window, self.bidirectional)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tokens of a tile on both sides, warps of a program, and how many tiles ahead it loads."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """Tiles of the programs. results: of each program that walks over queries, gradients of "key", "value"."""

    output: Tiles
    of_queries: Tiles
    of_keys: Tiles
    results: tuple[tuple[str, ...], ...]


# What compiles within the 227 KiB of shared memory of an H100 and spills few registers (docs/log.md). A sum of
# 64 x 512 float32 is half of all registers: two do not fit, so gradients of keys and values come apart.
_SMALL = Plan(Tiles(128, 64, 8, 2), Tiles(64, 64, 8, 2), Tiles(32, 64, 8, 2), (("key", "value"),))
_LARGE = Plan(Tiles(64, 32, 8, 2), Tiles(64, 32, 8, 1), Tiles(32, 64, 8, 1), (("key",), ("value",)))
# float32 heads of 512: for checks alone, since exact products of float32 do without tensor cores.
_EXACT = Plan(Tiles(32, 32, 8, 1), Tiles(32, 16, 8, 1), Tiles(16, 32, 8, 1), (("key",), ("value",)))
# Rows come in multiples of every tile.
LARGEST_TILE = 128


def plan_for(q: Array) -> Plan:
    """The plan for heads of as many bytes as those of q [B, T, N, H]."""
    head = q.shape[3] * q.dtype.itemsize
    return _SMALL if head <= 512 else _LARGE if head <= 1024 else _EXACT


def output(
    how: How,
    q: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    facts: Facts,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Attention, and the log-sum-exp of each query's scores; T is a multiple of `LARGEST_TILE`."""
    tiles = plan_for(q).output
    spec = _Specs(q, key, tiles)
    call = pl.pallas_call(
        functools.partial(_output_program, how=how, tiles=tiles),
        grid=spec.grid_of_queries,
        in_specs=[*spec.of_row(facts, tiles.queries), spec.own_query, spec.head, spec.head],
        out_specs=[spec.own_query, spec.own_number],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32),
        ],
        name="attention_output",
        **_running(how, tiles),
    )
    found: Any = call(facts, run_of(how.meetings(facts, tiles)), q, key, value)
    return found[0], found[1]


def of_queries(
    how: How,
    q: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    facts: Facts,
    grad: Float[Array, "B T N H"],
    numbers: Sequence[Float[Array, "B N T"]],
) -> Float[Array, "B T N H"]:
    """Gradient of q. numbers: log-sum-exp, and the product of output and its gradient, of each query."""
    tiles = plan_for(q).of_queries
    spec = _Specs(q, key, tiles)
    call = pl.pallas_call(
        functools.partial(_queries_program, how=how, tiles=tiles),
        grid=spec.grid_of_queries,
        in_specs=[
            *spec.of_row(facts, tiles.queries),
            *(spec.own_query, spec.head, spec.head, spec.own_query),
            *(spec.own_number, spec.own_number),
        ],
        out_specs=spec.own_query,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        name="attention_of_queries",
        **_running(how, tiles),
    )
    found: Array = call(facts, run_of(how.meetings(facts, tiles)), q, key, value, grad, *numbers)
    return found


def of_keys(
    how: How,
    q: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    facts: Facts,
    grad: Float[Array, "B T N H"],
    numbers: Sequence[Float[Array, "B N T"]],
) -> list[Float[Array, "B T K H"]]:
    """Gradients of key and value, summed over the G heads that read them; numbers as for `of_queries`."""
    plan = plan_for(q)
    tiles = plan.of_keys
    spec = _Specs(q, key, tiles)
    run = run_of(how.meetings(facts, tiles).swapaxes(1, 2))
    found: list[Array] = []
    for results in plan.results:
        call = pl.pallas_call(
            functools.partial(_keys_program, how=how, tiles=tiles, results=results),
            grid=spec.grid_of_keys,
            in_specs=[
                *spec.of_row(facts, tiles.keys),
                *(spec.group, spec.own_key, spec.own_key, spec.group),
                *(spec.group_numbers, spec.group_numbers),
            ],
            out_specs=[spec.own_key] * len(results),
            out_shape=[jax.ShapeDtypeStruct(key.shape, key.dtype)] * len(results),
            name="attention_of_" + "_".join(results),
            **_running(how, tiles),
        )
        found += call(facts, run, q, key, value, grad, *numbers)
    return found


class _Specs:
    """What part of an array a program is handed, in grids (B, N, tiles) and (B, K, tiles)."""

    def __init__(self, q: Array, key: Array, tiles: Tiles):
        batch, tokens, heads, size = q.shape
        kv_heads = key.shape[2]
        group = heads // kv_heads
        self._tokens = tokens
        self.grid_of_queries = (batch, heads, tokens // tiles.queries)
        self.grid_of_keys = (batch, kv_heads, tokens // tiles.keys)
        # Of a program's own tile: queries, a number for each, keys.
        self.own_query = pl.BlockSpec(
            (None, tiles.queries, None, size), lambda b, n, i: (b, i, n, 0)
        )
        self.own_number = pl.BlockSpec((None, None, tiles.queries), lambda b, n, i: (b, n, i))
        self.own_key = pl.BlockSpec((None, tiles.keys, None, size), lambda b, k, i: (b, i, k, 0))
        # All tokens of a query's K/V head, and all queries that read a K/V head.
        self.head = pl.BlockSpec(
            (None, tokens, None, size), lambda b, n, i: (b, 0, jax.lax.div(n, group), 0)
        )
        self.group = pl.BlockSpec((None, tokens, group, size), lambda b, k, i: (b, 0, k, 0))
        self.group_numbers = pl.BlockSpec((None, group, tokens), lambda b, k, i: (b, k, 0))

    def of_row(self, facts: Facts, own: int) -> tuple[Any, Any]:
        """Of facts, and of the runs of tiles that tiles of `own` tokens meet."""

        def row(count: int) -> pl.BlockSpec:
            return pl.BlockSpec((None, count), lambda b, n, i: (b, 0))

        return {name: row(self._tokens) for name in facts}, (row(self._tokens // own),) * 2


def _running(how: How, tiles: Tiles) -> dict[str, Any]:
    params = pltriton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages)
    return {"compiler_params": params, "interpret": how.interpret}


def _part(facts: dict[str, Any], number: Any, size: int) -> Facts:
    """Facts of one tile."""
    return {name: fact[pl.ds(number * size, size)] for name, fact in facts.items()}


def _product(one: Array, other: Array, over: tuple[int, int]) -> Array:
    """Sum over an axis of each, in float32."""
    axes = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(one, other, axes, preferred_element_type=jnp.float32)


def _output_program(
    facts: Any, run: Any, q: Any, key: Any, value: Any, out: Any, logsumexp: Any,
    *, how: How, tiles: Tiles,
) -> None:  # fmt: skip
    tile = pl.program_id(2)
    query, mine = q[...], _part(facts, tile, tiles.queries)

    def visit(number: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, out = sums
        at = pl.ds(number * tiles.keys, tiles.keys)
        scores = _product(query, key[at, :], (1, 1))
        scores = jnp.where(how.sees(mine, _part(facts, number, tiles.keys)), scores, _HIDDEN)
        higher = jnp.maximum(top, scores.max(1))
        weights, kept = jnp.exp(scores - higher[:, None]), jnp.exp(top - higher)
        found = _product(weights.astype(value.dtype), value[at, :], (1, 0))
        return higher, total * kept + weights.sum(1), out * kept[:, None] + found

    nothing = (
        jnp.full((tiles.queries,), _NOTHING, jnp.float32),
        jnp.zeros((tiles.queries,), jnp.float32),
        jnp.zeros(query.shape, jnp.float32),
    )
    top, total, sums = jax.lax.fori_loop(run[0][tile], run[1][tile], visit, nothing)
    out[...] = (sums / total[:, None]).astype(out.dtype)
    logsumexp[...] = top + jnp.log(total)


def _queries_program(
    facts: Any, run: Any, q: Any, key: Any, value: Any, grad: Any, logsumexp: Any, inner: Any, out: Any,
    *, how: How, tiles: Tiles,
) -> None:  # fmt: skip
    tile = pl.program_id(2)
    query, mine = q[...], _part(facts, tile, tiles.queries)
    of_out, total, mean = grad[...], logsumexp[...], inner[...]

    def visit(number: Array, sums: Array) -> Array:
        at = pl.ds(number * tiles.keys, tiles.keys)
        keys = key[at, :]
        scores = _product(query, keys, (1, 1))
        scores = jnp.where(how.sees(mine, _part(facts, number, tiles.keys)), scores, _HIDDEN)
        weights = jnp.exp(scores - total[:, None])
        of_scores = weights * (_product(of_out, value[at, :], (1, 1)) - mean[:, None])
        return sums + _product(of_scores.astype(keys.dtype), keys, (1, 0))

    sums = jnp.zeros(query.shape, jnp.float32)
    out[...] = jax.lax.fori_loop(run[0][tile], run[1][tile], visit, sums).astype(out.dtype)


def _keys_program(
    facts: Any, run: Any, q: Any, key: Any, value: Any, grad: Any, logsumexp: Any, inner: Any, *outs: Any,
    how: How, tiles: Tiles, results: tuple[str, ...],
) -> None:  # fmt: skip
    """Scores lie [keys, queries] here, so that the tensor cores' long side is that of the result."""
    tile = pl.program_id(2)
    mine, keys = _part(facts, tile, tiles.keys), key[...]
    values = value[...] if "key" in results else None
    first, end = run[0][tile], run[1][tile]

    def visit(head: Array, number: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        at = pl.ds(number * tiles.queries, tiles.queries)
        query, of_out = q[at, head, :], grad[at, head, :]
        scores = _product(keys, query, (1, 1))
        seen = how.sees(_part(facts, number, tiles.queries), mine).T
        weights = jnp.exp(jnp.where(seen, scores, _HIDDEN) - logsumexp[head, at][None, :])
        found = []
        if values is not None:
            change = _product(values, of_out, (1, 1)) - inner[head, at][None, :]
            found.append(_product((weights * change).astype(query.dtype), query, (1, 0)))
        if "value" in results:
            found.append(_product(weights.astype(of_out.dtype), of_out, (1, 0)))
        return tuple(one + other for one, other in zip(sums, found, strict=True))

    def of_head(head: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        return jax.lax.fori_loop(first, end, functools.partial(visit, head), sums)

    sums = tuple(jnp.zeros(keys.shape, jnp.float32) for _ in outs)
    for out, found in zip(outs, jax.lax.fori_loop(0, q.shape[1], of_head, sums), strict=True):
        out[...] = found.astype(out.dtype)
