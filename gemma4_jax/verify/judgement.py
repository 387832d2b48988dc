"""What a verifier says of an output, and what of the output it looks at.

Here: the common type, the answer's text, and the program in it. The verifiers are beside: `programs.py`,
`structured.py`, `own.py`, and exact numbers in `answers.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from gemma4_jax.errors import UserError
from gemma4_jax.text.parse import parse
from gemma4_jax.verify.answers import answer_number, to_number

_FENCE = re.compile(r"^[ \t]*(?:```+|~~~+)(.*)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """score: 0 to 1, or anything between that a verifier gives. note: why, for a person; "" if right."""

    score: float
    note: str = ""

    @property
    def right(self) -> bool:
        return self.score >= 1.0


@runtime_checkable
class Verifier(Protocol):
    """Judges an output by what its row expects.

    output: as decoded, control tokens included. row: as JSON knows it; each verifier names its columns.
    prompt: what the output continues, needed only if that can end inside a thought. What a model
    wrote never raises: it is wrong, and the note says why. A row without its columns is a UserError.
    """

    def __call__(self, output: str, row: Mapping[str, Any], prompt: str = "") -> Judgement: ...


def exact_number(output: str, row: Mapping[str, Any], prompt: str = "") -> Judgement:
    """A verifier: the number that the output ends up with is row["answer"] (`answers.py`)."""
    expected = to_number(column(row, "answer"))
    found = answer_number(output, prompt)
    if found is None:
        return Judgement(score=0.0, note="no number after the thought")
    right = found == expected
    return Judgement(score=float(right), note="" if right else f"expected {expected}, got {found}")


def content_of(output: str, prompt: str = "") -> str | None:
    """What follows the thought, trimmed; None if nothing does, as when the thought never ended."""
    return parse(output, prompt).content


def program_in(content: str) -> str:
    """The last fenced block of an answer, or all of it if it has none.

    A block that was not closed ends with the answer.
    """
    fences = list(_FENCE.finditer(content))
    if not fences:
        return content
    # Openers and closers alternate: an odd one out was not closed.
    opener = fences[-1] if len(fences) % 2 else fences[-2]
    end = len(content) if len(fences) % 2 else fences[-1].start()
    return content[opener.end() + 1 : end]


def column(row: Mapping[str, Any], name: str) -> Any:
    """row[name]; UserError if it has none."""
    if name not in row:
        raise UserError(f"a row to verify needs {name!r}, it has {', '.join(map(str, row))}")
    return row[name]
