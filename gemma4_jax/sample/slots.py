"""The device side of an engine: rows that come and go over one pool of pages, as pure functions.

    load (rings of a known prefix) -> prefill (again and again) -> first (token) -> enter -> continue_rows

What full layers remember is in one pool of pages; every call gets the tables of its rows from the host.
What sliding layers remember is a ring for each row: one set of rings for the rows whose prompts are being read,
another for those that decode, so that the programs of the first do not depend on how many the second are. Rings
have as much slack as a page is long, so that a ring also serves as it was at the end of the last full page.
A row number beyond a call's rings is padding and writes nothing. Where a mesh cuts rows, those of a call are of
all its parts, as many of each (`engine_memory.py`).

Not here: which request has which row and pages (`scheduler.py`, `paging.py`), the steps themselves
(`decode.py`), compilation (`engine_programs.py`).

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
from gemma4_jax.config import ModelConfig
from gemma4_jax.model.cache import Cache
from gemma4_jax.model.transformer import Transformer
from gemma4_jax.sample import decode
from gemma4_jax.sample import engine_memory as memory
from gemma4_jax.sample.decode import Chosen, DecodeState, Params, PrefillState
from gemma4_jax.sample.engine_memory import Pool, Rings
from gemma4_jax.sample.penalties import no_penalties
from gemma4_jax.sample.sampling import Filters, Settings, neutral_settings


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


def empty_rows(rings: Rings, rows: int, hidden: tuple[int, Any] | None = None) -> Rows:
    """Rows that are done, over empty rings; hidden: width and dtype of `Rows.hidden`."""
    zeros = jnp.zeros((rows,), jnp.int32)
    done = jnp.ones((rows,), bool)
    states = None if hidden is None else jnp.zeros((rows, hidden[0]), hidden[1])
    return placed(Rows(rings, zeros, zeros, done, zeros, zeros, neutral_settings(rows), states))


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
    config = module.config
    cache = Cache(memory.join(config, pool, memory.take(rings, rows)), held, table)
    before = decode.start_prefill(module, cache)
    after = decode.prefill_chunk(module, params, before, tokens, count)
    pool, mine = memory.split(config, after.cache.entries)
    rings = memory.placed_rings(memory.put(rings, rows, mine))
    return memory.placed(config, pool), rings, after.stream, after.token


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
    cache = Cache(memory.join(module.config, pool, memory.take(rings, rows)), held, table)
    read = PrefillState(cache, stream, token)
    hidden = decode.last_hidden(module, params, read)
    _, chosen = decode.first_token(
        module, params, read, hidden, settings, limit, stop_ids, blocked, filters, generated, mask
    )
    return on_every_device(chosen), memory.placed_rows(hidden[:, 0])


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
    before = dataclasses.replace(state, rings=None)
    new = Rows(
        None,
        length,
        token,
        jnp.zeros((), bool),
        generated,
        limit,
        jax.tree.map(lambda leaf: leaf[0], settings),
        None if hidden is None else hidden[at],
    )
    after = memory.replace(before, row, new)
    loaded = memory.load(state.rings, rings, place, row)
    return placed(dataclasses.replace(after, rings=loaded))


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
    before = whole(module.config, pool, state, table)
    after, hidden = decode.advance(module, params, before, keep)
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
    rows = dataclasses.replace(
        state,
        token=after.token,
        done=after.done,
        generated=after.generated,
        settings=after.settings,
        hidden=None if state.hidden is None else hidden[:, 0],
    )
    return placed(rows), on_every_device(chosen)


def with_penalties(state: Rows, vocab_size: int) -> Rows:
    """The state with room for what some rows ask for."""
    penalties = memory.placed_rows(no_penalties(state.token.shape[0], vocab_size))
    return dataclasses.replace(
        state, settings=dataclasses.replace(state.settings, penalties=penalties)
    )


def without_penalties(state: Rows) -> Rows:
    """The state without it."""
    return dataclasses.replace(state, settings=dataclasses.replace(state.settings, penalties=None))


def resize(state: Rows, source: Int[Array, " R"], used: Bool[Array, " R"]) -> Rows:
    """A state whose row i is row source[i] of this one, or an empty one where used[i] is False.

    source: rows of the part that row i is of.
    """
    moved = memory.select(dataclasses.replace(state, rings=None), source)
    rings = memory.take(state.rings, source)
    return placed(dataclasses.replace(moved, rings=rings, done=moved.done | ~used))


def whole(config: ModelConfig, pool: Pool, state: Rows, table: Int[Array, "R M"]) -> DecodeState:
    """Rows and their pool as the state of `decode.py`."""
    cache = Cache(memory.join(config, pool, state.rings), state.length, table)
    return DecodeState(cache, state.token, state.done, state.generated, state.limit, state.settings)


def parts(config: ModelConfig, before: Rows, after: DecodeState) -> tuple[Pool, Rows]:
    """And back, with what only `before` has."""
    pool, rings = memory.split(config, after.cache.entries)
    rows = Rows(
        rings, after.cache.length, after.token, after.done, after.generated, after.limit, after.settings,
        before.hidden,
    )  # fmt: skip
    return memory.placed(config, pool), placed(rows)


def placed(state: Rows) -> Rows:
    """The state, said to be cut over the current mesh along its rows."""
    rest = memory.placed_rows(dataclasses.replace(state, rings=None))
    return dataclasses.replace(rest, rings=memory.placed_rings(state.rings))
