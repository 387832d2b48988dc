"""Exact values of short expressions, and what has none."""

from fractions import Fraction

import pytest

from eval.exact import exact_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("61", 61),
        ("070", 70),
        ("-5", -5),
        ("+5", 5),
        ("3.", 3),
        (".5", Fraction(1, 2)),
        ("25+36", 61),
        ("2 - 3 - 4", -5),
        ("2*3/4*5", Fraction(15, 2)),
        ("2 \\cdot 3 \\times 4 \\div 6", 4),
        ("2(3)(4)", 24),
        ("2^10", 1024),
        ("2^{-2}", Fraction(1, 4)),
        ("-2^2", -4),
        ("(-2)^2", 4),
        ("2**3", 8),
        ("2^3^2", 512),
        ("\\frac{25}{36}", Fraction(25, 36)),
        ("\\frac12", Fraction(1, 2)),
        ("\\tfrac12+3", Fraction(7, 2)),
        ("3\\dfrac{1}{2}", Fraction(3, 2)),
        ("\\binom{10}{3}", 120),
        ("5! + 1", 121),
        ("\\sqrt{144}", 12),
        ("\\sqrt{\\frac{9}{4}}", Fraction(3, 2)),
        ("2^{\\sqrt{9}}", 8),
    ],
)
def test_values(text, value):
    assert exact_value(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "x",
            "3 4",
            "\\tfrac123",
            "3x",
            "1,000",
            "\\pi",
            "\\sqrt{2}",
            "\\sqrt{-4}",
            "\\log_2 8",
            "(3",
            "3)",
            "3+",
            "{",
            "\\frac{1}",
        ),
        *(
            "1/0",
            "\\frac{1}{0}",
            "0^{-1}",
            "2^{0.5}",
            "3.5!",
            "(-1)!",
            "\\binom{3}{5}",
            "4 = 4",
            "1e5",
            "²",
            "\\frac{}{2}",
        ),
        # Too large: said quickly, not computed.
        *(
            "9^9^9^9",
            "10^{10000}",
            "9" * 200,
            "2^{99999999999}",
            "50!^{50}",
            "((((((9^99)^99)^99)^99)",
            "(" * 119,
        ),
    ],
)
def test_no_value(text):
    assert exact_value(text) is None
