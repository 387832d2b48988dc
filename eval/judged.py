"""What was generated and what was said of it, joined: one record a sample, grouped into rows of results.

Not here: how either came about, numbers (results.py).
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from eval import store, verdicts
from eval.store import Generation


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A generation and its verdict; fields of the latter as of `task.Verdict`."""

    generation: Generation
    score: float
    extracted: str | None
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    category: str = ""

    @property
    def vote(self) -> str | None:
        """What it says when a majority is counted: `details["vote"]` where a task sets it (choices that were
        shuffled have other letters), else the answer that was found."""
        vote = self.details.get("vote", self.extracted)
        return None if vote is None else str(vote)


class CellKey(NamedTuple):
    """What samples must share to stand in one row: benchmark, model, protocol and settings (as JSON)."""

    task: str
    model: str
    protocol: str
    settings: str


def read_folder(folder: Path) -> tuple[list[Judged], int]:
    """Judged samples of a run's folder (generations.jsonl, verdicts/TASK.jsonl), and how many have no
    verdict. Raises UserError for lines that are damaged.
    """
    by_key = {}
    for file in sorted((folder / "verdicts").glob("*.jsonl")):
        by_key.update(verdicts.read(file))
    joined, without = [], 0
    for generation in store.read(folder / "generations.jsonl"):
        found = by_key.get(generation.key)
        if found is None:
            without += 1
            continue
        joined.append(
            Judged(
                generation=generation,
                score=found.score,
                extracted=found.extracted,
                note=found.note,
                details=found.details,
                category=found.category,
            )
        )
    return joined, without


def cells(judged: Iterable[Judged]) -> dict[CellKey, list[Judged]]:
    """Samples by cell, in the order in which cells are first met."""
    found: dict[CellKey, list[Judged]] = defaultdict(list)
    for each in judged:
        g = each.generation
        key = CellKey(g.task, g.model, g.protocol, json.dumps(g.settings, sort_keys=True))
        found[key].append(each)
    return dict(found)


def by_question(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """A cell's samples by item, each item's in the order of their numbers."""
    found: dict[str, list[Judged]] = defaultdict(list)
    for each in sorted(judged, key=lambda j: j.generation.sample):
        found[each.generation.item].append(each)
    return dict(found)
