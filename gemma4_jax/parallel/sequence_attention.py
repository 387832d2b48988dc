"""Attention over rows that are cut along their tokens: `attend`, when no device holds a whole row.

For training: queries and keys are the same tokens, cut over the mesh axis `seq` in the order of `zigzag`.
Sliding layers fetch the W - 1 positions before each chunk; full layers pass K/V shards around a ring, or gather
them where they are small (`full_layer_exchange`). Masks come from the facts, which travel with the tokens.
Where K is implied by V, only V and K's rotated slice travel.

The gradient is written out (one custom VJP around two shard_maps): plain differentiation would keep every shard
that ever visited. Kept are q, the local K/V, the output and its log-sum-exp; keys travel again. Not here:
caches and decoding (`cut_cache`), the arithmetic (`attention_tiles`), the travel
(`sequence_exchange`).

Letters: B batch, T tokens, N query heads, K key/value heads, H head dim, W window, P parts along `seq`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from gemma4_jax.config import ModelConfig
from gemma4_jax.model.attention import KeyValues, attend
from gemma4_jax.model.parts import Attend
from gemma4_jax.model.visibility import TokenFacts, visible
from gemma4_jax.parallel import attention_tiles as tiles
from gemma4_jax.parallel import sequence_exchange as exchange
from gemma4_jax.parallel.heads import divisible_heads
from gemma4_jax.parallel.sequence_exchange import Whole, full_layer_exchange
from gemma4_jax.parallel.zigzag import SEQ, check_tokens
from gemma4_jax.sharding import BATCH, current_mesh, rows_over, spec

# Queries and keys of one pair of tiles: 512 x 512 float32 scores are 1 MiB a head.
TILE = 512
# Soft tokens of the largest image budget: how far a media block may reach to the right of one of its tokens. Of
# a longer block, what is further away than this is not seen; whoever makes the blocks has to bound them.
MEDIA_BLOCK = 1120


def sequence_attend(
    config: ModelConfig,
    q: Float[Array, "B T N H"],
    kv: KeyValues,
    facts: TokenFacts,
    window: int | None,
    whole: Whole | None = None,
    alone: Attend = attend,
) -> Float[Array, "B T N H"]:
    """`attend` under `jax.set_mesh`: rows cut over data and fsdp, tokens over seq, heads over tensor.

    q, kv and facts are in zig-zag order, and so is the result. whole: how the keys of a whole row reach its
    queries; None leaves it to `full_layer_exchange`. Without a mesh that cuts tokens this is
    `alone`. Raises UserError for heads or tokens that do not divide.

    Two outputs that nothing reads are others than `attend`'s: queries that see no key give zeros; padding of a
    row with branches, where all padding has position 0, does not see what comes after it.
    """
    mesh = current_mesh()
    parts, tokens = 1 if mesh is None else mesh.shape[SEQ], q.shape[1]
    if parts == 1:
        return alone(config, q, kv, facts, window)
    check_tokens(tokens, parts)
    spec((None, None, "heads", None), q.shape, mesh)
    kv = divisible_heads(kv, mesh)
    facts, key_facts = (
        dataclasses.replace(f, index=jnp.broadcast_to(f.index, q.shape[:2]))
        for f in (facts, kv.facts)
    )
    how = _how(config, kv, facts, window, whole, mesh)
    # custom_vjp unflattens its arguments with placeholders, which a checked dataclass would refuse.
    both = vars(facts), vars(key_facts)
    return _attention(how, q, kv.value, _other(kv), kv.key_scale, both)


@dataclasses.dataclass(frozen=True)
class _How:
    """What is static about one attention."""

    mesh: Any
    rows: tuple[str, ...] | None  # the mesh axes that cut rows
    window: int | None
    bidirectional: Literal["vision", "all"] | None
    way: Literal["halo", "ring", "gather"]
    left: int  # positions that a query may see before and after itself, where way is "halo"
    right: int
    causal: bool  # no query sees a later position
    tile: int

    @property
    def parts(self) -> int:
        """P."""
        return self.mesh.shape[SEQ]

    @property
    def specs(self) -> tuple[PartitionSpec, PartitionSpec]:
        """Of arrays with heads, and of facts."""
        return PartitionSpec(self.rows, SEQ, "tensor"), PartitionSpec(self.rows, SEQ)

    @property
    def mask(self) -> tiles.Mask:
        """(queries' facts, keys' facts) -> who sees whom."""
        return functools.partial(visible, window=self.window, bidirectional=self.bidirectional)


def _how(
    config: ModelConfig,
    kv: KeyValues,
    facts: TokenFacts,
    window: int | None,
    whole: Whole | None,
    mesh: Any,
) -> _How:
    parts, tokens = mesh.shape[SEQ], kv.value.shape[1]
    chunk = tokens // (2 * parts)
    two_sided = config.bidirectional == "all"
    media = bool(window) and facts.block is not None and config.bidirectional == "vision"
    if window is None:
        left = right = tokens
    elif two_sided:
        left = right = window // 2 + 1
    else:
        left, right = window - 1, MEDIA_BLOCK - 1 if media else 0
    left, right = min(left, tokens - 1), min(right, tokens - 1)
    # A branch's prompt may stand any distance before it, behind other branches: within W by its index, not by
    # its place, so all keys come by. And a halo of as many positions as there are elsewhere saves nothing.
    way: Literal["halo", "ring", "gather"]
    if facts.branch is None and left + right < (parts - 1) * chunk:
        way = "halo"
    else:
        way = whole or full_layer_exchange(*_shard(kv, mesh))
    return _How(
        mesh=mesh,
        rows=BATCH if kv.value.shape[0] % rows_over(mesh) == 0 else None,
        window=window,
        bidirectional=config.bidirectional,
        way=way,
        left=left,
        right=right,
        causal=not two_sided and not media,
        # As few tiles as `TILE` allows, of equal size.
        tile=-(-chunk // -(-chunk // TILE)),
    )


def _shard(kv: KeyValues, mesh: Any) -> tuple[int, int, int, int, int]:
    """What `full_layer_exchange` asks for."""
    batch, tokens, heads, _ = kv.value.shape
    parts, rows = mesh.shape[SEQ], rows_over(mesh)
    local_rows = batch if batch % rows else batch // rows
    width = kv.value.shape[-1] + _other(kv).shape[-1]
    local_heads = heads // mesh.shape["tensor"]
    return local_rows * tokens // parts, parts, local_heads, width, kv.value.dtype.itemsize


def _other(kv: KeyValues) -> Array:
    """What travels beside the values: keys, or the rotated slice of implied ones."""
    other = kv.key if kv.rotated is None else kv.rotated
    assert other is not None
    return other


# The fields of the queries' TokenFacts and of the keys'.
Facts = tuple[dict[str, Any], dict[str, Any]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    how: _How, q: Array, value: Array, other: Array, key_scale: Array | None, facts: Facts
) -> Array:
    """Of whole arrays; other: keys, or where key_scale is given their rotated slice."""
    return _forward(how, q, value, other, key_scale, facts)[0]


def _forward(
    how: _How, q: Array, value: Array, other: Array, key_scale: Array | None, facts: Facts
) -> tuple[Array, Any]:
    cut, shared = how.specs
    run = jax.shard_map(
        functools.partial(_forward_shard, how),
        mesh=how.mesh,
        in_specs=(cut, cut, cut, shared),
        out_specs=(cut, cut),
        check_vma=False,
    )
    # In a scan over layers the facts are constants. Differentiating it takes out of the loop, and keeps, what
    # depends on constants alone: the masks of all pairs of tiles, 1 GB a device for 4 of 4096 tokens. From here
    # on nothing depends on the facts alone.
    q, facts = jax.lax.optimization_barrier((q, facts))
    parts = _query_parts(value, other, facts, q, key_scale)
    out, logsumexp = run(parts, value, other, facts)
    return out, (q, value, other, key_scale, facts, out, logsumexp)


def _backward(how: _How, saved: Any, grad: Array) -> tuple[Any, ...]:
    q, value, other, key_scale, facts, out, logsumexp = saved
    cut, shared = how.specs
    run = jax.shard_map(
        functools.partial(_backward_shard, how),
        mesh=how.mesh,
        in_specs=(cut, cut, cut, shared, cut, cut, cut),
        out_specs=(cut, cut, cut),
        check_vma=False,
    )
    parts, pull = jax.vjp(functools.partial(_query_parts, value, other, facts), q, key_scale)
    of_parts, of_value, of_other = run(parts, value, other, facts, out, logsumexp, grad)
    of_q, of_scale = pull(of_parts)
    return of_q, of_value, of_other, of_scale, None


_attention.defvjp(_forward, _backward)


def _query_parts(
    value: Array, other: Array, facts: Facts, q: Array, key_scale: Array | None
) -> tuple[Array, ...]:
    """The queries' side of `KeyValues.products`."""
    if key_scale is None:
        return (q,)
    kv = KeyValues(value, TokenFacts(**facts[1]), rotated=other, key_scale=key_scale)
    return tuple(part for part, _ in kv.products(q))


