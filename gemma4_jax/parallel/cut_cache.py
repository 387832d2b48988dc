"""Decoding over a mesh: attention to a cache that is cut over devices, and writing to it.

Rows of a cache are cut as those of a batch, heads over `tensor`, positions of full layers over `seq`. Every
device of `seq` meets all new tokens with its own positions; what travels is the largest score, the sum of
exponentials and the weighted values, a few numbers a new token and head, never K or V. Rings are short and
whole on every device of `seq`. Same signatures and results as `model.attention.attend` and
`model.cache.remember`. Not here: training, where no device has all queries of a row either
(`sequence_attention`), and how a cache is laid out (`model/cache.py`).

Letters: B batch, C new tokens, S positions held by one device, N query heads, K key/value heads, H head dim.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from gemma4_jax.collectives import mesh_over
from gemma4_jax.config import SLIDING, LayerConfig, ModelConfig
from gemma4_jax.model import cache as caching
from gemma4_jax.model.attention import KeyValues, attend
from gemma4_jax.model.visibility import TokenFacts, visible
from gemma4_jax.sharding import BATCH, TOKENS, spec

_HIDDEN = -0.7 * float(jnp.finfo(jnp.float32).max)
# Scores of so many queries at a time are in memory.
_QUERIES = 512


def attend_cached(
    config: ModelConfig,
    q: Float[Array, "B C N H"],
    kv: KeyValues,
    facts: TokenFacts,
    window: int | None,
) -> Float[Array, "B C N H"]:
    """`attend` under `jax.set_mesh`, over K/V that lie as `cache.entry_axes` says.

    window: as there; on full layers (None) positions are cut.
    """
    mesh = mesh_over(q.shape)
    if mesh is None:
        return attend(config, q, kv, facts, window)
    cut = window is None and mesh.shape[TOKENS] > 1
    rows, along = PartitionSpec(BATCH), PartitionSpec(BATCH, TOKENS if cut else None)
    of_q = PartitionSpec(BATCH, None, "tensor")
    # Plain dicts: specs stand in the place of arrays, which a checked dataclass would refuse.
    held = {"value": kv.value, "key": kv.key, "rotated": kv.rotated}
    about = _of_rows(kv.facts, q.shape[0]), _of_rows(facts, q.shape[0])

    def own(q: Array, held: Any, key_scale: Array | None, about: Any) -> Array:
        of_keys, of_queries = (TokenFacts(**fields) for fields in about)
        local = KeyValues(facts=of_keys, key_scale=key_scale, **held)
        if cut:
            return _joined(config, q, local, of_queries)
        return attend(config, q, local, of_queries, window)

    mapped = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(of_q, PartitionSpec(*along, "tensor"), PartitionSpec(), (along, rows)),
        out_specs=of_q,
        check_vma=False,
    )
    out: Array = mapped(q, held, kv.key_scale, about)
    return out


def remember(
    entry: dict[str, Array],
    new: dict[str, Array],
    index: caching.Index,
    length: Int[Array, " B"],
    count: Int[Array, " B"],
    layer: LayerConfig,
) -> dict[str, Array]:
    """`cache.remember` under `jax.set_mesh`: every device writes what falls into its own positions."""
    mesh = mesh_over(new["value"].shape)
    if mesh is None:
        return caching.remember(entry, new, index, length, count, layer)
    axes = caching.entry_axes(layer)
    of_entry = {name: spec(axes, buffer.shape, mesh) for name, buffer in entry.items()}
    of_new = PartitionSpec(BATCH, None, "tensor")
    at = caching.write_slots(
        length, count, new["value"].shape[1], caching.size(entry), layer.kind == SLIDING
    )

    def own(entry: Any, new: Any, index: caching.Index, at: Array) -> Any:
        held = caching.size(entry)
        if of_entry["value"][3] is not None:
            at = at - jax.lax.axis_index(TOKENS) * held
        # `held` is the slot of what is not to be written here.
        inside = (at >= 0) & (at < held)
        return caching.write(entry, new, index, jnp.where(inside, at, held))

    mapped = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(
            of_entry,
            dict.fromkeys(entry, of_new),
            (PartitionSpec(), PartitionSpec()),
            PartitionSpec(BATCH),
        ),
        out_specs=of_entry,
        check_vma=False,
    )
    repeat, place = (jnp.asarray(i, jnp.int32) for i in index)
    mine = {name: new[name] for name in entry}
    written: dict[str, Array] = mapped(entry, mine, (repeat, place), at)
    return written


def _joined(config: ModelConfig, q: Array, kv: KeyValues, facts: TokenFacts) -> Array:
    """Attention of a full layer whose positions the devices of `seq` hold in parts."""
    parts = [
        _sums(config, q[:, start : start + _QUERIES], kv, facts[:, start : start + _QUERIES])
        for start in range(0, q.shape[1], _QUERIES)
    ]
    largest, total, values = (jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    share = jnp.exp(largest - jax.lax.pmax(largest, TOKENS))
    total = jax.lax.psum(total * share, TOKENS)
    out = jax.lax.psum(values * share[..., None], TOKENS) / total[..., None]
    return out.reshape(q.shape).astype(q.dtype)


def _sums(
    config: ModelConfig, q: Array, kv: KeyValues, facts: TokenFacts
) -> tuple[Array, Array, Array]:
    """Of one device's positions: largest score [B, C, K, G], sum of exponentials, weighted values [..., H].

    All relative to the largest score, float32. A token that sees no position here has a largest score so small
    that nothing of it remains beside another device's.
    """
    mask = visible(facts, kv.facts, bidirectional=config.bidirectional)[:, :, None, None]
    heads = kv.value.shape[2]
    scores = sum(
        jnp.einsum(
            "bckgh,bskh->bckgs",
            part.reshape(*part.shape[:2], heads, -1, part.shape[-1]),
            key,
            preferred_element_type=jnp.float32,
        )
        for part, key in kv.products(q)
    )
    scores = jnp.where(mask, scores, _HIDDEN)
    largest = scores.max(-1)
    weights = jnp.exp(scores - largest[..., None])
    values = jnp.einsum(
        "bckgs,bskh->bckgh",
        weights.astype(kv.value.dtype),
        kv.value,
        preferred_element_type=jnp.float32,
    )
    return largest, weights.sum(-1), values


def _of_rows(facts: TokenFacts, rows: int) -> dict[str, Array | None]:
    """The facts by name, of every row."""
    index = jnp.broadcast_to(facts.index, (rows, facts.index.shape[1]))
    return vars(dataclasses.replace(facts, index=index))
