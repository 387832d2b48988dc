"""GPQA Diamond: 198 questions of biology, chemistry and physics that experts wrote, four choices each.

File: `gpqa_diamond.csv` as simple-evals publishes it (its sha256 is known and checked), or Hugging Face
`Idavidrein/gpqa` as any kind of file: Record ID, Question, Correct Answer, Incorrect Answer 1 to 3, High-level
domain. The file puts the right answer first, so the choices are shuffled, anew for each sample.

thinking: asked to end in "Answer: X"; the last marked answer after the thought counts. Four samples of each
question. The published Gemma 4 scores come without a protocol; others got 83.3 and 80.0 for 31b on vLLM with
thinking and 124 thousand tokens (tt-inference-server pull requests 4331 and 4176), ten points less without
thinking (4470).

reference: openai/simple-evals `gpqa_eval.py`, ten samples, temperature 0.5. Quirks, kept: the FIRST "Answer:
X" counts, in any case, but "answer: b" is then not "B" and wrong; "Answer: Because" reads as B; "**Answer:**
B" has no answer. If a wrong choice has the text of the right one, the first of them is the right letter.
Different: the order of the choices comes from (record, sample), there from one generator that runs over all
records and samples.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eval import choices
from eval.published import of_gemma
from eval.rows import Row, read_rows, unique_items
from eval.task import Answer, Item, Message, Protocol, Published, Settings, Task, Verdict

_CHOICES = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
# As inspect_evals 0.26.0 pins it (computed 2026-04-07).
SHA256 = {
    "gpqa_diamond.csv": "41d1213cd7a4998605a26c2798500652572007161b3a92817ba46b35befcd305",
}
_REFERENCE = re.compile(r"(?i)Answer[ \t]*:[ \t]*\$?([A-D])\$?")


def load(path: Path) -> list[Item]:
    """Items, one a record, with the right choice first. A folder may hold GPQA's other sets beside it."""
    named = "gpqa_diamond|gpqa-diamond|train" if Path(path).is_dir() else ""
    rows = read_rows(path, ("Record ID", "Question", *_CHOICES), named=named, sha256=SHA256)
    return unique_items((row, _item(row)) for row in rows)


def order(item: Item, sample: int) -> list[str]:
    """The choices as this sample sees them."""
    return [item.data["choices"][i] for i in choices.shuffled(item.id, sample, 4)]


def right_letter(item: Item, sample: int) -> str:
    """The letter of the right choice in this sample."""
    return choices.LETTERS[order(item, sample).index(item.data["choices"][0])]


def prompt(item: Item, sample: int, protocol: Protocol) -> list[Message]:
    """One user message."""
    question, options = item.data["question"], order(item, sample)
    if protocol == "reference":
        text = choices.simple_evals(question, options)
    else:
        listed = choices.listed([option.strip() for option in options])
        text = (
            f"{question.strip()}\n\n{listed}\n\nExactly one of the four is right. End your reply with a line "
            "that holds only 'Answer: X', with its letter for X."
        )
    return [{"role": "user", "content": text}]


def extract(text: str, options: Sequence[str]) -> str | None:
    """The letter of an answer, thinking protocol."""
    return choices.final_choice(text, options)


def extract_reference(text: str) -> str | None:
    """The letter that the reference reads, in the case it is written in."""
    match = _REFERENCE.search(text)
    return match[1] if match else None


def score(item: Item, answer: Answer) -> Verdict:
    """1 for the right letter in the order of this sample; `vote` is the choice, whatever its letter was."""
    if answer.protocol == "reference":
        found = extract_reference(answer.text)
    else:
        found = extract(answer.text, order(item, answer.sample))
    verdict = choices.verdict(found, right_letter(item, answer.sample))
    place = choices.LETTERS.find(found.upper()) if found else -1
    if not 0 <= place < 4:
        return verdict
    return replace(verdict, details={"vote": choices.shuffled(item.id, answer.sample, 4)[place]})


def _item(row: Row) -> Item:
    data = {
        "question": row.text("Question"),
        "choices": [row.text(column) for column in _CHOICES],
    }
    domain = row.data.get("High-level domain")
    return Item(id=row.text("Record ID"), data=data, category=str(domain or ""))


TASK = Task(
    name="gpqa_diamond",
    title="GPQA Diamond",
    load=load,
    prompt=prompt,
    score=score,
    settings={
        "thinking": Settings(max_tokens=65536, samples=4),
        "reference": Settings(
            max_tokens=2048, samples=10, thinking=False, temperature=0.5, top_p=None, top_k=None
        ),
    },
    published=(
        *of_gemma(84.3, 82.3, 78.8, 58.6, 43.4),
        Published(
            model="31b",
            value=83.3,
            source="tt-inference-server pull request 4331: vLLM, thinking, top-k 20, 124K tokens",
        ),
    ),
)
