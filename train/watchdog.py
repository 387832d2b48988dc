"""Says where a run hangs: the stacks of all threads, once a step takes far longer than steps do.

A collective that waits for a host that died, a data worker that is stuck, a network disk that is gone: all of
them look like silence. Not here: what to do about it.
"""

import faulthandler
import statistics
import sys
import threading
import time
from collections import deque
from pathlib import Path

_STEPS = 50  # the median is of so many
_FACTOR = 10.0
_ENOUGH = 5  # steps before a median means something
_SHORTEST = 60.0  # seconds that nobody needs to worry about


class Watchdog:
    """Context in which a thread watches `beat`; writes to `file` and a line to stderr, once a silence."""

    def __init__(self, file: Path, factor: float = _FACTOR, shortest: float = _SHORTEST):
        """factor: times the median step that are too long. shortest: seconds that never are."""
        self._file, self._factor, self._shortest = file, factor, shortest
        self._steps: deque[float] = deque(maxlen=_STEPS)
        self._last = time.monotonic()
        self._told = self._paused = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def beat(self) -> None:
        """A step is done."""
        now = time.monotonic()
        self._steps.append(now - self._last)
        self._last, self._told = now, False

    def pause(self) -> None:
        """What comes next is no step (a save, a validation) and may take its time."""
        self._paused = True

    def resume(self) -> None:
        """Steps go on."""
        self._last, self._paused = time.monotonic(), False

    @property
    def limit(self) -> float | None:
        """Seconds of silence that are too many; None while too few steps are known."""
        if len(self._steps) < _ENOUGH:
            return None
        return max(self._shortest, self._factor * statistics.median(self._steps))

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._shortest / 4)):
            limit, silent = self.limit, time.monotonic() - self._last
            if limit is not None and silent > limit and not (self._told or self._paused):
                self._told = True
                self._tell(silent)

    def _tell(self, silent: float) -> None:
        median = statistics.median(self._steps)
        line = (
            f"no step for {silent:.0f} s (they take {median:.2g} s): "
            f"the stacks of all threads are in {self._file}"
        )
        try:
            with open(self._file, "a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        print(f"warning: {line}", file=sys.stderr, flush=True)
