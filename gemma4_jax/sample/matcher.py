"""A constraint under way in one output: which ids may come next, token by token.

Here: the grammar's mask, the thought before the constrained part, stop ids, and taking tokens back (for
drafts that are refused). Nothing here touches a device. Not here: masks of a batch (`masks.py`).

Letters: V vocabulary, W = ceil(V / 32) words.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np
from jaxtyping import Int32

from gemma4_jax.errors import UserError
from gemma4_jax.sample import guidance
from gemma4_jax.sample.constraints import Constraint
from gemma4_jax.text import control
from gemma4_jax.text.parse import Start
from gemma4_jax.text.tokenizer import Tokenizer


class Phase(Enum):
    """Where an output is. UNOPENED: a thought may come, or the constrained part at once."""

    UNOPENED = "unopened"
    THOUGHT = "thought"
    ANSWER = "answer"
    FINISHED = "finished"


# What a thought must not hold: each of these would end it, or the whole output, some other way.
_NOT_IN_THOUGHT = (
    *(control.BOS, control.PAD, control.TURN, control.CHANNEL, control.TOOL, control.TOOL_END),
    *(control.CALL, control.CALL_END, control.RESPONSE, control.RESPONSE_END),
)


class Matcher:
    """The state of one constrained output. Made by `compile_constraint`.

    A stop id is allowed only where the grammar may end. Under `Start.EITHER` the first token either opens a
    thought or begins what the grammar describes; inside a thought all text is free, and only its closing
    token leads out.
    """

    def __init__(
        self, grammar: Any, tokenizer: Tokenizer, vocab_size: int, ends: Sequence[int], start: Start
    ) -> None:
        names = tokenizer.control_tokens
        self._grammar = grammar
        self._eos = tokenizer.eos_id
        self._ends = tuple(ends)
        self._open, self._close = names.get(control.CHANNEL), names.get(control.CHANNEL_END)
        if self._close is None and start is not Start.CONTENT:
            raise UserError("this tokenizer has no <channel|>: a thought could never end")
        self._words = -(-vocab_size // 32)
        self._thought: Int32[np.ndarray, " W"] | None = None
        self._forbidden = [i for name in _NOT_IN_THOUGHT if (i := names.get(name)) is not None]
        self._vocab_size = tokenizer.vocab_size
        phase = {Start.CONTENT: Phase.ANSWER, Start.THOUGHT: Phase.THOUGHT}
        self._phases = [phase.get(start, Phase.UNOPENED)]

    @property
    def phase(self) -> Phase:
        """Where the output is now."""
        return self._phases[-1]

    @property
    def finished(self) -> bool:
        """Whether a stop id has ended it."""
        return self.phase is Phase.FINISHED

    def free(self, steps: int) -> bool:
        """Whether the next so many tokens may be anything: `mask` has a say in each."""
        return False

    def mask(self) -> Int32[np.ndarray, " W"]:
        """The ids that may come next: bit i % 32 of word i // 32 for id i. None once finished.

        Raises UserError where nothing may: the grammar's fault, or that of a limit of its parser.
        """
        if self.phase is Phase.THOUGHT:
            return self._free()
        words = np.zeros(self._words, np.int32)
        if self.finished:
            return words
        if not self._grammar.is_stopped():
            found = np.frombuffer(self._grammar.compute_bitmask(), np.int32)
            size = min(self._words, len(found))
            words[:size] = found[:size]
        self._check()
        for i in (self._eos, *self._ends):
            _set(words, i, self._grammar.is_accepting() and i in self._ends)
        if self.phase is Phase.UNOPENED and self._open is not None:
            _set(words, self._open, True)
        if not words.any():
            raise UserError("the constraint allows no further token and may not end here")
        return words

    def push(self, token: int) -> None:
        """Take the chosen id. Raises UserError for one that was not allowed: see `mask`."""
        phase = self.phase
        if phase is Phase.UNOPENED and token == self._open:
            phase = Phase.THOUGHT
        elif phase is Phase.THOUGHT:
            phase = Phase.ANSWER if token == self._close else phase
        elif phase is not Phase.FINISHED and token in self._ends and self._grammar.is_accepting():
            phase = Phase.FINISHED
        elif phase is not Phase.FINISHED and self._grammar.consume_token(token):
            phase = Phase.ANSWER
        else:
            raise UserError(
                f"token id {token} is not what the constraint allows; if ids are suppressed or biased, "
                "they leave it no way on"
            )
        self._phases.append(phase)

    def accepts(self, tokens: Sequence[int]) -> int:
        """How many of these ids, from the first on, could be pushed one after the other."""
        count = 0
        try:
            for token in tokens:
                if not has_bit(self.mask(), token):
                    break
                self.push(token)
                count += 1
        except UserError:  # nothing can follow: the answer all the same
            pass
        self.rollback(count)
        return count

    def rollback(self, count: int) -> None:
        """Take back the last `count` ids."""
        if not 0 <= count < len(self._phases):
            raise ValueError(f"{count} tokens cannot be taken back of {len(self._phases) - 1}")
        after = self._phases[len(self._phases) - count :]
        before = self._phases[len(self._phases) - count - 1 : len(self._phases) - 1]
        # The grammar has seen neither thoughts nor what opens, closes or ends.
        seen = sum(
            now is Phase.ANSWER and was is not Phase.THOUGHT
            for was, now in zip(before, after, strict=True)
        )
        if seen:
            self._grammar.rollback(seen)
        del self._phases[len(self._phases) - count :]

    def copy(self) -> Matcher:
        """A matcher of its own in the same state."""
        other = object.__new__(Matcher)
        other.__dict__.update(self.__dict__)
        other._grammar, other._phases = self._grammar.deep_copy(), list(self._phases)
        return other

    def _check(self) -> None:
        if self._grammar.is_error():
            raise UserError(f"the constraint cannot go on: {guidance.complaint(self._grammar)}")

    def _free(self) -> Int32[np.ndarray, " W"]:
        if self._thought is None:
            bits = np.arange(self._words * 32) < self._vocab_size
            bits[[*self._forbidden, *self._ends, self._eos]] = False
            self._thought = np.packbits(bits, bitorder="little").view(np.int32)
        return self._thought


def compile_constraint(
    constraint: Constraint,
    tokenizer: Tokenizer,
    *,
    vocab_size: int,
    stop_ids: Sequence[int],
    start: Start = Start.CONTENT,
) -> Matcher:
    """A matcher at the beginning of an output. Compiled once for all requests with the same constraint.

    Args:
      vocab_size: of the model; ids that the tokenizer lacks are never allowed.
      stop_ids: those that end a row. A model waits for a tool's result with one of them, which is
        allowed after calls only.
      start: where the output begins, as the prompt's ids say (`token_parse.start_of`).

    Raises:
      UserError: a constraint that does not compile or that nothing satisfies; a stop id that is ordinary
        text, since an output could then not be known to be whole.
    """
    known = set(tokenizer.control_tokens.values()) | {tokenizer.eos_id}
    if not stop_ids:
        raise UserError(
            "a constrained output ends with a stop id: leave ignore_eos and stop_ids out"
        )
    for i in stop_ids:
        if i not in known:
            raise UserError(
                f"stop id {i} is no control token: it would cut a constrained output short"
            )
    waits = tokenizer.control_tokens.get(control.RESPONSE)
    ends = [i for i in stop_ids if constraint.calls or i != waits]
    if not ends:
        raise UserError(f"the only stop id is {waits}, which ends tool calls alone; add <turn|>")
    grammar = guidance.matcher(constraint, tokenizer)
    return Matcher(grammar, tokenizer, vocab_size, ends, start)


def _set(words: np.ndarray, i: int, on: bool) -> None:
    bit = np.uint32(1 << i % 32)
    view = words.view(np.uint32)
    view[i // 32] = view[i // 32] | bit if on else view[i // 32] & ~bit


def has_bit(words: np.ndarray, i: int) -> bool:
    """Whether a mask allows an id."""
    return bool(words.view(np.uint32)[i // 32] >> (i % 32) & 1)
