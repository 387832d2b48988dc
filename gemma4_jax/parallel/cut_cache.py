"""Decoding over a mesh: attention to a cache that is cut over devices, and writing to it.

Rows of a cache are cut as those of a batch, heads over `tensor`, positions of full layers over `seq`. Every
device of `seq` meets all new tokens with its own positions (of pages: its part of each; a row's pages are on
the row's own devices, where its table counts them); what travels is the largest score, the sum of
exponentials and the weighted values, a few numbers a new token and head, never K or V. Rings are short and
whole on every device of `seq`. Same signatures and results as `model.held.attend_held` and
`model.cache.remember`. Not here: training, where no device has all queries of a row either
(`sequence_attention`), and how a cache is laid out (`model/cache.py`).

Letters: B batch, C new tokens, S positions held by one device, N query heads, K key/value heads, H head dim.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from gemma4_jax.collectives import mesh_over
from gemma4_jax.config import SLIDING, LayerConfig, ModelConfig
from gemma4_jax.model import cache as caching
from gemma4_jax.model import held
from gemma4_jax.model.attention import KeyValues, attend
from gemma4_jax.model.held import Held
from gemma4_jax.model.visibility import TokenFacts
from gemma4_jax.sharding import BATCH, TOKENS, spec


def attend_held(
    config: ModelConfig,
    q: Float[Array, "B C N H"],
    kv: KeyValues | Held,
    facts: TokenFacts,
    window: int | None,
) -> Float[Array, "B C N H"]:
    """`held.attend_held` under `jax.set_mesh`, over caches that lie as `cache.entry_axes` says."""
    mesh = mesh_over(q.shape)
    if mesh is None:
        return held.attend_held(config, q, kv, facts, window)
    # A drafter may have fewer heads than there are devices of its target's; each device then computes a copy.
    copies = mesh.shape["tensor"] // math.gcd(q.shape[2], mesh.shape["tensor"])
    q = jnp.repeat(q, copies, axis=2) if copies > 1 else q
    if isinstance(kv, KeyValues):
        out = _attend_ring(config, q, kv, facts, window, mesh)
    else:
        out = _attend_full(config, q, kv, facts, mesh)
    return out[:, :, ::copies] if copies > 1 else out


def _attend_full(
    config: ModelConfig,
    q: Array,
    kv: Held,
    facts: TokenFacts,
    mesh: Any,
) -> Array:
    """`held.attend_held` on every device's own rows, heads and positions."""
    layer, whole, rows = kv.layer, PartitionSpec(), PartitionSpec(BATCH)
    of_q, of_entry = PartitionSpec(BATCH, None, "tensor"), _specs(kv.entry, kv.layer, mesh)
    is_cut = of_entry["value"][3] is not None

    def own(
        q: Array, entry: Any, index: Any, scale: Any, length: Array, table: Any, about: Any
    ) -> Array:
        mine = Held(entry, index, scale, length, layer, table)
        part = (jax.lax.axis_index(TOKENS), mesh.shape[TOKENS]) if is_cut else (0, 1)
        sums = held.sums_of_held(config, q, mine, TokenFacts(**about), part)
        return held.shares(_of_all(sums) if is_cut else sums, q)

    mapped = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(of_q, of_entry, (whole, whole), whole, rows, rows, rows),
        out_specs=of_q,
        check_vma=False,
    )
    about = _of_rows(facts, q.shape[0])
    out: Array = mapped(q, kv.entry, _numbers(kv.index), kv.key_scale, kv.length, kv.table, about)
    return out


def _attend_ring(
    config: ModelConfig,
    q: Array,
    kv: KeyValues,
    facts: TokenFacts,
    window: int | None,
    mesh: Any,
) -> Array:
    """`attend` on every device's own rows and heads."""

    def own(q: Array, key: Array, value: Array, about: Any) -> Array:
        # Plain dicts until here: specs stand in the place of arrays, which a checked dataclass would refuse.
        of_keys, of_queries = (TokenFacts(**fields) for fields in about)
        return attend(config, q, KeyValues(value, of_keys, key), of_queries, window)

    heads, rows = PartitionSpec(BATCH, None, "tensor"), PartitionSpec(BATCH)
    mapped = jax.shard_map(
        own, mesh=mesh, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )
    assert kv.key is not None
    about = _of_rows(kv.facts, q.shape[0]), _of_rows(facts, q.shape[0])
    out: Array = mapped(q, kv.key, kv.value, about)
    return out


def remember(
    entry: dict[str, Array],
    new: dict[str, Array],
    index: caching.Index,
    length: Int[Array, " B"],
    count: Int[Array, " B"],
    layer: LayerConfig,
    table: Int[Array, "B M"] | None = None,
) -> dict[str, Array]:
    """`cache.remember` under `jax.set_mesh`: every device writes what falls into its own positions."""
    mesh = mesh_over(new["value"].shape)
    if mesh is None:
        return caching.remember(entry, new, index, length, count, layer, table)
    of_entry = _specs(entry, layer, mesh)
    of_new = PartitionSpec(BATCH, None, "tensor")
    is_cut, tokens = of_entry["value"][3] is not None, new["value"].shape[1]

    def own(
        entry: Any, new: Any, index: caching.Index, length: Array, count: Array, table: Any
    ) -> Any:
        held = caching.size(entry)
        whole = held * mesh.shape[TOKENS] if is_cut else held
        if table is None:
            rows = jnp.arange(length.size)[:, None]
            at = caching.write_slots(length, count, tokens, whole, layer.kind == SLIDING)
        else:
            rows, at = caching.page_places(table, length, count, tokens, whole)
        if is_cut:
            at = at - jax.lax.axis_index(TOKENS) * held
        # `held` is the slot of what is not to be written here.
        inside = (at >= 0) & (at < held)
        return caching.write(entry, new, index, rows, jnp.where(inside, at, held))

    mapped = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(
            of_entry,
            dict.fromkeys(entry, of_new),
            (PartitionSpec(), PartitionSpec()),
            *(PartitionSpec(BATCH),) * 3,
        ),
        out_specs=of_entry,
        check_vma=False,
    )
    mine = {name: new[name] for name in entry}
    written: dict[str, Array] = mapped(entry, mine, _numbers(index), length, count, table)
    return written


def _of_all(sums: held.Sums) -> held.Sums:
    """Sums over the positions of all devices of `seq`."""
    largest, total, values = sums
    most = jax.lax.pmax(largest, TOKENS)
    share = jnp.exp(largest - most)
    total, values = jax.lax.psum((total * share, values * share[..., None]), TOKENS)
    return most, total, values


def _specs(entry: dict[str, Array], layer: LayerConfig, mesh: Any) -> dict[str, PartitionSpec]:
    axes = caching.entry_axes(layer)
    return {name: spec(axes, buffer.shape, mesh) for name, buffer in entry.items()}


def _numbers(index: caching.Index) -> tuple[Array, Array]:
    repeat, place = (jnp.asarray(i, jnp.int32) for i in index)
    return repeat, place


def _of_rows(facts: TokenFacts, rows: int) -> dict[str, Array | None]:
    """The facts by name, of every row."""
    index = jnp.broadcast_to(facts.index, (rows, facts.index.shape[1]))
    return vars(dataclasses.replace(facts, index=index))
