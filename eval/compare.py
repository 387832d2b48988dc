"""Two runs side by side, question by question: which model is better, and where.

    python -m eval.compare RUN_A RUN_B [--out compare.html]

A run is a folder that was scored; of one with several models, FOLDER#MODEL takes that one, by name or
fingerprint. Only questions that both have count, and how many were left out is said. Not here: statistics
(stats.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.browser import browser
from eval.charts import Row, percent, whiskers
from eval.judged import Judged, by_question, read_folder
from eval.report import mean_score, model_name, points, write_text
from eval.results import Results, key_of, read_json
from eval.stats import Comparison, bootstrap_difference, clustered, compare, compare_means
from gemma4_jax import pages
from gemma4_jax.errors import UserError, report_user_errors

_HEADER = (
    "benchmark", "questions", "{a}", "{b}", "difference [95 %]", "bootstrap [95 %]",
    "better: {a}, {b}", "p",
)  # fmt: skip
_DIFFERING = 200  # rows of the table of questions


@dataclass(frozen=True, kw_only=True)
class Side:
    """One model's run: results and samples by benchmark."""

    name: str
    results: dict[str, Results]
    judged: dict[str, list[Judged]]


@dataclass(frozen=True, kw_only=True)
class Duel:
    """One benchmark, both sides, over the questions that both have.

    first, second: means of each common question, in the order of `questions`. left_out: questions of one
    alone.
    """

    task: str
    title: str
    questions: list[str]
    first: list[float]
    second: list[float]
    comparison: Comparison
    samples: tuple[int, int]
    left_out: int
    notes: list[str]


def open_side(name: str) -> Side:
    """A run by FOLDER or FOLDER#MODEL. UserError where that leaves two rows of one benchmark."""
    path, _, wanted = name.partition("#")
    results, run = read_json(Path(path) / "results.json")
    judged, _ = read_folder(Path(path))
    chosen: dict[str, Results] = {}
    for r in results:
        label = model_name(r.model, run)
        if wanted and wanted not in (label, r.model):
            continue
        if r.task in chosen:
            known = ", ".join(sorted({model_name(x.model, run) for x in results}))
            raise UserError(
                f"{path} has {r.task} more than once (models: {known}); name one as {path}#MODEL, "
                "or compare folders with one way of asking"
            )
        chosen[r.task] = r
    if not chosen:
        known = ", ".join(sorted({model_name(x.model, run) for x in results}))
        raise UserError(f"{path} has no results of a model {wanted!r} (known: {known})")
    cells = {task: key_of(r) for task, r in chosen.items()}
    found: dict[str, list[Judged]] = {task: [] for task in chosen}
    for task, key in cells.items():
        found[task] = [
            j
            for j in judged
            if (j.generation.task, j.generation.model, j.generation.protocol) == key[:3]
            and dict(j.generation.settings) == dict(chosen[task].settings)
        ]
    label = wanted or Path(path).resolve().name
    return Side(name=label, results=chosen, judged=found)


def duels(a: Side, b: Side) -> list[Duel]:
    """Every benchmark that both sides have. UserError if there is none."""
    common = [task for task in a.results if task in b.results]
    if not common:
        raise UserError(
            f"no benchmark in common: {a.name} has {', '.join(a.results)}; {b.name} has {', '.join(b.results)}"
        )
    return [_duel(task, a, b) for task in common]


