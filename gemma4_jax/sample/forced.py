"""A beginning that an output must have: its tokens are chosen for the model, all that follows is its own.

They are tokens of the output like others, with the log-probabilities that the model gives them. Same face as a
constraint's `Matcher`, which it may stand around: a constraint or a bound on thinking sees them as if chosen.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from gemma4_jax.build import Model
from gemma4_jax.errors import UserError
from gemma4_jax.sample.matcher import Matcher
from gemma4_jax.sample.requests import Options, Request
from gemma4_jax.sample.thinking import ThinkingBudget


class Forced:
    """Allows one id at a time until all of `tokens` have come. inner: what holds besides, and from then on."""

    def __init__(
        self, tokens: Sequence[int], vocab_size: int, inner: Matcher | ThinkingBudget | None
    ) -> None:
        self._tokens, self._inner = tuple(tokens), inner
        self._words = -(-vocab_size // 32)
        self._at = 0

    @property
    def finished(self) -> bool:
        """Whether a constraint's output is over."""
        return self._inner is not None and self._inner.finished

    def free(self, steps: int) -> bool:
        """Whether the next so many tokens may be anything, whatever they are."""
        begun = self._at >= len(self._tokens)
        return begun and (self._inner is None or self._inner.free(steps))

    def mask(self) -> Int32[np.ndarray, " W"]:
        """The ids that may come next, bits as of `Matcher.mask`."""
        if self._at < len(self._tokens):
            token = self._tokens[self._at]
            words = np.zeros(self._words, np.uint32)
            words[token // 32] = np.uint32(1) << np.uint32(token % 32)
            return words.view(np.int32)
        if self._inner is not None:
            return self._inner.mask()
        return np.full(self._words, -1, np.int32)

    def push(self, token: int) -> None:
        """Take the chosen id."""
        self._at += 1
        if self._inner is not None:
            self._inner.push(token)

    def copy(self) -> Forced:
        """Another one in the same state."""
        other = copy.copy(self)
        other._inner = None if self._inner is None else self._inner.copy()
        return other


def prefix_ids(
    model: Model, options: Options, stop_ids: Sequence[int], never: np.ndarray
) -> list[int]:
    """Ids of the prefix that was asked for; never: bool [V], ids that cannot be chosen. Raises UserError."""
    prefix, vocab_size = options.prefix, model.config.vocab_size
    if isinstance(prefix, str):
        if prefix and model.tokenizer is None:
            raise UserError("this model has no tokenizer: give prefix as a list of token ids")
        ids = [] if model.tokenizer is None else model.tokenizer.encode(prefix)
    else:
        ids = list(prefix)
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int | np.integer) or not 0 <= i < vocab_size:
            raise UserError(f"prefix must be text or ids from 0 to {vocab_size - 1}, got {i!r}")
        if i in stop_ids:
            raise UserError(
                f"prefix has the stop id {i}, behind which nothing can come; leave it out"
            )
        if never[i]:
            raise UserError(f"prefix has id {i}, which may never be chosen; leave it out")
    return [int(i) for i in ids]


def check_prefix(ids: Sequence[int], request: Request, matcher: Matcher | None) -> None:
    """UserError for a prefix that a request has no room for, or that its constraint does not allow."""
    if len(ids) > request.max_new_tokens:
        raise UserError(
            f"prefix has {len(ids)} tokens and max_new_tokens is {request.max_new_tokens}, of which they are a "
            "part; raise it"
        )
    if matcher is None:
        return
    # Pushed, not looked up in masks: where only one text may follow, these allow its usual tokens alone.
    trial = matcher.copy()
    for number, token in enumerate(ids, 1):
        try:
            trial.push(token)
        except UserError:
            raise UserError(
                f"the constraint does not allow the prefix, of {len(ids)} tokens, from token {number} on"
            ) from None
