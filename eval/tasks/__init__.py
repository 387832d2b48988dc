"""The benchmarks, by name. One file each; `TASKS` is where a new one is added."""

from eval.task import Task

_ALL: tuple[Task, ...] = ()

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
