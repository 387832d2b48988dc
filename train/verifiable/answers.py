"""The policy's answers to prompts, one line each, written as they end.

Every answer draws from a seed of its own, made of the run's seed, the round, the prompt and the answer's
number: not of the order in which answers are asked, so a killed run goes on as if it had not been. Not here:
whether an answer is right (verdicts.py).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.verifiable import SamplingConfig
from gemma4_jax import checkpoint
from gemma4_jax.build import Model
from gemma4_jax.errors import UserError
from gemma4_jax.sample.engine import Engine
from gemma4_jax.sample.row import Completion
from gemma4_jax.sample.stream import Stream
from gemma4_jax.text.chat import encode_prompt
from gemma4_jax.text.tokenizer import Tokenizer
from train.verifiable.files import Lines
from train.verifiable.pace import Pace
from train.verifiable.prompts import Prompt

# Requests in line for every answer under way: enough that none waits.
_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One answer that is wanted."""

    prompt: Prompt
    sample: int
    seed: int


def asked(prompts: Sequence[Prompt], samples: int, *purpose: Any) -> list[Asked]:
    """`samples` answers to each prompt, side by side. purpose: what else their seeds depend on."""
    return [
        Asked(prompt=prompt, sample=i, seed=seed_of(*purpose, prompt.id, i))
        for prompt in prompts
        for i in range(samples)
    ]


def seed_of(*parts: Any) -> int:
    """A seed from whatever it shall depend on."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest) >> 1


@dataclass(frozen=True)
class Asking:
    """How prompts become tokens. family: of the model's chat format. thinking: of prompts that do not say."""

    tokenizer: Tokenizer
    family: str
    thinking: bool

    def options(self, prompt: Prompt) -> dict[str, Any]:
        """For an engine."""
        thinking = self.thinking if prompt.thinking is None else prompt.thinking
        return {"tools": prompt.tools, "enable_thinking": thinking}

    def ids(self, prompt: Prompt) -> list[int]:
        """Tokens of a prompt as an engine reads them."""
        how = self.options(prompt)
        tools, thinking = how["tools"], how["enable_thinking"]
        return encode_prompt(self.tokenizer, prompt.messages, tools, thinking, self.family)

    def text(self, prompt: Prompt) -> str:
        """The same as text, control tokens included."""
        return self.tokenizer.decode(self.ids(prompt))


def asking(model: Path, sampling: SamplingConfig) -> Asking:
    """How the model in a folder is asked; its weights are not read. UserError if it has no tokenizer."""
    about = checkpoint.describe(model)
    if about.tokenizer is None:
        raise UserError(f"{model} has no tokenizer: its answers have no text to verify")
    return Asking(about.tokenizer, about.config.family, sampling.thinking)


def collect(
    model: Model,
    wanted: Sequence[Asked],
    lines: Lines,
    how: Asking,
    sampling: SamplingConfig,
    temperature: float,
    what: str,
) -> None:
    """Ask for what is not in `lines` yet. what: is being asked, for the lines of progress.

    A prompt that does not fit gets a line with `error`. Raises UserError if the model's numbers are not finite.
    """
    missing = [each for each in wanted if (each.prompt.id, each.sample) not in lines.rows]
    done, pace = len(wanted) - len(missing), Pace(what, len(wanted), len(wanted) - len(missing))
    if not missing:
        return
    engine = Engine(model, max_slots=sampling.max_slots, max_tokens=sampling.max_tokens)
    options: dict[str, Any] = {
        "max_new_tokens": sampling.max_new_tokens,
        "temperature": temperature,
        "top_k": sampling.top_k or None,
        "top_p": sampling.top_p,
    }
    waiting = iter(missing)
    running: list[tuple[Asked, Stream]] = []
    more = True
    while running or more:
        while more and len(running) < _AHEAD * sampling.max_slots:
            each = next(waiting, None)
            if each is None:
                more = False
                break
            try:
                stream = engine.submit(
                    each.prompt.messages,
                    seed=each.seed,
                    **options,
                    **how.options(each.prompt),
                )
            except UserError as error:
                lines.put({"prompt": each.prompt.id, "sample": each.sample, "error": str(error)})
                done += 1
                continue
            running.append((each, stream))
        if running:
            engine.step()
        for each, stream in running:
            if stream.ended:
                lines.put(_line(each, stream.result(), how.tokenizer))
                done += 1
        running = [(each, stream) for each, stream in running if not stream.ended]
        pace.at(done)


def _line(each: Asked, completion: Completion, tokenizer: Tokenizer) -> dict[str, Any]:
    """`text` is what a verifier reads; with `end`, the token that ended it, it is all that was written."""
    ended = completion.finish_reason == "stop"
    return {
        "prompt": each.prompt.id,
        "sample": each.sample,
        "seed": each.seed,
        "text": completion.text,
        "end": tokenizer.decode(completion.tokens[-1:]) if ended else "",
        "finish_reason": completion.finish_reason,
        "logprob": round(sum(completion.logprobs), 4),
        "ids": completion.tokens,
    }
