"""Python functions as tools: what a model is told of them, and what it may pass them."""

from collections.abc import Callable
from typing import Any, Literal

import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.text import chat
from gemma4_jax.text.functions import call, declaration


def weather(
    city: str, days: int = 1, unit: Literal["C", "F"] = "C", tags: list[str] | None = None
) -> dict[str, Any]:
    """The forecast of a city,
    day by day.

    Args:
      city: its name, in English
        or French: as written there.
      days (int): how many.

    Returns:
      city: no argument.
    """
    return {"city": city, "days": days, "unit": unit, "tags": tags}


def test_a_declaration_is_read_off_signature_and_docstring():
    assert declaration(weather) == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The forecast of a city, day by day.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {
                        "description": "its name, in English or French: as written there.",
                        "type": "string",
                    },
                    "days": {"description": "how many.", "type": "integer"},
                    "unit": {"type": "string", "enum": ["C", "F"]},
                    "tags": {"type": "array", "items": {"type": "string"}, "nullable": True},
                },
                "required": ["city"],
            },
        },
    }
    prompt = chat.render([{"role": "user", "content": "Hi"}], tools=[declaration(weather)])
    assert '<|tool>declaration:weather{description:<|"|>The forecast of a city' in prompt


def test_types_become_schemas():
    def f(a: float, b: bool, c: dict[str, int], d: int | str, e: Any, g: list, h: dict) -> None:
        pass

    found = declaration(f)["function"]["parameters"]["properties"]
    assert found == {
        "a": {"type": "number"},
        "b": {"type": "boolean"},
        "c": {"type": "object", "additionalProperties": {"type": "integer"}},
        "d": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        "e": {},
        "g": {"type": "array"},
        "h": {"type": "object"},
    }
    assert declaration(f)["function"]["description"] == ""


def untyped(a):  # what is refused needs a function without annotations
    return a


def stars(*a: int) -> None:
    pass


def odd(a: Callable[..., int]) -> None:
    pass


def places(a: int, /) -> None:
    pass


def missing(a: "Nowhere") -> None:
    pass


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (untyped, "untyped: a has no type; write a: str"),
        (stars, r"\*a cannot be declared"),
        (places, "usable by name"),
        (odd, "a has the type .*Callable.*no tool can declare.*known: str"),
        (missing, "missing: name 'Nowhere'"),
    ],
)
def test_what_cannot_be_declared(function, message):
    with pytest.raises(UserError, match=message):
        declaration(function)


def test_calls_get_the_declared_types_alone():
    text = call(weather, {"city": "Paris", "days": 2, "tags": None})
    assert text == '{"city": "Paris", "days": 2, "unit": "C", "tags": null}'
    assert call(lambda_like, {"x": 1}) == 1.5 and call(lambda_like, {"x": 0.5}) == 1.0
    for arguments, message in (
        ({}, "needs the argument 'city'"),
        ({"town": "x"}, "no argument 'town'.*known: city"),
        ({"city": 5}, "city must be str, got 5"),
        ({"city": "x", "days": True}, "days must be int"),
        ({"city": "x", "days": 1.0}, "days must be int, got 1.0"),
        ({"city": "x", "unit": "K"}, "unit must be .*Literal"),
        ({"city": "x", "tags": ["a", 1]}, "tags must be"),
    ):
        with pytest.raises(UserError, match=message):
            call(weather, arguments)


def lambda_like(x: float) -> float:
    return x + 0.5
