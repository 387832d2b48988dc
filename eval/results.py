"""The numbers of a benchmark, typed, and results.json, where they are kept.

What each number means, and which to trust when: docs/statistics.md. Not here: how they come about
(summarize.py), pages (report.py), other people's formats (lm_eval_files.py, export_inspect.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.judged import CellKey
from eval.stats import Interval
from eval.task import Published
from gemma4_jax.errors import UserError

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class AtK:
    """pass@k or maj@k over the questions that have k samples."""

    k: int
    score: Interval
    questions: int


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Of all samples."""

    mean: float
    median: float
    p95: float
    max: float


@dataclass(frozen=True, kw_only=True)
class Category:
    """A row of the table by category."""

    name: str
    score: Interval
    questions: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class Results:
    """A benchmark's numbers for one model, protocol and settings.

    model: its fingerprint. questions: with a sample at least. samples: judged ones; samples_asked: as the
    run wanted; samples_each: the fewest and most of a question. score: avg@k, the mean over questions of
    the mean over a question's samples, with its 95 % interval. standard_error: of that, over questions (None
    for one question). standard_error_across_runs: of asking the same questions again (None for one sample
    each). no_answer, truncated, unfinished_thoughts: shares of samples. tokens and seconds: of a sample.
    identical_repeats: the share of questions whose drawn answers are all one text (None: cannot be told).
    """

    task: str
    title: str
    model: str
    protocol: str
    settings: Mapping[str, Any]
    questions: int
    samples: int
    samples_asked: int
    samples_each: tuple[int, int]
    score: Interval
    bootstrap: Interval | None
    standard_error: float | None
    standard_error_across_runs: float | None
    pass_at_k: list[AtK]
    majority_at_k: list[AtK]
    no_answer: float
    truncated: float
    unfinished_thoughts: float
    prompt_tokens: Lengths
    thought_tokens: Lengths
    answer_tokens: Lengths
    seconds: Lengths
    categories: list[Category]
    summary: Mapping[str, float]
    published: list[Published]
    data: Mapping[str, Any]
    identical_repeats: float | None
    notes: list[str]

    @property
    def name(self) -> str:
        """Of the score: avg@4, or accuracy where a question has one sample."""
        most = self.samples_each[1]
        return "accuracy" if most == 1 else f"avg@{most}"


def key_of(results: Results) -> CellKey:
    """The cell that these are the numbers of."""
    settings = json.dumps(results.settings, sort_keys=True)
    return CellKey(results.task, results.model, results.protocol, settings)


def write_json(path: Path, results: Sequence[Results], run: Mapping[str, Any]) -> None:
    """results.json. run: what is known of the run as a whole, as JSON values."""
    document = {"version": VERSION, "run": dict(run), "results": [asdict(r) for r in results]}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
    temporary.replace(path)


def read_json(path: Path) -> tuple[list[Results], dict[str, Any]]:
    """Results and run of a results.json. UserError if it cannot be read or is of another version."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; a run writes it when it is scored"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}; score the run again") from None
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise UserError(f"{path} is not of version {VERSION}; score the run again")
    return [_from_json(row) for row in document["results"]], document["run"]


def _from_json(row: dict[str, Any]) -> Results:
    def at_k(rows: list[dict[str, Any]]) -> list[AtK]:
        return [AtK(**{**r, "score": Interval(**r["score"])}) for r in rows]

    typed = dict(row)
    typed["samples_each"] = tuple(row["samples_each"])
    typed["score"] = Interval(**row["score"])
    typed["bootstrap"] = None if row["bootstrap"] is None else Interval(**row["bootstrap"])
    typed["pass_at_k"], typed["majority_at_k"] = at_k(row["pass_at_k"]), at_k(row["majority_at_k"])
    for name in ("prompt_tokens", "thought_tokens", "answer_tokens", "seconds"):
        typed[name] = Lengths(**row[name])
    typed["categories"] = [
        Category(**{**r, "score": Interval(**r["score"])}) for r in row["categories"]
    ]
    typed["published"] = [Published(**r) for r in row["published"]]
    return Results(**typed)
