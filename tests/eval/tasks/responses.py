"""Made-up replies of models, for comparing extraction with reference implementations.

Seeded, and in our own words: what models do to the ends of their replies, mixed with lines that are easy to
misread. `record.md` says how the verdicts beside the fixtures were made from them.
"""

import random

# What stands before the end: letters and numbers that are no answer.
_LINES = (
    "",
    "Let me think about it.",
    "I looked at each of them in turn.",
    "A is tempting, but the units are wrong.",
    "Vitamin B is not what this is about.",
    "Let A be the matrix and C its inverse.",
    "Neither (A) nor (D) survives the second condition.",
    "The answer is not obvious.",
    "My first answer was wrong.",
    "There are 12 of them, so 3.5 each... or is it 4?",
    "Half of 1,250 is 625.",
    "Option E looks fine; I would not bet on it, though.",
    "So x = 17 and y = -3.",
    "1. Read. 2. Compute. 3. Check.",
    "That costs $45.",
    "Question 2 is easier.",
)

# {L} a letter, {l} the same in lower case, {M} another one.
_ENDINGS = (
    "The answer is ({L}).",
    "The answer is {L}.",
    "the answer is {L}",
    "So the answer is **{L}**.",
    "The answer is **({L})**",
    "The answer is: {L}",
    "The answer is ({l}).",
    "The answer is not {M}. The answer is {L}.",
    "At first the answer is {M}, I thought. Then: the answer is {L}.",
    "Answer: {L}",
    "Answer: {L}.",
    "Answer:{L}",
    "Answer : {L}",
    "Answer:\n{L}",
    "Answer:\t{L}",
    "answer: {l}",
    "ANSWER: {L}",
    "**Answer:** {L}",
    "**Answer: {L}**",
    "__Answer: {L}__",
    "### Answer: {L}",
    "Answer: **{L}**",
    "Answer: ({L})",
    "Answer: {L}) as shown above",
    "Answer: {L} because nothing else fits",
    "Answer: ${L}$",
    "Answer: $\\boxed{{{L}}}$",
    "Answer: \\boxed{{{L}}}",
    "Answer: $\\text{{{L}}}$",
    "Answer: \\(\\mathrm{{{L}}}\\)",
    "Answer: Because of that, none.",
    "Answer: Certainly {L}",
    "Answer: Option {L}",
    "Answer: {M}\nWait, I misread it.\nAnswer: {L}",
    "Answer: {M} or {L}",
    "Answer: {L}{M}",
    "Final answer: {L}",
    "My answer - {L}",
    "$\\boxed{{{L}}}$",
    "\\boxed{{\\text{{{L}}}}}",
    "\\boxed{{{M}}} at first, then \\boxed{{{L}}}",
    "I choose {L}.",
    "The correct option is {L}",
    "It must be {L}",
    "None of them.",
    "I give up",
    "I cannot say more",
    "",
    "Answer: K",
    "Answer: 3",
    "Answer: Ａ",
    "answer is {L}, I am sure. Answer: {M}",
    "The answer is I think {L}",
)


def choices(count: int, letters: str, seed: int) -> list[dict[str, str]]:
    """[{text, right}]: replies to questions with as many choices as letters."""
    generator = random.Random(seed)
    rows = []
    for i in range(count):
        ending = _ENDINGS[i % len(_ENDINGS)]
        letter, other = generator.sample(letters, 2)
        text = _text(generator, ending.format(L=letter, l=letter.lower(), M=other))
        rows.append({"text": text, "right": letter if generator.random() < 0.8 else other})
    return rows


# How replies in each language of MMMLU end, {w} being its word for "answer"; and its own letters.
_WORDS = (
    *(
        "Answer",
        "Antwort",
        "Respuesta",
        "Réponse",
        "Risposta",
        "Resposta",
        "Jawaban",
        "Jibu",
        "উত্তর",
        "उत्तर",
    ),
    *(
        "الإجابة",
        "الجواب",
        "الإجابة الصحيحة",
        "الإجابة الصحيحة هي",
        "إجابة",
        "答案",
        "答",
        "回答",
        "答え",
        "解答",
        "正解",
    ),
    *(
        "답",
        "정답",
        "답변",
        "Ìdáhùn",
        "Idahun",
        "Àdáhùn",
        "Àṣàyàn",
        "Solution",
        "réponse",
        "ANTWORT",
    ),
)
_LANGUAGE_ENDINGS = (
    *(
        "{w}: {L}",
        "{w}:{L}",
        "{w} : {L}",
        "{w}：{L}",
        "**{w}:** {L}",
        "**{w}: {L}**",
        "{w}: **{L}**",
    ),
    *(
        "{w}: ({L})",
        "{w}: {l}",
        "{w}: $\\boxed{{{L}}}$",
        "{w}: \\(\\text{{{L}}}\\)",
        "{w}: {N}",
        "{w}： {N}",
    ),
    *(
        "{w}: {M}\n\n{w}: {L}",
        "{w} {L}",
        "{w}: \u200b{L}",
        "{w}:\u200b\u200b\u200b\u200b\u200b\u200b{L}",
    ),
    *(
        "{w}: {M}\nAnswer: {L}",
        "Answer: {M}\n{w}: {L}",
        "{w}ঃ {L}",
        "{w}: {D}",
        "{w}: ت",
        "{w}: {F}",
    ),
)
_NATIVE = ("أبجد", "কখগঘ", "অবডঢ", "ＡＢＣＤ", "가나다라", "アイウエ", "कखगघ", "ابجد")
_DIGITS = ("1234", "١٢٣٤", "১২৩৪", "१२३४", "１２３４")


