"""What a model wrote, taken apart: thought, content, tool calls.

Here: a scanner over the output that knows whether it is inside a thought; it takes the output whole or as
it is written, by the same rules. Reading one call is `arguments.py`; outputs as token ids are `token_parse.py`.
Outputs are often imperfect; the rules for mending them are in the comments. Nothing here raises.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from gemma4_jax.text import control
from gemma4_jax.text.arguments import Signatures, ToolCall, read_call

__all__ = ["Message", "Scanner", "Start", "ToolCall", "parse", "scan", "start_of"]

_STARTS = (control.CHANNEL, control.CALL)
_ENDS = (control.CHANNEL_END, control.CALL_END)
#: Where the model's message is over: the end of its turn, the next turn, or a tool's answer.
_FINAL = (control.TURN_END, control.TURN, control.EOS, control.RESPONSE)
_SILENT = (control.BOS, control.PAD)
_MARKS = (*_STARTS, *_ENDS, *_FINAL, *_SILENT)
_LONGEST_MARK = max(map(len, _MARKS))
_MARK = re.compile("|".join(map(re.escape, _MARKS)))
#: Of these the last one of a prompt says where its output begins.
PROMPT_MARKS = (*_STARTS, *_ENDS, *_FINAL, control.RESPONSE_END)
_PROMPT_MARK = re.compile("|".join(map(re.escape, PROMPT_MARKS)))
_LABEL_TEXT = "thought\n"
_LABEL = re.compile(r"thought(?:\n|\Z)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BARE_CALL = re.compile(r"call:")
#: The end of a text that may turn out to be a call without its opening token: as far as its name's end, or
#: the beginning of that.
_MAY_BE_CALL = re.compile(
    r"call:\s*[^\s{}()\[\]<>\"',]*\s*(?:[{(].*)?\Z|(?:call|cal|ca|c)\Z", re.DOTALL
)
_MAX_CANDIDATES = 8  # each may be read to its end: hostile output must not make that quadratic


class Start(Enum):
    """Where an output begins, which its prompt decides.

    EITHER: the prompt asks for a thought and leaves opening it to the model.
    """

    CONTENT = "content"
    THOUGHT = "thought"
    EITHER = "either"


@dataclass(frozen=True, kw_only=True)
class Message:
    """A parsed output. `reasoning` and `content` are None where the model wrote none."""

    reasoning: str | None = None
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The message in the form that the chat functions take, to go on with the conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content or ""}
        if self.reasoning:
            message["reasoning"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{i}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for i, call in enumerate(self.tool_calls)
            ]
        return message


@dataclass(frozen=True)
class Piece:
    """A stretch of output: `kind` is "reasoning", "content" or "call"."""

    kind: str
    text: str = ""
    call: ToolCall | None = None


def parse(output_text: str, prompt_text: str = "", signatures: Signatures | None = None) -> Message:
    """Take a model's output apart.

    Args:
      output_text: the output, control tokens included (decode without leaving them out).
      prompt_text: the prompt it continues, or its end: after a tool's answer a prompt can end inside a
        thought, and only the prompt tells.
      signatures: of the tools that were offered (`tools.signatures`); which arguments are strings
        decides what an undelimited one is.

    Returns:
      The message. Thoughts of several channels are joined; content is trimmed, as the chat format
      trims it. Never raises.
    """
    return assemble(scan(output_text, prompt_text, signatures))


def assemble(pieces: Iterable[Piece]) -> Message:
    """All pieces of an output as one message."""
    pieces = list(pieces)
    reasoning = "".join(piece.text for piece in pieces if piece.kind == "reasoning")
    content = "".join(piece.text for piece in pieces if piece.kind == "content").strip()
    return Message(
        reasoning=reasoning if reasoning.strip() else None,
        content=content or None,
        tool_calls=tuple(piece.call for piece in pieces if piece.call),
    )


def start_of(prompt_text: str) -> Start:
    """Where the output of a prompt begins: its last mark opens a channel, or a turn that is to have one."""
    found = _PROMPT_MARK.findall(prompt_text)
    if found and found[-1] == control.CHANNEL:
        return Start.THOUGHT
    asked = control.THINK in prompt_text and prompt_text.endswith(f"{control.TURN}model\n")
    return Start.EITHER if asked else Start.CONTENT


def scan(
    output_text: str, prompt_text: str = "", signatures: Signatures | None = None
) -> Iterator[Piece]:
    """The output's pieces in order."""
    scanner = Scanner(start_of(prompt_text), signatures)
    yield from scanner.push(output_text)
    yield from scanner.close()


