"""MMLU-Pro: 12032 questions of 14 fields with up to ten choices.

File: Hugging Face `TIGER-Lab/MMLU-Pro` (question_id, question, options, answer, answer_index, category,
cot_content, src), as JSONL or parquet: the test split, or a folder with `test...` and `validation...` files.
Options "N/A" are dropped.

thinking: no examples; asked to end in "Answer: X"; the last marked answer after the thought counts; no answer
is wrong. The published Gemma 4 scores come without a protocol (number of examples, prompt, extraction), so a
difference of a few points means nothing.

reference: TIGER-AI-Lab/MMLU-Pro, `evaluate_from_api.py` at 2a7ec7e: the category's validation rows as worked
examples (five), greedy, 4000 tokens. Its quirks, kept: the FIRST "answer is X" counts, then the first line
with "nswer: X", then the last letter that stands alone (an "I" or "A" of prose too); without any, a guess from
`random.seed(12345)`, the same for all questions of as many options, counts as an answer. Different: the local
script of that repository prompts without a chat format, stops at "Question:" and drops examples that do not
fit 2048 tokens; `evaluate_from_apiX.py` can ask again where the answer was wrong, which this never does.

The mean over questions is the headline, here as there. Order of choices: the first sample has the file's,
further ones shuffle them by (id, sample), but for questions whose choices speak of each other ("none of the
above", "A and C"), and never under the reference protocol.
"""

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from eval import choices
from eval.published import of_gemma
from eval.rows import Row, has_files, read_rows, unique_items
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

_COLUMNS = ("question_id", "question", "options", "answer", "answer_index", "category")
_REFERENCE_LETTERS = "A-J"
# A choice that speaks of others: by their place, or by their letters or numbers.
_OF_OTHERS = re.compile(
    r"(?i:\b(above|below|both|neither|either|preceding|previous|foregoing|following|all of (these|them)"
    r"|none of (these|them)|options?|choices?|statements?)\b)|\b[A-J](,|,? (and|or|&)) [A-J]\b"
    r"|\b(I|II|III|IV|V)( only\b|,? (and|or|&) (I|II|III|IV|V)\b)|^\W*[A-J]\W*$"
)


def load(path: Path) -> list[Item]:
    """Items of the test split, each with its category's validation rows if there are any."""
    path = Path(path)
    shots: dict[str, list[dict[str, object]]] = defaultdict(list)
    if has_files(path, "validation"):
        for row in read_rows(path, (*_COLUMNS, "cot_content"), named="validation"):
            shots[row.text("category")].append(_shot(row))
    rows = read_rows(path, _COLUMNS, named=r"(^|[/_-])test" if path.is_dir() else "")
    return unique_items((row, _item(row, shots)) for row in rows)


def prompt(item: Item, sample: int, protocol: Protocol) -> list[Message]:
    """One user message. The reference needs validation rows: UserError without."""
    data = item.data
    if protocol == "thinking":
        text = (
            f"{data['question']}\n\n{choices.listed([data['options'][i] for i in order(item, sample)])}\n\n"
            "Choose the one right answer. Explain as briefly as you like, and end with a line that holds "
            "only 'Answer: X', with the letter of your choice for X."
        )
        return [{"role": "user", "content": text}]
    if not data["shots"]:
        raise UserError(
            f"no validation rows of category {item.category!r}: the reference protocol of MMLU-Pro shows them "
            "as examples; give a folder that holds the test and the validation file"
        )
    text = (
        f"The following are multiple choice questions (with answers) about {item.category}. Think step by step "
        'and then output the answer in the format of "The answer is (X)" at the end.\n\n'
    )
    for shot in data["shots"]:
        text += _example(shot["question"], shot["options"], shot["cot_content"])
    return [{"role": "user", "content": text + _example(data["question"], data["options"], "")}]


def order(item: Item, sample: int) -> list[int]:
    """Which option stands at each place for a sample, thinking protocol."""
    options = item.data["options"]
    if sample == 0 or any(_OF_OTHERS.search(option) for option in options):
        return list(range(len(options)))
    return choices.shuffled(item.id, sample, len(options))


