"""GSM8K: 1319 word problems of grade-school arithmetic, each answered by one number.

File: Hugging Face `openai/gsm8k` (question, answer; the number stands behind "####"), as parquet, JSONL or
CSV: the test split, or a folder with `test...` and `train...` files (the "socratic" set is left out). Rows
have no ids: items are numbered from 0.

thinking: no examples; the number that the answer after the thought is marked with (box, ####, "answer is"),
else its last number, as gemma4_jax/verify/answers.py reads it; equal as a fraction ("18.00" is 18). Google
published no score for Gemma 4.

reference: lm-evaluation-harness 0.4.13, task `gsm8k` version 3: five worked examples from train, greedy, 256
tokens, stop at "Question:". The score is its strict-match: the first "#### number" of the text, signs of
currency not allowed; its flexible-extract, the last run of digits, is shown beside it. Quirks, kept: "####18"
has no answer; "18.00" is not "18"; flexible-extract takes "..." for a number, and "18,5" for 185. Different:
there the examples are drawn from train by a seeded generator, here they are its first five.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from eval.rows import Row, has_files, read_rows, unique_items
from eval.task import Answer, Graded, Item, Message, Protocol, Published, Settings, Task, Verdict
from gemma4_jax.errors import UserError
from gemma4_jax.verify.answers import final_number, to_number

_SHOTS = 5
_TEST, _TRAIN = (rf"^(?!.*socratic)(?:.*[/_-])?{split}" for split in ("test", "train"))
_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_GAUDI = "vllm-gaudi pull request 1619: vLLM on Gaudi, the first 256 problems"


def load(path: Path) -> list[Item]:
    """Items of the test split, each with the first rows of train if there are any."""
    path = Path(path)
    columns = ("question", "answer")
    shots: list[str] = []
    if has_files(path, _TRAIN):
        for row in read_rows(path, columns, named=_TRAIN):
            shots.append(f"Question: {row.text('question')}\nAnswer: {row.text('answer')}\n\n")
            if len(shots) == _SHOTS:
                break
    rows = read_rows(path, columns, named=_TEST if path.is_dir() else "")
    return unique_items((row, _item(row, i, shots)) for i, row in enumerate(rows))


def prompt(item: Item, sample: int, protocol: Protocol) -> list[Message]:
    """One user message. The reference needs rows of train: UserError without."""
    del sample
    question, shots = item.data["question"], item.data["shots"]
    if protocol == "thinking":
        text = f"{question}\n\nEnd your reply with a line that holds only 'Answer: N', N being the number."
        return [{"role": "user", "content": text}]
    if not shots:
        raise UserError(
            "no train rows: the reference protocol of GSM8K shows five of them as examples; give a folder that "
            "holds the test and the train file"
        )
    return [{"role": "user", "content": "".join(shots) + f"Question: {question}\nAnswer:"}]


def extract(text: str) -> str | None:
    """The number an answer ends up with, thinking protocol."""
    number = final_number(text)
    return None if number is None else str(number)


def extract_reference(text: str) -> tuple[str | None, str | None]:
    """What strict-match and flexible-extract read, each as the harness then compares it."""
    strict = _STRICT.search(text)
    loose = ["".join(groups) for groups in _FLEXIBLE.findall(text)]
    return (
        _compared(strict[1].strip()) if strict else None,
        _compared(loose[-1].strip()) if loose else None,
    )


def score(item: Item, answer: Answer) -> Verdict:
    """1 for the right number."""
    right = item.data["answer"]
    details: dict[str, Any] = {}
    if answer.protocol == "reference":
        found, loose = extract_reference(answer.text)
        hit = found == _compared(right)
        details = {"flexible": float(loose == _compared(right)), "flexible_extracted": loose}
    else:
        found = extract(answer.text)
        hit = found == str(to_number(right))
    return Verdict.on(found, hit, right, **details)


def summary(graded: Sequence[Graded]) -> Mapping[str, float]:
    """The reference's second score."""
    loose = [one.verdict.details["flexible"] for one in graded if "flexible" in one.verdict.details]
    return {"flexible-extract": fmean(loose)} if loose else {}


def _compared(text: str) -> str:
    """As the harness prepares both sides of a comparison: no commas, dollars, nor what leads to "#### "."""
    text = text.replace(",", "").replace("$", "").rpartition("#### ")[2]
    return re.sub(r"\.$", "", text).lower()


def _item(row: Row, number: int, shots: list[str]) -> Item:
    _, mark, right = row.text("answer").rpartition("####")
    if not mark:
        raise row.error("'answer' must end in '#### ' and the number")
    try:
        to_number(right)
    except UserError as error:
        raise row.error(f"'answer': {error}") from None
    data = {"question": row.text("question"), "answer": right.strip(), "shots": shots}
    return Item(id=str(number), data=data)


TASK = Task(
    name="gsm8k",
    title="GSM8K",
    load=load,
    prompt=prompt,
    score=score,
    settings={
        "thinking": Settings(max_tokens=16384, samples=1),
        "reference": Settings(
            max_tokens=256,
            samples=1,
            thinking=False,
            temperature=0.0,
            top_p=None,
            top_k=None,
            stop=("Question:", "</s>", "<|im_end|>"),
        ),
    },
    published=tuple(
        Published(model=model, value=value, source=_GAUDI)
        for model, value in {"31b": 92.6, "26b-a4b": 67.2, "e2b": 53.5}.items()
    ),
    summary=summary,
)
