"""A run as one HTML file: scores with intervals beside published ones, tables, charts, every sample.

    python -m eval.report FOLDER      # writes report.html anew; needs results.json, no model, no data

Where a folder has several checkpoints of a training, scores against their steps. Not here: numbers
(results.py), the list of samples (browser.py), two runs side by side (compare.py).
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.browser import browser
from eval.charts import Row, curves, percent, whiskers
from eval.judged import Judged, by_question, cells, read_folder
from eval.results import Lengths, Results, key_of, read_json
from eval.stats import Interval, compare_means
from gemma4_jax import pages
from gemma4_jax.errors import report_user_errors

# Of a checkpoint: runs/sft/1200, sft/step-1200, checkpoint_1200.
_STEP = re.compile(r"(?:/|step[-_]?|checkpoint[-_])(\d+)$")
_HEADER = (
    "benchmark",
    "model",
    "asked",
    "questions x samples",
    "score [95 %]",
    "published",
    "no answer",
    "cut off",
)


def report(
    title: str, results: Sequence[Results], run: Mapping[str, Any], judged: Sequence[Judged]
) -> str:
    """The page. run: of results.json; its `models` give names to fingerprints."""
    parts = [
        pages.heading("Scores"),
        pages.table(_HEADER, [score_row(r, run) for r in results]),
        pages.drawing(
            whiskers(
                [Row(name=_name(r, run), score=r.score, mark=_mark(r, run)) for r in results],
                "published",
            ),
            "Means over questions with 95 % intervals: how far the score would move with other "
            "questions of the kind.",
        ),
        *steps(results, run, judged),
    ]
    for r in results:
        parts += _section(r, run)
    parts += [pages.heading("Samples"), *browser({"": judged})]
    return pages.page(title, parts)


def table(results: Sequence[Results], run: Mapping[str, Any]) -> str:
    """The scores for a terminal."""
    return pages.text_table(_HEADER, [score_row(r, run) for r in results])


def score_row(r: Results, run: Mapping[str, Any]) -> tuple[str, ...]:
    """Cells of the table of scores, for a page or a terminal."""
    each = r.samples / r.questions
    return (
        r.title,
        model_name(r.model, run),
        asked(r),
        f"{r.questions} x {each:.3g}",
        percent(r.score),
        ", ".join(f"{p.model} {p.value:g}" for p in _published(r, run)),
        f"{r.no_answer:.1%}",
        f"{r.truncated:.1%}",
    )


def asked(r: Results) -> str:
    """Protocol and settings in a few words."""
    words = [r.protocol]
    if "temperature" in r.settings:
        words.append(f"T={r.settings['temperature']:g}")
    if r.settings.get("thinking") is False:
        words.append("no thoughts")
    return " ".join(words)


def model_name(fingerprint: str, run: Mapping[str, Any]) -> str:
    """What a run calls a model; else the fingerprint."""
    return str(run.get("models", {}).get(fingerprint, {}).get("name", fingerprint))


def steps(
    results: Sequence[Results], run: Mapping[str, Any], judged: Sequence[Judged]
) -> list[str]:
    """Scores against the steps of checkpoints, and each checkpoint against the first on the same
    questions.
    """
    lines: dict[str, list[tuple[int, Results]]] = defaultdict(list)
    for r in results:
        ending = _STEP.search(model_name(r.model, run))
        if ending:
            lines[f"{r.title}, {asked(r)}"].append((int(ending[1]), r))
    lines = {
        name: sorted(found, key=lambda f: f[0]) for name, found in lines.items() if len(found) > 1
    }
    if not lines:
        return []
    samples = cells(judged)
    rows = []
    for name, found in lines.items():
        first = found[0][1]
        for step, r in found:
            change = (
                ""
                if r is first
                else paired(samples.get(key_of(first), ()), samples.get(key_of(r), ()))
            )
            rows.append((name, step, percent(r.score), change))
    drawn = {name: [(float(step), r.score) for step, r in found] for name, found in lines.items()}
    return [
        pages.heading("Checkpoints"),
        pages.drawing(curves(drawn, "step"), "Scores against steps, 95 % intervals"),
        pages.table(
            ("benchmark", "step", "score [95 %]", "against the first [95 %], p"),
            rows,
            "The last column compares question by question, and is surer than two intervals side by side",
        ),
    ]


def paired(first: Sequence[Judged], second: Sequence[Judged]) -> str:
    """The difference of two cells on their common questions, in a cell of a table."""
    one, other = by_question(first), by_question(second)
    common = sorted(one.keys() & other.keys())
    if not common:
        return "no common question"
    fewest = min(len(found[item]) for item in common for found in (one, other))
    a, b = ([mean_score(found[item]) for item in common] for found in (one, other))
    change = compare_means(a, b, fewest)
    return f"{points(change.difference)}, p = {change.p_value:.2g}"


def points(difference: Interval) -> str:
    """A difference in points: +3.1 [-1.0, 7.2]."""
    d = difference
    return f"{100 * d.estimate:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"


def mean_score(judged: Sequence[Judged]) -> float:
    """Of one question's samples."""
    return sum(j.score for j in judged) / len(judged)


