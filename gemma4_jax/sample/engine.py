"""Continuous batching: requests that come and go at any step, over memory that is shared by need.

`Engine.submit` puts a request in line and returns a stream of events (`stream.py`). Whoever waits for events
runs the engine, a step at a time (`scheduler.py`). A request gets the tokens that it gets alone: rows are
independent, and noise depends on its own seed and step.

Here: what an engine is made of, and what a request may ask of it. Not here: who runs when (`scheduler.py`),
what is on the device (`engine_device.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from gemma4_jax.build import DTYPES, Model
from gemma4_jax.errors import UserError, unknown
from gemma4_jax.model.cache import COMPRESSIONS, Compression
from gemma4_jax.model.cache_precision import held_dtype
from gemma4_jax.sample.beam_search import BeamOptions, EarlyStopping
from gemma4_jax.sample.beams import beams_of
from gemma4_jax.sample.buckets import power_of_two
from gemma4_jax.sample.drafters import Drafter
from gemma4_jax.sample.engine_device import STOP_IDS, Device
from gemma4_jax.sample.paging import Pools
from gemma4_jax.sample.prompts import Prompt, as_list
from gemma4_jax.sample.requests import Options
from gemma4_jax.sample.row import Completion, Row, rows_for
from gemma4_jax.sample.scheduler import Scheduler
from gemma4_jax.sample.stream import Stream
from gemma4_jax.sharding import TOKENS, mesh_of, rows_over


def _usable(mesh: Mesh | None, page_size: int) -> Mesh | None:
    """The mesh of a model, if an engine can run over it."""
    if mesh is None:
        return None
    if page_size % mesh.shape[TOKENS]:
        raise UserError(
            f"page_size {page_size} does not divide over {mesh.shape[TOKENS]} devices of seq"
        )
    return mesh


class Engine:
    """Runs many requests on one model.

    Where the model's parameters lie over a mesh, so do its pages and rings: rows and their pages in equal parts
    over `data`, `fsdp` and `expert`, heads over `tensor`, the positions of every page over `seq`.

    max_slots: most requests that decode together. max_tokens: positions that all of them may hold together in
    full layers. max_context: most positions of one request, by default the model's, or a part's share of
    max_tokens if that is less. page_size: positions of a page. prefill_tokens: prompt tokens that a part reads
    between two dispatches. steps: tokens a row gets in a dispatch. snapshots: ends of prefixes that can be gone
    on from.
    cache_compression, cache_dtype: as of `Sampler`. drafter: guesses what rows will choose, which changes
    their speed alone (`drafters.py`).
    """

    def __init__(
        self,
        model: Model,
        *,
        max_slots: int = 32,
        max_tokens: int = 65_536,
        max_context: int | None = None,
        page_size: int = 128,
        prefill_tokens: int = 512,
        steps: int = 8,
        snapshots: int = 16,
        cache_compression: Compression = "value",
        cache_dtype: Any = None,
        drafter: Drafter | None = None,
    ) -> None:
        sizes = {
            "max_slots": max_slots,
            "max_tokens": max_tokens,
            "page_size": page_size,
            "prefill_tokens": prefill_tokens,
            "steps": steps,
            "snapshots": snapshots,
        }
        for name, value in sizes.items():
            if not isinstance(value, int) or value <= 0:
                raise UserError(f"{name} must be a whole number above 0, got {value!r}")
        if prefill_tokens != power_of_two(prefill_tokens):
            raise UserError(f"prefill_tokens must be a power of two, got {prefill_tokens}")
        if cache_compression not in COMPRESSIONS:
            raise unknown("cache compression", cache_compression, COMPRESSIONS)
        mesh = _usable(mesh_of(model.params), page_size)
        parts = rows_over(mesh)
        slots, pages = _shared_out(max_slots, parts), max_tokens // (parts * page_size)
        config = model.config
        of_parts = _of_parts(parts)
        if not pages:
            raise UserError(
                f"max_tokens {max_tokens} is less than one page of {page_size} positions (page_size)"
                f"{of_parts}; memory is given out in pages: raise max_tokens to at least {parts * page_size}"
            )
        largest = min(config.max_position, pages * page_size)
        self.max_context = largest if max_context is None else max_context
        if not 0 < self.max_context <= largest:
            raise UserError(
                f"max_context must be from 1 to {largest} (the model's {config.max_position} positions, "
                f"max_tokens {pages * page_size}{of_parts}), got {max_context}"
            )
        drafter = None if drafter is None else drafter.placed(mesh)
        self.model, self.max_slots = model, max_slots
        # Tokens of a row in a dispatch: without drafts, where there might have been some, one at a time.
        steps = steps if drafter is None else 1
        snapshots = -(-snapshots // parts)
        self.pages = Pools.of(parts, pages, page_size, snapshots)
        device = Device(
            model,
            mesh,
            parts=parts,
            pages=(pages, page_size),
            context=self.max_context,
            max_slots=slots,
            prefill_tokens=prefill_tokens,
            steps=steps,
            snapshots=snapshots,
            layout=(held_dtype(cache_dtype or model.module.dtype, DTYPES), cache_compression),
            drafter=drafter,
        )
        self._scheduler = Scheduler(
            device,
            self.pages,
            mesh,
            vocab_size=config.vocab_size,
            max_slots=slots,
            ahead=max(steps, 0 if drafter is None else drafter.lengths[-1] + 1),
            drafter=drafter,
        )

    def submit(self, prompt: Prompt, *, row: int = 0, **options: Any) -> Stream:
        """Put one prompt in line; options are fields of `requests.Options`, one value each.

        row: tells apart what requests with the same seed draw. Raises UserError for what could never run; other
        requests go on.
        """
        (one,) = rows_for(self.model, [prompt], Options(**options))
        one.request = dataclasses.replace(one.request, index=row, row=one.request.row or row)
        return self._enqueue([one])[0]

    def generate(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> list[Completion]:
        """Completions in the prompts' order; options as for `Sampler.generate`, which gives the same."""
        streams = self._enqueue(rows_for(self.model, as_list(prompts), Options(**options)))
        return [stream.result() for stream in streams]

    def samples(self, prompt: Prompt, count: int, **options: Any) -> list[Stream]:
        """`count` continuations of one prompt, which is read once; each draws from the seed and its number."""
        if not isinstance(count, int) or count <= 0:
            raise UserError(f"count must be a whole number above 0, got {count!r}")
        return self._enqueue(rows_for(self.model, [prompt] * count, Options(**options)))

    def best_of(self, prompt: Prompt, count: int, **options: Any) -> list[Completion]:
        """`count` samples of one prompt, the likeliest a token first; those that did not end come last."""
        found = [stream.result() for stream in self.samples(prompt, count, **options)]

        def rank(completion: Completion) -> tuple[bool, float]:
            mean = sum(completion.logprobs) / max(len(completion.logprobs), 1)
            return completion.finish_reason != "stop", -mean

        return sorted(found, key=rank)

    def beam_search(
        self,
        prompt: Prompt,
        beams: int,
        *,
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
        **options: Any,
    ) -> list[Completion]:
        """The best `beams` texts that a search with so many beams finds, the best first (`beam_search.py`).

        options: of `submit`, those of sampling left out. The search runs in rows of its own while other
        requests go on; its pages are taken before it begins. Where a mesh cuts rows, all of its rows and pages
        are of one part.
        """
        how = BeamOptions(beams=beams, length_penalty=length_penalty, early_stopping=early_stopping)
        asked = Options(**options)
        (row,) = rows_for(self.model, [prompt], asked)
        self._check(row)
        searching = beams_of(self.model, row, asked, how)
        parts, mine, size = len(self.pages.parts), self.pages.parts[0], self.pages.size
        of_parts = _of_parts(parts)
        if beams > self.max_slots // parts:
            raise UserError(
                f"beams must be at most max_slots {self.max_slots // parts}{of_parts}, got {beams}"
            )
        wanted = -(-len(row.request.prompt) // size) + searching.pages_wanted(size)
        if wanted > mine.count:
            raise UserError(
                f"{beams} beams of {row.request.max_new_tokens} tokens may need {wanted * size} positions; "
                f"max_tokens is {mine.count * size}{of_parts}: lower beams or max_new_tokens"
            )
        (stream,) = self._scheduler.add([row], searching)
        try:
            stream.result()
        except BaseException:
            stream.cancel()  # nobody else could
            raise
        return searching.completions()

    def _enqueue(self, rows: list[Row]) -> list[Stream]:
        for row in rows:
            self._check(row)
            if row.forbidden:
                never = tuple((i, -math.inf) for i in row.forbidden)
                bias = (*row.request.bias, *never)
                row.request = dataclasses.replace(row.request, bias=bias)
        return self._scheduler.add(rows)

    def _check(self, row: Row) -> None:
        request = row.request
        length, wanted = len(request.prompt), request.max_new_tokens
        if length + wanted > self.max_context:
            raise UserError(
                f"prompt {request.index} has {length} tokens and max_new_tokens is {wanted}: together "
                f"{length + wanted}, more than this engine's max_context of {self.max_context}"
            )
        if len(row.stop_ids) > STOP_IDS:
            raise UserError(f"at most {STOP_IDS} stop ids, got {len(row.stop_ids)}")

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything."""
        return self._scheduler.idle

    @property
    def active(self) -> int:
        """Requests whose prompts are being read or that decode; at most `max_slots`."""
        return self._scheduler.active

    def step(self) -> None:
        """Let all requests go on by a chunk of prompts and a few tokens; waiting for events does that too."""
        self._scheduler.step()

    def warm_up(self) -> None:
        """Compile every program now, by running it on nothing; before requests are submitted.

        Afterwards none is compiled while somebody waits for it; only sampled requests without a top-k of at
        most 64, penalties, constraints and likeliest ids bring programs of their own.
        """
        self._scheduler.warm_up()


def _of_parts(parts: int) -> str:
    return f" for each of {parts} parts of rows" if parts > 1 else ""


def _shared_out(max_slots: int, parts: int) -> int:
    """Most rows of each part; a power of two."""
    each, rest = divmod(max_slots, parts)
    if rest or not each or each != power_of_two(each):
        of_parts = f" times {parts}, the parts in which the mesh cuts rows" if parts > 1 else ""
        raise UserError(f"max_slots must be a power of two{of_parts}, got {max_slots}")
    return each
