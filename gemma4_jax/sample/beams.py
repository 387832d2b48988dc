"""One request that searches with beams: from its prompt to its texts.

Here: what a scheduler calls. Not here: the ranking (`beam_search.py`), rows and pages (`beam_rows.py`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import jax
import numpy as np

from gemma4_jax.build import Model
from gemma4_jax.errors import UserError
from gemma4_jax.sample.beam_rows import BeamRows, pages_wanted
from gemma4_jax.sample.beam_search import BeamOptions, BeamSearch, enough
from gemma4_jax.sample.engine_device import Device
from gemma4_jax.sample.requests import Options
from gemma4_jax.sample.row import Completion, Row, not_finite
from gemma4_jax.sample.stopping import RowText

# Options that change how one text is written; a search ranks all of them by the model's own numbers.
_REFUSED = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "logit_bias", "suppress", "top_logprobs", "stop", "prefix", "thinking_budget", "tool_choice", "constraint",
)  # fmt: skip


@dataclass
class Beams:
    """Begins with an empty text. spare: pages that are only for it, from its admission on."""

    search: BeamSearch
    row: Row
    vocab_size: int
    spare: list[int] = field(default_factory=list)
    over: bool = False
    _rows: BeamRows | None = None

    @property
    def count(self) -> int:
        """Rows that it decodes in."""
        return self.search.options.beams

    def pages_wanted(self, size: int) -> int:
        """Pages of `size` positions that it may need beside its prompt's."""
        request = self.row.request
        return pages_wanted(self.count, len(request.prompt), request.max_new_tokens, size)

    def begin(
        self,
        device: Device,
        part: int,
        place: int,
        pages: list[int],
        size: int,
        hidden: jax.Array,
        at: int,
    ) -> None:
        """The prompt has been read, in a place and pages of a part; hidden[at] of [r, D] says what follows."""
        held = len(self.row.request.prompt)
        self._rows = BeamRows(
            device,
            self.count,
            part=part,
            place=place,
            held=held,
            pages=pages,
            spare=self.spare,
            size=size,
        )
        ids, logprobs = device.likeliest(hidden, self._continuations)
        self._take(ids[at : at + 1], logprobs[at : at + 1])

    def go_on(self) -> None:
        """One more token of every beam; raises UserError for a model whose numbers are not finite."""
        assert self._rows is not None
        self._take(*self._rows.advance(self._continuations))

    def completions(self, reason: str = "") -> list[Completion]:
        """The texts found, the best first; reason: why one that has not ended does so now."""
        found = []
        for beam in self.search.best():
            row = dataclasses.replace(
                self.row, text=RowText(self.row.text.tokenizer, ()), chosen=[], finish_reason=""
            )
            row.push(beam.tokens)
            if not row.finish_reason:
                row.end(reason)
            found.append(row.completion())
        return found

    @property
    def _continuations(self) -> int:
        return enough(self.search.width, self.vocab_size)

    def _take(self, ids: np.ndarray, logprobs: np.ndarray) -> None:
        assert self._rows is not None
        if np.isnan(logprobs).any():
            raise not_finite(self.row.request.index)
        steps = self.search.advance(ids, logprobs)
        self.over = not steps
        if steps:
            self._rows.follow(steps)


def beams_of(model: Model, row: Row, options: Options, how: BeamOptions) -> Beams:
    """The beams of a request; UserError for options that have no meaning for a search."""
    neutral = Options()
    for name in _REFUSED:
        if getattr(options, name) != getattr(neutral, name):
            raise UserError(f"{name} has no meaning for beam search; leave it out")
    request = row.request
    search = BeamSearch(how, request.max_new_tokens, frozenset(row.stop_ids))
    return Beams(search, row, model.config.vocab_size)
