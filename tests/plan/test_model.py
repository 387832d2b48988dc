"""Costs by arithmetic against the specification, the real trees and caches, traced programs, and
figures that others published."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.chips import CHIPS
from gemma4_jax.config import SLIDING
from gemma4_jax.errors import UserError
from gemma4_jax.model.cache import COMPRESSIONS, init_cache
from gemma4_jax.model.transformer import Transformer, abstract_params, num_params
from gemma4_jax.plan.model import (
    active_parameters,
    cache_bytes,
    count_parameters,
    decode_flops,
    decode_limit,
    make_plan,
    sequence_flops,
    train_limit,
)
from gemma4_jax.presets import PRESETS, preset

RELEASED = ("e2b", "e4b", "12b", "26b-a4b", "31b")
# Section 8 of the specification, in the order of RELEASED.
PARTS = {
    "token_table": (402_653_184, 671_088_640, 1_006_632_960, 738_197_504, 1_409_286_144),
    "per_layer_table": (2_348_810_240, 2_818_572_288, 0, 0, 0),
    "attention": (278_412_288, 587_222_272, 2_406_510_592, 1_110_197_760, 8_477_772_800),
    "mlp": (1_557_135_360, 3_303_014_400, 8_493_465_600, 535_265_280, 20_808_990_720),
    "experts": (0, 0, 0, 22_837_985_280, 0),
    "router": (0, 0, 0, 10_901_760, 0),
    "per_layer_inputs": (27_578_880, 55_157_760, 0, 0, 0),
    "per_layer_context": (13_762_816, 27_525_376, 0, 0, 0),
    "norms": (216_611, 432_682, 741_168, 594_206, 1_295_676),
    "total": (4_628_569_379, 7_463_013_418, 11_907_350_320, 25_233_141_790, 30_697_345_340),
}  # fmt: skip
MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize("name", RELEASED)
def test_parameters_are_those_of_the_specification(name):
    parameters = count_parameters(preset(name))
    for part, counts in PARTS.items():
        assert getattr(parameters, part) == counts[RELEASED.index(name)], part


@pytest.mark.parametrize("name", PRESETS)
def test_the_total_is_that_of_the_parameter_tree(name):
    assert count_parameters(preset(name)).total == num_params(preset(name))


def test_active_and_effective():
    assert round(active_parameters(preset("26b-a4b")) / 1e9, 3) == 3.823
    assert active_parameters(preset("31b")) == count_parameters(preset("31b")).total
    # The model cards' figures include the encoders' parameters outside the text model.
    vision_and_audio = 168_544_256 + 307_183_904
    assert round((count_parameters(preset("e2b")).effective + vision_and_audio) / 1e9, 3) == 2.353


# Section 7: bytes per token in bfloat16, then GiB at 128K and 256K with rings for sliding layers.
@pytest.mark.parametrize(
    ("name", "per_token", "at_128k", "at_256k"),
    [
        ("e2b", 18_432, 6 * MIB + 0.75 * GIB, None),
        ("e4b", 57_344, 20 * MIB + 2 * GIB, None),
        ("12b", 344_064, 320 * MIB + 2 * GIB, 320 * MIB + 4 * GIB),
        ("26b-a4b", 225_280, 200 * MIB + 2.5 * GIB, 200 * MIB + 5 * GIB),
        ("31b", 901_120, 800 * MIB + 10 * GIB, 800 * MIB + 20 * GIB),
    ],
)
def test_cache_is_that_of_the_specification(name, per_token, at_128k, at_256k):
    plan = make_plan(preset(name))
    assert plan.cache_per_token["both"] == per_token
    assert plan.caches["both"][131_072] == at_128k
    assert plan.caches["both"].get(262_144) == at_256k


def test_what_keeping_v_alone_saves_31b_at_256k():
    caches = {
        c: round(cache_bytes(preset("31b"), 262_144, compression=c) / 1e9, 1) for c in COMPRESSIONS
    }
    assert caches == {"value": 11.6, "value+rotated": 14.3, "both": 22.3}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", ["tiny-dense", "tiny-ple", "tiny-moe"])
def test_cache_bytes_are_those_of_the_real_buffers(name, compression):
    for context, dtype in ((20, "float32"), (200, "bfloat16")):  # inside and past the window
        real = init_cache(preset(name), 1, context, jnp.dtype(dtype), compression)
        assert cache_bytes(preset(name), context, dtype, compression) == real.nbytes


@pytest.mark.parametrize("name", ["tiny-dense", "tiny-ple", "tiny-moe"])
def test_flops_are_those_of_the_traced_program(name):
    """Every product that the traced forward pass and head contain, counted by their shapes.

    At 16 tokens the reference attends to all 16 keys from every query, on sliding layers too.
    """
    config, tokens = preset(name), 16
    assert tokens <= config.window
    module = Transformer(config)

    def run(params, ids):
        hidden = module.apply({"params": params}, ids)
        return module.apply({"params": params}, hidden, method="logits")

    ids = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    program = jax.make_jaxpr(run)(abstract_params(config), ids)
    wanted = decode_flops(config, tokens).forward
    if config.moe:  # the weighted sum of the experts' outputs happens to be a product as well
        wanted += config.num_layers * 2 * config.moe.num_experts_per_token * config.d_model
    assert product_flops(program.jaxpr) == tokens * wanted


def product_flops(jaxpr) -> int:
    """FLOPs of all matrix products of a program, those inside loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        out = [v.aval for v in equation.outvars]
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * out[0].size * math.prod(left[i] for i in contracted)
        elif name.startswith("ragged_dot"):
            total += 2 * out[0].size * equation.invars[0].aval.shape[-1]
        else:
            times = params["length"] if name == "scan" else 1
            total += times * sum(product_flops(inner) for inner in inner_programs(params))
    return total