def _section(r: Results, run: Mapping[str, Any]) -> list[str]:
    low, high = r.samples_each
    rows = [
        (f"{r.name} [95 %]", percent(r.score)),
        ("bootstrap over questions [95 %]", "" if r.bootstrap is None else percent(r.bootstrap)),
        ("standard error, other questions", _share(r.standard_error)),
        ("standard error, same questions again", _share(r.standard_error_across_runs)),
        ("questions", str(r.questions)),
        (
            "samples",
            f"{r.samples} of {r.samples_asked}, {low if low == high else f'{low} to {high}'} a question",
        ),
        ("no answer found", f"{r.no_answer:.1%}"),
        ("ran out of tokens", f"{r.truncated:.1%}"),
        ("thought did not end", f"{r.unfinished_thoughts:.1%}"),
        *((name, f"{value:g}") for name, value in r.summary.items()),
    ]
    parts = [pages.heading(f"{r.title}: {model_name(r.model, run)}, {asked(r)}")]
    parts += [pages.paragraph(note) for note in r.notes]
    parts.append(pages.table(("", ""), rows))
    at_k = [("pass", a) for a in r.pass_at_k if a.k > 1] + [("maj", a) for a in r.majority_at_k]
    if at_k:
        parts.append(
            pages.table(
                ("", "score [95 %]", "questions"),
                [(f"{kind}@{a.k}", percent(a.score), a.questions) for kind, a in at_k],
                "What several samples are worth together",
            )
        )
    parts.append(
        pages.table(
            ("of a sample", "mean", "median", "95th percentile", "most"),
            [
                _length_row("prompt tokens", r.prompt_tokens),
                _length_row("thought tokens", r.thought_tokens),
                _length_row("answer tokens", r.answer_tokens),
                _length_row("seconds", r.seconds),
            ],
        )
    )
    if r.categories:
        names = [Row(name=f"{c.name} ({c.questions})", score=c.score) for c in r.categories]
        parts.append(pages.drawing(whiskers(names), "By category; in brackets, questions"))
    published = [(p.model, f"{p.value:g}", p.source) for p in r.published]
    if published:
        parts.append(pages.table(("model", "published", "where"), published))
    about = {"model": r.model, **r.data, **r.settings}
    parts.append(pages.table(("setting", "value"), about.items()))
    return parts


def _published(r: Results, run: Mapping[str, Any]) -> list[Any]:
    """Of the same model, where its name tells; else none: another size's number would mislead."""
    words = model_name(r.model, run).lower().replace("_", "-")
    fitting = [p for p in r.published if p.model.lower() in words]
    # Of two names that both fit the longer is meant.
    longest = max((len(p.model) for p in fitting), default=0)
    return [p for p in fitting if len(p.model) == longest]


def _mark(r: Results, run: Mapping[str, Any]) -> float | None:
    """A published percentage as a share; an Elo has no place on the scale."""
    found = [p.value / 100 for p in _published(r, run)]
    return found[0] if found and 0 <= found[0] <= 1 else None


def _name(r: Results, run: Mapping[str, Any]) -> str:
    return f"{r.title}, {model_name(r.model, run)}"


def _length_row(name: str, lengths: Lengths) -> tuple[str, ...]:
    numbers = (lengths.mean, lengths.median, lengths.p95, lengths.max)
    return (name, *(f"{n:,.1f}" if name == "seconds" else f"{n:,.0f}" for n in numbers))


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} points"


def write_report(folder: Path) -> Path:
    """Write report.html from what lies in a run's folder; returns its path. UserError if it was not
    scored.
    """
    results, run = read_json(folder / "results.json")
    judged, _ = read_folder(folder)
    file = folder / "report.html"
    write_text(file, report(f"Evaluation {folder.resolve().name}", results, run, judged))
    return file


def write_text(file: Path, text: str) -> None:
    """Write a file that is there whole or not at all; what no UTF-8 can hold becomes a question mark."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text, "utf-8", errors="replace")
    temporary.replace(file)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.report", description="A scored run as one HTML file."
    )
    parser.add_argument("folder", type=Path, help="folder of a run that was scored")
    arguments = parser.parse_args(argv)
    with report_user_errors():
        print(write_report(arguments.folder))


if __name__ == "__main__":
    main()
