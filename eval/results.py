"""From judged samples to the numbers of a benchmark: one `Results` a cell, and results.json.

Every number is over questions first: a question's samples are averaged, then questions. What is missing is
said in `notes`, never filled in. What each number means, and which to trust when: docs/statistics.md.

Not here: pages (report.py), other people's formats (lm_eval_files.py, export_inspect.py).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eval.judged import CellKey, Judged, by_question, cells
from eval.repeats import across_runs, majority_at_k, pass_at_k, powers_of_two
from eval.stats import Interval, bootstrap, clustered, standard_error
from eval.task import Graded, Item, Published, Task, Verdict
from gemma4_jax.errors import UserError

VERSION = 1
# Characters; shorter answers ("B") may well be alike by chance.
_LONG_ENOUGH = 200
_UNKNOWN_PROTOCOL = (
    "Published scores: prompts, samples a question, token limits and extraction are not published, so a "
    "difference of a few points says little."
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was asked: a benchmark, its items, and what is known of their file.

    asked: how many of the items a run chose; None: all. data: JSON values, such as `path` and `sha256`.
    """

    task: Task
    items: Sequence[Item]
    asked: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def questions(self) -> int:
        """How many questions a complete run has samples of."""
        return len(self.items) if self.asked is None else self.asked


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

    model: its fingerprint. questions: with a sample at least; questions_asked: as the run wanted. samples:
    judged ones; samples_each: the fewest and most of a question. score: avg@k, the mean over questions of
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
    questions_asked: int
    samples: int
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


def summarize(source: Source, judged: Sequence[Judged]) -> Results:
    """The numbers of one cell. Raises ValueError without samples, or for samples of an item it does not
    have.
    """
    if not judged:
        raise ValueError(f"{source.task.name}: no samples to summarise")
    items = {item.id: item for item in source.items}
    questions = by_question(judged)
    if odd := [item for item in questions if item not in items]:
        raise ValueError(f"{source.task.name}: samples of an item that is not there: {odd[0]!r}")
    counts = [len(found) for found in questions.values()]
    means = [_mean([j.score for j in found]) for found in questions.values()]
    n, first = len(judged), judged[0].generation
    runs = _runs(questions)
    return Results(
        task=source.task.name,
        title=source.task.title,
        model=first.model,
        protocol=first.protocol,
        settings=dict(first.settings),
        questions=len(questions),
        questions_asked=source.questions,
        samples=n,
        samples_each=(min(counts), max(counts)),
        score=clustered(means, n),
        bootstrap=bootstrap(means) if len(means) > 1 else None,
        standard_error=standard_error(means),
        standard_error_across_runs=across_runs(runs),
        pass_at_k=_pass_at_k(questions),
        majority_at_k=[] if source.task.runs_programs else _majority_at_k(questions),
        no_answer=sum(j.extracted is None for j in judged) / n,
        truncated=sum(j.generation.truncated for j in judged) / n,
        unfinished_thoughts=sum(j.generation.unfinished_thought for j in judged) / n,
        prompt_tokens=_lengths([j.generation.prompt_tokens for j in judged]),
        thought_tokens=_lengths([j.generation.thought_tokens for j in judged]),
        answer_tokens=_lengths([j.generation.answer_tokens for j in judged]),
        seconds=_lengths([j.generation.seconds for j in judged]),
        categories=_categories(judged),
        summary=_summary(source.task, items, judged),
        published=list(source.task.published),
        data=dict(source.data),
        identical_repeats=_identical_repeats(questions),
        notes=_notes(source, questions, runs, judged),
    )


def summarize_all(sources: Mapping[str, Source], judged: Sequence[Judged]) -> list[Results]:
    """One `Results` a cell. sources: by name of the task; UserError for samples of a task that is not
    there.
    """
    found = []
    for key, samples in cells(judged).items():
        if key.task not in sources:
            raise UserError(
                f"there are samples of {key.task}, and no data of it; name its file as the run did"
            )
        found.append(summarize(sources[key.task], samples))
    return found


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


def _pass_at_k(questions: Mapping[str, Sequence[Judged]]) -> list[AtK]:
    """None where a score is neither right nor wrong."""
    if any(j.score not in (0, 1) for found in questions.values() for j in found):
        return []
    found = []
    for k in powers_of_two(max(map(len, questions.values()))):
        asked = [q for q in questions.values() if len(q) >= k]
        values = [pass_at_k(sum(j.score == 1 for j in q), len(q), k) for q in asked]
        found.append(AtK(k=k, score=clustered(values, sum(map(len, asked))), questions=len(asked)))
    return found


