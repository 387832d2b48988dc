"""Answers to functions to complete and to instructions, written for the tests, with what they answer."""

import random
from pathlib import Path
from typing import Any

FUNCTIONS = {
    "add": ("a: int, b: int", "Sum of a and b.", "return a + b", "return a - b", [((1, 2), 3), ((-4, 9), 5)]),
    "flip": ("s: str", "The text backwards.", "return s[::-1]", "return s", [(("abc",), "cba"), (("",), "")]),
    "evens": (
        "xs: List[int]", "The even numbers, in order.", "return [x for x in xs if x % 2 == 0]",
        "return [x for x in xs if x % 2]", [(([1, 2, 4],), [2, 4]), (([],), [])],
    ),
    "count": (
        "s: str", "How often each letter is there.", "return {c: s.count(c) for c in s}",
        "return {}", [(("aab",), {"a": 2, "b": 1}), (("",), {})],
    ),
    "mean": (
        "xs: List[float]", "The mean.", "return sum(xs) / len(xs)", "return sum(xs)",
        [(([1.0, 2.0],), 1.5), (([3.0],), 3.0)],
    ),
    "prefixes": (
        "s: str", "All prefixes, shortest first.", "return [s[:i + 1] for i in range(len(s))]",
        "return [s]", [(("ab",), ["a", "ab"]), (("",), [])],
    ),
    "largest": (
        "xs: List[int]", "The largest, None if there is none.", "return max(xs, default=None)",
        "return max(xs)", [(([3, 1],), 3), (([],), None)],
    ),
    "swap": ("t: tuple", "Both parts, swapped.", "return (t[1], t[0])", "return t", [(((1, "a"),), ("a", 1))]),
}  # fmt: skip

# What is appended to the prompt; {right}, {wrong}: bodies; {name}, {args}: of the function.
COMPLETIONS = {
    "right": "    {right}\n",
    "no newline": "    {right}",
    "wrong": "    {wrong}\n",
    "more indented": "        {right}\n",
    "blank lines": "\n\n    {right}\n\n\n",
    "comment": "    # right\n    {right}\n",
    "two steps": "    pass\n    {right}\n",
    "helper after": "    return helper({first})\n\n\ndef helper(*args):\n    return None\n",
    "whole": "\ndef {name}({args}):\n    {right}\n",
    "whole wrong": "    {right}\n\ndef {name}({args}):\n    {wrong}\n",
    "whole right": "    {wrong}\n\ndef {name}({args}):\n    {right}\n",
    "import": "    import math\n    {right}\n",
    "main guard": "    {right}\n\nif __name__ == '__main__':\n    raise SystemExit(1)\n",
    "asserts": "    {right}\n\nassert {name} is not None\n",
    "prints": "    print('working')\n    {right}\n",
    "text after": "    {right}\n\nThis returns the answer.\n",
    "not indented": "{right}\n",
    "nothing": "",
    "pass": "    pass\n",
    "syntax": "    return (\n",
    "raises": "    raise ValueError('no')\n",
    "exit 0": "    {right}\n\nimport sys\nsys.exit(0)\n",
    "exit in": "    import sys\n    sys.exit(0)\n",
    "os exit": "    {wrong}\n\nimport os\nos._exit(0)\n",
    "exit name": "    exit()\n",
    "input": "    input()\n    {right}\n",
    "recursion": "    return {name}({first})\n",
    "tabs": "\t{right}\n",
    "fenced": "Sure.\n```python\ndef {name}({args}):\n    {right}\n```\nDone.",
    "fenced wrong": "```python\ndef {name}({args}):\n    {wrong}\n```",
    "fenced twice": "```python\ndef {name}({args}):\n    {wrong}\n```\nBetter:\n```python\ndef {name}({args}):\n"
    "    {right}\n```",
    "fenced use": "```python\ndef {name}({args}):\n    {right}\n```\nUse it:\n```python\nprint({name})\n```",
    "fenced body": "```python\n    {right}\n```",
    "fenced bare": "```\ndef {name}({args}):\n    {right}\n```",
}


def humaneval_problems() -> dict[str, dict[str, str]]:
    """Problems in HumanEval's schema."""
    found = {}
    for name, (args, what, right, _, cases) in FUNCTIONS.items():
        tests = "".join(
            f"    assert candidate{_arguments(given)} == {value!r}\n" for given, value in cases
        )
        found[f"Own/{name}"] = {
            "task_id": f"Own/{name}",
            "prompt": f'from typing import List\n\n\ndef {name}({args}):\n    """ {what}\n    """\n',
            "entry_point": name,
            "canonical_solution": f"    {right}\n",
            "test": f"\n\ndef check(candidate):\n{tests}",
        }
    return found


