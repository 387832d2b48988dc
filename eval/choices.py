"""Multiple choice: order of the choices, how they are listed, and which letter an answer ends up with.

What tasks of choices have in common. Not here: how reference implementations read answers; each task follows
its own, quirks included.
"""

import hashlib
import random
import re
import unicodedata
from collections.abc import Mapping, Sequence

from eval.task import Verdict

LETTERS = "ABCDEFGHIJ"

# Stands around a letter: markdown, brackets, quotes, LaTeX. Possessive (++) and counted: a model may write
# pages of spaces or of open boxes, and reading must take no longer than they are.
_AROUND = r"(?:[\s*_]++|[$`\"'“”„«»(\[{（「『]|\\[(\[]|\\(?:boxed|fbox|text|textbf|mathrm|mathbf|rm)\b){0,16}+"
_CLOSED = r"(?=\s*(?:[)\]}.,;:!?*_$`\"“”»）」』。．、।|\\]|'(?!\w)|\n|\Z))"
_BOX = r"\\f?box(?:ed)?\s*\{" + _AROUND
_TRIM = " \t*_$`\"'“”.。।(){}[]\\"


def shuffled(item_id: str, sample: int, count: int) -> list[int]:
    """Which choice stands at each place: a permutation of range(count), fixed by the item's id and sample."""
    digest = hashlib.sha256(f"{item_id}\0{sample}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big")).sample(range(count), count)


def listed(choices: Sequence[str], mark: str = ") ") -> str:
    """The choices, one a line, each behind its letter."""
    return "\n".join(f"{LETTERS[i]}{mark}{choice}" for i, choice in enumerate(choices))


def simple_evals(question: str, choices: Sequence[str]) -> str:
    """The prompt that openai/simple-evals asks four choices with, in GPQA and in every language of MMMLU."""
    return (
        "Answer the following multiple choice question. The last line of your response should be of the "
        "following format: 'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step by "
        f"step before answering.\n\n{question}\n\n{listed(choices)}"
    )


def final_choice(
    text: str,
    choices: Sequence[str],
    *,
    words: Sequence[str] = ("answer",),
    letters: Mapping[str, str] | None = None,
) -> str | None:
    """The letter that the last marked answer of a text names; None if none is marked.

    Marked is what stands behind one of `words` and a colon or "is", or in a \\boxed{}. Lower case counts only
    where it cannot be a word: "(b)", "Answer: b.". Behind a colon the text of exactly one choice stands for its
    letter, if it is the whole line. A letter beyond the choices is returned as it is: a wrong answer, not a
    missing one. letters: further spellings of letters, as "Ａ" or "ক".
    """
    native = {letter: letter for letter in (chr(c) for c in range(ord("A"), ord("Z") + 1))}
    native |= {letter.lower(): letter for letter in native} | dict(letters or {})
    spelt = "|".join(sorted(map(re.escape, native), key=len, reverse=True))
    said = rf"(?i:{'|'.join(words)})[\s*_]*+"
    filler = r"(?i:(?:option|choice|letter)\s+)?"
    # "the answer is A prime" and "answer: a prime" mean no letter, "Answer: B because" does.
    marks = re.compile(
        rf"(?:{said}(?:[:：]|(?i:\bis\b)\s*[:：]?){_AROUND}{filler}{_AROUND}|{_BOX})({spelt}){_CLOSED}"
        rf"|{said}[:：]{_AROUND}([A-Z])(?![\w'’])"
    )
    found = {match.start(): native[match[1] or match[2]] for match in marks.finditer(text)}
    # "A is larger than B" may be a choice: as a whole line it means itself, and not the letter A.
    longest = 2 * max(map(len, choices)) + 40
    line = rf"{said}[:：](?=\s*+([^\n]{{0,{longest}}}))"
    plain = [_plain(choice) for choice in choices]
    for mark in re.finditer(line, text):
        wanted = _plain(mark[1])
        same = [i for i, choice in enumerate(plain) if choice == wanted]
        if len(same) == 1 and not (len(wanted) == 1 and wanted.isalpha()):
            found[mark.start()] = LETTERS[same[0]]
    return found[max(found)] if found else None


def verdict(found: str | None, right: str) -> Verdict:
    """1 if the letter that was found is the right one."""
    return Verdict.on(found, found == right, right)


def _plain(text: str) -> str:
    """Text to compare choices by: one kind of letters, digits and space; no marks around it."""
    text = "".join(
        str(unicodedata.digit(c)) if unicodedata.category(c) == "Nd" else c
        for c in unicodedata.normalize("NFKC", text)
    )
    return " ".join(text.split()).strip(_TRIM).casefold()
