"""Runs of a small benchmark, made by hand, in memory and as the folder that a run leaves."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.judged import Judged
from eval.store import Generation
from eval.summarize import Source
from eval.task import Answer, Item, Published, Settings, Task, Verdict

SETTINGS: dict[str, Any] = {
    "max_tokens": 64,
    "temperature": 1.0,
    "thinking": True,
    "stop": ["\n\n"],
    "seed": 0,
}


def _prompt(item: Item, sample: int, protocol: str) -> list[Mapping[str, Any]]:
    return [{"role": "user", "content": item.data["question"]}]


def _score(item: Item, answer: Answer) -> Verdict:
    return Verdict(score=float(answer.text == item.data["answer"]), extracted=answer.text or None)


TASK = Task(
    name="sums",
    title="Sums",
    load=lambda path: [],
    prompt=_prompt,
    score=_score,
    settings={"thinking": Settings(max_tokens=64, samples=4)},
    published=[
        Published(model="e2b", value=37.5, source="a card"),
        Published(model="31b", value=89.2, source="a card"),
    ],
)


def source(questions: int = 3, **changes: Any) -> Source:
    """Items q0, q1, ...: what is i + i; even ones are of category "even"."""
    items = [
        Item(
            id=f"q{i}",
            data={"question": f"{i} + {i}?", "answer": str(2 * i)},
            category="odd" if i % 2 else "even",
        )
        for i in range(questions)
    ]
    data = {"path": "sums.jsonl", "sha256": "ab" * 32}
    return Source(task=dataclasses.replace(TASK, **changes), items=items, data=data)


def judged(item: int, sample: int, said: str | None, model: str = "f1", **changes: Any) -> Judged:
    """Sample of question i that answers `said`; None: no answer, for the thought did not end."""
    right = said == str(2 * item)
    g = Generation(
        key=f"{model}-{item}-{sample}",
        task="sums",
        item=f"q{item}",
        sample=sample,
        seed=sample,
        model=model,
        protocol="thinking",
        messages=[{"role": "user", "content": f"{item} + {item}?"}],
        settings=SETTINGS,
        text=f"<|channel>thought\nhm {sample}" + ("" if said is None else f"<channel|>{said}"),
        thought=f"hm {sample}",
        answer=said or "",
        finish_reason="length" if said is None else "stop",
        truncated=said is None,
        unfinished_thought=said is None,
        prompt_tokens=5,
        thought_tokens=10 * (sample + 1),
        answer_tokens=0 if said is None else 2,
        seconds=0.5,
    )
    g = dataclasses.replace(g, **changes)
    note = "" if right else f"expected {2 * item}"
    category = "odd" if item % 2 else "even"
    return Judged(generation=g, score=float(right), extracted=said, note=note, category=category)


def answers(rows: Sequence[Sequence[str | None]], model: str = "f1") -> list[Judged]:
    """Row i: the texts of question i's samples."""
    return [judged(i, s, text, model) for i, row in enumerate(rows) for s, text in enumerate(row)]


def write_run(
    folder: Path, samples: Sequence[Judged], models: Mapping[str, Any] | None = None
) -> None:
    """generations.jsonl, verdicts/sums.jsonl, run.json."""
    (folder / "verdicts").mkdir(parents=True)
    with (folder / "generations.jsonl").open("w", encoding="utf-8", errors="surrogatepass") as file:
        for j in samples:
            file.write(json.dumps(dataclasses.asdict(j.generation), ensure_ascii=False) + "\n")
    with (folder / "verdicts" / "sums.jsonl").open("w", encoding="utf-8") as file:
        for j in samples:
            g = j.generation
            row = {
                "key": g.key,
                "task": g.task,
                "item": g.item,
                "sample": g.sample,
                "score": j.score,
            }
            row |= {
                "extracted": j.extracted,
                "note": j.note,
                "details": dict(j.details),
                "category": j.category,
            }
            file.write(json.dumps(row) + "\n")
    about = {"models": models or {"f1": {"name": "gemma-4-E2B-it"}}, "git": "abc"}
    (folder / "run.json").write_text(json.dumps(about))
