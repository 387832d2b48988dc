"""Grouped-query attention over keys that are given whole, or as K = RoPE(scale * V) (spec 4.3).

`attend` is the one entry: it picks, by static shapes alone, between three forms of the same sum:
`dense_attention` (the reference), the same over chunks of queries (no [T, S] array for long rows), and
`window_attention` (sliding layers: blocks of W queries against 2 W keys, nothing masked away is computed).
Kernels for accelerators and sequence parallelism have this signature and live in `parallel/`.

Letters: B batch, T queries, S keys, N query heads, K key/value heads, G = N // K, H head dim, W window.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gemma4_jax.config import ModelConfig
from gemma4_jax.model.rope import Rotation, rotate_pairs
from gemma4_jax.model.visibility import EMPTY, TokenFacts, visible

_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
# Above so many scores per head, queries are taken in chunks of QUERY_CHUNK and rematerialised backward.
DENSE_SCORES = 1024 * 1024
QUERY_CHUNK = 512


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of one layer, as attended to, and the facts about their tokens.

    `key` holds the normed, rotated keys. Where K is implied by V (k_eq_v layers: K = RoPE(key_scale * V)
    exactly), `rotated` holds the rotated slice of K, its 2 n dimensions, and `key` may be None; where both are
    there, whoever attends reads one of them.
    """

    value: Array  # [B, S, K, H]
    facts: TokenFacts
    key: Array | None = None  # [B, S, K, H]
    rotated: Array | None = None  # [B, S, K, 2n]
    key_scale: Array | None = None  # [H]

    def products(self, q: Float[Array, "B T N H"]) -> tuple[tuple[Array, Array], ...]:
        """Pairs (query part, key part) whose contractions over the last axis sum to q . k."""
        if self.key is not None:
            return ((q, self.key),)
        assert self.rotated is not None and self.key_scale is not None
        half, pairs = q.shape[-1] // 2, self.rotated.shape[-1] // 2
        # The unrotated part of q . k is (q * scale) . V over the dimensions that do not rotate. Zeroing the
        # others in q keeps V contiguous: no copy of the cache, at the price of 2 n / H idle products.
        still = (jnp.arange(q.shape[-1]) % half >= pairs).astype(q.dtype)
        turning = jnp.concatenate([q[..., :pairs], q[..., half : half + pairs]], axis=-1)
        return ((q * (self.key_scale.astype(q.dtype) * still), self.value), (turning, self.rotated))


def rotated_slice(
    value: Float[Array, "B S K H"], key_scale: Float[Array, " H"], by: Rotation
) -> Array:
    """The dimensions of K = RoPE(key_scale * V) that rotate, [B, S, K, 2n], first halves then second."""
    half, pairs = value.shape[-1] // 2, by[0].shape[-1]
    scale = key_scale.astype(jnp.float32)
    first = value[..., :pairs].astype(jnp.float32) * scale[:pairs]
    second = value[..., half : half + pairs].astype(jnp.float32) * scale[half : half + pairs]
    return jnp.concatenate(rotate_pairs(first, second, by), axis=-1).astype(value.dtype)


def attend(
    config: ModelConfig,
    q: Float[Array, "B T N H"],
    kv: KeyValues,
    facts: TokenFacts,
    window: int | None,
) -> Float[Array, "B T N H"]:
    """Attention of q over kv, masked by `visible`; scale 1.0, softmax in float32, result in q's dtype.

    facts: about the queries. window: W on sliding layers, None on full ones.
    """
    tokens, keys = q.shape[1], kv.value.shape[1]
    own_row = tokens == keys and kv.key is not None
    media = facts.block is not None and config.bidirectional == "vision"
    # A branch's prompt may lie any number of blocks before it, behind other branches.
    nearby = own_row and not media and facts.branch is None and config.bidirectional != "all"
    if window and nearby and tokens > 2 * window:
        return window_attention(q, kv, facts, window)
    if tokens * keys <= DENSE_SCORES or tokens <= QUERY_CHUNK:
        return dense_attention(config, q, kv, facts, window)
    return _chunked_attention(config, q, kv, facts, window)


