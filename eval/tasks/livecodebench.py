"""LiveCodeBench, code generation: contest problems by date, answered in Python and run on hidden tests.

    task(release="v6", start="2024-08-01", end="2025-05-01")       # the window stands in the title

Reference: LiveCodeBench/LiveCodeBench (MIT), lcb_runner: prompt of its generic chat style, last fenced
block, all tests must pass. Data: `livecodebench/code_generation_lite`, files test.jsonl to test6.jsonl.
Two ways to check run on every answer; one gives the score, the summary counts where they differ:
  strict (default)  a real program on a real stdin per test; of functions, calls that return plain values
  official          the reference's verdict with its quirks; eval/lcb_official.py
Both run in the sandbox with the expected outputs outside. Differs from the reference: its 10 samples of 2000
tokens at temperature 0.2 with stop "###" are kept under `reference` alone; a file is never unpickled freely.
Known of the data (ERRATA.md there): 11 problems accept several outputs but are judged by one, 2 are
interactive, 4 have wrong tests; all are kept, as there. Published: which dates Google took for "v6" was
not found.
"""

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

from eval.lcb_driver import PRELUDE
from eval.lcb_official import official
from eval.programs import Case, failed_case, last_block
from eval.published import of_gemma
from eval.rows import Row, read_rows, unique_items
from eval.task import Answer, Graded, Item, Message, Protocol, Settings, Task, Verdict
from gemma4_jax.errors import UserError, unknown
from gemma4_jax.verify.sandbox import Limits, Sandbox

Checking = Literal["strict", "official"]

# Problems up to and with each release; release N adds the file test{N}.jsonl (README, 2025-04).
RELEASES = {"v1": 400, "v2": 511, "v3": 612, "v4": 713, "v5": 880, "v6": 1055}
COLUMNS = (
    "question_title", "question_content", "platform", "question_id", "contest_date", "difficulty",
    "public_test_cases", "private_test_cases",
)  # fmt: skip
UNPACKED = 1 << 30  # bytes that one problem's private tests may become
LIMITS = Limits(seconds=6.0, memory_bytes=4 << 30)  # the reference's; it sets no bound of memory

SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will "
    "generate "
    "a correct Python program that matches the specification and passes all tests."
)
_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your code "
    "within "
    "delimiters."
)
_STDIN = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test "
    "on the "
    "sample inputs). Enclose your code within delimiters as follows. Ensure that when the python program "
    "runs, it "
    "reads the inputs, runs the algorithm and writes output to STDOUT."
)


def load(path: Path, release: str = "", start: str = "", end: str = "") -> list[Item]:
    """Problems of a file or folder whose contest was within [start, end], both days included, "" for no
    bound.

    release: "v1" to "v6" takes a folder's files up to that one, and their number must be the published one.
    UserError also for a bad date, and for tests that are no JSON, unpack to more than 1 GiB, or are
    pickled as anything but one string.
    """
    first, last = _day(start, "start"), _day(end, "end")
    if first and last and first > last:
        raise UserError(f"the window ends ({end}) before it begins ({start})")
    items = unique_items(_items(path, _files(release), first, last))
    if release and not start and not end and len(items) != RELEASES[release]:
        raise UserError(
            f"{path}: release {release} has {RELEASES[release]} problems, found {len(items)}; fetch the "
            f"missing "
            "files, or leave the release out"
        )
    if not items:
        raise UserError(f"{path}: no problem from {start or 'the first'} to {end or 'the last'}")
    return items


def prompt(item: Item, sample: int, protocol: Protocol) -> list[Message]:
    """The reference's generic chat prompt."""
    starter = item.data["starter_code"]
    shown = starter or "# YOUR CODE HERE"
    user = (
        f"### Question:\n{item.data['question_content']}\n\n### Format: {_STARTER if starter else _STDIN}\n"
        f"```python\n{shown}\n```\n\n### Answer: (use the provided format with backticks)\n\n"
    )
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]


