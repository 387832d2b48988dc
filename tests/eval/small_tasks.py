"""Benchmarks of one-line questions.

A model of random weights is never right about sums; whether a letter stands in what it says is a score that
differs between its samples.
"""

import json
from collections.abc import Callable
from pathlib import Path

from eval.task import Answer, Graded, Item, Message, Protocol, Settings, Task, Verdict
from gemma4_jax.errors import UserError

SETTINGS = Settings(max_tokens=16, samples=8, top_k=40)


def load(path: Path) -> list[Item]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if any("id" not in row for row in rows):
        raise UserError(f"{path}: a row has no 'id'")
    return [Item(id=r["id"], category=r["kind"], data={"question": r["question"]}) for r in rows]


def prompt(item: Item, sample: int, protocol: Protocol) -> list[Message]:
    start = "" if protocol == "thinking" else "Answer: "
    return [{"role": "user", "content": start + item.data["question"]}]


def scorer(letter: str) -> Callable[[Item, Answer], Verdict]:
    def score(item: Item, answer: Answer) -> Verdict:
        if item.data["question"] == "crash":
            raise RuntimeError("a scorer with a mistake")
        found = letter if letter in answer.text else None
        return Verdict(score=float(found is not None), extracted=found, note=answer.text[:20])

    return score


def summary(graded: "list[Graded]") -> dict[str, float]:
    return {"judged": float(len(graded))}


def small(name: str, letter: str) -> Task:
    return Task(
        name=name,
        title=f"has {letter}",
        load=load,
        prompt=prompt,
        score=scorer(letter),
        settings={"thinking": SETTINGS, "reference": SETTINGS},
        summary=summary,
    )


TASKS = {name: small(name, name[-1]) for name in ("has_a", "has_e", "has_o", "has_t")}


def write_items(folder: Path, count: int) -> list[str]:
    """Files of all four; returns the words after --tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    words = []
    for name in TASKS:
        rows = [
            {"id": f"q{i}", "kind": ("even", "odd")[i % 2], "question": f"{name} {i} apples?"}
            for i in range(count)
        ]
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words.append(f"{name}={file}")
    return words
