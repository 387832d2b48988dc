"""Ratings against CodeElo's recorded ones, judging on given tests, and what is counted instead of judged."""

import json
import math
import random
from typing import Any

import pytest

from eval.rating import codeelo_rating, contest_from_api, maximum_likelihood
from eval.task import Answer, Graded, Item, Verdict
from eval.tasks import codeforces
from gemma4_jax.errors import UserError
from gemma4_jax.verify.sandbox import Sandbox
from tests.eval.tasks.answers_written import contests
from tests.eval.tasks.support import load_fixture, needs_bubblewrap

EVERY = contests()
RATED = next(
    i for i, rating in enumerate(load_fixture("codeelo")) if rating and i % 3
)  # with points


def test_ratings_are_codeelos():
    expected, every = load_fixture("codeelo"), EVERY
    assert len(expected) == len(every) >= 200
    got = [
        codeelo_rating(contest_from_api(c["standings"], c["rating_changes"]), c["verdicts"])
        for c in every
    ]
    assert got == expected
    known = [rating for rating in got if rating is not None]
    assert len(known) > 150 and None in got and len(set(known)) > 50


def test_extraction_is_codeelos():
    for text, _, code in load_fixture("extraction"):
        assert codeforces.extract(text, "reference") == code, text


def test_a_perfect_contestant_has_the_highest_rating():
    contest = contest_from_api(EVERY[RATED]["standings"], EVERY[RATED]["rating_changes"])
    ratings = [
        codeelo_rating(contest, {name: ["AC"] for name, _ in contest.problems[:solved]})
        for solved in range(len(contest.problems) + 1)
    ]
    numbers = [rating for rating in ratings if rating is not None]
    assert numbers == sorted(numbers) and len(numbers) == len(ratings)
    # Nobody is ahead: no seed is below place 0, so the search ends at its upper end.
    assert numbers[0] < numbers[-1] == max(contest.old_ratings) + 99


def test_likelihood_finds_the_rating_and_its_error():
    rng = random.Random(3)
    found = []
    for _ in range(60):
        difficulties = [rng.choice(range(800, 3500, 100)) for _ in range(400)]
        solved = [float(rng.random() < 1 / (1 + 10 ** ((d - 1500) / 400))) for d in difficulties]
        result = maximum_likelihood(difficulties, solved)
        assert result is not None
        found.append(result)
    mean = sum(rating for rating, _ in found) / len(found)
    spread = math.sqrt(sum((rating - mean) ** 2 for rating, _ in found) / (len(found) - 1))
    error = sum(error for _, error in found) / len(found)
    assert abs(mean - 1500) < 4 * spread / math.sqrt(len(found))
    assert 0.75 < spread / error < 1.3
    assert 25 < error < 50  # 400 problems


def test_likelihood_by_hand():
    # One of two problems of one difficulty: the rating is that difficulty.
    rating, error = maximum_likelihood([1200.0, 1200.0], [1.0, 0.0]) or (0.0, 0.0)
    assert rating == pytest.approx(1200.0)
    assert error == pytest.approx(400 / math.log(10) / math.sqrt(2 * 0.25))
    assert maximum_likelihood([1200.0], [1.0]) is None
    assert maximum_likelihood([1200.0], [0.0]) is None


def open_r1(name: str = "2000/A", **changes: Any) -> dict[str, Any]:
    return {
        "id": name, "contest_id": 2000, "index": "A", "title": "Add", "description": "Add two numbers.",
        "input_format": "Two numbers.", "output_format": "Their sum.", "interaction_format": None, "note": None,
        "time_limit": 1.0, "memory_limit": 256.0, "rating": 1200, "tags": ["math"], "input_mode": "stdio",
        "examples": [{"input": "1 2\n", "output": "3\n"}],
        "official_tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "4 5\n", "output": "9\n"}],
        "official_tests_complete": True, "generated_checker": None,
    } | changes  # fmt: skip


def load(tmp_path, rows: list[dict[str, Any]]) -> list[Item]:
    path = tmp_path / "cf.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return codeforces.load(path)


