"""The picture of a run: accuracy with intervals, pairs, drift, over rounds. Not here: tables (report.py)."""

import io
from collections.abc import Mapping
from typing import Any


def draw(measured: Mapping[int, Any], gathered: Mapping[int, Any]) -> str:
    """An SVG of three panels. measured, gathered: evaluation.json and pairs.json by round."""
    # matplotlib takes half a second to import: only a report pays for it.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # The same rounds give the same file: no date in it, and ids that are not random.
    with rc_context({"svg.hashsalt": "rounds", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        accuracy, pairs, drift = figure.subplots(1, 3)
        rounds = list(measured)
        for name in dict.fromkeys(name for said in measured.values() for name in said["sets"]):
            each = [said["sets"][name] for said in measured.values()]
            middle = [s["accuracy"] for s in each]
            below = [s["accuracy"] - s["low"] for s in each]
            above = [s["high"] - s["accuracy"] for s in each]
            accuracy.errorbar(
                rounds, middle, yerr=[below, above], marker="o", capsize=3, label=name
            )
        accuracy.set(title="accuracy on held-out prompts", ylim=(0, 1))
        if rounds:
            accuracy.legend(loc="lower right")
        pairs.bar(list(gathered), [said["pairs"] for said in gathered.values()], width=0.6)
        pairs.set(title="pairs")
        gone = {n: said["drift"] for n, said in measured.items() if said["drift"]["answers"]}
        drift.errorbar(
            list(gone),
            [d["nats"] for d in gone.values()],
            yerr=[d["high"] - d["nats"] for d in gone.values()],
            marker="o",
            capsize=3,
        )
        drift.set(title="drift from the start, nats an answer")
        for axis in (accuracy, pairs, drift):
            axis.set_xlabel("round")
            axis.set_xticks(sorted({*measured, *gathered}))
            axis.grid(alpha=0.3)
        text = io.StringIO()
        canvas.print_svg(text, metadata={"Date": None})
    return text.getvalue()
