"""The exact value of a short expression as models box it: 070, \\dfrac{25}{36}, 2^4 \\cdot 3.

Here: whole and decimal numbers, + - * / ^ !, fractions, binomials, roots that come out even, brackets,
products without a sign between them. Not here: letters, functions, anything that is no rational number; and no
guessing: what is not understood as a whole has no value. Sizes are bounded, the text is a model's.
"""

import math
import re
from fractions import Fraction

_MAX_LENGTH = 120
_MAX_BITS = 512
_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?|\.\d+)|\\([A-Za-z]+)|(\*\*|[-+*/^!(){}]))")
_SIGNS = {"cdot": "*", "times": "*", "div": "/"}
_FRACTIONS = ("frac", "dfrac", "tfrac", "cfrac")
_BINOMIALS = ("binom", "dbinom", "tbinom")


class _NoValue(Exception):
    """The text is no expression of the kind that is read here."""


def exact_value(text: str) -> Fraction | None:
    """The value of an expression; None if it is not understood, not rational, or too large."""
    if len(text) > _MAX_LENGTH:
        return None
    try:
        reader = _Reader(_tokens(text))
        value = reader.sum()
        reader.end()
    except (_NoValue, ZeroDivisionError):
        return None
    return value


def _tokens(text: str) -> list[str]:
    tokens, at, text = [], 0, text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _NoValue
        number, command, sign = match.groups()
        if command:
            tokens.append(_SIGNS.get(command, f"\\{command}"))
        else:
            tokens.append(number or sign.replace("**", "^"))
        at = match.end()
    return tokens


class _Reader:
    """Recursive descent: a sum of products of powers of atoms."""

    def __init__(self, tokens: list[str]):
        self._tokens = tokens
        self._at = 0

    def end(self) -> None:
        if self._next() is not None:
            raise _NoValue

    def sum(self) -> Fraction:
        value = self._product()
        while (sign := self._next()) in ("+", "-"):
            self._at += 1
            term = self._product()
            value = _bounded(value + term if sign == "+" else value - term)
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while (sign := self._next()) not in (None, "+", "-", ")", "}"):
            if sign in ("*", "/"):
                self._at += 1
                factor = self._signed()
            elif sign is not None and sign[0].isdigit():
                raise _NoValue  # "3 4" is a list, not 12
            else:
                factor = self._power()
            value = _bounded(value / factor if sign == "/" else value * factor)
        return value

    def _signed(self) -> Fraction:
        if self._next() in ("+", "-"):
            negative = self._take() == "-"
            value = self._signed()
            return -value if negative else value
        return self._power()

    def _power(self) -> Fraction:
        base = self._atom()
        while self._next() == "!":
            self._at += 1
            if base.denominator != 1 or not 0 <= base <= 50:
                raise _NoValue
            base = Fraction(math.factorial(int(base)))
        if self._next() != "^":
            return base
        self._at += 1
        exponent = self._signed()
        if exponent.denominator != 1:
            raise _NoValue
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(exponent) * size > _MAX_BITS:
            raise _NoValue
        return base ** int(exponent)

    def _atom(self) -> Fraction:
        token = self._take()
        if token[0].isdigit() or token[0] == ".":
            return _bounded(Fraction(token.removesuffix(".")))
        if token in ("(", "{"):
            return self._closed(token)
        name = token.removeprefix("\\")
        if name in _FRACTIONS:
            return self._argument() / self._argument()
        if name in _BINOMIALS:
            return _binomial(self._argument(), self._argument())
        if name == "sqrt":
            return _root(self._argument())
        raise _NoValue

    def _argument(self) -> Fraction:
        """A group in braces, or one digit: \\frac12 is a half."""
        if self._next() == "{":
            return self._closed(self._take())
        token = self._take()
        if not token.isdigit():
            raise _NoValue
        if len(token) > 1:
            self._at -= 1
            self._tokens[self._at] = token[1:]
        return Fraction(token[0])

    def _closed(self, bracket: str) -> Fraction:
        value = self.sum()
        if self._take() != {"(": ")", "{": "}"}[bracket]:
            raise _NoValue
        return value

    def _next(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _take(self) -> str:
        token = self._next()
        if token is None:
            raise _NoValue
        self._at += 1
        return token


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
        raise _NoValue
    return value


def _binomial(n: Fraction, k: Fraction) -> Fraction:
    if n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n <= 1000:
        raise _NoValue
    return _bounded(Fraction(math.comb(int(n), int(k))))


def _root(value: Fraction) -> Fraction:
    if value < 0:
        raise _NoValue
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    if root * root != value:
        raise _NoValue
    return root