def languages(count: int, seed: int) -> list[dict[str, str]]:
    """[{text, right}]: replies to questions of MMMLU, in many languages."""
    generator = random.Random(seed)
    rows = []
    for i in range(count):
        ending = _LANGUAGE_ENDINGS[i % len(_LANGUAGE_ENDINGS)]
        right, other = generator.sample(range(4), 2)
        tail = ending.format(
            w=generator.choice(_WORDS),
            L="ABCD"[right],
            l="abcd"[right],
            M="ABCD"[other],
            N=generator.choice(_NATIVE)[right],
            D=generator.choice(_DIGITS)[right],
            F="ＡＢＣＤ"[right],
        )
        letter = "ABCD"[right] if generator.random() < 0.85 else "ABCD"[other]
        rows.append({"text": _text(generator, tail), "right": letter})
    return rows


# {n} a whole number, {c} with commas, {m} another, {z} with zeros before it.
_BOXED = (
    *(
        "\\boxed{{{n}}}",
        "$\\boxed{{{n}}}$",
        "$$\n\\boxed{{{n}}}\n$$",
        "**\\boxed{{{n}}}**",
        "\\fbox{{{n}}}",
    ),
    *(
        "\\boxed{{{z}}}",
        "\\boxed{{ {n} }}",
        "\\boxed{{{n}.0}}",
        "\\boxed{{{n}.}}",
        "\\boxed{{+{n}}}",
    ),
    *(
        "\\boxed{{-{n}}}",
        "\\boxed{{−{n}}}",
        "\\boxed{{{c}}}",
        "\\boxed{{{n}^\\circ}}",
        "\\boxed{{{n}\\text{{ cm}}}}",
    ),
    *(
        "\\boxed{{{n}^{{\\circ}}}}",
        "\\boxed{{m+n={n}}}",
        "\\boxed{{x = {n}}}",
        "\\boxed{{\\text{{{n}}}}}",
    ),
    *(
        "\\boxed{{{m}}} at first; but no: \\boxed{{{n}}}",
        "\\boxed{{{n}}} (not {m})",
        "boxed{{{n}}}",
    ),
    *(
        "\\boxed {{{n}}}",
        "\\boxed{{\\boxed{{{n}}}}}",
        "\\boxed{{{n}",
        "\\boxed{{{m}, {n}}}",
        "\\boxed{{{m},{n}}}",
    ),
    *(
        "\\boxed{{\\frac{{{d}}}{{2}}}}",
        "\\boxed{{\\dfrac{{{n}}}{{1}}}}",
        "\\boxed{{{n}/1}}",
        "\\boxed{{\\frac12}}",
    ),
    *(
        "\\boxed{{{h} \\cdot 2 + {o}}}",
        "\\boxed{{2 \\times {h} + {o}}}",
        "\\boxed{{{n} + {o}!}}",
        "\\boxed{{2^4}}",
    ),
    *(
        "\\boxed{{2^{{4}}}}",
        "\\boxed{{\\sqrt{{{s}}}}}",
        "\\boxed{{({n})}}",
        "\\boxed{{\\left({n}\\right)}}",
    ),
    *(
        "\\boxed{{\\binom{{5}}{{2}}}}",
        "\\boxed{{x}}",
        "\\boxed{{}}",
        "\\boxed{{\\pi}}",
        "\\boxed{{{n} \\approx {m}}}",
    ),
    *(
        "\\boxed{{{n}\\ }}",
        "\\boxed{{\\displaystyle {n}}}",
        "\\boxed{{no answer}}",
        "\\boxed{{{n}\\%}}",
    ),
    *(
        "The answer is {n}.",
        "The answer is **{n}**.",
        "Answer: {n}",
        "ANSWER: {n}",
        "So {n}.",
        "{n}",
        "= {n}",
    ),
    *(
        "The answer is -{n}.",
        "The answer is {n}.5",
        "The answer is {c}",
        "Final: {n} = {m}",
        "It cannot be found",
        "",
    ),
    *(
        "\n│ {n} │",
        "┃{n}┃\n",
        "The answer is {w}.",
        "\\[ \\boxed{{{n}}} \\]",
        "\\boxed{{\\mathrm{{{n}}}}}",
    ),
    *(
        "\\boxed{{{n}}}\\boxed{{{m}}}",
        "\\boxed{{{h}+{h}+{o}}}",
        "\\boxed{{\\${n}}}",
        "\\boxed{{{n}\\,\\text{{m}}}}",
    ),
    *(
        "\\boxed{{{n}_{{10}}}}",
        "\\boxed{{\\{{{n}\\}}}}",
        "\\boxed{{[{n}]}}",
        "\\boxed{{{n}\\cdot 1}}",
        "\\boxed{{0}}",
    ),
)


