"""The device side of beam search, as pure functions: rows of their own over an engine's pool of pages.

Beams of one prompt are rows of one length. Where a beam is continued twice, its ring is copied into the row of
a beam that was given up, and so is the page that is not full yet; full pages are shared through the tables.
Where a mesh cuts rows, there are as many of each part; beams are in those of one part, and the others do
nothing while its devices compute.

Letters: k rows of beams, r rows of a call, D d_model, V vocabulary, n continuations.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gemma4_jax.collectives import on_every_device, over_rows
from gemma4_jax.model.transformer import Transformer
from gemma4_jax.sample import decode
from gemma4_jax.sample import engine_memory as memory
from gemma4_jax.sample.decode import Params
from gemma4_jax.sample.slots import Rings, Rows, empty_rows, placed


def fork(rings: Rings, place: Array, held: Array, beams: int, parts: int) -> Rows:
    """`beams` rows of every part; those of the place's part are as the row there, which has been read.

    Nothing is chosen yet.
    """
    rows = parts * beams
    begun = empty_rows(memory.copies(rings, place, beams), rows)
    alive = jnp.zeros((rows,), bool)
    return placed(dataclasses.replace(begun, length=jnp.full((rows,), held), done=alive))


def follow(
    state: Rows,
    source: Int[Array, " k"],
    to: Int[Array, " k"],
    token: Int[Array, " k"],
    held: Array,
) -> Rows:
    """Rows to[i] begin as rows source[i] (to beyond the last: nothing is copied); what each says next.

    source, to: of the part that i is of. held: tokens that every row in use holds.
    """
    rings = memory.put(state.rings, to, memory.take(state.rings, source))
    return placed(
        dataclasses.replace(
            state,
            rings=rings,
            token=token,
            length=jnp.full_like(state.length, held),
            done=jnp.zeros_like(state.done),
        )
    )


def likeliest(
    module: Transformer,
    params: Params,
    hidden: Float[Array, "r *one D"],
    blocked: Bool[Array, " V"],
    count: int,
) -> tuple[Int[Array, "r n"], Float[Array, "r n"]]:
    """The likeliest ids after each row and their log-probabilities, n = count; -inf where an id is blocked."""
    rows: Any = hidden.reshape(hidden.shape[0], 1, -1)
    logits = decode.logits_of(module, params, rows)[:, 0].astype(jnp.float32)
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    # Numbers that are none must be seen, whatever is blocked.
    damaged = jnp.isnan(logprobs).any(axis=-1, keepdims=True)
    scores = jnp.where(damaged, jnp.nan, jnp.where(blocked, -jnp.inf, logprobs))
    values, ids = over_rows(functools.partial(jax.lax.top_k, k=count), scores)
    found: tuple[Array, Array] = on_every_device((ids.astype(jnp.int32), values))
    return found
