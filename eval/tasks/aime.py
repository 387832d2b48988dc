"""AIME 2024, 2025, 2026: 30 contest problems a year, each answered by a whole number from 0 to 999.

Files, JSONL, parquet or CSV, of any of the schemas in use:

    MathArena/aime_2025, aime_2026     problem_idx, problem, answer
    math-ai/aime25, aime26             id, problem, answer
    math-ai/aime24                     id, problem, solution (the answer, boxed)
    HuggingFaceH4/aime_2024            id, problem, solution, answer, url, year
    Maxwell-Jia/AIME_2024              ID, Problem, Solution, Answer
    opencompass/AIME2025               question, answer (a file an exam; no ids: numbered through)

thinking: asked for a box; the last \\boxed{} after the thought that is a number counts, else the number behind
the last "answer". A loose number counts for nothing. 16 samples: even so the 95% interval over 30 problems is
about 22 points wide. The published Gemma 4 scores (AIME 2026, no tools) say nothing of samples or prompts.

reference: eth-sri/matharena, `configs/competitions/aime/aime_2026.yaml`, `parser.py` and `grader.py` at
63f9e59, four samples. Quirks, kept: the last box counts, also "boxed{}" without a backslash; frames drawn with
box characters are boxes; commas between digits vanish, so \\boxed{1,2} is 12; without a box the last whole
number of the text is the answer, and "-5" gives 5; a right answer of 0 is never matched. Different: sympy is
not called, so what eval/exact.py does not understand (\\log_2 8) is wrong; nobody is asked again for a missing
box, and nobody looks at warnings.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import fmean

from eval.exact import exact_value
from eval.published import of_gemma
from eval.rows import Row, read_rows, unique_items
from eval.task import Answer, Graded, Item, Message, Protocol, Published, Settings, Task, Verdict
from gemma4_jax.verify.answers import final_number

_PROBLEM = ("problem", "Problem", "question")
_ANSWER = ("answer", "Answer")
_ID = ("id", "ID", "problem_idx")

# What MathArena turns into boxes, and then into LaTeX, before it looks.
_FRAMES = (
    *(("\u23a7", "\\boxed{"), ("\u23ab", "}"), ("\n\u2502", "\\boxed{"), ("\u2502", "}")),
    *(("\n\u2503", "\\boxed{"), ("\u2503", "}"), ("\n\uf8f0", "\\boxed{"), ("\uf8fb", "}")),
    *(("\u221a", "\\sqrt"), ("\u00d7", "\\cdot"), ("\u03c0", "\\pi")),
    *(("\u202f", " "), ("\u2212", "-")),
)
_DROPPED = re.compile(
    r"\\(?:left|right|[Bb]ig[lr]?|[Ll]arge|displaystyle|quad)(?![A-Za-z])|\\[;:,!%$ ]|\$|\{,\}|_(?:\d|\{\d+\})"
    r"|\^\s*(?:\\circ|\{\s*\\circ\s*\})|°|\\text\{[^{}]*\}"
)
_INNER_BOX = re.compile(r"\\(?:boxed|fbox)\{((?:[^{}]|\{[^{}]*\})*)\}")
_UPRIGHT = re.compile(r"\\mathrm\{([^{}]*)\}")
_NUMBER_AS_TEXT = re.compile(r"\\(?:text|textbf|mathbf)\{\s*([-\d.,]+)\s*\}")


def load(path: Path, year: int) -> list[Item]:
    """Items of one year; UserError if rows say that they are of another."""
    return unique_items((row, _item(row, year, i)) for i, row in enumerate(read_rows(path, ()), 1))


def prompt(item: Item, sample: int, protocol: Protocol) -> list[Message]:
    """One user message."""
    del sample
    problem = item.data["problem"]
    if protocol == "reference":
        text = (
            "Put your final answer within \\boxed{}.\nThe answer is an integer between 0 and 999 inclusive."
            f"\n\n{problem}"
        )
    else:
        text = (
            f"{problem}\n\nThe answer is a whole number from 0 to 999. Give it at the end of your reply, in "
            "\\boxed{}."
        )
    return [{"role": "user", "content": text}]


def extract(text: str) -> str | None:
    """The number that an answer ends up with, thinking protocol; what else it boxed, if that is no number."""
    boxed = _boxes(text)
    for content in reversed(boxed):
        content = _NUMBER_AS_TEXT.sub(r"\1", _INNER_BOX.sub(r"\1", content))
        value = _value(re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", content))
        if value is not None:
            return str(value)
    if boxed:
        return boxed[-1].strip() or None
    mark = text.lower().rfind("answer")
    number = None if mark < 0 else final_number(text[mark:])
    return None if number is None else str(number)


def extract_reference(text: str) -> str | None:
    """What MathArena reads: a number where it is one, else what stands in the box."""
    for shape, latex in _FRAMES:
        text = text.replace(shape, latex)
    boxed = _boxes(text, r"(?:boxed|fbox)\{")
    if not boxed:
        numbers = re.findall(r"\b\d+\b", text)
        # Python turns no more digits than these into a number and back.
        return str(int(numbers[-1])) if numbers and len(numbers[-1]) < 4300 else None
    content = _INNER_BOX.sub(r"\1", boxed[-1])
    try:
        return str(int(content))
    except ValueError:
        value = _value(re.sub(r"(?<=\d),(?=\d)", "", content))
        return content.strip() if value is None else str(value)


def score(item: Item, answer: Answer) -> Verdict:
    """1 for the right number."""
    right = item.data["answer"]
    if answer.protocol == "reference":
        found = extract_reference(answer.text)
        hit = found == str(right) and right != 0
    else:
        found = extract(answer.text)
        hit = found == str(right)
    return Verdict.on(found, hit, right)


def summary(graded: Sequence[Graded]) -> Mapping[str, float]:
    """What a vote of each problem's samples scores: none are left out, ties give the mean of the tied."""
    samples: dict[str, list[Verdict]] = defaultdict(list)
    for one in graded:
        samples[one.item.id].append(one.verdict)
    most = max(map(len, samples.values()))
    return {} if most < 2 else {f"majority of {most}": fmean(map(_vote, samples.values()))}


