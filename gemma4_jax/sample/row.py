"""One request under way: its tokens, its text, and why it ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gemma4_jax.build import Model
from gemma4_jax.errors import UserError
from gemma4_jax.sample.forced import Forced, check_prefix, prefix_ids
from gemma4_jax.sample.matcher import Matcher, compile_constraint
from gemma4_jax.sample.prompts import Prompt, encode
from gemma4_jax.sample.requests import Options, Request, requests
from gemma4_jax.sample.stopping import RowText
from gemma4_jax.sample.thinking import ThinkingBudget
from gemma4_jax.sample.tool_choice import constraint_of, forbidden_ids
from gemma4_jax.text.token_parse import start_of

# Of a constraint, of a bound on thinking, or of a prefix.
Watcher = Matcher | ThinkingBudget | Forced


class Token(NamedTuple):
    """A chosen id, its log-probability, and the likeliest ids with theirs, as many as were asked for."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What a model wrote.

    text: cut before a stop string, without the stop id's own text; other control tokens are spelt out. ""
    if the model has no tokenizer. tokens: every id generated, the stop id included; where a stop string
    ended the text, up to the token that completed it. logprobs: of those tokens, natural logarithm, as
    the model gives them at temperature 1 before any filter. finish_reason: "stop" (a stop id or a stop
    string), "length" (max_new_tokens), or from an engine "cancelled". top_logprobs: at each token, the
    likeliest ids and their log-probabilities; empty where none were asked for.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: str
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)


@dataclass
class Row:
    """What a request has got so far."""

    request: Request
    text: RowText
    stop_ids: tuple[int, ...]
    matcher: Watcher | None = None  # says which ids may come next
    forbidden: tuple[int, ...] = ()  # ids that this request must not choose
    chosen: list[Token] = field(default_factory=list)
    finish_reason: str = ""

    def push(self, tokens: Sequence[Token]) -> str:
        """Take a dispatch's tokens, up to what ends the row; returns the new text.

        Raises UserError if the model's numbers are not finite.
        """
        if not all(math.isfinite(token.logprob) for token in tokens):
            raise not_finite(self.request.index)
        pieces = []
        for token in tokens:
            if self.finish_reason:
                break
            self.chosen.append(token)
            if token.id in self.stop_ids:
                self.finish_reason = "stop"
                break
            pieces.append(self.text.push(token.id))
            if self.text.stopped:
                self.finish_reason = "stop"
            elif len(self.chosen) == self.request.max_new_tokens:
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
            tokens=[token.id for token in self.chosen],
            logprobs=[token.logprob for token in self.chosen],
            finish_reason=self.finish_reason,
            top_logprobs=[token.top for token in self.chosen if token.top],
        )


def not_finite(index: int) -> UserError:
    """What is wrong with a model whose numbers for prompt `index` are none."""
    return UserError(
        f"the model's logits for prompt {index} are not finite (NaN or infinity); look for damaged "
        "weights, or compute in float32"
    )


def rows_for(model: Model, prompts: Sequence[Prompt], options: Options) -> list[Row]:
    """One row per prompt, everything checked; UserError naming a bad value and the way out."""
    strings = options.stop_strings
    if strings and model.tokenizer is None:
        raise UserError("this model has no tokenizer: end texts with stop_ids, not stop strings")
    stop_ids = _stop_ids(model, options)
    encoded = [encode(model, prompt, options) for prompt in prompts]
    asked = requests(model.config, encoded, options)
    constraints = _matchers(model, options, encoded, stop_ids)
    bounds = _budgets(model, options, encoded, constraints)
    matchers: Sequence[Watcher | None] = bounds
    forbidden: tuple[int, ...] = ()
    if model.tokenizer is not None:
        forbidden = tuple(forbidden_ids(options.tool_choice, model.tokenizer))
    if options.prefix:
        never = blocked_ids(model, [*forbidden, *options.suppress])
        ids = prefix_ids(model, options, stop_ids, never)
        for request, constraint in zip(asked, constraints, strict=True):
            check_prefix(ids, request, constraint)
        vocab_size = model.config.vocab_size
        matchers = [Forced(ids, vocab_size, inner) for inner in bounds]
    return [
        Row(request, RowText(model.tokenizer, strings), stop_ids, matcher, forbidden)
        for request, matcher in zip(asked, matchers, strict=True)
    ]


def _matchers(
    model: Model, options: Options, prompts: Sequence[list[int]], stop_ids: Sequence[int]
) -> list[Matcher | None]:
    """A fresh matcher for every prompt whose output is constrained."""
    wanted = options.constraints(len(prompts))
    if model.tokenizer is None:
        if any(wanted) or options.tool_choice != "auto":
            raise UserError("this model has no tokenizer: a constraint has no text to hold for")
        return [None] * len(prompts)
    calls = constraint_of(options.tool_choice, options.tools, model.tokenizer)
    if calls is not None and any(wanted):
        raise UserError("constraint and tool_choice both say what the output is; drop one of them")
    tokenizer = model.tokenizer
    return [
        None
        if (constraint := calls or given) is None
        else compile_constraint(
            constraint,
            tokenizer,
            vocab_size=model.config.vocab_size,
            stop_ids=stop_ids,
            start=start_of(tokenizer, prompt),
        )
        for prompt, given in zip(prompts, wanted, strict=True)
    ]


def _budgets(
    model: Model,
    options: Options,
    prompts: Sequence[list[int]],
    inner: Sequence[Matcher | None],
) -> Sequence[Matcher | ThinkingBudget | None]:
    """The matchers, inside bounds on thinking if there are any."""
    budget = options.thinking_budget
    if budget is None:
        return inner
    if not isinstance(budget, int) or budget < 0:
        raise UserError(f"thinking_budget must be a whole number from 0, got {budget!r}")
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise UserError("this model has no tokenizer: leave thinking_budget out")
    return [
        ThinkingBudget(
            tokenizer,
            budget,
            vocab_size=model.config.vocab_size,
            start=start_of(tokenizer, prompt),
            inner=matcher,
        )
        for prompt, matcher in zip(prompts, inner, strict=True)
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


def blocked_ids(model: Model, forbidden: Sequence[int] = ()) -> np.ndarray:
    """Ids that are never generated: what the configuration suppresses, what has no text, and others."""
    blocked = np.zeros(model.config.vocab_size, bool)
    blocked[[*model.config.token_ids.suppress, *forbidden]] = True
    if model.tokenizer is not None:
        blocked[model.tokenizer.vocab_size :] = True
    return blocked
