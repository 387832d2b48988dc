"""What an engine remembers on its devices, and where: a pool of pages, rings, and what else rows have.

Where a mesh cuts rows, it cuts all of this in the same equal parts. A row, its pages, and the snapshots that
it can go on from are of one part, on that part's own devices. Rows of a part stand together, part by part: of 8
rows in 2 parts the first has 0 to 3; so do places of rings. Pages are numbered in each part from 0. Nothing of
a part ever goes to another: rows are taken out, put in and moved where they are. As in any cache, heads go over
`tensor` and positions of pages over `seq`.

Not here: attention to pages and writing to them (`model/held.py`, `parallel/cut_cache.py`), which row has
what (`scheduler.py`, `paging.py`).

Letters: R rows, r rows of one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int

from gemma4_jax.config import SLIDING, ModelConfig
from gemma4_jax.model.cache import Compression, entry_axes, init_cache
from gemma4_jax.model.layout import segments
from gemma4_jax.sharding import BATCH, TOKENS, current_mesh, spec

# Entries of a cache by [segment][slot], of full layers or of sliding ones alone; None for the others.
Pool = Any
Rings = Any  # leaves [n, m, R, S, K, H]

# Of the leaves of rings, of pages, and of arrays [R, ...].
_RINGS = PartitionSpec(None, None, BATCH, None, "tensor")
_PAGES = PartitionSpec(None, None, BATCH, TOKENS, "tensor")
ROWS = PartitionSpec(BATCH)


def empty_pool(
    config: ModelConfig,
    pages: tuple[int, int],
    dtype: Any,
    compression: Compression,
) -> Pool:
    """pages: how many in all parts together, and positions of each."""
    tensor = _devices_of_heads()
    cache = init_cache(config, 0, pages[1], dtype, compression, tensor, pages=pages)
    return placed(config, split(config, cache.entries)[0])


def empty_rings(
    config: ModelConfig,
    rows: int,
    context: int,
    page: int,
    dtype: Any,
    compression: Compression,
    drafts: int = 0,
) -> Rings:
    """Rings of rows of up to `context` positions, from which up to `drafts` tokens may be taken back."""
    # A drafter's window is one longer, and what is taken back has been written over older positions.
    slack = page + (drafts + 1 if drafts else 0)
    cache = init_cache(
        config, rows, context, dtype, compression, _devices_of_heads(), pages=(0, page), slack=slack
    )
    return placed(config, split(config, cache.entries)[1])


def _devices_of_heads() -> int:
    mesh = current_mesh()
    return 1 if mesh is None else mesh.shape["tensor"]


def placed(config: ModelConfig, entries: Any) -> Any:
    """Entries, said to be cut over the current mesh as those of any cache; pages as rows are."""
    mesh = current_mesh()
    if mesh is None:
        return entries
    return tuple(
        tuple(
            None
            if entry is None
            else {
                name: jax.lax.with_sharding_constraint(
                    leaf, spec(entry_axes(run.layer), leaf.shape, mesh)
                )
                for name, leaf in entry.items()
            }
            for run, entry in zip(segment.pattern, slots, strict=True)
        )
        for segment, slots in zip(segments(config), entries, strict=True)
    )


def placed_rows(tree: Any) -> Any:
    """Arrays [R, ...], said to be cut along their rows."""
    mesh = current_mesh()
    if mesh is None:
        return tree

    def put(leaf: Array) -> Array:
        cut = spec(("cache_rows",), leaf.shape[:1], mesh)
        return jax.lax.with_sharding_constraint(leaf, cut)

    return jax.tree.map(put, tree)


def placed_rings(rings: Rings) -> Rings:
    """Rings, said to be cut as `placed` does."""
    return _placed(rings, (None, None, "cache_rows", None, "cache_heads", None))


def _placed(tree: Any, axes: tuple[str | None, ...]) -> Any:
    mesh = current_mesh()
    if mesh is None:
        return tree
    return jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, spec(axes, leaf.shape, mesh)), tree
    )


def take(rings: Rings, rows: Int[Array, " r"]) -> Rings:
    """Rings of some rows, of each part as many; what is taken for a row that is none means nothing."""

    def own(part: Array | int, rings: Rings, rows: Array) -> Rings:
        return jax.tree.map(
            lambda leaf: leaf.at[:, :, _own(part, rows, leaf.shape[2])].get(mode="clip"), rings
        )

    return in_parts(own, (_RINGS, ROWS), _RINGS, rings, rows)


def put(rings: Rings, rows: Int[Array, " r"], new: Rings) -> Rings:
    """Rings with some rows replaced; those of rows that are none are dropped."""

    def own(part: Array | int, rings: Rings, rows: Array, new: Rings) -> Rings:
        return jax.tree.map(
            lambda old, new: old.at[:, :, _own(part, rows, old.shape[2])].set(new, mode="drop"),
            rings,
            new,
        )

    return in_parts(own, (_RINGS, ROWS, _RINGS), _RINGS, rings, rows, new)


def load(to: Rings, rings: Rings, place: Array, row: Array) -> Rings:
    """`to` with its row `row` as the row `place`, of the same part, of other rings."""

    def own(part: Array | int, to: Rings, rings: Rings, place: Array, row: Array) -> Rings:
        # Every part does so, and all but one drop what they have.
        def one(a: Array, b: Array) -> Array:
            found = b.at[:, :, _own(part, place, b.shape[2])].get(mode="clip")
            return a.at[:, :, _own(part, row, a.shape[2])].set(found, mode="drop")

        return jax.tree.map(one, to, rings)

    whole = PartitionSpec()
    return placed_rings(
        in_parts(own, (_RINGS, _RINGS, whole, whole), _RINGS, to, rings, place, row)
    )


def copies(rings: Rings, place: Array, count: int) -> Rings:
    """`count` rows of every part: copies of the row `place`, in its part; those of others mean nothing."""

    def own(part: Array | int, rings: Rings, place: Array) -> Rings:
        def one(leaf: Array) -> Array:
            at = jnp.broadcast_to(_own(part, place, leaf.shape[2]), (count,))
            return leaf.at[:, :, at].get(mode="clip")

        return jax.tree.map(one, rings)

    return in_parts(own, (_RINGS, PartitionSpec()), _RINGS, rings, place)


def copy_pages(pool: Pool, source: Int[Array, " r"], to: Int[Array, " r"]) -> Pool:
    """Pages to[i] become pages source[i], of the part that i is of; each has as many. NO_PAGE: nothing does."""

    def own(_: Array | int, pool: Pool, source: Array, to: Array) -> Pool:
        return jax.tree.map(
            lambda leaf: leaf.at[:, :, to].set(leaf[:, :, source], mode="drop"), pool
        )

    copied = in_parts(own, (_PAGES, ROWS, ROWS), _PAGES, pool, source, to)
    return _placed(copied, (None, None, "cache_rows", "cache_positions", "cache_heads", None))


def select(tree: Any, rows: Int[Array, " r"]) -> Any:
    """`take` of arrays [R, ...]."""

    def own(part: Array | int, tree: Any, rows: Array) -> Any:
        return jax.tree.map(
            lambda leaf: leaf.at[_own(part, rows, leaf.shape[0])].get(mode="clip"), tree
        )

    return in_parts(own, (ROWS, ROWS), ROWS, tree, rows)


def replace(tree: Any, row: Array, new: Any) -> Any:
    """Arrays [R, ...] with one row replaced; new: leaves without rows, whole on every device."""

    def own(part: Array | int, tree: Any, row: Array, new: Any) -> Any:
        return jax.tree.map(
            lambda old, new: old.at[_own(part, row, old.shape[0])].set(new, mode="drop"), tree, new
        )

    return in_parts(own, (ROWS, PartitionSpec(), PartitionSpec()), ROWS, tree, row, new)


def in_parts(function: Callable[..., Any], specs: Sequence[Any], out: Any, *arguments: Any) -> Any:
    """function(part, *arguments) on what each device has; part 0 where there is one device."""
    mesh = current_mesh()
    if mesh is None:
        return function(0, *arguments)

    def own(*arguments: Any) -> Any:
        return function(jax.lax.axis_index(BATCH), *arguments)

    mapped = jax.shard_map(own, mesh=mesh, in_specs=tuple(specs), out_specs=out, check_vma=False)
    return mapped(*arguments)


def _own(part: Array | int, rows: Array, size: int) -> Array:
    """Rows, counted from the first of the part's `size`; `size` for those of others and for none."""
    mine = rows - part * size
    return jnp.where((mine >= 0) & (mine < size), mine, size)


def split(config: ModelConfig, entries: Any) -> tuple[Pool, Rings]:
    """Entries of a cache: of full layers, and of sliding ones."""

    def of(sliding: bool) -> Any:
        return tuple(
            tuple(
                entry if (run.layer.kind == SLIDING) == sliding else None
                for run, entry in zip(segment.pattern, slots, strict=True)
            )
            for segment, slots in zip(segments(config), entries, strict=True)
        )

    return of(False), of(True)


def join(config: ModelConfig, pool: Pool, rings: Rings) -> Any:
    """And back."""
    return tuple(
        tuple(
            ring if run.layer.kind == SLIDING else page
            for run, page, ring in zip(segment.pattern, pages, slots, strict=True)
        )
        for segment, pages, slots in zip(segments(config), pool, rings, strict=True)
    )
