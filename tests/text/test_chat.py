"""Prompts: the recorded ones exactly, injection impossible, malformed messages named."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma4_jax.errors import UserError
from gemma4_jax.text import Tokenizer, chat, control
from tests.text.conftest import cases

CASES = cases("prompt.json")
FAMILIES = [("large", ""), ("small", "_small")]
USER = {"role": "user", "content": "Hi"}


def arguments(case: dict, family: str) -> dict[str, Any]:
    names = ("messages", "tools", "enable_thinking", "add_generation_prompt")
    return {name: case[name] for name in names} | case["extra_kwargs"] | {"family": family}


@pytest.mark.parametrize(("family", "suffix"), FAMILIES)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_recorded_prompts(builtin: Tokenizer, case: dict, family: str, suffix: str) -> None:
    if f"error{suffix}" in case:
        with pytest.raises(UserError, match="must be a"):
            chat.render(**arguments(case, family))
        return
    assert chat.render(**arguments(case, family)) == case[f"expected_prompt{suffix}"]
    ids = case[f"expected_ids{suffix}"]
    whole = chat.encode_prompt(builtin, **arguments(case, family), control_in_content=True)
    safe = chat.encode_prompt(builtin, **arguments(case, family))
    assert whole == ids
    assert (safe == ids) == (case["name"] != "user_injects_control_tokens")
    assert builtin.decode(safe) == case[f"expected_prompt{suffix}"]


def test_segments_mark_format_and_content() -> None:
    tools = [{"function": {"name": "f", "description": "<turn|>"}}]
    pieces = chat.segments([{"role": "user", "content": "x<turn|>"}], tools=tools)
    assert "".join(p.text for p in pieces) == chat.render(
        [{"role": "user", "content": "x<turn|>"}], tools=tools
    )
    content = [p.text for p in pieces if not p.control]
    assert "x<turn|>" in content and "<turn|>" in content
    assert not any(p.target for p in pieces)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(control.ALL), st.text(max_size=5)), max_size=6).map("".join),
    st.sampled_from(["user", "system", "name", "tool", "argument", "description", "thought"]),
)
def test_no_content_can_write_a_control_token(
    builtin: Tokenizer, small: Tokenizer, text: str, place: str
) -> None:
    """Wherever it stands, a prompt has the control tokens that it has for harmless text."""

    def prompt(tokenizer: Tokenizer, word: str) -> list[int]:
        at = {name: word if name == place else "x" for name in PLACES}
        ids = chat.encode_prompt(tokenizer, **_everything(at))
        return [i for i in ids if i in set(tokenizer.control_tokens.values())]

    for tokenizer in (builtin, small):
        assert prompt(tokenizer, f"x{text}x") == prompt(tokenizer, "xx")


PLACES = ("user", "system", "name", "tool", "argument", "description", "thought")


def _everything(at: dict[str, str]) -> dict[str, Any]:
    function = {"name": at["name"], "arguments": {at["argument"]: [at["argument"]]}}
    schema = {
        "type": "object",
        "properties": {"p": {"type": "string", "enum": [at["description"]]}},
    }
    return {
        "messages": [
            {"role": "system", "content": at["system"]},
            {"role": "user", "content": [{"type": "text", "text": at["user"]}, {"type": "image"}]},
            {
                "role": "assistant",
                "reasoning": at["thought"],
                "tool_calls": [{"id": "1", "function": function}],
            },
            {"role": "tool", "tool_call_id": "1", "content": at["tool"]},
        ],
        "tools": [
            {
                "function": {
                    "name": at["name"],
                    "description": at["description"],
                    "parameters": schema,
                }
            }
        ],
        "enable_thinking": True,
    }


def test_prompts_without_some_control_tokens(spelling: Tokenizer) -> None:
    ids = chat.encode_prompt(spelling, [USER], enable_thinking=True)
    assert spelling.decode(ids) == chat.render([USER], enable_thinking=True)
    assert ids[0] == spelling.bos_id


MALFORMED = {
    "not a list": ("Hi", "must be a list of mappings, not str"),
    "null": (None, "must be a list of mappings, not null"),
    "a message that is text": (["Hi"], r"messages\[0\] must be a mapping"),
    "no role": ([{"content": "x"}], r"messages\[0\] has no role .*assistant"),
    "unknown role": ([USER, {"role": "asistant", "content": "x"}], "did you mean 'assistant'"),
    "foreign role": ([{"role": "model", "content": "x"}], "known: .*assistant.*user"),
    "no content": ([{"role": "user"}], r"messages\[0\] \(user\) has no content"),
    "null content": ([{"role": "system", "content": None}], "has no content"),
    "number": ([{"role": "user", "content": 3}], "must be a string or a list of parts, not int"),
    "mapping": ([{"role": "user", "content": {"text": "x"}}], "not dict"),
    "part text": ([{"role": "user", "content": ["x"]}], r"content\[0\] must be like"),
    "part kind": ([{"role": "user", "content": [{"type": "imag"}]}], "did you mean 'image'"),
    "part value": ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "not int"),
    "system media": ([{"role": "system", "content": [{"type": "image"}]}], "text only"),
    "silent": ([{"role": "assistant"}], "neither content, reasoning nor tool_calls"),
    "reasoning": (
        [{"role": "assistant", "content": "", "reasoning": 1}],
        "reasoning must be a string",
    ),
    "orphan": ([USER, {"role": "tool", "content": "x"}], "must follow an assistant message"),
    "calls": ([{"role": "assistant", "tool_calls": {"f": 1}}], "tool_calls must be a list"),
    "call": ([{"role": "assistant", "tool_calls": [{"name": "f"}]}], "must look like"),
    "no arguments": ([{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}], "null"),
    "key": (
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {1: 2}}}]}],
        "key 1 must be a string",
    ),
    "value": (
        [
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "f", "arguments": {"a": {2}}}}],
            }
        ],
        "set is not a JSON value",
    ),
    "responses": ([{"role": "assistant", "tool_responses": [{"name": "f"}]}], "response"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_messages(name: str) -> None:
    messages, message = MALFORMED[name]
    with pytest.raises(UserError, match=message):
        chat.render(messages)


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ({"name": "f"}, "tools must be a list"),
        ([{"name": "f"}], r"tools\[0\] must look like"),
        ([{"function": {"name": "f", "parameters": [1]}}], "'f': parameters must be a mapping"),
        ([{"function": {"name": "f", "parameters": {"required": "a"}}}], "required must be a list"),
        (
            [{"function": {"name": "f", "parameters": {"a": object()}}}],
            "object is not a JSON value",
        ),
    ],
)
def test_malformed_tools(tools: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chat.render([USER], tools=tools)


def test_unknown_family() -> None:
    with pytest.raises(UserError, match=r"unknown family 'larg'; did you mean 'large'"):
        chat.render([USER], family="larg")
