"""Strings in, strings out: the sampler that everything else uses.

Here: prompts of any kind to completions in order, batching, stop strings, streaming. Not here: requests
that come and go while others run, and sharing of memory between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gemma4_jax.build import Model, dtype_named
from gemma4_jax.errors import UserError, unknown
from gemma4_jax.model.cache import COMPRESSIONS, Compression
from gemma4_jax.sample import programs
from gemma4_jax.sample.constraints import Constraint
from gemma4_jax.sample.matcher import Matcher, compile_constraint
from gemma4_jax.sample.prompts import Prompt, as_list, encode
from gemma4_jax.sample.requests import Options, Real, Request, Whole, requests
from gemma4_jax.sample.stopping import RowText
from gemma4_jax.sample.tool_choice import ToolChoice, constraint_of, forbidden_ids
from gemma4_jax.sharding import mesh_of
from gemma4_jax.text.token_parse import start_of

# Where the host has a say in when a row ends, it has to look in more often: rows run on until it does.
_STEPS_BETWEEN_LOOKS = 8


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What a model wrote.

    text: cut before a stop string, without the stop id's own text; other control tokens are spelt out. ""
    if the model has no tokenizer. tokens: every id generated, the stop id included; where a stop string
    ended the text, up to the token that completed it. logprobs: of those tokens, natural logarithm, as
    the model gives them at temperature 1 before any filter. finish_reason: "stop" (a stop id or a stop
    string) or "length" (max_new_tokens).
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: str


@dataclass
class _Row:
    """A request under way."""

    request: Request
    text: RowText
    stop_ids: frozenset[int]
    matcher: Matcher | None = None
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

    def completion(self) -> Completion:
        return Completion(
            text=self.text.text,
            tokens=self.tokens,
            logprobs=self.logprobs,
            finish_reason=self.finish_reason,
        )


class TextStream(Iterator[str]):
    """One prompt's text as it comes. `completion` is None until the stream has ended."""

    def __init__(self, row: _Row, pieces: Iterator[tuple[_Row, str]]) -> None:
        self._row, self._pieces = row, pieces
        self.completion: Completion | None = None

    def __next__(self) -> str:
        for _, piece in self._pieces:
            if piece:
                return piece
        self.completion = self._row.completion()
        raise StopIteration


