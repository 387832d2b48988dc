"""A model's program: out of its answer, through a test, and its output beside what was expected.

    code = last_block(answer.text)
    failure = failed_case(sandbox, code, [Case("3 4\n", "7\n")], Limits(seconds=6))      # "" if it passes

Expected outputs never enter the sandbox. Not here: the sandbox (gemma4_jax/verify/sandbox.py), a
benchmark's own way of running (eval/lcb_official.py).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

from eval.task import Graded
from gemma4_jax.verify.sandbox import Limits, Sandbox

_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """One test: what goes in, and what a right program writes (or, of a function, returns), as text."""

    input: str
    output: str


def blocks(text: str) -> list[str]:
    """What stands between fences that have a line to themselves, in order."""
    return _FENCED.findall(text)


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


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that k of n samples, drawn without replacement, hold a correct one (arXiv 2107.03374)."""
    if not 0 <= correct <= n or not 0 < k <= n:
        raise ValueError(f"need 0 <= correct <= n and 0 < k <= n, got {correct} of {n}, k = {k}")
    missed = 1.0
    for i in range(n - correct + 1, n + 1):
        missed *= 1.0 - k / i if i > k else 0.0
    return 1.0 - missed


def pass_at_ks(graded: Iterable[Graded]) -> Mapping[str, float]:
    """pass@1, 2, 5, 10 ... as far as every item has samples, averaged over items."""
    counts: dict[str, list[int]] = {}
    for one in graded:
        n_correct = counts.setdefault(one.item.id, [0, 0])
        n_correct[0] += 1
        n_correct[1] += one.verdict.score == 1.0
    fewest = min((n for n, _ in counts.values()), default=0)
    ks = [k for k in (1, 2, 5, 10, 20, 50, 100, 200) if k <= fewest]
    return {
        f"pass@{k}": sum(pass_at_k(n, c, k) for n, c in counts.values()) / len(counts) for k in ks
    }


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