class Scanner:
    """The pieces of an output that is still being written.

    A piece is handed out as soon as nothing that may follow can change it. Whatever parts the output
    comes in, the pieces add up to the same message.

    start: where the output begins (`start_of` its prompt). A thought may lack its opener; only the first
    mark tells. So where the output begins with a thought's label, or anywhere after a prompt that asks for
    thinking (`Start.EITHER`), nothing is handed out before that mark: with `Start.CONTENT` instead, an
    answer without a thought is seen at once, and a thought without an opener is taken for content.
    signatures: as for `parse`. shield: text that is left out of whatever is handed out (`token_parse.py`).
    """

    def __init__(
        self,
        start: Start = Start.CONTENT,
        signatures: Signatures | None = None,
        shield: str = "",
    ) -> None:
        self._thinking = start is Start.THOUGHT
        self._fresh = self._thinking  # at the start of a thought, where its label stands
        self._asked = start is Start.EITHER
        self._undecided = not self._thinking  # no mark yet: this may be a thought without opener
        self._signatures = signatures or {}
        self._shield = shield
        self._text = ""
        self._at = 0  # what stands before was handed out
        self._over = False

    def push(self, text: str) -> list[Piece]:
        """Add text; returns the pieces that are now certain."""
        self._text = self._text[self._at :] + text
        self._at = 0
        return list(self._pieces(last=False))

    def close(self) -> list[Piece]:
        """The output is over: what was held back."""
        return list(self._pieces(last=True))

    def _pieces(self, last: bool) -> Iterator[Piece]:
        while not self._over:
            mark = _MARK.search(self._text, self._at)
            if self._undecided and not self._decide(mark, last):
                return
            if not mark:
                end = len(self._text) if last else self._certain()
                yield from self._run(end, closed=False)
                self._over = last
                return
            token = mark[0]
            bare = self._bare_call(mark)
            yield from self._run(
                bare[0] if bare else mark.start(),
                closed=token in (control.CHANNEL_END, control.CALL),
            )
            after = self._behind(mark, last)
            if after is None:
                return
            self._at, call = after
            if bare or call:
                yield Piece("call", call=self._cleaned(bare[1] if bare else call))
            if token == control.CHANNEL:
                # Inside a thought, a second opener changes nothing.
                self._thinking = self._fresh = True
            elif token in (control.CHANNEL_END, control.CALL):
                self._thinking = False  # a call ends a thought that was not closed

    def _decide(self, mark: re.Match[str] | None, last: bool) -> bool:
        """Whether the output is known to begin with a thought that lacks its opener, or not to.

        Believed if the thought's label is there, or if the prompt asks for thinking. Otherwise a stray
        closing token is no reason to hide text as thought.
        """
        labelled = self._text.startswith(_LABEL_TEXT)
        possible = self._asked or labelled or _LABEL_TEXT.startswith(self._text)
        if not mark and possible and not last:
            return False
        self._undecided = False
        if mark and mark[0] == control.CHANNEL_END and (self._asked or labelled):
            self._thinking = self._fresh = True
        return True

    def _behind(self, mark: re.Match[str], last: bool) -> tuple[int, ToolCall | None] | None:
        """What a mark brings with it: the position behind that, and the call. None: not certain yet."""
        text, token, end = self._text, mark[0], mark.end()
        if token == control.CALL:
            if not last and text.find(control.CALL_END, end) < 0:
                return None
            read = read_call(text, end, self._signatures)
            settled = read.settled and text.endswith(control.CALL_END, end, read.end)
            return (read.end, read.call) if last or settled else None
        if token == control.RESPONSE:
            # A tool's answer inside the text is not the model's; one without an end ends the message.
            close = text.find(control.RESPONSE_END, end)
            if close >= 0:
                return close + len(control.RESPONSE_END), None
            if not last:
                return None
        self._over = token in _FINAL
        return end, None

    def _bare_call(self, mark: re.Match[str]) -> tuple[int, ToolCall] | None:
        """A call that lacks its opening token, before the closing one; without one, that is absorbed."""
        if self._thinking or mark[0] != control.CALL_END:
            return None
        text = self._text[: mark.end()]  # what follows must not matter: it may not be there yet
        for match in list(_BARE_CALL.finditer(text, self._at))[-_MAX_CANDIDATES:]:
            read = read_call(text, match.start(), self._signatures)
            if read.call and read.call.complete and read.end == mark.end():
                return match.start(), read.call
        return None

    def _run(self, end: int, closed: bool) -> Iterator[Piece]:
        """Text up to a mark; a thought goes without its label and the line break before its end."""
        run, self._at = self._plain(self._text[self._at : end]), end
        if not self._thinking:
            if run:
                yield Piece("content", run)
            return
        if self._fresh and (label := _LABEL.match(run)):
            self._fresh = False
            run = run[label.end() :]
        self._fresh = self._fresh and not run
        if closed:
            run = run.removesuffix("\n")
        if run:
            yield Piece("reasoning", run)

    def _plain(self, text: str) -> str:
        return text.replace(self._shield, "") if self._shield else text

    def _cleaned(self, value: Any) -> Any:
        """A call, or a value in it, with text that has a UTF-8 form."""
        match value:
            case ToolCall():
                arguments = self._cleaned(value.arguments)
                return ToolCall(self._cleaned(value.name), arguments, value.complete)
            case str():
                return _SURROGATE.sub("\ufffd", self._plain(value))
            case dict():
                return {self._cleaned(key): self._cleaned(item) for key, item in value.items()}
            case list():
                return [self._cleaned(item) for item in value]
        return value

    def _certain(self) -> int:
        """Where, in text without a mark, what may yet change begins."""
        text, begin = self._text, self._at
        end = len(text) - _start_of_mark(text[begin:])
        if not self._thinking:
            call = _MAY_BE_CALL.search(text, begin, end)
            return call.start() if call else end
        if self._fresh and _LABEL_TEXT.startswith(text[begin:end]):
            return begin
        return end - 1 if text.endswith("\n", begin, end) else end


def _start_of_mark(text: str) -> int:
    """Length of the longest end of `text` that a mark begins with."""
    for size in range(min(_LONGEST_MARK - 1, len(text)), 0, -1):
        if any(mark.startswith(text[-size:]) for mark in _MARKS):
            return size
    return 0
