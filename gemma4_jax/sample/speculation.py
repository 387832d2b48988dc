"""Verification of drafts, as pure functions: the target reads them all at once and keeps those it would write.

Drafts change when a token comes, never which. At every position the target draws its own next token, with the
noise of that step, exactly as `decode.decode` does; a draft is accepted if it is that token. It is therefore
accepted with the probability the target gives it, and the token in the place of a rejected one is drawn from
the rest: the rule of spec 10.3, and the same output as without drafts. After the first that is wrong a row's
drafts mean nothing: lowering the cache's length takes them back, for which rings need slack (`model/cache.py`).

Not here: who drafts, and how many (`drafters.py`).

Letters: R rows, n drafts of a call, W words of a mask, D d_model, V vocabulary, M pages a row may have.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32

from gemma4_jax.collectives import on_every_device
from gemma4_jax.model import drafter as drafting
from gemma4_jax.model.cache import Cache
from gemma4_jax.model.drafter import Drafter
from gemma4_jax.model.transformer import Transformer
from gemma4_jax.sample import decode, slots
from gemma4_jax.sample import engine_memory as memory
from gemma4_jax.sample.decode import Chosen, DecodeState, Params
from gemma4_jax.sample.sampling import Drawn, Filters
from gemma4_jax.sample.slots import Pool, Rows


def verify(
    module: Transformer,
    params: Params,
    state: DecodeState,
    drafts: Int[Array, "R n"],
    given: Int[Array, " R"],
    keep: Bool[Array, " R"],
    stop_ids: Int[Array, "*R s"],
    blocked: Bool[Array, " V"],
    filters: Filters,
    mask: Int32[Array, "R m W"] | None = None,
) -> tuple[DecodeState, Chosen, Float[Array, "R D"]]:
    """1 to given[r] + 1 more tokens of every row that is not done.

    drafts: a row's are its first given[r]. keep, stop_ids, blocked, filters: as for `decode.decode`; a row ends
    at its stop id or limit even if drafts behind it were right. mask: ids that a row may choose before each of
    its n drafts and behind the last, m = n + 1 (bits as of `sampling.sample`). Returns also the hidden state,
    after the final norm, that chose each row's last token; it means nothing where a row was done.
    """
    most = drafts.shape[1]
    begin = dataclasses.replace(state, done=state.done | ~keep)
    # Of what is read beyond the limit nothing could be kept, nor has a row memory for it.
    read = jnp.minimum(given + 1, state.limit - state.generated)
    read = jnp.where(begin.done, 0, read)
    tokens = jnp.concatenate([state.token[:, None], drafts], axis=1)
    found: Any = module.apply({"params": params}, tokens, read, state.cache, method="extend")
    hidden, cache = found
    logits = decode.logits_of(module, params, hidden)
    start = dataclasses.replace(begin, cache=Cache((), state.cache.length))
    room = decode.room_for(most + 1, tokens.shape[0], filters.top)

    # In this loop a row is also done after a draft that was wrong.
    def going(carry: tuple[Array, DecodeState, Array, Drawn]) -> Array:
        return (carry[0] <= most) & ~jnp.all(carry[1].done)

    def step(
        carry: tuple[Array, DecodeState, Array, Drawn],
    ) -> tuple[Array, DecodeState, Array, Drawn]:
        i, now, ended, drawn = carry
        here = None if mask is None else mask[:, i]
        after, new = decode.next_token(now, logits[:, i], stop_ids, blocked, filters, here)
        ended |= after.done & ~now.done
        right = (i + 1 < read) & (new.token == drafts[:, jnp.minimum(i, most - 1)])
        following = dataclasses.replace(after, done=after.done | ~right)
        return (
            i + 1,
            following,
            ended,
            jax.tree.map(lambda all, one: all.at[i].set(one), drawn, new),
        )

    carry = jnp.int32(0), start, begin.done, room
    _, end, ended, drawn = jax.lax.while_loop(going, step, carry)
    count = end.generated - state.generated
    cache = dataclasses.replace(cache, length=state.cache.length + count)
    last = jnp.maximum(count - 1, 0)[:, None, None]
    chose = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
    return dataclasses.replace(end, cache=cache, done=ended), Chosen(drawn, count, ended), chose


def verify_rows(
    module: Transformer,
    params: Params,
    pool: Pool,
    state: Rows,
    table: Int[Array, "R M"],
    keep: Bool[Array, " R"],
    drafts: Int[Array, "R m"],
    given: Int[Array, " R"],
    stop_ids: Int[Array, "R s"],
    blocked: Bool[Array, " V"],
    filters: Filters,
    length: int,
    mask: Int32[Array, "R k W"] | None = None,
) -> tuple[Pool, Rows, Chosen]:
    """`verify` of an engine's rows; length: of the m drafts there is room for, so many are read."""
    before = slots.whole(module.config, pool, state, table)
    after, chosen, hidden = verify(
        module, params, before, drafts[:, :length], given, keep, stop_ids, blocked, filters, mask
    )
    pool, rows = slots.parts(module.config, state, after)
    if state.hidden is not None:
        rows = dataclasses.replace(rows, hidden=memory.placed_rows(hidden))
    return pool, rows, on_every_device(chosen)


def draft_rows(
    module: Transformer,
    drafter: Drafter,
    params: Params,
    drafter_params: Params,
    pool: Pool,
    state: Rows,
    table: Int[Array, "R M"],
    steps: Int[Array, ""],
    room: int,
) -> Int[Array, "R room"]:
    """`model.drafter.draft` of an engine's rows."""
    cache = slots.whole(module.config, pool, state, table).cache
    drafts: Array = on_every_device(
        drafting.draft(
            drafter, drafter_params, module, params, cache, state.token, state.hidden, steps, room
        )
    )
    return drafts
