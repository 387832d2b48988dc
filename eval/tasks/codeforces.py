"""Codeforces problems: judged offline on the tests that the data brings; an Elo where a person brings
standings.

    task()                                   # the "ML rating" with its standard error
    task(standings=Path("contests/"))        # and the Codeforces Elo, by CodeElo's mathematics
    (eval/rating.py)

Reference: CodeElo (arXiv 2501.01257): up to 8 submissions per problem, the first accepted one counts less
for each failed one before it; per contest the rating that explains the place; the mean over contests.
There a live judge needs an account, answers are in C++, and the statement is the site's HTML.
Differs: programs are Python and run in the sandbox at 5 times the stated limit of time (C++ is not run: a
compiler would have to work on untrusted text outside the sandbox); a test passes if the output equals the
given one (eval/programs.py), so other right outputs count as wrong; extraction takes the last block, under
`reference` the first, as there. Without standings nothing here is called a Codeforces Elo. How Google got
its numbers is not known.

Data: `Qwen/CodeElo` (its tests are the examples alone) and `open-r1/codeforces` (official and generated
tests). Left out when loading, and counted in the summary: problems that talk to a judge, that read or
write files, or that have no tests. Kept and counted: those with only their examples, an incomplete test
set, or a checker, which is not run. Standings: one JSON file per contest, or one file: {contest id:
{"standings": ..., "rating_changes": ...}}, the two `result`s of contest.standings and contest.ratingChanges.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.programs import Case, blocks, failed_case
from eval.published import of_gemma
from eval.rating import Contest, codeelo_rating, contest_from_api, maximum_likelihood
from eval.rows import Row, read_rows, unique_items
from eval.task import Answer, Graded, Item, Message, Protocol, Settings, Task, Verdict
from gemma4_jax.errors import UserError
from gemma4_jax.verify.sandbox import Limits

SLOWER = 5.0  # CPython against the C++ that limits of time are set for
SUBMISSIONS = 8

# CodeElo's: any word after the fence, and a line break before the closing one.
_OPENING = re.compile(r"```\w*\n")
_ASK = (
    "You are a coding expert. Solve the following competitive programming problem with a Python 3 "
    "program that "
    "reads from standard input and writes to standard output. At the end, give the complete program in "
    "one code "
    "block."
)
# What a problem lacks or brings that matters to its verdict; the first three leave it out.
INTERACTIVE, FILES, NO_TESTS = "interactive", "reads or writes files", "without tests"
EXAMPLES, INCOMPLETE, CHECKER = "examples only", "incomplete tests", "has a checker, not run"


def load(path: Path) -> list[Item]:
    """Problems in the schema of `Qwen/CodeElo` or `open-r1/codeforces`, whichever the columns say."""
    kept: list[tuple[Row, Item]] = []
    left_out: Counter[str] = Counter()
    for row in read_rows(path, ("title", "description", "examples")):
        marks = _marks(row)
        if marks[:1] and marks[0] in (INTERACTIVE, FILES, NO_TESTS):
            left_out[marks[0]] += 1
        else:
            kept.append((row, _item(row, marks)))
    if not kept:
        raise UserError(f"{path}: no problem to judge ({dict(left_out)})")
    # Every item knows the count: a summary sees items alone.
    return unique_items(
        (row, Item(id=i.id, category=i.category, data={**i.data, "left_out": dict(left_out)}))
        for row, i in kept
    )


def prompt(item: Item, sample: int, protocol: Protocol) -> list[Message]:
    """One user message: the request, and the statement under headings."""
    data = item.data
    parts = [f"{_ASK}\n\n# {data['title']}", f"Time limit: {data['seconds']:g} seconds"]
    for heading in ("description", "input", "output"):
        if data[heading]:
            parts.append(f"## {heading.capitalize()}\n{data[heading]}")
    for case in data["examples"]:
        parts.append(f"## Example\nInput:\n{case[0].strip()}\n\nOutput:\n{case[1].strip()}")
    if data["note"]:
        parts.append(f"## Note\n{data['note']}")
    return [{"role": "user", "content": "\n\n".join(parts)}]


def extract(text: str, protocol: Protocol = "thinking") -> str:
    """The last fenced block; under `reference` CodeElo's first. "" if there is none."""
    if protocol == "reference":
        opening = _OPENING.search(text)
        end = -1 if opening is None else text.find("\n```", opening.end())
        return "" if opening is None or end < 0 else text[opening.end() : end]
    return (blocks(text) or [""])[-1]


