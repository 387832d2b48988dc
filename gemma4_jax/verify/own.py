"""A person's own verifier: a Python file with a function `verify(output, row)`, run in the sandbox.

    def verify(output, row):
        return output.strip().endswith(row["ending"])

It gets what follows the thought, and the row, and returns True, False, or a number from 0 to 1. It runs
in the sandbox because it works on text that nobody has read: one that evaluates it does no harm.
"""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma4_jax.errors import UserError
from gemma4_jax.verify.judgement import Judgement, Verifier, content_of
from gemma4_jax.verify.sandbox import Sandbox


def python_file(path: Path, sandbox: Sandbox) -> Verifier:
    """The verifier in a file. UserError if it is none, and when it returns something else.

    An exception in it makes the output wrong, with a note: what models write is often not what was
    expected of it.
    """
    source = _read(path)

    def verify(output: str, row: Mapping[str, Any], prompt: str = "") -> Judgement:
        content = content_of(output, prompt)
        if content is None:
            return Judgement(score=0.0, note="nothing after the thought")
        result = sandbox.call(source, "verify", [[content, dict(row)]]).results[0]
        if result.error:
            return Judgement(score=0.0, note=f"{path.name}: {result.error}")
        if not isinstance(result.value, bool | int | float) or not 0 <= result.value <= 1:
            raise UserError(
                f"{path}: verify must return True, False or a number from 0 to 1, "
                f"it returned {result.value!r:.80}"
            )
        return Judgement(score=float(result.value))

    return verify


def _read(path: Path) -> str:
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except OSError as error:
        raise UserError(f"cannot read the verifier {path}: {error.strerror}") from None
    except (SyntaxError, ValueError) as error:
        raise UserError(f"the verifier {path} is not Python: {error}") from None
    if not any(isinstance(node, ast.FunctionDef) and node.name == "verify" for node in tree.body):
        raise UserError(f"the verifier {path} must define `def verify(output, row)`")
    return source
