"""Whose prompt is read in which place, and what the next call reads.

Where a mesh cuts rows, each part has as many places; a task's place is one of its part's.
"""

from __future__ import annotations

from collections.abc import Sequence

from gemma4_jax.sample.paging import Pools
from gemma4_jax.sample.tasks import Task


class PromptTable:
    """tasks: by place, None where there is none.

    sizes: rows of all parts and tokens of each that a call may have, the fewest tokens first.
    """

    def __init__(self, pages: Pools, places: int, sizes: Sequence[tuple[int, int]]) -> None:
        self._pages, self._sizes = pages, sizes
        self.tasks: list[Task | None] = [None] * places

    @property
    def longest(self) -> int:
        """Most tokens that a call reads of one prompt."""
        return self._sizes[-1][1]

    def of(self, part: int) -> list[Task]:
        """Tasks of a part."""
        places = self._pages.shares(self.tasks)[part]
        return [task for i in places if (task := self.tasks[i]) is not None]

    def has_room(self, part: int) -> bool:
        """Whether a part has a free place."""
        return len(self.of(part)) < len(self._pages.shares(self.tasks)[part])

    def take(self, task: Task) -> int:
        """A free place of the task's part, which is its own from now on; there is one."""
        places = self._pages.shares(self.tasks)[task.part]
        place = task.reading = next(i for i in places if self.tasks[i] is None)
        self.tasks[place] = task
        return place

    def give_back(self, task: Task) -> int:
        """The task's place, which is free again."""
        place = task.reading
        assert place is not None
        self.tasks[place] = task.reading = None
        return place

    def is_reading(self, task: Task, part: int) -> bool:
        """Whether most of a prompt is on its way into pages: waiting for these costs less than reading it."""
        size = self._pages.size
        whole = (len(task.tokens) - 1) // size * size
        wanted = task.tokens[:whole]
        return whole > 0 and any(
            other.held < whole and other.tokens[:whole] == wanted for other in self.of(part)
        )

    def chunk(self) -> tuple[list[Task | None], int]:
        """Which tasks to read from, in the order of a call's rows, and how many tokens of each.

        The oldest decides how many; every part reads from its oldest, and from those who fit beside it. There
        is a task.
        """

        def rest(task: Task) -> int:
            return len(task.tokens) - task.held

        parts = [
            sorted(self.of(part), key=lambda task: task.number)
            for part in range(len(self._pages.parts))
        ]
        oldest = min((mine[0] for mine in parts if mine), key=lambda task: task.number)
        size = min((t for _, t in self._sizes if t >= rest(oldest)), default=self.longest)
        most = max(rows for rows, tokens in self._sizes if tokens == size) // len(parts)
        together = [
            [*mine[:1], *(task for task in mine[1:] if rest(task) <= size)][:most] for mine in parts
        ]
        rows = 1 if max(map(len, together)) == 1 else most
        return [task for mine in together for task in (*mine, *(None,) * (rows - len(mine)))], size