def test_both_schemas_and_what_is_left_out(tmp_path):
    rows = [
        open_r1(),
        open_r1("2000/B", official_tests_complete=False, generated_checker="print(1)", rating=None),
        open_r1("2000/C", interaction_format="Ask."),
        open_r1("2000/D", input_mode="file"),
        open_r1("2000/E", examples=[], official_tests=[]),
        open_r1("2000/F", interaction_format="Answer."),
        {
            "problem_id": "1999G", "title": "T", "description": "D", "input": "I", "output": "O",
            "interaction": "", "note": "N", "time_limit_ms": 1500, "memory_limit_mb": 512, "rating": 1500,
            "examples": [["1\n", "2\n"]],
        },
    ]  # fmt: skip
    items = load(tmp_path, rows)
    assert [item.id for item in items] == ["2000A", "2000B", "1999G"]
    first, second, third = (item.data for item in items)
    assert first["tests"] == [("1 2\n", "3\n"), ("4 5\n", "9\n")] and first["marks"] == []
    assert second["marks"] == ["incomplete tests", "has a checker, not run"]
    assert (
        third["marks"] == ["examples only"]
        and third["seconds"] == 1.5
        and third["contest"] == "1999"
    )
    graded = [
        Graded(
            item=item, sample=0, verdict=Verdict(score=1.0, extracted="", details={"status": "AC"})
        )
        for item in items
    ]
    got = codeforces.TASK.summary(graded)
    assert got["left out: interactive"] == 2
    assert got["left out: reads or writes files"] == 1
    assert got["left out: without tests"] == 1
    assert got["problems: examples only"] == 1 and got["problems: has a checker, not run"] == 1
    assert got["ML rating: none, all or nothing solved, of problems"] == 2
    assert not any("Elo" in name for name in got)


def test_prompt_has_the_whole_statement(tmp_path):
    (item,) = load(tmp_path, [open_r1(note="Mind.")])
    (message,) = codeforces.prompt(item, 0, "thinking")
    for part in (
        "# Add",
        "Time limit: 1 seconds",
        "## Input\nTwo numbers.",
        "Input:\n1 2\n\nOutput:\n3",
        "Mind.",
    ):
        assert part in message["content"]


@needs_bubblewrap
def test_judged_on_every_given_test(tmp_path):
    (item,) = load(tmp_path, [open_r1()])

    def judged(code: str, protocol: Any = "thinking") -> Verdict:
        text = f"First:\n```python\nprint(3)\n```\nBetter:\n```python\n{code}\n```"
        return codeforces.score(item, Answer(text=text, protocol=protocol, sandbox=Sandbox()))

    right = "print(sum(map(int, input().split())))"
    assert judged(right).score == 1.0 and judged(right).details == {"status": "AC"}
    verdict = judged(right, "reference")  # CodeElo takes the first block
    assert verdict.note == "test 2 of 2: line 1: expected '9', got '3'"
    assert verdict.details == {"status": "WA"}
    assert judged("1 / 0").note == "test 1 of 2: ZeroDivisionError: division by zero"
    nothing = codeforces.score(item, Answer(text="no", sandbox=Sandbox()))
    assert (nothing.extracted, nothing.details) == (None, {"status": "No code"})


def test_elo_of_contests_with_standings(tmp_path):
    contest = EVERY[RATED]
    number = str(contest["standings"]["problems"][0]["contestId"])
    path = tmp_path / "standings.json"
    path.write_text(json.dumps({number: contest, "1": EVERY[0]}))
    task = codeforces.task(path)
    assert task.published and not codeforces.TASK.published

    def graded(name: str, statuses: list[str]) -> list[Graded]:
        data = {"rating": 1500.0, "contest": name[:4], "marks": [], "left_out": {}}
        item = Item(id=name, data=data)
        return [
            Graded(
                item=item,
                sample=i,
                verdict=Verdict(score=float(s == "AC"), extracted="", details={"status": s}),
            )
            for i, s in enumerate(statuses)
        ]

    statuses = {f"{number}A": ["WA", "AC"], f"{number}B": ["WA", "WA"], "9999A": ["AC", "AC"]}
    every = [one for name, these in statuses.items() for one in graded(name, these)]
    got = task.summary(every[::-1])  # in any order: samples are submissions by their number
    expected = codeelo_rating(
        contest_from_api(contest["standings"], contest["rating_changes"]), statuses
    )
    assert expected is not None
    assert got["Codeforces Elo"] == expected
    assert got["Codeforces Elo, contests"] == 1
    assert got["Codeforces Elo, contests without usable standings"] == 1


def test_files_that_are_wrong(tmp_path):
    with pytest.raises(UserError, match="'examples' must be tests"):
        load(tmp_path, [open_r1(examples=[{"input": "1"}])])
    with pytest.raises(UserError, match="'time_limit' must be a positive number, got -1"):
        load(tmp_path, [open_r1(time_limit=-1)])
    with pytest.raises(UserError, match="no 'problem_id'"):
        load(tmp_path, [open_r1(name="")])
    with pytest.raises(UserError, match="'2000A' is already that of"):
        load(tmp_path, [open_r1(), open_r1()])
    with pytest.raises(UserError, match="no problem to judge"):
        load(tmp_path, [open_r1(interaction_format="x")])
    with pytest.raises(UserError, match="no standings at"):
        codeforces.task(tmp_path / "none.json")
    for text in ("[", '{"1": {"standings": {}}}', '{"1": {"standings": {}, "rating_changes": []}}'):
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(UserError, match=r"s\.json"):
            codeforces.task(tmp_path / "s.json")