def _forward_shard(
    how: _How,
    parts: tuple[Array, ...],
    value: Array,
    other: Array,
    facts: Facts,
) -> tuple[Array, Array]:
    """Output and log-sum-exp of one device's queries; all arrays are local."""
    chunk = value.shape[1] // 2
    queries, keys = _tiled(how, parts, value, other, facts)
    sums = tiles.nothing_yet(queries, value.shape[-1])

    def visit(sums: tiles.Sums, keys: tiles.Keys, pairs: Array) -> tuple[tiles.Sums, tuple[()]]:
        return tiles.meet(how.mask, queries, keys, pairs, sums), ()

    if how.way == "ring":
        sums, _ = exchange.ring(visit, sums, keys, how.parts, how.causal)
    else:
        sums, _ = visit(sums, keys, _pairs(how, chunk))
    out, logsumexp = (tiles.join(x, 2, chunk) for x in tiles.finish(sums))
    shape = parts[0].shape[:3]
    return out.reshape(*shape, -1).astype(parts[0].dtype), logsumexp.reshape(shape)


def _backward_shard(
    how: _How,
    parts: tuple[Array, ...],
    value: Array,
    other: Array,
    facts: Facts,
    out: Array,
    logsumexp: Array,
    grad: Array,
) -> tuple[tuple[Array, ...], Array, Array]:
    """Gradients of one device's query parts, values and others; all arrays are local."""
    chunk, kv_heads = value.shape[1] // 2, value.shape[2]
    queries, keys = _tiled(how, parts, value, other, facts)
    delta = (out.astype(jnp.float32) * grad.astype(jnp.float32)).sum(-1)
    of_out, *rows = (
        tiles.split(_grouped(x, kv_heads), 2, how.tile) for x in (grad, logsumexp, delta)
    )
    outcome = tiles.Outcome(of_out, *(jnp.moveaxis(x, 2, 4) for x in rows))

    def visit(of_queries: Any, keys: tiles.Keys, pairs: Array) -> tuple[Any, Any]:
        return tiles.meet_backward(how.mask, queries, keys, pairs, outcome, of_queries)

    of_queries = tuple(jnp.zeros(x.shape, jnp.float32) for x in queries.parts)
    if how.way == "ring":
        of_queries, of_keys = exchange.ring(visit, of_queries, keys, how.parts, how.causal)
    else:
        of_queries, of_keys = visit(of_queries, keys, _pairs(how, chunk))
    of_parts = tuple(
        tiles.join(grad, 2, chunk).reshape(part.shape).astype(part.dtype)
        for grad, part in zip(of_queries, parts, strict=True)
    )
    # What came from elsewhere goes home as float32: its gradient is a sum over devices.
    of_value, of_other = (
        jax.linear_transpose(
            functools.partial(_fetch, how), jax.ShapeDtypeStruct(x.shape, jnp.float32)
        )(grad)[0].astype(x.dtype)
        for grad, x in zip(of_keys, (value, other), strict=True)
    )
    return of_parts, of_value, of_other


