"""What a person sees while a run generates: one line, rewritten on a terminal, now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from eval.backend import Reply

# (answers judged, their mean score) by benchmark.
Scores = Mapping[str, tuple[int, float]]
# Seconds between lines, where a terminal rewrites them and where not.
_OFTEN, _SELDOM = 0.5, 30.0


def say(text: str) -> None:
    """A line of its own on standard error, in the place of the line of progress if that stands there."""
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{start}{text}", file=sys.stderr, flush=True)


class Progress:
    """Counts answers, and says how far, how fast, how good, how often cut off."""

    def __init__(self, done: int, total: int, out: TextIO | None = None) -> None:
        """done, total: answers that there are, and are to be."""
        self._out = sys.stderr if out is None else out
        self._done, self._total = done, total
        self._start: float | None = None
        self._last = time.monotonic()
        self._new = self._truncated = 0

    def add(self, reply: Reply) -> None:
        """One more answer."""
        self._done, self._new = self._done + 1, self._new + 1
        self._truncated += reply.finish_reason == "length"

    def show(
        self,
        scores: Callable[[], Scores],
        speed: Callable[[], Mapping[str, float]],
        *,
        last: bool = False,
    ) -> None:
        """Print the line if it is time to. speed: of the back end; last: now, for good."""
        terminal = self._out.isatty()
        now = time.monotonic()
        self._start = now if self._start is None else self._start
        if now - self._last < (_OFTEN if terminal else _SELDOM) and not last:
            return
        self._last = now
        line = self.line(scores(), speed(), now - self._start)
        if terminal:
            # What a longer line before has left is overwritten.
            print(f"\r{line[:200]:<100}", end="\n" if last else "", file=self._out, flush=True)
        else:
            print(line, file=self._out, flush=True)

    def line(self, scores: Scores, speed: Mapping[str, float], seconds: float) -> str:
        """The line after so many seconds of generating."""
        parts = [f"{self._done}/{self._total} answers", f"ETA {self._eta(seconds)}"]
        parts += [f"{name} {mean:.3f} ({n} scored)" for name, (n, mean) in scores.items()]
        parts.append(f"{speed['tokens'] / max(speed['seconds'], 1e-9):.0f} tokens/s")
        if self._new:
            parts.append(f"truncated {self._truncated / self._new:.1%}")
        return "  ".join(parts)

    def _eta(self, seconds: float) -> str:
        left = self._total - self._done
        if not self._new:
            return "-:--:--" if left else "0:00:00"
        wait = round(seconds / self._new * left)
        return f"{wait // 3600}:{wait // 60 % 60:02}:{wait % 60:02}"
