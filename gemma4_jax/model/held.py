"""Attention of new tokens to a full layer's cache, a block of positions at a time.

Blocks are read where they lie, in the stacked buffers of all layers, and only as many as have been written: a
layer's slice of a long cache is never copied, nor are its keys rebuilt or its scores kept all at once. Not
here: rings, which are short (`attention.attend`), and caches cut over devices (`parallel/cut_cache.py`).

Letters: B batch, C new tokens, S positions of a buffer, N query heads, K key/value heads, G = N // K, H head
dim.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gemma4_jax.config import LayerConfig, ModelConfig
from gemma4_jax.model.attention import KeyValues, attend, rotated_slice
from gemma4_jax.model.cache import Index, size
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
    config: ModelConfig, q: Array, held: Held, facts: TokenFacts, first: Array | int = 0
) -> Sums:
    """Sums over the positions of a cache, or of a part of it that begins with position `first`."""
    index = jnp.broadcast_to(facts.index, q.shape[:2])
    parts = [
        _sums(config, q[:, at : at + _QUERIES], held, index[:, at : at + _QUERIES], first)
        for at in range(0, q.shape[1], _QUERIES)
    ]
    joined: Any = tuple(jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    return joined


def _sums(config: ModelConfig, q: Array, held: Held, index: Array, first: Array | int) -> Sums:
    slots = size(held.entry)
    block = _block(slots)
    if block == slots:
        return _block_sums(config, q, held, index, first, 0, block)

    def add(number: Array, so_far: Sums) -> Sums:
        return merged(so_far, _block_sums(config, q, held, index, first, number * block, block))

    written = jnp.clip(held.length.max() - first, 0, slots)
    rows, tokens, heads, width = q.shape
    kv_heads = held.entry["value"].shape[4]
    nothing = jnp.zeros((rows, tokens, kv_heads, heads // kv_heads), jnp.float32)
    start = nothing + _HIDDEN, nothing, jnp.zeros((*nothing.shape, width), jnp.float32)
    found: Sums = jax.lax.fori_loop(0, -(-written // block), add, start)
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
    first: Array | int,
    start: Array | int,
    block: int,
) -> Sums:
    """Sums over the slots [start, start + block).

    A token that sees none of them has a largest score so small that nothing of it remains beside others.
    """
    rows, heads = q.shape[0], held.entry["value"].shape[4]
    taken = {}
    for name, buffer in held.entry.items():
        shape = (1, 1, rows, block, heads, buffer.shape[-1])
        part = jax.lax.dynamic_slice(buffer, (*held.index, 0, start, 0, 0), shape)
        taken[name] = part.reshape(shape[2:])
    position = first + start + jnp.arange(block, dtype=jnp.int32)[None]
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
