"""What `generate` and `chat` share: the flags of sampling, and one answer from a prompt.

Not here: where an answer is shown (display.py).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemma4_jax.errors import UserError

if TYPE_CHECKING:
    from gemma4_jax.build import Model
    from gemma4_jax.sample.drafted import DraftedSampler
    from gemma4_jax.sample.drafters import Drafter
    from gemma4_jax.sample.prompts import Prompt
    from gemma4_jax.sample.sampler import Sampler
    from gemma4_jax.text.messages import Tools
    from gemma4_jax.text.parse import Message

# Used when no limit is given; what is left of the model's positions may be less.
_MAX_NEW_TOKENS = 1024


def add_flags(
    parser: argparse.ArgumentParser, *, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    """The flags of sampling, with these defaults."""
    off = "off"
    parser.add_argument("--think", action="store_true", help="let the model think first")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"most tokens of an answer (default: {_MAX_NEW_TOKENS}, or what the context has left)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=temperature,
        metavar="T",
        help=f"0 always takes the likeliest token (default: {temperature:g})",
    )
    for name, kind, default, about in (
        ("--top-k", int, top_k, "draw from the K likeliest tokens"),
        ("--top-p", float, top_p, "draw from the likeliest tokens that share probability P"),
        ("--min-p", float, None, "drop tokens less than P times as likely as the likeliest"),
    ):
        parser.add_argument(
            name,
            type=kind,
            default=default,
            metavar=name[-1].upper(),
            help=f"{about} (default: {off if default is None else default})",
        )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)"
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end an answer before TEXT; repeatable",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        metavar="NAME",
        help="float32, bfloat16 or float16: parameters and computation (default: float32)",
    )
    parser.add_argument(
        "--cache-dtype",
        metavar="NAME",
        help="of keys and values: float32, bfloat16, float16, int8 or float8, which take half the memory "
        "of bfloat16 (default: as --dtype)",
    )
    parser.add_argument(
        "--drafter",
        metavar="FOLDER|ngram",
        help="guess ahead, for speed alone: the model's drafter, or what was said before",
    )
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        help="spread the model over devices: tensor=4, or expert=2,tensor=-1 (-1: all that are left)",
    )


def open_model(arguments: argparse.Namespace) -> Model:
    """The model of the folder that was named, for decoding on the mesh that was asked for."""
    from gemma4_jax.checkpoint import load

    if arguments.mesh is None:
        return load(arguments.model, dtype=arguments.dtype).for_decoding()
    import jax

    from gemma4_jax.sharding import make_mesh, read_sizes

    mesh = make_mesh(read_sizes(arguments.mesh, jax.device_count()))
    return load(arguments.model, dtype=arguments.dtype, mesh=mesh)


def sampler_of(arguments: argparse.Namespace, model: Model) -> Sampler | DraftedSampler:
    """What continues prompts, with the drafter that was asked for."""
    from gemma4_jax.sample.drafted import DraftedSampler
    from gemma4_jax.sample.sampler import Sampler

    drafter = drafter_of(arguments, model)
    cache_dtype = arguments.cache_dtype
    if drafter is None:
        return Sampler(model, cache_dtype=cache_dtype)
    return DraftedSampler(model, drafter, cache_dtype=cache_dtype)


def drafter_of(arguments: argparse.Namespace, model: Model) -> Drafter | None:
    """The drafter that was asked for."""
    from gemma4_jax.sample.drafters import open_drafter

    return None if arguments.drafter is None else open_drafter(arguments.drafter, model)


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags ask of the sampler; the number of new tokens is left to `answer`."""
    names = ("temperature", "top_k", "top_p", "min_p", "seed", "stop")
    return {name: getattr(arguments, name) for name in names}


