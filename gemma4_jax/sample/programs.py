"""The compiled programs of sampling, and one batch run through them.

`jax.jit` stands here and nowhere else in this package. Programs are shared by all samplers of a process:
they are keyed by the module (a configuration and its parts), the shapes of `buckets.py` and the filters
in use, never by a prompt.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemma4_jax.model.cache import Cache, Compression, init_cache
from gemma4_jax.model.transformer import Transformer
from gemma4_jax.sample import buckets, decode
from gemma4_jax.sample.requests import Request
from gemma4_jax.sample.sampling import Filters, Settings, filters_for, row_keys

# Steps there is room for in one dispatch; fewer can be asked for without another program.
DISPATCH_STEPS = 32

prefill_chunk = jax.jit(decode.prefill_chunk, static_argnums=0, donate_argnums=2)
# Nothing donated: the cache goes in and out untouched, which jit forwards without a copy.
finish_prefill = jax.jit(decode.finish_prefill, static_argnums=0, static_argnames="filters")
decode_steps = jax.jit(
    decode.decode, static_argnums=0, static_argnames=("filters", "room"), donate_argnums=2
)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def empty_cache(
    config: Any, rows: int, capacity: int, dtype: Any, compression: Compression
) -> Cache:
    """`init_cache` as one program: one dispatch instead of one per buffer."""
    return init_cache(config, rows, capacity, dtype, compression)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sampler decided once: how to cache, how to cut prompts, what ends a row."""

    compression: Compression
    cache_dtype: Any
    prefill_chunk: int
    stop_ids: jax.Array  # int32 [n], -1 matches nothing
    blocked: jax.Array  # bool [V]


@dataclass(frozen=True, kw_only=True)
class Dispatch:
    """What one program call chose, on the host; as `decode.Chosen`."""

    tokens: np.ndarray  # int32 [S, B]; a row's are its first `count`
    logprobs: np.ndarray  # float32 [S, B]
    count: np.ndarray  # int32 [B]
    done: np.ndarray  # bool [B]


def run(
    module: Transformer, params: Any, plan: Plan, requests: Sequence[Request], steps: int
) -> Generator[Dispatch, np.ndarray | None, None]:
    """Tokens of a batch, a dispatch at a time, until every row is done.

    The caller may `send` a bool array [len(requests)]: rows with False are ended. Chosen's rows beyond
    the requests are padding.
    """
    # One bfloat16 row is not padded to two for XLA:CPU's sake: whole models decode a single bfloat16 row
    # about as fast as a float32 one, and padding loses a third on jax 0.10 (it gains a sixth on 0.12).
    rows = buckets.power_of_two(len(requests))
    padding = rows - len(requests)
    longest = max(len(r.prompt) + r.max_new_tokens for r in requests)
    # The last token is never written, but a whole chunk must fit where a prompt ends within it.
    capacity = buckets.capacity(longest, module.config.max_position)
    cache = empty_cache(module.config, rows, capacity, plan.cache_dtype, plan.compression)
    state = decode.start_prefill(module, cache)
    lengths = np.array([len(r.prompt) for r in requests] + [0] * padding, np.int32)
    for start, size in buckets.chunks(int(lengths.max()), plan.prefill_chunk):
        tokens = np.zeros((rows, size), np.int32)
        for row, request in enumerate(requests):
            part = request.prompt[start : start + size]
            tokens[row, : len(part)] = part
        count = np.clip(lengths - start, 0, size)
        state = prefill_chunk(module, params, state, tokens, count)

    settings, filters = _settings(requests, padding)
    limit = np.array([r.max_new_tokens for r in requests] + [0] * padding, np.int32)
    going, chosen = finish_prefill(
        module, params, state, settings, limit, plan.stop_ids, plan.blocked, filters=filters
    )
    while True:
        tokens, logprobs, count, done = jax.device_get(
            (chosen.tokens, chosen.logprobs, chosen.count, chosen.done)
        )
        answer = yield Dispatch(tokens=tokens, logprobs=logprobs, count=count, done=done)
        keep = np.ones(rows, bool)
        if answer is not None:
            keep[: len(requests)] = answer
        if np.all(done | ~keep):
            return
        going, chosen = decode_steps(
            module, params, going, keep, jnp.int32(steps), plan.stop_ids, plan.blocked,
            filters=filters, room=DISPATCH_STEPS,
        )  # fmt: skip


def _settings(requests: Sequence[Request], padding: int) -> tuple[Settings, Filters]:
    """Per-row arrays and what they need; padding rows are greedy."""

    def rows(name: str, neutral: float | int, dtype: Any) -> np.ndarray:
        return np.array([getattr(r, name) for r in requests] + [neutral] * padding, dtype)

    temperature = rows("temperature", 0.0, np.float32)
    top_k = rows("top_k", 0, np.int32)
    top_p = rows("top_p", 1.0, np.float32)
    min_p = rows("min_p", 0.0, np.float32)
    zeros = [0] * padding
    key = row_keys([r.seed for r in requests] + zeros, [r.row for r in requests] + zeros)
    settings = Settings(
        jnp.array(temperature), jnp.array(top_k), jnp.array(top_p), jnp.array(min_p), key
    )
    return settings, filters_for(temperature, top_k, top_p, min_p)