def extract(text: str) -> str:
    """The program in an answer; "" if there is none."""
    return last_block(text)


def score(item: Item, answer: Answer, checking: Checking = "strict") -> Verdict:
    """1 if all tests pass, by the way of checking asked for; both are in the details."""
    if answer.sandbox is None:
        raise ValueError("LiveCodeBench runs programs: its answers need a sandbox")
    code = extract(answer.text)
    if not code:
        verdicts = {"strict": False, "official": False, "official_results": []}
        return Verdict(score=0.0, extracted=None, note="no fenced block", details=verdicts)
    cases, function = tests(item), item.data["function"]
    results = official(answer.sandbox, code, cases, function)
    if function is None:
        why = failed_case(answer.sandbox, code, cases, LIMITS)
    else:
        why = _failed_call(answer.sandbox, code, cases, function)
    passed = {"strict": not why, "official": all(result > 0 for result in results)}
    if checking == "official":
        why = "" if passed["official"] else f"test {len(results)} of {len(cases)}: {results[-1]}"
    if passed["strict"] != passed["official"]:
        only = "strict" if passed["strict"] else "official"
        why = f"passes only the {only} check{'; ' + why if why else ''}"
    return Verdict(
        score=float(passed[checking]),
        extracted=code,
        note=why,
        details={**passed, "official_results": results},
    )


def tests(item: Item) -> list[Case]:
    """Public, then private tests."""
    both = [item.data["public_test_cases"], item.data["private_test_cases"]]
    return [Case(case["input"], case["output"]) for text in both for case in _cases(text)]


def summary(graded: Sequence[Graded]) -> Mapping[str, float]:
    """Both ways of checking, where they differ, answers without a program, first and last contest
    day."""
    if not graded:
        return {}
    # A thought without an end is judged by others, without details.
    strict = [bool(one.verdict.details.get("strict")) for one in graded]
    loose = [bool(one.verdict.details.get("official")) for one in graded]
    pairs = list(zip(strict, loose, strict=True))
    days = [int(one.item.data["contest_date"].replace("-", "")) for one in graded]
    return {
        "strict": sum(strict) / len(graded),
        "official": sum(loose) / len(graded),
        "passes only strict": sum(one and not other for one, other in pairs),
        "passes only official": sum(other and not one for one, other in pairs),
        "without a program": sum(one.verdict.extracted is None for one in graded),
        "first contest (yyyymmdd)": min(days),
        "last contest (yyyymmdd)": max(days),
    }


def task(release: str = "", start: str = "", end: str = "", checking: Checking = "strict") -> Task:
    """LiveCodeBench of a release, a window of contest days (ISO dates), and a way of checking."""
    if checking not in ("strict", "official"):
        raise unknown("way of checking", checking, ("strict", "official"))
    _files(release), _day(start, "start"), _day(end, "end")
    window = f"{start or '...'} to {end or '...'}" if start or end else "all dates of the file"
    named = [f"release {release}"] * bool(release) + [window, f"{checking} checking"]
    return Task(
        name="livecodebench",
        title=f"LiveCodeBench ({', '.join(named)})",
        load=lambda path: load(path, release, start, end),
        prompt=prompt,
        score=lambda item, answer: score(item, answer, checking),
        settings={
            "thinking": Settings(max_tokens=65536, samples=1),
            "reference": Settings(
                max_tokens=2000,
                samples=10,
                thinking=False,
                temperature=0.2,
                top_k=None,
                stop=("###",),
            ),
        },
        published=PUBLISHED,
        runs_programs=True,
        summary=summary,
    )


def unpickled(data: bytes) -> str:
    """A pickle of one string; UserError for any other, without running anything that it names."""
    try:
        value = _OnlyStrings(io.BytesIO(data)).load()
    except UserError:
        raise
    except Exception as error:  # a broken pickle raises whatever it likes
        raise UserError(f"no pickle of a string: {error}") from None
    if not isinstance(value, str):
        raise UserError(f"a pickle of {type(value).__name__}, not of a string")
    return value


