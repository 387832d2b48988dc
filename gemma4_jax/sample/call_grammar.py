"""Gemma 4's native tool calls as a grammar: names and arguments of the tools that were declared.

Here: JSON schemas of parameters as rules over the call syntax (`text/tools.py` writes it, `text/arguments.py`
reads it): bare keys in the order of the format, no spaces, strings between `<|"|>`. A schema is narrowed
where the syntax or a model gains from it: only declared properties are written, numbers keep to 16 digits.
Numbers with bounds are left to the JSON compiler, since both syntaxes write them alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gemma4_jax.errors import UserError
from gemma4_jax.sample.constraints import quoted
from gemma4_jax.sample.schema_check import check_schema, resolve
from gemma4_jax.text import control
from gemma4_jax.text.segments import SegmentWriter
from gemma4_jax.text.tokenizer import Tokenizer
from gemma4_jax.text.tools import write_value

_NAME = re.compile(r"[^\s{}()\[\]<>\"',:]+")
_BARE_KEY = re.compile(r"[\w.$-]+")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_DEMANDS = ("type", "properties", "items", "required", "prefixItems", *_BOUNDS)
# Of a pattern in a grammar: JSON schemas mean ASCII by these classes, the grammar Unicode.
_ESCAPED = {
    **{r"\d": "[0-9]", r"\D": "[^0-9]", r"\w": "[0-9A-Za-z_]", r"\W": "[^0-9A-Za-z_]"},
    **{"/": r"\/", "\n": r"\n"},
}
_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
# What values of any schema are made of. `any` is reached by what a schema leaves open.
_COMMON = r"""
string: QUOTE TEXT? QUOTE
boolean: "true" | "false"
any: string | NUMBER | boolean | "null" | any_array | any_object
any_array: "[" (any ("," any)*)? "]"
any_object: "{" (KEY ":" any ("," KEY ":" any)*)? "}"
TEXT: /(?s:.+)/
KEY: /[A-Za-z_][A-Za-z0-9_]{0,63}/
INTEGER: /-?(0|[1-9][0-9]{0,15})/
NUMBER: /-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,16})?([eE][+-]?[0-9]{1,2})?/
"""


def call_grammar(functions: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, most: int) -> str:
    """The grammar of one to `most` calls of these functions (`messages.read_tools`), one after the other.

    Raises UserError for parameters that cannot be kept, naming tool, place and keyword.
    """
    writer = _Rules(tokenizer)
    calls = [writer.call(function) for function in functions]
    more = f" call{{0,{most - 1}}}" if most > 1 else ""
    head = [f"start: call{more}", f"call: {' | '.join(calls)}"]
    return "\n".join([*head, *writer.lines]) + writer.common()


class _Rules:
    """The rules written so far."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.lines: list[str] = []
        self._ids = tokenizer.control_tokens
        for name in (control.CALL, control.CALL_END, control.QUOTE):
            if name not in self._ids:
                raise UserError(f"this tokenizer has no {name}: it cannot write tool calls")
        self._root: Any = None
        self._tool = ""
        self._references: dict[str, str] = {}

    def common(self) -> str:
        """The rules that all others refer to."""
        return _COMMON.replace("QUOTE", self._token(control.QUOTE))

    def call(self, function: Mapping[str, Any]) -> str:
        """A rule for the calls of one function."""
        name, schema = function["name"], function.get("parameters") or {"type": "object"}
        if not _NAME.fullmatch(name):
            raise UserError(f"tool {name!r}: the call syntax has no way to write this name")
        self._root, self._tool, self._references = schema, name, {}
        try:
            check_schema(_lowered(schema))
        except UserError as error:
            raise UserError(f"tool {name!r}: {error}") from None
        begin, end = self._token(control.CALL), self._token(control.CALL_END)
        named = schema.get("properties") or schema.get("required")
        body = self._fields(schema, "#") if named else ""
        literal = quoted(f"call:{name}{{")
        return self._rule(f'{begin} {literal} {body} "}}" {end}')

    def _rule(self, body: str) -> str:
        """A new rule's name."""
        name = f"r{len(self.lines)}"
        self.lines.append(f"{name}: {body}")
        return name

    def _terminal(self, body: str) -> str:
        name = f"T{len(self.lines)}"
        self.lines.append(f"{name}: {body}")
        return name

    def _token(self, name: str) -> str:
        return f"<[{self._ids[name]}]>"

    def _value(self, schema: Any, path: str) -> str:
        """What a value of the schema is written as: the name of a rule or an expression in parentheses."""
        if schema is True:
            return "any"
        if schema is False:
            raise self._refusal(path, "nothing satisfies false")
        if "patternProperties" in schema:
            raise self._refusal(path, "'patternProperties' has no form in the call syntax")
        if "$ref" in schema:
            return self._reference(schema["$ref"], path)
        if "const" in schema:
            return self._literal(schema["const"])
        if "enum" in schema:
            return self._either([self._literal(value) for value in schema["enum"]], path)
        for keyword in ("anyOf", "oneOf", "allOf"):
            if keyword in schema:
                return self._combined(schema, keyword, path)
        kinds = schema.get("type")
        if kinds is None:
            kinds = "object" if "properties" in schema else None
        if kinds is None:
            return "any"
        options = [
            self._typed(str(kind).lower(), schema, path)
            for kind in (kinds if isinstance(kinds, list) else [kinds])
        ]
        if schema.get("nullable") and '"null"' not in options:
            options.append('"null"')
        return self._either(options, path)

    def _reference(self, ref: Any, path: str) -> str:
        if ref not in self._references:
            target = resolve(self._root, ref, path)
            # Named before it is written: it may refer to itself.
            name = self._references[ref] = f"ref{len(self.lines)}"
            at = len(self.lines)
            self.lines.append("")
            self.lines[at] = f"{name}: {self._value(target, ref)}"
        return self._references[ref]

    def _combined(self, schema: Mapping[str, Any], keyword: str, path: str) -> str:
        demands = set(_DEMANDS) & set(schema)
        options = schema[keyword]
        if keyword == "allOf":  # titles and the like demand nothing
            options = [o for o in options if not isinstance(o, Mapping) or _demanding(o)] or [True]
        if demands:
            raise self._refusal(path, f"{keyword!r} beside {sorted(demands)[0]!r}; put both inside")
        if keyword == "allOf" and len(options) != 1:
            raise self._refusal(path, "'allOf' of several schemas; write them as one")
        if keyword == "oneOf" and not _disjoint(options):
            raise self._refusal(path, "'oneOf' whose options may overlap; use anyOf")
        return self._either([self._value(o, f"{path}/{keyword}") for o in options], path)

    def _typed(self, kind: str, schema: Mapping[str, Any], path: str) -> str:
        match kind:
            case "string":
                return self._string(schema, path)
            case "integer" | "number":
                bounds = {name: schema[name] for name in _BOUNDS if name in schema}
                if not bounds:
                    return kind.upper()
                options = {"x-guidance": {"whitespace_flexible": False}}
                return self._rule(f"%json {json.dumps({'type': kind} | bounds | options)}")
            case "boolean":
                return "boolean"
            case "null":
                return '"null"'
            case "array":
                return self._array(schema, path)
            case "object":
                return self._object(schema, path)
        raise self._refusal(path, f"unknown type {kind!r} (known: {', '.join(_TYPES)})")

    def _string(self, schema: Mapping[str, Any], path: str) -> str:
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        parts = []
        if pattern := schema.get("pattern"):
            parts.append(self._pattern(pattern, path))
        if least or most is not None:
            parts.append(f"/(?s:.){{{least},{'' if most is None else most}}}/")
        if not parts:
            return "string"
        quote = self._token(control.QUOTE)
        return self._rule(f"{quote} {self._terminal(' & '.join(parts))} {quote}")

    def _pattern(self, pattern: Any, path: str) -> str:
        """A pattern that may match anywhere, as one of the whole string."""
        if not isinstance(pattern, str):
            raise self._refusal(path, f"pattern must be text, got {pattern!r}")
        anchored = pattern.startswith("^"), re.search(r"(?<!\\)(?:\\\\)*\$$", pattern) is not None
        inner = pattern[anchored[0] : len(pattern) - anchored[1]]
        outside = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "", inner, flags=re.DOTALL)
        if re.search(r"[$^]", outside) or (any(anchored) and "|" in re.sub(r"\(.*\)", "", outside)):
            raise self._refusal(path, f"pattern {pattern!r}: write it as ^(...)$")
        escaped = re.sub(r"\\.|/|\n", lambda m: _ESCAPED.get(m[0], m[0]), inner, flags=re.DOTALL)
        before, after = ("" if there else "(?s:.*)" for there in anchored)
        return f"/{before}({escaped}){after}/"

    def _array(self, schema: Mapping[str, Any], path: str) -> str:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most is not None and most < max(least, 0):
            raise self._refusal(path, f"minItems {least} is more than maxItems {most}")
        if most == 0:
            return self._rule('"[" "]"')
        if listed := schema.get("prefixItems"):
            if not least <= len(listed) <= (len(listed) if most is None else most):
                raise self._refusal(path, f"{len(listed)} prefixItems must be all that is written")
            each = [self._value(one, f"{path}/prefixItems/{i}") for i, one in enumerate(listed)]
            body = ' "," '.join(each)
            return self._rule(f'"[" {body} "]"')
        item = self._value(schema.get("items", True), f"{path}/items")
        some = self._repeated(item, max(least, 1), most)
        return self._rule(f'"[" {some} "]"' if least else f'"[" ({some})? "]"')

    def _repeated(self, item: str, least: int, most: int | None) -> str:
        """`item` at least once, with commas between."""
        if most == 1:
            return item
        return f'{item} ("," {item}){{{least - 1},{"" if most is None else most - 1}}}'

    def _object(self, schema: Mapping[str, Any], path: str) -> str:
        least, most = schema.get("minProperties", 0), schema.get("maxProperties")
        if least > len(schema.get("required", [])):
            raise self._refusal(path, f"minProperties {least}: list the names in required")
        if most is not None and most < len(schema.get("properties", {})):
            raise self._refusal(path, f"maxProperties {most} is less than there are properties")
        if schema.get("properties") or schema.get("required"):
            return self._rule(f'"{{" {self._fields(schema, path)} "}}"')
        others = schema.get("additionalProperties", True)
        if others is False or most == 0:
            return self._rule('"{" "}"')
        pair = f'KEY ":" {self._value(others, f"{path}/additionalProperties")}'
        return self._rule(f'"{{" ({self._repeated(pair, 1, most)})? "}}"')

    def _fields(self, schema: Mapping[str, Any], path: str) -> str:
        """The declared properties in the format's order, those that are not required at will."""
        properties, required = schema.get("properties", {}), set(schema.get("required", []))
        if missing := sorted(required - set(properties)):
            raise self._refusal(path, f"required {missing[0]!r} is not among the properties")
        names = sorted(properties, key=str.lower)
        fields = [
            self._rule(f"{self._key(name)} {self._value(properties[name], f'{path}/{name}')}")
            for name in names
        ]
        # tail[i]: fields i and later, after some earlier one. Built from the end: each is one rule.
        tail = ""
        options, needed = [], False
        for name, field in zip(reversed(names), reversed(fields), strict=True):
            first = f"{field} {tail}"
            if name in required:
                options, needed = [first], True
            else:
                options.insert(0, first)
            tail = self._rule(
                f'"," {field} {tail}' if name in required else f'("," {field})? {tail}'
            )
        body = self._either([option.strip() for option in options], path)
        return body if needed else f"({body})?"

    def _key(self, name: str) -> str:
        if not name:
            raise self._refusal("#", "a property without a name")
        if _BARE_KEY.fullmatch(name):
            return quoted(f"{name}:")
        quote = self._token(control.QUOTE)
        return f'{quote} {quoted(name)} {quote} ":"'

    def _literal(self, value: Any) -> str:
        """One value exactly as the format writes it."""
        writer = SegmentWriter()
        write_value(writer, value)
        parts: list[str] = []
        for segment in writer.segments:
            parts.append(self._token(segment.text) if segment.control else quoted(segment.text))
        return self._rule(" ".join(parts))

    def _either(self, options: Sequence[str], path: str) -> str:
        if not options:
            raise self._refusal(path, "there is nothing to choose from")
        return options[0] if len(options) == 1 else f"({' | '.join(options)})"

    def _refusal(self, path: str, why: str) -> UserError:
        return UserError(f"tool {self._tool!r}, parameters {path}: {why}")


def _lowered(schema: Any) -> Any:
    """The schema with types in lower case: declarations of Gemma's may have them in upper case."""
    if isinstance(schema, list):
        return [_lowered(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: value.lower() if key == "type" and isinstance(value, str) else _lowered(value)
        for key, value in schema.items()
    }


def _demanding(schema: Mapping[str, Any]) -> bool:
    """Whether a schema says more than what it is for."""
    return bool(set(schema) - {"title", "description", "default", "examples", "deprecated"})


def _disjoint(options: Sequence[Any]) -> bool:
    """Whether no value can be of two of these schemas: constants that differ, or types that do."""
    seen: set[str] = set()
    for option in options:
        if not isinstance(option, Mapping):
            return False
        kinds = option.get("type")
        key = f"={json.dumps(option['const'])}" if "const" in option else str(kinds).lower()
        key = "number" if key == "integer" else key
        if key in seen or ("const" not in option and not isinstance(kinds, str)):
            return False
        seen.add(key)
    return len({key[0] == "=" for key in seen}) == 1
