"""The page that a finished run leaves behind: curves, numbers, samples, data, configuration.

Here: what is reported. Not here: HTML itself (gemma4_jax/pages.py), the plot (metrics.py).
"""

import math
from collections.abc import Sequence
from pathlib import Path

from configs.schema import AnyConfig, flatten
from gemma4_jax import pages
from train import metrics, samples
from train.workdir import Workdir

# Shown at the start and at the end, if the run has them.
_KEY = (
    *("loss", "validation_loss", "mean_token_accuracy", "rewards/accuracies", "rewards/margins"),
    *("grad_norm", "entropy", "skipped", "tokens_per_second", "tflops_per_device", "mfu"),
    "memory_gib",
)


def write_report(
    workdir: Workdir,
    config: AnyConfig,
    about: Sequence[tuple[str, object]],
    prompts: Sequence[samples.Prompt],
) -> Path:
    """Write report.html; returns its path.

    about: (name, value) rows about the model, the data and the run. prompts: those of samples.jsonl.
    """
    rows = metrics.read(workdir.metrics)
    parts = [pages.table(("run", ""), about)]
    if rows:
        shown = [name for name in _KEY if any(row.get(name) is not None for row in rows)]
        parts += [
            pages.heading("Metrics"),
            pages.table(
                ("metric", f"step {rows[0]['step']}", f"step {rows[-1]['step']}"),
                [(name, _number(rows[0].get(name)), _number(rows[-1].get(name))) for name in shown],
            ),
        ]
    if workdir.plot.exists():
        parts.append(pages.picture(workdir.plot, "Curves; all numbers are in metrics.jsonl"))
    parts += _dialogues(samples.read(workdir.samples), prompts)
    parts += [
        pages.heading("Configuration"),
        pages.table(("setting", "value"), [(name, repr(value)) for name, value in flatten(config)]),
    ]
    temporary = workdir.report.with_suffix(".tmp")
    temporary.write_text(pages.page(f"Training run {workdir.path.name}", parts))
    temporary.replace(workdir.report)
    return workdir.report


def _dialogues(answers: Sequence[samples.Answers], prompts: Sequence[samples.Prompt]) -> list[str]:
    """Each prompt with what the data say and what the model answered each time."""
    if not answers or not prompts:
        return []
    parts = [
        pages.heading("Samples"),
        pages.paragraph(
            "The first prompts of the training data, answered greedily; answers are cut where they get long."
        ),
    ]
    for number, prompt in enumerate(prompts):
        parts += [pages.verbatim(prompt.text), pages.said("in the data", prompt.wanted)]
        for each in answers:
            if number < len(each.texts):
                when = "before training" if each.step == 0 else f"after step {each.step}"
                parts.append(pages.said(when, each.texts[number]))
    return parts


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.4g}"
