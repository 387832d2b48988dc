"""Messages as users write them, checked and made uniform.

Here: every rule on what a message may hold, with an error that names the message and the way out.
Not here: how a message is written into a prompt (`turns.py`). The accepted form is OpenAI's chat
format with Gemma's additions: `reasoning` or `reasoning_content`, and `tool_responses` on an
assistant's message.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemma4_jax.errors import UserError, unknown
from gemma4_jax.text import control

if TYPE_CHECKING:
    Messages = Sequence[Mapping[str, Any]]
    Tools = Sequence[Mapping[str, Any]]
else:
    # What users hand in is checked here, with a better error than a run-time type checker gives.
    Messages = Tools = Any

ROLES = ("system", "developer", "user", "assistant", "tool")

# Levels of a value. People write a dozen; those that contain themselves have no end.
_DEEPEST = 200

_MEDIA = {
    **{"image": control.IMAGE, "image_url": control.IMAGE},
    **{"audio": control.AUDIO, "input_audio": control.AUDIO},
    "video": control.VIDEO,
}


@dataclass(frozen=True)
class Part:
    """A piece of content: text, or the placeholder of an image, a sound or a video."""

    text: str
    media: bool = False


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request for a tool."""

    name: str
    arguments: Mapping[str, Any]
    id: object = None


@dataclass(frozen=True, kw_only=True)
class Response:
    """What a tool returned: any JSON value."""

    name: str
    value: Any


@dataclass(frozen=True, kw_only=True)
class ChatMessage:
    """One checked message. `result` is what a tool's message returns; its media are in `parts`.

    `listed` says that the content came as a list of parts, not as a string.
    """

    role: str
    parts: tuple[Part, ...] = ()
    listed: bool = False
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    responses: tuple[Response, ...] = ()
    result: Any = None
    name: str = ""
    call_id: object = None


def read_messages(messages: Messages) -> tuple[ChatMessage, ...]:
    """Check a conversation; UserError names the first message that is wrong."""
    if not _is_list(messages):
        raise UserError(f"messages must be a list of mappings, not {_kind(messages)}")
    read = tuple(_read_message(m, f"messages[{i}]") for i, m in enumerate(messages))
    if read and read[0].role in ("system", "developer") and any(p.media for p in read[0].parts):
        raise UserError(
            "messages[0]: the first system message can hold text only; move media to a user"
        )
    asked = False
    for i, message in enumerate(read):
        if message.role == "tool" and not asked:
            raise UserError(
                f"messages[{i}]: a tool message must follow an assistant message with tool_calls"
            )
        asked = bool(message.calls) or (asked and message.role == "tool")
    return read


def read_tools(tools: Tools | None) -> tuple[Mapping[str, Any], ...]:
    """Check tool declarations; returns their `function` mappings."""
    if tools is None:
        return ()
    if not _is_list(tools):
        raise UserError(f"tools must be a list of mappings, not {_kind(tools)}")
    functions = []
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UserError(
                f'tools[{i}] must look like {{"type": "function", "function": {{"name": ..., '
                f'"description": ..., "parameters": ...}}}}'
            )
        check_json(function, f"tools[{i}].function")
        functions.append(function)
    return tuple(functions)


def check_json(value: Any, where: str, depth: int = 0) -> None:
    """UserError unless `value` is made of what JSON has, and comes to an end."""
    if depth > _DEEPEST:
        raise UserError(f"{where:.60}...: nested more than {_DEEPEST} deep, or it contains itself")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise UserError(f"{where}: key {key!r} must be a string, not {_kind(key)}")
            check_json(item, f"{where}.{key}", depth + 1)
    elif _is_list(value):
        for i, item in enumerate(value):
            check_json(item, f"{where}[{i}]", depth + 1)
    elif value is not None and not isinstance(value, str | bool | int | float):
        raise UserError(f"{where}: {_kind(value)} is not a JSON value")


