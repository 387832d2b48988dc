"""Verifiers of programs: their functions under unit tests, or what they print for given inputs.

The program is the last fenced block of what follows the thought. It runs in the sandbox; what is expected
of it does not come near it.
"""

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from gemma4_jax.errors import UserError
from gemma4_jax.verify.judgement import Judgement, Verifier, column, content_of, program_in
from gemma4_jax.verify.sandbox import Sandbox

_NO_ANSWER = Judgement(score=0.0, note="nothing after the thought")


def unit_tests(sandbox: Sandbox) -> Verifier:
    """row: "tests" (Python), "functions" (names that they use); if given, "preamble", which stands before
    the program and before the tests (as HumanEval's prompt does: imports, helpers, a signature)."""

    def verify(output: str, row: Mapping[str, Any], prompt: str = "") -> Judgement:
        tests, functions = column(row, "tests"), column(row, "functions")
        preamble = row.get("preamble", "")
        content = content_of(output, prompt)
        if content is None:
            return _NO_ANSWER
        program = f"{preamble}\n{program_in(content)}"
        tested = sandbox.test(program, tests, functions, preamble=preamble)
        return Judgement(score=float(tested.passed), note=tested.note)

    return verify


def input_output(sandbox: Sandbox) -> Verifier:
    """row: "cases", a list of {"input", "output"}. Right if every one's output is (`same_output`); the
    first wrong one ends it."""

    def verify(output: str, row: Mapping[str, Any], prompt: str = "") -> Judgement:
        cases = column(row, "cases")
        if not cases:
            raise UserError("a row to verify needs at least one of 'cases'")
        content = content_of(output, prompt)
        if content is None:
            return _NO_ANSWER
        program = program_in(content)
        for number, case in enumerate(cases, 1):
            ended = sandbox.run(program, column(case, "input"))
            if ended.status != "ok":
                last = (ended.stderr.strip().splitlines() or [""])[-1]
                return Judgement(score=0.0, note=f"case {number}: {ended.status} {last}".strip())
            if not same_output(ended.stdout, column(case, "output")):
                shown = f"expected {case['output']!r:.200}, got {ended.stdout!r:.200}"
                return Judgement(score=0.0, note=f"case {number}: {shown}")
        return Judgement(score=1.0)

    return verify


def same_output(printed: str, expected: str) -> bool:
    """Whether two outputs have the same lines, trimmed, or the same numbers in them (1.0 and 1.00)."""
    ours, theirs = printed.strip().split("\n"), expected.strip().split("\n")
    return len(ours) == len(theirs) and all(
        a.strip() == b.strip() or _same_numbers(a, b) for a, b in zip(ours, theirs, strict=True)
    )


def _same_numbers(ours: str, theirs: str) -> bool:
    try:
        return [Decimal(word) for word in ours.split()] == [Decimal(w) for w in theirs.split()]
    except InvalidOperation:
        return False
