"""What was generated and what was said of it, joined: one record a sample, grouped into rows of results.

Not here: how either came about, numbers (numbers.py).
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from eval.store import Generation
from gemma4_jax.errors import UserError


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


def join(
    generations: Iterable[Generation], verdicts: Iterable[Mapping[str, Any]]
) -> tuple[list[Judged], int]:
    """Generations that have a verdict, and how many have none. verdicts: rows of the file, by `key`.

    Of two verdicts on one generation the later counts: scoring again adds lines.
    """
    by_key = {row["key"]: row for row in verdicts}
    joined, without = [], 0
    for generation in generations:
        row = by_key.get(generation.key)
        if row is None:
            without += 1
            continue
        joined.append(
            Judged(
                generation=generation,
                score=float(row["score"]),
                extracted=row["extracted"],
                note=row.get("note", ""),
                details=row.get("details", {}),
                category=row.get("category", ""),
            )
        )
    return joined, without


def read_folder(folder: Path) -> tuple[list[Judged], int]:
    """Judged samples of a run's folder (generations.jsonl, verdicts/TASK.jsonl), and how many have no
    verdict.
    """
    verdicts: list[dict[str, Any]] = []
    for file in sorted((folder / "verdicts").glob("*.jsonl")):
        verdicts += _rows(file)
    names = [f.name for f in fields(Generation)]
    try:
        rows = _rows(folder / "generations.jsonl")
        return join((Generation(**{name: row[name] for name in names}) for row in rows), verdicts)
    except KeyError as error:
        raise UserError(f"{folder}: a line has no {error}; score the run again") from None


def _rows(file: Path) -> list[dict[str, Any]]:
    """Objects of a JSONL file; a last line that a kill has torn is left out."""
    try:
        text = file.read_bytes().decode("utf-8", "surrogatepass")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    lines = text.split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{file} has a line that is no JSON: {error}") from None


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