def _majority_at_k(questions: Mapping[str, Sequence[Judged]]) -> list[AtK]:
    """From k = 4 on: of two answers the majority is either."""
    found = []
    for k in powers_of_two(max(map(len, questions.values())))[2:]:
        asked = [q for q in questions.values() if len(q) >= k]
        values = [majority_at_k([j.vote for j in q], [j.score for j in q], k) for q in asked]
        found.append(AtK(k=k, score=clustered(values, sum(map(len, asked))), questions=len(asked)))
    return found


def _runs(questions: Mapping[str, Sequence[Judged]]) -> list[float]:
    """Means over questions of sample 0, of sample 1, ...; of those that every question has."""
    by_sample: dict[int, list[float]] = defaultdict(list)
    for found in questions.values():
        for j in found:
            by_sample[j.generation.sample].append(j.score)
    return [_mean(by_sample[i]) for i in sorted(by_sample) if len(by_sample[i]) == len(questions)]


def _identical_repeats(questions: Mapping[str, Sequence[Judged]]) -> float | None:
    """Long answers that were drawn from one prompt are alike, letter by letter, only where a seed was not
    used.
    """
    alike, asked = 0, 0
    for found in questions.values():
        texts = {j.generation.text for j in found}
        prompts = {json.dumps(j.generation.messages, sort_keys=True) for j in found}
        drawn = found[0].generation.settings.get("temperature", 0) > 0
        if drawn and len(found) > 1 and len(prompts) == 1 and min(map(len, texts)) >= _LONG_ENOUGH:
            asked += 1
            alike += len(texts) == 1
    return alike / asked if asked else None


def _categories(judged: Sequence[Judged]) -> list[Category]:
    names = sorted({j.category for j in judged if j.category})
    found = []
    for name in names:
        samples = [j for j in judged if j.category == name]
        means = [_mean([j.score for j in q]) for q in by_question(samples).values()]
        score = clustered(means, len(samples))
        found.append(Category(name=name, score=score, questions=len(means), samples=len(samples)))
    return found


def _summary(task: Task, items: Mapping[str, Item], judged: Sequence[Judged]) -> dict[str, float]:
    if task.summary is None:
        return {}
    graded = [
        Graded(
            item=items[j.generation.item],
            sample=j.generation.sample,
            verdict=Verdict(score=j.score, extracted=j.extracted, note=j.note, details=j.details),
        )
        for j in judged
    ]
    return {name: float(value) for name, value in task.summary(graded).items()}


def _notes(
    source: Source,
    questions: Mapping[str, Sequence[Judged]],
    runs: Sequence[float],
    judged: Sequence[Judged],
) -> list[str]:
    """What a reader of the numbers has to know."""
    notes = []
    most = max(map(len, questions.values()))
    short = sum(len(found) < most for found in questions.values())
    absent = source.questions - len(questions)
    if absent or short:
        notes.append(
            f"Incomplete: {absent} of {source.questions} questions have no sample, {short} have fewer "
            f"than {most}. Short answers end first and are more often right: the score of a part is too high."
        )
    if short:
        notes.append(
            f"Across runs: over the {len(runs)} of {most} samples that every question has. "
            "pass@k, maj@k: over the questions that have k samples."
        )
    if (_identical_repeats(questions) or 0) > 0.5:
        notes.append(
            "Most questions' samples are copies of one: whoever generated them ignored the seed, and the "
            "mean over samples is one of single answers."
        )
    if any(j.score not in (0, 1) for j in judged):
        notes.append("Scores between 0 and 1 have no pass@k.")
    cut = sum(j.generation.truncated for j in judged) / len(judged)
    if cut > 0.02:
        notes.append(
            f"{cut:.0%} of the samples ran out of tokens and mostly count as wrong; the score is one of "
            "this limit, raise max_tokens to measure the model."
        )
    if len(questions) < 100 and most > 1:
        width = clustered([_mean([j.score for j in q]) for q in questions.values()], len(judged))
        notes.append(
            f"{len(questions)} questions: the interval is {100 * (width.high - width.low):.0f} points "
            "wide, and more samples a question hardly narrow it."
        )
    if source.task.published:
        notes.append(_UNKNOWN_PROTOCOL)
    return notes


def _lengths(values: Sequence[float]) -> Lengths:
    median, p95 = np.quantile(values, [0.5, 0.95])
    return Lengths(
        mean=float(np.mean(values)), median=float(median), p95=float(p95), max=float(np.max(values))
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
