"""What generations and verdicts add up to: one row for each benchmark, model and way of asking.

Here: pure functions from lines to numbers, as results.json has them. Not here: statistics (stats.py,
repeats.py), files (score.py).
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval import repeats, stats
from eval.store import Generation
from eval.task import Graded, Item, Task
from eval.verdicts import Judged
from gemma4_jax import pages

# Shorter answers ("B") may well be alike by chance.
_LONG_ENOUGH = 200


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A generation and its verdict."""

    generation: Generation
    judged: Judged


def cell_of(generation: Generation) -> tuple[str, str, str, str]:
    """What tells rows of the results apart: benchmark, model, protocol, settings (as text)."""
    settings = json.dumps(generation.settings, sort_keys=True)
    return generation.task, generation.model, generation.protocol, settings


def by_cell(
    generations: Iterable[Generation], verdicts: Mapping[str, Judged]
) -> dict[tuple[str, str, str, str], list[Sample]]:
    """Judged generations by row; verdicts: by key. Those without a verdict are left out."""
    cells: dict[tuple[str, str, str, str], list[Sample]] = defaultdict(list)
    for one in generations:
        if one.key in verdicts:
            cells[cell_of(one)].append(Sample(generation=one, judged=verdicts[one.key]))
    return dict(sorted(cells.items()))


def row(task: Task, items: Mapping[str, Item], samples: Sequence[Sample]) -> dict[str, Any]:
    """Everything that is said of one cell. items: by id. samples: at least one."""
    samples = sorted(samples, key=lambda s: (s.judged.item, s.judged.sample))
    first = samples[0].generation
    questions = _by_item(samples)
    found: dict[str, Any] = {
        "task": task.name,
        "title": task.title,
        "model": first.model,
        "protocol": first.protocol,
        "settings": dict(first.settings),
        "questions": len(questions),
        "answers": len(samples),
        **scores(questions),
        "by_category": _by_category(items, questions),
        **_rates(samples),
        "tokens": {
            part: _spread([getattr(s.generation, f"{part}_tokens") for s in samples])
            for part in ("prompt", "thought", "answer")
        },
        "seconds": _spread([s.generation.seconds for s in samples]),
        "identical_repeats": identical_repeats(questions),
        "published": [asdict(p) for p in task.published],
    }
    if task.summary is not None:
        graded = [
            Graded(item=items[s.judged.item], sample=s.judged.sample, verdict=s.judged.verdict)
            for s in samples
        ]
        found["summary"] = dict(task.summary(graded))
    return found


def scores(questions: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """The mean of questions' means with its interval, and what several answers are worth together."""
    values = [[s.judged.score for s in found] for found in questions.values()]
    means = [sum(v) / len(v) for v in values]
    fewest = min(map(len, values))
    total = sum(map(len, values))
    result: dict[str, Any] = {
        "score": asdict(stats.clustered(means, total)),
        "standard_error": stats.standard_error(means),
        "across_runs": repeats.across_runs(
            [sum(v[i] for v in values) / len(values) for i in range(fewest)]
        ),
    }
    sizes = repeats.powers_of_two(fewest)
    if all(x in (0, 1) for v in values for x in v):
        right = [(round(sum(v)), len(v)) for v in values]
        result["pass_at_k"] = {
            str(k): _mean([repeats.pass_at_k(r, n, k) for r, n in right]) for k in sizes
        }
    votes = [[s.judged.extracted for s in found] for found in questions.values()]
    result["majority_at_k"] = {
        str(k): _mean([repeats.majority_at_k(w, v, k) for w, v in zip(votes, values, strict=True)])
        for k in sizes
    }
    return result


def identical_repeats(questions: Mapping[str, Sequence[Sample]]) -> float | None:
    """Share of questions whose long answers to one prompt are all alike, letter by letter, though drawn.

    Near 1 the seed was not used, and the samples are copies of one. None where nothing can be said.
    """
    alike, asked = 0, 0
    for found in questions.values():
        texts = [s.generation.text for s in found]
        prompts = {json.dumps(s.generation.messages, sort_keys=True) for s in found}
        drawn = found[0].generation.settings.get("temperature", 0) > 0
        if drawn and len(texts) > 1 and len(prompts) == 1 and min(map(len, texts)) >= _LONG_ENOUGH:
            asked += 1
            alike += len(set(texts)) == 1
    return alike / asked if asked else None


def table(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """For a terminal. names: of models, by fingerprint."""
    header = (
        "benchmark", "model", "asked", "items x answers", "score (95 %)",
        "truncated", "no answer", "tokens",
    )  # fmt: skip
    lines = []
    for one in rows:
        score = one["score"]
        lines.append(
            (
                one["task"],
                names.get(one["model"], one["model"]),
                asked(one),
                f"{one['questions']} x {one['answers'] / one['questions']:.3g}",
                f"{score['estimate']:.3f} [{score['low']:.3f}, {score['high']:.3f}]",
                f"{one['truncated']:.1%}",
                f"{one['no_answer']:.1%}",
                f"{one['tokens']['thought']['mean'] + one['tokens']['answer']['mean']:.0f}",
            )
        )
    return pages.text_table(header, lines)


def asked(one: Mapping[str, Any]) -> str:
    """Protocol and draws in a few letters."""
    settings = one["settings"]
    words = [one["protocol"], f"T={settings['temperature']:g}"]
    if one["protocol"] == "thinking" and not settings["thinking"]:
        words.append("no thoughts")
    return " ".join(words)


def _by_item(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = defaultdict(list)
    for one in samples:
        found[one.judged.item].append(one)
    return dict(found)


def _by_category(
    items: Mapping[str, Item], questions: Mapping[str, Sequence[Sample]]
) -> dict[str, Any]:
    groups: dict[str, dict[str, Sequence[Sample]]] = defaultdict(dict)
    for item, found in questions.items():
        if items[item].category:
            groups[items[item].category][item] = found
    result = {}
    for name, group in sorted(groups.items()):
        means = [_mean([s.judged.score for s in found]) for found in group.values()]
        interval = stats.clustered(means, sum(map(len, group.values())))
        result[name] = {"questions": len(group), "score": asdict(interval)}
    return result


def _rates(samples: Sequence[Sample]) -> dict[str, float]:
    n = len(samples)
    return {
        "truncated": sum(s.generation.truncated for s in samples) / n,
        "unfinished_thought": sum(s.generation.unfinished_thought for s in samples) / n,
        "no_answer": sum(s.judged.extracted is None for s in samples) / n,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": round(_mean(values), 3),
        "median": statistics.median(values),
        "max": max(values),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
