"""What rounds leave behind: accuracy, what changed, pairs and why not, drift; as Markdown, HTML and a picture.

All of it is read from the files of the rounds, so it can be written at any time. Not here: measuring
(measure.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from configs.schema import flatten
from configs.verifiable import RLAIFConfig
from gemma4_jax import pages
from gemma4_jax.verify.clusters import compare_means
from gemma4_jax.verify.intervals import Interval, compare
from train.verifiable.draw import draw
from train.verifiable.files import read_json, read_rows, write_text
from train.verifiable.measure import right_shares
from train.verifiable.prompts import PromptFile

_EXAMPLES = 3
_TITLE = "Verifiable preferences"
_DRIFT = (
    "Mean of log p(policy) - log p(start) of the policy's own first answer to each held-out prompt, in nats; "
    "an estimate of the KL divergence where answers are drawn at temperature 1 without filters."
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its title and one sentence on it."""

    title: str
    about: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]


def write_report(folder: Path, config: RLAIFConfig, held_out: Sequence[PromptFile]) -> Path:
    """report.md, report.html and report.svg of all rounds that are there; returns the page's path."""
    measured = _numbered(folder, "evaluation.json")
    gathered = _numbered(folder, "pairs.json")
    tables = [
        *_accuracy(measured, held_out, config),
        *_changes(folder, measured, held_out, config.sampling.evaluation_samples),
        _pairs(gathered),
        _reasons(gathered, "prompts", "What became of prompts"),
        _reasons(gathered, "answers", "What became of answers"),
        _reasons(gathered, "wrong because", "Why answers were wrong"),
        _drift(measured),
    ]
    tables = [table for table in tables if table.rows]
    svg = draw(measured, gathered)
    write_text(folder / "report.svg", svg)
    last = max(gathered, default=0)
    rows = read_rows(folder / f"round_{last}" / "pairs.jsonl")[:_EXAMPLES] if last else []
    write_text(folder / "report.md", _markdown(tables, rows))
    page = folder / "report.html"
    # Without the head that a file needs and a page must not have.
    inside = svg[svg.index("<svg") :]
    parts = [
        pages.drawing(inside, "Accuracy on held-out prompts with 95 % intervals, pairs, drift")
    ]
    for table in tables:
        parts += [pages.heading(table.title), pages.table(table.header, table.rows, table.about)]
    parts.append(pages.heading(f"Pairs of round {last}"))
    for row in rows:
        parts.append(pages.verbatim(row["prompt"]))
        for side, right in (("chosen", True), ("rejected", False)):
            reason = row["provenance"][side]["reason"]
            parts.append(
                pages.said(side + (f": {reason}" if reason else ""), row[side], right=right)
            )
    parts += [pages.heading("Settings"), pages.table(("setting", "value"), flatten(config))]
    write_text(page, pages.page(_TITLE, parts))
    return page


def _markdown(tables: Sequence[Table], rows: Sequence[Mapping[str, Any]]) -> str:
    parts = [f"# {_TITLE}", "![Accuracy, pairs, drift](report.svg)"]
    for table in tables:
        parts += [f"## {table.title}", table.about]
        parts.append(pages.markdown_table(table.header, table.rows))
    for row in rows:
        parts.append(
            "```\n" + "\n--\n".join(row[k] for k in ("prompt", "chosen", "rejected")) + "\n```"
        )
    return "\n\n".join(filter(None, parts)) + "\n"


def _numbered(folder: Path, name: str) -> dict[int, dict[str, Any]]:
    """By round, what its file of this name says; rounds without one are left out."""
    found = {}
    for each in folder.glob("round_*"):
        if (said := read_json(each / name)) is not None:
            found[int(each.name.removeprefix("round_"))] = said
    return dict(sorted(found.items()))