class Sampler:
    """Continues prompts with a model.

    cache_compression: how k_eq_v layers are remembered (`model/cache.py`). The default is the smallest, and on
    CPU the fastest up to some 8 Ki positions (24 CPU-ms a token against 28 and 26 for the others at 768;
    59 against 53 and 48 at 16 Ki: there a larger cache buys time). cache_dtype: of keys and values, by
    default the model's compute dtype. prefill_chunk: most prompt tokens one program call takes.
    max_batch: most prompts that run together.

    Where the model's parameters lie over a mesh, so does all of decoding: rows over `data`, `fsdp` and
    `expert`, heads over `tensor`, the positions of full layers over `seq`. On several processes each calls
    with the same prompts and gets the same completions.
    """

    def __init__(
        self,
        model: Model,
        *,
        cache_compression: Compression = "value",
        cache_dtype: Any = None,
        prefill_chunk: int = 512,
        max_batch: int = 32,
    ) -> None:
        if cache_compression not in COMPRESSIONS:
            raise unknown("cache compression", cache_compression, COMPRESSIONS)
        for name, value in (("prefill_chunk", prefill_chunk), ("max_batch", max_batch)):
            if not isinstance(value, int) or value <= 0:
                raise UserError(f"{name} must be a whole number above 0, got {value!r}")
        self.model = model
        self._params = jax.tree.map(jnp.asarray, model.params)
        self._mesh = mesh_of(self._params)
        self.cache_compression = cache_compression
        self._cache_dtype = dtype_named(cache_dtype or model.module.dtype)
        self._prefill_chunk = prefill_chunk
        self._max_batch = max_batch
        self._blocked = self._placed(_blocked(model))

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_new_tokens: Whole = 64,
        temperature: Real = 0.0,
        top_k: Whole | None = None,
        top_p: Real | None = None,
        min_p: Real | None = None,
        seed: Whole = 0,
        ignore_eos: bool = False,
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] | None = None,
        *,
        enable_thinking: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: ToolChoice = "auto",
        constraint: Constraint | Sequence[Constraint | None] | None = None,
        use_checkpoint_template: bool = False,
        on_text: Callable[[int, str], object] | None = None,
    ) -> list[Completion]:
        """Continue every prompt; completions in the prompts' order.

        Args:
          prompts: raw text (control tokens count, `<bos>` is put first if missing), message lists (go
            through the chat format) or token ids (go in as they are): one of these, or a list of them.
          max_new_tokens ... use_checkpoint_template: see `requests.Options`.
          on_text: called with a prompt's index and each new piece of its text.

        Raises:
          UserError: bad input, or a model whose numbers are not finite.
        """
        options = Options(
            max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            seed=seed, ignore_eos=ignore_eos, stop=stop, stop_ids=stop_ids, enable_thinking=enable_thinking,
            tools=tools, tool_choice=tool_choice, constraint=constraint,
            use_checkpoint_template=use_checkpoint_template,
        )  # fmt: skip
        rows, plan = self._prepare(as_list(prompts), options)
        host_decides = bool(options.stop_strings) or on_text is not None
        steps = _STEPS_BETWEEN_LOOKS if host_decides else programs.DISPATCH_STEPS
        # Prompts of like length run together: chunks and caches are as long as the longest needs.
        # Constrained rows go step by step; the others need not.
        order = sorted(
            rows,
            key=lambda row: (
                row.matcher is not None,
                len(row.request.prompt),
                row.request.max_new_tokens,
            ),
        )
        for start in range(0, len(order), self._max_batch):
            for row, piece in self._run(order[start : start + self._max_batch], plan, steps):
                if on_text is not None and piece:
                    on_text(row.request.index, piece)
        return [row.completion() for row in rows]

    def stream(self, prompt: Prompt, **options: Any) -> TextStream:
        """One prompt's text as it comes; options as for `generate` (`requests.Options`)."""
        rows, plan = self._prepare([prompt], Options(**options))
        return TextStream(rows[0], self._run(rows, plan, steps=1))

    def _prepare(
        self, prompts: Sequence[Prompt], options: Options
    ) -> tuple[list[_Row], programs.Plan]:
        model, strings = self.model, options.stop_strings
        if strings and model.tokenizer is None:
            raise UserError(
                "this model has no tokenizer: end texts with stop_ids, not stop strings"
            )
        stop_ids = _stop_ids(model, options)
        encoded = [encode(model, prompt, options) for prompt in prompts]
        asked = requests(model.config, encoded, options)
        matchers = self._matchers(options, encoded, stop_ids)
        rows = [
            _Row(request, RowText(model.tokenizer, strings), frozenset(stop_ids), matcher)
            for request, matcher in zip(asked, matchers, strict=True)
        ]
        blocked = self._blocked
        if model.tokenizer is not None and (
            forbidden := forbidden_ids(options.tool_choice, model.tokenizer)
        ):
            blocked = self._placed(_blocked(model, forbidden))
        # A multiple of 8 entries: the number of stop ids must not decide which program runs.
        padded = [*stop_ids, *(-1,) * (-len(stop_ids) % 8 or 8 * (not stop_ids))]
        plan = programs.Plan(
            compression=self.cache_compression,
            cache_dtype=self._cache_dtype,
            prefill_chunk=self._prefill_chunk,
            stop_ids=self._placed(np.array(padded, np.int32)),
            blocked=blocked,
            mesh=self._mesh,
        )
        return rows, plan

    def _matchers(
        self, options: Options, prompts: Sequence[list[int]], stop_ids: Sequence[int]
    ) -> list[Matcher | None]:
        """A fresh matcher for every prompt whose output is constrained."""
        model = self.model
        wanted = options.constraints(len(prompts))
        if model.tokenizer is None:
            if any(wanted) or options.tool_choice != "auto":
                raise UserError("this model has no tokenizer: a constraint has no text to hold for")
            return [None] * len(prompts)
        calls = constraint_of(options.tool_choice, options.tools, model.tokenizer)
        if calls is not None and any(wanted):
            raise UserError(
                "constraint and tool_choice both say what the output is; drop one of them"
            )
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

    def _placed(self, values: np.ndarray) -> jax.Array:
        """Where the parameters are, whole on every device."""
        if self._mesh is None:
            return jnp.asarray(values)
        return jax.device_put(values, NamedSharding(self._mesh, PartitionSpec()))

    def dispatches(self, prompts: Sequence[Prompt], **options: Any) -> Iterator[programs.Dispatch]:
        """The bare token arrays of one batch, a program call at a time; options as for `generate`.

        No text and no stop strings: for measuring, and for callers that do their own bookkeeping.
        """
        rows, plan = self._prepare(prompts, Options(**options))
        asked = [row.request for row in rows]
        matchers = [row.matcher for row in rows]
        return programs.run(
            self.model.module, self._params, plan, asked, programs.DISPATCH_STEPS, matchers
        )

    def _run(
        self, rows: Sequence[_Row], plan: programs.Plan, steps: int
    ) -> Iterator[tuple[_Row, str]]:
        """Run a batch to its end; yields each row with its new text after every program call."""
        asked = [row.request for row in rows]
        matchers = [row.matcher for row in rows]
        dispatches = programs.run(self.model.module, self._params, plan, asked, steps, matchers)
        keep = None
        while True:
            try:
                chosen = dispatches.send(keep)
            except StopIteration:
                return
            for column, row in enumerate(rows):
                count = int(chosen.count[column])
                tokens = chosen.tokens[:count, column].tolist()
                logprobs = chosen.logprobs[:count, column].tolist()
                if not np.isfinite(logprobs).all():
                    raise UserError(
                        f"the model's logits for prompt {row.request.index} are not finite (NaN or "
                        "infinity); look for damaged weights, or compute in float32"
                    )
                yield row, row.push(tokens, logprobs)
            keep = np.array([not row.finish_reason for row in rows])


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


def _blocked(model: Model, forbidden: Sequence[int] = ()) -> np.ndarray:
    """Ids that are never generated: what the configuration suppresses, what has no text, and others."""
    blocked = np.zeros(model.config.vocab_size, bool)
    blocked[[*model.config.token_ids.suppress, *forbidden]] = True
    if model.tokenizer is not None:
        blocked[model.tokenizer.vocab_size :] = True
    return blocked
