"""The device side of an engine: rows that come and go over one pool of pages, as pure functions.

    load (rings of a known prefix) -> prefill (again and again) -> first (token) -> enter -> continue_rows

What full layers remember is in one pool of pages; every call gets the tables of its rows from the host.
What sliding layers remember is a ring for each row: one set of rings for the rows whose prompts are being read,
another for those that decode, so that the programs of the first do not depend on how many the second are. Rings
have as much slack as a page is long, so that a ring also serves as it was at the end of the last full page.
A row number beyond a call's rings is padding and writes nothing.

Not here: which request has which row and pages (`engine.py`, `paging.py`), the steps themselves (`decode.py`),
compilation (`engine_programs.py`).

Letters: R rows, r rows of one call, C tokens in a chunk, D d_model, V vocabulary, M pages a row may have,
W words of a mask.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32

from gemma4_jax.collectives import on_every_device
from gemma4_jax.config import SLIDING, ModelConfig
from gemma4_jax.model.cache import Cache, Compression, entry_axes, init_cache
from gemma4_jax.model.layout import segments
from gemma4_jax.model.transformer import Transformer
from gemma4_jax.sample import decode
from gemma4_jax.sample.decode import Chosen, DecodeState, Params, PrefillState
from gemma4_jax.sample.penalties import no_penalties
from gemma4_jax.sample.sampling import Filters, Settings, neutral_settings
from gemma4_jax.sharding import current_mesh, spec

# Entries of a cache by [segment][slot], of full layers or of sliding ones alone; None for the others.
Pool = Any
Rings = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows being continued: `decode.DecodeState` without the pool."""

    rings: Rings  # leaves [n, m, R, S, K, H]
    length: Any  # int32 [R]
    token: Any  # int32 [R]
    done: Any  # bool [R]
    generated: Any  # int32 [R]
    limit: Any  # int32 [R]
    settings: Settings
    # [R, D]: the target's state after the final norm that chose `token`, where a drafter reads it; else None
    hidden: Any = None


def empty_pool(
    config: ModelConfig,
    pages: tuple[int, int],
    dtype: Any,
    compression: Compression,
) -> Pool:
    """pages: how many, and positions of each."""
    tensor = _devices_of_heads()
    cache = init_cache(config, 0, pages[1], dtype, compression, tensor, pages=pages)
    return _placed(config, _split(config, cache.entries)[0])


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
    return _placed(config, _split(config, cache.entries)[1])


def _devices_of_heads() -> int:
    mesh = current_mesh()
    return 1 if mesh is None else mesh.shape["tensor"]


def _placed(config: ModelConfig, entries: Any) -> Any:
    """Entries cut over the current mesh as those of any cache: heads over `tensor`, positions over `seq`."""
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


def empty_rows(rings: Rings, rows: int, hidden: tuple[int, Any] | None = None) -> Rows:
    """Rows that are done, over empty rings; hidden: width and dtype of `Rows.hidden`."""
    zeros = jnp.zeros((rows,), jnp.int32)
    done = jnp.ones((rows,), bool)
    states = None if hidden is None else jnp.zeros((rows, hidden[0]), hidden[1])
    return Rows(rings, zeros, zeros, done, zeros, zeros, neutral_settings(rows), states)


def prefill(
    module: Transformer,
    params: Params,
    pool: Pool,
    rings: Rings,
    table: Int[Array, "r M"],
    rows: Int[Array, " r"],
    held: Int[Array, " r"],
    tokens: Int[Array, "r C"],
    count: Int[Array, " r"],
) -> tuple[Pool, Rings, Float[Array, "r 1 D"], Int[Array, "r 1"]]:
    """Append the first count[i] tokens to row rows[i] of the rings, which holds held[i].

    Returns also the stream after the owning layers of each row's last token, and that token: what `first` needs
    if the prompt ends here.
    """
    mine = _rings_of(rings, rows)
    cache = Cache(_join(module.config, pool, mine), held, table)
    before = decode.start_prefill(module, cache)
    after = decode.prefill_chunk(module, params, before, tokens, count)
    pool, mine = _split(module.config, after.cache.entries)
    rings = jax.tree.map(lambda old, new: old.at[:, :, rows].set(new, mode="drop"), rings, mine)
    return pool, rings, after.stream, after.token


def first(
    module: Transformer,
    params: Params,
    pool: Pool,
    rings: Rings,
    table: Int[Array, "r M"],
    rows: Int[Array, " r"],
    held: Int[Array, " r"],
    stream: Float[Array, "r 1 D"],
    token: Int[Array, "r 1"],
    settings: Settings,
    generated: Int[Array, " r"],
    limit: Int[Array, " r"],
    stop_ids: Int[Array, "r n"],
    blocked: Bool[Array, " V"],
    filters: Filters,
    mask: Int32[Array, "r W"] | None = None,
) -> tuple[Chosen, Float[Array, "r D"]]:
    """The first token after each row's prompt, and the hidden state that chose it.

    generated: tokens chosen for the row before (it was interrupted, and they are part of the prompt now).
    """
    cache = Cache(_join(module.config, pool, _rings_of(rings, rows)), held, table)
    read = PrefillState(cache, stream, token)
    hidden = decode.last_hidden(module, params, read)
    _, chosen = decode.first_token(
        module, params, read, hidden, settings, limit, stop_ids, blocked, filters, generated, mask
    )
    return on_every_device(chosen), hidden[:, 0]


