"""An answer on the terminal as it comes: content on stdout; thoughts and tool calls apart, dimmed, on stderr.

What is which is `text.parse`'s to say, for an answer that is still being written as for a whole one.
"""

import json
import os
import sys
from typing import Protocol, runtime_checkable

from gemma4_jax.text.parse import Piece, Scanner, Start, ToolCall

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


@runtime_checkable
class Stream(Protocol):
    """Where text goes: stdout, stderr, or what stands in for them."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...

    def isatty(self) -> bool: ...


class Display:
    """Writes an answer piece by piece; white space around the content is left out, as `parse` does.

    raw: everything goes to stdout as it is. in_thought: the prompt ends inside a thought.
    """

    def __init__(self, *, raw: bool = False, in_thought: bool = False) -> None:
        self._out, self._err = sys.stdout, sys.stderr
        self._raw = raw
        self._scanner = Scanner(Start.THOUGHT if in_thought else Start.CONTENT)
        self._aside = False  # dimmed text was begun
        self._space: str | None = (
            None  # held back between words of the content; None before the first
        )
        self._last = "\n"

    def push(self, piece: str) -> None:
        """Show more of the answer."""
        if self._raw:
            self._write(self._out, piece)
            return
        for found in self._scanner.push(piece):
            self._show(found)

    def close(self) -> None:
        """The answer is over, or was stopped: show the rest and end the line."""
        for found in self._scanner.close():
            self._show(found)
        self._end_aside()
        if self._last != "\n":
            self._write(self._out, "\n")

    def _show(self, piece: Piece) -> None:
        if piece.call:
            self._end_aside()
            self._show_aside(("" if self._last == "\n" else "\n") + _spelt(piece.call))
        elif piece.kind == "reasoning":
            self._show_aside(piece.text)
        else:
            self._end_aside()
            self._show_content(piece.text)

    def _show_aside(self, text: str) -> None:
        if not self._aside:
            self._aside = True
            self._write(self._err, _DIM if colours(self._err) else "")
        self._write(self._err, text)

    def _end_aside(self) -> None:
        if self._aside:
            self._aside = False
            self._write(self._err, "" if self._last == "\n" else "\n")
            self._write(self._err, _PLAIN if colours(self._err) else "")
            self._last = "\n"

    def _show_content(self, text: str) -> None:
        if self._space is None:
            text = text.lstrip()
        solid = text.rstrip()
        if solid:
            self._write(self._out, (self._space or "") + solid)
            self._space = ""
        if self._space is not None:
            self._space += text[len(solid) :]

    def _write(self, stream: Stream, text: str) -> None:
        if text:
            stream.write(text)
            stream.flush()
            self._last = text[-1]


def colours(stream: Stream) -> bool:
    """Whether a stream is a terminal that wants colours (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def _spelt(call: ToolCall) -> str:
    """A call as a line: its name and its arguments as JSON."""
    return f"[{call.name} {json.dumps(call.arguments, ensure_ascii=False)}]"
