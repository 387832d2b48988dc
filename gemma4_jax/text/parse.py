"""What a model wrote, taken apart: thought, content, tool calls.

Here: a scanner over the output that knows whether it is inside a thought. Reading one call is
`arguments.py`. The scanner hands out pieces as it finds them, so that a streaming parser can be
built on it. Outputs are often imperfect; the rules for mending them are in the comments. Nothing
here raises.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gemma4_jax.text import control
from gemma4_jax.text.arguments import ToolCall, read_call

__all__ = ["Message", "ToolCall", "parse", "scan", "starts_in_thought"]

_STARTS = (control.CHANNEL, control.CALL)
_ENDS = (control.CHANNEL_END, control.CALL_END)
#: Where the model's message is over: the end of its turn, the next turn, or a tool's answer.
_FINAL = (control.TURN_END, control.TURN, control.EOS, control.RESPONSE)
_SILENT = (control.BOS, control.PAD)
_MARK = re.compile("|".join(map(re.escape, (*_STARTS, *_ENDS, *_FINAL, *_SILENT))))
_PROMPT_MARK = re.compile(
    "|".join(map(re.escape, (*_STARTS, *_ENDS, *_FINAL, control.RESPONSE_END)))
)
_LABEL = re.compile(r"thought(?:\n|\Z)")
_BARE_CALL = re.compile(r"call:")
_MAX_CANDIDATES = 8  # each may be read to its end: hostile output must not make that quadratic


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


def parse(output_text: str, prompt_text: str = "") -> Message:
    """Take a model's output apart.

    Args:
      output_text: the output, control tokens included (decode without leaving them out).
      prompt_text: the prompt it continues, or its end: after a tool's answer a prompt can end
      inside a
        thought, and only the prompt tells.

    Returns:
      The message. Thoughts of several channels are joined; content is trimmed, as the chat format
      trims it. Never raises.
    """
    pieces = list(scan(output_text, prompt_text))
    reasoning = "".join(piece.text for piece in pieces if piece.kind == "reasoning")
    content = "".join(piece.text for piece in pieces if piece.kind == "content").strip()
    return Message(
        reasoning=reasoning if reasoning.strip() else None,
        content=content or None,
        tool_calls=tuple(piece.call for piece in pieces if piece.call),
    )


def starts_in_thought(prompt_text: str) -> bool:
    """Whether the output begins inside a thought: the prompt's last mark opens a channel."""
    marks = _PROMPT_MARK.findall(prompt_text)
    return bool(marks) and marks[-1] == control.CHANNEL


def scan(output_text: str, prompt_text: str = "") -> Iterator[Piece]:
    """The output's pieces in order."""
    text, at = output_text, 0
    thinking = starts_in_thought(prompt_text) or _lacks_opener(output_text, prompt_text)
    fresh = thinking  # at the start of a thought, where its label stands
    while True:
        mark = _MARK.search(text, at)
        run = text[at : mark.start() if mark else len(text)]
        after = mark.end() if mark else len(text)
        token = mark[0] if mark else ""
        if thinking:
            yield from _thought(run, fresh, closed=token in (control.CHANNEL_END, control.CALL))
            fresh = fresh and not run
        elif token == control.CALL_END and (bare := _bare_call(text, at, after)):
            yield Piece("content", text[at : bare[0]])
            yield Piece("call", call=bare[1])
        elif run:
            yield Piece("content", run)  # and a stray closing token is absorbed
        if token == control.CHANNEL:
            thinking = fresh = True  # inside a thought, a second opener changes nothing
        elif token == control.CHANNEL_END:
            thinking = False
        elif token == control.CALL:
            thinking = False  # a call ends a thought that was not closed
            call, at = read_call(text, after)
            if call:
                yield Piece("call", call=call)
            continue
        elif token == control.RESPONSE and (end := text.find(control.RESPONSE_END, after)) >= 0:
            after = end + len(
                control.RESPONSE_END
            )  # a tool's answer inside the text: not the model's
        elif token in _FINAL or not token:
            return
        at = after


def _thought(run: str, fresh: bool, closed: bool) -> Iterator[Piece]:
    """A stretch of thought without its label and the line break before its end."""
    if fresh and (label := _LABEL.match(run)):
        run = run[label.end() :]
    if closed:
        run = run.removesuffix("\n")
    if run:
        yield Piece("reasoning", run)


def _lacks_opener(output_text: str, prompt_text: str) -> bool:
    """Whether the output closes a thought that nothing opened.

    Believed if the thought's label is there, or if the prompt asks for thinking and leaves the
    start of the turn to the model. Otherwise a stray closing token is no reason to hide text as
    thought.
    """
    mark = _MARK.search(output_text)
    if not mark or mark[0] != control.CHANNEL_END:
        return False
    asked = control.THINK in prompt_text and prompt_text.endswith(f"{control.TURN}model\n")
    return asked or output_text.startswith("thought\n")


def _bare_call(text: str, begin: int, end: int) -> tuple[int, ToolCall] | None:
    """A call that lacks its opening token: it must run up to the closing token that ends at
    `end`."""
    candidates = list(_BARE_CALL.finditer(text, begin, end))[-_MAX_CANDIDATES:]
    for match in candidates:
        call, stop = read_call(text, match.start())
        if call and call.complete and stop == end:
            return match.start(), call
    return None
