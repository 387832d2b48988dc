"""Verifiers of structure: JSON that keeps a schema, and calls of declared tools.

Schemas are checked by the `jsonschema` package (extra `verify`), draft 2020-12 unless they name another;
references reach nothing outside the schema.
"""

import json
from collections.abc import Mapping
from typing import Any

from gemma4_jax.errors import UserError
from gemma4_jax.text.arguments import ToolCall
from gemma4_jax.text.messages import read_tools
from gemma4_jax.text.parse import parse
from gemma4_jax.text.tools import signatures
from gemma4_jax.verify.judgement import Judgement, column, content_of, program_in

_DATA = ("const", "default", "enum", "examples")  # keywords whose values are no schemas


def json_schema(output: str, row: Mapping[str, Any], prompt: str = "") -> Judgement:
    """A verifier: what follows the thought is one JSON value that keeps row["schema"].

    It may stand in a fenced block. NaN and Infinity are not JSON.
    """
    schema = column(row, "schema")
    content = content_of(output, prompt)
    if content is None:
        return Judgement(score=0.0, note="nothing after the thought")
    try:
        value = json.loads(program_in(content), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        return Judgement(score=0.0, note=f"not JSON: {error}")
    wrong = violation(value, schema)
    return Judgement(score=float(wrong is None), note=wrong or "")


def tool_calls(output: str, row: Mapping[str, Any], prompt: str = "") -> Judgement:
    """A verifier: the calls in the output are whole, of row["tools"], with arguments that those declare.

    row: "tools" as the chat functions take them; if given, "calls": the list of {"name", "arguments"}
    that is expected, in this order, [] for none. Otherwise there must be at least one.
    """
    tools = column(row, "tools")
    declared = {tool["name"]: tool.get("parameters") or {} for tool in read_tools(tools)}
    calls = parse(output, prompt, signatures(tools)).tool_calls
    if not calls and "calls" not in row:
        return Judgement(score=0.0, note="no call")
    for call in calls:
        if wrong := _wrong_call(call, declared):
            return Judgement(score=0.0, note=wrong)
    found = [{"name": call.name, "arguments": call.arguments} for call in calls]
    if "calls" in row and not _same(found, row["calls"]):
        return Judgement(score=0.0, note=f"expected {row['calls']!r:.300}, got {found!r:.300}")
    return Judgement(score=1.0)


def violation(value: Any, schema: Any) -> str | None:
    """Where and how a value breaks a schema, None if it keeps it.

    Raises UserError for a schema that is none, and if `jsonschema` is not installed.
    """
    try:
        import jsonschema
        import referencing
        from referencing.exceptions import Unresolvable
    except ImportError:
        raise UserError(
            "checking schemas needs jsonschema: pip install 'gemma4_jax[verify]'"
        ) from None
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
        error = next(kind(schema, registry=referencing.Registry()).iter_errors(value), None)
    except jsonschema.SchemaError as error:
        raise UserError(f"not a JSON schema: {error.message:.200}") from None
    except Unresolvable as error:
        raise UserError(f"schema with a reference to nothing: {error!s:.200}") from None
    except RecursionError:
        return "nested too deep"
    return None if error is None else f"at {error.json_path}: {error.message:.300}"


def _wrong_call(call: ToolCall, declared: Mapping[str, Mapping[str, Any]]) -> str | None:
    if call.name not in declared:
        return f"no tool {call.name!r:.80} (known: {', '.join(declared) or 'none'})"
    if not call.complete:
        return f"the call of {call.name} is not complete"
    parameters = dict(declared[call.name])
    if not parameters:
        return f"{call.name} takes no arguments" if call.arguments else None
    # A tool takes what it declares and no more, also where its schema forgets to say so.
    parameters.setdefault("additionalProperties", False)
    wrong = violation(call.arguments, _standard(parameters))
    return None if wrong is None else f"{call.name} {wrong}"


def _standard(schema: Any) -> Any:
    """The schema with the ways of tool declarations put into JSON schema's: types in capitals, `nullable`."""
    if isinstance(schema, list):
        return [_standard(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    known = {
        key: value if key in _DATA else _standard(value)
        for key, value in schema.items()
        if key != "nullable" or not isinstance(value, bool)
    }
    kind = schema.get("type")
    if isinstance(kind, str):
        known["type"] = kind.lower()
    if schema.get("nullable") is True:
        return {"anyOf": [known, {"type": "null"}]}
    return known


def _same(found: Any, expected: Any) -> bool:
    """Equality of JSON: 1 is 1.0, and is not true."""
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected
    if isinstance(found, dict) and isinstance(expected, Mapping):
        return found.keys() == expected.keys() and all(_same(found[k], expected[k]) for k in found)
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_same, found, expected))
    return bool(found == expected)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
