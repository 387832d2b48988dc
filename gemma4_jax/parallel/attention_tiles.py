"""Attention as a sum over pairs of tiles: a tile of queries meets a tile of keys, forward and backward.

Which pairs meet is data (`pairs`, which may be traced); how they meet is here: scores of one pair at a time,
masked by `visible`, an online softmax in float32, and a backward pass that computes the scores again. No array
of more than one pair's scores exists. Pairs that see nothing of each other (other documents, beyond the
window) cost their mask alone. Not here: which device holds what, and how it travels (`sequence_exchange`).

Letters: B batch, T queries, S keys, C tokens of a tile, n tiles, N query heads, K key/value heads,
G = N // K, H head dim, h width of one part of a product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gemma4_jax.model.visibility import EMPTY, TokenFacts

Mask = Callable[[TokenFacts, TokenFacts], Bool[Array, "B T S"]]

# Lower than any score, and still finite when another such number is taken from it.
_LOWEST = -0.7 * float(jnp.finfo(jnp.float32).max)


class Queries(NamedTuple):
    """Tiles of queries. Two parts where K is implied by V: the first meets `value`, the last `other`."""

    parts: tuple[Array, ...]  # [n, B, C, K, G, h]
    facts: TokenFacts  # [n, B, C]


class Keys(NamedTuple):
    """Tiles of what is attended to; `other` holds the keys, or their rotated slice (`KeyValues`)."""

    value: Array  # [n, B, C, K, H]
    other: Array  # [n, B, C, K, H or 2n]
    facts: TokenFacts  # [n, B, C]


class Sums(NamedTuple):
    """A softmax under way over the keys met so far, float32."""

    maximum: Array  # [n, B, K, G, C]
    total: Array  # [n, B, K, G, C]
    weighted: Array  # [n, B, K, G, C, H]


class Outcome(NamedTuple):
    """What the backward pass knows of the result, by tiles of queries."""

    grad: Array  # [n, B, C, K, G, H], of the output
    logsumexp: Array  # [n, B, K, G, C]
    delta: Array  # [n, B, K, G, C], the sum over H of output times its gradient


def through(move: Callable[[Array], Array], facts: TokenFacts) -> TokenFacts:
    """Facts, moved by a map that fills with zeros: nobody sees the tokens that it makes up."""
    shifted = dataclasses.replace(facts, index=facts.index - EMPTY)
    moved = jax.tree.map(move, shifted)
    return dataclasses.replace(moved, index=moved.index + EMPTY)


def split(x: Array, runs: int, tile: int) -> Array:
    """[B, runs * c, ...] -> [runs * n, B, C, ...]: each run in n tiles, zeros behind its end."""
    x = x.reshape(x.shape[0], runs, -1, *x.shape[2:])
    extra = -x.shape[2] % tile
    x = jnp.pad(x, ((0, 0), (0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 3))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, tile, *x.shape[3:]), 1, 0)


def join(x: Array, runs: int, length: int) -> Array:
    """`split` undone, where length is that of a run (c): [runs * n, B, C, ...] -> [B, runs * c, ...]."""
    x = jnp.moveaxis(x, 0, 1)
    x = x.reshape(x.shape[0], runs, -1, *x.shape[3:])[:, :, :length]
    return x.reshape(x.shape[0], runs * length, *x.shape[3:])


def nothing_yet(queries: Queries, head_dim: int) -> Sums:
    """The sums before any key."""
    count, batch, tile, kv_heads, groups, _ = queries.parts[0].shape
    shape = (count, batch, kv_heads, groups, tile)
    return Sums(
        jnp.full(shape, _LOWEST, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros((*shape, head_dim), jnp.float32),
    )


def finish(sums: Sums) -> tuple[Float[Array, "n B C K G H"], Float[Array, "n B C K G"]]:
    """Outputs and log-sum-exp, float32. Queries that saw no key get zeros."""
    total = jnp.where(sums.total > 0, sums.total, 1)
    out = sums.weighted / total[..., None]
    return jnp.moveaxis(out, 4, 2), jnp.moveaxis(sums.maximum + jnp.log(total), 4, 2)


def meet(mask: Mask, queries: Queries, keys: Keys, pairs: Int[Array, "M 2"], sums: Sums) -> Sums:
    """The sums after query tile pairs[m, 0] has met key tile pairs[m, 1], for all m."""

    def one(sums: Sums, pair: Array) -> tuple[Sums, None]:
        query, key, before = _at(queries, pair[0]), _at(keys, pair[1]), _at(sums, pair[0])
        seen = mask(query.facts, key.facts)

        def update() -> Sums:
            maximum, total, weighted = before
            scores = jnp.where(seen[:, None, None], _scores(query, key), _LOWEST)
            top = jnp.maximum(maximum, scores.max(-1))
            # A row of nothing but masked scores has its maximum among them: exp would give ones.
            weights = jnp.where(seen[:, None, None], jnp.exp(scores - top[..., None]), 0)
            scale = jnp.exp(maximum - top)
            values = _product("bkgts,bskh->bkgth", weights.astype(key.value.dtype), key.value)
            return Sums(top, total * scale + weights.sum(-1), weighted * scale[..., None] + values)

        return _put(sums, jax.lax.cond(seen.any(), update, lambda: before), pair[0]), None

    return jax.lax.scan(one, sums, pairs)[0]


def meet_backward(
    mask: Mask,
    queries: Queries,
    keys: Keys,
    pairs: Int[Array, "M 2"],
    outcome: Outcome,
    query_grads: tuple[Array, ...],
) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
    """Adds to the gradients of queries.parts; returns them and those of keys.value and keys.other.

    All float32, in the shapes of what they are gradients of.
    """
    key_grads = tuple(jnp.zeros(x.shape, jnp.float32) for x in (keys.value, keys.other))

    def one(
        grads: tuple[tuple[Array, ...], tuple[Array, ...]], pair: Array
    ) -> tuple[tuple[tuple[Array, ...], tuple[Array, ...]], None]:
        query, key, result = _at(queries, pair[0]), _at(keys, pair[1]), _at(outcome, pair[0])
        before = _at(grads[0], pair[0]), _at(grads[1], pair[1])
        seen = mask(query.facts, key.facts)

        def update() -> tuple[tuple[Array, ...], tuple[Array, ...]]:
            scores = _scores(query, key) - result.logsumexp[..., None]
            weights = jnp.where(seen[:, None, None], jnp.exp(scores), 0)
            of_weights = _product("btkgh,bskh->bkgts", result.grad, key.value)
            of_scores = weights * (of_weights - result.delta[..., None])
            of_scores = of_scores.astype(key.value.dtype)
            of_query, (of_value, of_other) = before
            of_query = tuple(
                grad + _product("bkgts,bskh->btkgh", of_scores, part)
                for grad, part in zip(of_query, _met(query, key), strict=True)
            )
            weights = weights.astype(key.value.dtype)
            of_value += _product("bkgts,btkgh->bskh", weights, result.grad)
            of_other += _product("bkgts,btkgh->bskh", of_scores, query.parts[-1])
            if len(query.parts) == 2:
                of_value += _product("bkgts,btkgh->bskh", of_scores, query.parts[0])
            return of_query, (of_value, of_other)

        after = jax.lax.cond(seen.any(), update, lambda: before)
        return (_put(grads[0], after[0], pair[0]), _put(grads[1], after[1], pair[1])), None

    (query_grads, (value, other)), _ = jax.lax.scan(one, (query_grads, key_grads), pairs)
    return query_grads, (value, other)


def _met(query: Queries, key: Keys) -> tuple[Array, ...]:
    """The part of the keys that each part of the queries is multiplied with."""
    return (key.other,) if len(query.parts) == 1 else (key.value, key.other)


def _scores(query: Queries, key: Keys) -> Array:
    """[B, K, G, T, S] float32 of one pair of tiles."""
    pairs = zip(query.parts, _met(query, key), strict=True)
    return sum((_product("btkgh,bskh->bkgts", q, k) for q, k in pairs), jnp.float32(0))


def _product(letters: str, a: Array, b: Array) -> Array:
    return jnp.einsum(letters, a, b, preferred_element_type=jnp.float32)


def _at(tree: Any, i: Array) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), tree)


def _put(tree: Any, part: Any, i: Array) -> Any:
    return jax.tree.map(
        lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, i, 0), tree, part
    )