def humaneval_answers() -> list[dict[str, str]]:
    """{task_id, label, text, completion}; completion: the code in the text, by construction."""
    found = []
    for name, (args, _, right, wrong, _) in FUNCTIONS.items():
        first = args.split(":")[0]
        for label, pattern in COMPLETIONS.items():
            text = pattern.format(right=right, wrong=wrong, name=name, args=args, first=first)
            completion = text
            if label.startswith("fenced"):
                body = wrong if label == "fenced wrong" else right
                completion = f"def {name}({args}):\n    {body}\n"
                completion = f"    {body}\n" if label == "fenced body" else completion
            found.append(
                {"task_id": f"Own/{name}", "label": label, "text": text, "completion": completion}
            )
    return found


def _arguments(given: tuple[Any, ...]) -> str:
    return f"({', '.join(map(repr, given))})"


# One sentence in each of 32 languages: "en The river ...".
_LINES = (Path(__file__).parents[2] / "fixtures/eval/sentences.txt").read_text("utf-8").splitlines()
SENTENCES = {line.split(" ")[0]: line.partition(" ")[2] for line in _LINES}

TEXTS = [
    "Dr. Smith went to Washington. He met Mr. Jones at 5 p.m. and left. Why? Nobody knows!",
    "First paragraph. It has two sentences.\n\nSecond paragraph, shorter.\n\nThird one here.",
    "* one\n* two\n- three\n  * four\n**bold** line\n*** \n-five",
    "Part one\n***\nPart two\n***\nPart three",
    "*** Part one *** Part two ***",
    "One answer.\n******\nAnother answer.",
    "Same.\n******\nSame.",
    "******\nA\n******\n\n******\nB",
    "My answer is yes.",
    "I think that My answer is maybe. But who knows",
    '```json\n{"a": [1, 2, {"b": null}]}\n```',
    '{"a": 1,}',
    "3",
    '"A quoted text, from start to end."',
    '"',
    "<<A Title>>\n\nText with *one highlight* and **two** and *  * and ****.",
    "<< >>\n<<Real title>> and <<another>>",
    "Section 1\nHello\nSection 2\nWorld\nSECTION 3 Section3",
    "Dear [name], please write to [address] by [date]. [] [a\nb]",
    "That is all.\n\nP.S. Do not forget the milk.\nP.P.S Really.",
    "p. s. lower case, p.p.s too\nP.S.",
    "Is there anything else I can help with?",
    '"Any other questions?"  ',
    "Write two poems about rain.\n\nRain falls. Rain stops.",
    "THIS IS ALL IN CAPITALS AND IT IS ENGLISH, AS ANYONE CAN SEE FROM THE WORDS THAT ARE IN IT.",
    "this is all in small letters and it is english as anyone can see from the words that are in it.",
    "NASA and the FBI told us: A or B? I don't know. WELL-KNOWN AND/OR U.S. DON'T IBM's",
    "The cat sat. The CAT ran. A category is not a cat! Concatenate cats.",
    "No comma here at all; only others: dashes - and so on",
    "One, two, three.",
    "snow-covered e.g. this one. It costs $3.50 in the U.S. today. See www.example.com for more... "
    "Really?! Yes.",
    "1. First item. 2. Second item.\n3. Third item.",
    "",
    "   \n ",
    "12345 67890 !!!",
    "Hello",
    "'Quoted' first word, then others.\n\n\n\nNext paragraph after blank ones.\n\n",
    "\"What?\" she said. 'Nothing,' he said.\n\nWeather, they say, is mild.",
    "Here is the answer:\nthe real text stands here without commas\nHope this helps, friend.",
    "Sure! Here it is:\n* **alpha** item\n* beta item\n\nLet me know, please.",
    "#hashtag one #two #three !!! and so on",
    "a" * 60 + " " + "b" * 3,
    "He said (Prof. Lee, Inc. and Co.) that no. 5 is fine. J. K. Rowling agrees. Ok",
    "What about i.e. and etc. in the middle? vs. at the end etc.",
    "Line one\nLine two\nLine three without a stop\nLine four.",
]

