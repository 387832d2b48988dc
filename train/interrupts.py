"""SIGTERM and Ctrl-C become a request that the loop reads between two steps.

A second signal of the same kind acts at once, as if nobody had been listening.
"""

import signal
from types import FrameType
from typing import Any


class Interrupts:
    """Context in which `requested` names the signal that asked the run to stop, or is None."""

    def __init__(self) -> None:
        """Nothing is caught before the context is entered."""
        self.requested: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = signal.Signals(number)
        signal.signal(number, self._before[number])
