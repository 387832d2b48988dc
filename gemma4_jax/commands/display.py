"""An answer on the terminal as it comes: content on stdout, thoughts apart, dimmed, on stderr.

A whole answer is taken apart by `text.parse`; here the same is done on a stream, where the end of a mark
or of the thought's label may not be there yet.
"""

import os
import sys
from typing import Protocol, runtime_checkable

from gemma4_jax.text import control

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_MARKS = (control.CHANNEL, control.CHANNEL_END)
_LABEL = control.THOUGHT_OPEN.removeprefix(control.CHANNEL)


@runtime_checkable
class Stream(Protocol):
    """Where text goes: stdout, stderr, or what stands in for them."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...

    def isatty(self) -> bool: ...


class ThoughtSplitter:
    """Cuts streamed text into (is it thought, text); marks and the thought's label are left out.

    in_thought: the prompt ends inside a thought.
    """

    def __init__(self, in_thought: bool = False) -> None:
        self._thinking = self._label_may_come = in_thought
        self._held = ""

    def push(self, text: str) -> list[tuple[bool, str]]:
        """Add text; returns the pieces that are now certain."""
        text, self._held = self._held + text, ""
        pieces: list[tuple[bool, str]] = []
        while text:
            places = [(at, mark) for mark in _MARKS if (at := text.find(mark)) >= 0]
            if not places:
                cut = len(text) - _start_of_mark(text)
                self._emit(pieces, text[:cut], more=True)
                self._held += text[cut:]
                break
            at, mark = min(places)
            self._emit(pieces, text[:at], more=False)
            self._held = ""
            self._thinking = self._label_may_come = mark == control.CHANNEL
            text = text[at + len(mark) :]
        return pieces

    def close(self) -> list[tuple[bool, str]]:
        """The stream is over: what was held back."""
        pieces: list[tuple[bool, str]] = []
        text, self._held = self._held, ""
        self._emit(pieces, text, more=False)
        return pieces

    def _emit(self, pieces: list[tuple[bool, str]], text: str, more: bool) -> None:
        if self._label_may_come and text:
            if more and _LABEL.startswith(text):
                self._held = text
                return
            text = "" if text == _LABEL.rstrip() else text.removeprefix(_LABEL)
            self._label_may_come = False
        if text:
            pieces.append((self._thinking, text))


class Display:
    """Writes an answer piece by piece; white space around the content is left out, as `parse` does.

    raw: everything goes to stdout as it is. in_thought: the prompt ends inside a thought.
    """

    def __init__(self, *, raw: bool = False, in_thought: bool = False) -> None:
        self._out, self._err = sys.stdout, sys.stderr
        self._raw = raw
        self._splitter = ThoughtSplitter(in_thought)
        self._in_thought = False
        self._space: str | None = (
            None  # held back between words of the content; None before the first
        )
        self._last = "\n"

    def push(self, piece: str) -> None:
        """Show more of the answer."""
        if self._raw:
            self._write(self._out, piece)
            return
        for thought, text in self._splitter.push(piece):
            self._show(thought, text)

    def close(self) -> None:
        """The answer is over, or was stopped: show the rest and end the line."""
        for thought, text in self._splitter.close():
            self._show(thought, text)
        self._end_thought()
        if self._last != "\n":
            self._write(self._out, "\n")

    def _show(self, thought: bool, text: str) -> None:
        if thought:
            if not self._in_thought:
                self._in_thought = True
                self._write(self._err, _DIM if colours(self._err) else "")
            self._write(self._err, text)
            return
        self._end_thought()
        if self._space is None:
            text = text.lstrip()
        solid = text.rstrip()
        if solid:
            self._write(self._out, (self._space or "") + solid)
            self._space = ""
        if self._space is not None:
            self._space += text[len(solid) :]

    def _end_thought(self) -> None:
        if self._in_thought:
            self._in_thought = False
            self._write(self._err, "" if self._last == "\n" else "\n")
            self._write(self._err, _PLAIN if colours(self._err) else "")
            self._last = "\n"

    def _write(self, stream: Stream, text: str) -> None:
        if text:
            stream.write(text)
            stream.flush()
            self._last = text[-1]


def colours(stream: Stream) -> bool:
    """Whether a stream is a terminal that wants colours (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def _start_of_mark(text: str) -> int:
    """Length of the longest end of `text` that a mark begins with."""
    longest = max(map(len, _MARKS)) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-size:]) for mark in _MARKS):
            return size
    return 0
