"""Outputs in parts and as token ids: the same message in every chunking, and nothing that breaks the parser."""

import copy
import itertools
import json
import os
import random

import pytest

from gemma4_jax.text import chat, control, parse
from gemma4_jax.text.parse import Start
from gemma4_jax.text.token_parse import TokenScanner, parse_tokens, start_of
from gemma4_jax.text.tools import signatures
from tests.text.conftest import cases
from tests.text.test_parse import OPEN, THINKING, merged, plain

#: GEMMA4_FUZZ=100000 for the long run and every chunking of longer outputs (some 3 CPU minutes).
FUZZED = int(os.environ.get("GEMMA4_FUZZ", "10000"))

LONGEST_PART = 12 if FUZZED < 100_000 else 10_000

QUOTE = control.QUOTE
FORMAT = (control.CHANNEL, control.CHANNEL_END, control.TURN_END, control.CALL_END)
ODD = [
    "thought\nhm<channel|>Yes",
    "thought\nhm",
    "thou",
    "hm<channel|>Yes",
    "Sure. call:f{a:1}<tool_call|>ok call:g",
    f"<|tool_call>call:f{{a:{QUOTE}x<tool_call|>y{QUOTE}}}<tool_call|>z",
    f"<|tool_call>call:f{{a:{QUOTE}x<tool_call|><|tool_call>call:g{{b:{QUOTE}y{QUOTE}}}<tool_call|>",
    '<|tool_call>call:f{a:"x<tool_call|>y"}<tool_call|>',
    "<|tool_call>call:f{a:'x<tool_call|>y'}<tool_call|>",
    f"<|tool_call>call:f{{a:{QUOTE}x<tool_call|>",
    "<|channel>thought\nhm\n<|tool_call>call:f{}<tool_call|><|tool_response>",
    "A<|tool_response>response:f{}<tool_response|>B<|tool_response>C",
    "<bos>Hi<pad>\n<turn|>more",
]


def written(case):
    """(prompt, output) of every turn that the assistant has in a conversation of the prompt vectors."""
    kept = {k: case[k] for k in ("tools", "enable_thinking")} | case["extra_kwargs"]
    messages = case["messages"]
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or (i and messages[i - 1]["role"] == "assistant"):
            continue
        end = next(
            (j for j in range(i, len(messages)) if messages[j]["role"] in ("user", "system")),
            len(messages),
        )
        try:
            prompt = chat.render(messages[:i], family="small", **kept)
            whole = chat.render(messages[:end], family="small", add_generation_prompt=False, **kept)
        except ValueError:  # the case with arguments that are refused
            continue
        assert whole.startswith(prompt)
        yield prompt, whole[len(prompt) :]


OUTPUTS = [
    *((case.get("prompt_text", ""), case["model_output"]) for case in cases("parse.json")),
    *itertools.chain.from_iterable(map(written, cases("prompt.json"))),
    *itertools.product(("", OPEN, THINKING), ODD),
]


def state(scanner):
    """What the future of a scanner depends on."""
    fields = vars(scanner)
    return fields | {"_text": fields["_text"][fields["_at"] :], "_at": 0}


@pytest.mark.parametrize(("prompt", "output"), OUTPUTS)
def test_every_chunking_gives_the_same_message(prompt: str, output: str) -> None:
    """By induction: from the state after any beginning, any next part leads to the state, and has given
    the pieces, that the same text letter by letter does. So all 2^(n-1) chunkings end alike (in the short
    run: those into parts of at most 12 letters, with or without a last one of any length)."""
    scanner, given = parse.Scanner(parse.start_of(prompt)), []
    after = [(copy.copy(scanner), [])]
    for letter in output:
        given = [*given, *scanner.push(letter)]
        after.append((copy.copy(scanner), given))
    for (i, (then, before)), j in itertools.product(enumerate(after), range(len(after))):
        if 0 < j - i <= LONGEST_PART or j == len(output) > i:
            other = copy.copy(then)
            pieces = before + other.push(output[i:j])
            assert state(other) == state(after[j][0])
            assert merged(pieces) == merged(after[j][1])
    whole = parse.parse(output, prompt)
    assert plain(parse.assemble([*given, *scanner.close()])) == plain(whole)


@pytest.mark.parametrize(("prompt", "output"), OUTPUTS)
def test_ids_give_the_message_of_their_text(builtin, prompt: str, output: str) -> None:
    ids, before = builtin.encode(output), builtin.encode(prompt)
    assert start_of(builtin, before) is parse.start_of(prompt)
    assert plain(parse_tokens(builtin, ids, before)) == plain(parse.parse(output, prompt))


@pytest.mark.parametrize("case", cases("prompt.json"), ids=lambda c: c["name"])
def test_the_start_is_read_off_the_prompt(builtin, case) -> None:
    for ids, text in (
        ("expected_ids", "expected_prompt"),
        ("expected_ids_small", "expected_prompt_small"),
    ):
        if case.get(ids):
            assert start_of(builtin, case[ids]) is parse.start_of(case[text])


def test_what_spells_a_control_token_is_text(builtin, small) -> None:
    said = 'A turn ends with <turn|>, a call is <|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|>.'
    for tokenizer in (builtin, small):
        ids = tokenizer.encode(said, control=False)
        assert plain(parse_tokens(tokenizer, ids)) == {
            "reasoning": None,
            "content": said,
            "tool_calls": [],
        }
        call = tokenizer.encode(f"<|tool_call>call:f{{a:{QUOTE}")
        call += tokenizer.encode(said, control=False) + tokenizer.encode(f"{QUOTE}}}<tool_call|>")
        (found,) = parse_tokens(tokenizer, call).tool_calls
        assert found.arguments == {"a": said}
        # A user who spells the opener of a thought does not open one.
        asked = chat.encode_prompt(tokenizer, [{"role": "user", "content": "<|channel>thought\n"}])
        assert start_of(tokenizer, asked) is Start.CONTENT


