"""What a row says: one of the known formats, recognised by its keys, as one of five plain things.

    messages            {"messages": [...], "tools"?, "chat_template_kwargs"?}
    prompt/completion   {"prompt", "completion"}: both strings, or both messages
    ShareGPT            {"conversations": [{"from": "human", "value": ...}, ...], "system"?}
    Alpaca              {"instruction", "input"?, "output", "system"?, "history"?}
    text                {"text"}: all of it is learnt
    tokens              {"input_ids", and any of "labels", "completion_mask", "loss_mask", "assistant_masks"}
    preference          {"chosen", "rejected", "prompt"?}: strings or messages; without a prompt, what both
                        begin with is the prompt

Other keys of a row are left alone. What Arrow cannot type (`tools`, the `arguments` of a call) may be a
string of JSON. Not here: what a message may hold (gemma4_jax/text), tokens (encode.py).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gemma4_jax.errors import UserError, unknown

Row = Mapping[str, Any]

TEMPLATE_OPTIONS = ("enable_thinking", "preserve_thinking")

# Who speaks in ShareGPT rows, under the names that are in use.
_SPEAKERS = {
    **{"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"},
    **{"model": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"},
    **{"system": "system", "tool": "tool", "observation": "tool", "function_response": "tool"},
    "function_call": "function_call",
}
_MASKS = ("completion_mask", "loss_mask", "assistant_masks")
_NO_LABEL = -100


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages, of which all assistant turns are learnt. options: of the chat format."""

    messages: Any
    tools: Any = None
    options: Mapping[str, bool]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What follows a prompt: both strings of raw text, or both messages; only it is learnt."""

    prompt: Any
    completion: Any
    tools: Any = None
    options: Mapping[str, bool]


@dataclass(frozen=True, kw_only=True)
class Text:
    """Raw text, all of it learnt."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Tokens, and which of them are learnt."""

    tokens: list[int]
    loss_mask: list[bool]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two answers to one prompt: all strings of raw text, or all messages."""

    prompt: Any
    chosen: Any
    rejected: Any
    tools: Any = None
    options: Mapping[str, bool]


Supervised = Conversation | Completion | Text | Tokens


def read_supervised(row: Row) -> tuple[str, Supervised]:
    """Name of a row's format, and what it says; UserError if it has none, or several."""
    present = _present(row)
    found = [name for name, (keys, _) in _FORMATS.items() if present.issuperset(keys)]
    if not found and present.issuperset(("chosen", "rejected")):
        raise UserError("this row is a preference pair (chosen, rejected); train.dpo learns those")
    if len(found) != 1:
        raise UserError(
            f"{'several formats fit' if found else 'no known format in'} this row "
            f"(keys: {_names(present)}); it must have the keys of one: "
            + ", ".join(f"{name} ({' + '.join(keys)})" for name, (keys, _) in _FORMATS.items())
        )
    (name,) = found
    return name, _FORMATS[name][1](row)


def read_pair(row: Row) -> tuple[str, Pair]:
    """Name of a preference row's format, and the pair; UserError if it is none."""
    present = _present(row)
    missing = [key for key in ("chosen", "rejected") if key not in present]
    if missing:
        raise UserError(
            f"row has no {missing[0]!r} (keys: {_names(present)}; needed: 'chosen' and 'rejected', and "
            "'prompt' unless both hold the whole conversation)"
        )
    prompt = _messages(row["prompt"]) if "prompt" in present else None
    chosen, rejected = _messages(row["chosen"]), _messages(row["rejected"])
    name = "preference"
    if prompt is None or all(_repeats_prompt(prompt, answer) for answer in (chosen, rejected)):
        name = "preference, prompt within"
        prompt, chosen, rejected = _split_prompt(chosen, rejected)
    pair = Pair(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        tools=_tools(row),
        options=_options(row),
    )
    return name, pair


def is_pair(row: Row) -> bool:
    """Whether a row is a preference pair, or meant to be one."""
    return bool(_present(row) & {"chosen", "rejected"})


