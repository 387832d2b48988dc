"""Continuous batching: requests that come and go at any step, over memory that is shared by need.

`Engine.submit` puts a request in line and returns a stream of events (`stream.py`). Whoever waits for events
runs the engine, a step at a time: what fits is admitted, one chunk of prompts is read, and all rows that decode
go on by a few tokens. So nobody waits longer than a chunk for others' prompts. Full layers keep pages, taken as
rows grow; if none are left, the request that came last gives its own back, stands in line again, and its tokens
are read again as a prompt. Prompts that begin alike share pages (`paging.py`). Where a mesh cuts rows, a
request is in one of its parts from its admission on, and has that part's rows and pages.

A request gets the tokens that it gets alone: rows are independent, and noise depends on its own seed and step.
Here: decisions, on the host. Not here: what is on the device (`engine_device.py`).
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

import numpy as np
from jax.sharding import Mesh

from gemma4_jax.build import DTYPES, Model
from gemma4_jax.errors import UserError, unknown
from gemma4_jax.model.cache import COMPRESSIONS, Compression
from gemma4_jax.model.cache_precision import held_dtype
from gemma4_jax.sample.buckets import power_of_two
from gemma4_jax.sample.drafters import Drafter, Drafts, History
from gemma4_jax.sample.engine_device import STOP_IDS, Asked, Device, Read
from gemma4_jax.sample.masks import masks_of
from gemma4_jax.sample.paging import Pools
from gemma4_jax.sample.prompts import Prompt, as_list
from gemma4_jax.sample.requests import Options
from gemma4_jax.sample.row import Completion, Row, Token, rows_for
from gemma4_jax.sample.stream import Event, Stream
from gemma4_jax.sharding import TOKENS, mesh_of, over, rows_over


@dataclass
class _Task:
    """A request on its way. `tokens`: its prompt and all that was chosen for it."""

    row: Row
    number: int
    tokens: list[int]
    stream: Stream
    history: History  # of the same tokens
    part: int = 0  # of those in which a mesh cuts rows
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
        self._mesh = _usable(mesh_of(model.params), page_size)
        parts = rows_over(self._mesh)
        self._most_slots = _shared_out(max_slots, parts)
        config = model.config
        pages = max_tokens // (parts * page_size)
        largest = min(config.max_position, pages * page_size)
        self.max_context = largest if max_context is None else max_context
        if not 0 < self.max_context <= largest:
            of_parts = f" over {parts} parts of rows" if parts > 1 else ""
            raise UserError(
                f"max_context must be from 1 to {largest} (the model's {config.max_position} positions, "
                f"max_tokens {max_tokens}{of_parts}), got {max_context}"
            )
        if drafter is not None and drafter.reads_hidden and self._mesh is not None:
            raise UserError("a drafter's model runs on one device; over a mesh use ngram")
        self.model, self.max_slots, self._drafter = model, max_slots, drafter
        # Tokens of a row in a dispatch: without drafts, where there might have been some, one at a time.
        steps = steps if drafter is None else 1
        self._ahead = max(steps, 0 if drafter is None else drafter.lengths[-1] + 1)
        snapshots = -(-snapshots // parts)
        self.pages = Pools.of(parts, pages, page_size, snapshots)
        self._device = Device(
            model,
            self._mesh,
            parts=parts,
            pages=(pages, page_size),
            context=self.max_context,
            max_slots=self._most_slots,
            prefill_tokens=prefill_tokens,
            steps=steps,
            snapshots=snapshots,
            layout=(held_dtype(cache_dtype or model.module.dtype, DTYPES), cache_compression),
            drafter=drafter,
        )
        self._waiting: deque[_Task] = deque()
        self._reading: list[_Task | None] = [None] * self._device.places
        self._slots: list[_Task | None] = [None] * parts
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

    def _active(self, part: int | None = None) -> list[_Task]:
        """Admitted tasks, of one part or of all, the first come first."""
        tasks = [task for task in (*self._reading, *self._slots) if task is not None]
        return sorted(
            (task for task in tasks if part in (None, task.part)), key=lambda task: task.number
        )

    def _admit(self) -> None:
        held_back = []
        while self._waiting and (parts := self._open_parts()):
            task = self._waiting.popleft()
            for part in self._preferred(parts, task):
                if self._prompt_is_being_read(task, part):
                    held_back.append(task)
                    break
                if self._take_over(task, part):
                    break
            else:
                self._waiting.appendleft(task)
                break
        self._waiting.extendleft(reversed(held_back))

    def _open_parts(self) -> list[int]:
        """Parts that have room for one more, apart from pages."""
        return [
            part
            for part, places in enumerate(self.pages.shares(self._reading))
            if any(self._reading[i] is None for i in places)
            and len(self._active(part)) < self._most_slots
        ]

    def _preferred(self, parts: list[int], task: _Task) -> list[int]:
        """The best first: where whole chunks need not be read; then where the fewest rows and most pages are.

        Parts read and decode at the same time: what one has to read beside others' prompts costs nothing.
        """
        if len(parts) == 1:
            return parts
        chunk = self._device.sizes[-1][1]

        def rank(part: int) -> tuple[int, int, int]:
            pages = self.pages.parts[part]
            chunks = pages.find(task.tokens).tokens // chunk
            return -chunks, len(self._active(part)), -pages.available

        return sorted(parts, key=rank)

    def _prompt_is_being_read(self, task: _Task, part: int) -> bool:
        """Whether most of its prompt is on its way into pages: waiting for these costs less than reading it."""
        size = self.pages.size
        whole = (len(task.tokens) - 1) // size * size
        wanted = task.tokens[:whole]
        return whole > 0 and any(
            other.reading is not None and other.held < whole and other.tokens[:whole] == wanted
            for other in self._active(part)
        )

    def _take_over(self, task: _Task, part: int) -> bool:
        """Give it pages for its tokens, the ones that are known already first; False if there are too few."""
        pages = self.pages.parts[part]
        prefix = pages.find(task.tokens)
        pages.reuse(prefix, task.tokens)
        wanted = self._pages_for(len(task.tokens)) - len(prefix.pages)
        # Everybody else will want a page before long; taking the last ones would only interrupt somebody.
        spare = len(self._active(part))
        fresh = pages.take(wanted) if wanted + spare <= pages.available or not spare else None
        if fresh is None:
            pages.release(prefix.pages)
            return False
        task.part, task.pages, task.held = part, [*prefix.pages, *fresh], prefix.tokens
        places = self.pages.shares(self._reading)[part]
        task.reading = next(i for i in places if self._reading[i] is None)
        self._reading[task.reading] = task
        if prefix.snapshot is not None:
            self._device.recall(prefix.snapshot, task.reading)
        return True

    def _pages_for(self, positions: int) -> int:
        return -(-positions // self.pages.size)

    # Prompts

    def _read_prompts(self) -> None:
        tasks = [task for task in self._active() if task.reading is not None]
        if not tasks:
            return
        read_from, size = self._chunk(tasks)
        new: list[Sequence[int]] = [
            () if task is None else task.tokens[task.held : task.held + size] for task in read_from
        ]
        read = self._device.read(
            size,
            [() if task is None else task.pages for task in read_from],
            [None if task is None else task.reading for task in read_from],
            [0 if task is None else task.held for task in read_from],
            new,
        )
        for task, part in zip(read_from, new, strict=True):
            if task is not None and task.reading is not None:
                task.held += len(part)
                snapshot = self._keep(task)
                if snapshot is not None:
                    self._device.save_read(task.reading, snapshot)
        ready = [
            task if task is not None and task.held == len(task.tokens) else None
            for task in read_from
        ]
        if any(ready):
            self._first_tokens(read, ready)

    def _chunk(self, tasks: list[_Task]) -> tuple[list[_Task | None], int]:
        """Which tasks to read from, in the order of the program's rows, and how many tokens of each.

        The oldest decides how many; every part reads from its oldest, and from those who fit beside it.
        """

        def rest(task: _Task) -> int:
            return len(task.tokens) - task.held

        sizes = self._device.sizes
        together: list[list[_Task]] = []
        size = min((t for _, t in sizes if t >= rest(tasks[0])), default=sizes[-1][1])
        most = max(rows for rows, tokens in sizes if tokens == size) // self._device.parts
        for part in range(self._device.parts):
            mine = [task for task in tasks if task.part == part]
            fitting = [task for task in mine[1:] if rest(task) <= size]
            together.append([*mine[:1], *fitting][:most])
        rows = 1 if max(map(len, together)) == 1 else most
        return [task for mine in together for task in (*mine, *(None,) * (rows - len(mine)))], size

    def _first_tokens(self, read: Read, ready: list[_Task | None]) -> None:
        """The next token of every task whose prompt has been read; it decodes from then on."""
        masks = self._masks(ready)
        held = [0 if task is None else task.held for task in ready]
        dispatch, hidden = self._device.first(read, _asked(ready), held, masks)
        for i, task in enumerate(ready):
            if task is None or task.reading is None:
                continue
            request = task.row.request
            new = dispatch.of_row(i, request.top_logprobs)
            place, task.reading = task.reading, None
            self._reading[place] = None
            if not dispatch.done[i]:
                slot = task.slot = self._free_slot(task.part)
                self._slots[slot] = task
                output = [*task.output, new[0].id]
                self._device.enter(slot, place, task.held, request, output, hidden, i)
            self._push(task, new)

    # Decoding

    def _decode(self) -> None:
        for task in self._active():
            if task.slot is not None:
                self._grow(task)
        tasks = [task for task in self._slots if task is not None]
        if not tasks:
            return
        asked = _asked(self._slots)
        drafts = None
        watchers = [task.row.matcher for task in tasks if task.row.matcher is not None]
        if not all(watcher.free(self._ahead) for watcher in watchers):
            dispatch = self._device.go_on_among(asked, lambda: self._masks(self._slots))
        elif (drafts := self._drafts(asked)) is not None:
            dispatch = self._device.verify(asked, drafts)
        else:
            dispatch = self._device.go_on(asked)
        for task in tasks:
            if task.slot is not None:
                new = dispatch.of_row(task.slot, task.row.request.top_logprobs)
                task.held += len(new)
                if drafts is not None:
                    task.history.learn(int(drafts.given[task.slot]), len(new) - 1)
                self._push(task, new)

    def _drafts(self, asked: Asked) -> Drafts | None:
        """What rows will perhaps choose next, as far as they may."""
        if self._drafter is None:
            return None
        most = np.zeros(len(self._slots), np.int32)
        for slot, task in enumerate(self._slots):
            if task is not None:
                most[slot] = task.row.request.max_new_tokens - len(task.output) - 1
        histories = [None if task is None else task.history for task in self._slots]
        return self._drafter.propose(histories, most, self._device.target(asked.pages))

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
            fresh = self.pages.parts[task.part].take(wanted)
            if fresh is not None:
                task.pages += fresh
                return
            self._interrupt(self._active(task.part)[-1])

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
            snapshot = self._keep(task, evict=False)
            if snapshot is not None:
                self._device.save_decoding(task.slot, snapshot)
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
        self.pages.parts[task.part].release(task.pages)
        task.pages, task.held = [], 0

    # Memory

    def _keep(self, task: _Task, *, evict: bool = True) -> int | None:
        """Remember a task's pages for prompts that begin alike; where its rings must go for that, or None."""
        pages = self.pages.parts[task.part]
        return pages.keep(task.tokens[: task.held], task.pages, evict=evict)

    def _free_slot(self, part: int) -> int:
        mine = self.pages.shares(self._slots)
        if all(self._slots[i] is not None for i in mine[part]):
            self._resize(2 * len(mine[0]), mine)
            mine = self.pages.shares(self._slots)
        return next(i for i in mine[part] if self._slots[i] is None)

    def _shrink(self) -> None:
        """Half the rows, if a quarter is in use: a program computes all of its rows."""
        slots = self.pages.shares(self._slots)
        used = [[i for i in mine if self._slots[i] is not None] for mine in slots]
        asking = any(task is not None and task.row.request.penalised for task in self._slots)
        if self._device.penalised and not asking:
            self._device.without_penalties()
        rows = len(slots[0])
        if rows > 1 and max(map(len, used)) <= rows // 4:
            self._resize(rows // 2, used)

    def _resize(self, rows: int, kept: Sequence[Sequence[int]]) -> None:
        """So many rows in each part; kept: which of its rows it keeps."""
        source = [i for mine in kept for i in (*mine, *(None,) * (rows - len(mine)))]
        self._device.resize(source)
        self._slots = [None if i is None else self._slots[i] for i in source]
        for slot, task in enumerate(self._slots):
            if task is not None:
                task.slot = slot

    def warm_up(self) -> None:
        """Compile every program now, by running it on nothing.

        Afterwards none is compiled while somebody waits for it; only sampled requests without a top-k of at
        most 64, penalties, constraints and likeliest ids bring programs of their own.
        """
        with self._lock:
            if not self.idle:
                raise UserError("warm up an engine before requests are submitted to it")
            self._device.warm_up(self.max_slots)
            self._slots = [None] * self._device.parts


def _shared_out(max_slots: int, parts: int) -> int:
    """Most rows of each part; a power of two."""
    each, rest = divmod(max_slots, parts)
    if rest or not each or each != power_of_two(each):
        of_parts = f" times {parts}, the parts in which the mesh cuts rows" if parts > 1 else ""
        raise UserError(f"max_slots must be a power of two{of_parts}, got {max_slots}")
    return each


def _asked(tasks: Sequence[_Task | None]) -> Asked:
    """What tasks want of a call, in the order of its rows."""
    return Asked(
        requests=[None if task is None else task.row.request for task in tasks],
        pages=[() if task is None else task.pages for task in tasks],
        outputs=[() if task is None else task.output for task in tasks],
        stop_ids=[() if task is None else task.row.stop_ids for task in tasks],
    )
