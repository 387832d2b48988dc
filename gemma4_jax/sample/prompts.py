"""Prompts as a person gives them (text, messages or ids) to token ids, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemma4_jax.build import Model
from gemma4_jax.errors import UserError
from gemma4_jax.sample.requests import Options
from gemma4_jax.text.chat import encode_prompt
from gemma4_jax.text.template import ChatTemplate
from gemma4_jax.text.tokenizer import Tokenizer

# Raw text, a conversation, or token ids that are used exactly as they are.
Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int] | np.ndarray


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Several prompts, of one prompt or several: a bare string, message list or id list is one."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, np.ndarray):
        prompts = prompts.tolist()
    if not isinstance(prompts, Sequence):
        raise UserError(
            f"prompts must be strings, message lists or token lists, got {type(prompts).__name__}"
        )
    if len(prompts) and all(isinstance(item, int | np.integer | Mapping) for item in prompts):
        return [prompts]  # type: ignore[list-item]  # a sequence of these is one prompt
    return list(prompts)  # type: ignore[arg-type]


def encode(model: Model, prompt: Prompt, options: Options) -> list[int]:
    """Token ids of one prompt.

    Text is raw: control tokens in it count, and `<bos>` is put before it if missing. Messages go through
    the chat format of the model's family, or through the checkpoint's own template if asked. Raises
    UserError for anything that is none of these, is empty, or has an id outside the vocabulary.
    """
    if isinstance(prompt, np.ndarray):
        prompt = prompt.tolist()
    if isinstance(prompt, bytes | bytearray):  # a sequence of numbers, which are no ids
        raise UserError("a prompt must be text, not bytes: decode it, bytes.decode('utf-8')")
    if isinstance(prompt, str):
        ids = _with_bos(_tokenizer(model), prompt)
    elif not isinstance(prompt, Sequence) or not prompt:
        raise UserError(
            f"a prompt must be a string, messages or token ids, and not empty; got {prompt!r}"
        )
    elif all(isinstance(item, Mapping) for item in prompt):
        ids = _encode_messages(model, prompt, options)
    elif all(isinstance(item, int | np.integer) and not isinstance(item, bool) for item in prompt):
        ids = [int(item) for item in prompt]  # type: ignore[arg-type]
    else:
        kinds = sorted({type(item).__name__ for item in prompt})
        raise UserError(
            f"a prompt must be a string, a list of messages or a list of token ids; "
            f"got a list of {', '.join(kinds)}"
        )
    vocab = model.config.vocab_size
    if odd := [i for i in ids if not 0 <= i < vocab]:
        raise UserError(
            f"token id {odd[0]} in the prompt is outside the model's vocabulary (0 to {vocab - 1})"
        )
    return ids


def _tokenizer(model: Model) -> Tokenizer:
    if model.tokenizer is None:
        raise UserError("this model has no tokenizer: give prompts as lists of token ids")
    return model.tokenizer


def _with_bos(tokenizer: Tokenizer, text: str) -> list[int]:
    if not text:
        raise UserError("the prompt is empty; give at least one character (or '<bos>')")
    ids = tokenizer.encode(text)
    return ids if ids[:1] == [tokenizer.bos_id] else [tokenizer.bos_id, *ids]


def _encode_messages(model: Model, messages: Any, options: Options) -> list[int]:
    tokenizer, thinking = _tokenizer(model), options.enable_thinking
    if not options.use_checkpoint_template:
        family = model.config.family
        return encode_prompt(tokenizer, messages, options.tools, thinking, family)
    if model.chat_template is None:
        raise UserError("the checkpoint ships no chat template; leave use_checkpoint_template off")
    template = ChatTemplate.from_source(model.chat_template)
    text = template.render(messages, options.tools, enable_thinking=thinking)
    return _with_bos(tokenizer, text)
