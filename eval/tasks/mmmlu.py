"""MMMLU: the 14042 questions of MMLU's test set, translated by people into 14 languages; four choices each.

File: Hugging Face `openai/MMMLU`: CSV (or JSONL, parquet) with Question, A, B, C, D, Answer, Subject, one file
a language, its code in the name or the folder: `mmlu_AR-XY.csv`, `AR_XY/test-....parquet`. A folder gives all
of them. Any code of that form is taken; the 14 are in `LANGUAGES`. English is not among them.

The data set repeats itself: 1380 rows a language have a question and choices that came before, inherited from
MMLU, and in a few translations two different questions became one with two keys (French rows 1606 and 1755,
Italian 1493 and 1541). Nothing is left out, as nobody does; the summary counts both.

The headline over all rows equals the mean over languages only if each has all its rows; the summary gives the
mean of every language and the mean of those, which is what simple-evals lists. Which languages Google's score
has is not known.

thinking: asked to end in "Answer: X"; the last marked answer after the thought counts, behind the word for
"answer" of any of the languages, with its own letters or in full width; or the text of a choice, in any
digits.

reference: openai/simple-evals `run_multilingual_mmlu.py` and `common.py` (f517a91): an English instruction
around the translated question, 2048 tokens. Quirks, kept: the words for "answer" are tried in a fixed order,
and the FIRST match of the first word that matches counts; "answer: b" is not "B"; Arabic letters are a range,
so that teh is taken, and is no letter; Bengali choices are read as অ ব ড ঢ, though the language's own order is
ক খ গ ঘ; full-width digits and other alphabets are not read; "Answer: A" of an Arabic line that says "الإجابة
:" with a space is missed.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from eval import choices
from eval.published import of_gemma
from eval.rows import Row, read_rows, unique_items
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

LANGUAGES = (
    *("AR-XY", "BN-BD", "DE-DE", "ES-LA", "FR-FR", "HI-IN", "ID-ID", "IT-IT", "JA-JP", "KO-KR"),
    *("PT-BR", "SW-KE", "YO-NG", "ZH-CN"),
)
_COLUMNS = ("Question", "A", "B", "C", "D", "Answer", "Subject")
_LANGUAGE = re.compile(r"(?<![A-Za-z])([A-Z]{2})[-_]([A-Z]{2})(?![A-Za-z])")

# The reference's words for "answer", each with the colons it allows: regular expressions, in its order.
_REFERENCE_WORDS = (
    *(r"Answer\s*:", "Answer\\s*:" + "\u200b" * 6),
    *(r"উত্তর\s*:", r"उत्तर\s*:", "উত্তরঃ", r"উত্তর\s*:", r"Antwort\s*:"),
    *(r"답변\s*:", r"정답\s*:", r"답\s*:"),
    *(r"答案\s*：", r"答案\s*:", r"答\s*：", r"答\s*:", r"答复\s*：", r"答曰\s*："),
    *("الإجابة:", "الجواب:", "إجابة:", "الإجابة النهائية:", "الإجابة الصحيحة:"),
    "الإجابة الصحيحة هي:",
    *("الإجابة هي:", "الجواب النهائي:"),
    *(r"Respuesta\s*:", r"Risposta\s*:", r"答え\s*:", r"答え\s*："),
    *(r"回答\s*:", r"回答\s*：", r"解答\s*:"),
    *(r"Jawaban\s*:", r"Réponse\s*:", r"Resposta\s*:", r"Jibu\s*:"),
    *(r"Idahun\s*:", r"Ìdáhùn\s*:", r"Idáhùn\s*:", "A\u0300m\u1ecd\u0300na\u0300\\s*:"),
    *(r"Àdáhùn\s*:", "A\u0300nu\u0301go\u0323\\s*:", r"Àṣàyàn\s*:"),
)
_REFERENCE_LETTER = r"[ \t]*([A-D]|[أ-د]|[অবডঢＡＢＣＤ])"
_REFERENCE = tuple(re.compile(f"(?i){word}{_REFERENCE_LETTER}") for word in _REFERENCE_WORDS)
_REFERENCE_LETTERS = dict(zip("أبجدঅবডঢＡＢＣＤ", "ABCD" * 3, strict=True))
# What the reference takes out of a response before it looks, in this order.
_REFERENCE_NOISE = (
    *("**", "$\\boxed{", "}$", "\\$", "$\\text{", "$", "\\mathrm{", "\\{", "\\text", "\\("),
    *("\\mathbf{", "{", "\\boxed"),
)

# The word for "answer" in each of the languages, and in English.
_WORDS = (
    *("الإجابة(?: الصحيحة| النهائية)?(?: هي)?", "الجواب(?: الصحيح| النهائي)?(?: هو)?", "إجابة"),
    *("answer", "Antwort", "Lösung", "respuesta", "réponse", "reponse", "risposta", "resposta"),
    *("jawaban", "jibu", "ìdáhùn", "idáhùn", "idahun", "àdáhùn", "উত্তর", "उत्तर", "जवाब"),
    *("答え", "答案", "正解", "解答", "回答", "答", "정답", "답변", "답"),
)
# Letters of choices in other scripts. Not here: digits, which may be a choice's own text.
_SPELLINGS = (
    *("أبجد", "ابجد", "কখগঘ", "अबसद", "कखगघ", "가나다라"),
    *("アイウエ", "甲乙丙丁", "①②③④", "ＡＢＣＤ", "অবডঢ"),
)
_LETTERS = {letter: "ABCD"[i] for row in _SPELLINGS for i, letter in enumerate(row)}


def load(path: Path) -> list[Item]:
    """Items of one file, or of every language in a folder. The id is the language and the row, from 0."""
    counts: dict[str, int] = defaultdict(int)
    seen: dict[tuple[str, ...], str] = {}
    folders: dict[str, Path] = {}
    items = []
    for row in read_rows(path, _COLUMNS):
        language = _language(row)
        if (first := folders.setdefault(language, row.file.parent)) != row.file.parent:
            raise row.error(f"{language} stands in {first} too; give one of the two, or remove one")
        item = _item(row, language, counts[language], seen)
        counts[language] += 1
        items.append((row, item))
    return unique_items(items)


def prompt(item: Item, sample: int, protocol: Protocol) -> list[Message]:
    """One user message; choices stay in the file's order, some refer to others by letter."""
    del sample
    question, options = item.data["question"], item.data["choices"]
    if protocol == "reference":
        text = choices.simple_evals(question, options)
    else:
        text = (
            f"{question}\n\n{choices.listed(options)}\n\nExactly one of the four is right. End your reply with "
            "a line that holds only 'Answer: X', with its letter (A, B, C or D) for X."
        )
    return [{"role": "user", "content": text}]


