"""Rows of every format as tokens and targets, and what is wrong with bad ones."""

import json

import numpy as np
import pytest

from gemma4_jax.data.encode import dpo_encoder, sft_encoder
from gemma4_jax.errors import UserError
from gemma4_jax.text import chat

USER = {"role": "user", "content": "what is one plus two"}
ANSWER = {"role": "assistant", "content": "three"}
OTHER = {"role": "assistant", "content": "ten"}


def learned(tokenizer, sequence):
    return tokenizer.decode(sequence.tokens[sequence.loss_mask].tolist())


@pytest.mark.parametrize("family", ["small", "large"])
def test_sft_learns_the_answer_after_the_very_prompt(tokenizer, family):
    [(sequence,)] = sft_encoder(tokenizer, family)({"messages": [USER, ANSWER]}).examples
    prompt = chat.encode_prompt(tokenizer, [USER], family=family)
    assert sequence.tokens[: len(prompt)].tolist() == prompt
    assert learned(tokenizer, sequence) == "three<turn|>"
    assert sequence.tokens.dtype == np.int32 and sequence.loss_mask.dtype == bool


def test_sft_options_of_a_row_reach_the_format(tokenizer):
    encode = sft_encoder(tokenizer, "small")
    thoughtful = {**ANSWER, "reasoning": "one two three"}
    [(on,)] = encode({"messages": [USER, thoughtful]}).examples
    [(off,)] = encode(
        {"messages": [USER, thoughtful], "chat_template_kwargs": {"enable_thinking": False}}
    ).examples
    assert "one two three" in learned(tokenizer, on)
    assert learned(tokenizer, off) == "three<turn|>"
    declared = [{"type": "function", "function": {"name": "sum", "description": "the sum of"}}]
    [(tools,)] = encode({"messages": [USER, ANSWER], "tools": declared}).examples
    assert "declaration:sum" in tokenizer.decode(tools.tokens.tolist())


def test_pairs_share_the_prompt_and_learn_the_completions(tokenizer):
    encode = dpo_encoder(tokenizer, "large")
    row = {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}
    [(chosen, rejected)] = encode(row).examples
    prompt = chat.encode_prompt(tokenizer, [USER], family="large")
    for sequence, text in ((chosen, "three<turn|>"), (rejected, "ten<turn|>")):
        assert sequence.tokens[: len(prompt)].tolist() == prompt
        assert not sequence.loss_mask[: len(prompt)].any()
        assert learned(tokenizer, sequence) == text


def test_pairs_of_strings_are_raw_text(tokenizer):
    encode = dpo_encoder(tokenizer, "large")
    row = {"prompt": "one plus two", "chosen": " makes three", "rejected": " is ten"}
    [(chosen, _)] = encode(row).examples
    assert tokenizer.decode(chosen.tokens.tolist()) == "<bos>one plus two makes three<eos>"
    assert learned(tokenizer, chosen) == " makes three<eos>"


THOUGHTFUL = {**ANSWER, "reasoning": "one two three"}
PLAIN = [USER, ANSWER]
CALL = {"function": {"name": "sum", "arguments": {"of": "one two"}}}
TOOLS = [{"type": "function", "function": {"name": "sum", "description": "the sum of"}}]
WITH_CALL = [USER, {"role": "assistant", "tool_calls": [CALL]}]


@pytest.mark.parametrize(
    ("name", "row", "same"),
    [
        ("ShareGPT", {"conversations": [
            {"from": "system", "value": "sum"}, {"from": "human", "value": USER["content"]},
            {"from": "gpt", "value": "three"},
        ]}, {"messages": [{"role": "system", "content": "sum"}, *PLAIN]}),
        ("ShareGPT", {"system": "sum", "conversations": PLAIN},
         {"messages": [{"role": "system", "content": "sum"}, *PLAIN]}),
        ("ShareGPT", {"tools": json.dumps(TOOLS), "conversations": [
            {"from": "human", "value": USER["content"]},
            {"from": "function_call", "value": json.dumps(CALL["function"])},
            {"from": "observation", "value": "three"}, {"from": "gpt", "value": "three"},
        ]}, {"tools": TOOLS,
             "messages": [*WITH_CALL, {"role": "tool", "content": "three"}, ANSWER]}),
        ("Alpaca", {"instruction": USER["content"], "input": "", "output": "three"},
         {"messages": PLAIN}),
        ("Alpaca", {"instruction": "what", "input": "one", "output": "three", "system": "sum",
                    "history": [["ten", "nine"]]},
         {"messages": [{"role": "system", "content": "sum"}, {"role": "user", "content": "ten"},
                       {"role": "assistant", "content": "nine"},
                       {"role": "user", "content": "what\n\none"}, ANSWER]}),
        ("messages", {"messages": [USER, {"role": "assistant", "tool_calls": [
            {"function": {"name": "sum", "arguments": '{"of": "one two"}'}}]}],
            "tools": json.dumps(TOOLS), "id": 7, "text": None},
         {"messages": WITH_CALL, "tools": TOOLS}),
        ("messages", {"messages": [USER, {**ANSWER, "reasoning_content": "one two three"}]},
         {"messages": [USER, THOUGHTFUL]}),
    ],
)  # fmt: skip
def test_formats_of_conversations(tokenizer, name, row, same):
    encode = sft_encoder(tokenizer, "large")
    found, wanted = encode(row), encode(same)
    assert found.format == name and wanted.format == "messages"
    for (one,), (two,) in zip(found.examples, wanted.examples, strict=True):
        np.testing.assert_array_equal(one.tokens, two.tokens)
        np.testing.assert_array_equal(one.loss_mask, two.loss_mask)


