"""Outputs taken apart: the recorded cases, the repairs, and no output that breaks it."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma4_jax.text import chat, control, parse
from gemma4_jax.text.arguments import MAX_DEPTH
from tests.text.conftest import cases
from tests.text.conversations import value

OPEN = "<|turn>model\n<|channel>thought\n"
THINKING = "<|turn>system\n<|think|>\n<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n"


def plain(message: parse.Message) -> dict[str, Any]:
    calls = [{"name": c.name, "arguments": c.arguments} for c in message.tool_calls]
    return {"reasoning": message.reasoning, "content": message.content, "tool_calls": calls}


@pytest.mark.parametrize("case", cases("parse.json"), ids=lambda c: c["name"])
def test_recorded_outputs(case: dict) -> None:
    assert (
        plain(parse.parse(case["model_output"], case.get("prompt_text", ""))) == case["suggested"]
    )


@pytest.mark.parametrize(
    ("output", "prompt", "reasoning", "content"),
    [
        ("", "", None, None),
        ("<|channel>thought\n\n<channel|>\n<turn|>", "", None, None),
        ("<|channel>thought\nA\n<channel|>B", "", "A", "B"),
        ("<|channel>thought\nA\n\n<channel|> B \n", "", "A\n", "B"),
        ("<|channel>A<channel|>B", "", "A", "B"),
        ("<|channel>thought<channel|>B", "", None, "B"),
        ("<|channel>thoughtful<channel|>B", "", "thoughtful", "B"),
        ("<|channel>thought\ncut off", "", "cut off", None),
        ("<|channel>thought\ncut<turn|>x", "", "cut", None),
        ("A<channel|>B", OPEN, "A", "B"),
        ("thought\nA<channel|>B", OPEN, "A", "B"),
        ("<|channel>thought\nA<channel|>B", OPEN, "A", "B"),
        ("thought\nA<channel|>B", "<|turn>model\n<|channel>", "A", "B"),
        ("A<channel|>B", f"{OPEN}<channel|>", None, "AB"),
        ("A<channel|>B", THINKING, "A", "B"),
        ("thought\nA<channel|>B", "", "A", "B"),
        ("A<channel|>B", "", None, "AB"),
        ("A<|channel>thought\nx<channel|>B<channel|>C", "", "x", "ABC"),
        ("Hi<turn|>\n<|turn>user\nmore", "", None, "Hi"),
        ("Hi<eos>more", "", None, "Hi"),
        ("Hi<|turn>user", "", None, "Hi"),
        ("<bos>Hi<pad><pad>", "", None, "Hi"),
        ("Hi<tool_call|> there", "", None, "Hi there"),
        ("A<|tool_response>response:f{value:1}<tool_response|>B", "", None, "AB"),
        ("A<|tool_response>", "", None, "A"),
    ],
)
def test_thought_and_content(
    output: str, prompt: str, reasoning: str | None, content: str | None
) -> None:
    assert plain(parse.parse(output, prompt)) == {
        "reasoning": reasoning,
        "content": content,
        "tool_calls": [],
    }


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [
        ("", False),
        (OPEN, True),
        (f"{OPEN}<channel|>", False),
        ("<|channel>thought\nx\n<channel|><|tool_response>response:f{}<tool_response|>", False),
        ("<tool_response|><|channel>thought\n", True),
        ("<|channel>thought\nunclosed<turn|>\n<|turn>model\n", False),
        (THINKING, False),
    ],
)
def test_the_prompt_says_where_the_output_starts(prompt: str, inside: bool) -> None:
    assert (parse.start_of(prompt) is parse.Start.THOUGHT) is inside


@pytest.mark.parametrize(
    ("call", "arguments", "complete"),
    [
        ("call:f(a:1)<tool_call|>", {"a": 1}, True),
        ('call:f(a=1, b="x")<tool_call|>', {"a": 1, "b": "x"}, True),
        ("call:f({a:1})<tool_call|>", {"a": 1}, True),
        (":f{a:1}<tool_call|>", {"a": 1}, True),
        ("f{a:1}<tool_call|>", {"a": 1}, True),
        ("call: f {a:1} <tool_call|>", {"a": 1}, True),
        ("call:f<tool_call|>", {}, True),
        ('call:f{<|"|>a b<|"|>:1}<tool_call|>', {"a b": 1}, True),
        ('call:f{"a":1,\'b\':2}<tool_call|>', {"a": 1, "b": 2}, True),
        ('call:f{"a":"x\\n\\"y\\"","b":[1,"z"]}<tool_call|>', {"a": 'x\n"y"', "b": [1, "z"]}, True),
        ("call:f{a:'x, y',b:2}<tool_call|>", {"a": "x, y", "b": 2}, True),
        ("call:f{a:Austin, TX,b:2}<tool_call|>", {"a": "Austin, TX", "b": 2}, True),
        ("call:f{a:it's,b:[x,y]}<tool_call|>", {"a": "it's", "b": ["x", "y"]}, True),
        ("call:f{a:1,}<tool_call|>", {"a": 1}, True),
        ("call:f{a:[1,2,],b:{}}<tool_call|>", {"a": [1, 2], "b": {}}, True),
        ("call:f{a:1e-3,b:-0.5,c:1E+2,d:007,e:1.,f:-}<tool_call|>",
         {"a": 1e-3, "b": -0.5, "c": 100.0, "d": "007", "e": "1.", "f": "-"}, True),
        ('call:f{a:<|"|>42<|"|>,b:<|"|>true<|"|>,c:true}<tool_call|>',
         {"a": "42", "b": "true", "c": True}, True),
        ('call:f{a:<|"|>x<tool_call|>y } , b:1<|"|>,c:2}<tool_call|>',
         {"a": "x<tool_call|>y } , b:1", "c": 2}, True),
        ('call:f{a:x<|"|>,b:1}<tool_call|>', {"a": "x", "b": 1}, True),
        ('call:f{a:<|"|>x}<tool_call|>', {"a": "x"}, True),
        ('call:f{a:<|"|>x', {"a": "x"}, False),
        ('call:f{a:<|"|>x<|"|>', {"a": "x"}, False),
        ('call:f{a:<|"|>x<|"|><tool_call|>', {"a": "x"}, False),
        ("call:f{a:{b:[1,2<tool_call|>", {"a": {"b": [1, 2]}}, False),
        ("call:f{a:1}}<tool_call|>", {"a": 1}, True),
        ("call:f{", {}, False),
        ("call:f{a:1<turn|>", {"a": 1}, False),
    ],
)  # fmt: skip
def test_calls_and_their_repairs(call: str, arguments: dict[str, Any], complete: bool) -> None:
    message = parse.parse(f"<|tool_call>{call}")
    assert plain(message) == {
        "reasoning": None,
        "content": None,
        "tool_calls": [{"name": "f", "arguments": arguments}],
    }
    assert [type(v) for v in message.tool_calls[0].arguments.values()] == [
        type(v) for v in arguments.values()
    ]
    assert message.tool_calls[0].complete is complete


@pytest.mark.parametrize(
    ("output", "names", "reasoning", "content"),
    [
        ("<|channel>thought\nhm\n<|tool_call>call:f{}<tool_call|>ok", ["f"], "hm", "ok"),
        ("<channel|>call:f{a:1}<tool_call|>", ["f"], None, None),
        ("Sure. call:f{a:1}<tool_call|>", ["f"], None, "Sure."),
        ("Please call:mom{now} today", [], None, "Please call:mom{now} today"),
        ('<|tool_call>call:a{q:<|"|>x}<tool_call|><|tool_call>call:b{r:<|"|>y<|"|>}<tool_call|>',
         ["a", "b"], None, None),
        ("<|tool_call>call:a{x:1}<|tool_call>call:b{}<tool_call|>", ["a", "b"], None, None),
        ("<|tool_call><tool_call|>Hi", [], None, "Hi"),
        ("<|tool_call>call:get_wea", [], None, "call:get_wea"),
        ("<|tool_call>", [], None, None),
    ],
)  # fmt: skip
def test_calls_among_other_text(
    output: str, names: list[str], reasoning: str | None, content: str | None
) -> None:
    message = parse.parse(output)
    assert [call.name for call in message.tool_calls] == names
    assert (message.reasoning, message.content) == (reasoning, content)


def test_nesting_is_bounded() -> None:
    for opener in ("[", "{a:"):
        message = parse.parse("<|tool_call>call:f{a:" + opener * 100_000)
        found, depth = message.tool_calls[0].arguments["a"], 0
        while isinstance(found, dict | list) and found:
            found, depth = (found["a"] if isinstance(found, dict) else found[0]), depth + 1
        assert depth <= MAX_DEPTH


def test_huge_numbers_stay_readable() -> None:
    message = parse.parse("<|tool_call>call:f{a:" + "9" * 5000 + ",b:1e999}<tool_call|>")
    assert message.tool_calls[0].arguments == {"a": "9" * 5000, "b": "1e999"}


MARKUP = st.sampled_from(
    [*control.ALL, "call:", "f", "{", "}", "(", ")", "[", "]", ":", "=", ",", '"', "'", "\\", "a",
     "1", "-", ".", "true", "null", " ", "\n", "thought\n", "response:f{", "\u00e9"]
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.lists(MARKUP, max_size=40).map("".join), st.sampled_from(["", OPEN, THINKING]))
def test_never_raises_and_never_leaks_markup(output: str, prompt: str) -> None:
    message = parse.parse(output, prompt)
    text = (message.content or "") + (message.reasoning or "")
    for token in ("<|channel>", "<channel|>", "<|turn>", "<turn|>", "<tool_call|>", "<eos>"):
        assert token not in text
    chat.render([{"role": "user", "content": "x"}, message.as_dict()])


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_text_without_markup_is_content(text: str) -> None:
    if "<" in text or "call:" in text:
        return
    assert parse.parse(text).content == (text.strip() or None)


def test_adversarial_lengths_stay_linear_enough() -> None:
    """100 000 characters of each kind of trouble; a quadratic scan would not come back."""
    for piece in (
        "<channel|>",
        "call:f{<tool_call|>",
        "'",
        '"',
        ",",
        "a,",
        '<|"|>',
        "<|tool_call>f{",
    ):
        parse.parse("<|tool_call>call:f{a:" + piece * (100_000 // len(piece)))
        parse.parse(piece * (100_000 // len(piece)))
    parse.parse("call:f{" * 14_000 + "<tool_call|>")


@pytest.mark.parametrize("seed", range(5))
def test_rendered_messages_come_back(seed: int) -> None:
    """What the format writes for a message is read back as that message, types included."""
    rng = random.Random(seed)
    for _ in range(60):
        arguments = {name: value(rng, 3) for name in rng.sample(["q", "B", "a", "z_1"], k=3)}
        message = {
            "role": "assistant",
            "content": rng.choice(["", "Done.", "a {b}: [c]\n\nd"]),
            "reasoning": rng.choice(["", "hm", "two\n\nlines\n", "\n  indented"]),
        }
        if rng.random() < 0.7:
            call = {"name": "f", "arguments": arguments}
            message["tool_calls"] = [{"id": "call_0", "type": "function", "function": call}]
        history = [{"role": "user", "content": "x"}]
        whole = chat.render([*history, message], family="small", add_generation_prompt=False)
        prompt = chat.render(history, family="small")
        assert whole.startswith(prompt)
        parsed = parse.parse(whole[len(prompt) :], prompt)
        again = chat.render(
            [*history, parsed.as_dict()], family="small", add_generation_prompt=False
        )
        assert again == whole
        if "tool_calls" in message:
            assert repr(sorted(parsed.tool_calls[0].arguments.items())) == repr(
                sorted(arguments.items())
            ) or _same(parsed.tool_calls[0].arguments, arguments)


def _same(left: Any, right: Any) -> bool:
    """Equal, with equal types; the order of a mapping's keys does not matter."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return left == right


