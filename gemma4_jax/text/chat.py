"""Conversations as prompts, as training examples and as preference pairs.

Here: the public functions. All of them write the same segments (`turns.py`): `render` joins their
text, `encode_prompt` and `encode_training` encode them. Not here: a checkpoint's own jinja template
(`template.py`).

Messages are mappings with `role` (system, developer, user, assistant, tool) and `content` (a
string, or a list of parts `{"type": "text", "text": ...}` and media placeholders `{"type":
"image"}`); an assistant's may have `reasoning` (or `reasoning_content`), `tool_calls` and
`tool_responses`. Anything else is a UserError.

`family` is "large" (12B, 26B-A4B, 31B) or "small" (E2B, E4B): with thinking off, a large model's
prompt ends with an empty thought channel. `preserve_thinking` keeps earlier thoughts that led to
tool calls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemma4_jax.errors import UserError, unknown
from gemma4_jax.text.messages import ChatMessage, Messages, Tools, read_messages, read_tools
from gemma4_jax.text.segments import Segment, SegmentWriter, encode_segments, join
from gemma4_jax.text.tokenizer import Tokenizer
from gemma4_jax.text.turns import Style, write_generation_prompt, write_system, write_turns

FAMILIES = ("large", "small")


@dataclass(frozen=True)
class TrainingExample:
    """Tokens of a conversation; `loss_mask[i]` says whether token i is one to learn to write."""

    tokens: list[int]
    loss_mask: list[bool]


def segments(
    messages: Messages,
    tools: Tools | None = None,
    enable_thinking: bool = False,
    family: str = "large",
    add_generation_prompt: bool = True,
    preserve_thinking: bool = False,
) -> list[Segment]:
    """The pieces of a prompt, each marked as format or content and as target or not."""
    style = _style(enable_thinking, family, preserve_thinking)
    return _prompt(read_messages(messages), tools, style, add_generation_prompt)[0].segments


def render(
    messages: Messages,
    tools: Tools | None = None,
    enable_thinking: bool = False,
    family: str = "large",
    add_generation_prompt: bool = True,
    preserve_thinking: bool = False,
) -> str:
    """The prompt as text, equal to what Google's chat template of 2026-07-09 writes."""
    return join(
        segments(messages, tools, enable_thinking, family, add_generation_prompt, preserve_thinking)
    )


def encode_prompt(
    tokenizer: Tokenizer,
    messages: Messages,
    tools: Tools | None = None,
    enable_thinking: bool = False,
    family: str = "large",
    add_generation_prompt: bool = True,
    preserve_thinking: bool = False,
    *,
    control_in_content: bool = False,
) -> list[int]:
    """The prompt as token ids, `<bos>` included.

    Text of users, tools and models cannot forge a turn: control tokens spelt in it are ordinary
    text. `control_in_content=True` tokenises the rendered string as a whole instead, as most
    servers do.
    """
    pieces = segments(
        messages, tools, enable_thinking, family, add_generation_prompt, preserve_thinking
    )
    return encode_segments(tokenizer, pieces, control_in_content=control_in_content)[0]


def encode_training(
    tokenizer: Tokenizer,
    messages: Messages,
    tools: Tools | None = None,
    enable_thinking: bool | None = None,
    family: str = "large",
    preserve_thinking: bool = False,
) -> TrainingExample:
    """A conversation as tokens and targets.

    Targets are what the model wrote in every assistant turn: thought, calls and text, up to and
    including `<turn|>` (or the `<|tool_response>` with which it waits for a tool). The last
    assistant turn follows exactly the tokens that `encode_prompt` gives for the messages before it,
    so the generation prompt, a large model's empty thought channel included, is never a target.
    Earlier turns stand as a later prompt shows them; one whose thought is left out there is context
    only when thinking is on. Messages after the last assistant message are dropped.

    Args:
      enable_thinking: None means on if an assistant message whose thought would be written has one.
        False leaves the last turn's thought out.

    Raises:
      UserError: a malformed message, or no assistant message.
    """
    read = _until_last_answer(messages)
    if enable_thinking is None:
        enable_thinking = _has_thought(read, preserve_thinking)
    return _encode(tokenizer, read, tools, _style(enable_thinking, family, preserve_thinking))


