"""What a benchmark is: items from a person's file, a conversation per sample, and a verdict on an answer.

A benchmark is one file of pure functions under `eval/tasks/`, gathered in one `Task`. Nothing here or there
talks to a model or a network: the runner generates, the scoring pass judges, either can be run again alone.

    item = task.load(Path("aime_2026.jsonl"))[0]
    messages = task.prompt(item, 0, "thinking")          # of the item's first sample
    verdict = task.score(item, Answer(text="... \\boxed{42}"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from gemma4_jax.verify.sandbox import Sandbox

# How a benchmark's authors ask and read answers, or as suits a model that thinks before it answers.
Protocol = Literal["thinking", "reference"]
Message = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question. `data` is all that prompt and score need, as JSON knows it.

    id: unique within a task's file. category: its row in the table by category; "" for none.
    """

    id: str
    data: Mapping[str, Any]
    category: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What scoring reads. `text` is what follows the thought, control tokens gone; sample counts from 0.

    sandbox: where programs run; tasks whose `runs_programs` is false get None.
    """

    text: str
    sample: int = 0
    protocol: Protocol = "thinking"
    sandbox: Sandbox | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """score: 0 to 1. extracted: the answer that was found, as text; None if there is none (counted apart).

    note: why, for a person who reads the report ("test 3: expected 7, got 8"). details: further numbers or
    labels, as JSON knows them, that the task's `summary` adds up.
    """

    score: float
    extracted: str | None
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def on(cls, found: str | None, hit: bool, expected: object, **details: Any) -> Verdict:
        """On an answer that was looked for in a text; the note says what is missing or was expected."""
        note = "no answer found" if found is None else "" if hit else f"expected {expected}"
        return cls(score=float(hit), extracted=found, note=note, details=details)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to generate under a protocol. None: no such filter. samples: how many answers per item by default."""

    max_tokens: int
    samples: int
    thinking: bool = True
    temperature: float = 1.0
    top_p: float | None = 0.95
    top_k: int | None = 64
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Published:
    """A score that others printed, to stand beside ours. percent or rating as printed; source: where."""

    model: str  # a preset's name: "31b"
    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Graded:
    """One judged sample, for summaries."""

    item: Item
    sample: int
    verdict: Verdict


def category_means(graded: Sequence[Graded]) -> dict[str, float]:
    """The mean score of each category, for summaries where categories have unequal numbers of items."""
    scores: dict[str, list[float]] = {}
    for one in graded:
        scores.setdefault(one.item.category, []).append(one.verdict.score)
    return {category: fmean(found) for category, found in scores.items()}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark.

    load(path): a file or folder in the Hugging Face schema (JSONL, parquet, CSV) to items. UserError names
      missing columns, duplicate ids, a wrong checksum.
    prompt(item, sample, protocol): messages of one sample; choices are shuffled by (item id, sample).
    score(item, answer): the verdict; what was shuffled for the prompt is shuffled again by answer.sample.
    settings: how to generate, by protocol. summary: numbers beside the mean, from all judged samples
      (an Elo, a count of quirks).
    """

    name: str
    title: str
    load: Callable[[Path], list[Item]]
    prompt: Callable[[Item, int, Protocol], list[Message]]
    score: Callable[[Item, Answer], Verdict]
    settings: Mapping[Protocol, Settings]
    published: Sequence[Published] = ()
    runs_programs: bool = False
    summary: Callable[[Sequence[Graded]], Mapping[str, float]] | None = None