def default_new_tokens(arguments: argparse.Namespace, model: Model) -> int:
    """Most tokens of an answer where prompts are not known yet: at most half of the context."""
    if arguments.max_new_tokens is not None:
        wanted: int = arguments.max_new_tokens
        return wanted
    return min(_MAX_NEW_TOKENS, model.config.max_position // 2)


def read_stdin(read: Callable[[], str]) -> str:
    """What a method of standard input gives; UserError where that is no text."""
    try:
        return read()
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not {error.encoding.upper()}: {error.reason}") from None


def is_chat_model(model: Model) -> bool:
    """Whether the model's vocabulary can open and close a turn."""
    from gemma4_jax.text import control

    tokens = () if model.tokenizer is None else model.tokenizer.control_tokens
    return control.TURN in tokens and control.TURN_END in tokens


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a prompt.

    text: control tokens spelt out. tokens, finish_reason: empty and "interrupted" after Ctrl-C. cut: the
    text may be shorter than what the tokens say, for a stop string or Ctrl-C. Of the
    times, in seconds, `first` ends with the first text and `steady` begins with the second: until then
    programs may be compiled. Loading is in neither.
    """

    text: str
    prompt_text: str
    prompt_tokens: int
    tokens: list[int]
    new_tokens: int
    finish_reason: str
    cut: bool
    first: float
    steady: float

    @property
    def tokens_per_second(self) -> float | None:
        """Speed after the second token; None for fewer than three."""
        fits = self.new_tokens > 2 and self.steady > 0
        return (self.new_tokens - 2) / self.steady if fits else None

    def summary(self) -> str:
        """One line: how long and how fast."""
        speed = self.tokens_per_second
        return (
            f"{self.new_tokens} tokens"
            + ("" if speed is None else f", {speed:.1f} tokens/s")
            + f" ({self.finish_reason}; prompt {self.prompt_tokens} tokens, "
            f"first token after {self.first:.1f} s)"
        )


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A prompt in tokens, checked; in_thought: it ends inside a thought."""

    tokens: list[int]
    text: str
    in_thought: bool


def prepare(model: Model, prompt: Prompt, think: bool, tools: Tools | None = None) -> Prepared:
    """Encode a prompt: text is raw, messages go through the chat format, with the tools on offer."""
    from gemma4_jax.sample.prompts import encode
    from gemma4_jax.sample.requests import Options
    from gemma4_jax.text.parse import Start, start_of

    tokens = encode(model, prompt, Options(enable_thinking=think, tools=tools))
    if len(tokens) >= model.config.max_position:
        raise UserError(
            f"the prompt has {len(tokens)} tokens; this model's context of "
            f"{model.config.max_position} must have room for an answer too: shorten the prompt"
        )
    text = "" if model.tokenizer is None else model.tokenizer.decode(tokens)
    return Prepared(tokens=tokens, text=text, in_thought=start_of(text) is Start.THOUGHT)


def message_of(
    model: Model, prompt: Prepared, result: Answer, tools: Tools | None = None
) -> Message:
    """An answer taken apart: by its ids, or by its text where a stop string or Ctrl-C has cut it."""
    from gemma4_jax.text.parse import parse
    from gemma4_jax.text.token_parse import parse_tokens
    from gemma4_jax.text.tools import signatures

    known = signatures(tools or ())
    if model.tokenizer is None or result.cut:
        return parse(result.text, prompt.text, known)
    return parse_tokens(model.tokenizer, result.tokens, prompt.tokens, known)


def answer(
    sampler: Sampler | DraftedSampler,
    prompt: Prepared,
    max_new_tokens: int | None,
    settings: dict[str, Any],
    show: Callable[[str], None],
) -> Answer:
    """Generate, handing every piece of text to `show`. Ctrl-C ends the answer, not the program."""
    if max_new_tokens is None:
        room = sampler.model.config.max_position - len(prompt.tokens)
        max_new_tokens = min(_MAX_NEW_TOKENS, room)
    pieces: list[str] = []
    times = [time.perf_counter()]
    stream = sampler.stream(prompt.tokens, max_new_tokens=max_new_tokens, **settings)
    try:
        for piece in stream:
            if len(times) < 3:
                times.append(time.perf_counter())
            pieces.append(piece)
            show(piece)
    except KeyboardInterrupt:
        pass
    end = time.perf_counter()
    start, first, second = (*times, end, end)[:3]
    done = stream.completion
    return Answer(
        text="".join(pieces),
        prompt_text=prompt.text,
        prompt_tokens=len(prompt.tokens),
        tokens=done.tokens if done else [],
        new_tokens=len(done.tokens) if done else len(pieces),
        finish_reason=done.finish_reason if done else "interrupted",
        cut=done is None or bool(settings.get("stop")),
        first=first - start,
        steady=end - second,
    )
