"""Rows of a data set -> token sequences that say which of their tokens are learnt.

Here: the calls into the chat format for each kind of row. Not here: the format itself (gemma4_jax/text), how
a row is read (formats.py), lengths and arrays (train/data).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from gemma4_jax.data.formats import (
    Completion,
    Conversation,
    Pair,
    Supervised,
    Text,
    Tokens,
    read_pair,
    read_supervised,
)
from gemma4_jax.errors import UserError
from gemma4_jax.text import chat
from gemma4_jax.text.tokenizer import Tokenizer

Thoughts = Literal["keep", "drop"]


class Sequence(NamedTuple):
    """tokens int32 [n]; loss_mask bool [n], True where the token itself is something to learn."""

    tokens: np.ndarray
    loss_mask: np.ndarray


@dataclass(frozen=True)
class Encoded:
    """What a row gives.

    format: its name. examples: each is kept, cut or dropped as a whole: one sequence (supervised), or
    two, chosen and rejected, that begin with the same prompt.
    """

    format: str
    examples: list[tuple[Sequence, ...]]


Encode = Callable[[dict[str, Any]], Encoded]


def sft_encoder(tokenizer: Tokenizer, family: str, thoughts: Thoughts = "keep") -> Encode:
    """Encoder of rows in any supervised format.

    family: "small" or "large", the chat format of the model (`ModelConfig.family`). thoughts: "drop" leaves
    the thoughts of messages out and turns thinking off, whatever a row says.
    """

    def encode(row: dict[str, Any]) -> Encoded:
        name, read = read_supervised(row)
        sequences = _supervised(tokenizer, family, thoughts, read)
        return Encoded(name, [(sequence,) for sequence in sequences])

    return encode


def dpo_encoder(tokenizer: Tokenizer, family: str, thoughts: Thoughts = "keep") -> Encode:
    """Encoder of preference rows: (prompt + chosen, prompt + rejected), masks on the completions."""

    def encode(row: dict[str, Any]) -> Encoded:
        name, pair = read_pair(row)
        prompt, *completions = chat.encode_pair(
            tokenizer,
            _kept(pair.prompt, thoughts),
            _kept(pair.chosen, thoughts),
            _kept(pair.rejected, thoughts),
            tools=pair.tools,
            family=family,
            **_options(pair, thoughts),
        )
        return Encoded(name, [tuple(_continued(prompt, tokens) for tokens in completions)])

    return encode


def _supervised(
    tokenizer: Tokenizer, family: str, thoughts: Thoughts, read: Supervised
) -> list[Sequence]:
    match read:
        case Conversation():
            examples = chat.encode_turns(
                tokenizer,
                _kept(read.messages, thoughts),
                tools=read.tools,
                family=family,
                **_options(read, thoughts),
            )
            return [_sequence(example.tokens, example.loss_mask) for example in examples]
        case Completion():
            prompt, completion = chat.encode_completion(
                tokenizer,
                _kept(read.prompt, thoughts),
                _kept(read.completion, thoughts),
                tools=read.tools,
                family=family,
                **_options(read, thoughts),
            )
            return [_continued(prompt, completion)]
        case Text():
            (bos,), tokens = chat.encode_completion(tokenizer, "", read.text)
            return [_continued([bos], tokens[1:] if tokens[0] == bos else tokens)]
        case Tokens():
            for i, token in enumerate(read.tokens):
                if not 0 <= token < tokenizer.vocab_size:
                    raise UserError(
                        f"input_ids[{i}] is {token}; the vocabulary has {tokenizer.vocab_size} tokens, "
                        "from 0: were they made with another tokenizer?"
                    )
            return [_sequence(read.tokens, read.loss_mask)]


def _kept(messages: Any, thoughts: Thoughts) -> Any:
    """Messages without their thoughts, if those are dropped; raw text as it is."""
    if thoughts == "keep":
        return messages
    if isinstance(messages, dict):
        return {k: v for k, v in messages.items() if k not in ("reasoning", "reasoning_content")}
    return [_kept(m, thoughts) for m in messages] if isinstance(messages, list) else messages


def _options(read: Conversation | Completion | Pair, thoughts: Thoughts) -> dict[str, bool]:
    return {**read.options} if thoughts == "keep" else {**read.options, "enable_thinking": False}


def _continued(prompt: list[int], completion: list[int]) -> Sequence:
    return _sequence([*prompt, *completion], [False] * len(prompt) + [True] * len(completion))


def _sequence(tokens: Iterable[int], loss_mask: Iterable[bool]) -> Sequence:
    return Sequence(np.asarray(tokens, np.int32), np.asarray(loss_mask, bool))
