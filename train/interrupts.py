"""SIGTERM and Ctrl-C become a request that the loop reads between two steps.

A second signal of the same kind acts at once, as if nobody had been listening. Of several processes, one
that is told to end tells the others, and all end after the same step.
"""

import signal
from types import FrameType
from typing import Any

from gemma4_jax.distributed import stopping_at


class Interrupts:
    """Context in which `requested` names the signal that asked the run to stop, or is None."""

    def __init__(self, several: bool = False) -> None:
        """Nothing is caught before the context is entered. several: there are other processes."""
        self.requested: signal.Signals | None = None
        self._several = several
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        # jax's preemption service listens to SIGTERM where there are several processes; Ctrl-C joins it.
        for number in (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = signal.Signals(number)
        signal.signal(number, self._before[number])
        if self._several:
            signal.raise_signal(signal.SIGTERM)

    def stop_at(self, step: int) -> signal.Signals | None:
        """The signal that ends the run after `step`, if one does; to be asked at every step."""
        if self._several:
            return signal.SIGTERM if stopping_at(step) else None
        return self.requested
