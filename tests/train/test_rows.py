"""Rows of both kinds through the chat format, and what is wrong with bad ones."""

import numpy as np
import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.text import chat
from train.data.rows import dpo_encoder, sft_encoder

USER = {"role": "user", "content": "what is one plus two"}
ANSWER = {"role": "assistant", "content": "three"}
OTHER = {"role": "assistant", "content": "ten"}


def learned(tokenizer, sequence):
    return tokenizer.decode(sequence.tokens[sequence.loss_mask].tolist())


@pytest.mark.parametrize("family", ["small", "large"])
def test_sft_learns_the_answer_after_the_very_prompt(tokenizer, family):
    (sequence,) = sft_encoder(tokenizer, family)({"messages": [USER, ANSWER]})
    prompt = chat.encode_prompt(tokenizer, [USER], family=family)
    assert sequence.tokens[: len(prompt)].tolist() == prompt
    assert learned(tokenizer, sequence) == "three<turn|>"
    assert sequence.tokens.dtype == np.int32 and sequence.loss_mask.dtype == bool


def test_sft_options_of_a_row_reach_the_format(tokenizer):
    encode = sft_encoder(tokenizer, "small")
    thoughtful = {**ANSWER, "reasoning": "one two three"}
    (on,) = encode({"messages": [USER, thoughtful]})
    (off,) = encode(
        {"messages": [USER, thoughtful], "chat_template_kwargs": {"enable_thinking": False}}
    )
    assert "one two three" in learned(tokenizer, on)
    assert learned(tokenizer, off) == "three<turn|>"
    declared = [{"type": "function", "function": {"name": "sum", "description": "the sum of"}}]
    (tools,) = encode({"messages": [USER, ANSWER], "tools": declared})
    assert "declaration:sum" in tokenizer.decode(tools.tokens.tolist())


def test_pairs_share_the_prompt_and_learn_the_completions(tokenizer):
    encode = dpo_encoder(tokenizer, "large")
    chosen, rejected = encode({"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]})
    prompt = chat.encode_prompt(tokenizer, [USER], family="large")
    for sequence, text in ((chosen, "three<turn|>"), (rejected, "ten<turn|>")):
        assert sequence.tokens[: len(prompt)].tolist() == prompt
        assert not sequence.loss_mask[: len(prompt)].any()
        assert learned(tokenizer, sequence) == text


def test_pairs_of_strings_are_raw_text(tokenizer):
    encode = dpo_encoder(tokenizer, "large")
    chosen, _ = encode({"prompt": "one plus two", "chosen": " makes three", "rejected": " is ten"})
    assert tokenizer.decode(chosen.tokens.tolist()) == "<bos>one plus two makes three<eos>"
    assert learned(tokenizer, chosen) == " makes three<eos>"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "x"}, "row has no 'messages' .keys: 'text'; needed: 'messages'"),
        ({"messages": [USER]}, "no assistant message to train on"),
        ({"messages": []}, "no assistant message to train on"),
        ({"messages": "hello"}, "messages must be a list"),
        ({"messages": [USER, {"role": "asistant", "content": "x"}]}, "mean 'assistant'"),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": {"thinking": True}}, "'thinking'"),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": [1]}, "must be an object"),
        (
            {"messages": [USER, ANSWER], "chat_template_kwargs": {"enable_thinking": "no"}},
            "enable_thinking is 'no'; it must be true or false",
        ),
    ],
)
def test_bad_sft_rows(tokenizer, row, words):
    with pytest.raises(UserError, match=words):
        sft_encoder(tokenizer, "small")(row)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "x", "chosen": "y"}, "row has no 'rejected'"),
        ({"prompt": "x", "chosen": [ANSWER], "rejected": [OTHER]}, "not a mix"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [OTHER]}, "chosen must be assistant"),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": []}, "rejected must be assistant"),
    ],
)
def test_bad_dpo_rows(tokenizer, row, words):
    with pytest.raises(UserError, match=words):
        dpo_encoder(tokenizer, "small")(row)
