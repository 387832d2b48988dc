"""Who reads, who decodes and who waits, a step at a time: the decisions of an engine, on the host.

In a step what fits is admitted, one chunk of prompts is read, and all rows that decode go on by a few tokens.
So nobody waits longer than a chunk for others' prompts. Full layers keep pages, taken as rows grow; if none
are left, the request that came last gives its own back, stands in line again, and its tokens are read again as
a prompt. Prompts that begin alike share pages (`paging.py`). Where a mesh cuts rows, a request is in one of its
parts from its admission on, and has that part's rows and pages.

Not here: what a request may ask (`engine.py`), what is on the device (`engine_device.py`).
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from gemma4_jax.errors import UserError
from gemma4_jax.sample import task_pages
from gemma4_jax.sample.beams import Beams
from gemma4_jax.sample.drafters import Drafter, Drafts, History
from gemma4_jax.sample.engine_device import Asked, Device, Read
from gemma4_jax.sample.interrupts import uninterrupted
from gemma4_jax.sample.masks import masks_along, masks_of
from gemma4_jax.sample.paging import Pools
from gemma4_jax.sample.prompt_table import PromptTable
from gemma4_jax.sample.row import Row, Token, Watcher
from gemma4_jax.sample.slot_table import SlotTable
from gemma4_jax.sample.stream import Event, Stream
from gemma4_jax.sample.tasks import Task, asked
from gemma4_jax.sharding import over


class Scheduler:
    """Requests in line, rows that are read and rows that decode, over a device and its pages.

    max_slots: most requests of a part that are on their way together. ahead: most tokens that a row gets in a
    dispatch.
    """

    def __init__(
        self,
        device: Device,
        pages: Pools,
        mesh: Mesh | None,
        *,
        vocab_size: int,
        max_slots: int,
        ahead: int,
        drafter: Drafter | None,
    ) -> None:
        self._device, self.pages, self._mesh = device, pages, mesh
        self._vocab_size, self._max_slots = vocab_size, max_slots
        self._ahead, self._drafter = ahead, drafter
        self._waiting: deque[Task] = deque()
        self._prompts = PromptTable(pages, device.places, device.sizes)
        self._slots = SlotTable(device, pages)
        self._searching: list[Task] = []  # with beams
        self._submitted = 0
        self._lock = threading.RLock()

    def add(self, rows: Sequence[Row], beams: Beams | None = None) -> list[Stream]:
        """Put requests in line. beams: of a request that is alone and searches."""
        streams = []
        with self._lock:
            for row in rows:
                stream = Stream(self.advance, self.cancel, row.request.prompt)
                prompt = list(row.request.prompt)
                task = Task(row, self._submitted, prompt, stream, History(prompt), beams=beams)
                self._waiting.append(task)
                self._submitted += 1
                streams.append(stream)
        return streams

    def cancel(self, stream: Stream) -> None:
        """End a request; what it has got so far stays."""
        with self._lock, over(self._mesh):
            for task in [*self._waiting, *self._active(), *self._searching]:
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
    def active(self) -> int:
        """Requests whose prompts are being read or that decode."""
        return len(self._active())

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything."""
        return not (self._waiting or self._active() or self._searching)

    def step(self) -> None:
        """Admit what fits, read one chunk of prompts, and decode a few tokens of every row."""
        with self._lock, over(self._mesh), uninterrupted():
            self._admit()
            self._read_prompts()
            self._decode()
            self._search()
            self._slots.shrink()

    def _active(self, part: int | None = None) -> list[Task]:
        """Tasks that are read or that decode, of one part or of all, the first come first."""
        tasks = (task for task in (*self._prompts.tasks, *self._slots.tasks) if task is not None)
        return sorted(
            (task for task in tasks if part in (None, task.part)), key=lambda task: task.number
        )

    def _admit(self) -> None:
        held_back = []
        while self._waiting and (parts := self._open_parts(self._waiting[0])):
            task = self._waiting.popleft()
            for part in self._preferred(parts, task):
                if self._prompts.is_reading(task, part):
                    held_back.append(task)
                    break
                if self._take_over(task, part):
                    break
            else:
                self._waiting.appendleft(task)
                break
        self._waiting.extendleft(reversed(held_back))

    def _open_parts(self, task: Task) -> list[int]:
        """Parts that have room for a task, apart from pages."""
        return [
            part
            for part in range(len(self.pages.parts))
            if self._prompts.has_room(part) and self._rows(part) + task.rows <= self._max_slots
        ]

    def _rows(self, part: int) -> int:
        searching = (task for task in self._searching if task.part == part)
        return sum(task.rows for task in (*self._active(part), *searching))

    def _preferred(self, parts: list[int], task: Task) -> list[int]:
        """The best first: where whole chunks need not be read; then where the fewest rows and most pages are.

        Parts read and decode at the same time: what one has to read beside others' prompts costs nothing.
        """
        if len(parts) == 1:
            return parts

        def rank(part: int) -> tuple[int, int, int]:
            pages = self.pages.parts[part]
            chunks = pages.find(task.tokens).tokens // self._prompts.longest
            return -chunks, self._rows(part), -pages.available

        return sorted(parts, key=rank)

    def _take_over(self, task: Task, part: int) -> bool:
        """Begin to read it in a part; False if there are too few pages."""
        # Everybody else will want a page before long; taking the last ones would only interrupt somebody.
        spare = len(self._active(part))
        prefix = task_pages.take_over(self.pages, task, part, spare)
        if prefix is None:
            return False
        place = self._prompts.take(task)
        if prefix.snapshot is not None:
            self._device.recall(prefix.snapshot, place)
        return True

    # Prompts

    def _read_prompts(self) -> None:
        if not any(self._prompts.tasks):
            return
        tasks, size = self._prompts.chunk()
        new: list[Sequence[int]] = [
            () if task is None else task.tokens[task.held : task.held + size] for task in tasks
        ]
        read = self._device.read(
            size,
            [() if task is None else task.pages for task in tasks],
            [None if task is None else task.reading for task in tasks],
            [0 if task is None else task.held for task in tasks],
            new,
        )
        for task, part in zip(tasks, new, strict=True):
            if task is not None and task.reading is not None:
                task.held += len(part)
                snapshot = task_pages.keep(self.pages, task)
                if snapshot is not None:
                    self._device.save_read(task.reading, snapshot)
        ready = [task if task is not None and task.ready else None for task in tasks]
        if any(ready):
            self._first_tokens(read, ready)

    def _first_tokens(self, read: Read, ready: list[Task | None]) -> None:
        """The next token of every task whose prompt has been read; it decodes from then on."""
        masks = self._masks(ready)
        held = [0 if task is None else task.held for task in ready]
        dispatch, hidden = self._device.first(read, asked(ready), held, masks)
        for i, task in enumerate(ready):
            if task is None or task.reading is None:
                continue
            request = task.row.request
            new = dispatch.of_row(i, request.top_logprobs)
            place = self._prompts.give_back(task)
            if task.beams is not None:
                self._searching.append(task)
                size = self.pages.size
                given = self._device, task.part, place, task.pages, size, hidden, i
                self._further(task, task.beams.begin, *given)
                continue
            if not dispatch.done[i]:
                slot = self._slots.take(task)
                output = [*task.output, new[0].id]
                self._device.enter(slot, place, task.held, request, output, hidden, i)
            self._push(task, new)

    # Decoding

    def _decode(self) -> None:
        for task in self._active():
            if task.slot is not None:
                self._grow(task)
        tasks = [task for task in self._slots.tasks if task is not None]
        if not tasks:
            return
        wanted = asked(self._slots.tasks)
        watchers = [task.row.matcher for task in tasks if task.row.matcher is not None]
        bound = not all(watcher.free(self._ahead) for watcher in watchers)
        drafts, masks = self._drafts(wanted), None
        if drafts is not None:
            if bound:
                drafts, masks = self._bound_drafts(drafts)
            dispatch = self._device.verify(wanted, drafts, masks)
        elif bound:
            dispatch = self._device.go_on_among(wanted, lambda: self._masks(self._slots.tasks))
        else:
            dispatch = self._device.go_on(wanted)
        for task in tasks:
            if task.slot is not None:
                new = dispatch.of_row(task.slot, task.row.request.top_logprobs)
                task.held += len(new)
                if drafts is not None:
                    task.history.learn(int(drafts.given[task.slot]), len(new) - 1)
                self._push(task, new)

    def _drafts(self, wanted: Asked) -> Drafts | None:
        """What rows will perhaps choose next, as far as they may."""
        if self._drafter is None:
            return None
        most = np.zeros(len(self._slots.tasks), np.int32)
        for slot, task in enumerate(self._slots.tasks):
            if task is not None:
                most[slot] = task.row.request.max_new_tokens - len(task.output) - 1
        histories = [None if task is None else task.history for task in self._slots.tasks]
        return self._drafter.propose(histories, most, self._device.target(wanted.pages))

    # Beams

    def _search(self) -> None:
        """A few tokens of everyone who searches."""
        for task in list(self._searching):
            assert task.beams is not None
            for _ in range(self._ahead):
                if not task.beams.over:
                    self._further(task, task.beams.go_on)

    def _further(self, task: Task, move: Callable[..., None], *given: Any) -> None:
        """A move of a task's beams, and what follows from it."""
        assert task.beams is not None
        try:
            move(*given)
        except UserError as error:
            task.beams.over = True
            self._fail(task, error)
            return
        if task.beams.over:
            self._end(task, "")

    def _masks(self, tasks: Sequence[Task | None]) -> np.ndarray | None:
        """What rows may choose next, None if all may choose anything; who may choose nothing has failed."""
        matchers = _matchers(tasks)
        if not any(matcher is not None for matcher in matchers):
            return None
        masks, wrong = masks_of(matchers, self._vocab_size)
        self._fail_rows(tasks, wrong)
        return masks

    def _bound_drafts(self, drafts: Drafts) -> tuple[Drafts, np.ndarray]:
        """Drafts as far as constraints allow them, and what rows may choose along them."""
        tasks, tokens = self._slots.tasks, np.asarray(drafts.tokens)
        masks, given, wrong = masks_along(
            _matchers(tasks), tokens, drafts.given, drafts.length, self._vocab_size
        )
        self._fail_rows(tasks, wrong)
        return dataclasses.replace(drafts, tokens=tokens, given=given), masks

    def _fail_rows(self, tasks: Sequence[Task | None], wrong: Mapping[int, UserError]) -> None:
        failed = [(tasks[row], error) for row, error in wrong.items()]
        for task, error in failed:
            assert task is not None
            self._fail(task, error)

    def _grow(self, task: Task) -> None:
        """Pages for its next tokens; whoever came last has to give some back if there are none."""
        request = task.row.request
        # The last token of a request is never written.
        most = len(request.prompt) + request.max_new_tokens - 1
        positions = min(task.held + self._ahead, most)
        while task.slot is not None and not task_pages.grow(self.pages, task, positions):
            self._interrupt(self._active(task.part)[-1])

    def _interrupt(self, task: Task) -> None:
        """Back in line, before those that came later; its tokens so far are a prompt then."""
        self._leave(task)
        at = next(
            (i for i, t in enumerate(self._waiting) if t.number > task.number), len(self._waiting)
        )
        self._waiting.insert(at, task)

    def _push(self, task: Task, new: Sequence[Token]) -> None:
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
            task.tell(text, before)

    def _end(self, task: Task, reason: str, text: str = "", before: int | None = None) -> None:
        if task in self._waiting:
            self._waiting.remove(task)
        if task.beams is not None:
            task.beams.over = True
            best = task.beams.completions(reason)[0]
            self._leave(task)
            task.stream.put(Event(text=best.text, tokens=[], completion=best))
            return
        if not task.row.finish_reason:
            text += task.row.end(reason)
        if task.slot is not None:
            # For a conversation that goes on; but not in the place of what prompts have in common.
            snapshot = task_pages.keep(self.pages, task, evict=False)
            if snapshot is not None:
                self._device.save_decoding(task.slot, snapshot)
        self._leave(task)
        at = len(task.row.chosen) if before is None else before
        task.tell(text, at, task.row.completion())

    def _fail(self, task: Task, error: UserError) -> None:
        self._leave(task)
        task.stream.fail(error)

    def _leave(self, task: Task) -> None:
        """Give back the row and the pages."""
        if task.slot is not None:
            self._slots.give_back(task)
        if task.reading is not None:
            self._prompts.give_back(task)
        if task in self._searching:
            self._searching.remove(task)
        task_pages.give_back(self.pages, task)

    def warm_up(self) -> None:
        """Compile every program now, by running it on nothing."""
        with self._lock:
            if not self.idle:
                raise UserError("warm up an engine before requests are submitted to it")
            self._device.warm_up(len(self.pages.parts) * self._max_slots)
            self._slots = SlotTable(self._device, self.pages)


def _matchers(tasks: Sequence[Task | None]) -> list[Watcher | None]:
    return [None if task is None else task.row.matcher for task in tasks]
