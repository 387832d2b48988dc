"""Lines of progress with the time that is left, now and then."""

import time

from gemma4_jax.distributed import say

# Seconds between two lines.
_EVERY = 10.0


class Pace:
    """Counts up to `total`; `done` of it lie behind already and say nothing about the speed."""

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self._what, self._total, self._first = what, total, done
        self._start = self._last = time.monotonic()
        if done:
            say(f"  {what}: {done} of {total} are there")

    def at(self, done: int, more: str = "") -> None:
        """Say so if the last line is some time ago, or if this is the end."""
        now = time.monotonic()
        if now - self._last < _EVERY and done < self._total:
            return
        self._last = now
        left = round((now - self._start) / max(done - self._first, 1) * (self._total - done))
        eta = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        say(f"  {self._what}: {done} of {self._total}{more}  ETA {eta}")