def extract(text: str, options: Sequence[str]) -> str | None:
    """The letter of an answer, thinking protocol."""
    return choices.final_choice(text, options)


def extract_reference(text: str) -> str | None:
    """The letter that the reference reads."""
    text = text.replace("**", "")
    letter = f"[{_REFERENCE_LETTERS}]"
    if match := re.search(rf"answer is \(?({letter})\)?", text):
        return match[1]
    # Its ".*[aA]nswer:" is the last on the first line that has one; as written it takes quadratic time.
    if marked := list(re.finditer(rf"[aA]nswer:\s*({letter})", text)):
        end = text.find("\n", marked[0].start()) % (len(text) + 1)
        return [match[1] for match in marked if match.start() <= end][-1]
    alone = re.findall(rf"\b{letter}\b", text)
    return alone[-1] if alone else None


def score(item: Item, answer: Answer) -> Verdict:
    """1 for the right letter; under the reference protocol no letter is a seeded guess."""
    right, options = item.data["answer"], item.data["options"]
    if answer.protocol == "thinking":
        seen = order(item, answer.sample)
        found = extract(answer.text, [options[i] for i in seen])
        verdict = choices.verdict(found, choices.LETTERS[seen.index(item.data["answer_index"])])
        place = choices.LETTERS.find(found) if found else -1
        vote = {"vote": seen[place]} if 0 <= place < len(seen) else {}
        return replace(verdict, details=vote)
    found = extract_reference(answer.text)
    if found is not None:
        return choices.verdict(found, right)
    guess = random.Random(12345).randint(0, len(options) - 1)
    hit = guess == item.data["answer_index"]
    note = f"no answer found; the reference guesses {choices.LETTERS[guess]}"
    return Verdict(score=float(hit), extracted=None, note=note, details={"guessed": True})


def summary(graded: Sequence[Graded]) -> Mapping[str, float]:
    """The mean over categories (the headline is the mean over questions), and what guesses are worth."""
    numbers = {"mean over categories": fmean(category_means(graded).values())}
    guesses = [one.verdict.score for one in graded if one.verdict.details.get("guessed")]
    if guesses:
        numbers["share guessed"] = len(guesses) / len(graded)
        numbers["points from guesses"] = sum(guesses) / len(graded)
    return numbers


def _options(row: Row) -> list[str]:
    return [option for option in row.texts("options") if option != "N/A"]


def _shot(row: Row) -> dict[str, object]:
    return {
        "question": row.text("question"),
        "options": _options(row),
        "cot_content": row.text("cot_content"),
    }


def _item(row: Row, shots: Mapping[str, list[dict[str, object]]]) -> Item:
    options, category = _options(row), row.text("category")
    letter, index = row.one_of("answer", choices.LETTERS), row.integer("answer_index")
    if not 0 <= index < len(options) <= len(choices.LETTERS) or choices.LETTERS[index] != letter:
        raise row.error(
            f"'answer' {letter} and 'answer_index' {index} must name one of the {len(options)} options"
        )
    data = {
        "question": row.text("question"),
        "options": options,
        "answer": letter,
        "answer_index": index,
        "shots": shots.get(category, []),
    }
    return Item(id=str(row.integer("question_id")), data=data, category=category)


def _example(question: str, options: Sequence[str], reasoning: str) -> str:
    reasoning = (reasoning or "Let's think step by step.").removeprefix("A: ")
    return (
        f"Question: {question}\nOptions: {choices.listed(options, '. ')}\nAnswer: {reasoning}\n\n"
    )


TASK = Task(
    name="mmlu_pro",
    title="MMLU-Pro",
    load=load,
    prompt=prompt,
    score=score,
    settings={
        "thinking": Settings(max_tokens=32768, samples=1),
        "reference": Settings(
            max_tokens=4000, samples=1, thinking=False, temperature=0.0, top_p=None, top_k=None
        ),
    },
    published=of_gemma(85.2, 82.6, 77.2, 69.4, 60.0),
    summary=summary,
)
