"""The compiled programs of an engine, and the arrays that it hands them.

Every shape comes from a short list (`prefill_sizes`, powers of two of rows), and which filters are in use is
one of a few cases: after `Engine.warm_up` nothing is compiled again, whatever is asked. As in `programs.py`,
`jax.jit` stands here; the functions are in `slots.py`, `engine_memory.py` and `speculation.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemma4_jax.sample import engine_memory, slots, speculation
from gemma4_jax.sample.penalties import Penalties
from gemma4_jax.sample.requests import MOST_TOP_LOGPROBS, Request
from gemma4_jax.sample.sampling import CANDIDATES, Filters, Settings, row_keys

# Smallest chunk of a prompt that has a program, and most rows of one.
_SMALLEST_CHUNK = 32
MOST_ROWS = 8

empty_pool = jax.jit(engine_memory.empty_pool, static_argnums=(0, 1, 2, 3))
empty_rings = jax.jit(engine_memory.empty_rings, static_argnums=(0, 1, 2, 3, 4, 5, 6))
empty_rows = jax.jit(slots.empty_rows, static_argnums=(1, 2), donate_argnums=0)
prefill = jax.jit(slots.prefill, static_argnums=0, donate_argnums=(2, 3))
first = jax.jit(slots.first, static_argnums=0, static_argnames="filters")
enter = jax.jit(slots.enter, donate_argnums=0)
continue_rows = jax.jit(
    slots.continue_rows,
    static_argnums=0,
    static_argnames=("filters", "room"),
    donate_argnums=(2, 3),
)
advance_rows = jax.jit(slots.advance_rows, static_argnums=0, donate_argnums=(2, 3))
choose_rows = jax.jit(
    slots.choose_rows, static_argnums=0, static_argnames="filters", donate_argnums=2
)
draft_rows = jax.jit(speculation.draft_rows, static_argnums=(0, 1), static_argnames="room")
verify_rows = jax.jit(
    speculation.verify_rows,
    static_argnums=0,
    static_argnames=("filters", "length"),
    donate_argnums=(2, 3),
)
with_penalties = jax.jit(slots.with_penalties, static_argnums=1, donate_argnums=0)
without_penalties = jax.jit(slots.without_penalties, donate_argnums=0)
resize = jax.jit(slots.resize)
load = jax.jit(engine_memory.load, donate_argnums=0)


def prefill_sizes(most_tokens: int, most_rows: int) -> list[tuple[int, int]]:
    """(rows, tokens of each) of prefill programs, none with more than `most_tokens` in all.

    A chunk of each length comes for one row, and for as many as fit: short prompts share a call.
    """
    sizes = []
    tokens = min(_SMALLEST_CHUNK, most_tokens)
    while tokens <= most_tokens:
        many = min(most_rows, most_tokens // tokens)
        sizes += [(rows, tokens) for rows in sorted({1, many})]
        tokens *= 2
    return sizes


def filters_of(requests: Sequence[Request]) -> Filters:
    """What a call for these rows must be able to do: nothing, or everything with enough candidates."""
    top = MOST_TOP_LOGPROBS if any(r.top_logprobs for r in requests) else 0
    sampled = [r for r in requests if r.temperature > 0]
    if not sampled:
        return Filters(top=top)
    return filters_for_top_k(max(r.top_k or CANDIDATES[-1] + 1 for r in sampled), top)


def filters_for_top_k(largest: int, top: int = 0) -> Filters:
    """For sampled rows of which none has a larger top-k, or all tokens as candidates."""
    enough = next((c for c in CANDIDATES if largest <= c), None)
    return Filters(True, top_k=True, top_p=True, min_p=True, candidates=enough, top=top)


@functools.lru_cache(maxsize=4096)
def _key(seed: int, row: int) -> Any:
    return jax.device_get(jax.random.key_data(row_keys([seed], [row])))[0]


def settings_of(requests: Sequence[Request | None], penalties: Penalties | None = None) -> Settings:
    """Of a call's rows; None for padding."""

    def column(name: str, neutral: int, dtype: Any) -> np.ndarray:
        return np.array([neutral if r is None else getattr(r, name) for r in requests], dtype)

    keys = np.stack([_key(0, 0) if r is None else _key(r.seed, r.row) for r in requests])
    return Settings(
        column("temperature", 0, np.float32),
        column("top_k", 0, np.int32),
        column("top_p", 1, np.float32),
        column("min_p", 0, np.float32),
        jax.random.wrap_key_data(jnp.asarray(keys)),
        penalties,
    )