def inner_programs(params) -> Iterator:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


@pytest.mark.parametrize("name", ["tiny-dense", "tiny-ple"])
@pytest.mark.parametrize("tokens", [1, 20, 32, 75])
def test_a_sequence_averages_its_tokens(name, tokens):
    config = preset(name)
    each = [decode_flops(config, position + 1) for position in range(tokens)]
    got = sequence_flops(config, tokens)
    assert math.isclose(got.attention, np.mean([flops.attention for flops in each]))
    assert {got.matrices} == {flops.matrices for flops in each}
    assert got.training == 3 * got.forward


# MaxText's published runs (AI-Hypercomputer/tpu-recipes, June 2026): TFLOP/s and tokens/s per chip.
@pytest.mark.parametrize(
    ("name", "tokens", "teraflops", "tokens_per_second"),
    [
        ("e2b", 8192, 892.8, 57_874),
        ("e4b", 8192, 1002.5, 33_755),
        ("26b-a4b", 4096, 592.3, 23_656),
        ("31b", 8192, 1057.8, 5_371),
    ],
)
def test_training_flops_are_those_others_published(name, tokens, teraflops, tokens_per_second):
    published = teraflops * 1e12 / tokens_per_second
    assert math.isclose(sequence_flops(preset(name), tokens).training, published, rel_tol=2e-4)


def test_decode_limit_is_the_one_others_measured_against():
    # vLLM on one H100 serves one user of 31B at 40 tokens/s, reported as 74 % of the limit.
    limit = decode_limit(preset("31b"), CHIPS["h100"], context=1024)
    assert (limit.chips, limit.bound) == (1, "bandwidth")
    assert math.isclose(40 / limit.tokens_per_second, 0.74, abs_tol=0.015)


def test_decoding_reads_what_it_needs():
    chip, moe, dense = CHIPS["tpu7x"], preset("26b-a4b"), preset("12b")
    one, many = (decode_limit(moe, chip, 1024, batch) for batch in (1, 64))
    # One token meets 8 of 128 experts; 64 tokens meet nearly all of them, and cost far less than 64 steps.
    assert one.seconds_per_step * chip.bandwidth < 2 * 1.1 * active_parameters(moe)
    assert many.seconds_per_step < 16 * one.seconds_per_step
    # The dense model reads the same weights for both, and shares them.
    first, second = (decode_limit(dense, chip, 1, batch) for batch in (1, 2))
    assert math.isclose(first.seconds_per_step, second.seconds_per_step, rel_tol=1e-3)
    assert decode_limit(dense, chip, 1, 4096).bound == "compute"


def test_shared_layers_read_the_cache_they_borrow():
    config, chip = preset("e2b"), CHIPS["v5e"]
    own = replace(config, num_kv_shared_layers=0, double_wide_mlp=False, d_ff=config.d_ff)
    context = 131_072
    grown = (
        decode_limit(config, chip, context).seconds_per_step
        - decode_limit(config, chip, 1).seconds_per_step
    )
    full = (
        decode_limit(own, chip, context).seconds_per_step
        - decode_limit(own, chip, 1).seconds_per_step
    )
    assert math.isclose(grown, full, rel_tol=1e-3)
    assert cache_bytes(config, context) < cache_bytes(own, context) / 2


def test_training_needs_chips_for_its_state():
    limit = train_limit(preset("31b"), CHIPS["v5p"], 8192)
    assert limit.chips == math.ceil(16 * 30_697_345_340 / (95 * GIB)) == 5
    flops = sequence_flops(preset("31b"), 8192).training
    assert math.isclose(limit.tokens_per_second_per_chip, 459e12 / flops)


def test_a_plan_is_plain_data():
    plan = make_plan(preset("tiny-moe"), context=100, batch=3)
    data = json.loads(json.dumps(plan.as_dict()))
    assert data["parameters"]["total"] == num_params(preset("tiny-moe"))
    assert data["training"]["total"] == 16 * data["parameters"]["total"]
    assert data["flops"]["training"] == pytest.approx(3 * data["flops"]["forward"])
    assert data["caches"]["value"]["100"] == cache_bytes(preset("tiny-moe"), 100)
    assert set(data["decode_limits"]) == set(data["train_limits"]) == set(CHIPS)
    assert data["config"]["layer_types"].count(SLIDING) == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"context": 0}, "from 1 to 1024"),
        ({"context": 1025}, "from 1 to 1024"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"dtype": "int3"}, "unknown dtype 'int3'"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(UserError, match=words):
        make_plan(preset("tiny-dense"), **arguments)


def test_an_encoder_has_no_plan():
    with pytest.raises(UserError, match="encoder"):
        make_plan(replace(preset("tiny-dense"), bidirectional="all"))