# Per kind: arguments to try with every text.
INSTRUCTIONS: dict[str, list[dict[str, Any]]] = {
    "keywords:existence": [{"keywords": ["cat"]}, {"keywords": ["rain", "poems?"]}],
    "keywords:frequency": [
        {"keyword": "cat", "frequency": 3, "relation": "at least"},
        {"keyword": " one ", "frequency": 2, "relation": "less than"},
    ],
    "keywords:forbidden_words": [
        {"forbidden_words": ["cat", "rain"]},
        {"forbidden_words": ["a.l"]},
    ],
    "keywords:letter_frequency": [
        {"letter": "e", "let_frequency": 5, "let_relation": "at least"},
        {"letter": "S", "let_frequency": 3, "let_relation": "less than"},
    ],
    "language:response_language": [{"language": "en"}, {"language": "de"}],
    "length_constraints:number_sentences": [
        {"num_sentences": 3, "relation": "at least"},
        {"num_sentences": 2, "relation": "less than"},
        {"num_sentences": 4, "relation": "less than"},
    ],
    "length_constraints:number_paragraphs": [{"num_paragraphs": 2}, {"num_paragraphs": 3}],
    "length_constraints:number_words": [
        {"num_words": 15, "relation": "at least"},
        {"num_words": 10, "relation": "less than"},
    ],
    "length_constraints:nth_paragraph_first_word": [
        {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "Second"},
        {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "quoted"},
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weather"},
    ],
    "detectable_content:number_placeholders": [{"num_placeholders": 3}, {"num_placeholders": 1}],
    "detectable_content:postscript": [
        {"postscript_marker": "P.S."},
        {"postscript_marker": "P.P.S"},
    ],
    "detectable_format:number_bullet_lists": [{"num_bullets": 2}, {"num_bullets": 5}],
    "detectable_format:constrained_response": [{}],
    "detectable_format:number_highlighted_sections": [{"num_highlights": 1}, {"num_highlights": 2}],
    "detectable_format:multiple_sections": [
        {"section_spliter": "Section", "num_sections": 2},
        {"section_spliter": "SECTION", "num_sections": 1},
    ],
    "detectable_format:json_format": [{}],
    "detectable_format:title": [{}],
    "combination:two_responses": [{}],
    "combination:repeat_prompt": [{"prompt_to_repeat": "Write two poems about rain."}],
    "startend:end_checker": [
        {"end_phrase": "Any other questions?"},
        {"end_phrase": "Is there anything else I can help with?"},
    ],
    "startend:quotation": [{}],
    "change_case:capital_word_frequency": [
        {"capital_frequency": 3, "capital_relation": "at least"},
        {"capital_frequency": 2, "capital_relation": "less than"},
        {"capital_frequency": 9, "capital_relation": "at least"},
    ],
    "change_case:english_capital": [{}],
    "change_case:english_lowercase": [{}],
    "punctuation:no_comma": [{}],
}


def ifeval_texts() -> list[str]:
    """The texts, the sentences of every language, and mixtures of them, the same every time."""
    rng = random.Random(6)
    found = TEXTS + list(SENTENCES.values()) + [SENTENCES["en"].upper(), SENTENCES["en"].lower()]
    lines = [line for text in TEXTS for line in text.split("\n") if line.strip()]
    for _ in range(40):
        picked = rng.sample(lines, rng.randint(1, 6))
        text = rng.choice(["\n", "\n\n", " ", "\n***\n"]).join(picked)
        found.append(rng.choice([text, text, text.upper(), text.lower(), f'"{text}"']))
    return found


def contests(count: int = 210) -> list[dict[str, Any]]:
    """Contests in the form of Codeforces' API, with verdicts; small ones, tied ones and ICPC ones among
    them."""
    rng = random.Random(20)
    found = []
    for number in range(count):
        n = rng.choice([201, 230, 260, 150, 201])
        icpc, letters = number % 3 == 0, "ABCDEF"[: rng.randint(3, 6)]
        people = []
        for i in range(n):
            rating = max(0, round(rng.gauss(1500, 400)))
            points = (
                rng.randint(0, 3) if icpc else max(0, round(rating + rng.gauss(0, 300))) // 50 * 50
            )
            people.append((points, rng.randint(0, 9) * 10, f"p{i}", rating))
        people.sort(key=lambda p: (-p[0], p[1]))
        unrated = rng.choice([0, 0, 0, 3])
        problems = [{"contestId": 2000 + number, "index": letter} for letter in letters]
        if not icpc:
            for i, problem in enumerate(problems):
                problem["points"] = 500.0 * (i + 1)
        verdicts = {
            f"{2000 + number}{letter}": [
                rng.choice(["AC", "WA", "WA", "No code", "TLE"]) for _ in range(rng.randint(0, 8))
            ]
            for letter in letters
            if rng.random() < 0.9
        }
        changes = [{"handle": h, "oldRating": r} for _, _, h, r in people[unrated:]]
        if number % 50 == 7:
            changes.append({"handle": "not in the standings", "oldRating": 1500})
        rng.shuffle(changes)
        found.append(
            {
                "standings": {
                    "problems": problems,
                    "rows": [
                        {"party": {"members": [{"handle": h}]}, "points": p, "penalty": q}
                        for p, q, h, _ in people
                    ],
                },
                "rating_changes": changes,
                "verdicts": verdicts,
            }
        )
    return found