def enter(
    state: Rows,
    row: Array,
    rings: Rings,
    place: Array,
    length: Array,
    token: Array,
    generated: Array,
    limit: Array,
    settings: Settings,
    hidden: Float[Array, "r D"] | None = None,
    at: Array | None = None,
) -> Rows:
    """The state with one more row: its rings from a place of other rings, its first token chosen.

    settings: of that row alone, leaves [1]. hidden[at]: what chose the token, where a drafter reads it.
    """

    def put(old: Array, new: Array) -> Array:
        return old.at[row].set(new)

    return Rows(
        load(state.rings, rings, place, row),
        put(state.length, length),
        put(state.token, token),
        put(state.done, jnp.zeros((), bool)),
        put(state.generated, generated),
        put(state.limit, limit),
        jax.tree.map(lambda old, new: old.at[row].set(new[0]), state.settings, settings),
        None if hidden is None else put(state.hidden, hidden[at]),
    )


def continue_rows(
    module: Transformer,
    params: Params,
    pool: Pool,
    state: Rows,
    table: Int[Array, "R M"],
    keep: Bool[Array, " R"],
    steps: Int[Array, ""],
    stop_ids: Int[Array, "R n"],
    blocked: Bool[Array, " V"],
    filters: Filters,
    room: int,
) -> tuple[Pool, Rows, Chosen]:
    """`decode.decode` of all rows that are not done; not for drafters that read hidden states."""
    before = whole(module.config, pool, state, table)
    after, chosen = decode.decode(
        module, params, before, keep, steps, stop_ids, blocked, filters, room
    )
    return *parts(module.config, state, after), on_every_device(chosen)


def advance_rows(
    module: Transformer,
    params: Params,
    pool: Pool,
    state: Rows,
    table: Int[Array, "R M"],
    keep: Bool[Array, " R"],
) -> tuple[Pool, Rows, Float[Array, "R 1 D"]]:
    """`decode.advance` of all rows that are not done: half a step."""
    after, hidden = decode.advance(module, params, whole(module.config, pool, state, table), keep)
    return *parts(module.config, state, after), hidden


def choose_rows(
    module: Transformer,
    params: Params,
    state: Rows,
    hidden: Float[Array, "R 1 D"],
    mask: Int32[Array, "R W"],
    stop_ids: Int[Array, "R n"],
    blocked: Bool[Array, " V"],
    filters: Filters,
) -> tuple[Rows, Chosen]:
    """`decode.choose`: the other half."""
    nothing = Cache((), state.length)
    before = DecodeState(
        nothing, state.token, state.done, state.generated, state.limit, state.settings
    )
    after, chosen = decode.choose(module, params, before, hidden, mask, stop_ids, blocked, filters)
    return dataclasses.replace(
        state,
        token=after.token,
        done=after.done,
        generated=after.generated,
        settings=after.settings,
        hidden=None if state.hidden is None else hidden[:, 0],
    ), chosen


def with_penalties(state: Rows, vocab_size: int) -> Rows:
    """The state with room for what some rows ask for."""
    penalties = no_penalties(state.token.shape[0], vocab_size)
    return dataclasses.replace(
        state, settings=dataclasses.replace(state.settings, penalties=penalties)
    )


def without_penalties(state: Rows) -> Rows:
    """The state without it."""
    return dataclasses.replace(state, settings=dataclasses.replace(state.settings, penalties=None))


def resize(state: Rows, source: Int[Array, " R"], used: Bool[Array, " R"]) -> Rows:
    """A state whose row i is row source[i] of this one, or an empty one where used[i] is False."""
    rest = dataclasses.replace(state, rings=None)
    moved = jax.tree.map(lambda leaf: leaf[source], rest)
    rings = _rings_of(state.rings, source)
    return dataclasses.replace(moved, rings=rings, done=moved.done | ~used)


def load(to: Rings, rings: Rings, place: Array, row: Array) -> Rings:
    """`to` with its row `row` as the row `place` of other rings."""
    return jax.tree.map(lambda a, b: a.at[:, :, row].set(b[:, :, place]), to, rings)


def whole(config: ModelConfig, pool: Pool, state: Rows, table: Int[Array, "R M"]) -> DecodeState:
    """Rows and their pool as the state of `decode.py`."""
    cache = Cache(_join(config, pool, state.rings), state.length, table)
    return DecodeState(cache, state.token, state.done, state.generated, state.limit, state.settings)


def parts(config: ModelConfig, before: Rows, after: DecodeState) -> tuple[Pool, Rows]:
    """And back, with what only `before` has."""
    pool, rings = _split(config, after.cache.entries)
    return pool, Rows(
        rings, after.cache.length, after.token, after.done, after.generated, after.limit, after.settings,
        before.hidden,
    )  # fmt: skip


def _rings_of(rings: Rings, rows: Array) -> Rings:
    return jax.tree.map(lambda leaf: leaf.at[:, :, rows].get(mode="clip"), rings)


def _split(config: ModelConfig, entries: Any) -> tuple[Pool, Rings]:
    def of(sliding: bool) -> Any:
        return tuple(
            tuple(
                entry if (run.layer.kind == SLIDING) == sliding else None
                for run, entry in zip(segment.pattern, slots, strict=True)
            )
            for segment, slots in zip(segments(config), entries, strict=True)
        )

    return of(False), of(True)


def _join(config: ModelConfig, pool: Pool, rings: Rings) -> Any:
    return tuple(
        tuple(
            ring if run.layer.kind == SLIDING else page
            for run, page, ring in zip(segment.pattern, pages, slots, strict=True)
        )
        for segment, pages, slots in zip(segments(config), pool, rings, strict=True)
    )
