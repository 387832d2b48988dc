"""The benchmarks, by name. One file each; `TASKS` is where a new one is added."""

from eval.task import Task
from eval.tasks import (
    aime,
    bbh,
    gpqa_diamond,
    gsm8k,
    mmlu_pro,
    mmmlu,
)

_ALL: tuple[Task, ...] = (
    mmlu_pro.TASK,
    gpqa_diamond.TASK,
    aime.AIME_2024,
    aime.AIME_2025,
    aime.AIME_2026,
    mmmlu.TASK,
    gsm8k.TASK,
    bbh.TASK,
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
