"""Attention of new tokens to a full layer's cache, a block of positions at a time.

Blocks are read where they lie, in the stacked buffers of all layers, and only as many as have been written: a
layer's slice of a long cache is never copied, nor are its keys rebuilt or its scores kept all at once. Buffers
belong to rows, or are pages that a table gives to them (`model/cache.py`). Not
here: rings, which are short (`attention.attend`), and caches cut over devices (`parallel/cut_cache.py`).

Letters: B batch, C new tokens, S positions of a buffer, N query heads, K key/value heads, G = N // K, H head
dim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gemma4_jax.config import LayerConfig, ModelConfig
from gemma4_jax.model.attention import KeyValues, attend, rotated_slice
from gemma4_jax.model.cache import Index, size
from gemma4_jax.model.cache_precision import restored
from gemma4_jax.model.rope import rotation
from gemma4_jax.model.visibility import EMPTY, TokenFacts, visible

_HIDDEN = -0.7 * float(jnp.finfo(jnp.float32).max)
# Positions of a block: their scores and rebuilt keys stay in fast memory. Queries that meet them together.
BLOCK = 1024
_QUERIES = 512

# Of some positions, relative to the largest score: that score and the sum of exponentials [B, C, K, G], and the
# weighted values [B, C, K, G, H]; float32.
Sums = tuple[Array, Array, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Held:
    """K/V of one full layer in its stacked buffers, of which each row has written `length` positions."""

    entry: Any  # as of cache.Entry
    index: Index
    key_scale: Any  # [H]
    length: Any  # int32 [B]
    layer: LayerConfig = dataclasses.field(metadata={"static": True})
    table: Any = None  # as of cache.Cache


def attend_held(
    config: ModelConfig,
    q: Float[Array, "B C N H"],
    kv: KeyValues | Held,
    facts: TokenFacts,
    window: int | None,
) -> Float[Array, "B C N H"]:
    """`attend`, to arrays or to what a cache holds."""
    if isinstance(kv, KeyValues):
        return attend(config, q, kv, facts, window)
    return shares(sums_of_held(config, q, kv, facts), q)


def shares(sums: Sums, q: Float[Array, "B C N H"]) -> Float[Array, "B C N H"]:
    """The softmax's outcome, from sums over all positions."""
    _, total, values = sums
    return (values / total[..., None]).reshape(q.shape).astype(q.dtype)