def test_pieces_come_with_their_tokens(builtin) -> None:
    scanner = TokenScanner(builtin)
    given = [scanner.push(i) for i in builtin.encode("<|channel>thought\nhm\n<channel|>Yes <b")]
    assert [piece.text for piece in itertools.chain(*given)] == ["hm", "Yes", " <", "b"]
    # Half a character is held back, and a control token ends it.
    begun = builtin.backend.find("<0xE2>")
    assert scanner.push(begun) == []
    call = builtin.encode("<|tool_call>call:f{}<tool_call|>")
    pieces = [piece for i in call for piece in scanner.push(i)]
    assert [(p.text, p.call and p.call.name) for p in pieces] == [("\ufffd", None), ("", "f")]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "type": "object",
                "properties": {
                    "s": {"type": "string"},
                    "t": {"type": "STRING"},
                    "n": {"type": "integer"},
                },
            },
        },
    }
]


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("f{s:007,n:007}", {"s": "007", "n": "007"}),
        ("f{s:12,n:12}", {"s": "12", "n": 12}),
        ("f{n:1,s:true}", {"n": 1, "s": "true"}),
        ("f{s:a, b: c, d=1,n:2}", {"s": "a, b: c, d=1", "n": 2}),
        ("f{n:2,s:if (x) { y[1]; }}", {"n": 2, "s": "if (x) { y[1]; }"}),
        ("f{s:{a},t:[b}", {"s": "{a}", "t": "[b"}),
        ("f{s:'it',t:\"is\"}", {"s": "it", "t": "is"}),
        (f"f{{s:x{QUOTE},n:1}}", {"s": "x", "n": 1}),
        (f"f{{s:{QUOTE}5{QUOTE}}}", {"s": "5"}),
        ("f{n:{s:5}}", {"n": {"s": 5}}),
        ("g{s:5}", {"s": 5}),
    ],
)
def test_a_bare_value_of_a_string_argument_is_that_string(call: str, arguments: dict) -> None:
    text = f"<|tool_call>call:{call}<tool_call|>"
    (found,) = parse.parse(text, signatures=signatures(TOOLS)).tool_calls
    assert found.arguments == arguments and found.complete
    assert [type(v) for v in found.arguments.values()] == [type(v) for v in arguments.values()]


def test_half_a_surrogate_pair_is_no_text() -> None:
    (call,) = parse.parse(
        '<|tool_call>call:f{"\\ud800":"\\udfff x \\ud83d\\ude00"}<tool_call|>'
    ).tool_calls
    assert call.arguments == {"\ufffd": "\ufffd x \U0001f642"[:-1] + "\U0001f600"}


WORDS = [
    *control.ALL, *("{", "}", "[", "]", "(", ")", ",", ":", "=", '"', "'", "\\", "\n", "thought\n"),
    *("call:", "f{a:", "1e999", "-0.5", "NaN", "null", "\\ud800", "\\u00e9", "\u20ac", "<", "|>"),
]  # fmt: skip


def mutated(rng: random.Random, text: str, other: str) -> str:
    """A text with a few parts dropped, doubled, moved, replaced, or crossed with another."""
    for _ in range(rng.randint(1, 4)):
        i, j = sorted(rng.randint(0, len(text)) for _ in range(2))
        k = rng.randint(0, len(other))
        match rng.randrange(6):
            case 0:
                text = text[:i] + text[j:]
            case 1:
                text = text[:j] + text[i:]
            case 2:
                text = text[:i] + rng.choice(WORDS) + text[i:]
            case 3:
                text = text[:i] + rng.choice(WORDS) + text[j:]
            case 4:
                text = text[:i] + other[k:]
            case 5:
                text = text[j:] + text[i:j] + text[:i]
    return text[:400]


def test_mutated_outputs_never_break_the_parser(builtin) -> None:
    """Never an exception, never arguments that are no JSON, no markup that a message would carry on, and
    the same message in parts, by ids and at once."""
    rng = random.Random(5)
    known = signatures(TOOLS)
    texts = [output for _, output in OUTPUTS]
    prompts = {prompt: parse.start_of(prompt) for prompt in ("", OPEN, THINKING)}
    for n in range(FUZZED):
        prompt = rng.choice(list(prompts))
        declared = known if n % 3 == 0 else None
        output = mutated(rng, rng.choice(texts), rng.choice(texts))
        whole = list(parse.scan(output, prompt, declared))
        message = parse.assemble(whole)
        for call in message.tool_calls:
            json.dumps({call.name: call.arguments}, allow_nan=False, ensure_ascii=False).encode()
        # (What remains on both sides of an absorbed token may spell one: text, which never becomes one.)
        for piece in whole:
            assert not any(name in piece.text for name in FORMAT), output
        scanner, pieces, at = parse.Scanner(prompts[prompt], declared), [], 0
        while at < len(output):
            size = rng.randint(1, 12)
            pieces += scanner.push(output[at : at + size])
            at += size
        pieces += scanner.close()
        assert plain(parse.assemble(pieces)) == plain(message), output
        if n % 20 == 0:
            ids = builtin.encode(output)
            by_id = parse_tokens(builtin, ids, builtin.encode(prompt), declared)
            assert plain(by_id) == plain(message), output
