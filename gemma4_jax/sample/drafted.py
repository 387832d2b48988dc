"""One answer at a time with a drafter: an engine of one row, with a sampler's face."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from gemma4_jax.build import DTYPES, Model
from gemma4_jax.model.cache_precision import held_dtype
from gemma4_jax.sample.buckets import capacity
from gemma4_jax.sample.drafters import Drafter
from gemma4_jax.sample.engine import Engine
from gemma4_jax.sample.row import Completion
from gemma4_jax.sample.stream import Stream
from gemma4_jax.sharding import mesh_of, rows_over

_PAGE = 128


class DraftedStream(Iterator[str]):
    """One prompt's text as it comes. `completion` is None until the stream has ended."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    @property
    def completion(self) -> Completion | None:
        """The whole."""
        return self._stream.completion

    def __next__(self) -> str:
        for event in self._stream:
            if event.text:
                return event.text
        raise StopIteration


class DraftedSampler:
    """Continues one prompt at a time, as `Sampler` would, with a drafter's help.

    cache_dtype: as of `Sampler`.

    Every answer has an engine of its own, as large as it needs: an answer that was broken off leaves nothing.
    """

    def __init__(self, model: Model, drafter: Drafter, *, cache_dtype: Any = None) -> None:
        self.model, self._drafter = model, drafter.placed(mesh_of(model.params))
        # Complains now, not at the first answer.
        self._cache_dtype = held_dtype(cache_dtype or model.module.dtype, DTYPES)

    def stream(self, prompt: list[int], max_new_tokens: int, **options: Any) -> DraftedStream:
        """One prompt's text as it comes; options as for `Sampler.stream`."""
        most = self.model.config.max_position
        size = capacity(min(len(prompt) + max_new_tokens, most), most)
        # Where a mesh cuts rows, every part has one, and one of them is used.
        parts = rows_over(mesh_of(self.model.params))
        engine = Engine(
            self.model,
            max_slots=parts,
            max_tokens=parts * size,
            page_size=math.gcd(size, _PAGE),
            snapshots=1,
            drafter=self._drafter,
            cache_dtype=self._cache_dtype,
        )
        return DraftedStream(engine.submit(prompt, max_new_tokens=max_new_tokens, **options))