def encode_turns(
    tokenizer: Tokenizer,
    messages: Messages,
    tools: Tools | None = None,
    enable_thinking: bool | None = None,
    family: str = "large",
    preserve_thinking: bool = False,
) -> list[TrainingExample]:
    """A conversation as training examples in which every assistant turn is a target exactly once.

    One example, that of `encode_training`, where all thoughts are written in it. A turn whose thought a later
    prompt leaves out gets an example of its own before it, which ends with that turn and has no
    other target.

    Args:
      enable_thinking: None means on if any message has a thought.

    Raises:
      UserError: a malformed message, or no assistant message.
    """
    read = _until_last_answer(messages)
    if enable_thinking is None:
        enable_thinking = any(message.reasoning for message in read)
    style = _style(enable_thinking, family, preserve_thinking)

    def length(count: int) -> int:
        """Tokens of the first messages, as they stand in front of more of them."""
        prompt = _prompt(read[:count], tools, style, add_generation_prompt=False)[0]
        return len(encode_segments(tokenizer, prompt.segments)[0])

    examples = []
    whole = _encode(tokenizer, read, tools, style)
    for begin, end in _hidden_turns(read, style):
        last = max(i for i in range(begin, end) if read[i].role == "assistant")
        example = _encode(tokenizer, read[: last + 1], tools, style)
        start = length(begin)
        example.loss_mask[:start] = [False] * start
        examples.append(example)
        # A turn has messages that hide its thought and others that do not: learn all of it there.
        stop = length(end + 1)
        whole.loss_mask[start:stop] = [False] * (stop - start)
    return [*examples, whole]


def encode_completion(
    tokenizer: Tokenizer,
    prompt: str | Messages,
    completion: str | Messages | Mapping[str, Any],
    tools: Tools | None = None,
    enable_thinking: bool | None = None,
    family: str = "large",
    preserve_thinking: bool = False,
) -> tuple[list[int], list[int]]:
    """A prompt and what is to follow it as tokens; rules and errors are those of `encode_pair`."""
    prompt_tokens, (tokens,) = _completions(
        tokenizer,
        prompt,
        {"completion": completion},
        tools,
        enable_thinking,
        family,
        preserve_thinking,
    )
    return prompt_tokens, tokens


def encode_pair(
    tokenizer: Tokenizer,
    prompt: str | Messages,
    chosen: str | Messages | Mapping[str, Any],
    rejected: str | Messages | Mapping[str, Any],
    tools: Tools | None = None,
    enable_thinking: bool | None = None,
    family: str = "large",
    preserve_thinking: bool = False,
) -> tuple[list[int], list[int], list[int]]:
    """A preference pair as the tokens of its prompt and of its two completions.

    Strings are raw text: control tokens in them count, `<bos>` is put before the prompt if missing,
    and `<eos>` after a completion that does not end in a stop token. Messages go through the chat
    format:
    the prompt's tokens are those of `encode_prompt`, a completion is one or more assistant
    messages.

    Raises:
      UserError: strings and messages mixed, or a completion that is not the assistant's.
    """
    prompt_tokens, (good, bad) = _completions(
        tokenizer,
        prompt,
        {"chosen": chosen, "rejected": rejected},
        tools,
        enable_thinking,
        family,
        preserve_thinking,
    )
    return prompt_tokens, good, bad


def _completions(
    tokenizer: Tokenizer,
    prompt: Any,
    completions: Mapping[str, Any],
    tools: Tools | None,
    enable_thinking: bool | None,
    family: str,
    preserve_thinking: bool,
) -> tuple[list[int], list[list[int]]]:
    """Tokens of a prompt and of each of its completions, which errors call by their keys."""
    texts = [isinstance(text, str) for text in (prompt, *completions.values())]
    if all(texts):
        prompt_tokens = tokenizer.encode(prompt)
        if prompt_tokens[:1] != [tokenizer.bos_id]:
            prompt_tokens.insert(0, tokenizer.bos_id)
        return prompt_tokens, [_raw(tokenizer, text) for text in completions.values()]
    if any(texts):
        *names, last = ("prompt", *completions)
        raise UserError(
            f"{', '.join(names)} and {last} must all be strings or all be messages, not a mix"
        )
    history = _one_or_more(prompt)
    begin = len(history)
    answers = {
        name: read_messages([*history, *_one_or_more(messages)])
        for name, messages in completions.items()
    }
    for name, read in answers.items():
        roles = [m.role for m in read[begin:]]
        if set(roles) != {"assistant"}:
            raise UserError(
                f"{name} must be assistant messages that answer the prompt (roles here: "
                f"{', '.join(roles) or 'none'})"
            )
        if any(m.responses for m in read[begin:]):
            raise UserError(
                f"{name} holds tool_responses, which a model does not write; end it before"
            )
    if enable_thinking is None:
        enable_thinking = any(_has_thought(read, preserve_thinking) for read in answers.values())
    style = _style(enable_thinking, family, preserve_thinking)
    encoded = []
    for read in answers.values():
        before, after = _example(read[:begin], read[begin:], tools, style)
        tokens, mask = encode_segments(tokenizer, after)
        encoded.append([t for t, target in zip(tokens, mask, strict=True) if target])
    return encode_segments(tokenizer, before)[0], encoded


