"""Constrained rows take the best of what is allowed, end where they may, and leave others alone."""

import dataclasses
import json
import random
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.model.transformer import logical_axes
from gemma4_jax.sample import Sampler, constraints, guidance, programs
from gemma4_jax.sample.constraints import choices, grammar, json_schema, regex
from gemma4_jax.sample.matcher import Phase, compile_constraint
from gemma4_jax.sample.sampling import Filters, sample, unpacked
from gemma4_jax.sharding import DECODING_RULES, make_mesh, shardings
from gemma4_jax.text import Tokenizer, control
from gemma4_jax.text.huggingface_json import save_huggingface_tokenizer
from gemma4_jax.text.parse import Start
from tests.sample.test_sampling import settings

pytest.importorskip("llguidance", reason="pip install -e '.[dev]'")

PERSON = json_schema(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "n": {"type": "integer", "minimum": 3, "maximum": 40},
            "kinds": {"type": "array", "items": {"enum": ["a", "bb"]}, "maxItems": 3},
        },
        "required": ["name", "n"],
        "additionalProperties": False,
    }
)
CODE = regex(r"[0-9]{3}-[a-f]{2,3}")
ANSWER = choices(["yes", "yes, but", "no"])
SUM = grammar('start: TERM ("+" TERM)+\nTERM: /[0-9]{1,2}/')
KINDS = (PERSON, CODE, ANSWER, SUM)


@pytest.fixture(scope="module")
def start(tokenizer):
    """start(constraint, **settings) -> a matcher over the tiny vocabulary."""

    def call(constraint, **given):
        given = {"vocab_size": 512, "stop_ids": tokenizer.stop_ids} | given
        return compile_constraint(constraint, tokenizer, **given)

    return call


def ids_of(mask) -> list[int]:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def walk(matcher, rng, most=60) -> list[int]:
    """Random allowed ids, to an end or for some steps."""
    tokens = []
    while not matcher.finished and len(tokens) < most:
        tokens.append(rng.choice(ids_of(matcher.mask())))
        matcher.push(tokens[-1])
    return tokens


def keeps(constraint, text) -> bool:
    """A finished text keeps its constraint, as other means than ours see it."""
    if constraint is PERSON:
        value = json.loads(text)
        assert not re.search(r"[{,:]\s", text)
        return len(value["name"]) <= 6 and 3 <= value["n"] <= 40
    if constraint is CODE:
        return re.fullmatch(r"[0-9]{3}-[a-f]{2,3}", text) is not None
    if constraint is ANSWER:
        return text in ("yes", "yes, but", "no")
    return re.fullmatch(r"[0-9]{1,2}(\+[0-9]{1,2})+", text) is not None


def test_masks_equal_logits_that_are_shut_out():
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 2, (6, 300)).astype(np.float32)
    allowed = rng.random((6, 300)) < 0.1
    allowed[:, 17] = True
    words = np.packbits(np.pad(allowed, ((0, 0), (0, 20))), axis=1, bitorder="little").view(
        np.int32
    )
    assert words.shape == (6, 10)
    np.testing.assert_array_equal(unpacked(jnp.asarray(words), 300), allowed)
    blocked = np.zeros(300, bool)
    blocked[:9] = True
    rows, step = settings(6, [0, 1, 1, 2, 0.5, 9], 20, 0.9, 0.01), jnp.arange(6, dtype=jnp.int32)
    everything = dict(sampled=True, top_k=True, top_p=True, min_p=True)
    for filters in (Filters(), Filters(**everything), Filters(**everything, candidates=64)):
        one = jax.jit(sample, static_argnames="filters")
        drawn = one(logits, rows, step, filters=filters, blocked=blocked, mask=words)
        shut = np.where(allowed & ~blocked, logits, -np.inf)
        wanted = one(shut, rows, step, filters=filters)
        np.testing.assert_array_equal(drawn.token, wanted.token)
        whole = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
        own = whole[np.arange(6), np.asarray(drawn.token)]
        np.testing.assert_allclose(drawn.logprob, own, atol=2e-6)


