"""The benchmarks, by name. One file each; `TASKS` is where a new one is added."""

from eval.task import Task
from eval.tasks.codeforces import CODEFORCES
from eval.tasks.humaneval import HUMANEVAL
from eval.tasks.ifeval import IFEVAL
from eval.tasks.livecodebench import LIVECODEBENCH

_ALL: tuple[Task, ...] = (
    CODEFORCES,
    HUMANEVAL,
    IFEVAL,
    LIVECODEBENCH,
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
