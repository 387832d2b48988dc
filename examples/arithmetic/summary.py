"""What the demo reports: accuracies with intervals, dialogues, plots, on the terminal and in HTML.

Here: tables and their sentences. Not here: statistics (eval/stats.py), HTML itself (gemma4_jax/pages.py).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from eval.stats import compare, wilson
from examples.arithmetic.answers import Answer
from examples.arithmetic.recipe import Recipe
from examples.folder import write_text
from examples.narration import Narration
from gemma4_jax import pages

_HEADER = ("stage", "right", "accuracy (95 % interval)", "well formed")
_CHANGES = ("change", "accuracy difference (95 %)", "lost", "gained", "p (McNemar)")
_DIALOGUES = 3


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A model and its judged answers to the held-out problems, in their order."""

    name: str
    answers: list[Answer]

    @property
    def scores(self) -> list[bool]:
        """Right or wrong, by problem."""
        return [answer.right for answer in self.answers]

    def row(self) -> tuple[str, ...]:
        """Cells of the table of accuracies."""
        n, right = len(self.answers), sum(self.scores)
        formed = sum(answer.well_formed for answer in self.answers)
        return self.name, f"{right} of {n}", str(wilson(right, n)), f"{formed} of {n}"

    def line(self) -> str:
        """One line for people."""
        _, right, accuracy, formed = self.row()
        return f"{right} right, accuracy {accuracy}; {formed} well formed"


def by_steps(stages: Sequence[Stage]) -> list[tuple[str, ...]]:
    """Accuracy by the number of steps in a problem, one row a number, one column a stage."""
    rows = []
    for steps in (1, 2, 3):
        chosen = [
            i for i, a in enumerate(stages[0].answers) if len(a.chain.split()) == 2 * steps + 1
        ]
        if chosen:
            scores = [sum(stage.scores[i] for i in chosen) for stage in stages]
            cells = [str(wilson(right, len(chosen))) for right in scores]
            rows.append((f"{steps} ({len(chosen)} problems)", *cells))
    return rows


def changes(stages: Sequence[Stage]) -> list[tuple[str, ...]]:
    """What each stage changed, problem by problem."""
    rows: list[tuple[str, ...]] = []
    for before, after in pairwise(stages):
        change = compare(before.scores, after.scores)
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
    """Tables and three dialogues, on the terminal."""
    say = narration.say
    say(pages.text_table(_HEADER, [stage.row() for stage in stages]))
    say("")
    say(pages.text_table(_CHANGES, changes(stages)))
    say("")
    say(pages.text_table(("steps", *(s.name for s in stages)), by_steps(stages)))
    for i in range(min(_DIALOGUES, len(stages[0].answers))):
        first = stages[0].answers[i]
        say(f"\n  held-out problem {i + 1}: {first.question}  (expected: {first.expected})")
        for stage in stages:
            answer = stage.answers[i]
            mark = "right" if answer.right else "wrong"
            text = f"thinks {_one_line(answer.thought)!r}, answers {_one_line(answer.content)!r}"
            say(f"    {stage.name} ({mark}): {text}")


def write_report(
    recipe: Recipe,
    folder: Path,
    stages: Sequence[Stage],
    pairs: Sequence[dict[str, Any]],
    transcripts: Sequence[str],
    seconds: Sequence[tuple[str, float, float]],
) -> Path:
    """The HTML file; returns its path."""
    parts = [
        pages.paragraph(
            f"A tiny Gemma 4 from random weights. Every number was measured in this run, greedily, on "
            f"{len(stages[0].answers)} held-out problems whose chains of operations were never "
            "trained on."
        ),
        pages.heading("Accuracy"),
        pages.table(_HEADER, [stage.row() for stage in stages], "Wilson intervals"),
        pages.table(_CHANGES, changes(stages), "The same problems before and after"),
        pages.table(("steps", *(s.name for s in stages)), by_steps(stages), "By number of steps"),
        pages.heading("Three dialogues"),
        pages.paragraph("The first three held-out problems, whatever came of them."),
    ]
    for i in range(min(_DIALOGUES, len(stages[0].answers))):
        first = stages[0].answers[i]
        parts.append(pages.said("user", f"{first.question} (expected: {first.expected})"))
        for stage in stages:
            a = stage.answers[i]
            parts.append(pages.said(stage.name, a.content or "no answer", a.thought, a.right))
    parts += [
        pages.heading("What the model writes"),
        pages.verbatim(stages[-1].answers[0].text),
        pages.heading(f"Preference pairs ({len(pairs)})"),
    ]
    for pair in pairs[:_DIALOGUES]:
        parts.append(pages.said("user", pair["prompt"][0]["content"]))
        for side, right in (("chosen", True), ("rejected", False)):
            said = pair[side][0]
            parts.append(pages.said(side, said["content"], said["reasoning"], right))
    parts.append(pages.heading("Training"))
    for name in ("sft", "dpo"):
        plot = folder / name / "metrics.png"
        if plot.exists():
            parts.append(pages.picture(plot, f"{name.upper()}: {plot}"))
    parts += [pages.heading("Through the command line"), *map(pages.verbatim, transcripts)]
    parts += [
        pages.heading("Time and settings"),
        pages.table(
            ("part", "seconds", "CPU seconds"),
            [(title, f"{wall:.0f}", f"{cpu:.0f}") for title, wall, cpu in seconds],
        ),
        pages.table(("setting", "value"), asdict(recipe).items()),
    ]
    file = folder / "report.html"
    write_text(file, pages.page("A tiny Gemma 4 learns arithmetic", parts))
    return file


def _one_line(text: str, most: int = 100) -> str:
    line = text.replace("\n", "; ")
    return line if len(line) <= most else line[:most] + " ..."
