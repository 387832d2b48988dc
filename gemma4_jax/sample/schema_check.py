"""JSON schemas that cannot be kept while decoding, found before any of it.

Here: keywords that no grammar expresses, references, and schemas whose values would never end. Not here:
types, bounds and patterns that contradict each other: the grammar compiler finds those (`guidance.py`).
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from gemma4_jax.errors import UserError

_IMPOSSIBLE = (
    *("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies"),
    *("uniqueItems", "contains", "minContains", "maxContains", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef"),
)
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPPINGS = ("properties", "patternProperties")
_SINGLE = ("items", "additionalProperties", "additionalItems")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


def check_schema(schema: Any) -> None:
    """UserError for a schema that cannot be kept; its line names the place and the keyword."""
    targets: dict[str, Any] = {}
    _check(schema, "#", schema, targets)
    # References that lead to an end, found by adding those whose target ends without the others.
    ending: set[str] = set()
    while found := {
        ref for ref, target in targets.items() if ref not in ending and ends(target, ending)
    }:
        ending |= found
    if not ends(schema, ending):
        cycle = sorted(set(targets) - ending)
        if not cycle:
            raise UserError("nothing satisfies the schema: what it requires is false")
        raise UserError(
            f"no finite value satisfies the schema: {cycle[0]} always contains itself; "
            "make a property optional"
        )


def resolve(root: Any, ref: Any, path: str) -> Any:
    """What a `$ref` at `path` points to: `#` or a JSON pointer within the schema."""
    if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
        raise UserError(f"schema at {path}: $ref {ref!r} must be # or #/..., within the schema")
    at = root
    for part in ref.split("/")[1:]:
        part = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(at, Mapping) and part in at:
            at = at[part]
        elif isinstance(at, list) and part.isdigit() and int(part) < len(at):
            at = at[int(part)]
        else:
            raise UserError(f"schema at {path}: $ref {ref!r} points to nothing")
    return at


def _check(schema: Any, path: str, root: Any, targets: dict[str, Any]) -> None:
    if isinstance(schema, bool):
        if not schema and path == "#":
            raise UserError("nothing satisfies the schema false")
        return
    if not isinstance(schema, Mapping):
        raise UserError(f"schema at {path} must be an object, true or false, got {schema!r:.60}")
    for keyword in _IMPOSSIBLE:
        if keyword in schema:
            raise UserError(
                f"schema at {path}: {keyword!r} cannot be kept while decoding; leave it out"
            )
    for keyword in (*_NUMBERS, "const"):
        _check_exact(schema.get(keyword), f"{path}/{keyword}")
    if not isinstance(schema.get("enum", []), list):
        raise UserError(f"schema at {path}/enum must be a list, got {schema['enum']!r:.60}")
    _check_exact(schema.get("enum"), f"{path}/enum")
    _check_count(schema, path)
    for where, inner in _inside(schema, path):
        _check(inner, where, root, targets)
    if "$ref" in schema and schema["$ref"] not in targets:
        target = resolve(root, schema["$ref"], path)
        targets[schema["$ref"]] = target
        _check(target, schema["$ref"], root, targets)


def _inside(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """The schemas that a schema applies, and where they are."""
    for keyword in _MAPPINGS:
        inner = schema.get(keyword, {})
        if not isinstance(inner, Mapping):
            raise UserError(f"schema at {path}/{keyword} must be an object, got {inner!r:.60}")
        yield from ((f"{path}/{keyword}/{name}", value) for name, value in inner.items())
    for keyword in _LISTS:
        inner = schema.get(keyword, [])
        if not isinstance(inner, list):
            raise UserError(f"schema at {path}/{keyword} must be a list, got {inner!r:.60}")
        yield from ((f"{path}/{keyword}/{i}", value) for i, value in enumerate(inner))
    yield from ((f"{path}/{keyword}", schema[keyword]) for keyword in _SINGLE if keyword in schema)


def _check_exact(value: Any, path: str) -> None:
    """The compiler keeps numbers as float64: one that is none would come out as its neighbour."""
    if isinstance(value, list):
        for item in value:
            _check_exact(item, path)
    elif isinstance(value, Mapping):
        for item in value.values():
            _check_exact(item, path)
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        raise UserError(
            f"schema at {path}: {value!r:.40} is beyond 2^53, where float64 is not exact"
        )


def _check_count(schema: Mapping[str, Any], path: str) -> None:
    """Names that are not listed may come twice, and twice the same name is one property."""
    least, listed = schema.get("minProperties", 0), schema.get("required", [])
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise UserError(f"schema at {path}/required must be a list of names, got {listed!r:.60}")
    if isinstance(least, int) and least > len(listed) + 1:
        raise UserError(
            f"schema at {path}: minProperties {least} cannot be kept with {len(listed)} required "
            "names; list the names in required"
        )


def ends(schema: Any, ending: set[str]) -> bool:
    """Whether a schema, as far as its structure goes, has a finite value.

    ending: references known to have one.
    """
    if isinstance(schema, bool):
        return schema
    if "const" in schema or "enum" in schema:
        return True
    if "$ref" in schema and schema["$ref"] not in ending:
        return False
    if not all(ends(part, ending) for part in schema.get("allOf", [])):
        return False
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema and not any(ends(part, ending) for part in schema[keyword]):
            return False
    kinds = schema.get("type", ("string",))
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    if not kinds <= {"object", "array"}:  # an unknown one is the compiler's complaint
        return True
    return ("object" in kinds and _object_ends(schema, ending)) or (
        "array" in kinds and _array_ends(schema, ending)
    )


def _object_ends(schema: Mapping[str, Any], ending: set[str]) -> bool:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    patterns = schema.get("patternProperties", {})
    return all(
        # A name that only a pattern describes is taken to have a value.
        ends(properties.get(name, True if patterns else others), ending)
        for name in schema.get("required", [])
    )


def _array_ends(schema: Mapping[str, Any], ending: set[str]) -> bool:
    least, listed = schema.get("minItems", 0), schema.get("prefixItems", [])
    if not isinstance(least, int):
        return True  # no number: the compiler's complaint
    needed = listed[:least] + [schema.get("items", True)] * (least > len(listed))
    return all(ends(item, ending) for item in needed)
