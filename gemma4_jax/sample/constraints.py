"""What an output must look like: a JSON schema, a regular expression, a list of choices, a grammar.

Here: the value that is part of a request, checked as far as no grammar library is needed for it. Not here:
the JSON schemas that cannot be kept (`schema_check.py`), tool calls (`tool_choice.py`), masks (`matcher.py`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gemma4_jax.errors import UserError
from gemma4_jax.sample.schema_check import check_schema


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """A bound on what an output may be; made by the functions below, the same for any number of requests.

    A finished output (one that ended by a stop id) keeps it; one that max_new_tokens cut is a beginning
    of some output that would. With thinking on, it holds for what follows the thought.

    kind: how `text` is written. calls: the output is tool calls, so the token with which a model waits
    for their results may end it.
    """

    kind: Literal["json", "regex", "lark"]
    text: str
    calls: bool = False


def json_schema(schema: str | bool | Mapping[str, Any]) -> Constraint:
    """JSON that satisfies a schema (draft 2020-12), written without white space, keys in the schema's order.

    schema: the schema or its JSON text. Raises UserError for one that is no schema, that nothing
    satisfies, or that cannot be kept token by token, naming the place.
    """
    try:
        if isinstance(schema, str):
            schema = json.loads(schema)
        # Only objects take the options of the compiler; True is the schema without a demand.
        text = json.dumps({} if schema is True else schema)
        check_schema(schema)
    except UserError:
        raise
    except (TypeError, ValueError) as error:  # a value that is none, or that contains itself
        raise UserError(f"the schema is not JSON: {error}") from None
    except RecursionError:
        raise UserError("the schema is nested too deeply; make it flatter, or use $ref") from None
    return Constraint(kind="json", text=text)


def regex(pattern: str) -> Constraint:
    """Text that matches a regular expression from its first to its last character.

    The syntax is that of Rust's `regex`: no look-around, no back references; `.` is any character but \\n.
    """
    if not isinstance(pattern, str) or not pattern:
        raise UserError(f"a regex must be text and not empty, got {pattern!r}")
    return Constraint(kind="regex", text=pattern)


def choices(texts: Sequence[str]) -> Constraint:
    """One of some texts."""
    if isinstance(texts, str) or not texts:
        raise UserError(f"choices must be a list of at least one text, got {texts!r}")
    for text in texts:
        if not isinstance(text, str) or not text:
            raise UserError(f"a choice must be text and not empty, got {text!r}")
    return Constraint(kind="lark", text="start: " + " | ".join(map(quoted, dict.fromkeys(texts))))


def grammar(lark: str) -> Constraint:
    """Text of a context-free grammar in Lark's syntax, as llguidance reads it; `start` is its first rule.

    https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
    """
    if not isinstance(lark, str) or not lark.strip():
        raise UserError("the grammar is empty; it must have a rule named start")
    return Constraint(kind="lark", text=lark)


def quoted(text: str) -> str:
    """A text as a literal of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