def test_a_completion_of_messages_learns_nothing_of_its_prompt(tokenizer):
    encode = sft_encoder(tokenizer, "large")
    row = {"prompt": [*PLAIN, USER], "completion": [OTHER]}
    result = encode(row)
    [(sequence,)] = result.examples
    prompt = chat.encode_prompt(tokenizer, row["prompt"], family="large")
    assert result.format == "prompt/completion"
    assert sequence.tokens[: len(prompt)].tolist() == prompt
    assert learned(tokenizer, sequence) == "ten<turn|>"


def test_raw_text_and_completions(tokenizer):
    encode = sft_encoder(tokenizer, "large")
    [(sequence,)] = encode({"prompt": "one plus", "completion": " two"}).examples
    assert tokenizer.decode(sequence.tokens.tolist()) == "<bos>one plus two<eos>"
    assert learned(tokenizer, sequence) == " two<eos>"
    for text in ("one plus two", "<bos>one plus two", "one plus two<eos>"):
        [(sequence,)] = encode({"text": text}).examples
        assert tokenizer.decode(sequence.tokens.tolist()) == "<bos>one plus two<eos>"
        assert learned(tokenizer, sequence) == "one plus two<eos>"


@pytest.mark.parametrize(
    ("columns", "tokens", "learnt"),
    [
        ({}, [2, 7, 8, 9], [2, 7, 8, 9]),
        ({"labels": [-100, -100, 8, 9]}, [2, 7, 8, 9], [8, 9]),
        ({"completion_mask": [0, 0, 1, 1]}, [2, 7, 8, 9], [8, 9]),
        ({"completion_mask": [0, 1, 1, 1], "assistant_masks": [1, 1, 0, 1]}, [2, 7, 8, 9], [7, 9]),
        ({"loss_mask": [0, 0, 1, 0], "attention_mask": [1, 1, 1, 0]}, [2, 7, 8], [8]),
    ],
)
def test_rows_of_tokens(tokenizer, columns, tokens, learnt):
    result = sft_encoder(tokenizer, "small")({"input_ids": [2, 7, 8, 9], **columns})
    [(sequence,)] = result.examples
    assert result.format == "tokens"
    assert sequence.tokens.tolist() == tokens
    assert sequence.tokens[sequence.loss_mask].tolist() == learnt


def test_every_thought_is_learnt_once_each_after_its_own_prompt(tokenizer):
    encode = sft_encoder(tokenizer, "large")
    row = {"messages": [USER, THOUGHTFUL, USER, OTHER, USER, {**OTHER, "reasoning": "nine"}]}
    first, last = (example[0] for example in encode(row).examples)
    prompt = chat.encode_prompt(tokenizer, [USER], family="large", enable_thinking=True)
    assert first.tokens[: len(prompt)].tolist() == prompt
    thought = "<|channel>thought\n{}\n<channel|>"
    assert learned(tokenizer, first) == thought.format("one two three") + "three<turn|>"
    assert learned(tokenizer, last) == "ten<turn|>" + thought.format("nine") + "ten<turn|>"