def _until_last_answer(messages: Messages) -> tuple[ChatMessage, ...]:
    """Checked messages up to the last assistant message; UserError if there is none."""
    read = read_messages(messages)
    last = max((i for i, m in enumerate(read) if m.role == "assistant"), default=None)
    if last is None:
        raise UserError(
            "no assistant message to train on; a training row needs at least one "
            f"(roles here: {', '.join(m.role for m in read) or 'none'})"
        )
    return read[: last + 1]


def _encode(
    tokenizer: Tokenizer, read: Sequence[ChatMessage], tools: Tools | None, style: Style
) -> TrainingExample:
    """Messages that end with an assistant's, as a prompt and the answer that follows it."""
    begin = len(read) - 1
    while begin > 0 and read[begin - 1].role == "assistant":
        begin -= 1
    prompt, completion = _example(read[:begin], read[begin:], tools, style)
    tokens, mask = encode_segments(tokenizer, prompt)
    more_tokens, more_mask = encode_segments(tokenizer, completion)
    return TrainingExample(tokens + more_tokens, mask + more_mask)


def _hidden_turns(read: Sequence[ChatMessage], style: Style) -> list[tuple[int, int]]:
    """Turns with a thought that the whole conversation leaves out: first answer, next user message."""
    if not style.enable_thinking:
        return []
    users = [i for i, message in enumerate(read) if message.role == "user"]
    turns = []
    for before, end in zip([-1, *users], users, strict=False):
        answers = [i for i in range(before + 1, end) if read[i].role == "assistant"]
        hidden = (
            read[i].reasoning and not (style.preserve_thinking and read[i].calls) for i in answers
        )
        if any(hidden):
            turns.append((answers[0], end))
    return turns


def _prompt(
    messages: Sequence[ChatMessage], tools: Tools | None, style: Style, add_generation_prompt: bool
) -> tuple[SegmentWriter, bool]:
    """The prompt's segments, and whether they end inside an opened thought."""
    writer = SegmentWriter()
    rest = write_system(writer, messages, read_tools(tools), style)
    ending = write_turns(writer, rest, style)
    thought_open = add_generation_prompt and write_generation_prompt(writer, ending, style)
    return writer, thought_open


def _example(
    before: Sequence[ChatMessage],
    answer: Sequence[ChatMessage],
    tools: Tools | None,
    style: Style,
) -> tuple[list[Segment], list[Segment]]:
    """Segments of a prompt, and of an answer as it follows that very prompt."""
    prompt, thought_open = _prompt(before, tools, style, add_generation_prompt=True)
    writer = SegmentWriter()
    write_turns(writer, answer, style, resume=True, thought_open=thought_open)
    return prompt.segments, writer.segments


def _has_thought(messages: Sequence[ChatMessage], preserve_thinking: bool) -> bool:
    last_user = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    return any(
        m.reasoning and (i > last_user or (preserve_thinking and m.calls))
        for i, m in enumerate(messages)
    )


def _style(enable_thinking: bool, family: str, preserve_thinking: bool) -> Style:
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    return Style(
        enable_thinking=enable_thinking,
        empty_thought=family == "large",
        preserve_thinking=preserve_thinking,
    )


def _one_or_more(messages: Any) -> list[Any]:
    if isinstance(messages, Mapping):
        return [messages]
    if not isinstance(messages, list | tuple):
        raise UserError(f"expected a string or messages, not {type(messages).__name__}")
    return list(messages)


def _raw(tokenizer: Tokenizer, text: str) -> list[int]:
    tokens = tokenizer.encode(text)
    if not tokens or tokens[-1] not in tokenizer.stop_ids:
        tokens.append(tokenizer.eos_id)
    return tokens
