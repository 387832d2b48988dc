"""Training examples and pairs: what is a target, and that it continues what inference feeds."""

import random
from typing import Any

import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.text import Tokenizer, chat
from tests.text.conversations import conversation

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello!"}
THOUGHT = {"role": "assistant", "content": "4", "reasoning": "add them"}
CALL = {
    "role": "assistant",
    "tool_calls": [{"id": "c1", "function": {"name": "w", "arguments": {"c": "P"}}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
CALL_TEXT = '<|tool_call>call:w{c:<|"|>P<|"|>}<tool_call|>'
RESULT_TEXT = 'response:w{value:<|"|>sunny<|"|>}<tool_response|>'
THINK = "<bos><|turn>system\n<|think|>\n<turn|>\n"
OPEN = "<|turn>user\nHi<turn|>\n<|turn>model\n"
EMPTY = "<|channel>thought\n<channel|>"

# Targets stand between [[ and ]].
EXPECTED: list[tuple[str, list[dict[str, Any]], dict[str, Any], str]] = [
    ("large", [USER, ANSWER], {}, f"<bos>{OPEN}{EMPTY}[[Hello!<turn|>]]\n"),
    ("small", [USER, ANSWER], {"family": "small"}, f"<bos>{OPEN}[[Hello!<turn|>]]\n"),
    (
        "turns",
        [USER, ANSWER, USER, ANSWER],
        {},
        f"<bos>{OPEN}[[Hello!<turn|>]]\n{OPEN}{EMPTY}[[Hello!<turn|>]]\n",
    ),
    (
        "thought",
        [USER, THOUGHT],
        {},
        f"{THINK}{OPEN}[[<|channel>thought\nadd them\n<channel|>4<turn|>]]\n",
    ),
    (
        "earlier thought is dropped, and so is its turn's target",
        [USER, THOUGHT, USER, THOUGHT],
        {},
        f"{THINK}{OPEN}4<turn|>\n{OPEN}[[<|channel>thought\nadd them\n<channel|>4<turn|>]]\n",
    ),
    (
        "earlier thought, thinking off",
        [USER, THOUGHT, USER, ANSWER],
        {},
        f"<bos>{OPEN}[[4<turn|>]]\n{OPEN}{EMPTY}[[Hello!<turn|>]]\n",
    ),
    (
        "thinking switched off by hand",
        [USER, THOUGHT],
        {"enable_thinking": False},
        f"<bos>{OPEN}{EMPTY}[[4<turn|>]]\n",
    ),
    (
        "thinking on, no thought",
        [USER, ANSWER],
        {"enable_thinking": True},
        f"{THINK}{OPEN}[[Hello!<turn|>]]\n",
    ),
    ("waiting for a tool", [USER, CALL], {}, f"<bos>{OPEN}{EMPTY}[[{CALL_TEXT}<|tool_response>]]"),
    (
        "a tool's answer is no target, nor is what follows the last assistant message",
        [USER, CALL, RESULT, ANSWER, USER],
        {},
        f"<bos>{OPEN}[[{CALL_TEXT}<|tool_response>]]{RESULT_TEXT}[[Hello!<turn|>]]\n",
    ),
    (
        "a thought that the prompt opens after a tool",
        [USER, CALL, RESULT, THOUGHT],
        {},
        f"{THINK}{OPEN}[[{CALL_TEXT}<|tool_response>]]{RESULT_TEXT}<|channel>thought\n"
        "[[add them\n<channel|>4<turn|>]]\n",
    ),
    (
        "an opened thought that stays empty",
        [USER, CALL, RESULT, ANSWER],
        {"enable_thinking": True},
        f"{THINK}{OPEN}[[{CALL_TEXT}<|tool_response>]]{RESULT_TEXT}<|channel>thought\n"
        "[[<channel|>Hello!<turn|>]]\n",
    ),
    (
        "one turn of two messages",
        [USER, ANSWER, ANSWER],
        {},
        f"<bos>{OPEN}{EMPTY}[[Hello!Hello!<turn|>]]\n",
    ),
    (
        "a thought inside the turn, thinking off: shown as a prompt shows it, but not learnt",
        [USER, {**CALL, "reasoning": "need"}, RESULT, ANSWER],
        {"enable_thinking": False},
        f"<bos>{OPEN}<|channel>thought\nneed\n<channel|>[[{CALL_TEXT}<|tool_response>]]"
        f"{RESULT_TEXT}[[Hello!<turn|>]]\n",
    ),
    (
        "thoughts between calls: the prompt opens them, the model writes the rest",
        [USER, CALL, RESULT, {**CALL, "reasoning": "again"}, RESULT, ANSWER],
        {},
        f"{THINK}{OPEN}[[{CALL_TEXT}<|tool_response>]]{RESULT_TEXT}<|channel>thought\n"
        f"[[again\n<channel|>{CALL_TEXT}<|tool_response>]]{RESULT_TEXT}<|channel>thought\n"
        "[[<channel|>Hello!<turn|>]]\n",
    ),
    (
        "two tools, two answers",
        [USER, {**CALL, "tool_calls": CALL["tool_calls"] * 2}, RESULT, RESULT, ANSWER],
        {"family": "small"},
        f"<bos>{OPEN}[[{CALL_TEXT}{CALL_TEXT}<|tool_response>]]{RESULT_TEXT}"
        f"<|tool_response>{RESULT_TEXT}[[Hello!<turn|>]]\n",
    ),
]


def marked(tokenizer: Tokenizer, example: chat.TrainingExample) -> str:
    """The example's text with its targets between brackets."""
    text, inside = "", False
    for token, target in zip(example.tokens, example.loss_mask, strict=True):
        text += ("[[" if target else "]]") if target != inside else ""
        inside = target
        text += tokenizer.decode([token])
    return text + ("]]" if inside else "")


@pytest.mark.parametrize(
    ("messages", "options", "expected"), [e[1:] for e in EXPECTED], ids=[e[0] for e in EXPECTED]
)
def test_targets(
    builtin: Tokenizer, messages: list[dict[str, Any]], options: dict[str, Any], expected: str
) -> None:
    assert marked(builtin, chat.encode_training(builtin, messages, **options)) == expected


CALLING_THOUGHT = {**CALL, "reasoning": "look"}
WROTE = "<|channel>thought\nadd them\n<channel|>4<turn|>"
TURNS: list[tuple[str, list[dict[str, Any]], dict[str, Any], list[str]]] = [
    ("no thought", [USER, ANSWER, USER, ANSWER], {},
     [f"<bos>{OPEN}[[Hello!<turn|>]]\n{OPEN}{EMPTY}[[Hello!<turn|>]]\n"]),
    ("one thought, in the last turn", [USER, ANSWER, USER, THOUGHT], {},
     [f"{THINK}{OPEN}[[Hello!<turn|>]]\n{OPEN}[[{WROTE}]]\n"]),
    ("a thought in every turn", [USER, THOUGHT, USER, THOUGHT, USER, THOUGHT], {}, [
        f"{THINK}{OPEN}[[{WROTE}]]\n",
        f"{THINK}{OPEN}4<turn|>\n{OPEN}[[{WROTE}]]\n",
        f"{THINK}{OPEN}4<turn|>\n{OPEN}4<turn|>\n{OPEN}[[{WROTE}]]\n",
    ]),
    ("turns without a thought are learnt with the last", [USER, ANSWER, USER, THOUGHT, USER, ANSWER], {}, [
        f"{THINK}{OPEN}Hello!<turn|>\n{OPEN}[[{WROTE}]]\n",
        f"{THINK}{OPEN}[[Hello!<turn|>]]\n{OPEN}4<turn|>\n{OPEN}[[Hello!<turn|>]]\n",
    ]),
    ("a turn of several messages is learnt in one place",
     [USER, CALLING_THOUGHT, RESULT, ANSWER, USER, ANSWER], {}, [
        f"{THINK}{OPEN}[[<|channel>thought\nlook\n<channel|>{CALL_TEXT}<|tool_response>]]{RESULT_TEXT}"
        "<|channel>thought\n[[<channel|>Hello!<turn|>]]\n",
        f"{THINK}{OPEN}{CALL_TEXT}<|tool_response>{RESULT_TEXT}Hello!<turn|>\n{OPEN}[[Hello!<turn|>]]\n",
    ]),
    ("thoughts that stay for their calls",
     [USER, CALLING_THOUGHT, RESULT, ANSWER, USER, ANSWER], {"preserve_thinking": True}, [
        f"{THINK}{OPEN}[[<|channel>thought\nlook\n<channel|>{CALL_TEXT}<|tool_response>]]{RESULT_TEXT}"
        f"[[Hello!<turn|>]]\n{OPEN}[[Hello!<turn|>]]\n",
    ]),
    ("thinking off", [USER, THOUGHT, USER, THOUGHT], {"enable_thinking": False},
     [f"<bos>{OPEN}[[4<turn|>]]\n{OPEN}{EMPTY}[[4<turn|>]]\n"]),
    ("a system message, and an answer before any question",
     [{"role": "system", "content": "Hi"}, THOUGHT, USER, ANSWER], {}, [
        f"<bos><|turn>system\n<|think|>\nHi<turn|>\n<|turn>model\n[[{WROTE}]]\n",
        f"<bos><|turn>system\n<|think|>\nHi<turn|>\n<|turn>model\n4<turn|>\n{OPEN}[[Hello!<turn|>]]\n",
    ]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "options", "expected"), [e[1:] for e in TURNS], ids=[e[0] for e in TURNS]
)
def test_every_turn_is_a_target_once(
    builtin: Tokenizer, messages: list[dict[str, Any]], options: dict[str, Any], expected: list[str]
) -> None:
    examples = chat.encode_turns(builtin, messages, **options)
    assert [marked(builtin, example) for example in examples] == expected


@pytest.mark.parametrize("seed", range(3))
def test_turns_learn_as_much_as_there_is(builtin: Tokenizer, seed: int) -> None:
    """Over examples, every call, text and thought of every assistant message is learnt exactly once."""
    rng = random.Random(seed)
    split = 0
    for _ in range(150):
        arguments = conversation(rng)
        for name in ("add_generation_prompt", "enable_thinking"):
            arguments.pop(name, None)
        messages = arguments["messages"]
        while messages and messages[-1]["role"] != "assistant":
            messages.pop()
        if not messages:
            continue
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                message["reasoning"] = f"hmm{number}."
                message["content"] = f"said{number}."
        examples = chat.encode_turns(builtin, **arguments)
        texts = [
            builtin.decode([t for t, m in zip(e.tokens, e.loss_mask, strict=True) if m])
            for e in examples
        ]
        learnt = "".join(texts)
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                assert learnt.count(f"hmm{number}.") == 1, (number, learnt)
                assert learnt.count(f"said{number}.") == 1, (number, learnt)
        split += len(examples) > 1
    assert split > 5


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_both_names_of_a_thought(builtin: Tokenizer, key: str) -> None:
    row = [USER, {"role": "assistant", "content": "4", key: "add them"}]
    assert chat.encode_training(builtin, row) == chat.encode_training(builtin, [USER, THOUGHT])


@pytest.mark.parametrize("family", chat.FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_the_last_turn_continues_what_inference_feeds(
    builtin: Tokenizer, small: Tokenizer, family: str, seed: int
) -> None:
    rng = random.Random(seed)
    seen = 0
    for _ in range(60):
        arguments = conversation(rng)
        arguments.pop("add_generation_prompt")
        messages = arguments["messages"]
        while messages and messages[-1]["role"] != "assistant":
            messages.pop()
        if not messages:
            continue
        begin = len(messages) - 1
        while begin and messages[begin - 1]["role"] == "assistant":
            begin -= 1
        history = {**arguments, "messages": messages[:begin]}
        for tokenizer in (builtin, small):
            example = chat.encode_training(tokenizer, **arguments, family=family)
            prompt = chat.encode_prompt(tokenizer, **history, family=family)
            assert example.tokens[: len(prompt)] == prompt
            rest = example.loss_mask[len(prompt) :]
            # Answers that a message brings along without a call are not the model's words.
            brings = "tool_responses" in messages[begin] and "tool_calls" not in messages[begin]
            assert rest[0] or brings, "the first token after the prompt is the model's"
            assert any(rest)
            ids = [t for t, m in zip(example.tokens, example.loss_mask, strict=True) if m]
            assert tokenizer.token_id("<|turn>") not in ids
            assert tokenizer.token_id("<tool_response|>") not in ids
        seen += 1
    assert seen > 20


def test_small_family_text_is_the_rendered_conversation(builtin: Tokenizer) -> None:
    """Where a prompt ends as history does, the text of an example is the template's own."""
    compared = 0
    for _, messages, options, _ in EXPECTED:
        text = builtin.decode(chat.encode_training(builtin, messages, family="small").tokens)
        thinking = "<|think|>" in text
        opened_by_prompt = thinking and messages[-2]["role"] == "tool"
        if options or messages[-1]["role"] != "assistant" or opened_by_prompt:
            continue
        whole = chat.render(messages, None, thinking, "small", add_generation_prompt=False)
        assert text == whole
        compared += 1
    assert compared >= 7


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER], "no assistant message to train on.*roles here: user"),
        ([], "no assistant message to train on.*none"),
        ([USER, {"role": "gpt", "content": "x"}], "unknown role in .*known: assistant, developer"),
        ([USER, {"role": "assistant", "content": 3}], "not int"),
    ],
)
def test_rows_that_cannot_train(builtin: Tokenizer, messages: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chat.encode_training(builtin, messages)


def test_pair_of_strings(builtin: Tokenizer) -> None:
    prompt, good, bad = chat.encode_pair(builtin, "1+1=", "2", "3<turn|>")
    assert prompt == [2, *builtin.encode("1+1=")]
    assert good == [*builtin.encode("2"), 1]
    assert bad == builtin.encode("3<turn|>")
    assert chat.encode_pair(builtin, "<bos>1+1=", "", "3")[:2] == (prompt, [1])


@pytest.mark.parametrize("family", chat.FAMILIES)
def test_pair_of_messages(builtin: Tokenizer, family: str) -> None:
    prompt, good, bad = chat.encode_pair(
        builtin, [USER], [ANSWER], {**ANSWER, "content": "Go"}, family=family
    )
    assert prompt == chat.encode_prompt(builtin, [USER], family=family)
    assert builtin.decode(good) == "Hello!<turn|>"
    assert builtin.decode(bad) == "Go<turn|>"
    example = chat.encode_training(builtin, [USER, ANSWER], family=family)
    assert example.tokens == [*prompt, *good, *builtin.encode("\n")]


def test_pair_with_a_thought_on_one_side(builtin: Tokenizer) -> None:
    prompt, good, bad = chat.encode_pair(builtin, [USER], [THOUGHT], [ANSWER])
    assert prompt == chat.encode_prompt(builtin, [USER], enable_thinking=True)
    assert builtin.decode(good) == "<|channel>thought\nadd them\n<channel|>4<turn|>"
    assert builtin.decode(bad) == "Hello!<turn|>"


def test_pair_after_a_tool(builtin: Tokenizer) -> None:
    prompt, good, _ = chat.encode_pair(builtin, [USER, CALL, RESULT], [THOUGHT], [ANSWER])
    assert builtin.decode(prompt).endswith("<tool_response|><|channel>thought\n")
    assert builtin.decode(good) == "add them\n<channel|>4<turn|>"


@pytest.mark.parametrize(
    ("prompt", "chosen", "message"),
    [
        ("text", [ANSWER], "not a mix"),
        ([USER], "text", "not a mix"),
        ([USER], [USER], "chosen must be assistant messages.*user"),
        ([USER], [], "chosen must be assistant messages.*none"),
        ([USER], [CALL, RESULT, ANSWER], "chosen must be assistant messages"),
        ([USER], 3, "expected a string or messages, not int"),
    ],
)
def test_pairs_that_cannot_train(
    builtin: Tokenizer, prompt: Any, chosen: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        chat.encode_pair(builtin, prompt, chosen, [ANSWER])