def _read_messages(row: Row) -> Conversation:
    messages = _messages(row["messages"])
    return Conversation(messages=messages, tools=_tools(row), options=_options(row))


def _read_completion(row: Row) -> Completion:
    return Completion(
        prompt=_messages(row["prompt"]),
        completion=_messages(row["completion"]),
        tools=_tools(row),
        options=_options(row),
    )


def _read_sharegpt(row: Row) -> Conversation:
    turns = _decoded(row["conversations"], "conversations")
    if not isinstance(turns, list):
        raise UserError(f"conversations must be a list, not {type(turns).__name__}")
    messages: list[Any] = _system(row)
    for i, turn in enumerate(turns):
        where = f"conversations[{i}]"
        if not isinstance(turn, Mapping):
            raise UserError(f"{where} must be an object, not {type(turn).__name__}")
        if "role" in turn:
            messages.append(turn)
            continue
        if "from" not in turn or "value" not in turn:
            raise UserError(f'{where} must look like {{"from": ..., "value": ...}}')
        if turn["from"] not in _SPEAKERS:
            raise unknown(f"speaker in {where}", turn["from"], _SPEAKERS)
        role = _SPEAKERS[turn["from"]]
        if role == "function_call":
            messages.append(_function_call(turn["value"], where))
        else:
            messages.append({"role": role, "content": turn["value"]})
    return Conversation(messages=_messages(messages), tools=_tools(row), options=_options(row))


def _function_call(value: Any, where: str) -> dict[str, Any]:
    """ShareGPT's call of a tool, {"name": ..., "arguments": ...} or a list of those, as a message."""
    calls = _decoded(value, where)
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, Mapping) for call in calls):
        raise UserError(f'{where}: a function_call must be {{"name": ..., "arguments": ...}}')
    return {"role": "assistant", "tool_calls": [{"function": call} for call in calls]}


def _read_alpaca(row: Row) -> Conversation:
    for key in ("instruction", "input", "output"):
        if not isinstance(row.get(key) or "", str):
            raise UserError(f"{key} must be a string, not {type(row[key]).__name__}")
    messages = _system(row)
    for i, pair in enumerate(_decoded(row.get("history") or [], "history")):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise UserError(f"history[{i}] must be a list of a question and its answer")
        messages.append({"role": "user", "content": pair[0]})
        messages.append({"role": "assistant", "content": pair[1]})
    question = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": row["output"]})
    return Conversation(messages=messages, options=_options(row))


def _read_text(row: Row) -> Text:
    if not isinstance(row["text"], str):
        raise UserError(f"text must be a string, not {type(row['text']).__name__}")
    return Text(text=row["text"])


def _read_tokens(row: Row) -> Tokens:
    tokens = _integers(row, "input_ids")
    mask = [True] * len(tokens)
    if row.get("labels") is not None:
        labels = _integers(row, "labels", len(tokens))
        for i, (label, token) in enumerate(zip(labels, tokens, strict=True)):
            if label not in (token, _NO_LABEL):
                raise UserError(
                    f"labels[{i}] is {label}; it must be input_ids[{i}] = {token}, or {_NO_LABEL} for a "
                    "token that is not learnt (labels are not shifted)"
                )
        mask = [label != _NO_LABEL for label in labels]
    # Several masks hold together.
    for name in _MASKS:
        if row.get(name) is not None:
            values = _integers(row, name, len(tokens))
            mask = [m and bool(value) for m, value in zip(mask, values, strict=True)]
    if row.get("attention_mask") is not None:
        real = _integers(row, "attention_mask", len(tokens))
        tokens = [token for token, value in zip(tokens, real, strict=True) if value]
        mask = [m for m, value in zip(mask, real, strict=True) if value]
    return Tokens(tokens=tokens, loss_mask=mask)


# Name -> the keys that tell it, and its reader.
_FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Row], Supervised]]] = {
    "messages": (("messages",), _read_messages),
    "prompt/completion": (("prompt", "completion"), _read_completion),
    "ShareGPT": (("conversations",), _read_sharegpt),
    "Alpaca": (("instruction", "output"), _read_alpaca),
    "text": (("text",), _read_text),
    "tokens": (("input_ids",), _read_tokens),
}


