"""Which task decodes in which row; rows are a power of two, grown and halved with their number.

Where a mesh cuts rows, each part has as many, and the fullest one decides how many.
"""

from __future__ import annotations

from collections.abc import Sequence

from gemma4_jax.sample.engine_device import Device
from gemma4_jax.sample.paging import Pools
from gemma4_jax.sample.tasks import Task


class SlotTable:
    """Begins with one free row of each part. tasks: by row, None where there is none."""

    def __init__(self, device: Device, pages: Pools) -> None:
        self._device, self._pages = device, pages
        self.tasks: list[Task | None] = [None] * len(pages.parts)

    def take(self, task: Task) -> int:
        """A free row of the task's part, which is its own from now on."""
        rows = self._pages.shares(self.tasks)
        if all(self.tasks[i] is not None for i in rows[task.part]):
            self._resize(2 * len(rows[0]), rows)
            rows = self._pages.shares(self.tasks)
        slot = task.slot = next(i for i in rows[task.part] if self.tasks[i] is None)
        self.tasks[slot] = task
        return slot

    def give_back(self, task: Task) -> None:
        """The task's row is free again."""
        assert task.slot is not None
        self.tasks[task.slot] = None
        task.slot = None

    def shrink(self) -> None:
        """Half the rows, if a quarter is in use: a program computes all of its rows."""
        rows = self._pages.shares(self.tasks)
        used = [[i for i in mine if self.tasks[i] is not None] for mine in rows]
        asking = any(task is not None and task.row.request.penalised for task in self.tasks)
        if self._device.penalised and not asking:
            self._device.without_penalties()
        each = len(rows[0])
        if each > 1 and max(map(len, used)) <= each // 4:
            self._resize(each // 2, used)

    def _resize(self, rows: int, kept: Sequence[Sequence[int]]) -> None:
        """So many rows in each part; kept: which of its rows it keeps."""
        source = [i for mine in kept for i in (*mine, *(None,) * (rows - len(mine)))]
        self._device.resize(source)
        self.tasks = [None if i is None else self.tasks[i] for i in source]
        for slot, task in enumerate(self.tasks):
            if task is not None:
                task.slot = slot