def test_greedy_rows_equal_whole_passes(sampler, model, start):
    """Against a plain loop: the full forward, what the mask shuts out at -inf, the best of the rest."""
    prompts = [[5, 9, 40], [60, 7], [33] * 17, [90]]
    done = sampler.generate(prompts, max_new_tokens=14, constraint=list(KINDS))
    for prompt, constraint, completion in zip(prompts, KINDS, done, strict=True):
        matcher, ids = start(constraint), list(prompt)
        while not matcher.finished and len(ids) < len(prompt) + 14:
            padded = np.zeros((1, 32), np.int32)
            padded[0, : len(ids)] = ids
            segment = (np.arange(32) < len(ids))[None].astype(np.int32)
            logits = np.asarray(model.logits(padded, segment_ids=segment)[0, len(ids) - 1])
            allowed = ids_of(matcher.mask())
            ids.append(max(allowed, key=lambda i: logits[i]))
            matcher.push(ids[-1])
        assert completion.tokens == ids[len(prompt) :]
        assert completion.finish_reason == ("stop" if matcher.finished else "length")


def test_sampled_rows_keep_their_constraints_and_leave_others_alone(sampler):
    kinds = [*KINDS, None] * 6
    prompts = [[3 + i, 7, 5 + 2 * i] for i in range(len(kinds))]
    options = dict(max_new_tokens=40, temperature=1.0, seed=list(range(len(kinds))))
    done = sampler.generate(prompts, constraint=kinds, **options)
    free = sampler.generate(prompts, **options)
    ended = 0
    for constraint, completion, alone in zip(kinds, done, free, strict=True):
        if constraint is None:
            assert completion.tokens == alone.tokens
        elif completion.finish_reason == "stop":
            ended += 1
            assert keeps(constraint, completion.text)
    assert ended > 18, ended
    (streamed,) = [sampler.stream(prompts[1], constraint=CODE, **options | {"seed": 1})]
    assert "".join(streamed) == done[1].text
    (single,) = sampler.generate(prompts[1], constraint=CODE, **options | {"seed": [1]})
    assert single.tokens == done[1].tokens


def test_a_limit_that_cuts_is_told_from_an_end(sampler):
    (cut,) = sampler.generate("1", max_new_tokens=3, constraint=CODE)
    assert cut.finish_reason == "length" and len(cut.tokens) == 3
    (whole,) = sampler.generate("1", max_new_tokens=12, constraint=CODE)
    assert whole.finish_reason == "stop" and keeps(CODE, whole.text)
    # The stop id needs a token of its own: all but that is a text that nothing has ended.
    (almost,) = sampler.generate("1", max_new_tokens=len(whole.tokens) - 1, constraint=CODE)
    assert almost.finish_reason == "length" and almost.text == whole.text


def test_over_a_mesh_the_tokens_are_the_same(model, sampler):
    mesh = make_mesh({"data": 4, "seq": 2})
    places = shardings(logical_axes(model.config), model.params, mesh, DECODING_RULES)
    spread = dataclasses.replace(model, params=jax.device_put(model.params, places))
    options = dict(max_new_tokens=12, constraint=[PERSON, CODE, None])
    prompts = [[5, 9, 40], [60, 7], [33] * 17]
    found = Sampler(spread, prefill_chunk=16, max_batch=8).generate(prompts, **options)
    alone = sampler.generate(prompts, **options)
    assert [c.tokens for c in found] == [c.tokens for c in alone]


def test_unconstrained_batches_compile_nothing_new(sampler):
    sampler.generate([[5], [6]], max_new_tokens=4)
    before = programs.decode_steps._cache_size(), programs.finish_prefill._cache_size()
    sampler.generate([[5], [6]], max_new_tokens=4, constraint=[CODE, None])
    sampler.generate([[5], [6]], max_new_tokens=4, constraint=[None, SUM])
    sampler.generate([[5], [6]], max_new_tokens=4)
    assert programs.decode_steps._cache_size() == before[0]
    assert programs.finish_prefill._cache_size() == before[1] + 1  # the one with a mask


