"""From judged samples to the numbers of a benchmark: one `Results` a cell.

Every number is over questions first: a question's samples are averaged, then questions. What is missing is
said in `notes`, never filled in.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.judged import CellKey, Judged, by_question, cells
from eval.repeats import across_runs, majority_at_k, pass_at_k, powers_of_two
from eval.results import AtK, Category, Lengths, Results
from eval.stats import bootstrap, clustered, standard_error
from eval.task import Graded, Item, Task, Verdict
from gemma4_jax.errors import UserError

# Characters; shorter answers ("B") may well be alike by chance.
_LONG_ENOUGH = 200
_UNKNOWN_PROTOCOL = (
    "Published scores: prompts, samples a question, token limits and extraction are not published, so a "
    "difference of a few points says little."
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was asked: a benchmark, its items, and what is known of their file (`path`, `sha256`)."""

    task: Task
    items: Sequence[Item]
    data: Mapping[str, Any] = field(default_factory=dict)


def summarize(source: Source, judged: Sequence[Judged], planned: int | None = None) -> Results:
    """The numbers of one cell. planned: samples of a complete run; None: as many of every item as of one.

    Raises ValueError without samples, or for samples of an item that it does not have.
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
    if planned is None:
        planned = max(counts) * len(items)
    votes = not source.task.runs_programs and _votes_compare(questions)
    return Results(
        task=source.task.name,
        title=source.task.title,
        model=first.model,
        protocol=first.protocol,
        settings=dict(first.settings),
        questions=len(questions),
        samples=n,
        samples_asked=planned,
        samples_each=(min(counts), max(counts)),
        score=clustered(means, n),
        bootstrap=bootstrap(means) if len(means) > 1 else None,
        standard_error=standard_error(means),
        standard_error_across_runs=across_runs(runs),
        pass_at_k=_pass_at_k(questions),
        majority_at_k=_majority_at_k(questions) if votes else [],
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
        notes=_notes(source.task, questions, len(runs), planned),
    )


def summarize_all(
    sources: Mapping[str, Source],
    judged: Sequence[Judged],
    planned: Mapping[CellKey, int] | None = None,
) -> list[Results]:
    """One `Results` a cell. sources: by name of the task. planned: samples of a complete run, by cell.

    Raises UserError for samples of a task that is not there.
    """
    found = []
    for key, samples in cells(judged).items():
        if key.task not in sources:
            raise UserError(
                f"there are samples of {key.task}, and no data of it; name its file as the run did"
            )
        found.append(summarize(sources[key.task], samples, (planned or {}).get(key)))
    return found


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


def _votes_compare(questions: Mapping[str, Sequence[Judged]]) -> bool:
    """Whether equal votes mean equal answers: letters of choices that each sample saw in another order do
    not.
    """
    for found in questions.values():
        prompts = {json.dumps(j.generation.messages, sort_keys=True) for j in found}
        if len(prompts) > 1 and not all("vote" in j.details or j.extracted is None for j in found):
            return False
    return True


def _notes(
    task: Task, questions: Mapping[str, Sequence[Judged]], runs: int, planned: int
) -> list[str]:
    """What a reader of the numbers has to know."""
    notes = []
    judged = [j for found in questions.values() for j in found]
    most = max(map(len, questions.values()))
    if len(judged) < planned:
        notes.append(
            f"Incomplete: {planned - len(judged)} of {planned} samples are missing. Short answers end first "
            "and are more often right: the score of a part may be too high."
        )
    if short := sum(len(found) < most for found in questions.values()):
        notes.append(
            f"{short} of {len(questions)} questions have fewer than {most} samples. Across runs: over the "
            f"{runs} that every question has. pass@k, maj@k: over the questions that have k."
        )
    if (_identical_repeats(questions) or 0) > 0.5:
        notes.append(
            "Most questions' samples are copies of one: whoever generated them ignored the seed, and the "
            "mean over samples is one of single answers."
        )
    if any(j.score not in (0, 1) for j in judged):
        notes.append("Scores between 0 and 1 have no pass@k.")
    if most > 3 and not task.runs_programs and not _votes_compare(questions):
        notes.append(
            "No maj@k: samples of a question had different prompts, and the task gives no `vote` that "
            "means the same in all of them."
        )
    cut = sum(j.generation.truncated for j in judged) / len(judged)
    if cut > 0.02:
        notes.append(
            f"{cut:.0%} of the samples ran out of tokens and mostly count as wrong; the score is one of "
            "this limit, raise max_tokens to measure the model."
        )
    if len(questions) < 100 and most > 1:
        score = clustered([_mean([j.score for j in q]) for q in questions.values()], len(judged))
        notes.append(
            f"{len(questions)} questions: the interval is {100 * (score.high - score.low):.0f} points "
            "wide, and more samples a question hardly narrow it."
        )
    if task.published:
        notes.append(_UNKNOWN_PROTOCOL)
    return notes


def _lengths(values: Sequence[float]) -> Lengths:
    median, p95 = np.quantile(values, [0.5, 0.95])
    return Lengths(
        mean=float(np.mean(values)), median=float(median), p95=float(p95), max=float(np.max(values))
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
