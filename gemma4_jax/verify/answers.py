"""Does the answer equal the expected number? Exact, on fractions, and safe on whatever a model wrote.

    is_correct(completion.text, "1,250")

Only what stands after the thought counts; a thought that never ends has no answer. The number is the one
the text marks as its answer (`\\boxed{}`, `####`, "the answer is"), else the last one in it.

Not here: tolerances, algebra, units. 3.33 is not 10/3, and "50%" is 50.
"""

import re
from collections import deque
from collections.abc import Iterator
from fractions import Fraction

from gemma4_jax.errors import UserError
from gemma4_jax.text.parse import parse

# Model output is unbounded: a number of more digits than this is none (10**999999999 would take minutes).
_MAX_DIGITS = 60
_MAX_EXPONENT = 99

_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    rf"""
    (?<!\w)(?<!\d\.)                  # not inside a word or a version: H2O, 1.2.3
    (?P<sign>(?<![)\]}}])[-+\u2212])?  # after a bracket it is a minus between two terms
    (?:[$\u20ac\u00a3\u00a5]\s?)?
    (?:
        \\[dt]?frac\{{\s*(?P<above>-?\d+)\s*\}}\{{\s*(?P<below>\d+)\s*\}}
      | (?P<units>{_WHOLE})\ (?P<part>\d+)/(?P<of>\d+)
      | (?P<decimal>{_DECIMAL})(?:[eE](?P<exponent>[-+]?\d+))?(?:\s?/\s?(?P<divisor>{_DECIMAL}))?
    )
    """,
    re.VERBOSE,
)
_BOX = re.compile(r"\\boxed\s*\{")
_HASHES = re.compile(r"####")
_PHRASE = re.compile(r"\banswer\b[^.!?\n:=]{0,60}?(?:\bis\b|\bbe\b|:|=)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|\Z)")


def is_correct(output: str, expected: str | int | float | Fraction, prompt: str = "") -> bool:
    """Whether a model's output answers with the expected number.

    output: as decoded, control tokens included. prompt: what it continues, needed only if that ends
    inside a thought. Raises UserError if `expected` is no number.
    """
    return answer_number(output, prompt) == to_number(expected)


def answer_number(output: str, prompt: str = "") -> Fraction | None:
    """The number that an output answers with, thought left out; None if it gives none."""
    content = parse(output, prompt).content
    return None if content is None else final_number(content)


def final_number(text: str) -> Fraction | None:
    """The number a text ends up with: the marked one, else the last one; None if there is none."""
    for marked in _marked(text):
        # "answer: 3 + 4 = 7" ends in its result, "the answer is 7 for 2 people" begins with it.
        _, equals, result = marked.rpartition("=")
        found = next(numbers(result if equals else marked), None)
        if found is not None:
            return found
    return next(iter(deque(numbers(text), maxlen=1)), None)


def numbers(text: str) -> Iterator[Fraction]:
    """Every number in a text, in order: 1,250 -3.5 2/3 1 1/2 6e-4 \\frac{2}{3} $5."""
    for match in _NUMBER.finditer(text):
        value = _value(match)
        if value is not None:
            yield value


def to_number(value: str | int | float | Fraction) -> Fraction:
    """The exact value of an expected answer; UserError unless it is one number and nothing else."""
    if isinstance(value, Fraction):
        return value
    text = str(value).strip()
    match = _NUMBER.fullmatch(text)
    number = None if match is None else _value(match)
    if number is None:
        raise UserError(f"the expected answer must be one number, got {text[:60]!r}")
    return number


def _marked(text: str) -> Iterator[str]:
    """What a text marks as its answer, the surest mark first, the last of each kind."""
    if boxes := list(_BOX.finditer(text)):
        yield _braced(text, boxes[-1].end())
    for mark in (_HASHES, _PHRASE):
        if places := list(mark.finditer(text)):
            rest = text[places[-1].end() :].lstrip(" *_\n")
            yield _SENTENCE_END.split(rest, maxsplit=1)[0]


def _braced(text: str, start: int) -> str:
    """Text up to the brace that closes the one before `start`."""
    depth = 1
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start:i]
    return text[start:]


def _value(match: re.Match[str]) -> Fraction | None:
    """The number a match spells; None where it divides by zero or is beyond any answer."""
    part = match.groupdict()
    if any(len(digits) > _MAX_DIGITS for digits in part.values() if digits):
        return None
    if part["above"]:
        top, bottom = Fraction(part["above"]), Fraction(part["below"])
    elif part["units"]:
        bottom = Fraction(part["of"])
        top = Fraction(_plain(part["units"])) * bottom + Fraction(part["part"])
    else:
        exponent = int(part["exponent"] or 0)
        if abs(exponent) > _MAX_EXPONENT:
            return None
        top = Fraction(_plain(part["decimal"])) * Fraction(10) ** exponent
        bottom = Fraction(_plain(part["divisor"] or "1"))
    if bottom == 0:
        return None
    negative = (part["sign"] or "+")[0] in "-\u2212"
    return -top / bottom if negative else top / bottom


def _plain(digits: str) -> str:
    return digits.replace(",", "")