def _vote(verdicts: Sequence[Verdict]) -> float:
    votes = Counter(v.extracted for v in verdicts if v.extracted is not None)
    if not votes:
        return 0.0
    winners = [answer for answer, count in votes.items() if count == max(votes.values())]
    scores = {v.extracted: v.score for v in verdicts}
    return fmean(scores[winner] for winner in winners)


def _boxes(text: str, opening: str = r"\\(?:boxed|fbox)\s*\{") -> list[str]:
    """What the boxes of a text hold, those whose braces close; a box in a box is part of the outer one."""
    closing: dict[int, int] = {}
    still_open = []
    for brace in re.finditer(r"[{}]", text):
        if brace[0] == "{":
            still_open.append(brace.start())
        elif still_open:
            closing[still_open.pop()] = brace.start()
    found, after = [], 0
    for match in re.finditer(opening, text):
        end = closing.get(match.end() - 1)
        if end is not None and match.start() >= after:
            found.append(text[match.end() : end])
            after = end + 1
    return found


def _value(content: str) -> Fraction | None:
    """The value of what a box holds, without units and dressing; the last side of an equation."""
    for bracket in ("[", "\\{"):
        content = content.replace(bracket, "(")
    for bracket in ("]", "\\}"):
        content = content.replace(bracket, ")")
    content = _DROPPED.sub(" ", _UPRIGHT.sub(r" \1 ", content.replace("\u2212", "-")))
    content = content.rpartition("=")[2].partition("\\approx")[0]
    return exact_value(content.strip().removesuffix("."))


def _item(row: Row, year: int, number: int) -> Item:
    answer = next((row.data[c] for c in _ANSWER if row.data.get(c) is not None), None)
    if answer is None and isinstance(row.data.get("solution"), str):
        boxed = _boxes(row.text("solution"))
        answer = boxed[-1] if boxed else None
    if answer is None:
        raise _missing(row, "answer", _ANSWER)
    right = Row(row.where, {"answer": answer}).integer("answer")
    if not 0 <= right <= 999:
        raise row.error(f"the answer is {right}; answers of the AIME are from 0 to 999")
    problem = next((c for c in _PROBLEM if row.data.get(c) is not None), None)
    if problem is None:
        raise _missing(row, "problem", _PROBLEM)
    given = next((row.data[c] for c in _ID if row.data.get(c) is not None), number)
    said = str(row.data.get("year") or "") or (re.match(r"(\d{4})-", str(given)) or [""])[0][:4]
    if said and said != str(year):
        raise row.error(f"this problem is of {said}, the task of {year}; take aime_{said}")
    return Item(id=str(given), data={"problem": row.text(problem), "answer": right})


def _missing(row: Row, what: str, columns: Sequence[str]) -> Exception:
    there = ", ".join(map(repr, row.data))
    names = ", ".join(map(repr, columns))
    return row.error(f"no {what}, in none of the columns {names} (columns here: {there})")


def _task(year: int, published: tuple[Published, ...] = ()) -> Task:
    loader: Callable[[Path], list[Item]] = partial(load, year=year)
    settings = Settings(max_tokens=65536, samples=16)
    return Task(
        name=f"aime_{year}",
        title=f"AIME {year}",
        load=loader,
        prompt=prompt,
        score=score,
        settings={"thinking": settings, "reference": Settings(max_tokens=65536, samples=4)},
        published=published,
        summary=summary,
    )


AIME_2024 = _task(2024)
AIME_2025 = _task(2025)
AIME_2026 = _task(2026, of_gemma(89.2, 88.3, 77.5, 42.5, 37.5, note="no tools"))
