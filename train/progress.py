"""What a person sees while a run goes: a bar on a terminal, plain lines elsewhere.

Here: the console alone. Metrics for machines are in metrics.py.
"""

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from gemma4_jax.distributed import is_main

_SHORT = {
    "learning_rate": "lr",
    "tokens_per_second": "tokens/s",
    "tflops_per_device": "TFLOP/s",
    "memory_gib": "GiB",
}
_TROUBLE = ("bad_steps", "skipped")
_TOO_MANY = "moe/load/"  # one number an expert: for files, not for a line


class Reporter:
    """Prints lines, and keeps a progress bar below them where the output is a terminal."""

    def __init__(self, total: int, done: int):
        """total, done: steps of the whole run, and those already behind it."""
        self._total, self._done = total, done
        self._start: float | None = None
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        if self._console.is_terminal and is_main():
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
        """Print one line, once for all processes."""
        if not is_main():
            return
        self._console.print(text, markup=False)

    def advance(self, step: int) -> None:
        """Say that `step` steps are done."""
        if self._start is None:
            # The first step of a process compiles: time runs from its end.
            self._start, self._first = time.monotonic(), step
        self._done = step
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=f"ETA {self.eta()}")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics: the loss first, counters of trouble only where there was any."""
        names = ["loss", *sorted(name for name in values if name != "loss")]
        shown = [
            f"{_SHORT.get(name, name)} {_number(values[name])}"
            for name in names
            if (values[name] or name not in _TROUBLE) and not name.startswith(_TOO_MANY)
        ]
        self.line(f"step {step}/{self._total}  {'  '.join(shown)}  ETA {self.eta()}")

    def eta(self) -> str:
        """Time left, from the mean speed since the first step of this process, as h:mm:ss."""
        if self._start is None or self._done == self._first:
            return "-:--:--" if self._done < self._total else "0:00:00"
        seconds = (time.monotonic() - self._start) / (self._done - self._first)
        left = round(seconds * (self._total - self._done))
        return f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