def dense_attention(
    config: ModelConfig,
    q: Float[Array, "B T N H"],
    kv: KeyValues,
    facts: TokenFacts,
    window: int | None,
) -> Float[Array, "B T N H"]:
    """The reference: all T x S scores, then the mask. Rows that see no key are undefined."""
    mask = visible(facts, kv.facts, window=window, bidirectional=config.bidirectional)
    num_kv_heads = kv.value.shape[2]
    scores = sum(
        jnp.einsum(
            "btkgh,bskh->bkgts",
            part.reshape(*part.shape[:2], num_kv_heads, -1, part.shape[-1]),
            key,
            preferred_element_type=jnp.float32,
        )
        for part, key in kv.products(q)
    )
    scores = jnp.where(mask[:, None, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(kv.value.dtype)
    out = jnp.einsum("bkgts,bskh->btkgh", weights, kv.value)
    return out.reshape(q.shape).astype(q.dtype)


def _chunked_attention(
    config: ModelConfig, q: Array, kv: KeyValues, facts: TokenFacts, window: int | None
) -> Array:
    """dense_attention, `QUERY_CHUNK` queries at a time; the backward pass recomputes each chunk."""
    tokens = q.shape[1]
    index = jnp.broadcast_to(facts.index, (q.shape[0], tokens))
    facts = dataclasses.replace(facts, index=index)
    split = (_pad_tokens(leaf, -tokens % QUERY_CHUNK) for leaf in (q, facts))
    chunks = jax.tree.map(lambda leaf: _blocks(leaf, QUERY_CHUNK).swapaxes(0, 1), tuple(split))

    @jax.checkpoint
    def one(chunk: tuple[Array, TokenFacts]) -> Array:
        return dense_attention(config, chunk[0], kv, chunk[1], window)

    out = jax.lax.map(one, chunks).swapaxes(0, 1)
    return out.reshape(q.shape[0], -1, *q.shape[2:])[:, :tokens]


def window_attention(
    q: Float[Array, "B T N H"], kv: KeyValues, facts: TokenFacts, window: int
) -> Float[Array, "B T N H"]:
    """Causal sliding attention in blocks of W: block i attends to blocks i - 1 and i.

    For queries and keys that are the same tokens, without two-way blocks and without branches.
    """
    assert kv.key is not None
    batch, tokens = q.shape[:2]
    heads, head_dim = kv.value.shape[2:]
    extra = -tokens % window
    facts = TokenFacts(jnp.broadcast_to(facts.index, (batch, tokens)), facts.segment)
    q = _blocks(_pad_tokens(q, extra), window)
    query = jax.tree.map(lambda leaf: _blocks(leaf, window), _pad_facts(facts, extra))
    key, value = (
        _with_previous(_blocks(_pad_tokens(x, extra), window)) for x in (kv.key, kv.value)
    )
    index = _with_previous(query.index, fill=EMPTY)
    segment = None if query.segment is None else _with_previous(query.segment)

    def flat(leaf: Array) -> Array:
        return leaf.reshape(-1, *leaf.shape[2:])

    mask = visible(
        jax.tree.map(flat, query),
        jax.tree.map(flat, TokenFacts(index, segment)),
        window=window,
    ).reshape(*query.index.shape, 2 * window)
    q = q.reshape(*q.shape[:3], heads, -1, head_dim)
    scores = jnp.einsum("bntkgh,bnskh->bnkgts", q, key, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, :, None, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.einsum("bnkgts,bnskh->bntkgh", weights, value)
    return out.reshape(batch, tokens + extra, -1, head_dim)[:, :tokens].astype(q.dtype)


def _pad_tokens(tree: Any, extra: int) -> Any:
    """Append `extra` zero tokens on axis 1 of every leaf."""
    return jax.tree.map(
        lambda leaf: jnp.pad(leaf, ((0, 0), (0, extra)) + ((0, 0),) * (leaf.ndim - 2)), tree
    )


def _pad_facts(facts: TokenFacts, extra: int) -> TokenFacts:
    """Append `extra` tokens that nobody sees."""
    index = jnp.pad(facts.index, ((0, 0), (0, extra)), constant_values=EMPTY)
    segment = None if facts.segment is None else _pad_tokens(facts.segment, extra)
    return TokenFacts(index, segment)


def _blocks(leaf: Array, size: int) -> Array:
    """[B, n * size, ...] -> [B, n, size, ...]."""
    return leaf.reshape(leaf.shape[0], -1, size, *leaf.shape[2:])


def _with_previous(blocks: Array, fill: int = 0) -> Array:
    """[B, n, W, ...] -> [B, n, 2 W, ...]: every block behind its predecessor, `fill` before the first."""
    before = jnp.pad(
        blocks[:, :-1], ((0, 0), (1, 0)) + ((0, 0),) * (blocks.ndim - 2), constant_values=fill
    )
    return jnp.concatenate([before, blocks], axis=2)