def _tiled(
    how: _How,
    parts: tuple[Array, ...],
    value: Array,
    other: Array,
    facts: Facts,
) -> tuple[tiles.Queries, tiles.Keys]:
    """One device's queries, and the keys that it begins with: fetched ones, or its own for a ring."""
    own = functools.partial(tiles.split, runs=2, tile=how.tile)
    fetch = functools.partial(_fetch, how)
    of_queries, of_keys = (TokenFacts(**fields) for fields in facts)
    grouped = tuple(own(_grouped(part, value.shape[2])) for part in parts)
    queries = tiles.Queries(grouped, tiles.through(own, of_queries))
    return queries, tiles.Keys(fetch(value), fetch(other), tiles.through(fetch, of_keys))


def _fetch(how: _How, x: Array) -> Array:
    """[B, 2 c, ...] of one device -> the tiles of keys that its queries meet. Linear."""
    if how.way == "halo":
        return exchange.halo(x, how.parts, how.left, how.right, how.tile)
    if how.way == "gather":
        return exchange.gather(x, how.tile)
    return tiles.split(x, 2, how.tile)


def _pairs(how: _How, chunk: int) -> Array:
    """Which tiles of own queries and fetched keys meet."""
    if how.way == "halo":
        return jnp.asarray(exchange.halo_pairs(chunk, how.left, how.right, how.tile))
    return exchange.gather_pairs(how.parts, -(-chunk // how.tile), how.causal)


def _grouped(x: Array, kv_heads: int) -> Array:
    """[B, T, N, ...] -> [B, T, K, G, ...]."""
    return x.reshape(*x.shape[:2], kv_heads, -1, *x.shape[3:])
