"""The benchmarks, by name. One file each; `_ALL` is where a new one is added."""

from collections.abc import Mapping
from pathlib import Path

from eval.task import Task
from eval.tasks import (
    aime,
    bbh,
    codeforces,
    gpqa_diamond,
    gsm8k,
    humaneval,
    ifeval,
    livecodebench,
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
    livecodebench.TASK,
    codeforces.TASK,
    humaneval.TASK,
    ifeval.TASK,
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}

Options = Mapping[str, Mapping[str, str]]


def tasks_with(options: Options) -> dict[str, Task]:
    """The benchmarks, some with what was asked of them by name (`configs.evals.EvalConfig.options`)."""
    found = dict(TASKS)
    if given := options.get("livecodebench"):
        found["livecodebench"] = livecodebench.task(**given)  # type: ignore[arg-type]  # it checks them
    if given := options.get("codeforces"):
        found["codeforces"] = codeforces.task(Path(given["standings"]))
    return found
