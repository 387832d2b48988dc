"""Decoding over a mesh gives each prompt the tokens that one device gives it, and no cache travels."""

import numpy as np
import pytest

from gemma4_jax.checkpoint import load
from gemma4_jax.errors import UserError
from gemma4_jax.hlo import travels
from gemma4_jax.sample import Sampler, programs
from gemma4_jax.sample.engine import Engine
from gemma4_jax.sharding import DECODING_RULES, RULES
from tests.oracle.cases import load_case
from tests.sample.meshes import over

CASES = [
    ("dense", "value", {"data": 8}),
    ("dense", "value", {"seq": 4, "tensor": 2}),
    ("dense", "both", {"seq": 2, "tensor": 4}),  # twice as many devices as K/V heads
    ("dense", "value+rotated", {"fsdp": 2, "seq": 4}),
    ("ple", "value", {"tensor": 4}),  # one K/V head
    ("ple", "value", {"data": 2, "fsdp": 2, "seq": 2}),
    ("moe", "value", {"expert": 8}),
    ("moe", "value", {"expert": 2, "seq": 2, "tensor": 2}),
]
# As a run has its parameters while it trains, and what is best for decoding: for half of the cases each.
PLACES = [RULES, DECODING_RULES]
# 21 prompt tokens and 24 new ones: rings of 8 go round, and full layers reach every device of `seq`.
NEW = 24


def prompts(case):
    company = [case.vectors["input_ids"][1, :n].tolist() for n in (1, 33, 9)]
    return [company[0], case.vectors["greedy_prompt"][0].tolist(), *company[1:]]


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_tokens_are_those_of_one_device_and_of_transformers(number):
    name, compression, sizes = CASES[number]
    case = load_case(name)
    model = load(case.folder)
    options = {"cache_compression": compression, "prefill_chunk": 16}
    found, alone = (
        Sampler(one, **options).generate(prompts(case), NEW, ignore_eos=True)
        for one in (over(model, sizes, PLACES[number % 2]), model)
    )
    assert found[1].tokens == case.vectors["greedy_tokens"].tolist()[:NEW]
    for on_mesh, on_one in zip(found, alone, strict=True):
        assert on_mesh.tokens == on_one.tokens
        # On one device, too, other rows beside it change a row's log-probabilities by up to 4e-5.
        np.testing.assert_allclose(on_mesh.logprobs, on_one.logprobs, rtol=0, atol=1e-4)


def test_sampled_tokens_do_not_depend_on_the_mesh():
    case = load_case("dense")
    model = load(case.folder)
    options = {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "seed": 3, "ignore_eos": True}
    found, alone = (
        Sampler(one, prefill_chunk=16).generate(prompts(case), 8, **options)
        for one in (over(model, {"data": 2, "seq": 2, "tensor": 2}), model)
    )
    assert [c.tokens for c in found] == [c.tokens for c in alone]


@pytest.mark.parametrize(
    ("name", "sizes"), [("dense", {"seq": 4, "tensor": 2}), ("moe", {"expert": 4, "tensor": 2})]
)
def test_a_step_moves_a_few_numbers_a_token_never_cache_or_weights(monkeypatch, name, sizes):
    """The largest thing that travels is a row of logits or of activations; of experts, their tokens' rows."""
    case = load_case(name)
    model = over(load(case.folder), sizes)
    seen = {}
    for name in ("prefill_chunk", "decode_steps"):
        program = getattr(programs, name)

        def spy(module, *args, name=name, program=program, **options):
            lowered = program.lower(module, *args, **options)
            seen.setdefault(name, (lowered.compile(), args[1]))
            return program(module, *args, **options)

        monkeypatch.setattr(programs, name, spy)
    Sampler(model, prefill_chunk=16).generate(prompts(case), 4, ignore_eos=True)
    config = model.config
    active = config.moe.num_experts_per_token if config.moe else 1
    for name, (compiled, state) in seen.items():
        tokens = 4 * (16 if name == "prefill_chunk" else 1)
        heads = config.num_heads * config.global_head_dim
        widest = max(2 * active * config.d_model, heads, config.vocab_size)
        for (_, shape), _ in travels(compiled.as_text()).items():
            numbers = np.prod([int(n) for n in shape[shape.index("[") + 1 : -1].split(",") if n])
            assert numbers <= tokens * widest, (name, shape)
        if "seq" in sizes:
            # Full layers hold a quarter of the positions on each device, and a head of two.
            full = state.cache.entries[0][1]["value"]
            assert full.sharding.shard_shape(full.shape)[3:5] == (full.shape[3] // 4, 1)
        assert compiled.memory_analysis().alias_size_in_bytes > 0  # written in place


@pytest.mark.parametrize(
    ("name", "sizes", "dtype"),
    [
        ("dense", {"seq": 4, "tensor": 2}, None),
        ("ple", {"tensor": 4}, None),
        ("moe", {"seq": 2, "tensor": 2}, None),
        ("dense", {"seq": 2, "tensor": 4}, None),  # more devices than K/V heads
        ("dense", {"data": 4}, "int8"),
        ("ple", {"fsdp": 2}, None),
        ("moe", {"expert": 2, "data": 2}, None),
        ("dense", {"data": 2, "seq": 2, "tensor": 2}, None),
    ],
)
def test_an_engine_over_a_mesh(name, sizes, dtype):
    case = load_case(name)
    model = load(case.folder)
    options = {"max_slots": 4, "max_tokens": 512, "page_size": 8, "prefill_tokens": 32}
    engine = Engine(over(model, sizes), cache_dtype=dtype, **options)
    streams = [engine.submit(p, max_new_tokens=NEW, ignore_eos=True) for p in prompts(case)]
    found = [stream.result() for stream in streams]
    # What has been rounded depends on where a prompt was cut in chunks.
    other = Sampler(model) if dtype is None else Engine(model, cache_dtype=dtype, **options)
    alone = other.generate(prompts(case), max_new_tokens=NEW, ignore_eos=True)
    for on_mesh, on_one in zip(found, alone, strict=True):
        assert on_mesh.tokens == on_one.tokens
        np.testing.assert_allclose(on_mesh.logprobs, on_one.logprobs, rtol=0, atol=1e-4)


def test_beams_over_a_mesh_that_cuts_rows_heads_and_positions():
    case = load_case("moe")
    model = load(case.folder)
    options = {"max_slots": 8, "max_tokens": 512, "page_size": 4, "prefill_tokens": 32}
    prompt, stop_ids = case.vectors["input_ids"][1, :19].tolist(), list(range(3, 250, 9))[:16]
    found, alone = (
        Engine(one, **options).beam_search(prompt, 4, max_new_tokens=14, stop_ids=stop_ids)
        for one in (over(model, {"expert": 2, "seq": 2, "tensor": 2}), model)
    )
    assert [one.tokens for one in found] == [one.tokens for one in alone]
    for on_mesh, on_one in zip(found, alone, strict=True):
        np.testing.assert_allclose(on_mesh.logprobs, on_one.logprobs, rtol=0, atol=1e-4)


def test_engines_say_over_what_they_run():
    model = load(load_case("dense").folder)
    with pytest.raises(UserError, match="page_size"):
        Engine(over(model, {"seq": 4}), page_size=6, max_tokens=600)
