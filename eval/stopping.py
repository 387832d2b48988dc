"""Ctrl-C and SIGTERM end a command at once, with a line that says how to go on.

Nothing is closed on the way out: what was answered is in the store, where even a kill costs nothing
(`store.py`). An exception instead may be lost in a library that happens to swallow it, and the run goes on.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_LINE = b"\nstopped; the same command goes on from here\n"


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """In here both signals end the process, with exit code 128 + number; what is ignored stays ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():  # others may not set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    # Not print: the signal may have come in the middle of one.
    os.write(2, _LINE)
    os._exit(128 + number)
