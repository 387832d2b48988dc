"""A person's own functions as tools of a chat: loaded from a file, asked about, run, and not for ever.

Here: the file, the question before a call, the bounds on a model that goes on calling. What is declared and
how a function is called is `text/functions.py`.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma4_jax.errors import UserError

if TYPE_CHECKING:
    from gemma4_jax.text.arguments import ToolCall

#: Answers in a row that only call tools, before the person has to say something again.
MOST_ROUNDS = 8
_SHOWN = 500  # characters of a result on the terminal
_QUESTION = "run it? [y]es, [n]o, [a]lways this tool: "


def load_functions(path: str) -> dict[str, Callable[..., Any]]:
    """The public functions that a Python file defines, in its order. The file is run.

    Raises UserError for a file that is not there, fails, or defines none.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path}: no such file to read tools from")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: tools come from a Python file, whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a file may do as it is run
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} fails: {why}") from None
    found = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == file.stem and not name.startswith("_")
    }
    if not found:
        raise UserError(f"{path} defines no public function to offer as a tool")
    return {function.__name__: function for function in found.values()}


@dataclass
class Toolbox:
    """Functions that a model may ask for, and what the person has allowed.

    ask: shows a question and returns the answer, None where there is none.
    """

    functions: Mapping[str, Callable[..., Any]]
    ask: Callable[[str], str | None]
    always: set[str] = field(default_factory=set)
    _results: dict[str, Any] = field(default_factory=dict)
    _repeated: set[str] = field(default_factory=set)

    def declarations(self) -> list[dict[str, Any]]:
        """What the model is told of them."""
        from gemma4_jax.text.functions import declaration

        return [declaration(function) for function in self.functions.values()]

    def begin(self) -> None:
        """The person has said something: what was called before may be called again."""
        self._results, self._repeated = {}, set()

    def answer(self, call: ToolCall) -> tuple[Any, bool]:
        """What a call gives, in words where it was not run; and whether the model should go on.

        A call that was made since `begin` is not run again: its result is repeated once, and a model that
        does not heed that is stopped.
        """
        key = json.dumps([call.name, call.arguments], sort_keys=True)
        if key in self._repeated:
            return self._show("not run: the same call for the third time"), False
        if key in self._results:
            self._repeated.add(key)
            text = f"you have made this call before; its result was: {self._results[key]}"
            return self._show(text), True
        result, goes_on = self._run(call)
        self._results[key] = result
        return self._show(result), goes_on

    def _run(self, call: ToolCall) -> tuple[Any, bool]:
        from gemma4_jax.errors import unknown
        from gemma4_jax.text.functions import call as run

        function = self.functions.get(call.name)
        if function is None:
            return f"error: {unknown('tool', call.name, self.functions)}", True
        if not call.complete:
            return "error: the call was cut off; make it again, whole", True
        if call.name not in self.always:
            word = (self.ask(_QUESTION) or "").strip().lower()
            if word in ("a", "always"):
                self.always.add(call.name)
            elif word not in ("y", "yes"):
                return "the user does not allow this call", True
        try:
            return run(function, call.arguments), True
        except UserError as error:
            return f"error: {error}", True
        except KeyboardInterrupt:
            return "the user stopped this call", False
        except Exception as error:  # a tool may fail in any way; the model is told
            return f"error: {type(error).__name__}: {error}", True

    @staticmethod
    def _show(result: Any) -> Any:
        text = result if isinstance(result, str) else json.dumps(result)
        more = "" if len(text) <= _SHOWN else f"... ({len(text)} characters)"
        print(f"-> {text[:_SHOWN]}{more}", file=sys.stderr)
        return result
