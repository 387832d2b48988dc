"""Which task decodes in which row; rows are a power of two, grown and halved with their number."""

from __future__ import annotations

from collections.abc import Sequence

from gemma4_jax.sample.engine_device import Device
from gemma4_jax.sample.tasks import Task


class SlotTable:
    """Begins with one free row. tasks: by row, None where there is none."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.tasks: list[Task | None] = [None]

    def take(self, task: Task) -> int:
        """A free row, which is the task's from now on."""
        if None not in self.tasks:
            self._resize(2 * len(self.tasks), range(len(self.tasks)))
        slot = task.slot = self.tasks.index(None)
        self.tasks[slot] = task
        return slot

    def give_back(self, task: Task) -> None:
        """The task's row is free again."""
        assert task.slot is not None
        self.tasks[task.slot] = None
        task.slot = None

    def shrink(self) -> None:
        """Half the rows, if a quarter is in use: a program computes all of its rows."""
        used = [i for i, task in enumerate(self.tasks) if task is not None]
        asking = any(task is not None and task.row.request.penalised for task in self.tasks)
        if self._device.penalised and not asking:
            self._device.without_penalties()
        if len(self.tasks) > 1 and len(used) <= len(self.tasks) // 4:
            self._resize(len(self.tasks) // 2, used)

    def _resize(self, rows: int, source: Sequence[int]) -> None:
        self._device.resize(rows, source)
        moved = [self.tasks[i] for i in source]
        self.tasks = [*moved, *(None,) * (rows - len(moved))]
        for slot, task in enumerate(self.tasks):
            if task is not None:
                task.slot = slot
