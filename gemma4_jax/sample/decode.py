"""Prefill and decoding as pure functions over a state: no strings, no host, no compilation here.

    start_prefill -> prefill_chunk (again and again) -> finish_prefill -> decode (again and again)

`finish_prefill` is `last_hidden`, then `first_token`: whoever drafts needs to know what is between.

Where the host has to say which ids may come next, each of decode's steps is taken apart: `advance` runs the
model while the host makes up its mind, `choose` takes the masks.

Rows are independent: each has its own length, settings, step counter and limit, and a finished row stops
writing. Prompts of unequal length go in right-padded chunks with a count per row; a row whose prompt is
over gets a count of 0. Every function takes a state and returns the next one, so the caller can donate it.
What decides how many programs there are (batch, chunk, capacity) is in `buckets.py`.

Letters: B batch, C tokens in a chunk, D d_model, V vocabulary, S steps of one dispatch, W words of a mask.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32

from gemma4_jax.model.cache import Cache
from gemma4_jax.model.transformer import Transformer
from gemma4_jax.sample.penalties import counted
from gemma4_jax.sample.sampling import Drawn, Filters, Settings, sample

Params = dict[str, Any]


# Fields of states are arrays, or what stands for them where a program is compiled ahead of time.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrefillState:
    """Prompts on their way into the cache."""

    cache: Cache
    # [B, 1, D]: residual stream of each row's last token so far, after the owning layers
    stream: Any
    token: Any  # int32 [B, 1]: that token


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """Rows being continued. `token` has been chosen but is not yet in the cache."""

    cache: Cache
    token: Any  # int32 [B]
    done: Any  # bool [B]
    generated: Any  # int32 [B]: tokens chosen so far, the first one included; the noise's step
    limit: Any  # int32 [B]: how many to choose at most
    settings: Settings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chosen:
    """Tokens of one dispatch. A row's are its first `count`; the rest means nothing."""

    drawn: Drawn  # leaves [S, B, ...]
    count: Any  # int32 [B]
    done: Any  # bool [B]: after these tokens


def start_prefill(module: Transformer, cache: Cache) -> PrefillState:
    """State before the first token of every prompt."""
    batch = cache.length.shape[0]
    stream = jnp.zeros((batch, 1, module.config.d_model), module.dtype)
    return PrefillState(cache, stream, jnp.zeros((batch, 1), jnp.int32))


def prefill_chunk(
    module: Transformer,
    params: Params,
    state: PrefillState,
    tokens: Int[Array, "B C"],
    count: Int[Array, " B"],
) -> PrefillState:
    """Append the first count[b] of each row's tokens, through the layers that own K/V alone."""
    x, cache = _apply(module, params, "prefill", tokens, count, state.cache)
    last = jnp.maximum(count - 1, 0)[:, None]
    more = count[:, None] > 0
    stream = jnp.take_along_axis(x, last[..., None], axis=1)
    return PrefillState(
        cache,
        jnp.where(more[..., None], stream, state.stream),
        jnp.where(more, jnp.take_along_axis(tokens, last, axis=1), state.token),
    )


def finish_prefill(
    module: Transformer,
    params: Params,
    state: PrefillState,
    settings: Settings,
    limit: Int[Array, " B"],
    stop_ids: Int[Array, "*B n"],
    blocked: Bool[Array, " V"],
    filters: Filters,
    generated: Int[Array, " B"] | None = None,
    mask: Int32[Array, "B W"] | None = None,
) -> tuple[DecodeState, Chosen]:
    """The remaining layers for each row's last token, and the next one, chosen.

    limit: tokens to choose per row; rows of limit 0 (padding of the batch) are done at once. stop_ids:
    ids that end a row; entries of -1 match nothing. blocked: ids never to be chosen. generated: how many of
    the prompt's last tokens were chosen by this row; none if left out. mask: ids that each row may choose
    (`sampling.sample`).
    """
    hidden = last_hidden(module, params, state)
    return first_token(
        module, params, state, hidden, settings, limit, stop_ids, blocked, filters, generated, mask
    )


def last_hidden(module: Transformer, params: Params, state: PrefillState) -> Float[Array, "B 1 D"]:
    """The state after the final norm of each row's last token: the remaining layers."""
    hidden: Array = _apply(module, params, "borrow", state.stream, state.token, state.cache)
    return hidden


def first_token(
    module: Transformer,
    params: Params,
    state: PrefillState,
    hidden: Float[Array, "B 1 D"],
    settings: Settings,
    limit: Int[Array, " B"],
    stop_ids: Int[Array, "*B n"],
    blocked: Bool[Array, " V"],
    filters: Filters,
    generated: Int[Array, " B"] | None,
    mask: Int32[Array, "B W"] | None,
) -> tuple[DecodeState, Chosen]:
    """`finish_prefill` from there on."""
    before = jnp.zeros_like(limit) if generated is None else generated
    logits = logits_of(module, params, hidden)[:, 0]
    drawn = sample(logits, settings, before, filters, blocked, mask)
    count = (limit > 0).astype(jnp.int32)
    done = (limit <= before + 1) | _is_stop(drawn.token, stop_ids)
    settings = _counted(settings, drawn.token, limit > 0)
    next_state = DecodeState(state.cache, drawn.token, done, before + count, limit, settings)
    return next_state, Chosen(_one_step(drawn), count, done)


