"""Our models under lm-evaluation-harness, for the many classic tasks that it has: log-likelihoods and
generation.

    python -m eval.lm_eval_adapter run --model gemma4_jax --model_args pretrained=FOLDER --tasks arc_easy
                                                                    # its own command line; needs the extra:
                                                                    lm-eval

What differs from its Hugging Face back end, each on purpose: sampled requests draw from seeds of their own,
so that repeats differ; a text that is scored whole (perplexity) starts from one <bos>, which is not scored
itself; after a thought only what follows it is an answer, and a task's stop strings do not apply inside a
conversation's thought. Not here: our own protocols (run.py), files in its layout (lm_eval_files.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from gemma4_jax.build import Model
from gemma4_jax.errors import UserError, report_user_errors
from gemma4_jax.sample.engine import Engine
from gemma4_jax.sample.prompts import encode
from gemma4_jax.sample.requests import Options
from gemma4_jax.sample.scoring import prompt_scores
from gemma4_jax.text import chat, control

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError(
        f'lm-evaluation-harness is not there ({error}); install the extra: pip install "gemma4_jax[lm-eval]"'
    ) from None

_KNOWN = (
    "until",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_gen_toks",
    "repetition_penalty",
)
_DEFAULT_TOKENS = 256  # as that harness has it


@register_model("gemma4_jax")
class Gemma4LM(TemplateLM):
    """A model with a tokenizer, as the harness wants it.

    pretrained: a folder, or a model that is loaded. max_length: most positions of a request, by default the
    model's. max_gen_toks: of an answer, whatever tasks say (their limits date from before thoughts).
    thinking: lets the model think first where a chat template is applied. max_slots, max_tokens: of the
    engine. seed: of draws.
    """

    def __init__(
        self,
        pretrained: str | Model,
        *,
        dtype: str = "bfloat16",
        max_length: int | None = None,
        max_gen_toks: int | None = None,
        thinking: bool = False,
        max_slots: int = 32,
        max_tokens: int = 65_536,
        seed: int = 0,
        batch_size: object = None,
        max_batch_size: object = None,
        device: object = None,
    ) -> None:
        """batch_size, max_batch_size, device: given by its command line; the engine and jax decide these."""
        super().__init__()
        if isinstance(pretrained, str):
            from gemma4_jax.checkpoint import load

            pretrained = load(pretrained, dtype=dtype).for_decoding()
        if pretrained.tokenizer is None:
            raise UserError("this model has no tokenizer, so no text can be scored or generated")
        self._model, self._tokens = pretrained, pretrained.tokenizer
        most = pretrained.config.max_position
        self.max_length = most if max_length is None else min(most, max_length)
        self._max_gen_toks, self._thinking, self._seed = max_gen_toks, thinking, seed
        self._max_slots, self._max_tokens = max_slots, max_tokens
        self._engine: Engine | None = None

    @property
    def eot_token_id(self) -> int:
        """What ends a document."""
        return self._tokens.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        return self._tokens.bos_id

    @property
    def tokenizer_name(self) -> str:
        """Names the way prompts are written, for its caches of requests."""
        probe = chat.render([{"role": "user", "content": "?"}], family=self._model.config.family)
        return f"gemma4_jax-{hashlib.sha256(probe.encode()).hexdigest()[:12]}-{self._thinking}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Its logs want a template's text; ours is code (`gemma4_jax/text/chat.py`)."""
        return self.tokenizer_name if chat_template else ""

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt as text. add_generation_prompt=False: the last message is the beginning of the
        answer.
        """
        history = list(chat_history)
        beginning = "" if add_generation_prompt else str(history.pop()["content"])
        prompt = chat.render(
            history, enable_thinking=self._thinking, family=self._model.config.family
        )
        return prompt + beginning

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Token ids; <bos> comes first unless add_special_tokens is False. Control tokens in the text
        count.
        """
        if add_special_tokens is False or not string:
            return self._tokens.encode(string)
        return encode(self._model, string, Options())

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **ignored: object
    ) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding writes it) of each continuation after its context.

        What does not fit is cut off at the context's beginning; a continuation must leave room for one token
        of it.
        """
        rows = []
        for _name, context, continuation in requests:
            if len(continuation) >= self.max_length:
                raise UserError(
                    f"a continuation has {len(continuation)} tokens; with max_length {self.max_length} at most "
                    f"{self.max_length - 1} can be scored"
                )
            rows.append((context + continuation)[-self.max_length :])
        scored = prompt_scores(self._model, rows) if rows else []
        found = []
        for (name, _, continuation), tokens in zip(requests, scored, strict=True):
            own = tokens[len(tokens) - len(continuation) :]
            answer = sum(t.logprob for t in own), all(t.likeliest for t in own)
            found.append(answer)
            if name is not None:
                self.cache_hook.add_partial("loglikelihood", name, answer)
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of each whole text, in windows of as much context as fits."""
        windows, counts = [], []
        for request in requests:
            (text,) = request.args
            own = [
                make_disjoint_window(pair)
                for pair in get_rolling_token_windows(
                    token_list=self.tok_encode(text, add_special_tokens=False),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length - 1,  # the first token of a row is not scored
                    context_len=1,
                )
            ]
            windows += [(None, context, continuation) for context, continuation in own]
            counts.append(len(own))
        scores = iter(self._loglikelihood_tokens(windows))
        found = []
        for request, count in zip(requests, counts, strict=True):
            total = sum(next(scores)[0] for _ in range(count))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            found.append(total)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answer to each request, all of them through one engine at a time of its own choosing."""
        engine = self._engine = self._engine or self._open()
        streams = []
        for number, request in enumerate(requests):
            context, given = request.args
            options, until = _options(given)
            most = self._max_gen_toks or options.pop("max_new_tokens")
            room = engine.max_context - most
            if room < 1:
                raise UserError(
                    f"max_gen_toks {most} leaves no room for a prompt in {engine.max_context} positions; "
                    "give a smaller max_gen_toks"
                )
            talk = control.TURN in context
            stream = engine.submit(
                self.tok_encode(context)[-room:],
                row=number,
                **{**options, "max_new_tokens": most, "seed": self._seed},
                stop=() if talk else until,
            )
            streams.append((request, stream, until))
        found = []
        for request, stream, until in streams:
            text = _answer(stream.result().text)
            for end in until:
                text = text.split(end, 1)[0]
            self.cache_hook.add_partial("generate_until", request.args, text)
            found.append(text)
        return found

    def _open(self) -> Engine:
        shorter = self.max_length < self._model.config.max_position
        return Engine(
            self._model,
            max_slots=self._max_slots,
            max_tokens=self._max_tokens,
            max_context=min(self.max_length, self._max_tokens) if shorter else None,
        )


def _options(given: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Of an engine, and stop strings, from a task's generation_kwargs."""
    if odd := [name for name in given if name not in _KNOWN]:
        raise UserError(
            f"generation_kwargs has {odd[0]!r}; known: {', '.join(_KNOWN)} (give them by --gen_kwargs)"
        )
    until = given.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(text for text in until if text)
    temperature = float(given.get("temperature") or 0.0)
    if given.get("do_sample") is False:
        temperature = 0.0
    elif given.get("do_sample") and "temperature" not in given:
        temperature = 1.0
    options = {
        "temperature": temperature,
        "max_new_tokens": int(given.get("max_gen_toks", _DEFAULT_TOKENS)),
    }
    for name in ("top_p", "top_k", "min_p", "repetition_penalty"):
        if given.get(name) is not None:
            options[name] = given[name]
    return options, until


def _answer(text: str) -> str:
    """What follows the thought; nothing if the thought did not end."""
    _, closed, after = text.rpartition(control.CHANNEL_END)
    if closed:
        return after.lstrip("\n")
    return "" if control.CHANNEL in text else text


def main() -> None:
    """The harness's own command line, with this model known to it."""
    from lm_eval.__main__ import cli_evaluate

    with report_user_errors():
        cli_evaluate()


if __name__ == "__main__":
    main()