def boxed(count: int, seed: int) -> list[dict[str, str]]:
    """[{text, right}]: replies to problems with whole numbers from 0 to 999 as answers."""
    generator = random.Random(seed)
    rows = []
    for i in range(count):
        number, other = generator.sample(range(2, 1000), 2)
        if i % 17 == 0:
            number = generator.choice((0, 10, 16, 70))
        tail = _BOXED[i % len(_BOXED)].format(**_numbers(number, other))
        right = number if generator.random() < 0.85 else other
        rows.append({"text": _text(generator, tail), "right": str(right)})
    return rows


_HASHED = (
    *(
        "#### {n}",
        "####{n}",
        "#### ${n}",
        "#### {c}",
        "#### {n}.",
        "#### {n}.00",
        "#### -{n}",
        "#### {n} apples",
    ),
    *(
        "#### {m}\nNo:\n#### {n}",
        "The answer is {n}.",
        "The answer is ${c}.",
        "Answer: {n}",
        "**Answer:** {n}",
    ),
    *(
        "\\boxed{{{n}}}",
        "$\\boxed{{\\${n}}}$",
        "{n}",
        "so {n} in all",
        "so {n} in all...",
        "${n}",
        "{n}%",
        "{n}!",
    ),
    *(
        "{n}, or so",
        "It is {n}. That took 5 minutes",
        "I do not know",
        "",
        "... and that is it",
        "{n}/2",
        "{n}.5",
    ),
    *(
        "#### {z}",
        "#### {n}\n\nQuestion: what now?",
        "#### **{n}**",
        "### {n}",
        "#### {n},",
        "the answer is {n} - done",
    ),
    *("#### {n} #### {m}", "#### .5", "#### ,", "It costs ${n}.", "{n} = {m}", "Answer: {w}"),
)


def hashed(count: int, seed: int) -> list[dict[str, str]]:
    """[{text, right}]: replies to problems of GSM8K; right is the gold answer as the data set writes it."""
    generator = random.Random(seed)
    rows = []
    for i in range(count):
        number, other = generator.sample(range(2, 5000), 2)
        tail = _HASHED[i % len(_HASHED)].format(**_numbers(number, other))
        right = number if generator.random() < 0.85 else other
        right_text = f"{right:,}" if i % 3 == 0 else str(right)
        rows.append({"text": _text(generator, tail), "right": right_text})
    return rows


_PUZZLES = (
    *(
        "So the answer is {t}.",
        "so the answer is {t}",
        "So the answer is **{t}**.",
        "The answer is {t}.",
    ),
    *(
        "So the answer is {t}!",
        "So the answer is {t}. Done.",
        "So the answer is  {t} .",
        "the answer is \n{t}.",
    ),
    *(
        "the answer is {u}. No, the answer is {t}.",
        "the answer is {u}.\nWait: the answer is {t}.",
        "Answer: {t}",
    ),
    *(
        "**Answer:** {t}",
        "**Answer: {t}**",
        "Answer: **{t}**",
        "\\boxed{{\\text{{{t}}}}}",
        "Answer: $\\boxed{{{t}}}$",
    ),
    *(
        "the answer is: {t}.",
        'the answer is "{t}".',
        "{t}",
        "",
        "I do not know",
        "Answer: {t}.",
        "the answer is x",
    ),
    *(
        "So the answer is {v}.",
        "Answer: {v}",
        "the answer is {t}, as the option says.",
        "the answer is .",
    ),
)
_TARGETS = (
    *(
        "(A)",
        "(B)",
        "(F)",
        "True",
        "False",
        "yes",
        "no",
        "Yes",
        "No",
        "valid",
        "invalid",
        "24",
        "-128",
    ),
    *("] ) >", "} ]", "apple fig plum", "8"),
)


def puzzles(count: int, seed: int) -> list[dict[str, str]]:
    """[{text, right}]: replies to puzzles of BIG-Bench Hard."""
    generator = random.Random(seed)
    rows = []
    for i in range(count):
        target, other = generator.sample(_TARGETS, 2)
        variant = generator.choice(
            (target.lower(), target.strip("()"), target + " things", target.upper())
        )
        tail = _PUZZLES[i % len(_PUZZLES)].format(t=target, u=other, v=variant)
        right = target if generator.random() < 0.85 else other
        rows.append({"text": _text(generator, tail), "right": right})
    return rows


def _numbers(number: int, other: int) -> dict[str, str]:
    return {
        "n": str(number),
        "m": str(other),
        "c": f"{number + 1000:,}",
        "z": f"{number:03d}",
        "d": str(2 * number),
        "h": str(number // 2),
        "o": str(number % 2),
        "s": str(number * number),
        "w": "seventy",
    }


def _text(generator: random.Random, tail: str) -> str:
    lines = generator.sample(_LINES, generator.randint(0, 3))
    after = generator.choice(("", "", "", "\n", "\n\nThank you.", "\n\nI hope it is right."))
    return "\n".join([*lines, tail]) + after
