"""The number an answer ends up with: which one it is, exactly, whatever a model wrote around it."""

from fractions import Fraction

import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.verify.answers import (
    answer_number,
    final_number,
    is_correct,
    numbers,
    to_number,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("It costs $1,234.50.", Fraction("1234.5")),
        ("first 3, then 4", 4),
        ("1,2,3", 3),
        ("-7", -7),
        ("\u22127", -7),
        ("-$5", -5),
        ("10-3", 3),
        ("(10)-3", 3),
        ("- 42", 42),  # a bullet, no sign
        (".5", Fraction(1, 2)),
        ("half: 1/2", Fraction(1, 2)),
        ("3 / 4", Fraction(3, 4)),
        ("2 1/2 cups", Fraction(5, 2)),
        ("6e-4", Fraction(6, 10_000)),
        (r"\frac{2}{3}", Fraction(2, 3)),
        (r"-\dfrac{ 2 }{ 3 }", Fraction(-2, 3)),
        ("50%", 50),
        ("7 km/h", 7),
        ("12kg", 12),
        ("H2O", None),
        ("version 1.2.3", Fraction("1.2")),
        ("1/0", None),
        ("5, or 1/0", 5),
        ("no number", None),
        ("", None),
        ("1e999999999", None),
        ("9" * 100_000, None),
    ],
)
def test_the_last_number_counts(text, value):
    assert final_number(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"so \boxed{12} of 30", 12),
        (r"\boxed{1} and then \boxed{\frac{3}{4}}. 9", Fraction(3, 4)),
        (r"\boxed{x = 5}", 5),
        (r"\boxed{7", 7),
        ("2 + 2\n#### 4\n(in 2 steps)", 4),
        ("The answer is 7 for 2 people.", 7),
        ("The answer is 3.5. I used 2 steps", Fraction("3.5")),
        ("answer: 3 + 4 = 7", 7),
        ("**Answer:** 42\nfound in 3 lines", 42),
        ("Answer:\n42\n7", 42),
        ("the answer to question 3 is 9, not 8", 9),
        ("The ANSWER would be 6 of 10", 6),
        ("The answer is 1. No: the answer is 2, in 3 steps", 2),
        ("The answer is unknown. 5", 5),
        (r"#### 3, hence \boxed{4}", 4),
    ],
)
def test_a_marked_number_counts_before_the_last(text, value):
    assert final_number(text) == value


def test_all_numbers_in_order():
    assert list(numbers("1, -2 and 3/4")) == [1, -2, Fraction(3, 4)]


@pytest.mark.parametrize(
    ("output", "value"),
    [
        ("<|channel>thought\nmaybe 5<channel|>It is 6.<turn|>", 6),
        ("<|channel>thought\nmaybe 5<channel|>I do not know.<turn|>", None),
        ("<|channel>thought\nit must be 5", None),  # the thought never ended
        ("6<turn|>\n<|turn>user\n7", 6),
        ("", None),
    ],
)
def test_thoughts_do_not_count(output, value):
    assert answer_number(output) == value


def test_a_prompt_that_opens_the_thought():
    prompt = "<|turn>model\n<|channel>thought\n"
    assert answer_number("5<channel|>6", prompt) == 6
    assert answer_number("5", prompt) is None


def test_equality_is_exact():
    assert is_correct("1,250 in all", "1250")
    assert is_correct("0.1", 0.1)
    assert is_correct("0.75", Fraction(3, 4))
    assert not is_correct("3.33", Fraction(10, 3))
    assert not is_correct("no idea", 0)


@pytest.mark.parametrize("expected", ["seven", "", "1 2", "5 apples", "1/0", float("nan")])
def test_an_expected_answer_must_be_a_number(expected):
    with pytest.raises(UserError, match="must be one number"):
        to_number(expected)