def extract(text: str, options: Sequence[str]) -> str | None:
    """The letter of an answer in any of the languages, thinking protocol."""
    return choices.final_choice(text, options, words=_WORDS, letters=_LETTERS)


def extract_reference(text: str) -> str | None:
    """What the reference reads: mostly a letter, of any case."""
    for noise in _REFERENCE_NOISE:
        text = text.replace(noise, "")
    for pattern in _REFERENCE:
        if match := pattern.search(text):
            return _REFERENCE_LETTERS.get(match[1], match[1])
    return None


def score(item: Item, answer: Answer) -> Verdict:
    """1 for the right letter."""
    if answer.protocol == "reference":
        found = extract_reference(answer.text)
    else:
        found = extract(answer.text, item.data["choices"])
    return choices.verdict(found, item.data["answer"])


def summary(graded: Sequence[Graded]) -> Mapping[str, float]:
    """The mean of each language, their mean, and how many rows repeat others."""
    means = dict(sorted(category_means(graded).items()))
    items = {one.item.id: one.item for one in graded}.values()
    return {
        "mean over languages": fmean(means.values()),
        "languages": len(means),
        **means,
        "rows that repeat one before": sum(item.data["repeats"] is not None for item in items),
        "of those, with another key": sum(item.data["conflicts"] for item in items),
    }


def _language(row: Row) -> str:
    """The code in the name of a row's file, else in that of its folder."""
    for name in (row.file.name, row.file.parent.name):
        if match := _LANGUAGE.search(name):
            return f"{match[1]}-{match[2]}"
    raise row.error("the file's or its folder's name must hold the language, as in mmlu_DE-DE.csv")


def _item(row: Row, language: str, number: int, seen: dict[tuple[str, ...], str]) -> Item:
    question, options = row.text("Question"), [row.text(letter) for letter in "ABCD"]
    answer = row.one_of("Answer", "ABCD")
    content = (language, question, *options)
    before = seen.setdefault(content, f"{number}{answer}")
    repeats = int(before[:-1]) if before[:-1] != str(number) else None
    data = {
        "question": question,
        "choices": options,
        "answer": answer,
        "subject": row.text("Subject"),
        # The row that had the same question and choices first, and whether its key differs.
        "repeats": repeats,
        "conflicts": repeats is not None and before[-1] != answer,
    }
    return Item(id=f"{language}/{number}", data=data, category=language)


TASK = Task(
    name="mmmlu",
    title="MMMLU",
    load=load,
    prompt=prompt,
    score=score,
    settings={
        "thinking": Settings(max_tokens=32768, samples=1),
        "reference": Settings(
            max_tokens=2048, samples=1, thinking=False, temperature=0.5, top_p=None, top_k=None
        ),
    },
    published=of_gemma(88.4, 86.3, 83.4, 76.6, 67.4),
    summary=summary,
)