FRAGMENTS = [
    *(control.CHANNEL, control.CHANNEL_END, control.CALL, control.CALL_END, control.QUOTE),
    *(control.RESPONSE, control.RESPONSE_END, control.TURN_END, control.PAD, "<|tool_", "<", "|>"),
    *(
        "thought\n",
        "thought",
        "\n",
        "call:",
        "call:f{a:1}",
        "f{b:",
        "f(c=2)",
        "}",
        "{",
        "'",
        ",",
        " ",
    ),
    *("hm", "Yes.", "call: me", "ca"),
]


def merged(pieces: list[parse.Piece]) -> list[tuple[str, object]]:
    """Neighbouring stretches of one kind as one."""
    whole: list[tuple[str, Any]] = []
    for piece in pieces:
        if whole and piece.call is None and whole[-1][0] == piece.kind:
            whole[-1] = (piece.kind, whole[-1][1] + piece.text)
        else:
            whole.append((piece.kind, piece.call or piece.text))
    return whole


@settings(max_examples=2000, deadline=None)
@given(
    st.lists(st.sampled_from(FRAGMENTS), max_size=12), st.sampled_from([1, 2, 3, 7]), st.booleans()
)
def test_a_stream_adds_up_to_the_whole(words: list[str], size: int, in_thought: bool) -> None:
    """Whatever pieces an output comes in, what is certain early is what the whole is in the end."""
    text = "".join(words)
    start = parse.Start.THOUGHT if in_thought else parse.Start.CONTENT
    at_once, bit_by_bit = parse.Scanner(start), parse.Scanner(start)
    wanted = [*at_once.push(text), *at_once.close()]
    found = [
        piece for i in range(0, len(text), size) for piece in bit_by_bit.push(text[i : i + size])
    ]
    found += bit_by_bit.close()
    assert merged(found) == merged(wanted)
    assert [p.call.complete for p in found if p.call] == [p.call.complete for p in wanted if p.call]


def test_a_stream_shows_text_as_soon_as_it_is_certain() -> None:
    scanner = parse.Scanner()
    assert scanner.push("Hello <") == [parse.Piece("content", "Hello ")]
    assert scanner.push("b, call") == [parse.Piece("content", "<b, ")]
    assert scanner.push("ing: me") == [parse.Piece("content", "calling: me")]
    assert scanner.push("<|tool_call>call:f{a:1") == []
    (piece,) = scanner.push("}<tool_call|>")
    assert piece.call == parse.ToolCall("f", {"a": 1})
    assert scanner.push("<|channel>thought\nhm\n") == [parse.Piece("reasoning", "hm")]
    assert scanner.push("m<channel|>") == [parse.Piece("reasoning", "\nm")]
    assert scanner.close() == []
