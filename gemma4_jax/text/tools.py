"""Tools in Gemma 4's syntax: declarations, calls, responses, and the values in them.

Here: JSON values and schemas as the format writes them. Reading a model's calls back is
`arguments.py`. The syntax has bare keys sorted without regard to case, no spaces, and strings
between `<|"|>` delimiters with no escaping. Its schema keeps description, enum, items, nullable,
properties, required and type, and some oddities that models were trained on and that are therefore
kept: see the comments.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gemma4_jax.errors import UserError
from gemma4_jax.text import control
from gemma4_jax.text.messages import Call, Response, read_tools
from gemma4_jax.text.segments import SegmentWriter

_SCHEMA_KEYS = ("description", "type", "properties", "required", "nullable")


def write_declaration(writer: SegmentWriter, function: Mapping[str, Any]) -> None:
    """`<|tool>declaration:name{description:...,parameters:{...}}<tool|>`."""
    writer.markup(f"{control.TOOL}declaration:")
    writer.text(f"{function['name']}{{description:")
    writer.quoted(str(function.get("description", "")))
    if parameters := function.get("parameters"):
        _require_mapping(parameters, "parameters", function)
        writer.text(",parameters:{")
        if properties := parameters.get("properties"):
            _require_mapping(properties, "parameters.properties", function)
            writer.text("properties:{")
            _write_properties(writer, properties)
            writer.text("},")
        if required := parameters.get("required"):
            _write_required(writer, required)
            writer.text(",")
        # The brace closes with the type, so a schema without a type stays open: so it was trained.
        if parameters.get("type"):
            _write_type(writer, parameters)
    if "response" in function:
        response = function["response"]
        _require_mapping(response, "response", function)
        writer.text(",response:{")
        if description := response.get("description"):
            writer.text("description:")
            writer.quoted(str(description))
            writer.text(",")
        if _type_name(response) == "OBJECT":
            _write_type(writer, response)
    writer.text("}")
    writer.markup(control.TOOL_END)


def write_call(writer: SegmentWriter, call: Call) -> None:
    """`<|tool_call>call:name{key:value,...}<tool_call|>`."""
    writer.markup(f"{control.CALL}call:")
    writer.text(f"{call.name}{{")
    _write_items(writer, call.arguments, quote_keys=False)
    writer.text("}")
    writer.markup(control.CALL_END)


def write_response(writer: SegmentWriter, response: Response) -> None:
    """`response:name{...}<tool_response|>`; the caller writes the token that opens it."""
    writer.text(f"response:{response.name}{{")
    if isinstance(response.value, Mapping):
        _write_items(writer, response.value, quote_keys=False)
    else:
        writer.text("value:")
        write_value(writer, response.value, quote_keys=False)
    writer.text("}")
    writer.markup(control.RESPONSE_END)


def write_value(writer: SegmentWriter, value: Any, *, quote_keys: bool = False) -> None:
    """A JSON value. Keys are bare in calls and responses, quoted in some places of declarations."""
    match value:
        case None:
            writer.text("null")
        case bool():
            writer.text("true" if value else "false")
        case str():
            writer.quoted(value)
        case Mapping():
            writer.text("{")
            _write_items(writer, value, quote_keys=quote_keys)
            writer.text("}")
        case list() | tuple():
            writer.text("[")
            for i, item in enumerate(value):
                writer.text("," if i else "")
                write_value(writer, item, quote_keys=quote_keys)
            writer.text("]")
        case _:
            writer.text(str(value))


def _write_items(writer: SegmentWriter, items: Mapping[str, Any], *, quote_keys: bool) -> None:
    for i, (key, value) in enumerate(_sorted(items)):
        writer.text("," if i else "")
        if quote_keys:
            writer.quoted(key)
        else:
            writer.text(key)
        writer.text(":")
        write_value(writer, value, quote_keys=quote_keys)


def _write_properties(
    writer: SegmentWriter, properties: Mapping[str, Any], skip: Sequence[str] = ()
) -> None:
    shown = [(key, schema) for key, schema in _sorted(properties) if key not in skip]
    for i, (key, schema) in enumerate(shown):
        writer.text("," if i else "")
        writer.text(f"{key}:{{")
        # A property that is no mapping has no known key: all that is left is an empty type.
        _write_schema(writer, schema if isinstance(schema, Mapping) else {})


def _write_schema(writer: SegmentWriter, schema: Mapping[str, Any]) -> None:
    """The inside of one property, its closing brace included."""
    kind = _type_name(schema)
    if description := schema.get("description"):
        writer.text("description:")
        writer.quoted(str(description))
        writer.text(",")
    if kind == "STRING" and (choices := schema.get("enum")):
        writer.text("enum:")
        write_value(writer, choices, quote_keys=True)
        writer.text(",")
    items = schema.get("items")
    if kind == "ARRAY" and isinstance(items, Mapping) and items:
        writer.text("items:{")
        _write_array_items(writer, items)
        writer.text("},")
    if schema.get("nullable"):
        writer.text("nullable:true,")
    if kind == "OBJECT":
        writer.text("properties:{")
        if isinstance(properties := schema.get("properties"), Mapping):
            _write_properties(writer, properties)
        else:
            # Without `properties`, the schema's other keys are shown as if they were properties.
            _write_properties(writer, schema, skip=_SCHEMA_KEYS)
        writer.text("},")
        if required := schema.get("required"):
            _write_required(writer, required)
            writer.text(",")
    _write_type(writer, schema)


def _write_array_items(writer: SegmentWriter, items: Mapping[str, Any]) -> None:
    shown = [(key, value) for key, value in _sorted(items) if value is not None]
    for i, (key, value) in enumerate(shown):
        writer.text("," if i else "")
        if key == "properties":
            writer.text("properties:{")
            if isinstance(value, Mapping):
                _write_properties(writer, value)
            writer.text("}")
        elif key == "required":
            _write_required(writer, value)
        elif key == "type":
            writer.text("type:")
            upper = [str(v).upper() for v in value] if isinstance(value, list | tuple) else None
            write_value(writer, str(value).upper() if upper is None else upper, quote_keys=True)
        else:
            writer.text(f"{key}:")
            write_value(writer, value, quote_keys=True)


def _write_required(writer: SegmentWriter, required: Any) -> None:
    if not isinstance(required, list | tuple):
        raise UserError(f"tool schema: required must be a list of names, not {required!r}")
    writer.text("required:[")
    for i, name in enumerate(required):
        writer.text("," if i else "")
        writer.quoted(str(name))
    writer.text("]")


def _write_type(writer: SegmentWriter, schema: Mapping[str, Any]) -> None:
    writer.text("type:")
    writer.quoted(_type_name(schema))
    writer.text("}")


def signatures(tools: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, bool]]:
    """Which arguments of which tool are strings, for the parser (`arguments.Signatures`)."""
    return {
        function["name"]: {
            name: isinstance(schema, Mapping) and _type_name(schema) == "STRING"
            for name, schema in properties.items()
        }
        for function in read_tools(tools)
        if isinstance(parameters := function.get("parameters") or {}, Mapping)
        and isinstance(properties := parameters.get("properties") or {}, Mapping)
    }


def _type_name(schema: Mapping[str, Any]) -> str:
    """Upper case; a union comes out as the text of a list: so models have seen it."""
    return str(schema["type"]).upper() if "type" in schema else ""


def _sorted(items: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from sorted(items.items(), key=lambda item: item[0].lower())


def _require_mapping(value: Any, what: str, function: Mapping[str, Any]) -> None:
    if not isinstance(value, Mapping):
        raise UserError(f"tool {function['name']!r}: {what} must be a mapping, not {value!r}")
