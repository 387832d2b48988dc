"""What is asked for each prompt, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemma4_jax.config import ModelConfig
from gemma4_jax.errors import UserError
from gemma4_jax.sample.constraints import Constraint
from gemma4_jax.sample.tool_choice import ToolChoice

#: More than people have ever asked for, few enough to be looked for at every token.
MOST_STOP_STRINGS = 64
#: As many as the OpenAI API tells.
MOST_TOP_LOGPROBS = 20

_Reader = Callable[[Any], Any]  # a number, or None for what is none
_Test = Callable[[Any], bool]
# One value for all prompts, or a sequence with one for each.
Whole = int | Sequence[int]
Real = float | int | Sequence[float | int]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to continue prompts.

    max_new_tokens: most tokens to generate; prompt and these must fit the model's positions.
    temperature: 0 is greedy. top_k, top_p, min_p: filters as `sampling.Settings` defines them, None for
      off. Each of these five is one value, or one for every prompt.
    repetition_penalty, presence_penalty, frequency_penalty: as `penalties.Penalties` defines them; one
      value, or one for every prompt.
    logit_bias: added to the scores of ids, of all prompts. suppress: ids never to be chosen.
    top_logprobs: of so many of the likeliest ids the log-probabilities are told for every token.
    seed: one for all (prompt i draws from the seed folded with i), or one for every prompt (then a prompt
      draws the same tokens in any list). Draws never depend on the other prompts.
    ignore_eos: no id ends a text; stop strings and max_new_tokens still do.
    stop: strings that end a text and are not part of it.
    stop_ids: ids that end a text, instead of those of the tokenizer and the configuration.
    prefix: what every output begins with, as text (control tokens in it count) or ids; these are its first
      tokens, counted like others, and the model goes on from there.
    thinking_budget: most tokens of thoughts; then the thought is closed and the answer begins.
    enable_thinking, tools: for message lists. tool_choice: auto, none, required or a tool's name
      (`tool_choice.py`); required and a name constrain the output to calls.
    constraint: what an output must look like (`constraints.py`), one for all prompts, or one or None for
      every prompt. A text that it ends has finish_reason "stop" and keeps it; "length" is a beginning.
    use_checkpoint_template: render message lists with the
      checkpoint's own jinja template, not with ours.
    """

    max_new_tokens: Whole = 64
    temperature: Real = 0.0
    top_k: Whole | None = None
    top_p: Real | None = None
    min_p: Real | None = None
    repetition_penalty: Real = 1.0
    presence_penalty: Real = 0.0
    frequency_penalty: Real = 0.0
    logit_bias: Mapping[int, float] | None = None
    suppress: Sequence[int] = ()
    top_logprobs: int = 0
    seed: Whole = 0
    ignore_eos: bool = False
    stop: str | Sequence[str] = ()
    stop_ids: Sequence[int] | None = None
    prefix: str | Sequence[int] = ""
    enable_thinking: bool = False
    thinking_budget: int | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: ToolChoice = "auto"
    constraint: Constraint | Sequence[Constraint | None] | None = None
    use_checkpoint_template: bool = False

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, checked."""
        strings = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if isinstance(self.stop, str) and not self.stop:
            raise UserError("a stop string must not be empty; leave stop out for none")
        for string in strings:
            if not isinstance(string, str) or not string:
                raise UserError(f"stop strings must be text and not empty, got {string!r}")
        if len(strings) > MOST_STOP_STRINGS:
            raise UserError(
                f"{len(strings)} stop strings are more than {MOST_STOP_STRINGS}: all are looked for at "
                "every token; give fewer, or stop_ids"
            )
        return strings

    def constraints(self, count: int) -> list[Constraint | None]:
        """The constraint of each of `count` prompts, checked against the other options."""
        given = self.constraint
        each = [given] * count if given is None or isinstance(given, Constraint) else list(given)
        if len(each) != count:
            raise UserError(
                f"constraint has {len(each)} values for {count} prompts; give one, or one each"
            )
        if self.stop_strings and any(each):
            raise UserError("a stop string would cut a constrained output short; leave stop out")
        return each


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and how to continue it. `row` tells apart rows that were given one seed together."""

    index: int
    prompt: list[int]
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    bias: tuple[tuple[int, float], ...]
    top_logprobs: int
    seed: int
    row: int

    @property
    def penalised(self) -> bool:
        """Whether anything changes its scores before they are filtered."""
        off = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) == (1, 0, 0)
        return bool(self.bias) or not off


