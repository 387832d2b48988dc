"""Calls that must be, must not be, or are of one tool: in the native syntax, with the declared types."""

import json

import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.sample.call_grammar import call_grammar
from gemma4_jax.sample.constraints import Constraint
from gemma4_jax.sample.matcher import compile_constraint
from gemma4_jax.sample.tool_choice import constraint_of, forbidden_ids, read_choice
from gemma4_jax.text import Tokenizer, chat, control
from gemma4_jax.text.token_parse import parse_tokens

pytest.importorskip("llguidance", reason="pip install -e '.[dev]'")


def tool(name, properties=None, required=()):
    parameters = {"type": "object", "properties": properties or {}, "required": list(required)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


WEATHER = tool(
    "weather",
    {
        "location": {"type": "STRING", "maxLength": 6},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "Unit": {"enum": ["celsius", "fahrenheit"]},
    },
    ["location", "days"],
)
TOOLS = [WEATHER, tool("now"), tool("auto", {"x": {"type": "boolean"}}, ["x"])]
ASK = [{"role": "user", "content": "3 apples"}]


def calls_of(sampler, completion):
    message = parse_tokens(sampler.model.tokenizer, completion.tokens)
    assert message.content is None and message.reasoning is None
    assert all(call.complete for call in message.tool_calls)
    return message.tool_calls


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", "now", "auto"}),
        ("weather", {"weather"}),
        ({"type": "function", "function": {"name": "auto"}}, {"auto"}),
    ],
)
def test_calls_that_must_be(wide, choice, names):
    done = wide.generate(
        [ASK] * 8, max_new_tokens=120, temperature=1.5, tools=TOOLS, tool_choice=choice
    )
    seen = set()
    for completion in done:
        if completion.finish_reason != "stop":
            continue
        found = calls_of(wide, completion)
        assert 1 <= len(found) <= (8 if choice == "required" else 1)
        for call in found:
            seen.add(call.name)
            if call.name == "weather":
                given = call.arguments
                assert isinstance(given["location"], str) and len(given["location"]) <= 6
                assert type(given["days"]) is int and 1 <= given["days"] <= 7
                assert given.get("Unit", "celsius") in ("celsius", "fahrenheit")
                assert set(given) <= {"location", "days", "Unit"}
            elif call.name == "auto":
                assert type(call.arguments["x"]) is bool
    assert seen and seen <= names
    if choice != "required":
        assert seen == names


def test_calls_that_must_not_be(wide):
    names = wide.model.tokenizer.control_tokens
    marks = {names[control.CALL], names[control.CALL_END]}
    assert set(forbidden_ids("none", wide.model.tokenizer)) == marks
    options = dict(max_new_tokens=60, temperature=50.0, ignore_eos=True, tools=TOOLS)
    free = wide.generate([ASK] * 16, **options)
    none = wide.generate([ASK] * 16, tool_choice="none", **options)
    assert any(marks & set(c.tokens) for c in free)
    assert not any(marks & set(c.tokens) for c in none)


def accepted(tokenizer, functions, text, most=1):
    """Whether the grammar of these functions takes all of a text and may end after it."""
    grammar = call_grammar([f["function"] for f in functions], tokenizer, most)
    matcher = compile_constraint(
        Constraint(kind="lark", text=grammar, calls=True),
        tokenizer,
        vocab_size=tokenizer.vocab_size,
        stop_ids=tokenizer.stop_ids,
    )
    ids = [*tokenizer.encode(text), tokenizer.control_tokens[control.RESPONSE]]
    return matcher.accepts(ids) == len(ids)


def one(schema):
    return [tool("f", {"a": schema}, ["a"])]