def sums_of_held(
    config: ModelConfig,
    q: Array,
    held: Held,
    facts: TokenFacts,
    part: tuple[Array | int, int] = (0, 1),
) -> Sums:
    """Sums over the positions of a cache; part (i, n): over those that the i-th of n devices holds."""
    index = jnp.broadcast_to(facts.index, q.shape[:2])
    sums = _sums if held.table is None else _sums_of_pages
    parts = [
        sums(config, q[:, at : at + _QUERIES], held, index[:, at : at + _QUERIES], part)
        for at in range(0, q.shape[1], _QUERIES)
    ]
    joined: Any = tuple(jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    return joined


def _sums(
    config: ModelConfig, q: Array, held: Held, index: Array, part: tuple[Array | int, int]
) -> Sums:
    """Over rows' own buffers: a device holds consecutive positions."""
    rows, slots = q.shape[0], size(held.entry)
    block, first = _block(slots), part[0] * slots

    def sums(number: Array | int) -> Sums:
        start = number * block

        def take(buffer: Array) -> Array:
            shape = (1, 1, rows, block, *buffer.shape[4:])
            taken = jax.lax.dynamic_slice(buffer, (*held.index, 0, start, 0, 0), shape)
            return taken.reshape(shape[2:])

        taken = {name: take(buffer) for name, buffer in held.entry.items()}
        position = first + start + jnp.arange(block, dtype=jnp.int32)[None]
        return _block_sums(config, q, held, index, taken, position)

    if block == slots:
        return sums(0)
    written = jnp.clip(held.length.max() - first, 0, slots)
    return _over_blocks(sums, -(-written // block), q, held)


def _sums_of_pages(
    config: ModelConfig, q: Array, held: Held, index: Array, part: tuple[Array | int, int]
) -> Sums:
    """Over pages: a device holds consecutive positions of every page."""
    slots, pages = size(held.entry), held.table.shape[1]
    page = slots * part[1]
    together = _pages_together(pages, page)
    table = jnp.pad(held.table, ((0, 0), (0, -pages % together)))
    of_page = part[0] * slots + jnp.arange(slots, dtype=jnp.int32)

    def sums(number: Array | int) -> Sums:
        here = jax.lax.dynamic_slice_in_dim(table, number * together, together, axis=1)

        def take(buffer: Array) -> Array:
            # One gather out of the stack of all layers. Pages that are none are seen by nobody.
            taken = buffer.at[*held.index, here].get(mode="clip")
            return taken.reshape(taken.shape[0], together * slots, *taken.shape[3:])

        taken = {name: take(buffer) for name, buffer in held.entry.items()}
        start = (number * together + jnp.arange(together, dtype=jnp.int32)) * page
        position = (start[:, None] + of_page).reshape(1, -1)
        return _block_sums(config, q, held, index, taken, position)

    return _over_blocks(sums, -(-held.length.max() // (together * page)), q, held)


def _over_blocks(sums: Callable[[Array], Sums], blocks: Array, q: Array, held: Held) -> Sums:
    """Sums over all blocks before the given number."""
    rows, tokens, heads, width = q.shape
    kv_heads = held.entry["value"].shape[4]
    nothing = jnp.zeros((rows, tokens, kv_heads, heads // kv_heads), jnp.float32)
    start = nothing + _HIDDEN, nothing, jnp.zeros((*nothing.shape, width), jnp.float32)

    def add(number: Array, so_far: Sums) -> Sums:
        return merged(so_far, sums(number))

    found: Sums = jax.lax.fori_loop(0, blocks, add, start)
    return found


def merged(one: Sums, other: Sums) -> Sums:
    """Sums over the positions of both."""
    largest = jnp.maximum(one[0], other[0])
    shares = [jnp.exp(sums[0] - largest) for sums in (one, other)]
    total = one[1] * shares[0] + other[1] * shares[1]
    values = one[2] * shares[0][..., None] + other[2] * shares[1][..., None]
    return largest, total, values


def _block_sums(
    config: ModelConfig,
    q: Array,
    held: Held,
    index: Array,
    taken: dict[str, Array],
    position: Int[Array, "1 S"],
) -> Sums:
    """Sums over one block of positions, whose buffers [B, S, K, ...] have been taken.

    A token that sees none of them has a largest score so small that nothing of it remains beside others.
    """
    heads = held.entry["value"].shape[4]
    taken = restored(taken, q.dtype)
    rotated = taken.get("rotated")
    if "key" not in taken and rotated is None:
        by = rotation(position, held.layer.head_dim, held.layer.rope)
        rotated = rotated_slice(taken["value"], held.key_scale, by)
    kv = KeyValues(
        taken["value"],
        TokenFacts(jnp.where(position < held.length[:, None], position, EMPTY)),
        taken.get("key"),
        rotated,
        held.key_scale,
    )
    mask = visible(TokenFacts(index), kv.facts, bidirectional=config.bidirectional)
    scores = sum(
        jnp.einsum(
            "bckgh,bskh->bckgs",
            part.reshape(*part.shape[:2], heads, -1, part.shape[-1]),
            key,
            preferred_element_type=jnp.float32,
        )
        for part, key in kv.products(q)
    )
    scores = jnp.where(mask[:, :, None, None], scores, _HIDDEN)
    largest = scores.max(-1)
    weights = jnp.exp(scores - largest[..., None])
    values = jnp.einsum(
        "bckgs,bskh->bckgh",
        weights.astype(kv.value.dtype),
        kv.value,
        preferred_element_type=jnp.float32,
    )
    return largest, weights.sum(-1), values


def _block(slots: int) -> int:
    """Positions of a block: the largest power of two up to BLOCK that divides the slots, or all of them."""
    block = BLOCK
    while slots % block:
        block //= 2
    return block if block >= BLOCK // 8 else slots


def _pages_together(pages: int, page: int) -> int:
    """Pages read at once: blocks grow with what a row may hold, from one page to BLOCK positions."""
    return int(min(max(pages // 16, 1), max(BLOCK // page, 1)))
