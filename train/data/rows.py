"""One row of a data set -> token sequences with loss masks.

Here: which keys a row has, and the call into the chat format. Not here: the format itself and what a
message may hold (gemma4_jax/text), files (jsonl.py), lengths (prepared.py).
"""

from typing import Any

import numpy as np

from gemma4_jax.errors import UserError, unknown
from gemma4_jax.text import chat
from gemma4_jax.text.tokenizer import Tokenizer
from train.data.prepared import Encode
from train.data.sequences import Sequence

TEMPLATE_OPTIONS = ("enable_thinking", "preserve_thinking")


def sft_encoder(tokenizer: Tokenizer, family: str) -> Encode:
    """Encoder of {"messages": [...], "tools"?: [...], "chat_template_kwargs"?: {...}}.

    family: "small" or "large", the chat format of the model (`ModelConfig.family`).
    """

    def encode(row: dict[str, Any]) -> list[Sequence]:
        _require_keys(row, "messages")
        example = chat.encode_training(
            tokenizer, row["messages"], tools=row.get("tools"), family=family, **_options(row)
        )
        return [_sequence(example.tokens, example.loss_mask)]

    return encode


def dpo_encoder(tokenizer: Tokenizer, family: str) -> Encode:
    """Encoder of {"prompt": ..., "chosen": ..., "rejected": ...}: all strings, or all messages.

    Gives [prompt + chosen, prompt + rejected] with the masks on the completions. "tools" and
    "chat_template_kwargs" may be there too.
    """

    def encode(row: dict[str, Any]) -> list[Sequence]:
        _require_keys(row, "prompt", "chosen", "rejected")
        prompt, *completions = chat.encode_pair(
            tokenizer,
            row["prompt"],
            row["chosen"],
            row["rejected"],
            tools=row.get("tools"),
            family=family,
            **_options(row),
        )
        return [
            _sequence([*prompt, *completion], [False] * len(prompt) + [True] * len(completion))
            for completion in completions
        ]

    return encode


def _require_keys(row: dict[str, Any], *keys: str) -> None:
    missing = [key for key in keys if key not in row]
    if missing:
        raise UserError(
            f"row has no {missing[0]!r} (keys: {', '.join(map(repr, row)) or 'none'}; "
            f"needed: {', '.join(map(repr, keys))})"
        )


def _options(row: dict[str, Any]) -> dict[str, bool]:
    options = row.get("chat_template_kwargs") or {}
    if not isinstance(options, dict):
        raise UserError(f"chat_template_kwargs must be an object, got {type(options).__name__}")
    for name, value in options.items():
        if name not in TEMPLATE_OPTIONS:
            raise unknown("chat_template_kwargs option", name, TEMPLATE_OPTIONS)
        if not isinstance(value, bool):
            raise UserError(f"chat_template_kwargs.{name} is {value!r}; it must be true or false")
    return options


def _sequence(tokens: list[int], loss_mask: list[bool]) -> Sequence:
    return Sequence(np.asarray(tokens, np.int32), np.asarray(loss_mask, bool))