def requests(config: ModelConfig, prompts: Sequence[list[int]], options: Options) -> list[Request]:
    """One request per prompt. Raises UserError naming a bad value, its bound and the way out."""
    count = len(prompts)

    def rows(name: str, neutral: Any, read: _Reader, good: _Test, bound: str) -> list[Any]:
        value = getattr(options, name)
        if value is None:
            return [neutral] * count
        return _rows(name, value, count, read, good, bound)

    wanted = rows("max_new_tokens", 64, _whole, lambda n: n > 0, "a whole number above 0")
    columns = {
        "max_new_tokens": wanted,
        "temperature": rows(
            "temperature", 0.0, _real, lambda t: t >= 0, "0 (greedy) or a finite number above"
        ),
        "top_k": rows("top_k", 0, _whole, lambda k: k > 0, "a whole number above 0"),
        "top_p": rows("top_p", 1.0, _real, lambda p: 0 < p <= 1, "above 0 and at most 1"),
        "min_p": rows("min_p", 0.0, _real, lambda p: 0 <= p <= 1, "from 0 to 1"),
        "repetition_penalty": rows(
            "repetition_penalty", 1.0, _real, lambda p: p > 0, "above 0 (1 is off)"
        ),
        "presence_penalty": rows("presence_penalty", 0.0, _real, lambda p: True, "a number"),
        "frequency_penalty": rows("frequency_penalty", 0.0, _real, lambda p: True, "a number"),
        "seed": rows("seed", 0, _whole, lambda s: True, "a whole number"),
    }
    together = isinstance(options.seed, int | np.integer)
    bias = _bias(config, options)
    if not 0 <= options.top_logprobs <= MOST_TOP_LOGPROBS:
        raise UserError(
            f"top_logprobs must be from 0 to {MOST_TOP_LOGPROBS}, got {options.top_logprobs}"
        )
    for i, prompt in enumerate(prompts):
        _check_room(config, i, len(prompt), wanted[i])
    return [
        Request(
            index=i,
            row=i if together else 0,
            prompt=prompt,
            bias=bias,
            top_logprobs=options.top_logprobs,
            **{name: column[i] for name, column in columns.items()},
        )
        for i, prompt in enumerate(prompts)
    ]


def _bias(config: ModelConfig, options: Options) -> tuple[tuple[int, float], ...]:
    """Ids and what is added to their scores."""
    found: dict[int, float] = {}
    for i, value in (options.logit_bias or {}).items():
        number = _real(value)
        if number is None:
            raise UserError(f"logit_bias must be finite numbers, got {value!r} for id {i!r}")
        found[i] = number
    found |= dict.fromkeys(options.suppress, -math.inf)
    for i in found:
        if _whole(i) is None or not 0 <= i < config.vocab_size:
            raise UserError(f"id {i!r} is not one from 0 to {config.vocab_size - 1}")
    return tuple(sorted(found.items()))


def _check_room(config: ModelConfig, index: int, length: int, wanted: int) -> None:
    room = config.max_position
    if length + wanted <= room:
        return
    if length < room:
        way_out = f"lower max_new_tokens to {room - length} or shorten the prompt"
    else:
        way_out = f"shorten the prompt to fewer than {room} tokens"
    raise UserError(
        f"prompt {index} has {length} tokens and max_new_tokens is {wanted}: together "
        f"{length + wanted}, more than the model's {room} positions; {way_out}"
    )


def _rows(
    name: str,
    value: Any,
    count: int,
    read: _Reader,
    good: _Test,
    bound: str,
) -> list[Any]:
    """`count` checked values from one or from a sequence of as many."""
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        values = list(value)
        if len(values) != count:
            raise UserError(
                f"{name} has {len(values)} values for {count} prompts; give one, or one each"
            )
    else:
        values = [value] * count
    result = []
    for given in values:
        number = read(given)
        if number is None or not good(number):
            raise UserError(f"{name} must be {bound}, got {given!r}")
        result.append(number)
    return result


def _whole(value: Any) -> int | None:
    return (
        int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None
    )


def _real(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    return float(value) if math.isfinite(value) else None
