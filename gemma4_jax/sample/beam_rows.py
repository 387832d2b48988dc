"""Rows and pages of the beams of one prompt, on the host: which beam has which, and what is copied when.

A beam that goes on keeps its row. One that is continued more than once gives copies of its ring, and of its
last page if that is not full, to rows of beams that were given up; full pages are shared. All pages that beams
can ever need are taken before they begin, so nobody has to interrupt them. Where a mesh cuts rows, beams have
those of their prompt's part; programs have as many of every part, and those of others are padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gemma4_jax.model.cache import NO_PAGE
from gemma4_jax.sample.beam_search import Step
from gemma4_jax.sample.engine_device import Device


class BeamRows:
    """`beams` rows after a prompt that has been read.

    part: that the prompt is of. place: where it was read. held: its tokens. pages: of the prompt, the last one
    perhaps not full. spare: pages that nobody else reads, enough of them (`pages_wanted`). size: positions of a
    page.
    """

    def __init__(
        self,
        device: Device,
        beams: int,
        *,
        part: int,
        place: int,
        held: int,
        pages: Sequence[int],
        spare: Sequence[int],
        size: int,
    ) -> None:
        self._device, self._held, self._size = device, held, size
        self._rows = device.fork(place, held, beams)
        whole = held // size
        self._own = frozenset([*pages[whole:], *spare])
        self._mine = range(part * beams, (part + 1) * beams)
        # By rows; the live beams' rows, in their order. All rows of the part are copies of the prompt's.
        self._tables: list[list[int]] = [[] for _ in range(device.parts * beams)]
        self._live = [self._mine.start]
        self._tables[self._mine.start] = list(pages)

    def follow(self, steps: Sequence[Step]) -> None:
        """Continue beams so: the live ones are those of the steps from now on, in their order."""
        sources = [self._live[step.source] for step in steps]
        free = [row for row in self._mine if row not in sources]
        tables: list[list[int]] = [[] for _ in self._tables]
        rows: list[int] = []
        copies: list[tuple[int, int]] = []
        for source in sources:
            row = source if source not in rows else free.pop()
            if row != source:
                copies.append((source, row))
            rows.append(row)
            tables[row] = list(self._tables[source])
        if self._held % self._size:
            self._part(tables, copies)
        tokens = np.zeros(len(tables), np.int32)
        tokens[rows] = [step.token for step in steps]
        begun_as, to = self._padded(copies)
        self._rows = self._device.follow(self._rows, begun_as, to, tokens, self._held)
        self._tables, self._live = tables, rows

    def advance(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Read what beams said; their `count` likeliest continuations, [live beams, count]: ids, logprobs."""
        if self._held % self._size == 0:
            fresh = self._unused(self._tables)
            for row in self._live:
                self._tables[row].append(fresh.pop())
        going = np.zeros(len(self._tables), bool)
        going[self._live] = True
        self._rows, hidden = self._device.go_on_beams(self._rows, self._tables, going)
        self._held += 1
        ids, logprobs = self._device.likeliest(hidden, count)
        return ids[self._live], logprobs[self._live]

    def _part(self, tables: list[list[int]], copies: Sequence[tuple[int, int]]) -> None:
        """A page of its own for every copy, where the last one is not full."""
        fresh = self._unused(tables)
        pages = []
        for source, row in copies:
            tables[row][-1] = fresh.pop()
            pages.append((tables[source][-1], tables[row][-1]))
        if pages:
            self._device.copy_pages(*self._padded(pages))

    def _unused(self, tables: Sequence[Sequence[int]]) -> list[int]:
        return sorted(self._own.difference(*tables))

    def _padded(self, pairs: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Where from and where to, as many as there are rows: the part's pairs are where its rows are."""
        count, first = len(self._tables), self._mine.start
        source, to = np.zeros(count, np.int32), np.full(count, NO_PAGE, np.int32)
        for i, pair in enumerate(pairs):
            source[first + i], to[first + i] = pair
        return source, to


def pages_wanted(beams: int, prompt: int, new: int, size: int) -> int:
    """Pages that so many beams may need beside those of their prompt."""
    # The last token of a text is never written.
    each = -(-(prompt + new - 1) // size) - prompt // size
    return max(0, beams * each - (prompt % size > 0))