def score(item: Item, answer: Answer) -> Verdict:
    """1 if the program passes every given test."""
    if answer.sandbox is None:
        raise ValueError("Codeforces runs programs: its answers need a sandbox")
    code = extract(answer.text, answer.protocol)
    if not code:
        return Verdict(
            score=0.0, extracted=None, note="no fenced block", details={"status": "No code"}
        )
    limits = Limits(
        seconds=SLOWER * item.data["seconds"],
        memory_bytes=max(256 << 20, int(item.data["megabytes"]) << 20),
    )
    cases = [Case(*case) for case in item.data["tests"]]
    why = failed_case(answer.sandbox, code, cases, limits)
    return Verdict(
        score=float(not why), extracted=code, note=why, details={"status": "WA" if why else "AC"}
    )


def summary(graded: Sequence[Graded], contests: Mapping[str, Contest]) -> Mapping[str, float]:
    """The ML rating, the Codeforces Elo if there are standings, and what was left out or judged in
    part."""
    if not graded:
        return {}
    by_item: dict[str, list[Graded]] = {}
    for one in sorted(graded, key=lambda one: one.sample):
        by_item.setdefault(one.item.id, []).append(one)
    numbers: dict[str, float] = {}
    rated = [ones for ones in by_item.values() if ones[0].item.data["rating"] is not None]
    if rated:
        shares = [sum(one.verdict.score for one in ones) / len(ones) for ones in rated]
        found = maximum_likelihood([ones[0].item.data["rating"] for ones in rated], shares)
        if found is None:
            numbers["ML rating: none, all or nothing solved, of problems"] = len(rated)
        else:
            numbers["ML rating"], numbers["ML rating, standard error"] = found
            numbers["ML rating, problems"] = len(rated)
    if contests:
        numbers |= _elo(by_item, contests)
    first = graded[0].item.data
    numbers |= {f"left out: {why}": n for why, n in first["left_out"].items()}
    marks = Counter(mark for ones in by_item.values() for mark in ones[0].item.data["marks"])
    numbers |= {f"problems: {mark}": n for mark, n in marks.items()}
    return numbers


def load_standings(path: Path) -> dict[str, Contest]:
    """Contests by id, from a JSON file or a folder of them; UserError names what is wrong with which."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise UserError(f"no standings at {path}: a JSON file or a folder of them")
    contests = {}
    for file in files:
        try:
            document = json.loads(file.read_text("utf-8"))
            for number, both in document.items():
                contests[str(number)] = contest_from_api(both["standings"], both["rating_changes"])
        except UserError as error:
            raise UserError(f"{file}: contest {number}: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f'{file}: must be {{contest id: {{"standings": ..., "rating_changes": ...}}}} '
                f"({type(error).__name__}: {error})"
            ) from None
    return contests


def task(standings: Path | None = None) -> Task:
    """Codeforces, with a person's standings or without."""
    contests = {} if standings is None else load_standings(standings)
    return Task(
        name="codeforces",
        title="Codeforces (Elo)"
        if contests
        else "Codeforces (given tests; no Elo without standings)",
        load=load,
        prompt=prompt,
        score=score,
        settings={
            "thinking": Settings(max_tokens=65536, samples=SUBMISSIONS),
            "reference": Settings(max_tokens=32768, samples=SUBMISSIONS, thinking=False),
        },
        published=PUBLISHED if contests else (),
        runs_programs=True,
        summary=lambda graded: summary(graded, contests),
    )


