"""Which language a text is in, how many sentences and how many words in capitals it has; standard library
only.

    detect("Il fait beau aujourd'hui.")      # "fr"; None if there are no letters
    count_sentences("Dr. Smith left. Why?")  # 2

Rules of thumb that stand in for langdetect and nltk where IFEval counts on them: the script decides first,
then letters that one language alone has, then the commonest small words. Good for a paragraph, unsure for
three words. Known: ar bg bn cs da de el en es fa fi fr gu he hi hu id it ja kn ko ml mr ne nl no pa pl pt
ro ru sv sw ta te th tl tr uk ur vi zh-cn. Not here: a model, mixed texts, any other language (it comes out
as its nearest neighbour).
"""

import re
from collections import Counter
from pathlib import Path

# The language of a script that one language of the list alone is written in; ranges of code points.
_SCRIPTS = {
    "el": (0x370, 0x3FF), "he": (0x590, 0x5FF), "bn": (0x980, 0x9FF), "pa": (0xA00, 0xA7F),
    "gu": (0xA80, 0xAFF), "ta": (0xB80, 0xBFF), "te": (0xC00, 0xC7F), "kn": (0xC80, 0xCFF),
    "ml": (0xD00, 0xD7F), "th": (0xE00, 0xE7F), "ko": (0xAC00, 0xD7A3), "kana": (0x3040, 0x30FF),
    "han": (0x4E00, 0x9FFF), "cyrillic": (0x400, 0x4FF), "arabic": (0x600, 0x6FF),
    "devanagari": (0x900, 0x97F),
}  # fmt: skip

# By script and language, from the file beside this one.
_WORDS: dict[str, dict[str, list[str]]] = {}
for _line in Path(__file__).with_name("small_words.txt").read_text("utf-8").splitlines()[1:]:
    _script, _language, *_words = _line.split()
    _WORDS.setdefault(_script, {})[_language] = _words

# Letters that one language of a script alone has.
_LETTERS = {
    "ru": "ыэё", "uk": "іїєґ", "bg": "ъ", "fa": "گچپژ", "ur": "ٹڈڑےںہھ", "pl": "ąęłśźżń", "ro": "țșăâ",
    "cs": "ěřůč", "hu": "őű", "tr": "ğışİ", "vi": "ơưđạảấầẩậắằếềểệốồổộớờợụứừữựỉịọ", "de": "ßäöü", "es": "ñ¿¡",
    "pt": "ãõ", "fr": "çèêœ", "sv": "å", "da": "øæ", "no": "øæ", "fi": "ä",
}  # fmt: skip

# After these a full stop ends no sentence, unless a word follows that often begins one. "e.g." and "etc." are
# not among those that nltk's English model knows.
_ABBREVIATIONS = (
    "a.m p.m mr mrs ms messrs dr prof sr jr st gen rep sen maj adm ave bros co corp cos inc ltd vs v ft mg yr "
    "jan feb aug sept oct nov dec tues wed fri u.s u.s.a u.k u.n d.c n.y l.a ph.d m.b.a calif mass conn"
)
_STARTERS = "although but even he however i if in it many most so some the there these they this when while yet"
_CLOSING = ")]\"'*\u2019\u201d"


def detect(text: str) -> str | None:
    """A language by its code as langdetect writes it (zh-cn); None for a text without letters."""
    scripts: Counter[str] = Counter()
    for letter in text:
        if letter.isalpha():
            point = ord(letter)
            scripts[next((s for s, (a, b) in _SCRIPTS.items() if a <= point <= b), "latin")] += 1
    if not scripts:
        return None
    script = scripts.most_common(1)[0][0]
    if script in ("han", "kana"):
        # Japanese is half kana; Chinese has none but in a quoted name.
        return "ja" if 8 * scripts["kana"] > scripts["han"] else "zh-cn"
    return _by_words(text.lower(), _WORDS[script]) if script in _WORDS else script


def _by_words(text: str, languages: dict[str, list[str]]) -> str:
    said = Counter(re.findall(r"[^\W\d_]+(?:[\u0900-\u097f]+)?", text, re.UNICODE))
    scores = {}
    for language, words in languages.items():
        common = sum(said[word] for word in words)
        own = sum(text.count(letter) for letter in _LETTERS.get(language, ""))
        scores[language] = common + 0.5 * own
    return max(scores, key=lambda language: scores[language])


def count_sentences(text: str) -> int:
    """How many sentences end in `.`, `?` or `!`; a rest without an end is one more."""
    words = text.split()
    count, ended = 0, True
    for i, word in enumerate(words):
        bare = word.rstrip(_CLOSING)
        ended = bare.endswith((".", "?", "!"))
        if bare.endswith(".") and i + 1 < len(words):
            following = re.search(r"\w+", words[i + 1])
            name = bare[:-1].lower().lstrip("([*\"'")
            ended = following is None or not _abbreviated(name, following[0])
        count += ended
    return count + (not ended)


def _abbreviated(word: str, following: str) -> bool:
    if len(word) == 1 and word.isalpha() and word != "i":
        return True  # an initial
    if word.endswith(".."):
        return following[0].islower()
    begins = following[0].isupper() and following.lower() in _STARTERS.split()
    return word in _ABBREVIATIONS.split() and not begins


def capital_words(text: str) -> int:
    """How many words have capitals and no small letters, cut as nltk's word tokenizer cuts English.

    "AND/OR" and "WELL-KNOWN" are one, "DON'T" is two, a lone "I" or "A" counts.
    """
    text = re.sub(r"(N'T|'(?:S|M|D|LL|RE|VE))\b", r" \1", text)
    words = re.split(r"[\s\"()\[\]{}<>;@#$%&?!,:*`]+|--+|\.\.\.|\u2014", text)
    return sum(word.isupper() for word in words)
