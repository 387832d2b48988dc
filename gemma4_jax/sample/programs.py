"""The compiled programs of sampling, and one batch run through them.

`jax.jit` stands here and nowhere else in this package. Programs are shared by all samplers of a process:
they are keyed by the module (a configuration and its parts), the shapes of `buckets.py` and the filters
in use, never by a prompt.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gemma4_jax.collectives import on_every_device
from gemma4_jax.config import ModelConfig
from gemma4_jax.model.cache import Cache, Compression, entry_axes, init_cache
from gemma4_jax.model.layout import segments
from gemma4_jax.model.transformer import Transformer
from gemma4_jax.sample import buckets, decode
from gemma4_jax.sample.masks import BatchMasks
from gemma4_jax.sample.penalties import penalties_of
from gemma4_jax.sample.requests import Request
from gemma4_jax.sample.row import Token, Watcher
from gemma4_jax.sample.sampling import Filters, Settings, filters_for, row_keys
from gemma4_jax.sharding import TOKENS, AnyMesh, batch_spec, current_mesh, over, rows_over, spec

# Steps there is room for in one dispatch; fewer can be asked for without another program.
DISPATCH_STEPS = 32

start_prefill = jax.jit(decode.start_prefill, static_argnums=0, donate_argnums=1)
prefill_chunk = jax.jit(decode.prefill_chunk, static_argnums=0, donate_argnums=2)


# Nothing donated: the cache goes in and out untouched, which jit forwards without a copy.
@functools.partial(jax.jit, static_argnums=0, static_argnames="filters")
def finish_prefill(module: Transformer, *args: Any, **options: Any) -> Any:
    """`decode.finish_prefill`; what it chose is whole on every device, so that any host can read it."""
    going, chosen = decode.finish_prefill(module, *args, **options)
    return going, on_every_device(chosen)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("filters", "room"), donate_argnums=2)
def decode_steps(module: Transformer, *args: Any, **options: Any) -> Any:
    """`decode.decode`; what it chose is whole on every device."""
    going, chosen = decode.decode(module, *args, **options)
    return going, on_every_device(chosen)


advance = jax.jit(decode.advance, static_argnums=0, donate_argnums=2)


@functools.partial(jax.jit, static_argnums=0, static_argnames="filters", donate_argnums=2)
def choose(module: Transformer, *args: Any, **options: Any) -> Any:
    """`decode.choose`; what it chose is whole on every device."""
    going, chosen = decode.choose(module, *args, **options)
    return going, on_every_device(chosen)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def empty_cache(
    config: ModelConfig, rows: int, capacity: int, dtype: Any, compression: Compression
) -> Cache:
    """`init_cache` as one program: one dispatch instead of one per buffer; cut over the current mesh."""
    mesh = current_mesh()
    if mesh is None:
        return init_cache(config, rows, capacity, dtype, compression)
    cache = init_cache(config, rows, capacity, dtype, compression, mesh.shape["tensor"])
    return jax.tree.map(
        lambda leaf, cut: jax.lax.with_sharding_constraint(leaf, cut),
        cache,
        cache_specs(config, cache, mesh),
    )


def cache_specs(config: ModelConfig, cache: Cache, mesh: AnyMesh) -> Cache:
    """How every buffer of a cache is cut; UserError where a mesh axis does not divide it."""
    entries = tuple(
        tuple(
            None
            if entry is None
            else {
                name: spec(entry_axes(run.layer), leaf.shape, mesh) for name, leaf in entry.items()
            }
            for run, entry in zip(segment.pattern, slots, strict=True)
        )
        for segment, slots in zip(segments(config), cache.entries, strict=True)
    )
    return Cache(entries, batch_spec())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sampler decided once: how to cache, how to cut prompts, what ends a row."""

    compression: Compression
    cache_dtype: Any
    prefill_chunk: int
    stop_ids: jax.Array  # int32 [n], -1 matches nothing
    blocked: jax.Array  # bool [V]
    mesh: Mesh | None  # over which the parameters are placed


@dataclass(frozen=True, kw_only=True)
class Dispatch:
    """What one program call chose, on the host; as `decode.Chosen`."""

    tokens: np.ndarray  # int32 [S, B]; a row's are its first `count`
    logprobs: np.ndarray  # float32 [S, B]
    top_ids: np.ndarray  # int32 [S, B, t]
    top_logprobs: np.ndarray  # float32 [S, B, t]
    count: np.ndarray  # int32 [B]
    done: np.ndarray  # bool [B]

    @staticmethod
    def of(chosen: Any) -> Dispatch:
        """Fetched from the device."""
        found = jax.device_get(chosen)
        drawn = found.drawn
        return Dispatch(
            tokens=drawn.token,
            logprobs=drawn.logprob,
            top_ids=drawn.top_ids,
            top_logprobs=drawn.top_logprobs,
            count=found.count,
            done=found.done,
        )

    def of_row(self, row: int, top: int | None = None) -> list[Token]:
        """What was chosen for one row, each with the `top` likeliest ids, by default all that are there."""
        count = int(self.count[row])
        columns = (self.tokens, self.logprobs, self.top_ids, self.top_logprobs)
        each = zip(*(column[:count, row].tolist() for column in columns), strict=True)
        return [
            Token(token, logprob, tuple(zip(ids, tops, strict=True))[:top])
            for token, logprob, ids, tops in each
        ]