def _elo(
    by_item: Mapping[str, Sequence[Graded]], contests: Mapping[str, Contest]
) -> dict[str, float]:
    verdicts = {
        name: [one.verdict.details.get("status", "No code") for one in ones[:SUBMISSIONS]]
        for name, ones in by_item.items()
    }
    ratings = []
    judged = dict.fromkeys(
        ones[0].item.data["contest"] for ones in by_item.values() if ones[0].item.data["contest"]
    )
    for number in judged:
        found = codeelo_rating(contests[number], verdicts) if number in contests else None
        if found is not None:
            ratings.append(found)
    numbers: dict[str, float] = {
        "Codeforces Elo, contests": len(ratings),
        "Codeforces Elo, contests without usable standings": len(judged) - len(ratings),
    }
    if ratings:
        numbers["Codeforces Elo"] = sum(ratings) / len(ratings)
    return numbers


def _item(row: Row, marks: list[str]) -> Item:
    data = row.data
    name = str(data.get("problem_id") or data.get("id") or "").replace("/", "")
    number = re.match(r"\d+", name)
    if not name:
        raise row.error("no 'problem_id' (Qwen/CodeElo) or 'id' (open-r1/codeforces)")
    rating = data.get("rating")
    return Item(
        id=name,
        category=str(rating) if rating else "",
        data={
            "title": row.text("title"),
            "description": row.text("description"),
            "input": data.get("input") or data.get("input_format") or "",
            "output": data.get("output") or data.get("output_format") or "",
            "note": data.get("note") or "",
            "examples": _pairs(row, "examples"),
            "tests": _tests(row),
            "seconds": _limit(row, ("time_limit_ms", 1000), ("time_limit", 1), default=2.0),
            "megabytes": _limit(row, ("memory_limit_mb", 1), ("memory_limit", 1), default=256.0),
            "rating": None if not rating else float(rating),
            "contest": str(data.get("contest_id") or (number[0] if number else "")),
            "marks": marks,
        },
    )


def _marks(row: Row) -> list[str]:
    """What matters to a verdict; the reason for leaving out first."""
    data = row.data
    if data.get("interaction") or data.get("interaction_format"):
        return [INTERACTIVE]
    if data.get("input_mode") not in (None, "", "stdio"):
        return [FILES]
    if not _tests(row):
        return [NO_TESTS]
    marks = []
    if not data.get("official_tests") and not data.get("generated_tests"):
        marks.append(EXAMPLES)
    elif data.get("official_tests_complete") is False:
        marks.append(INCOMPLETE)
    if data.get("generated_checker"):
        marks.append(CHECKER)
    return marks


def _tests(row: Row) -> list[tuple[str, str]]:
    """Examples, official and generated tests, each once."""
    every = [
        pair
        for name in ("examples", "official_tests", "generated_tests")
        for pair in _pairs(row, name)
    ]
    return list(dict.fromkeys(every))


def _pairs(row: Row, column: str) -> list[tuple[str, str]]:
    """Tests as {"input", "output"} or [input, output], as a list or as JSON text of one."""
    value: Any = row.data.get(column)
    try:
        value = json.loads(value) if isinstance(value, str) else value
        pairs = [
            (case["input"], case["output"]) if isinstance(case, dict) else (case[0], case[1])
            for case in value or ()
        ]
    except (ValueError, KeyError, IndexError, TypeError):
        pairs = [(None, None)]
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        raise row.error(
            f"{column!r} must be tests: objects with texts 'input' and 'output', or pairs"
        )
    return pairs


def _limit(row: Row, *columns: tuple[str, int], default: float) -> float:
    for name, per in columns:
        value = row.data.get(name)
        if value not in (None, ""):
            try:
                limit = float(value) / per
            except (TypeError, ValueError):
                limit = -1.0
            if not 0 < limit < 1e6:
                raise row.error(f"{name!r} must be a positive number, got {value!r:.60}")
            return limit
    return default


PUBLISHED = of_gemma(2150.0, 1718.0, 1659.0, 940.0, 633.0, note="contests not stated")

TASK = task()
