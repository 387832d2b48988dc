"""From logits to a token: temperature, top-k, top-p, min-p, seeds; each an array with one entry per row.

Values are arguments, so changing them compiles nothing. Static is only which filters are in use at all
(`Filters`) and how many candidates are looked at: where every sampled row bounds top-k, a partial sort
finds the candidates and all else happens among them; otherwise thresholds are found by bisection over the
whole vocabulary. Neither sorts it: 262 144 logits sort in 120 ms on one CPU core, the best 64 are found in
0.4 ms, a threshold by bisection in 2 ms.

Randomness is Gumbel noise that depends on a row's key, its step and the token's id alone: a row draws the
same tokens whatever else is in the batch and whichever of the two ways its candidates are found.

Letters: B batch, V vocabulary, C candidates, W = ceil(V / 32) words of a mask.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Key

from gemma4_jax.collectives import over_rows
from gemma4_jax.sample.penalties import Penalties, penalised

# Noise is drawn for blocks of so many ids: candidates pay for their own blocks only.
_NOISE_BLOCK = 128
# Candidate counts there are programs for; a top-k beyond the last takes the whole vocabulary.
CANDIDATES = (64, 256, 1024)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """How each row is sampled. Neutral values switch a filter off for a row.

    The filters are those of transformers, in its order: scores are divided by the temperature; top-k
    keeps the k highest (and what ties with the k-th); top-p, on what is left and renormalised, keeps a
    token if all strictly more probable ones sum to less than p; min-p drops tokens less than min_p times
    as probable as the best. The best token always stays.
    """

    temperature: Any  # float32 [B]; 0: greedy
    top_k: Any  # int32 [B]; 0: off
    top_p: Any  # float32 [B]; 1: off
    min_p: Any  # float32 [B]; 0: off
    key: Any  # PRNG keys [B]
    penalties: Penalties | None = None  # None: of no row


@dataclasses.dataclass(frozen=True)
class Filters:
    """What a program must be able to do; static.

    sampled: any row has a temperature. candidates: how many of the highest logits are enough for every
    sampled row, None for all. top: of so many of the likeliest ids the log-probabilities are told.
    """

    sampled: bool = False
    top_k: bool = False
    top_p: bool = False
    min_p: bool = False
    candidates: int | None = None
    top: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """The next token of every row.

    Log-probabilities are the model's own: float32, at temperature 1, before any penalty, filter or block. They
    are not finite if and only if the logits are not.
    """

    token: Any  # int32 [B]
    logprob: Any  # float32 [B]
    top_ids: Any  # int32 [B, t]: the t likeliest ids
    top_logprobs: Any  # float32 [B, t]


def filters_for(
    temperature: np.ndarray,
    top_k: np.ndarray,
    top_p: np.ndarray,
    min_p: np.ndarray,
    top: int = 0,
) -> Filters:
    """The least that rows with these settings need."""
    on = temperature > 0
    if not on.any():
        return Filters(top=top)
    largest = int(top_k[on].max()) if (top_k[on] > 0).all() else None
    enough = [c for c in CANDIDATES if largest is not None and largest <= c]
    return Filters(
        sampled=True,
        top_k=bool((top_k[on] > 0).any()),
        top_p=bool((top_p[on] < 1).any()),
        min_p=bool((min_p[on] > 0).any()),
        candidates=enough[0] if enough else None,
        top=top,
    )


def neutral_settings(rows: int) -> Settings:
    """Greedy rows."""
    whole, real = jnp.zeros((rows,), jnp.int32), jnp.zeros((rows,), jnp.float32)
    return Settings(real, whole, jnp.ones_like(real), real, row_keys([0] * rows, [0] * rows))


def row_keys(seeds: Sequence[int], rows: Sequence[int]) -> Key[Array, " B"]:
    """One key per row, from the row's seed and a number that tells rows of equal seed apart."""

    def one(low: Array, high: Array, row: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(low), high), row)

    low = np.array([s % 2**32 for s in seeds], np.uint32)
    high = np.array([s // 2**32 % 2**32 for s in seeds], np.uint32)
    return jax.vmap(one)(jnp.array(low), jnp.array(high), jnp.array(rows, jnp.uint32))


def sample(
    logits: Float[Array, "B V"],
    settings: Settings,
    step: Int[Array, " B"],
    filters: Filters,
    blocked: Bool[Array, " V"] | None = None,
    mask: Int32[Array, "B W"] | None = None,
) -> Drawn:
    """The next token of every row.

    step: number of the token in its row, which the noise depends on. blocked: ids that are never chosen.
    mask: those a row may choose, bit i % 32 of its word i // 32 for id i; at least one that is not blocked.
    """
    logits = logits.astype(jnp.float32)
    scores = logits if settings.penalties is None else penalised(logits, settings.penalties)
    allowed = scores if blocked is None else jnp.where(blocked, -jnp.inf, scores)
    if mask is not None:
        allowed = jnp.where(unpacked(mask, logits.shape[-1]), allowed, -jnp.inf)
    if not filters.sampled:
        token = jnp.argmax(allowed, axis=-1)
    else:
        plain = dataclasses.replace(settings, penalties=None)
        token = over_rows(functools.partial(_draw, filters=filters), allowed, plain, step)
    token = token.astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    if filters.top:
        top, ids = over_rows(functools.partial(jax.lax.top_k, k=filters.top), logits)
    else:
        top, ids = jnp.zeros((token.size, 0)), jnp.zeros((token.size, 0), jnp.int32)
    return Drawn(token, chosen - normalizer, ids, top - normalizer[:, None])


def unpacked(mask: Int32[Array, "B W"], vocab_size: int) -> Bool[Array, "B V"]:
    """A bit for every id, from words of 32."""
    bits = (mask[..., None] >> jnp.arange(32, dtype=jnp.int32)) & 1
    return bits.reshape(mask.shape[0], -1)[:, :vocab_size].astype(bool)


def _draw(allowed: Array, settings: Settings, step: Array, *, filters: Filters) -> Array:
    greedy = settings.temperature == 0
    key = jax.vmap(jax.random.fold_in)(settings.key, step)
    ids = None
    if filters.candidates is not None and filters.candidates < allowed.shape[-1]:
        allowed, ids = jax.lax.top_k(allowed, filters.candidates)
    scores = allowed / jnp.where(greedy, 1.0, settings.temperature)[:, None]
    kept = jnp.where(keep(scores, settings, filters), scores, -jnp.inf)
    noise = _noise(key, allowed.shape[-1]) if ids is None else _noise_at(key, ids)
    choice = jnp.argmax(kept + jnp.where(greedy[:, None], 0.0, noise), axis=-1)
    if ids is None:
        return choice
    return jnp.take_along_axis(ids, choice[:, None], axis=-1)[:, 0]


def keep(scores: Float[Array, "B C"], settings: Settings, filters: Filters) -> Bool[Array, "B C"]:
    """Which tokens the filters leave; scores: logits over temperature, of all tokens or of the highest."""
    if filters.top_k:
        wanted = jnp.where(settings.top_k > 0, settings.top_k, scores.shape[-1]).astype(jnp.float32)
        scores = jnp.where(_head(scores, jnp.ones_like(scores), wanted), scores, -jnp.inf)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    result = scores > -jnp.inf
    if filters.top_p:
        weights = jnp.exp(scores - highest)
        wanted = settings.top_p * jnp.sum(weights, axis=-1)
        # A row without top-p keeps even what rounding leaves no share.
        wanted = jnp.where(settings.top_p < 1, wanted, jnp.inf)
        result &= _head(scores, weights, wanted)
    if filters.min_p:
        result &= scores >= highest + jnp.log(settings.min_p)[:, None]
    return result


def _head(scores: Array, weights: Array, bound: Array) -> Array:
    """True where the weights of all strictly higher scores sum to less than the row's bound (> 0).

    That sum falls as scores rise, so the answer is one threshold per row, found by bisection over the
    float32 numbers: 32 passes, exact, no sort.
    """
    bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # low: too low, or below all scores; high: satisfies the bound
        middle = (low & high) + ((low ^ high) >> 1)
        above = jnp.sum(jnp.where(order > middle[:, None], weights, 0.0), axis=-1)
        enough = above < bound
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    start = jnp.min(order, axis=-1) - 1, jnp.max(order, axis=-1)
    return order >= jax.lax.fori_loop(0, 32, halve, start)[1][:, None]


def _noise(key: Key[Array, " B"], vocab_size: int) -> Float[Array, "B V"]:
    """Gumbel noise for every id."""
    blocks = jnp.arange(-(-vocab_size // _NOISE_BLOCK), dtype=jnp.int32)
    noise = _per_row_and_id(lambda k, block: _block(k, block))(
        key, jnp.broadcast_to(blocks, (key.shape[0], blocks.size))
    )
    return noise.reshape(key.shape[0], -1)[:, :vocab_size]


def _noise_at(key: Key[Array, " B"], ids: Int[Array, "B C"]) -> Float[Array, "B C"]:
    """The same noise for some ids."""
    return _per_row_and_id(lambda k, i: _block(k, i // _NOISE_BLOCK)[i % _NOISE_BLOCK])(key, ids)


def _block(key: Array, block: Array) -> Array:
    return jax.random.gumbel(jax.random.fold_in(key, block), (_NOISE_BLOCK,), jnp.float32)


def _per_row_and_id(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return jax.vmap(jax.vmap(function, in_axes=(None, 0)))