def run(
    module: Transformer,
    params: Any,
    plan: Plan,
    requests: Sequence[Request],
    steps: int,
    matchers: Sequence[Watcher | None] = (),
) -> Generator[Dispatch, np.ndarray | None, None]:
    """Tokens of a batch, a dispatch at a time, until every row is done.

    matchers: of the requests' constraints; with any, a dispatch has one step, and masks are made while the
    model runs. The caller may `send` a bool array [len(requests)]: rows with False are ended. Chosen's
    rows beyond the requests are padding.
    """
    # One bfloat16 row is not padded to two for XLA:CPU's sake: whole models decode a single bfloat16 row
    # about as fast as a float32 one, and padding loses a third on jax 0.10 (it gains a sixth on 0.12).
    parts = rows_over(plan.mesh)
    rows = parts * buckets.power_of_two(-(-len(requests) // parts))
    padding = rows - len(requests)
    longest = max(len(r.prompt) + r.max_new_tokens for r in requests)
    # The last token is never written, but a whole chunk must fit where a prompt ends within it.
    capacity = buckets.capacity(longest, module.config.max_position)
    if plan.mesh is not None:
        capacity += -capacity % plan.mesh.shape[TOKENS]

    def on_mesh(program: Callable[..., Any], *args: Any, **options: Any) -> Any:
        # Not around the whole of this generator: its caller's code runs between its steps.
        with over(plan.mesh):
            return program(*args, **options)

    cache = on_mesh(empty_cache, module.config, rows, capacity, plan.cache_dtype, plan.compression)
    state = on_mesh(start_prefill, module, cache)
    lengths = np.array([len(r.prompt) for r in requests] + [0] * padding, np.int32)
    for start, size in buckets.chunks(int(lengths.max()), plan.prefill_chunk):
        tokens = np.zeros((rows, size), np.int32)
        for row, request in enumerate(requests):
            part = request.prompt[start : start + size]
            tokens[row, : len(part)] = part
        count = np.clip(lengths - start, 0, size)
        state = on_mesh(prefill_chunk, module, params, state, tokens, count)

    settings, filters = _settings(requests, padding, module.config.vocab_size)
    limit = np.array([r.max_new_tokens for r in requests] + [0] * padding, np.int32)
    masks = None
    if any(matcher is not None for matcher in matchers):
        masks = BatchMasks(matchers, rows, module.config.vocab_size)
    going, chosen = on_mesh(
        finish_prefill,
        module,
        params,
        state,
        settings,
        limit,
        plan.stop_ids,
        plan.blocked,
        filters=filters,
        mask=None if masks is None else masks.next(None, limit > 0),
    )
    while True:
        dispatch = Dispatch.of(chosen)
        done = dispatch.done
        answer = yield dispatch
        keep = np.ones(rows, bool)
        if answer is not None:
            keep[: len(requests)] = answer
        if np.all(done | ~keep):
            return
        if masks is not None:
            going, hidden = on_mesh(advance, module, params, going, keep)
            mask = masks.next(dispatch.tokens[0], ~done & keep)
            going, chosen = on_mesh(
                choose, module, params, going, hidden, mask, plan.stop_ids, plan.blocked, filters=filters
            )  # fmt: skip
            continue
        going, chosen = on_mesh(
            decode_steps, module, params, going, keep, np.int32(steps), plan.stop_ids, plan.blocked,
            filters=filters, room=DISPATCH_STEPS,
        )  # fmt: skip


def _settings(
    requests: Sequence[Request], padding: int, vocab_size: int
) -> tuple[Settings, Filters]:
    """Per-row arrays, on the host, and what they need; padding rows are greedy."""

    def rows(name: str, neutral: float | int, dtype: Any) -> np.ndarray:
        return np.array([getattr(r, name) for r in requests] + [neutral] * padding, dtype)

    temperature = rows("temperature", 0.0, np.float32)
    top_k = rows("top_k", 0, np.int32)
    top_p = rows("top_p", 1.0, np.float32)
    min_p = rows("min_p", 0.0, np.float32)
    zeros = [0] * padding
    key = row_keys([r.seed for r in requests] + zeros, [r.row for r in requests] + zeros)
    rows_of = [*requests, *(None,) * padding]
    penalties = penalties_of(rows_of, [()] * len(rows_of), vocab_size)
    top = max(r.top_logprobs for r in requests)
    return Settings(temperature, top_k, top_p, min_p, key, penalties), filters_for(
        temperature, top_k, top_p, min_p, top
    )
