"""One request under way: its tokens, its text, and why it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gemma4_jax.build import Model
from gemma4_jax.errors import UserError
from gemma4_jax.sample.prompts import Prompt, encode
from gemma4_jax.sample.requests import Options, Request, requests
from gemma4_jax.sample.stopping import RowText


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What a model wrote.

    text: cut before a stop string, without the stop id's own text; other control tokens are spelt out. ""
    if the model has no tokenizer. tokens: every id generated, the stop id included; where a stop string
    ended the text, up to the token that completed it. logprobs: of those tokens, natural logarithm, as
    the model gives them at temperature 1 before any filter. finish_reason: "stop" (a stop id or a stop
    string), "length" (max_new_tokens), or from an engine "cancelled".
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: str


@dataclass
class Row:
    """What a request has got so far."""

    request: Request
    text: RowText
    stop_ids: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = ""

    def push(self, tokens: Sequence[int], logprobs: Sequence[float]) -> str:
        """Take a dispatch's tokens, up to what ends the row; returns the new text."""
        pieces = []
        for token, logprob in zip(tokens, logprobs, strict=True):
            if self.finish_reason:
                break
            self.tokens.append(token)
            self.logprobs.append(logprob)
            if token in self.stop_ids:
                self.finish_reason = "stop"
                break
            pieces.append(self.text.push(token))
            if self.text.stopped:
                self.finish_reason = "stop"
            elif len(self.tokens) == self.request.max_new_tokens:
                self.finish_reason = "length"
        if self.finish_reason:
            pieces.append(self.text.finish())
        return "".join(pieces)

    def end(self, reason: str) -> str:
        """No more tokens will come; returns the text that was held back."""
        self.finish_reason = reason
        return self.text.finish()

    def completion(self) -> Completion:
        """The result."""
        return Completion(
            text=self.text.text,
            tokens=self.tokens,
            logprobs=self.logprobs,
            finish_reason=self.finish_reason,
        )


def rows_for(model: Model, prompts: Sequence[Prompt], options: Options) -> list[Row]:
    """One row per prompt, everything checked; UserError naming a bad value and the way out."""
    strings = options.stop_strings
    if strings and model.tokenizer is None:
        raise UserError("this model has no tokenizer: end texts with stop_ids, not stop strings")
    stop_ids = _stop_ids(model, options)
    encoded = [encode(model, prompt, options) for prompt in prompts]
    return [
        Row(request, RowText(model.tokenizer, strings), stop_ids)
        for request in requests(model.config, encoded, options)
    ]


def _stop_ids(model: Model, options: Options) -> tuple[int, ...]:
    if options.ignore_eos:
        return ()
    if options.stop_ids is None:
        own = () if model.tokenizer is None else model.tokenizer.stop_ids
        return tuple(dict.fromkeys([*own, *model.config.token_ids.eos]))
    for given in options.stop_ids:
        if not isinstance(given, int | np.integer) or not 0 <= given < model.config.vocab_size:
            raise UserError(
                f"stop id {given!r} is not an id from 0 to {model.config.vocab_size - 1}"
            )
    return tuple(int(i) for i in options.stop_ids)


def blocked_ids(model: Model) -> np.ndarray:
    """Ids that are never generated: what the configuration suppresses, and what has no text."""
    blocked = np.zeros(model.config.vocab_size, bool)
    blocked[list(model.config.token_ids.suppress)] = True
    if model.tokenizer is not None:
        blocked[model.tokenizer.vocab_size :] = True
    return blocked