def _read_message(message: Any, where: str) -> ChatMessage:
    if not isinstance(message, Mapping):
        raise UserError(f"{where} must be a mapping with role and content, not {_kind(message)}")
    role = message.get("role")
    if role not in ROLES:
        if role is None:
            raise UserError(f"{where} has no role (known: {', '.join(ROLES)})")
        raise unknown(f"role in {where}", role, ROLES)
    content = message.get("content")
    if role == "tool":
        return _read_tool_message(message, content, where)
    if content is None and role != "assistant":
        raise UserError(f"{where} ({role}) has no content; give a string or a list of parts")
    parts = _read_parts(content, f"{where}.content")
    if role != "assistant":
        return ChatMessage(role=role, parts=parts, listed=not isinstance(content, str))
    reasoning = message.get("reasoning") or message.get("reasoning_content") or ""
    if not isinstance(reasoning, str):
        raise UserError(f"{where}: reasoning must be a string, not {_kind(reasoning)}")
    calls = tuple(
        _read_call(call, f"{where}.tool_calls[{i}]")
        for i, call in enumerate(_optional_list(message, "tool_calls", where))
    )
    responses = tuple(
        _read_response(response, f"{where}.tool_responses[{i}]")
        for i, response in enumerate(_optional_list(message, "tool_responses", where))
    )
    if content is None and not (reasoning or calls or responses):
        raise UserError(f"{where} (assistant) has neither content, reasoning nor tool_calls")
    return ChatMessage(
        role=role, parts=parts, reasoning=reasoning, calls=calls, responses=responses
    )


def _read_tool_message(message: Mapping[str, Any], content: Any, where: str) -> ChatMessage:
    name = message.get("name") or ""
    if not isinstance(name, str):
        raise UserError(f"{where}: name must be a string, not {_kind(name)}")
    if isinstance(content, Mapping):
        raise UserError(
            f"{where}: a tool message's content must be a string or a list of parts, not a "
            "mapping; write it as a JSON string, or use tool_responses on the assistant message"
        )
    media: tuple[Part, ...] = ()
    result = content
    if _is_list(content):
        parts = _read_parts(content, f"{where}.content")
        media = tuple(part for part in parts if part.media)
        result = "".join(part.text for part in parts if not part.media)
    check_json(result, f"{where}.content")
    call_id = message.get("tool_call_id")
    return ChatMessage(role="tool", parts=media, result=result, name=name, call_id=call_id)


def _read_parts(content: Any, where: str) -> tuple[Part, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (Part(content),)
    if not _is_list(content):
        raise UserError(f"{where} must be a string or a list of parts, not {_kind(content)}")
    return tuple(_read_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _read_part(part: Any, where: str) -> Part:
    if not isinstance(part, Mapping):
        raise UserError(f'{where} must be like {{"type": "text", "text": ...}}')
    kind = part.get("type")
    if kind in _MEDIA:
        return Part(_MEDIA[kind], media=True)
    if kind != "text":
        raise unknown(f"part type in {where}", kind, ("text", *_MEDIA))
    text = part.get("text")
    if not isinstance(text, str):
        raise UserError(f"{where}: text must be a string, not {_kind(text)}")
    return Part(text)


def _read_call(call: Any, where: str) -> Call:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(
            f'{where} must look like {{"function": {{"name": ..., "arguments": {{...}}}}}}'
        )
    if "arguments" not in function:
        raise UserError(f"{where} ({function['name']}) has no arguments; give a mapping or null")
    arguments = function["arguments"]
    if arguments is not None and not isinstance(arguments, Mapping):
        raise UserError(
            f"{where} ({function['name']}): arguments must be a mapping, not {_kind(arguments)}; "
            "decode a JSON string with json.loads first"
        )
    check_json(arguments, f"{where}.function.arguments")
    return Call(name=function["name"], arguments=arguments or {}, id=call.get("id"))


def _read_response(response: Any, where: str) -> Response:
    if not isinstance(response, Mapping) or "response" not in response:
        raise UserError(f'{where} must look like {{"name": ..., "response": ...}}')
    name = response.get("name") or "unknown"
    if not isinstance(name, str):
        raise UserError(f"{where}: name must be a string, not {_kind(name)}")
    check_json(response["response"], f"{where}.response")
    return Response(name=name, value=response["response"])


def _optional_list(message: Mapping[str, Any], key: str, where: str) -> Sequence[Any]:
    value = message.get(key) or ()
    if not _is_list(value):
        raise UserError(f"{where}: {key} must be a list, not {_kind(value)}")
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
