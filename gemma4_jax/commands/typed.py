"""What a person types: messages of one line or several; on a terminal with line editing and history.

A line is a message. One that ends in a backslash goes on in the next; what stands between two \"\"\" is one
message, line breaks and all.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gemma4_jax.commands.answering import read_stdin

_QUOTES = '"""'
_REMEMBERED = 1000  # lines of history


@dataclass(frozen=True)
class Typed:
    """What was typed. quoted: between quotes, so that it is a message even if it begins with a slash."""

    text: str
    quoted: bool = False


def next_typed(interactive: bool) -> Typed | None:
    """The next message or command, None at the end of input. Ctrl-C at the prompt discards what was typed."""
    while True:
        try:
            return _typed(interactive)
        except KeyboardInterrupt:
            if not interactive:
                raise
            print("\n(Ctrl-D or /quit leaves)", file=sys.stderr)


def _typed(interactive: bool) -> Typed | None:
    line = _line("> ", interactive)
    if line is None:
        return None
    if line.lstrip().startswith(_QUOTES):
        return Typed(_block(line.lstrip().removeprefix(_QUOTES), interactive), quoted=True)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        more = _line(". ", interactive)
        if more is None:
            break
        lines.append(more)
    return Typed("\n".join(lines).strip())


def _block(line: str | None, interactive: bool) -> str:
    """From behind the opening quotes to the closing ones, or to the end of input."""
    lines: list[str] = []
    while line is not None:
        if line.rstrip().endswith(_QUOTES):
            lines.append(line.rstrip().removesuffix(_QUOTES))
            break
        lines.append(line)
        line = _line(". ", interactive)
    return "\n".join(lines).strip("\n")


def _line(prompt: str, interactive: bool) -> str | None:
    """One line without its end; None at the end of input."""
    if not interactive:
        line = read_stdin(sys.stdin.readline)
        return line.removesuffix("\n") if line else None
    try:
        return input(prompt)
    except EOFError:
        print(file=sys.stderr)
        return None


def history_file() -> Path:
    """Where lines are kept from one conversation to the next (the XDG base directories' place for that)."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "gemma4_jax" / "chat_history"


@contextlib.contextmanager
def remembered() -> Iterator[None]:
    """Line editing with the history of earlier conversations; without any of it where that cannot be."""
    try:
        import readline
    except ImportError:  # Windows has none
        yield
        return
    file = history_file()
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(_REMEMBERED)
    try:
        yield
    finally:
        # A home that cannot be written to must not cost the conversation its end.
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
