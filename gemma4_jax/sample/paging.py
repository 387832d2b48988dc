"""Host bookkeeping of an engine's memory: pages of full layers, snapshots of rings, and what prompts share.

A page holds P consecutive positions of one row in every full layer. A full page never changes again, so rows
whose first tokens are equal share it; a count says how many rows read it. Sliding layers keep rings, which do
change: what a row can take over is the snapshot of a ring at the end of a full page. A prefix is therefore
reused up to the last page for which there are both.

Pages and snapshots that no row reads stay until their memory is needed; those not used for longest go first.
Where a mesh cuts rows, every part has its own pages and snapshots (`Pools`).
No tensors here: numbers of pages and snapshots only (`engine_memory.py` has what they number).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# Names the tokens of a prefix up to the end of a page: the name of the page before it, and its own tokens.
Name = tuple[int, tuple[int, ...]]


@dataclass
class _Kept:
    """A full page that a later prompt may reuse."""

    page: int
    number: int  # unique for each name; what the next page's name refers to
    before: int  # number of the page before it, 0 for the first
    snapshot: int | None = None
    after: int = 0  # how many kept pages come right after it


@dataclass(frozen=True)
class Prefix:
    """What a new row can take over: so many tokens, in these pages, and rings from this snapshot."""

    tokens: int = 0
    pages: tuple[int, ...] = ()
    snapshot: int | None = None


@dataclass
class Pages:
    """`count` pages of `size` positions, and `snapshots` places for rings, numbered from `first_snapshot`.

    Every page that `take` or `reuse` gives out is the caller's until `release`.
    """

    count: int
    size: int
    snapshots: int
    first_snapshot: int = 0
    _readers: dict[int, int] = field(default_factory=dict)  # page: rows that read it
    _kept: OrderedDict[Name, _Kept] = field(default_factory=OrderedDict)  # least used first
    _names: dict[int, Name] = field(default_factory=dict)  # by page
    _numbers: dict[int, Name] = field(default_factory=dict)  # by number
    _next: int = 1
    _idle: int = 0  # kept pages that nobody reads

    def __post_init__(self) -> None:
        """All are free."""
        self._free = list(range(self.count))[::-1]
        first = self.first_snapshot
        self._free_snapshots = list(range(first, first + self.snapshots))[::-1]

    @property
    def available(self) -> int:
        """Pages that can be taken now, kept ones that nobody reads included."""
        return len(self._free) + self._idle

    @property
    def in_use(self) -> int:
        """Pages that rows read."""
        return len(self._readers)

    def take(self, wanted: int) -> list[int] | None:
        """So many pages with nothing in them, or None (and nothing happens) if there are not so many."""
        if wanted > self.available:
            return None
        while len(self._free) < wanted:
            self._drop_oldest()
        pages = [self._free.pop() for _ in range(wanted)]
        for page in pages:
            self._readers[page] = 1
        return pages

    def find(self, tokens: Sequence[int]) -> Prefix:
        """The longest prefix of `tokens` that can be reused; at least one token is always left over."""
        pages: list[int] = []
        best = Prefix()
        for kept in self._along(tokens[: len(tokens) - 1]):
            pages.append(kept.page)
            if kept.snapshot is not None:
                best = Prefix(len(pages) * self.size, tuple(pages), kept.snapshot)
        return best

    def reuse(self, prefix: Prefix, tokens: Sequence[int]) -> None:
        """Count the caller among the readers of a prefix that `find` found for these tokens."""
        for page in prefix.pages:
            readers = self._readers.get(page, 0)
            self._idle -= not readers
            self._readers[page] = readers + 1
        # Most used last, and a page after those that follow it: they are of no use without it.
        for kept in reversed(list(self._along(tokens[: prefix.tokens]))):
            self._kept.move_to_end(self._numbers[kept.number])

    def keep(
        self, tokens: Sequence[int], pages: Sequence[int], *, evict: bool = True
    ) -> int | None:
        """Remember the full pages of a row that holds `tokens`, for those that begin alike.

        Returns the place into which to copy the row's rings as they were at the end of the last full page; None
        if that is not needed, or there is no place. evict: in the place of another, if none is free.
        """
        before, last, own = 0, None, True
        for j in range(len(tokens) // self.size):
            name = before, tuple(tokens[j * self.size : (j + 1) * self.size])
            kept = self._kept.get(name)
            if kept is None:
                if not own:
                    return None  # whoever reads a kept page must read all kept ones before it
                kept = self._kept[name] = _Kept(pages[j], self._next, before)
                self._names[pages[j]] = self._numbers[self._next] = name
                if before:
                    self._kept[self._numbers[before]].after += 1
                self._next += 1
            # Two rows may have computed the same page side by side; that of the first one is kept.
            own &= kept.page == pages[j]
            before, last = kept.number, kept
        if last is None or last.snapshot is not None:
            return None
        last.snapshot = self._take_snapshot(evict)
        return last.snapshot

    def release(self, pages: Sequence[int]) -> None:
        """The caller no longer reads these pages."""
        for page in pages:
            self._readers[page] -= 1
            if not self._readers[page]:
                del self._readers[page]
                if page in self._names:
                    self._idle += 1
                else:
                    self._free.append(page)

    def forget(self) -> None:
        """Drop every kept page and snapshot that nobody reads."""
        while self._idle:
            self._drop_oldest()

    def _along(self, tokens: Sequence[int]) -> Iterator[_Kept]:
        before = 0
        for start in range(0, len(tokens) - self.size + 1, self.size):
            kept = self._kept.get((before, tuple(tokens[start : start + self.size])))
            if kept is None:
                return
            yield kept
            before = kept.number

    def _drop_oldest(self) -> None:
        """Free one kept page that nobody reads and that none follows; there is one."""
        # A reader of a page reads all before it, so an unread page has only unread ones after it.
        name = next(
            name
            for name, kept in self._kept.items()
            if kept.page not in self._readers and not kept.after
        )
        kept = self._kept.pop(name)
        del self._names[kept.page], self._numbers[kept.number]
        if kept.before:
            self._kept[self._numbers[kept.before]].after -= 1
        if kept.snapshot is not None:
            self._free_snapshots.append(kept.snapshot)
        self._idle -= 1
        self._free.append(kept.page)

    def _take_snapshot(self, evict: bool) -> int | None:
        if self._free_snapshots:
            return self._free_snapshots.pop()
        holder = next((kept for kept in self._kept.values() if kept.snapshot is not None), None)
        if holder is None or not evict:
            return None
        place, holder.snapshot = holder.snapshot, None
        return place


@dataclass(frozen=True)
class Pools:
    """Pages of every part in which a mesh cuts rows; of one part where none does.

    Pages are numbered in each part from 0, snapshots through all parts.
    """

    parts: tuple[Pages, ...]

    @staticmethod
    def of(parts: int, count: int, size: int, snapshots: int) -> Pools:
        """count, snapshots: of each part."""
        return Pools(tuple(Pages(count, size, snapshots, i * snapshots) for i in range(parts)))

    @property
    def count(self) -> int:
        """Pages there are."""
        return sum(pages.count for pages in self.parts)

    @property
    def available(self) -> int:
        """As `Pages.available`, of all parts."""
        return sum(pages.available for pages in self.parts)

    @property
    def in_use(self) -> int:
        """As `Pages.in_use`, of all parts."""
        return sum(pages.in_use for pages in self.parts)

    @property
    def size(self) -> int:
        """Positions of a page."""
        return self.parts[0].size

    def shares(self, rows: Sequence[object]) -> list[range]:
        """The numbers of each part's rows among these: those of a part stand together, part by part."""
        each = len(rows) // len(self.parts)
        return [range(i * each, (i + 1) * each) for i in range(len(self.parts))]

    def forget(self) -> None:
        """As `Pages.forget`, of all parts."""
        for pages in self.parts:
            pages.forget()
