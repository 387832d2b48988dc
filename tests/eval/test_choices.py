"""Choices: their order, and which letter an answer ends up with."""

from collections import Counter

import pytest

from eval.choices import final_choice, listed, shuffled

OPTIONS = ["seven", "42", "3.5 m", "all of them"]


def test_order_is_fixed_by_item_and_sample_and_differs_between_samples():
    orders = [tuple(shuffled("rec06pnAkLOr2t2mp", sample, 4)) for sample in range(200)]
    assert orders == [tuple(shuffled("rec06pnAkLOr2t2mp", sample, 4)) for sample in range(200)]
    assert orders != [tuple(shuffled("rec0", sample, 4)) for sample in range(200)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    # Every order comes up, and the right choice (0) stands at each place about as often.
    assert len(set(orders)) == 24
    places = Counter(order.index(0) for order in orders)
    assert min(places.values()) > 30
    # Fixed for good: a stored generation is judged again by another process, years later.
    assert orders[:3] == [(0, 2, 3, 1), (0, 2, 1, 3), (2, 3, 1, 0)]


def test_listed():
    assert listed(["x", "y"]) == "A) x\nB) y"
    assert listed(["x", "y"], ". ") == "A. x\nB. y"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: B", "B"),
        ("answer: b.", "B"),
        ("**Answer:** (B)", "B"),
        ("**Answer: B**", "B"),
        ("Answer: **B**", "B"),
        ("Answer: $\\boxed{B}$", "B"),
        ("Answer:\n\nB", "B"),
        ("Final Answer: Option B", "B"),
        ("Answer: B because it is larger", "B"),
        ("The answer is (B).", "B"),
        ("the correct answer is **B**", "B"),
        ("The answer is: B", "B"),
        ("so $\\boxed{\\text{B}}$", "B"),
        ("\\boxed{(B)}", "B"),
        # The last one counts, of whatever kind.
        ("Answer: A\nNo.\nAnswer: B", "B"),
        ("The answer is A. But then \\boxed{B}.", "B"),
        ("\\boxed{A}, so Answer: B", "B"),
        # A letter beyond the choices is an answer, and a wrong one.
        ("Answer: J", "J"),
        # Words are no letters, and unmarked letters are no answer.
        ("The answer is A prime number.", None),
        ("Answer: a prime number", None),
        ("Answer: I'd say none", None),
        ("Answers: see above", None),
        ("A is right, D is not.", None),
        ("B", None),
        ("", None),
        # The text of one choice names it, however its digits and dressing are written.
        ("Answer: 42", "B"),
        ("Answer: **４２**.", "B"),
        ("Answer: ٤٢", "B"),
        ("Answer: Seven", "A"),
        ("Answer: 43", None),
        ("Answer: C\nOr rather, answer: 42", "B"),
        ("Answer: 42\nOr rather, answer: C", "C"),
    ],
)
def test_the_letter_of_an_answer(text, letter):
    assert final_choice(text, OPTIONS) == letter


def test_a_choice_that_begins_like_a_letter_is_itself():
    options = ["I, II and III", "A few producers", "S=1, R=1", "C"]
    for i, option in enumerate(options[:3]):
        assert final_choice(f"Answer: {option}.", options) == "ABC"[i]
    # A choice that is one letter is no name of itself: the letter is.
    assert final_choice("Answer: C", options) == "C"
    assert final_choice("Answer: A few others", options) == "A"


def test_the_same_text_twice_names_no_choice():
    assert final_choice("Answer: 42", ["42", " 42.", "x", "y"]) is None
