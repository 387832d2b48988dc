"""What `make demo-real` reports: preferences with intervals, plots, on the terminal and in HTML.

Here: tables and their sentences. Not here: statistics (eval/stats.py), HTML itself (gemma4_jax/pages.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from eval.stats import Interval, bootstrap_difference, compare, wilson
from examples.folder import read_rows, write_text
from examples.narration import Narration
from examples.ruff_rules.margins import Scores
from examples.ruff_rules.recipe import MEASURES, Recipe, held_out_file
from gemma4_jax import pages

_HEADER = ("model", "good example likelier (95 %)", "likelier per token (95 %)")
_REWARDS = ("policy against reference", "reward accuracy (95 %)", "mean margin, nats (95 %)")
_CHANGES = ("change", "likelier, difference (95 %)", "lost", "gained", "p (McNemar)")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A model and its scores on the held-out pairs, by name of `MEASURES`."""

    name: str
    scores: Mapping[str, Scores]

    def row(self, kind: str) -> tuple[str, ...]:
        """Cells of the table of preferences."""
        scores = self.scores[kind]
        return self.name, str(share(scores.likelier)), str(share(scores.likelier_per_token))

    def line(self, kind: str) -> str:
        """One line for people."""
        _, whole, per_token = self.row(kind)
        return f"good example likelier than the bad one: {whole}; per token: {per_token}"


def share(right: np.ndarray) -> Interval:
    """Proportion of True, with its interval."""
    return wilson(int(right.sum()), right.size)


def rewards(stages: Sequence[Stage], kind: str) -> list[tuple[str, ...]]:
    """Each stage as policy against the one before as reference."""
    rows: list[tuple[str, ...]] = []
    for before, after in pairwise(stages):
        margins = after.scores[kind].margins(before.scores[kind])
        mean = bootstrap_difference(np.zeros_like(margins), margins)
        cells = str(share(margins > 0)), f"{mean.estimate:.2f} [{mean.low:.2f}, {mean.high:.2f}]"
        rows.append((f"{after.name} against {before.name}", *cells))
    return rows


def changes(stages: Sequence[Stage], kind: str) -> list[tuple[str, ...]]:
    """What each stage changed, pair by pair."""
    rows: list[tuple[str, ...]] = []
    for before, after in pairwise(stages):
        change = compare(before.scores[kind].likelier, after.scores[kind].likelier)
        rows.append(
            (
                f"{before.name} -> {after.name}",
                str(change.difference),
                str(change.only_first),
                str(change.only_second),
                f"{change.p_value:.2g}",
            )
        )
    return rows


def print_results(stages: Sequence[Stage], narration: Narration) -> None:
    """Tables on the terminal."""
    for kind, title in MEASURES.items():
        narration.say(f"  {title}\n")
        for header, rows in _tables(stages, kind):
            narration.say(pages.text_table(header, rows))
            narration.say("")


def _tables(
    stages: Sequence[Stage], kind: str
) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """(header, rows): preferences, log-ratios, and the same pairs before and after."""
    return [
        (_HEADER, [stage.row(kind) for stage in stages]),
        (_REWARDS, rewards(stages, kind)),
        (_CHANGES, changes(stages, kind)),
    ]


def write_report(
    recipe: Recipe,
    folder: Path,
    stages: Sequence[Stage],
    seconds: Sequence[tuple[str, float, float]],
) -> Path:
    """The HTML file; returns its path."""
    parts = [
        pages.paragraph(
            "A tiny Gemma 4 from random weights, trained on the rules of the ruff linter: what they say, "
            "their documented examples, and the linter's own fixes of the standard library. "
            "Every number was measured in this run."
        )
    ]
    for kind, title in MEASURES.items():
        n = len(stages[0].scores[kind].tokens)
        parts.append(pages.heading(f"Preferences: {title} ({n} pairs)"))
        parts += [pages.table(header, rows, "") for header, rows in _tables(stages, kind)]
        for pair in read_rows(held_out_file(folder, kind))[:2]:
            parts.append(pages.said("user", pair["prompt"][0]["content"]))
            for side, right in (("chosen", True), ("rejected", False)):
                parts.append(pages.said(side, "", pair[side][0]["content"], right))
    parts.append(pages.heading("Training"))
    for name in ("sft", "dpo"):
        plot = folder / name / "metrics.png"
        if plot.exists():
            parts.append(pages.picture(plot, f"{name.upper()}: {plot}"))
    parts += [
        pages.heading("Time and settings"),
        pages.table(
            ("part", "seconds", "CPU seconds"),
            [(title, f"{wall:.0f}", f"{cpu:.0f}") for title, wall, cpu in seconds],
        ),
        pages.table(("setting", "value"), asdict(recipe).items()),
    ]
    file = folder / "report.html"
    write_text(file, pages.page("A tiny Gemma 4 learns the rules of a linter", parts))
    return file