def decode(
    module: Transformer,
    params: Params,
    state: DecodeState,
    keep: Bool[Array, " B"],
    steps: Int[Array, ""],
    stop_ids: Int[Array, "*B n"],
    blocked: Bool[Array, " V"],
    filters: Filters,
    room: int,
) -> tuple[DecodeState, Chosen]:
    """Up to `steps` (at most `room`, which is static) more tokens of every row that is not done.

    keep: False ends a row before the first step (the host found a stop string, or nobody listens). Stops
    early once every row is done.
    """
    start = dataclasses.replace(state, done=state.done | ~keep)
    drawn = room_for(room, state.token.shape[0], filters.top)

    def going(carry: tuple[Array, DecodeState, Drawn]) -> Array:
        return (carry[0] < jnp.minimum(steps, room)) & ~jnp.all(carry[1].done)

    def step(carry: tuple[Array, DecodeState, Drawn]) -> tuple[Array, DecodeState, Drawn]:
        i, now, drawn = carry
        moved, hidden = _forward(module, params, now)
        logits = logits_of(module, params, hidden)[:, 0]
        after, new = next_token(moved, logits, stop_ids, blocked, filters, None)
        return i + 1, after, jax.tree.map(lambda all, one: all.at[i].set(one), drawn, new)

    _, end, drawn = jax.lax.while_loop(going, step, (jnp.int32(0), start, drawn))
    return end, Chosen(drawn, end.generated - state.generated, end.done)


def advance(
    module: Transformer, params: Params, state: DecodeState, keep: Bool[Array, " B"]
) -> tuple[DecodeState, Float[Array, "B 1 D"]]:
    """The first half of a step: every row's chosen token goes into the cache. keep: as for `decode`."""
    return _forward(module, params, dataclasses.replace(state, done=state.done | ~keep))


def choose(
    module: Transformer,
    params: Params,
    state: DecodeState,
    hidden: Float[Array, "B 1 D"],
    mask: Int32[Array, "B W"],
    stop_ids: Int[Array, "*B n"],
    blocked: Bool[Array, " V"],
    filters: Filters,
) -> tuple[DecodeState, Chosen]:
    """The second half of a step: the next token of every row, among those of its mask."""
    logits = logits_of(module, params, hidden)[:, 0]
    after, drawn = next_token(state, logits, stop_ids, blocked, filters, mask)
    return after, Chosen(_one_step(drawn), after.generated - state.generated, after.done)


def room_for(steps: int, rows: int, top: int) -> Drawn:
    """Zeros for what so many steps draw."""
    whole, real = jnp.zeros((steps, rows), jnp.int32), jnp.zeros((steps, rows), jnp.float32)
    alternatives = jnp.zeros((steps, rows, top), jnp.float32)
    return Drawn(whole, real, alternatives.astype(jnp.int32), alternatives)


def _one_step(drawn: Drawn) -> Drawn:
    return jax.tree.map(lambda leaf: leaf[None], drawn)


def _forward(module: Transformer, params: Params, state: DecodeState) -> tuple[DecodeState, Array]:
    alive = (~state.done).astype(jnp.int32)
    hidden, cache = _apply(module, params, "extend", state.token[:, None], alive, state.cache)
    return dataclasses.replace(state, cache=cache), hidden


def next_token(
    state: DecodeState,
    logits: Float[Array, "B V"],
    stop_ids: Int[Array, "*B n"],
    blocked: Bool[Array, " V"],
    filters: Filters,
    mask: Int32[Array, "B W"] | None,
) -> tuple[DecodeState, Drawn]:
    """One more token of every row that is not done; the cache is left alone."""
    drawn = sample(logits, state.settings, state.generated, filters, blocked, mask)
    generated = state.generated + ~state.done
    done = state.done | (generated >= state.limit) | _is_stop(drawn.token, stop_ids)
    token = jnp.where(state.done, state.token, drawn.token)
    settings = _counted(state.settings, token, ~state.done)
    after = DecodeState(state.cache, token, done, generated, state.limit, settings)
    return after, dataclasses.replace(drawn, token=token)


def _counted(settings: Settings, token: Array, chosen: Array) -> Settings:
    if settings.penalties is None:
        return settings
    return dataclasses.replace(settings, penalties=counted(settings.penalties, token, chosen))


def logits_of(
    module: Transformer, params: Params, hidden: Float[Array, "B T D"]
) -> Float[Array, "B T V"]:
    """float32 logits of hidden states."""
    logits: Array = _apply(module, params, "logits", hidden)
    return logits


def _apply(module: Transformer, params: Params, method: str, *args: Any) -> Any:
    return module.apply({"params": params}, *args, method=method)


def _is_stop(token: Array, stop_ids: Array) -> Array:
    return jnp.any(token[:, None] == stop_ids, axis=-1)
