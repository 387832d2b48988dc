"""The choice of pairs: what may stand against what, how lengths are kept together, and what is counted."""

from collections import Counter

import pytest

from configs.verifiable import PairsConfig
from train.verifiable.pairs import Answer, choose, likeness


def answer(sample, text, right, length=None, failed=""):
    return Answer(
        sample=sample,
        text=text,
        length=len(text) if length is None else length,
        right=right,
        failed=failed,
    )


def chosen(answers, room=1000, **config):
    return choose([("p", 10, answers)], PairsConfig(**config), room + 10)


def sides(choice):
    return [(pair.chosen.sample, pair.rejected.sample) for pair in choice.pairs]


def test_right_stands_against_wrong_and_no_answer_is_in_two_pairs():
    answers = [answer(i, f"{i}{'abcdefgh'[i] * 20}", i < 3) for i in range(8)]
    choice = chosen(answers, per_prompt=5)
    assert len(choice.pairs) == 3
    assert all(pair.chosen.right and not pair.rejected.right for pair in choice.pairs)
    used = [sample for pair in sides(choice) for sample in pair]
    assert len(set(used)) == len(used) == 6
    assert choice.answers == Counter({"in a pair": 6, "left over": 2})
    assert len(chosen(answers, per_prompt=2).pairs) == 2


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ([answer(0, "aaaaaaaa", True), answer(1, "bbbbbbbb", True)], "all right"),
        ([answer(0, "aaaaaaaa", False), answer(1, "bbbbbbbb", False)], "all wrong"),
        ([answer(0, "aaaaaaaa", None), answer(1, "b", False, failed="truncated")], "no usable answer"),
        ([answer(0, "a" * 9, True, 9), answer(1, "b" * 9, False, 19)], "lengths too unequal"),
        ([answer(0, "a" * 99, True, 9), answer(1, "a" * 99, False, 9)], "right and wrong too alike"),
        ([answer(0, "a" * 9, True, 9), answer(1, "b" * 9, False, 18)], "paired"),
    ],
)  # fmt: skip
def test_every_prompt_has_an_outcome(answers, outcome):
    assert chosen(answers).prompts == Counter({outcome: 1})


def test_what_cannot_be_paired_is_counted_by_its_reason():
    answers = [
        answer(0, "the right one", True),
        answer(1, "the right one", True),
        answer(2, "cut off", False, failed="truncated"),
        answer(3, "", None, failed="refused"),
        answer(4, "who knows", None),
        answer(5, "w" * 200, False),
        answer(6, "a wrong one!", False),
    ]
    choice = chosen(answers, room=100)
    assert sides(choice) == [(0, 6)]
    assert choice.answers == Counter(
        {
            "in a pair": 2,
            "repeats another": 1,
            "truncated": 1,
            "refused": 1,
            "unverifiable": 1,
            "too long": 1,
            "left over": 0,
        }
    )


def test_near_repeats_of_the_same_verdict_are_one_answer_and_of_another_are_not():
    text = "the sum of these two numbers is, if I have added them up well, "
    answers = [answer(0, text + "17", True), answer(1, text + "17!", True), answer(2, "18", False)]
    assert chosen(answers, likeness=0.9, length_ratio=99).answers["repeats another"] == 1
    assert chosen(answers, likeness=1.0, length_ratio=99).answers["repeats another"] == 0
    # A right and a wrong answer that differ in a digit: too alike at 0.9, a pair at 1.
    answers = [answer(0, text + "17", True), answer(1, text + "18", False)]
    assert 0.9 < likeness(answers[0].text, answers[1].text) < 1
    assert not chosen(answers, likeness=0.9).pairs
    assert chosen(answers, likeness=1.0).pairs


def test_likeness_is_jaccards_of_pieces():
    assert likeness("abcdef", "abcdef") == 1
    assert likeness("abcdef", "ghijkl") == 0
    assert likeness("abcdef", "abcdeg") == 1 / 3  # abcde, bcdef | abcde, bcdeg
    assert likeness("", "") == 1
    assert likeness("ab", "ab") == 1 and likeness("ab", "ac") == 0


def test_the_sums_of_lengths_stay_together():
    """Right answers are longer than wrong ones more often than not; what is chosen is not."""
    groups = []
    for i in range(50):
        right = [answer(j, f"r{i}-{j}" * 4, True, length) for j, length in enumerate((10, 14, 18))]
        wrong = [
            answer(3 + j, f"w{i}-{j}" * 4, False, length) for j, length in enumerate((9, 10, 16))
        ]
        groups.append((str(i), 5, right + wrong))
    choice = choose(groups, PairsConfig(per_prompt=1), 100)
    assert len(choice.pairs) == 50
    difference = sum(pair.chosen.length - pair.rejected.length for pair in choice.pairs)
    assert abs(difference) <= 9
    # By chance it would have been 50 * (14 - 11.67).
    assert difference < 50 * 2.3 / 10


def test_of_equal_lengths_those_that_part_late_go_together():
    answers = [
        answer(0, "3 + 4 = 7; 7 + 2 = 9", True),
        answer(1, "5 - 4 = 1; 1 + 2 = 3", False),
        answer(2, "3 + 4 = 7; 7 + 2 = 8", False),
    ]
    assert sides(chosen(answers, per_prompt=1, likeness=1.0)) == [(0, 2)]


def test_the_choice_is_the_same_every_time():
    answers = [answer(i, f"{i * 7919:013d}", i % 3 == 0, 10 + i % 4) for i in range(16)]
    assert sides(chosen(answers, per_prompt=4)) == sides(chosen(answers, per_prompt=4))
