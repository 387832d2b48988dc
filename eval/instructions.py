"""The 25 kinds of instruction of IFEval: does a text follow one?

    follows("length_constraints:number_words", text, {"num_words": 100, "relation": "at least"})

Behaviour follows google-research/instruction_following_eval (Apache-2.0), as lm-eval 0.4.13 ships it, by
reading; nothing of theirs is here. Quirks that decide verdicts, all kept:
  * keywords are regular expressions, any case, anywhere in a word; only forbidden words stand between \\b
  * words are runs of \\w: "don't" is two. Bullets are lines that start with "* " or with any "-"
  * a highlight is anything between two asterisks on a line; paragraphs are split at "***", and at blank
    lines where the first word of one is asked for; two responses at "******"
  * a constrained response need only occur somewhere; any JSON will do, a bare 3 too
  * a language that cannot be told (a text without letters) counts as the right one

Five kinds use nltk and langdetect there and own rules here (eval/language.py), and can differ: `language:
response_language`, `change_case:english_capital`, `change_case:english_lowercase`, `length_constraints:
number_sentences`, `change_case:capital_word_frequency`. langdetect is random on short texts unless seeded,
and mostly guesses on text in capitals, which it was not made for; ours reads capitals as small letters.
Missing arguments are drawn at random there; here `check_arguments` refuses them. `letter_frequency` of
what is no letter ("#") counts a random letter there, and that character here.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from eval.language import capital_words, count_sentences, detect
from gemma4_jax.errors import UserError, unknown

Arguments = Mapping[str, Any]

LESS, AT_LEAST = "less than", "at least"
ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_WORD_ENDS = frozenset(".,?!'\"")


def follows(kind: str, text: str, arguments: Arguments) -> bool:
    """Whether a text follows an instruction. An empty text follows none."""
    return bool(text.strip()) and KINDS[kind][0](text, arguments)


def follows_loosely(kind: str, text: str, arguments: Arguments) -> bool:
    """Whether it does, or would without its first line, its last line or its asterisks, in any
    combination."""
    lines = text.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    variants = [text, *cut]
    variants += [variant.replace("*", "") for variant in variants]
    return any(follows(kind, variant, arguments) for variant in variants)


def check_arguments(kind: str, arguments: Arguments) -> None:
    """UserError for an unknown kind, a missing argument or an unknown relation."""
    if kind not in KINDS:
        raise unknown("instruction", kind, KINDS)
    missing = [name for name in KINDS[kind][1] if arguments.get(name) is None]
    if missing:
        raise UserError(f"instruction {kind!r} needs {', '.join(map(repr, missing))}")
    for name, value in arguments.items():
        if name.endswith("relation") and value not in (LESS, AT_LEAST):
            raise UserError(f"{name!r} must be {LESS!r} or {AT_LEAST!r}, got {value!r}")


def _holds(count: int, relation: str, threshold: int) -> bool:
    return count < threshold if relation == LESS else count >= threshold


def _existence(text: str, given: Arguments) -> bool:
    return all(re.search(word, text, re.IGNORECASE) for word in given["keywords"])


def _frequency(text: str, given: Arguments) -> bool:
    found = len(re.findall(given["keyword"].strip(), text, re.IGNORECASE))
    return _holds(found, given["relation"], given["frequency"])


def _forbidden(text: str, given: Arguments) -> bool:
    words = given["forbidden_words"]
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in words)


def _letters(text: str, given: Arguments) -> bool:
    found = text.lower().count(given["letter"].strip().lower())
    return _holds(found, given["let_relation"], given["let_frequency"])


def _language(text: str, given: Arguments) -> bool:
    return detect(text) in (given["language"], None)


def _sentences(text: str, given: Arguments) -> bool:
    return _holds(count_sentences(text), given["relation"], given["num_sentences"])


def _paragraphs(text: str, given: Arguments) -> bool:
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    if not all(parts[1:-1]):
        return False
    return sum(bool(part) for part in parts) == given["num_paragraphs"]


def _words(text: str, given: Arguments) -> bool:
    return _holds(len(re.findall(r"\w+", text)), given["relation"], given["num_words"])


def _first_word(text: str, given: Arguments) -> bool:
    """The place counts blank paragraphs, their number does not."""
    parts = [part.strip() for part in text.split("\n\n")]
    n, nth = sum(bool(part) for part in parts), given["nth_paragraph"]
    if nth > n or not parts[nth - 1]:
        return False
    word = parts[nth - 1].split()[0].lstrip("'").lstrip('"')
    end = next((i for i, letter in enumerate(word) if letter in _WORD_ENDS), len(word))
    return n == given["num_paragraphs"] and word[:end].lower() == given["first_word"].lower()


def _placeholders(text: str, given: Arguments) -> bool:
    # "[" to the next "]" of its line; as an expression it would take hours on a text of many "[".
    count = 0
    for line in text.split("\n"):
        end = 0
        while (start := line.find("[", end)) >= 0 and (end := line.find("]", start) + 1):
            count += 1
    return count >= given["num_placeholders"]


def _postscript(text: str, given: Arguments) -> bool:
    marker = given["postscript_marker"].strip()
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(patterns.get(marker, marker.lower()), text.lower()) is not None


def _bullets(text: str, given: Arguments) -> bool:
    stars = re.findall(r"^[^\S\n]*\*[^*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^[^\S\n]*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == given["num_bullets"]


def _constrained(text: str, given: Arguments) -> bool:
    return any(answer in text for answer in ANSWERS)


def _highlights(text: str, given: Arguments) -> bool:
    """**Bold** counts twice if something stands before it that closes at its first asterisk, as there."""
    single = sum(bool(found.strip("*").strip()) for found in re.findall(r"\*[^\n*]*\*", text))
    double = sum(bool(found[2:-2].strip()) for found in re.findall(r"\*\*[^\n*]*\*\*", text))
    return single + double >= given["num_highlights"]


def _sections(text: str, given: Arguments) -> bool:
    split = rf"\s?{given['section_spliter'].strip()}\s?\d+\s?"
    return len(re.findall(split, text)) >= given["num_sections"]


def _json(text: str, given: Arguments) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str, given: Arguments) -> bool:
    """From the first "<<" of a line to its last ">>"."""
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end - 2 and line[start:end].lstrip("<").rstrip(">").strip():
            return True
    return False


def _two_responses(text: str, given: Arguments) -> bool:
    parts = [part.strip() for part in text.split("******")]
    said = [part for part in parts if part]
    return all(parts[1:-1]) and len(said) == 2 and said[0] != said[1]


def _repeat(text: str, given: Arguments) -> bool:
    return text.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())


def _end(text: str, given: Arguments) -> bool:
    return text.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


def _capital_words(text: str, given: Arguments) -> bool:
    return _holds(capital_words(text), given["capital_relation"], given["capital_frequency"])


def _capitals(text: str, given: Arguments) -> bool:
    return text.isupper() and detect(text) in ("en", None)


def _lowercase(text: str, given: Arguments) -> bool:
    return text.islower() and detect(text) in ("en", None)


def _no_comma(text: str, given: Arguments) -> bool:
    return "," not in text


def _quoted(text: str, given: Arguments) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


# By the name in a data file: the check, and the arguments it needs.
KINDS: Mapping[str, tuple[Callable[[str, Arguments], bool], tuple[str, ...]]] = {
    "keywords:existence": (_existence, ("keywords",)),
    "keywords:frequency": (_frequency, ("keyword", "frequency", "relation")),
    "keywords:forbidden_words": (_forbidden, ("forbidden_words",)),
    "keywords:letter_frequency": (_letters, ("letter", "let_frequency", "let_relation")),
    "language:response_language": (_language, ("language",)),
    "length_constraints:number_sentences": (_sentences, ("num_sentences", "relation")),
    "length_constraints:number_paragraphs": (_paragraphs, ("num_paragraphs",)),
    "length_constraints:number_words": (_words, ("num_words", "relation")),
    "length_constraints:nth_paragraph_first_word": (
        _first_word,
        ("num_paragraphs", "nth_paragraph", "first_word"),
    ),
    "detectable_content:number_placeholders": (_placeholders, ("num_placeholders",)),
    "detectable_content:postscript": (_postscript, ("postscript_marker",)),
    "detectable_format:number_bullet_lists": (_bullets, ("num_bullets",)),
    "detectable_format:constrained_response": (_constrained, ()),
    "detectable_format:number_highlighted_sections": (_highlights, ("num_highlights",)),
    "detectable_format:multiple_sections": (_sections, ("section_spliter", "num_sections")),
    "detectable_format:json_format": (_json, ()),
    "detectable_format:title": (_title, ()),
    "combination:two_responses": (_two_responses, ()),
    "combination:repeat_prompt": (_repeat, ("prompt_to_repeat",)),
    "startend:end_checker": (_end, ("end_phrase",)),
    "startend:quotation": (_quoted, ()),
    "change_case:capital_word_frequency": (
        _capital_words,
        ("capital_frequency", "capital_relation"),
    ),
    "change_case:english_capital": (_capitals, ()),
    "change_case:english_lowercase": (_lowercase, ()),
    "punctuation:no_comma": (_no_comma, ()),
}
