"""A bound on how much a model thinks: when it is used up, the thought is closed, and the answer begins.

The close is what the format writes: a line break, if the thought does not end with one, and `<channel|>`.
Nothing else is changed: what the model has thought so far is what it goes on from. Thoughts that open later
draw on what is left. Same face as a constraint's `Matcher`, which it may stand around.
"""

from __future__ import annotations

import copy

import numpy as np
from jaxtyping import Int32

from gemma4_jax.errors import UserError
from gemma4_jax.sample.matcher import Matcher
from gemma4_jax.text import control
from gemma4_jax.text.parse import Start
from gemma4_jax.text.tokenizer import Tokenizer


class ThinkingBudget:
    """How much thinking is left in one output.

    budget: tokens between the marks of thoughts, the label `thought` included; 0 closes a thought as soon as
    it opens. start: where the output begins. inner: of the output's constraint.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        budget: int,
        *,
        vocab_size: int,
        start: Start,
        inner: Matcher | None = None,
    ) -> None:
        names = tokenizer.control_tokens
        if control.CHANNEL not in names or control.CHANNEL_END not in names:
            raise UserError(
                f"this tokenizer has no {control.CHANNEL}: there is no thought to bound; "
                "leave thinking_budget out"
            )
        self._open, self._close = names[control.CHANNEL], names[control.CHANNEL_END]
        self._break = tokenizer.encode("\n")[-1]
        self._tokenizer, self._vocab_size, self._inner = tokenizer, vocab_size, inner
        self._left = budget
        self._inside = start is Start.THOUGHT
        self._last: int | None = None  # of the tokens inside

    @property
    def finished(self) -> bool:
        """Whether a constraint's output is over."""
        return self._inner is not None and self._inner.finished

    def free(self, steps: int) -> bool:
        """Whether the next so many tokens may be anything, whatever they are."""
        # Whether inside a thought or not: an answer may open another one.
        return self._inner is None and steps <= self._left

    def mask(self) -> Int32[np.ndarray, " W"]:
        """The ids that may come next, bits as of `Matcher.mask`."""
        if self._inside and self._left <= 0:
            ended = self._last is None or self._tokenizer.decode([self._last]).endswith("\n")
            return self._only(self._close if ended or self._left < 0 else self._break)
        if self._inner is not None:
            return self._inner.mask()
        return np.full(-(-self._vocab_size // 32), -1, np.int32)

    def push(self, token: int) -> None:
        """Take the chosen id."""
        if self._inner is not None:
            self._inner.push(token)
        if token == self._open:
            self._inside, self._last = True, None
        elif token == self._close:
            self._inside = False
        elif self._inside:
            self._left -= 1
            self._last = token

    def copy(self) -> ThinkingBudget:
        """Another one in the same state."""
        other = copy.copy(self)
        other._inner = None if self._inner is None else self._inner.copy()
        return other

    def _only(self, token: int) -> Int32[np.ndarray, " W"]:
        words = np.zeros(-(-self._vocab_size // 32), np.uint32)
        words[token // 32] = np.uint32(1) << np.uint32(token % 32)
        return words.view(np.int32)
