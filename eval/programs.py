"""A model's program: out of its answer, through a test, and its output beside what was expected.

    code = last_block(answer.text)
    failure = failed_case(sandbox, code, [Case("3 4\n", "7\n")], Limits(seconds=6))      # "" if it passes

Expected outputs never enter the sandbox. Not here: the sandbox (gemma4_jax/verify/sandbox.py), a
benchmark's own way of running (eval/lcb_official.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

from gemma4_jax.verify.sandbox import Limits, Sandbox


@dataclass(frozen=True)
class Case:
    """One test: what goes in, and what a right program writes (or, of a function, returns), as text."""

    input: str
    output: str


def blocks(text: str) -> list[str]:
    """What stands between fences that have a line to themselves; the first may name a language."""
    found: list[str] = []
    inside: list[str] | None = None
    for line in text.split("\n"):
        fence = line.strip(" \t")
        if inside is None:
            if fence.startswith("```") and "`" not in fence[3:]:
                inside = []
        elif fence == "```":
            found.append("".join(f"{kept}\n" for kept in inside))
            inside = None
        else:
            inside.append(line)
    return found


def last_block(text: str) -> str:
    """What stands between the last two lines that hold ``` anywhere; "" if there are fewer than two.

    LiveCodeBench's rule (lcb_runner/utils/extraction_utils.py). Its quirks: a fence inside a sentence
    counts, and after an odd number of fences what is found is the text between two blocks.
    """
    lines = text.split("\n")
    fences = [i for i, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) >= 2 else ""


def differs(output: str, expected: str) -> str:
    """Why an output is wrong; "" if it is right.

    Equal after stripping the whole and each line; a line that differs may still be equal as decimal
    numbers, word by word (1.0 is 1, 1e3 is 1000; there is no tolerance).
    """
    got, want = _lines(output), _lines(expected)
    if len(got) != len(want):
        return f"expected {_shown(expected)}, got {_shown(output)}"
    for number, (one, other) in enumerate(zip(got, want, strict=True), 1):
        if one != other and not _same_numbers(one, other):
            return f"line {number}: expected {_shown(other)}, got {_shown(one)}"
    return ""


def failed_case(sandbox: Sandbox, code: str, cases: Sequence[Case], limits: Limits) -> str:
    """Run a program on each case as a process of its own; the first failure, as text, or "" if it passes
    all."""
    for number, case in enumerate(cases, 1):
        # A right answer fits; beyond this the output is wrong whatever it says.
        room = max(limits.output_bytes, 4 * len(case.output.encode()) + (1 << 16))
        outcome = sandbox.run(code, stdin=case.input, limits=replace(limits, output_bytes=room))
        why = differs(outcome.stdout, case.output) if outcome.status == "ok" else outcome.status
        if outcome.status == "failed":
            why = _last_line(outcome.stderr) or f"exit code {outcome.exit_code}"
        if why:
            return f"test {number} of {len(cases)}: {why}"
    return ""


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_numbers(one: str, other: str) -> bool:
    try:
        return [Decimal(word) for word in one.split()] == [Decimal(word) for word in other.split()]
    except InvalidOperation:
        return False


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2][:200]


def _shown(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 60 else text[:60] + "...")