def _present(row: Row) -> set[str]:
    """Keys with a value: files with columns have all keys in all rows."""
    return {key for key, value in row.items() if value is not None}


def _names(keys: set[str]) -> str:
    return ", ".join(map(repr, sorted(keys))) or "none"


def _messages(value: Any) -> Any:
    """Messages with the arguments of calls decoded; anything else as it is."""
    if not isinstance(value, list):
        return value
    return [_message(message, f"messages[{i}]") for i, message in enumerate(value)]


def _message(message: Any, where: str) -> Any:
    if not isinstance(message, Mapping) or not message.get("tool_calls"):
        return message
    calls = _decoded(message["tool_calls"], f"{where}.tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_call(call, f"{where}.tool_calls") for call in calls]}


def _call(call: Any, where: str) -> Any:
    """A call with decoded arguments (OpenAI writes them as a string of JSON)."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    arguments = _decoded(function["arguments"] or "{}", f"{where}.arguments")
    return {**call, "function": {**function, "arguments": arguments}}


def _system(row: Row) -> list[Any]:
    """A system prompt that stands beside the turns."""
    return [{"role": "system", "content": row["system"]}] if row.get("system") else []


def _tools(row: Row) -> Any:
    tools = _decoded(row.get("tools"), "tools") or None
    if isinstance(tools, list):
        tools = [_decoded(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    return tools


def _options(row: Row) -> dict[str, bool]:
    options = _decoded(row.get("chat_template_kwargs"), "chat_template_kwargs") or {}
    if not isinstance(options, dict):
        raise UserError(f"chat_template_kwargs must be an object, got {type(options).__name__}")
    for name, value in options.items():
        if name not in TEMPLATE_OPTIONS:
            raise unknown("chat_template_kwargs option", name, TEMPLATE_OPTIONS)
        if not isinstance(value, bool):
            raise UserError(f"chat_template_kwargs.{name} is {value!r}; it must be true or false")
    return options


def _decoded(value: Any, name: str) -> Any:
    """A value that may be spelt as a string of JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise UserError(f"{name} is a string that is not JSON: {error.msg}") from None


def _integers(row: Row, name: str, length: int | None = None) -> list[int]:
    values = row[name]
    if not isinstance(values, list) or not all(isinstance(value, int) for value in values):
        raise UserError(f"{name} must be a list of integers")
    if length is not None and len(values) != length:
        raise UserError(f"{name} has {len(values)} entries and input_ids {length}; make them equal")
    return values


def _repeats_prompt(prompt: Any, answer: Any) -> bool:
    """Whether an answer is a whole conversation that begins with the prompt again."""
    if not isinstance(answer, list) or not answer or not isinstance(answer[0], Mapping):
        return False
    if isinstance(prompt, str):
        return [m.get("content") for m in answer if m.get("role") == "user"][:1] == [prompt]
    return (
        isinstance(prompt, list)
        and 0 < len(prompt) < len(answer)
        and answer[: len(prompt)] == prompt
    )


def _split_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """What two whole conversations begin with, and how each goes on."""
    kinds = {type(chosen), type(rejected)}
    if kinds != {str} and kinds != {list}:
        raise UserError("chosen and rejected must both be strings or both be lists of messages")
    shorter = min(len(chosen), len(rejected))
    end = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)
    if kinds == {str}:
        # Back to white space, so that no word, and so no token, is cut in two.
        end = next((i for i in range(end - 1, -1, -1) if chosen[i].isspace()), 0)
    parts = (chosen[:end], chosen[end:], rejected[end:])
    if not parts[1] or not parts[2]:
        raise UserError(
            "chosen and rejected are the same, or one is only the beginning of the other"
        )
    if not parts[0]:
        raise UserError("no prompt: chosen and rejected have no beginning in common")
    return parts