@pytest.mark.parametrize("constraint", KINDS)
def test_tokens_can_be_taken_back(start, constraint):
    """After any rollback a matcher is as one that never went further, its copies are its own."""
    rng = random.Random(7)
    for begin in (Start.CONTENT, Start.EITHER, Start.THOUGHT):
        matcher = start(constraint, start=begin)
        tokens: list[int] = []
        for _ in range(12):
            tokens += walk(matcher, rng, rng.randint(0, 9))
            twin = matcher.copy()
            back = rng.randint(0, len(tokens))
            matcher.rollback(back)
            kept, gone = tokens[: len(tokens) - back], tokens[len(tokens) - back :]
            fresh = start(constraint, start=begin)
            for token in kept:
                fresh.push(token)
            assert matcher.phase is fresh.phase
            np.testing.assert_array_equal(matcher.mask(), fresh.mask())
            assert matcher.accepts(gone) == len(gone)
            assert twin.finished or twin.mask().any()
            tokens = kept
        with pytest.raises(ValueError, match="cannot be taken back"):
            matcher.rollback(len(tokens) + 1)


def test_drafts_are_accepted_as_far_as_they_keep_the_constraint(start, tokenizer):
    matcher = start(CODE)
    draft = [*tokenizer.encode("12"), *tokenizer.encode("x"), *tokenizer.encode("3")]
    assert matcher.accepts(draft) == 2
    stop = tokenizer.control_tokens[control.TURN_END]
    whole = [*tokenizer.encode("123-abc", control=False), stop]
    assert matcher.accepts([*whole, 9]) == len(whole)
    assert matcher.phase is Phase.ANSWER
    with pytest.raises(UserError, match="not what the constraint allows"):
        matcher.push(stop)


def test_stop_ids_come_only_where_the_grammar_may_end(start, tokenizer):
    ends = {tokenizer.control_tokens[name] for name in (control.TURN_END, control.EOS)}
    matcher = start(ANSWER)
    assert not ends & set(ids_of(matcher.mask()))
    for token in tokenizer.encode("yes", control=False):
        matcher.push(token)
    comma = set(tokenizer.encode(",", control=False))
    found = set(ids_of(matcher.mask()))
    assert ends < found and comma <= found
    # Waiting for a tool is no way to end an answer.
    assert tokenizer.control_tokens[control.RESPONSE] not in found
    for token in tokenizer.encode(", but", control=False):
        matcher.push(token)
    assert set(ids_of(matcher.mask())) == ends


def test_a_thought_comes_first_and_is_free(start, tokenizer):
    names = tokenizer.control_tokens
    opener, closer = names[control.CHANNEL], names[control.CHANNEL_END]
    either = start(CODE, start=Start.EITHER)
    assert set(ids_of(either.mask())) == {opener, *ids_of(start(CODE).mask())}
    within = start(CODE, start=Start.THOUGHT)
    either.push(opener)
    np.testing.assert_array_equal(either.mask(), within.mask())
    free = set(ids_of(within.mask()))
    assert closer in free and len(free) > 300
    assert not free & {*tokenizer.stop_ids, opener, names[control.CALL], names[control.TURN]}
    assert max(free) < tokenizer.vocab_size
    for token in tokenizer.encode("yes, 12", control=False):
        within.push(token)
    within.push(closer)
    np.testing.assert_array_equal(within.mask(), start(CODE).mask())
    assert within.phase is Phase.ANSWER


def test_with_thinking_on_only_what_follows_is_constrained(sampler, model):
    names = model.tokenizer.control_tokens
    messages = [{"role": "user", "content": "3"}]
    done = sampler.generate(
        [messages] * 24,
        max_new_tokens=60,
        temperature=50.0,
        constraint=ANSWER,
        enable_thinking=True,
    )
    thoughts = 0
    for completion in done:
        tokens = completion.tokens
        if tokens[0] == names[control.CHANNEL]:
            thoughts += 1
            if names[control.CHANNEL_END] not in tokens:
                continue
            tokens = tokens[tokens.index(names[control.CHANNEL_END]) + 1 :]
        if completion.finish_reason == "stop":
            assert keeps(ANSWER, model.tokenizer.decode(tokens[:-1]))
    assert 0 < thoughts < 24, thoughts


