"""The device side of beam search, as pure functions: rows of their own over an engine's pool of pages.

Beams of one prompt are rows of one length. Where a beam is continued twice, its ring is copied into the row of
a beam that was given up, and so is the page that is not full yet; full pages are shared through the tables.

Letters: k beams, r rows of a call, D d_model, V vocabulary, n continuations.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gemma4_jax.collectives import on_every_device
from gemma4_jax.model.transformer import Transformer
from gemma4_jax.sample import decode
from gemma4_jax.sample.decode import Params
from gemma4_jax.sample.slots import Pool, Rings, Rows, empty_rows


def fork(rings: Rings, place: Array, held: Array, count: int) -> Rows:
    """`count` rows, each as the row of a place that has been read; nothing is chosen yet."""
    copies = jax.tree.map(
        lambda leaf: jnp.repeat(jax.lax.dynamic_slice_in_dim(leaf, place, 1, 2), count, axis=2),
        rings,
    )
    rows = empty_rows(copies, count)
    alive = jnp.zeros((count,), bool)
    return dataclasses.replace(rows, length=jnp.full((count,), held), done=alive)


def follow(
    state: Rows,
    source: Int[Array, " k"],
    to: Int[Array, " k"],
    token: Int[Array, " k"],
    held: Array,
) -> Rows:
    """Rows to[i] begin as rows source[i] (to beyond the last: nothing is copied); what each says next.

    held: tokens that every row in use holds.
    """

    def put(leaf: Array) -> Array:
        return leaf.at[:, :, to].set(leaf[:, :, source], mode="drop")

    return dataclasses.replace(
        state,
        rings=jax.tree.map(put, state.rings),
        token=token,
        length=jnp.full_like(state.length, held),
        done=jnp.zeros_like(state.done),
    )


def copy_pages(pool: Pool, source: Int[Array, " k"], to: Int[Array, " k"]) -> Pool:
    """Pages to[i] become pages source[i]; beyond the last: nothing is copied."""
    return jax.tree.map(lambda leaf: leaf.at[:, :, to].set(leaf[:, :, source], mode="drop"), pool)


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
    values, ids = jax.lax.top_k(scores, count)
    found: tuple[Array, Array] = on_every_device((ids.astype(jnp.int32), values))
    return found
