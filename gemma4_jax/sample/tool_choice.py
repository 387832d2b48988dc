"""Whether a model may, must or must not call tools: OpenAI's `tool_choice`, as a constraint or as ids.

`auto` leaves it to the model. `none` forbids the tokens of calls. `required` constrains the output to calls
of any declared tool, a tool's name to one call of that tool.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gemma4_jax.errors import UserError, unknown
from gemma4_jax.sample.call_grammar import call_grammar
from gemma4_jax.sample.constraints import Constraint
from gemma4_jax.text import control
from gemma4_jax.text.messages import read_tools
from gemma4_jax.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    # "auto", "none", "required", a tool's name, or {"type": "function", "function": {"name": ...}}.
    ToolChoice = str | Mapping[str, Any]
else:
    ToolChoice = Any  # read here, with a better error than a run-time type checker's

_MODES = ("auto", "none", "required")
# Models loop; `required` must come to an end.
_MOST_CALLS = 8


def constraint_of(
    choice: ToolChoice, tools: Sequence[Mapping[str, Any]] | None, tokenizer: Tokenizer
) -> Constraint | None:
    """The constraint of `required` or of a name, None for the others.

    Raises UserError for an unknown tool, for no tools at all, and for parameters that cannot be kept.
    """
    functions = read_tools(tools)
    name = read_choice(choice, [function["name"] for function in functions])
    if name in ("auto", "none"):
        return None
    if name == "required":
        chosen, most = functions, _MOST_CALLS
    else:
        # In a mapping, so that a tool may have the name of a mode.
        wanted = choice["function"]["name"] if isinstance(choice, Mapping) else choice
        chosen, most = tuple(f for f in functions if f["name"] == wanted), 1
    return Constraint(kind="lark", text=call_grammar(chosen, tokenizer, most), calls=True)


def read_choice(choice: ToolChoice, names: Sequence[str]) -> str:
    """The mode, "named" for a tool that was named; UserError if that is none of `names`."""
    if isinstance(choice, str) and choice in _MODES:
        if choice == "required" and not names:
            raise UserError("tool_choice 'required' needs tools; give some")
        return choice
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
    else:
        name = choice
    if not isinstance(name, str):
        raise UserError(
            f"tool_choice must be auto, none, required, a tool's name or "
            f'{{"type": "function", "function": {{"name": ...}}}}, got {choice!r:.80}'
        )
    if name not in names:
        known = names if isinstance(choice, Mapping) else [*_MODES, *names]
        raise unknown("tool in tool_choice", name, known)
    return "named"


def forbidden_ids(choice: ToolChoice, tokenizer: Tokenizer) -> list[int]:
    """The ids that must not come: with `none` those that open and close a call."""
    if choice != "none":
        return []
    names = (control.CALL, control.CALL_END)
    return [tokenizer.control_tokens[name] for name in names if name in tokenizer.control_tokens]
