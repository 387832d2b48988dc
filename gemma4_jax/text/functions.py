"""Typed Python functions as tools: declarations from signatures and docstrings, and calls of them.

    def weather(city: str, days: int = 1) -> str:
        \"\"\"The forecast of a city.

        Args:
          city: its name, in English.
          days: how many days ahead.
        \"\"\"

Here: what a model is told, and arguments checked against the types before a function sees them. Not here:
who decides that a call is run (`commands/tools.py`).
"""

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union

from gemma4_jax.errors import UserError

_SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_KNOWN = (
    "str, int, float, bool, None, list[...], dict[str, ...], Literal[...], unions of these, Any"
)
_SECTION = re.compile(r"^\s*(Args|Arguments|Returns|Raises|Yields|Examples?|Notes?):\s*$")


def declaration(function: Callable[..., Any]) -> dict[str, Any]:
    """The tool that a function is, in OpenAI's form, as `chat.encode_prompt` takes it.

    Every parameter needs a type of those named in the error; those with a default are optional.
    """
    name = function.__name__
    summary, about = _read_docstring(inspect.getdoc(function) or "")
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError) as error:
        raise UserError(f"tool {name}: {error}") from None
    properties, required = {}, []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise UserError(
                f"tool {name}: *{parameter.name} cannot be declared; name the parameters"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise UserError(f"tool {name}: {parameter.name} must be usable by name; drop the /")
        if parameter.name not in hints:
            raise UserError(
                f"tool {name}: {parameter.name} has no type; write {parameter.name}: str"
            )
        schema = _schema(hints[parameter.name], f"tool {name}: {parameter.name}")
        if parameter.name in about:
            schema = {"description": about[parameter.name]} | schema
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    return {
        "type": "function",
        "function": {"name": name, "description": summary, "parameters": parameters},
    }


def call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """What the function returns, as a tool message's content: a scalar as it is, all else as JSON text.

    Raises UserError for arguments that its signature does not take, in words for a model to mend them.
    Whatever the function raises goes through.
    """
    name = function.__name__
    hints = typing.get_type_hints(function)
    known = inspect.signature(function).parameters
    for given in arguments:
        if given not in known:
            raise UserError(
                f"{name} has no argument {given!r} (known: {', '.join(known) or 'none'})"
            )
    for parameter in known.values():
        if parameter.default is parameter.empty and parameter.name not in arguments:
            raise UserError(f"{name} needs the argument {parameter.name!r}")
    for given, value in arguments.items():
        if not _fits(value, hints[given]):
            raise UserError(
                f"{name}: {given} must be {_shown(hints[given])}, got {json.dumps(value)[:80]}"
            )
    result = function(**arguments)
    if result is None or isinstance(result, str | bool | int | float):
        return result
    return json.dumps(result, ensure_ascii=False, default=str)


def _schema(hint: Any, where: str) -> dict[str, Any]:
    if hint is Any:
        return {}
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        rest = [a for a in arguments if a is not type(None)]
        if len(rest) == 1:
            return _schema(rest[0], where) | {"nullable": True}
        return {"anyOf": [_schema(a, where) for a in arguments]}
    if origin is Literal:
        kinds = {_SIMPLE.get(type(value)) for value in arguments}
        kind = {"type": kinds.pop()} if len(kinds) == 1 else {}
        return kind | {"enum": list(arguments)}
    if (hint is list or origin in (list, Sequence)) and len(arguments) < 2:
        return {"type": "array"} | ({"items": _schema(arguments[0], where)} if arguments else {})
    if (hint is dict or origin in (dict, Mapping)) and (not arguments or arguments[0] is str):
        schema: dict[str, Any] = {"type": "object"}
        return schema | (
            {"additionalProperties": _schema(arguments[1], where)} if arguments else {}
        )
    raise UserError(
        f"{where} has the type {_shown(hint)}, which no tool can declare (known: {_KNOWN})"
    )


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, a) for a in arguments)
    if origin is Literal:
        return any(value == a and type(value) is type(a) for a in arguments)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in _SIMPLE:
        return isinstance(value, hint)
    if hint is list or origin in (list, Sequence):
        return isinstance(value, list) and all(_fits(v, a) for v in value for a in arguments)
    items = arguments[1:]
    return isinstance(value, dict) and all(_fits(v, a) for v in value.values() for a in items)


def _shown(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The description, and what is said of each argument in the section `Args:`."""
    head: list[str] = []
    about: dict[str, str] = {}
    section, name, margin = "", "", 0
    for line in text.splitlines():
        if match := _SECTION.match(line):
            section = match[1]
        elif not section:
            head.append(line)
        elif section in ("Args", "Arguments") and line.strip():
            indent = len(line) - len(line.lstrip())
            found = re.match(r"\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)", line)
            if found and (not about or indent <= margin):
                name, margin = found[1], indent
                about[name] = found[2].strip()
            elif name:
                about[name] = f"{about[name]} {line.strip()}".strip()
    return " ".join(" ".join(head).split()), about
