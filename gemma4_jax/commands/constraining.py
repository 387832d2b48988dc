"""The flags of `generate` that say what an answer must look like, and the tools it may call."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma4_jax.errors import UserError

if TYPE_CHECKING:
    from gemma4_jax.sample.constraints import Constraint


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--schema, --regex, --choices, --grammar, --prefix; --tools and --tool-choice."""
    for name, value, about in (
        ("--schema", "FILE", "answer with JSON that satisfies the schema in FILE"),
        ("--regex", "R", "answer with a text that matches R as a whole"),
        ("--choices", "A,B,...", "answer with one of these texts"),
        ("--grammar", "FILE", "answer with a text of the Lark grammar in FILE"),
        ("--tools", "FILE", "tools the model may call: a JSON list in OpenAI's form"),
    ):
        parser.add_argument(name, metavar=value, help=about)
    parser.add_argument(
        "--prefix",
        metavar="TEXT",
        help="an answer begins with TEXT, and the model goes on from there",
    )
    parser.add_argument(
        "--tool-choice",
        default="auto",
        metavar="WHICH",
        help="auto, none, required, or the tool that must be called (default: auto)",
    )


def read_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of sampling that the flags ask for."""
    tools = None if arguments.tools is None else read_tools_file(arguments.tools)
    asked = {
        "constraint": _constraint(arguments),
        "tools": tools,
        "tool_choice": arguments.tool_choice,
    }
    return asked if arguments.prefix is None else asked | {"prefix": arguments.prefix}


def read_tools_file(path: str) -> list[Any]:
    """Tool declarations from a JSON file, checked."""
    from gemma4_jax.text.messages import read_tools

    try:
        tools = json.loads(_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    read_tools(tools)
    return list(tools)


def _constraint(arguments: argparse.Namespace) -> Constraint | None:
    from gemma4_jax.sample import constraints

    names = ("schema", "regex", "choices", "grammar")
    given = [name for name in names if getattr(arguments, name) is not None]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} both say what the answer is; drop one")
    if not given:
        return None
    value = getattr(arguments, given[0])
    match given[0]:
        case "schema":
            return constraints.json_schema(_text(value))
        case "regex":
            return constraints.regex(value)
        case "choices":
            return constraints.choices([text.strip() for text in value.split(",")])
    return constraints.grammar(_text(value))


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"{path}: {reason}") from None