def _accuracy(
    measured: Mapping[int, Any], held_out: Sequence[PromptFile], config: RLAIFConfig
) -> Iterable[Table]:
    heat, samples = config.sampling.evaluation_temperature, config.sampling.evaluation_samples
    how = f"temperature {heat:g}" if heat else "greedy"
    if samples == 1:
        about = f"One answer to each held-out prompt, {how}; Wilson intervals of 95 %."
    else:
        about = (
            f"{samples} answers to each held-out prompt, {how}; intervals of 95 % over prompts: answers to one "
            "prompt are alike."
        )
    for file in held_out:
        each = {number: said["sets"][file.name] for number, said in measured.items()}
        yield Table(
            title=f"Accuracy: {file.name}",
            about=about,
            header=(
                "round",
                "prompts",
                "right",
                "accuracy",
                "cut off",
                "unverifiable",
                "tokens an answer",
            ),
            rows=[
                (
                    number,
                    s["prompts"],
                    f"{s['right']} of {s['answers']}",
                    Interval(s["accuracy"], s["low"], s["high"]),
                    s["truncated"],
                    s["unverifiable"],
                    f"{s['tokens']:.1f}",
                )
                for number, s in each.items()
            ],
        )


def _changes(
    folder: Path, measured: Mapping[int, Any], held_out: Sequence[PromptFile], samples: int
) -> Iterable[Table]:
    numbers = list(measured)
    steps = [*pairwise(numbers)]
    if len(numbers) > 2:
        steps.append((numbers[0], numbers[-1]))
    for file in held_out:
        right = {n: right_shares(folder / f"round_{n}", file, samples) for n in numbers}
        rows = []
        for before, after in steps:
            if samples == 1:
                change = compare(right[before], right[after])
            else:
                change = compare_means(right[before], right[after], samples)
            rows.append(
                (
                    f"{before} -> {after}",
                    str(change.difference),
                    change.only_first,
                    change.only_second,
                    f"{change.p_value:.2g}",
                )
            )
        yield Table(
            title=f"Change: {file.name}",
            about="The same prompts before and after, worse on how many and better on how many; "
            + (
                "McNemar's exact test." if samples == 1 else "differences' signs flipped at random."
            ),
            header=("rounds", "difference (95 %)", "worse", "better", "p"),
            rows=rows,
        )


def _pairs(gathered: Mapping[int, Any]) -> Table:
    rows = []
    for number, said in gathered.items():
        told = said["right"].items()
        rows.append(
            (
                number,
                ", ".join(f"{kind} {n['right'] / max(n['answers'], 1):.3f}" for kind, n in told),
                said["pairs"],
                ", ".join(f"{kind} {n}" for kind, n in said["pairs by verifier"].items()),
                f"{said['tokens of chosen']:.1f}",
                f"{said['tokens of rejected']:.1f}",
            )
        )
    return Table(
        title="Pairs",
        about="Of the policy before each round: how often its samples were right, and what pairs they gave.",
        header=("round", "right samples", "pairs", "by verifier", "tokens chosen", "rejected"),
        rows=rows,
    )


def _reasons(gathered: Mapping[int, Any], name: str, title: str) -> Table:
    reasons = sorted({reason for said in gathered.values() for reason in said[name]})
    most = {r: max(said[name].get(r, 0) for said in gathered.values()) for r in reasons}
    shown = sorted(reasons, key=lambda reason: -most[reason])[:12]
    return Table(
        title=title,
        about="",
        header=("", *(f"round {number}" for number in gathered)),
        rows=[
            (
                reason or "(no reason given)",
                *(said[name].get(reason, 0) for said in gathered.values()),
            )
            for reason in shown
        ],
    )


def _drift(measured: Mapping[int, Any]) -> Table:
    return Table(
        title="Drift from the start",
        about=_DRIFT,
        header=("round", "nats an answer (95 %)", "nats a token"),
        rows=[
            (
                number,
                Interval(d["nats"], d["low"], d["high"]),
                f"{d['nats_per_token']:.4f}",
            )
            for number, said in measured.items()
            if (d := said["drift"])["answers"]
        ],
    )