def test_both_kinds_of_tokenizer_file_allow_the_same(tokenizer, tmp_path, start):
    save_huggingface_tokenizer(tokenizer, tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    other = Tokenizer.load(tmp_path)
    assert type(other.backend) is not type(tokenizer.backend)
    rng = random.Random(3)
    for constraint in KINDS:
        matcher = start(constraint)
        same = compile_constraint(constraint, other, vocab_size=512, stop_ids=other.stop_ids)
        while not matcher.finished:
            np.testing.assert_array_equal(matcher.mask(), same.mask())
            token = rng.choice(ids_of(matcher.mask()))
            matcher.push(token)
            same.push(token)


def test_what_a_grammar_forces_is_written_as_the_tokenizer_would(start, tokenizer):
    text = "apples and pears"
    matcher = start(choices([text]))
    tokens = walk(matcher, random.Random(0))
    assert tokens[:-1] == tokenizer.encode(text, control=False)


BAD = [
    (lambda: json_schema("{"), "not JSON"),
    (lambda: json_schema("[]"), "must be an object"),
    (lambda: json_schema(False), "nothing satisfies"),
    (lambda: json_schema({"type": "integer", "minimum": 5, "maximum": 3}), r"minimum \(5\).*maximum \(3\)"),
    (lambda: json_schema({"type": "strin"}), "strin"),
    (lambda: json_schema({"properties": {"a": {"not": {}}}}), "#/properties/a: 'not'"),
    (lambda: json_schema({"items": {"uniqueItems": True}}), "#/items: 'uniqueItems'"),
    (lambda: json_schema({"properties": []}), "#/properties must be an object"),
    (lambda: json_schema({"enum": "a"}), "#/enum must be a list"),
    (lambda: json_schema({"const": 2**53 + 1}), "#/const.*beyond 2.53"),
    (lambda: json_schema({"type": "object", "minProperties": 2}), "minProperties 2"),
    (lambda: json_schema({"$ref": "#/$defs/a"}), "points to nothing"),
    (lambda: json_schema({"$ref": "http://x.y"}), "within the schema"),
    (lambda: json_schema({"$ref": "#"}), "no finite value.*# always contains itself"),
    (
        lambda: json_schema(
            {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
        ),
        "no finite value",
    ),
    (lambda: json_schema({"type": "string", "pattern": "("}), "unclosed group"),
    (lambda: json_schema({"type": "string", "pattern": "^a$", "minLength": 2}), "[Rr]egex is empty"),
    (lambda: json_schema({"type": "string", "format": "colour"}), "colour"),
    (lambda: regex(""), "not empty"),
    (lambda: regex("("), "regex \"\\(\": unclosed group"),
    (lambda: regex("(?=a)b"), "look-around"),
    (lambda: regex(r"[^\s\S]"), "nothing satisfies"),
    (lambda: choices([]), "at least one"),
    (lambda: choices("ab"), "list"),
    (lambda: choices(["a", ""]), "not empty"),
    (lambda: grammar(" "), "empty"),
    (lambda: grammar("start: other"), "other"),
    (lambda: grammar("start: <nobody>"), "nobody"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BAD)
def test_what_cannot_be_kept_is_refused_in_one_line(sampler, make, message):
    with pytest.raises(UserError, match=message) as caught:
        sampler.generate("1", max_new_tokens=4, constraint=make())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_schemas_that_contain_themselves_and_end_are_kept(start):
    tree = {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
                "required": ["kids"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    }
    matcher = start(json_schema(tree))
    walk(matcher, random.Random(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore_eos": True}, "stop id"),
        ({"stop_ids": []}, "stop id"),
        ({"stop_ids": [300]}, "300 is no control token"),
        ({"stop": "x"}, "stop string"),
        ({"constraint": [CODE, CODE]}, "2 values for 1 prompts"),
        ({"tool_choice": "required", "tools": [{"function": {"name": "f"}}]}, "drop one"),
    ],
)
def test_options_that_contradict_a_constraint(sampler, options, message):
    with pytest.raises(UserError, match=message):
        sampler.generate([[3]], max_new_tokens=4, **{"constraint": CODE} | options)


def test_a_model_without_tokenizer_cannot_be_constrained(model):
    bare = Sampler(dataclasses.replace(model, tokenizer=None), prefill_chunk=16, max_batch=8)
    with pytest.raises(UserError, match="no tokenizer"):
        bare.generate([[3]], max_new_tokens=4, constraint=CODE)


def test_ten_thousand_stop_strings_are_too_many(sampler):
    with pytest.raises(UserError, match="10000 stop strings are more than 64"):
        sampler.generate("1", stop=[f"s{i}" for i in range(10_000)])


def test_without_the_library_the_line_says_how_to_get_it(start, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    guidance._compiled.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'gemma4_jax\[constrained\]'"):
        start(constraints.regex("a+"))
