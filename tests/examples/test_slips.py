"""Demonstrations with slips, and the requests behind them."""

from itertools import islice

import pytest

from examples.arithmetic.problems import LARGEST
from examples.verifiable_loop.requests import TOOLS, distinct_calls, requests
from examples.verifiable_loop.slips import demonstrations
from gemma4_jax.text.chat import render
from gemma4_jax.text.parse import parse
from gemma4_jax.verify.answers import final_number


def rows(share):
    found = list(demonstrations(800, share, seed=3, every=2))
    return [r for r in found if "tools" not in r], [r for r in found if "tools" in r]


def called(row):
    return row["messages"][-1]["tool_calls"][0]["function"]["arguments"]


def test_without_slips_every_call_keeps_its_schema():
    jsonschema = pytest.importorskip("jsonschema")
    sums, calls = rows(0.0)
    for row in calls:
        jsonschema.validate(called(row), row["tools"][0]["function"]["parameters"])
    for row in sums:
        answer = row["messages"][-1]
        assert answer["reasoning"].endswith(f"= {answer['content']}")


def test_a_share_of_the_demonstrations_is_wrong_in_ways_that_a_verifier_sees():
    jsonschema = pytest.importorskip("jsonschema")
    whole, _ = rows(0.0)
    sums, calls = rows(0.5)
    wrong = 0
    for row in calls:
        schema = jsonschema.Draft202012Validator(row["tools"][0]["function"]["parameters"])
        wrong += not schema.is_valid(called(row))
    assert 0.4 < wrong / len(calls) < 0.6
    assert [r["messages"][0] for r in whole] == [r["messages"][0] for r in sums]
    differ = [a["messages"][1] != b["messages"][1] for a, b in zip(whole, sums, strict=True)]
    assert 0.4 < sum(differ) / len(differ) < 0.6
    for row in sums:
        said = final_number(row["messages"][-1]["content"])
        assert said is not None and 1 <= said <= LARGEST


def test_a_call_comes_out_of_its_text_as_it_went_in():
    for request in islice(requests("train", 0), 20):
        row = request.call_row(request.arguments)
        text = render(row["messages"], tools=row["tools"], add_generation_prompt=False)
        (call,) = parse(text.split("<|turn>model\n")[-1]).tool_calls
        assert (call.name, call.arguments) == (request.tool, request.arguments)
        assert request.tool in TOOLS


def test_no_call_is_on_both_sides():
    sides = [
        {(r.tool, *r.arguments.values()) for r in islice(requests(split, 0), 2000)}
        for split in ("train", "held-out")
    ]
    assert sides[0].isdisjoint(sides[1]) and min(map(len, sides)) > 100


def test_held_out_requests_are_for_calls_of_their_own():
    found = distinct_calls("held-out", 300, seed=0)
    assert len({request.call for request in found}) == 300
    assert [r for r in islice(requests("held-out", 0), 5) if r not in found] == []
    with pytest.raises(ValueError, match="there are 312 held-out calls"):
        distinct_calls("held-out", 313, seed=0)