class _OnlyStrings(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise UserError(f"a pickle that names {module}.{name}; one string is all it may hold")

    def persistent_load(self, pid: Any) -> Any:
        raise UserError("a pickle with outside references; one string is all it may hold")


def _failed_call(sandbox: Sandbox, code: str, cases: Sequence[Case], function: str) -> str:
    """Call the function on every case; the first failure, as text, or "" if it passes all."""
    try:
        arguments = [[json.loads(line) for line in case.input.split("\n")] for case in cases]
        expected = [json.loads(case.output) for case in cases]
    except (ValueError, RecursionError) as error:
        return f"a test is no JSON: {error}"
    limits = replace(LIMITS, seconds=LIMITS.seconds * (len(cases) + 1))
    name = f"Solution.{function}" if "class Solution" in code else function
    # Annotations like List[int] need the reference's imports.
    called = sandbox.call(
        f"{PRELUDE}\n{code}", name, arguments, limits=limits, seconds_each=LIMITS.seconds
    )
    for number, (result, right) in enumerate(zip(called.results, expected, strict=True), 1):
        value = list(result.value) if isinstance(result.value, tuple) else result.value
        if result.error or value != right:
            why = result.error or f"expected {right!r:.60}, got {value!r:.60}"
            return f"test {number} of {len(cases)}: {why}"
    return ""


def _items(
    path: Path, files: str, first: date | None, last: date | None
) -> Iterator[tuple[Row, Item]]:
    for row in read_rows(path, COLUMNS, named=files):
        day = _contest_day(row)
        if (first and day < first) or (last and day > last):
            continue
        try:
            cases = [c for name in COLUMNS[-2:] for c in _cases(row.text(name))]
            metadata = json.loads(row.data.get("metadata") or "{}")
            function = metadata.get("func_name")
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise row.error(f"its tests or metadata cannot be read: {error}") from None
        if not cases:
            raise row.error("it has no tests")
        data = {name: row.text(name) for name in COLUMNS}
        data |= {
            "starter_code": row.data.get("starter_code") or "",
            "function": function,
            "contest_date": day.isoformat(),
        }
        yield row, Item(id=row.text("question_id"), data=data, category=row.text("difficulty"))


def _cases(text: str) -> list[Mapping[str, str]]:
    """A list of tests, as JSON or as base64(zlib(pickle(JSON)))."""
    try:
        cases = json.loads(text)
    except ValueError:
        cases = json.loads(_unpacked(text))
    for case in cases if isinstance(cases, list) else [None]:
        if not isinstance(case, dict) or not all(
            isinstance(case.get(name), str) for name in ("input", "output")
        ):
            raise UserError("tests must be a list of objects with texts 'input' and 'output'")
    return cases


def _unpacked(text: str) -> str:
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(text), UNPACKED)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise UserError(f"neither JSON nor base64 of zlib ({error})") from None
    if inflate.unconsumed_tail or not inflate.eof:
        raise UserError(f"cut off, or unpacks to more than {UNPACKED:,} bytes")
    return unpickled(data)


def _contest_day(row: Row) -> date:
    value = row.data["contest_date"]
    try:
        return date.fromisoformat(str(value)[:10])
    except ValueError:
        raise row.error(f"'contest_date' must be an ISO date, got {value!r:.60}") from None


def _day(text: str, name: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise UserError(
            f"the window's {name} must be a date like 2024-08-01, got {text!r}"
        ) from None


def _files(release: str) -> str:
    """Which of a folder's files: a pattern for `read_rows`."""
    if not release:
        return ""
    if release not in RELEASES:
        raise unknown("release", release, RELEASES)
    return rf"^test[1-{release[1:]}]?\.(jsonl|parquet)"


PUBLISHED = of_gemma(80.0, 77.1, 72.0, 52.0, 44.0, note="v6; window not stated")

TASK = task()