def test_thoughts_can_be_dropped(tokenizer):
    row = {"messages": [USER, THOUGHTFUL, USER, THOUGHTFUL]}
    kept = sft_encoder(tokenizer, "large")(row)
    dropped = sft_encoder(tokenizer, "large", "drop")(row)
    assert len(kept.examples) == 2
    [(sequence,)] = dropped.examples
    [(same,)] = sft_encoder(tokenizer, "large")({"messages": PLAIN * 2}).examples
    assert sequence.tokens.tolist() == same.tokens.tolist()
    assert learned(tokenizer, sequence) == "three<turn|>three<turn|>"
    pair = {"prompt": [USER], "chosen": [THOUGHTFUL], "rejected": OTHER}
    [(chosen, _)] = dpo_encoder(tokenizer, "large", "drop")(pair).examples
    assert learned(tokenizer, chosen) == "three<turn|>"
    [(chosen, _)] = dpo_encoder(tokenizer, "large")(pair).examples
    assert "one two three" in learned(tokenizer, chosen)


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        {"prompt": USER["content"], "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        {"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
    ],
)
def test_pairs_of_whole_conversations(tokenizer, row):
    encode = dpo_encoder(tokenizer, "large")
    found = encode(row)
    wanted = encode({"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]})
    assert (found.format, wanted.format) == ("preference, prompt within", "preference")
    for one, two in zip(found.examples[0], wanted.examples[0], strict=True):
        np.testing.assert_array_equal(one.tokens, two.tokens)
        np.testing.assert_array_equal(one.loss_mask, two.loss_mask)


def test_strings_with_the_prompt_within_are_split_between_words(tokenizer):
    row = {"chosen": "the sum is seven", "rejected": "the sum is six"}
    [(chosen, rejected)] = dpo_encoder(tokenizer, "small")(row).examples
    assert learned(tokenizer, chosen) == " seven<eos>"
    assert learned(tokenizer, rejected) == " six<eos>"


def test_pairs_with_tools(tokenizer):
    row = {"prompt": [USER], "chosen": WITH_CALL[1], "rejected": OTHER, "tools": TOOLS}
    [(chosen, _)] = dpo_encoder(tokenizer, "small")(row).examples
    assert "declaration:sum" in tokenizer.decode(chosen.tokens.tolist())
    assert learned(tokenizer, chosen).endswith("<|tool_response>")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"txt": "x"},
            r"no known format in this row \(keys: 'txt'\).*messages \(messages\), prompt/c",
        ),
        ({}, "keys: none"),
        ({"text": "x", "messages": [USER]}, "several formats fit this row .*'messages', 'text'"),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, "a preference pair .*train.dpo"),
        ({"text": 3}, "text must be a string, not int"),
        ({"messages": [USER]}, "no assistant message to train on"),
        ({"messages": []}, "no assistant message to train on"),
        ({"messages": "hello"}, "messages must be a list"),
        ({"messages": [USER, {"role": "asistant", "content": "x"}]}, "mean 'assistant'"),
        ({"messages": PLAIN, "chat_template_kwargs": {"thinking": True}}, "'thinking'"),
        ({"messages": PLAIN, "chat_template_kwargs": [1]}, "must be an object"),
        (
            {"messages": PLAIN, "chat_template_kwargs": {"enable_thinking": "no"}},
            "enable_thinking is 'no'; it must be true or false",
        ),
        ({"messages": PLAIN, "tools": "[{"}, "tools is a string that is not JSON"),
        ({"prompt": "x", "completion": [ANSWER]}, "prompt and completion must all be strings or"),
        ({"prompt": [USER], "completion": [USER]}, "completion must be assistant messages"),
        ({"conversations": [{"from": "humann", "value": "x"}]}, r"conversations\[0\].*'human'"),
        ({"conversations": [{"role_": "x"}]}, r"conversations\[0\] must look like"),
        ({"conversations": 3}, "conversations must be a list, not int"),
        ({"instruction": "x", "output": 3}, "output must be a string, not int"),
        ({"instruction": "x", "output": "y", "history": ["z"]}, r"history\[0\]"),
        ({"input_ids": [1, "x"]}, "input_ids must be a list of integers"),
        ({"input_ids": [2, 384]}, r"input_ids\[1\] is 384; the vocabulary has 384 tokens"),
        ({"input_ids": [2, 3], "labels": [3]}, "labels has 1 entries and input_ids 2"),
        ({"input_ids": [2, 3], "labels": [3, -100]}, r"labels\[0\] is 3.*not shifted"),
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
        ({"chosen": [USER, ANSWER], "rejected": [USER]}, "one is only the beginning of the other"),
        ({"chosen": [ANSWER], "rejected": [OTHER]}, "no prompt: .* no beginning in common"),
        ({"chosen": "one", "rejected": [OTHER]}, "both be strings or both be lists"),
        ({"chosen": [USER, ANSWER, USER], "rejected": [USER, OTHER]}, "chosen must be assistant"),
    ],
)
def test_bad_dpo_rows(tokenizer, row, words):
    with pytest.raises(UserError, match=words):
        dpo_encoder(tokenizer, "small")(row)