def _duel(task: str, a: Side, b: Side) -> Duel:
    one, other = by_question(a.judged[task]), by_question(b.judged[task])
    questions = sorted(one.keys() & other.keys())
    if not questions:
        raise UserError(f"{task}: the runs have no question in common")
    first = [mean_score(one[q]) for q in questions]
    second = [mean_score(other[q]) for q in questions]
    fewest = min(len(found[q]) for q in questions for found in (one, other))
    single = all(x in (0, 1) for x in (*first, *second)) and fewest == 1
    result = compare(first, second) if single else compare_means(first, second, fewest)
    notes = []
    ours, theirs = a.results[task], b.results[task]
    if ours.data.get("sha256") != theirs.data.get("sha256"):
        notes.append("The runs read different files: questions are matched by their names alone.")
    for name in ("protocol", "settings"):
        if getattr(ours, name) != getattr(theirs, name):
            notes.append(
                f"The runs differ in {name}: {getattr(ours, name)} and {getattr(theirs, name)}."
            )
    left_out = len(one.keys() ^ other.keys())
    if left_out:
        notes.append(f"{left_out} questions have samples on one side alone and are left out.")
    return Duel(
        task=task,
        title=ours.title,
        questions=questions,
        first=first,
        second=second,
        comparison=result,
        samples=(sum(len(one[q]) for q in questions), sum(len(other[q]) for q in questions)),
        left_out=left_out,
        notes=notes,
    )


def row(duel: Duel) -> tuple[object, ...]:
    """Cells of the table of differences."""
    n, c = len(duel.questions), duel.comparison
    scores = [
        percent(clustered(means, count))
        for means, count in zip((duel.first, duel.second), duel.samples, strict=True)
    ]
    resampled = points(bootstrap_difference(duel.first, duel.second)) if n > 1 else ""
    return (
        duel.title, n, *scores, points(c.difference), resampled,
        f"{c.only_first}, {c.only_second}", f"{c.p_value:.2g}",
    )  # fmt: skip


def header(a: Side, b: Side) -> list[str]:
    """Of the same table."""
    return [cell.format(a=a.name, b=b.name) for cell in _HEADER]


def page(a: Side, b: Side, found: Sequence[Duel]) -> str:
    """The comparison as one HTML file, with both sides' samples."""
    bars = []
    for duel in found:
        for side, means, count in zip((a, b), (duel.first, duel.second), duel.samples, strict=True):
            bars.append(Row(name=f"{duel.title}, {side.name}", score=clustered(means, count)))
    parts = [
        pages.table(header(a, b), [row(duel) for duel in found]),
        pages.paragraph(
            f"Differences are {b.name} minus {a.name}, in points, question by question: a difference "
            "can be sure where the two intervals below overlap."
        ),
        pages.drawing(whiskers(bars), "Each side alone, on the questions that both have"),
    ]
    for duel in found:
        parts += [pages.paragraph(f"{duel.title}: {note}") for note in duel.notes]
        rows = sorted(
            (
                (q, f"{x:.3g}", f"{y:.3g}", f"{y - x:+.3g}")
                for q, x, y in zip(duel.questions, duel.first, duel.second, strict=True)
                if x != y
            ),
            key=lambda r: float(r[3]),
        )
        if rows:
            parts.append(pages.heading(f"{duel.title}: where they differ ({len(rows)} questions)"))
            most = (
                rows
                if len(rows) <= _DIFFERING
                else rows[: _DIFFERING // 2] + rows[-_DIFFERING // 2 :]
            )
            caption = "" if most is rows else f"the {_DIFFERING // 2} largest each way"
            parts.append(pages.table(("question", a.name, b.name, "difference"), most, caption))
    runs = {}
    for side, mark in ((a, ""), (b, " (second)" if a.name == b.name else "")):
        runs[side.name + mark] = [j for duel in found for j in side.judged[duel.task]]
    parts += [pages.heading("Samples"), *browser(runs)]
    return pages.page(f"{a.name} against {b.name}", parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.compare", description="Compare two scored runs question by question."
    )
    parser.add_argument("first", help="FOLDER or FOLDER#MODEL")
    parser.add_argument("second", help="the same, compared with the first")
    parser.add_argument("--out", type=Path, help="also write this HTML file")
    arguments = parser.parse_args(argv)
    with report_user_errors():
        a, b = open_side(arguments.first), open_side(arguments.second)
        found = duels(a, b)
        print(pages.text_table(header(a, b), [row(duel) for duel in found]))
        for duel in found:
            for note in duel.notes:
                print(f"  {duel.title}: {note}")
        if arguments.out:
            write_text(arguments.out, page(a, b, found))
            print(arguments.out)


if __name__ == "__main__":
    main()
