"""The rules of Gemma 4's chat format: which pieces a conversation is written as.

Here: the one place that knows the format; prompts, token ids and training masks all come from the
segments written here. Not here: checks (`messages.py`), tool syntax (`tools.py`). Source: Google's
chat template of 2026-07-09 and https://ai.google.dev/gemma/docs (prompt formatting).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from gemma4_jax.text import control
from gemma4_jax.text.messages import ChatMessage, Part, Response
from gemma4_jax.text.segments import SegmentWriter
from gemma4_jax.text.tools import write_call, write_declaration, write_response


@dataclass(frozen=True, kw_only=True)
class Style:
    """What changes how a conversation is written, besides the conversation.

    `empty_thought`: tell a model not to think by an empty thought channel (12B, 26B-A4B and 31B).
    """

    enable_thinking: bool
    empty_thought: bool
    preserve_thinking: bool


class Ending(Enum):
    """How a conversation ends, which decides what is written to make the model go on."""

    CLOSED = "a turn was closed"
    CALLS = "the model asked for tools and has no answer yet"
    RESPONSES = "tools have answered inside the model's open turn"


def write_system(
    writer: SegmentWriter, messages: Sequence[ChatMessage], tools: Sequence[Any], style: Style
) -> Sequence[ChatMessage]:
    """`<bos>` and the first system turn, if there is cause for one; returns the other messages."""
    writer.markup(control.BOS)
    first = messages[0] if messages and messages[0].role in ("system", "developer") else None
    if not (style.enable_thinking or tools or first):
        return messages
    writer.markup(f"{control.TURN}system\n")
    if style.enable_thinking:
        writer.markup(f"{control.THINK}\n")
    if first:
        for part in first.parts:
            _write_part(writer, part)
            writer.text(" " if first.listed else "")
    for function in tools:
        write_declaration(writer, function)
    writer.markup(f"{control.TURN_END}\n")
    return messages[1:] if first else messages


def write_turns(
    writer: SegmentWriter,
    messages: Sequence[ChatMessage],
    style: Style,
    *,
    resume: bool = False,
    thought_open: bool = False,
) -> Ending:
    """Write the messages after the first system message.

    With `resume` the messages continue a model turn that `write_generation_prompt` opened, and
    `thought_open` is what it returned.
    """
    last_user = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    spoken = [i for i, m in enumerate(messages) if m.role != "tool"]
    ending = Ending.CLOSED
    before = "assistant" if resume else None
    for i, after in zip(spoken, [*spoken, None][1:], strict=True):
        message = messages[i]
        if message.role != "assistant":
            _write_plain_turn(writer, message)
            ending, before = Ending.CLOSED, message.role
            continue
        if before != "assistant":
            writer.markup(f"{control.TURN}model\n")
        shown = i > last_user or (style.preserve_thinking and bool(message.calls))
        # With thinking on, a turn whose thought the format leaves out is context only: training on
        # it would teach the model to answer without the thought.
        writer.target = shown or not (style.enable_thinking and message.reasoning)
        reasoning = message.reasoning if shown else ""
        if resume and not style.enable_thinking:
            reasoning = ""
        if resume and thought_open:
            writer.text(reasoning)
            writer.markup(f"\n{control.CHANNEL_END}" if reasoning else control.CHANNEL_END)
            thought_open = False
        elif reasoning:
            _write_thought(writer, reasoning, style, after_tool=ending is Ending.RESPONSES)
        results = messages[i + 1 : after]
        has_content, ending = _write_calls_and_content(writer, message, results)
        goes_on = after is not None and messages[after].role == "assistant"
        if ending is Ending.CALLS:
            # The model itself writes this token: it is how it stops to wait for the tools.
            writer.markup(control.RESPONSE)
        elif not goes_on and not (ending is Ending.RESPONSES and not has_content and after is None):
            writer.markup(control.TURN_END)
            writer.target = False
            writer.markup("\n")
        writer.target = False
        before = "assistant"
    return ending


def write_generation_prompt(writer: SegmentWriter, ending: Ending, style: Style) -> bool:
    """What makes the model speak; returns whether a thought was opened and left open."""
    if ending is Ending.CLOSED:
        writer.markup(f"{control.TURN}model\n")
        if style.empty_thought and not style.enable_thinking:
            writer.markup(control.EMPTY_THOUGHT)
    if ending is Ending.RESPONSES and style.enable_thinking:
        writer.markup(control.THOUGHT_OPEN)
        return True
    return False


def strip_thought(text: str) -> str:
    """A model's text without inline thoughts; an unclosed one goes on to the end."""
    parts = text.split(control.CHANNEL_END)
    return "".join(part.split(control.CHANNEL)[0] for part in parts).strip()


def _write_plain_turn(writer: SegmentWriter, message: ChatMessage) -> None:
    writer.markup(f"{control.TURN}{message.role}\n")
    for part in message.parts:
        _write_part(writer, part)
    writer.markup(f"{control.TURN_END}\n")


def _write_part(writer: SegmentWriter, part: Part) -> None:
    if part.media:
        writer.markup(part.text)
    else:
        writer.text(part.text.strip())


def _write_thought(
    writer: SegmentWriter, reasoning: str, style: Style, *, after_tool: bool
) -> None:
    target = writer.target
    # After a tool's answer, a prompt with thinking on ends with this opener: not the model's own
    # words.
    writer.target = target and style.enable_thinking and not after_tool
    writer.markup(control.THOUGHT_OPEN)
    writer.target = target and style.enable_thinking
    writer.text(reasoning)
    writer.markup(f"\n{control.CHANNEL_END}")
    writer.target = target


def _write_calls_and_content(
    writer: SegmentWriter, message: ChatMessage, results: Sequence[ChatMessage]
) -> tuple[bool, Ending]:
    """Calls, then what the tools returned, then the text, even if that was said before."""
    for call in message.calls:
        write_call(writer, call)
    target = writer.target
    answered = False
    if message.responses:
        for response in message.responses:
            _write_answer(writer, response, target and bool(message.calls) and not answered)
            answered = True
    elif message.calls:
        for result in results:
            response = Response(name=_result_name(result, message), value=result.result)
            _write_answer(writer, response, target and not answered)
            answered = True
            for part in result.parts:
                _write_part(writer, part)
    writer.target = target
    has_content = False
    for part in message.parts:
        part = part if part.media else Part(strip_thought(part.text))
        _write_part(writer, part)
        has_content = has_content or bool(part.text)
    if answered:
        return has_content, Ending.RESPONSES
    return has_content, Ending.CALLS if message.calls else Ending.CLOSED


def _write_answer(writer: SegmentWriter, response: Response, asked_now: bool) -> None:
    """One tool's answer. Only the first opener after the calls is the model's own token."""
    writer.target = asked_now
    writer.markup(control.RESPONSE)
    writer.target = False
    write_response(writer, response)


def _result_name(result: ChatMessage, message: ChatMessage) -> str:
    """The tool's name: by the id of its call, else as the message gives it."""
    names = [call.name for call in message.calls if call.id == result.call_id]
    return names[-1] if names else result.name or "unknown"
