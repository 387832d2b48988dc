"""Random JSON schemas that have short values, of every keyword that is kept."""

import random
from typing import Any

NAMES = ("name", "n", "a b", "K", "é", "x.y", "id", "_", "tags", "when")
TEXTS = ("", "a", "two words", 'q"\\', "é", "\n", "https://x.y/z?a=b", "</s>", "true", "7")
PATTERNS = (
    r"^[a-z]{2,5}$",
    r"^\d{4}-\d{2}$",
    r"[A-Z][a-z]?",
    r"^(yes|no)$",
    r"^#[0-9a-f]{3}$",
    r"^[^,;]{1,4}$",
)


def schema(rng: random.Random, depth: int = 3, defs: tuple[str, ...] = ()) -> dict[str, Any]:
    """One schema; at depth 0 a scalar's. defs: names under #/$defs that may be referred to."""
    kinds = ["string", "pattern", "integer", "number", "boolean", "null", "enum", "const", "types"]
    if depth:
        kinds += ["object"] * 5 + ["array"] * 3 + ["anyOf", "anyOf", "allOf", "map", "tuple"]
    if defs:
        kinds += ["ref"] * 2
    match rng.choice(kinds):
        case "string":
            least = rng.choice([0, 0, 1, 3])
            return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 6)}
        case "pattern":
            return {"type": "string", "pattern": rng.choice(PATTERNS), "maxLength": 12}
        case "integer":
            step = {"multipleOf": rng.choice([2, 5, 7])} if rng.random() < 0.3 else {}
            return (
                {"type": "integer"}
                | step
                | _bounds(rng, rng.randint(-200, 200), rng.randint(9, 400))
            )
        case "number":
            low = round(rng.uniform(-3, 3), rng.randint(0, 3))
            return {"type": "number"} | _bounds(rng, low, rng.choice([0.25, 1, 7.5, 1000]))
        case "boolean":
            return {"type": "boolean"}
        case "null":
            return {"type": "null", "description": "nothing"}
        case "enum":
            return {"enum": [value(rng) for _ in range(rng.randint(1, 4))]}
        case "const":
            return {"const": value(rng)}
        case "types":
            return {
                "type": rng.sample(["string", "integer", "null", "boolean"], k=2),
                "maxLength": 4,
                "minimum": 0,
                "maximum": 9,
            }
        case "object":
            return _object(rng, depth, defs)
        case "array":
            least = rng.choice([0, 0, 1, 2])
            most = {"maxItems": least + rng.randint(0, 2)}
            return {
                "type": "array",
                "items": schema(rng, depth - 1, defs),
                "minItems": least,
            } | most
        case "anyOf":
            return {"anyOf": [schema(rng, depth - 1, defs) for _ in range(rng.randint(1, 3))]}
        case "allOf":
            return {"allOf": [schema(rng, depth - 1, defs), {"title": "the same"}]}
        case "map":
            return {
                "type": "object",
                "additionalProperties": schema(rng, 0),
                "maxProperties": rng.randint(0, 2),
            }
        case "tuple":
            items = [schema(rng, depth - 1, defs) for _ in range(rng.randint(1, 2))]
            return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    return {"$ref": f"#/$defs/{rng.choice(defs)}"}


def root(rng: random.Random) -> dict[str, Any]:
    """A schema, at times with definitions that may contain themselves."""
    if rng.random() < 0.7:
        return schema(rng)
    node = {
        "type": "object",
        "properties": {
            "value": schema(rng, 1),
            "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
        },
        "required": ["value", "next"],
        "additionalProperties": False,
    }
    defs = {"node": node, "leaf": schema(rng, 0)}
    return {"$defs": defs} | schema(rng, 2, ("node", "leaf"))


def value(rng: random.Random) -> Any:
    """A JSON value."""
    numbers = [0, -7, 3, 0.5, -2.25, 1000000, 0.001]
    simple = [None, True, False, rng.choice(numbers), rng.choice(TEXTS), rng.choice(TEXTS)]
    if rng.random() < 0.8:
        return rng.choice(simple)
    return rng.choice([[rng.choice(simple), 1], {"k": rng.choice(simple)}, [], {}])


def _bounds(rng: random.Random, low: float, width: float) -> dict[str, float]:
    kept = {
        rng.choice(["minimum", "exclusiveMinimum"]): low,
        rng.choice(["maximum", "exclusiveMaximum"]): low + width + 1,
    }
    return {name: bound for name, bound in kept.items() if rng.random() < 0.8}


def _object(rng: random.Random, depth: int, defs: tuple[str, ...]) -> dict[str, Any]:
    names = rng.sample(NAMES, k=rng.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: schema(rng, depth - 1, defs) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
        "additionalProperties": rng.choice([False, False, False, {"type": "boolean"}]),
    }
