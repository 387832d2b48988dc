"""Continuous batching: requests that come and go at any step, over memory that is shared by need.

`Engine.submit` puts a request in line and returns a stream of events (`stream.py`). Whoever waits for events
runs the engine, a step at a time: what fits is admitted, one chunk of prompts is read, and all rows that decode
go on by a few tokens. So nobody waits longer than a chunk for others' prompts. Full layers keep pages, taken as
rows grow; if none are left, the request that came last gives its own back, stands in line again, and its tokens
are read again as a prompt. Prompts that begin alike share pages (`paging.py`).

A request gets the tokens that it gets alone: rows are independent, and noise depends on its own seed and step.
Here: decisions, on the host. Not here: programs and their arrays (`slots.py`, `engine_programs.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gemma4_jax.build import DTYPES, Model
from gemma4_jax.errors import UserError, unknown
from gemma4_jax.model.cache import COMPRESSIONS, NO_PAGE, Compression
from gemma4_jax.model.cache_precision import held_dtype
from gemma4_jax.sample import engine_programs as programs
from gemma4_jax.sample.buckets import power_of_two
from gemma4_jax.sample.drafters import Drafter, Drafts, History, Target
from gemma4_jax.sample.masks import masks_of
from gemma4_jax.sample.paging import Pages
from gemma4_jax.sample.penalties import penalties_of
from gemma4_jax.sample.programs import Dispatch
from gemma4_jax.sample.prompts import Prompt, as_list
from gemma4_jax.sample.requests import Options
from gemma4_jax.sample.row import Completion, Row, Token, blocked_ids, rows_for
from gemma4_jax.sample.sampling import CANDIDATES, Filters
from gemma4_jax.sample.stream import Event, Stream
from gemma4_jax.sharding import TOKENS, mesh_of, over, rows_over

# Ids that may end a row; every program has room for so many.
STOP_IDS = 16


@dataclass
class _Task:
    """A request on its way. `tokens`: its prompt and all that was chosen for it."""

    row: Row
    number: int
    tokens: list[int]
    stream: Stream
    history: History  # of the same tokens
    pages: list[int] = field(default_factory=list)
    held: int = 0  # tokens that its pages and rings hold
    reading: int | None = None  # its place among the rows that are read
    slot: int | None = None  # its place among the rows that decode

    @property
    def output(self) -> list[int]:
        """Tokens chosen so far."""
        return self.tokens[len(self.row.request.prompt) :]


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of a step: between a program and its outcome it would lose all rows' memory."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    pending: list[tuple[Any, ...]] = []
    signal.signal(signal.SIGINT, lambda *given: pending.append(given))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pending:
        before(*pending[0])


def _usable(mesh: Mesh | None, page_size: int) -> Mesh | None:
    """The mesh of a model, if an engine can run over it."""
    if mesh is None:
        return None
    if rows_over(mesh) > 1:
        raise UserError(
            f"an engine runs over tensor and seq, and this mesh cuts rows in {rows_over(mesh)} parts "
            "(data, fsdp, expert); run an engine for each part, or use Sampler"
        )
    if page_size % mesh.shape[TOKENS]:
        raise UserError(
            f"page_size {page_size} does not divide over {mesh.shape[TOKENS]} devices of seq"
        )
    return mesh


class Engine:
    """Runs many requests on one model.

    Where the model's parameters lie over a mesh, so do its pages and rings: heads over `tensor`, the positions
    of every page over `seq`.


    max_slots: most requests that decode together. max_tokens: positions that all of them may hold together in
    full layers. max_context: most positions of one request, by default the model's, or max_tokens if that is
    less. page_size: positions of a page. prefill_tokens: prompt tokens read between two dispatches. steps:
    tokens a row gets in a dispatch. snapshots: ends of prefixes that can be gone on from.
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
            if name in ("max_slots", "prefill_tokens") and value != power_of_two(value):
                raise UserError(f"{name} must be a power of two, got {value}")
        if cache_compression not in COMPRESSIONS:
            raise unknown("cache compression", cache_compression, COMPRESSIONS)
        self._mesh = _usable(mesh_of(model.params), page_size)
        config = model.config
        max_tokens -= max_tokens % page_size
        largest = min(config.max_position, max_tokens)
        self.max_context = largest if max_context is None else max_context
        if not 0 < self.max_context <= largest:
            raise UserError(
                f"max_context must be from 1 to {largest} (the model's {config.max_position} positions, "
                f"max_tokens {max_tokens}), got {max_context}"
            )
        self.model = model
        self._params = jax.tree.map(jnp.asarray, model.params)
        if drafter is not None and drafter.reads_hidden and self._mesh is not None:
            raise UserError("a drafter's model runs on one device; over a mesh use ngram")
        self.max_slots, self._drafter = max_slots, drafter
        # Tokens of a row in a dispatch: without drafts, where there might have been some, one at a time.
        self._steps = steps if drafter is None else 1
        drafts = 0 if drafter is None else drafter.lengths[-1]
        self._ahead = max(self._steps, drafts + 1)
        self._sizes = programs.prefill_sizes(prefill_tokens, min(max_slots, programs.MOST_ROWS))
        self._blocked = jnp.asarray(blocked_ids(model))
        self.pages = Pages(max_tokens // page_size, page_size, snapshots)

        layout = held_dtype(cache_dtype or model.module.dtype, DTYPES), cache_compression
        with over(self._mesh):
            self._pool = programs.empty_pool(config, (self.pages.count, page_size), *layout)

            def rings(rows: int) -> Any:
                return programs.empty_rings(
                    config, rows, self.max_context, page_size, *layout, drafts
                )

            self._reading_rings = rings(max(rows for rows, _ in self._sizes))
            self._saved = rings(snapshots)
            hidden = None
            if drafter is not None and drafter.reads_hidden:
                hidden = config.d_model, model.module.dtype
            self._state = programs.empty_rows(rings(1), 1, hidden)
        self._width = -(-self.max_context // page_size)
        self._waiting: deque[_Task] = deque()
        self._reading: list[_Task | None] = [None] * max(rows for rows, _ in self._sizes)
        self._slots: list[_Task | None] = [None]
        self._submitted = 0
        self._lock = threading.RLock()

    # Requests

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

    def _enqueue(self, rows: list[Row]) -> list[Stream]:
        for row in rows:
            self._check(row)
        streams = []
        with self._lock:
            for row in rows:
                if row.forbidden:
                    never = tuple((i, -math.inf) for i in row.forbidden)
                    bias = (*row.request.bias, *never)
                    row.request = dataclasses.replace(row.request, bias=bias)
                stream = Stream(self.advance, self.cancel, row.request.prompt)
                prompt = list(row.request.prompt)
                task = _Task(row, self._submitted, prompt, stream, History(prompt))
                self._waiting.append(task)
                self._submitted += 1
                streams.append(stream)
        return streams

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

    def cancel(self, stream: Stream) -> None:
        """End a request; what it has got so far stays."""
        with self._lock, over(self._mesh):
            for task in [*self._waiting, *self._active()]:
                if task.stream is stream:
                    self._end(task, "cancelled")

    def advance(self, stream: Stream) -> None:
        """Run until the stream has something to say."""
        while not stream.ready:
            with self._lock:
                if not stream.ready:
                    self.step()

    # One step

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything."""
        return not self._waiting and not self._active()

    def step(self) -> None:
        """Admit what fits, read one chunk of prompts, and decode a few tokens of every row."""
        with self._lock, over(self._mesh), _uninterrupted():
            self._admit()
            self._read_prompts()
            self._decode()
            self._shrink()

    def _active(self) -> list[_Task]:
        """Admitted tasks, the first come first."""
        tasks = [task for task in (*self._reading, *self._slots) if task is not None]
        return sorted(tasks, key=lambda task: task.number)

    def _admit(self) -> None:
        held_back = []
        while self._waiting and None in self._reading and len(self._active()) < self.max_slots:
            task = self._waiting.popleft()
            if self._prompt_is_being_read(task):
                held_back.append(task)
            elif not self._take_over(task):
                self._waiting.appendleft(task)
                break
        self._waiting.extendleft(reversed(held_back))

    def _prompt_is_being_read(self, task: _Task) -> bool:
        """Whether most of its prompt is on its way into pages: waiting for these costs less than reading it."""
        size = self.pages.size
        whole = (len(task.tokens) - 1) // size * size
        wanted = task.tokens[:whole]
        return whole > 0 and any(
            other is not None and other.held < whole and other.tokens[:whole] == wanted
            for other in self._reading
        )

    def _take_over(self, task: _Task) -> bool:
        """Give it pages for its tokens, the ones that are known already first; False if there are too few."""
        prefix = self.pages.find(task.tokens)
        self.pages.reuse(prefix, task.tokens)
        wanted = self._pages_for(len(task.tokens)) - len(prefix.pages)
        # Everybody else will want a page before long; taking the last ones would only interrupt somebody.
        spare = len(self._active())
        fresh = (
            self.pages.take(wanted) if wanted + spare <= self.pages.available or not spare else None
        )
        if fresh is None:
            self.pages.release(prefix.pages)
            return False
        task.pages, task.held = [*prefix.pages, *fresh], prefix.tokens
        task.reading = self._reading.index(None)
        self._reading[task.reading] = task
        if prefix.snapshot is not None:
            self._reading_rings = programs.load(
                self._reading_rings, self._saved, np.int32(prefix.snapshot), np.int32(task.reading)
            )
        return True

    def _pages_for(self, positions: int) -> int:
        return -(-positions // self.pages.size)

    # Prompts

    def _read_prompts(self) -> None:
        tasks = [task for task in self._active() if task.reading is not None]
        if not tasks:
            return
        tasks, rows, size = self._chunk(tasks)
        tokens, count = np.zeros((rows, size), np.int32), np.zeros(rows, np.int32)
        held, table = np.zeros(rows, np.int32), self._table([task.pages for task in tasks], rows)
        places = np.full(rows, len(self._reading), np.int32)  # beyond the last: padding
        for i, task in enumerate(tasks):
            part = task.tokens[task.held : task.held + size]
            tokens[i, : len(part)], count[i] = part, len(part)
            assert task.reading is not None
            places[i], held[i] = task.reading, task.held
        self._pool, self._reading_rings, stream, last = programs.prefill(
            self.model.module, self._params, self._pool, self._reading_rings, table, places, held, tokens, count
        )  # fmt: skip
        for task, more in zip(tasks, count, strict=False):
            task.held += int(more)
            assert task.reading is not None
            self._save(task, self._reading_rings, task.reading)
        if any(task.held == len(task.tokens) for task in tasks):
            self._first_tokens(tasks, table, places, stream, last)

    def _chunk(self, tasks: list[_Task]) -> tuple[list[_Task], int, int]:
        """Which tasks to read from (the oldest, and who fits beside it), and the program's rows and tokens."""
        rest = len(tasks[0].tokens) - tasks[0].held
        size = min((t for _, t in self._sizes if t >= rest), default=self._sizes[-1][1])
        most = max(rows for rows, tokens in self._sizes if tokens == size)
        fitting = [task for task in tasks if len(task.tokens) - task.held <= size]
        together = [tasks[0], *(task for task in fitting if task is not tasks[0])][:most]
        return together, 1 if len(together) == 1 else most, size

    def _first_tokens(
        self, tasks: list[_Task], table: np.ndarray, places: np.ndarray, stream: Any, last: Any
    ) -> None:
        """The next token of every task whose prompt has been read; it decodes from then on."""
        ready = [task if task.held == len(task.tokens) else None for task in tasks]
        padded = [*ready, *(None,) * (len(places) - len(ready))]
        requests = [None if task is None else task.row.request for task in padded]
        filters = programs.filters_of([request for request in requests if request is not None])
        held, generated, limit = (np.zeros(len(padded), np.int32) for _ in range(3))
        for i, task in enumerate(padded):
            if task is not None:
                held[i], generated[i] = task.held, len(task.output)
                limit[i] = task.row.request.max_new_tokens
        outputs = [[] if task is None else task.output for task in padded]
        vocab_size = self.model.config.vocab_size
        settings = programs.settings_of(requests, penalties_of(requests, outputs, vocab_size))
        mask = self._masks(padded)
        chosen, hidden = programs.first(
            self.model.module, self._params, self._pool, self._reading_rings, table, places, held,
            stream, last, settings, generated, limit, self._stop_ids(padded), self._blocked,
            filters=filters, mask=mask,
        )  # fmt: skip
        dispatch = Dispatch.of(chosen)
        for i, task in enumerate(padded):
            if task is None or task.reading is None:
                continue
            new = dispatch.of_row(i, task.row.request.top_logprobs)
            place, task.reading = task.reading, None
            assert place is not None
            self._reading[place] = None
            if not dispatch.done[i]:
                self._enter(task, place, [*task.output, new[0].id], hidden, i)
            self._push(task, new)

    def _enter(
        self, task: _Task, place: int, output: list[int], hidden: jax.Array, at: int
    ) -> None:
        """From the rows that are read to those that decode.

        output: with the first token, which hidden[at] chose.
        """
        request, vocab_size = task.row.request, self.model.config.vocab_size
        task.slot = self._free_slot()
        self._slots[task.slot] = task
        if request.penalised and not self._penalised:
            self._state = programs.with_penalties(self._state, vocab_size)
        penalties = penalties_of([request], [output], vocab_size, always=self._penalised)
        self._state = programs.enter(
            self._state, np.int32(task.slot), self._reading_rings, np.int32(place), np.int32(task.held),
            np.int32(output[-1]), np.int32(len(output)), np.int32(request.max_new_tokens),
            programs.settings_of([request], penalties), *self._drafted_from(hidden, at),
        )  # fmt: skip

    def _drafted_from(self, hidden: jax.Array, at: int) -> tuple[Any, ...]:
        return () if self._state.hidden is None else (hidden, np.int32(at))

    @property
    def _penalised(self) -> bool:
        return self._state.settings.penalties is not None

    # Decoding

    def _decode(self) -> None:
        for task in self._active():
            if task.slot is not None:
                self._grow(task)
        tasks = [task for task in self._slots if task is not None]
        if not tasks:
            return
        rows = len(self._slots)
        filters = programs.filters_of([task.row.request for task in tasks])
        table = self._table([task.pages if task else [] for task in self._slots], rows)
        keep = np.array([task is not None for task in self._slots])
        model, stop_ids = self.model.module, self._stop_ids(self._slots)
        drafts = None
        watchers = [task.row.matcher for task in tasks if task.row.matcher is not None]
        if not all(watcher.free(self._ahead) for watcher in watchers):
            # One token, and the host says which may come while the device computes what would.
            self._pool, self._state, hidden = programs.advance_rows(
                model, self._params, self._pool, self._state, table, keep
            )
            mask = self._masks(self._slots)
            self._state, chosen = programs.choose_rows(
                model,
                self._params,
                self._state,
                hidden,
                mask,
                stop_ids,
                self._blocked,
                filters=filters,
            )
        elif (drafts := self._drafts(table)) is not None:
            self._pool, self._state, chosen = programs.verify_rows(
                model, self._params, self._pool, self._state, table, keep, drafts.tokens, drafts.given,
                stop_ids, self._blocked, filters=filters, length=drafts.length,
            )  # fmt: skip
        else:
            self._pool, self._state, chosen = programs.continue_rows(
                model, self._params, self._pool, self._state, table, keep, np.int32(self._steps), stop_ids,
                self._blocked, filters=filters, room=self._steps,
            )  # fmt: skip
        dispatch = Dispatch.of(chosen)
        for task in tasks:
            if task.slot is not None:
                new = dispatch.of_row(task.slot, task.row.request.top_logprobs)
                task.held += len(new)
                if drafts is not None:
                    task.history.learn(int(drafts.given[task.slot]), len(new) - 1)
                self._push(task, new)

    def _drafts(self, table: np.ndarray) -> Drafts | None:
        """What rows will perhaps choose next, as far as they may."""
        if self._drafter is None:
            return None
        most = np.zeros(len(self._slots), np.int32)
        for slot, task in enumerate(self._slots):
            if task is not None:
                most[slot] = task.row.request.max_new_tokens - len(task.output) - 1
        target = self._target(table)
        histories = [None if task is None else task.history for task in self._slots]
        return self._drafter.propose(histories, most, target)

    def _target(self, table: np.ndarray) -> Target:
        return Target(self.model.module, self._params, self._pool, self._state, table)

    def _masks(self, tasks: Sequence[_Task | None]) -> np.ndarray | None:
        """What rows may choose next, None if all may choose anything; who may choose nothing has failed."""
        matchers = [None if task is None else task.row.matcher for task in tasks]
        if not any(matcher is not None for matcher in matchers):
            return None
        masks, wrong = masks_of(matchers, self.model.config.vocab_size)
        for row, error in wrong.items():
            task = tasks[row]
            assert task is not None
            self._fail(task, error)
        return masks

    def _grow(self, task: _Task) -> None:
        """Pages for its next tokens; whoever came last has to give some back if there are none."""
        request = task.row.request
        # The last token of a request is never written.
        most = len(request.prompt) + request.max_new_tokens - 1
        wanted = self._pages_for(min(task.held + self._ahead, most)) - len(task.pages)
        while task.slot is not None and wanted > 0:
            fresh = self.pages.take(wanted)
            if fresh is not None:
                task.pages += fresh
                return
            self._interrupt(self._active()[-1])

    def _interrupt(self, task: _Task) -> None:
        """Back in line, before those that came later; its tokens so far are a prompt then."""
        self._leave(task)
        at = next(
            (i for i, t in enumerate(self._waiting) if t.number > task.number), len(self._waiting)
        )
        self._waiting.insert(at, task)

    def _push(self, task: _Task, new: Sequence[Token]) -> None:
        """What a program chose for a task, to its stream."""
        task.tokens += [token.id for token in new]
        before = len(task.row.chosen)
        try:
            text = task.row.push(new)
            if task.row.matcher is not None:
                for token in new:
                    task.row.matcher.push(token.id)
        except UserError as error:
            self._fail(task, error)
            return
        if task.row.finish_reason:
            self._end(task, task.row.finish_reason, text, before)
        else:
            self._tell(task, text, before)

    def _end(self, task: _Task, reason: str, text: str = "", before: int | None = None) -> None:
        if task in self._waiting:
            self._waiting.remove(task)
        if not task.row.finish_reason:
            text += task.row.end(reason)
        if task.slot is not None:
            # For a conversation that goes on; but not in the place of what prompts have in common.
            self._save(task, self._state.rings, task.slot, evict=False)
        self._leave(task)
        at = len(task.row.chosen) if before is None else before
        self._tell(task, text, at, task.row.completion())

    def _tell(
        self, task: _Task, text: str, before: int, completion: Completion | None = None
    ) -> None:
        new = task.row.chosen[before:]
        task.stream.put(Event(text=text, tokens=new, completion=completion))

    def _fail(self, task: _Task, error: UserError) -> None:
        self._leave(task)
        task.stream.fail(error)

    def _leave(self, task: _Task) -> None:
        """Give back the row and the pages."""
        if task.slot is not None:
            self._slots[task.slot] = None
        if task.reading is not None:
            self._reading[task.reading] = None
        task.slot = task.reading = None
        self.pages.release(task.pages)
        task.pages, task.held = [], 0

    # Memory

    def _save(self, task: _Task, rings: Any, place: int, *, evict: bool = True) -> None:
        """Remember what a task has read, for prompts that begin alike."""
        saved = self.pages.keep(task.tokens[: task.held], task.pages, evict=evict)
        if saved is not None:
            self._saved = programs.load(self._saved, rings, np.int32(place), np.int32(saved))

    def _free_slot(self) -> int:
        if None not in self._slots:
            self._resize(2 * len(self._slots), list(range(len(self._slots))))
        return self._slots.index(None)

    def _shrink(self) -> None:
        """Half the rows, if a quarter is in use: a program computes all of its rows."""
        used = [i for i, task in enumerate(self._slots) if task is not None]
        if self._penalised and not any(task and task.row.request.penalised for task in self._slots):
            self._state = programs.without_penalties(self._state)
        if len(self._slots) > 1 and len(used) <= len(self._slots) // 4:
            self._resize(len(self._slots) // 2, used)

    def _resize(self, rows: int, source: list[int]) -> None:
        padded = np.array([*source, *(0,) * (rows - len(source))], np.int32)
        used = np.arange(rows) < len(source)
        self._state = programs.resize(self._state, padded, used)
        moved = [self._slots[i] for i in source]
        self._slots = [*moved, *(None,) * (rows - len(moved))]
        for slot, task in enumerate(self._slots):
            if task is not None:
                task.slot = slot

    def _table(self, pages: Sequence[Sequence[int]], rows: int) -> np.ndarray:
        table = np.full((rows, self._width), NO_PAGE, np.int32)
        for i, mine in enumerate(pages):
            table[i, : len(mine)] = mine
        return table

    def _stop_ids(self, tasks: Sequence[_Task | None]) -> np.ndarray:
        ids = np.full((len(tasks), STOP_IDS), -1, np.int32)
        for i, task in enumerate(tasks):
            if task is not None:
                ids[i, : len(task.row.stop_ids)] = task.row.stop_ids
        return ids

    def warm_up(self) -> None:
        """Compile every program now, by running it on nothing.

        Afterwards none is compiled while somebody waits for it; only sampled requests without a top-k of at
        most 64 bring programs of their own.
        """
        with self._lock, over(self._mesh):
            if not self.idle:
                raise UserError("warm up an engine before requests are submitted to it")
            filters = Filters(), programs.filters_for_top_k(CANDIDATES[0])
            self._warm_prompts(filters)
            rows = 1
            while rows <= self.max_slots:
                self._resize(rows, list(range(min(rows, len(self._slots)))))
                self._warm_rows(filters)
                rows *= 2
            while len(self._slots) > 1:
                self._shrink()

    def _warm_prompts(self, filters: Sequence[Filters]) -> None:
        for rows, size in self._sizes:
            table, zeros = self._table([], rows), np.zeros(rows, np.int32)
            places = zeros + len(self._reading)
            self._pool, self._reading_rings, stream, last = programs.prefill(
                self.model.module, self._params, self._pool, self._reading_rings, table, places, zeros,
                np.zeros((rows, size), np.int32), zeros,
            )  # fmt: skip
            for each in filters:
                programs.first(
                    self.model.module, self._params, self._pool, self._reading_rings, table, places, zeros,
                    stream, last, programs.settings_of([None] * rows), zeros, zeros,
                    self._stop_ids([None] * rows), self._blocked, filters=each, mask=None,
                )  # fmt: skip
        zero = np.int32(0)
        self._reading_rings = programs.load(self._reading_rings, self._saved, zero, zero)
        self._saved = programs.load(self._saved, self._reading_rings, zero, zero)

    def _warm_rows(self, filters: Sequence[Filters]) -> None:
        rows, zero = len(self._slots), np.int32(0)
        for each in filters:
            self._pool, self._state, _ = programs.continue_rows(
                self.model.module, self._params, self._pool, self._state, self._table([], rows),
                np.zeros(rows, bool), zero, self._stop_ids(self._slots), self._blocked, filters=each,
                room=self._steps,
            )  # fmt: skip
            self._warm_drafts(each)
        for read in {rows for rows, _ in self._sizes}:
            hidden = jnp.zeros((read, self.model.config.d_model), self.model.module.dtype)
            self._state = programs.enter(
                self._state, zero, self._reading_rings, zero, zero, zero, zero, zero,
                programs.settings_of([None]), *self._drafted_from(hidden, 0),
            )  # fmt: skip
        self._saved = programs.load(self._saved, self._state.rings, zero, zero)

    def _warm_drafts(self, filters: Filters) -> None:
        if self._drafter is None:
            return
        rows, table = len(self._slots), self._table([], len(self._slots))
        none = np.zeros(rows, np.int32)
        self._drafter.propose([None] * rows, none, self._target(table))
        drafts = np.zeros((rows, self._drafter.lengths[-1]), np.int32)
        for length in self._drafter.lengths:
            self._pool, self._state, _ = programs.verify_rows(
                self.model.module, self._params, self._pool, self._state, table, none.astype(bool), drafts,
                none, self._stop_ids(self._slots), self._blocked, filters=filters, length=length,
            )  # fmt: skip
