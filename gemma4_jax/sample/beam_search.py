"""Beam search: the likeliest texts that a search finds which keeps several beginnings at every step.

The rule is that of transformers (`num_beams`, without sampling). At every step all continuations of all live
beams are ranked by the sum of their tokens' log-probabilities. Of the first `beams` of them, those that end (a
stop id, or the limit) are finished texts, with

    score = sum of log-probabilities / tokens ** length_penalty        (the stop id is one of the tokens)

of which the best `beams` are kept. The best `beams` that do not end are the live ones of the next step.

When to stop, once there are `beams` finished texts (`early_stopping`):

    True     at once.
    False    when the best live beam, if it ended now, would score no better than the worst finished text.
    "never"  when no live beam could do so whatever follows: sums only fall, so its score is bounded by its sum
             at the limit (length_penalty above 0) or at its length now.

Here: ranks and scores, on the host. Not here: where beams' keys and values are (`beam_rows.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from gemma4_jax.errors import UserError
from gemma4_jax.sample.row import Token

if TYPE_CHECKING:
    EarlyStopping = bool | Literal["never"]
else:
    EarlyStopping = Any  # read here, with a better error than a run-time type checker's


@dataclass(frozen=True, kw_only=True)
class BeamOptions:
    """How many beams are live, what long texts are worth (0: sums are compared), and when to stop."""

    beams: int
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False

    def __post_init__(self) -> None:
        """Raises UserError."""
        if isinstance(self.beams, bool) or not isinstance(self.beams, int) or self.beams <= 0:
            raise UserError(f"beams must be a whole number above 0, got {self.beams!r}")
        penalty = self.length_penalty
        if isinstance(penalty, bool) or not isinstance(penalty, int | float):
            raise UserError(f"length_penalty must be a number, got {penalty!r}")
        if not math.isfinite(penalty):
            raise UserError(f"length_penalty must be finite, got {penalty!r}")
        if self.early_stopping not in (True, False, "never"):
            raise UserError(
                f"early_stopping must be True, False or 'never', got {self.early_stopping!r}"
            )


class Beam(NamedTuple):
    """A beginning, and the sum of its tokens' log-probabilities."""

    tokens: tuple[Token, ...] = ()
    total: float = 0.0


class Step(NamedTuple):
    """Which live beam is continued, by their order before, and with which id."""

    source: int
    token: int


@dataclass
class BeamSearch:
    """The beams of one prompt. `live` begins with the empty text alone.

    limit: most tokens of a text. stop_ids: those that end one.
    """

    options: BeamOptions
    limit: int
    stop_ids: frozenset[int]
    live: list[Beam] = field(default_factory=lambda: [Beam()])
    finished: list[tuple[float, Beam]] = field(default_factory=list)  # the best first

    @property
    def width(self) -> int:
        """Continuations of every beam that are enough: those that stay, if all of the others end."""
        return self.options.beams + len(self.stop_ids)

    def advance(
        self, ids: Int[np.ndarray, "k n"], logprobs: Float[np.ndarray, "k n"]
    ) -> list[Step]:
        """Rank the likeliest continuations of the k live beams; how to go on, [] if the search is over.

        ids that are not possible have a log-probability of -inf.
        """
        beams, length = self.options.beams, len(self.live[0].tokens) + 1
        totals = logprobs.astype(np.float64) + np.array([beam.total for beam in self.live])[:, None]
        steps: list[Step] = []
        following: list[Beam] = []
        for rank, at in enumerate(np.argsort(-totals, axis=None, kind="stable").tolist()):
            source, column = divmod(at, ids.shape[1])
            total = float(totals[source, column])
            if len(steps) == beams or total == -math.inf:
                break
            token = Token(int(ids[source, column]), float(logprobs[source, column]))
            beam = Beam((*self.live[source].tokens, token), total)
            if token.id in self.stop_ids or length == self.limit:
                if rank < beams:
                    self._finish(beam)
            else:
                steps.append(Step(source, token.id))
                following.append(beam)
        if not following or self._over(following[0].total, length):
            return []
        self.live = following
        return steps

    def best(self) -> list[Beam]:
        """Finished texts, the best first; the best live one if there are none."""
        return [beam for _, beam in self.finished] or self.live[:1]

    def _finish(self, beam: Beam) -> None:
        score = self._score(beam.total, len(beam.tokens))
        self.finished = sorted([*self.finished, (score, beam)], key=lambda found: -found[0])
        del self.finished[self.options.beams :]

    def _score(self, total: float, length: int) -> float:
        return total / float(length) ** self.options.length_penalty

    def _over(self, total: float, length: int) -> bool:
        """Whether nothing more is looked for; total, length: of the best live beam."""
        if len(self.finished) < self.options.beams:
            return False
        how = self.options.early_stopping
        if how is True:
            return True
        if how == "never" and self.options.length_penalty > 0:
            length = self.limit
        return self._score(total, length) <= self.finished[-1][0]


def enough(width: int, vocab_size: int) -> int:
    """How many continuations a program tells: a power of two, so that stop ids do not decide which one runs."""
    return min(1 << max(0, width - 1).bit_length(), vocab_size)
