"""What a person sees while a run goes: a bar on a terminal, plain lines elsewhere.

Here: the console alone. Metrics for machines are in metrics.py.
"""

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class Reporter:
    """Prints lines, and keeps a progress bar below them where the output is a terminal."""

    def __init__(self, total: int, done: int):
        """total, done: steps of the whole run, and those already behind it."""
        self._total, self._first, self._start = total, done, time.monotonic()
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=total, completed=done)
            self._bar.start()

    def line(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False)

    def advance(self, step: int) -> None:
        """Move the bar to `step`."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=f"ETA {self.eta(step)}")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics."""
        shown = "  ".join(f"{name} {_number(value)}" for name, value in values.items())
        self.line(f"step {step}/{self._total}  {shown}  ETA {self.eta(step)}")

    def eta(self, step: int) -> str:
        """Time left, from the mean speed since this process started, as h:mm:ss."""
        seconds = (time.monotonic() - self._start) / max(1, step - self._first)
        left = round(seconds * (self._total - step))
        return f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
