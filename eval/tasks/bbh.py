"""BIG-Bench Hard: 27 kinds of puzzles, 6511 in all, answered by letters, words, numbers, lists or brackets.

Files: the clone of suzgunmirac/BIG-Bench-Hard (`bbh/KIND.json` beside `cot-prompts/KIND.txt`), or rows with
input and target as JSON, JSONL, parquet or CSV, a file or folder a kind, named for it (Hugging Face
`SaylorTwift/bbh`, `lukaemon/bbh`). The kind is the category; ids are KIND/number, from 0. Google published
BBEH scores for Gemma 4, another set, and none of this one.

thinking: no examples; asked to end in "Answer: ..."; what stands behind the last such mark (or in the last
box) is compared: letters as letters, numbers as numbers, all else without case, commas, quotes and marks.

reference: lm-evaluation-harness 0.4.13, `bbh_cot_fewshot` version 4: the kind's three worked examples, greedy,
1024 tokens, stop at "Q" and at an empty line. Quirks, kept: the FIRST "the answer is ", in lower case, to the
end of its line less one character, whatever that is: "the answer is (A)" without a full stop reads "(A"; equal
means equal, "**True**" is not "True". A reply that says "Question" ends there.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from eval.rows import read_rows, unique_items
from eval.task import (
    Answer,
    Graded,
    Item,
    Message,
    Protocol,
    Settings,
    Task,
    Verdict,
    category_means,
)
from gemma4_jax.errors import UserError

_SPLIT = re.compile(r"(test|train|data|default|part)\b|\d")
_REFERENCE = re.compile(r"(?<=the answer is )(.*)(?=.)")
_MARK = re.compile(r"(?i:\banswer)[\s*_]*+(?::|\bis\b[\s*_]*+:?)[ \t*_]*+|\\boxed\s*(\{)")
_WRAPPED = re.compile(r"\\(?:boxed|text|mathrm|mathbf|textbf|texttt)\s*\{([^{}]*)\}")
_MAX_ANSWER = 2000
_LETTER = re.compile(r"\(?\b([A-Z])\b\)?")


def load(path: Path) -> list[Item]:
    """Items of one kind, or of all in a folder, with the worked examples that lie beside them."""
    path = Path(path)
    folder = path / "bbh" if (path / "bbh").is_dir() else path
    prompts: dict[str, str] = {}
    counts: dict[str, int] = defaultdict(int)
    items = []
    for row in read_rows(folder, ("input", "target")):
        kind = _kind(row.file)
        if kind not in prompts:
            prompts[kind] = _examples(row.file, kind)
        data = {
            "input": row.text("input"),
            "target": row.text("target").strip(),
            "examples": prompts[kind],
        }
        items.append((row, Item(id=f"{kind}/{counts[kind]}", data=data, category=kind)))
        counts[kind] += 1
    return unique_items(items)


def prompt(item: Item, sample: int, protocol: Protocol) -> list[Message]:
    """One user message. The reference needs the kind's worked examples: UserError without."""
    del sample
    data = item.data
    if protocol == "thinking":
        text = (
            f"{data['input']}\n\nEnd your reply with a line that holds only 'Answer: ...': the letter of an "
            "option in brackets if there are options, else just the word, number or list that is asked for."
        )
        return [{"role": "user", "content": text}]
    if not data["examples"]:
        raise UserError(
            f"no worked examples of {item.category!r}: the reference protocol of BBH shows three; put its "
            f"cot-prompts/{item.category}.txt beside the folder of its data"
        )
    text = f"{data['examples']}\n\nQ: {data['input']}\nA: Let's think step by step.\n"
    return [{"role": "user", "content": text}]


def extract(text: str) -> str | None:
    """What stands behind the last mark of an answer, thinking protocol."""
    marks = list(_MARK.finditer(text))
    if not marks:
        return None
    rest = text[marks[-1].end() :][:_MAX_ANSWER]
    content = _braced(rest) if marks[-1][1] else rest.partition("\n")[0]
    while (inner := _WRAPPED.sub(r"\1", content)) != content:
        content = inner
    content = content.replace("$", "")
    return content.strip().strip("*_`").strip() or None


def extract_reference(text: str) -> str | None:
    """What the reference reads; "" where only one character follows."""
    match = _REFERENCE.search(text)
    return match[1].strip() if match else None


def score(item: Item, answer: Answer) -> Verdict:
    """1 for the right answer."""
    target = item.data["target"]
    if answer.protocol == "reference":
        found = extract_reference(answer.text)
        hit = found == target
    else:
        found = extract(answer.text)
        hit = found is not None and _same(found, target)
    return Verdict.on(found, hit, target[:60])


def summary(graded: Sequence[Graded]) -> Mapping[str, float]:
    """The mean over kinds: they have 146 to 250 rows each."""
    return {"mean over kinds": fmean(category_means(graded).values())}


def _same(found: str, target: str) -> bool:
    if re.fullmatch(r"\([A-Z]\)", target):
        letter = _LETTER.match(found)
        return letter is not None and letter[1] == target[1]
    return _plain(found) == _plain(target)


def _plain(text: str) -> str:
    """Words without case, commas, quotes, marks; brackets as they are, less the space between them."""
    text = re.sub(r"[\"'`*,“”]", " ", text).strip().removesuffix(".")
    if not re.search(r"\w", text):
        return "".join(text.split())
    if re.fullmatch(r"\s*[-\u2212]?\d[\d ]*\s*", text):
        return text.replace(" ", "").replace("\u2212", "-")
    return " ".join(text.split()).casefold()


def _braced(text: str) -> str:
    """Text up to the brace that closes one before it."""
    depth = 1
    for i, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[:i]
    return text


def _kind(file: Path) -> str:
    """A file's kind of puzzle: its name, or that of the folder of its splits."""
    stem = file.name.partition(".")[0]
    return file.parent.name if _SPLIT.match(stem) else stem


def _examples(file: Path, kind: str) -> str:
    """The worked examples of a kind, from the nearest `cot-prompts`; "" if there are none."""
    for folder in list(file.parents)[:3]:
        prompts = folder / "cot-prompts" / f"{kind}.txt"
        if prompts.is_file():
            text = prompts.read_text("utf-8")
            # Before the line of dashes stands a warning to whoever collects training data.
            return re.split(r"^-{3,}\n", text, maxsplit=1, flags=re.MULTILINE)[-1].strip()
    return ""


TASK = Task(
    name="bbh",
    title="BIG-Bench Hard",
    load=load,
    prompt=prompt,
    score=score,
    settings={
        "thinking": Settings(max_tokens=16384, samples=1),
        "reference": Settings(
            max_tokens=1024,
            samples=1,
            thinking=False,
            temperature=0.0,
            top_p=None,
            top_k=None,
            stop=("</s>", "Q", "\n\n"),
        ),
    },
    summary=summary,
)