Q = control.QUOTE
THREE = {"b": {"type": "integer"}, "A": {"type": "integer"}, "c": {}}
RECURSIVE = {
    "$defs": {
        "t": {
            "type": "object",
            "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/t"}}},
        }
    },
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/t"}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "values", "others"),
    [
        ({"type": "string"}, [f"{Q}{Q}", f'{Q}a "q" {{x}}, y:\n\\z{Q}'], ["a", "1", '"a"']),
        ({"type": "string", "minLength": 2, "maxLength": 3}, [f"{Q}éb{Q}"], [f"{Q}a{Q}", f"{Q}abcd{Q}"]),
        ({"type": "string", "pattern": "^a/[b$]+$"}, [f"{Q}a/b${Q}"], [f"{Q}xa/b{Q}"]),
        ({"type": "string", "pattern": r"^\d[\w/]\n?$"},
         [f"{Q}1_{Q}", f"{Q}2/\n{Q}"], [f"{Q}௪a{Q}", f"{Q}1é{Q}"]),
        ({"type": "string", "pattern": "b+"}, [f"{Q}abba{Q}"], [f"{Q}aa{Q}"]),
        ({"type": "integer"}, ["0", "-12"], ["1.5", "007", f"{Q}1{Q}"]),
        ({"type": "number"}, ["0", "-1.5e-3"], ["1.", "true"]),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 2}, ["0.25", "2"], ["0", "3"]),
        ({"type": "boolean"}, ["true", "false"], ["True", f"{Q}true{Q}"]),
        ({"type": ["integer", "null"]}, ["1", "null"], ["true"]),
        ({"type": "string", "nullable": True}, ["null", f"{Q}x{Q}"], ["1"]),
        ({"anyOf": [{"type": "boolean"}, {"const": {"b": [1, "x"], "A": None}}]},
         ["true", f"{{A:null,b:[1,{Q}x{Q}]}}"], ["{A:null}", "1"]),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["1", f"{Q}1{Q}"], ["true"]),
        ({"enum": ["", "a", 1, 2.5, None, True]}, [f"{Q}{Q}", f"{Q}a{Q}", "1", "2.5", "null", "true"], ["2"]),
        ({"type": "array", "items": {"type": "integer"}}, ["[]", "[1]", "[1,2,3]"], ["[1 ,2]", "[true]"]),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
         ["[1,2]", "[1,2,3]"], ["[]", "[1]", "[1,2,3,4]"]),
        ({"type": "array", "items": {"type": "boolean"}, "maxItems": 1}, ["[]", "[true]"], ["[true,true]"]),
        ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "boolean"}]}, ["[1,true]"], ["[1]"]),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ["{}", "{x:1,y:2}"], ["{x:true}"]),
        ({"type": "object", "additionalProperties": False}, ["{}"], ["{x:1}"]),
        ({"type": "object", "properties": THREE},
         ["{}", "{A:1}", "{b:1,c:2}", "{A:1,b:2,c:[{x:null}]}"], ["{b:1,A:2}", "{,b:1}", "{d:1}"]),
        ({"type": "object", "properties": THREE, "required": ["b"]},
         ["{b:1}", "{A:1,b:2}", "{b:1,c:true}"], ["{}", "{A:1}", "{c:true}"]),
        ({"type": "object", "properties": {"two words": {"type": "integer"}}}, [f"{{{Q}two words{Q}:1}}"], []),
        ({}, [f"{Q}x{Q}", "1", "null", f"[true,{{k:{Q}v{Q}}}]"], ["x"]),
    ],
)  # fmt: skip
def test_arguments_of_every_kind(tokenizer, schema, values, others):
    for value in values:
        text = f"<|tool_call>call:f{{a:{value}}}<tool_call|>"
        assert accepted(tokenizer, one(schema), text), value
        (call,) = parse_tokens(tokenizer, tokenizer.encode(text)).tool_calls
        json.dumps(call.arguments, allow_nan=False)
    for value in others:
        assert not accepted(
            tokenizer, one(schema), f"<|tool_call>call:f{{a:{value}}}<tool_call|>"
        ), value


def test_what_the_format_writes_is_accepted():
    """Calls as they stand in prompts, in the format's own order of arguments; Gemma's vocabulary."""
    builtin = Tokenizer.builtin()
    given = {"location": 'a"}{', "days": 3, "Unit": "celsius"}
    call = {"function": {"name": "weather", "arguments": given}}
    message = {"role": "assistant", "content": "", "tool_calls": [call, call]}
    text = chat.render([*ASK, message], tools=TOOLS, add_generation_prompt=False)
    written = text[text.rindex("<|turn>model\n") :]
    written = written[written.index(control.CALL) : written.rindex(control.CALL_END)]
    written += control.CALL_END
    assert written.count("call:weather{days:3,location:") == 2
    assert accepted(builtin, TOOLS, written, most=2)
    assert not accepted(builtin, TOOLS, written, most=1)


def test_schemas_that_contain_themselves(tokenizer):
    function = {"function": {"name": "f", "parameters": RECURSIVE}}
    text = "<|tool_call>call:f{a:{kids:[{},{kids:[]}]}}<tool_call|>"
    assert accepted(tokenizer, [function], text)


@pytest.mark.parametrize(
    ("choice", "tools", "message"),
    [
        ("wether", TOOLS, "'wether'; did you mean 'weather'"),
        ({"function": {"name": "wether"}}, TOOLS, "did you mean 'weather'"),
        ("required", None, "needs tools"),
        ("now", None, "unknown tool"),
        (7, TOOLS, "tool_choice must be auto"),
        ("a b", [tool("a b")], "no way to write this name"),
        ("f", one({"type": "text"}), "tool 'f'.*unknown type 'text'"),
        ("f", one(False), "what it requires is false"),
        ("f", one({"not": {}}), "tool 'f'.*#/properties/a: 'not'"),
        ("f", one({"type": "string", "pattern": "^a|b$"}), r"write it as \^\(\.\.\.\)\$"),
        ("f", one({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "overlap"),
        ("f", one({"type": "array", "minItems": 3, "maxItems": 2}), "minItems 3"),
        ("f", one({"$ref": "#/properties/a"}), "no finite value"),
        ("f", [tool("f", {}, ["x"])], "required 'x'"),
    ],
)  # fmt: skip
def test_what_cannot_be_called_is_one_line(tokenizer, choice, tools, message):
    with pytest.raises(UserError, match=message) as caught:
        constraint_of(choice, tools, tokenizer)
    assert "\n" not in str(caught.value)


def test_modes_are_read_before_names():
    assert read_choice("auto", ["auto"]) == "auto"
    assert read_choice({"function": {"name": "auto"}}, ["auto"]) == "named"
