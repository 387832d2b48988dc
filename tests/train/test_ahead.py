"""Steps compiled for TPUs that are not there. Needs libtpu (`pip install "jax[tpu]"`); else skipped.

The tiny twins show that every part compiles for a TPU. $GEMMA4_AHEAD=all adds the real sizes, a minute or more
of CPU each: that they fit, and what devices send each other.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from gemma4_jax import ahead
from gemma4_jax.errors import UserError

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason='needs libtpu, to compile for TPUs: pip install "jax[tpu]"',
)
real_sizes = pytest.mark.skipif(
    os.environ.get("GEMMA4_AHEAD") != "all",
    reason="real sizes take minutes of CPU to compile; GEMMA4_AHEAD=all",
)
VOCAB, GIB = 262_144, 2**30


def compiled(words, module="train.ahead"):
    """The report of a compilation in a process of its own, and what it said on stderr."""
    command = [sys.executable, "-m", module, *words.split(), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout), done.stderr


def moved(report, *operations):
    """Exchanges of these operations."""
    return [one for one in report["collectives"] if one["operation"] in operations]


def sizes(one):
    return [int(size) for size in one["shape"].partition("[")[2].rstrip("]").split(",") if size]


def test_without_libtpu_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "jax\[tpu\]"'):
        ahead.prepare()


def test_what_a_program_asked_for_is_read_from_the_compilers_complaint():
    message = "Used 36.53G of 15.75G hbm. Exceeded hbm capacity by 20.78G."
    assert ahead._asked(
        f"RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. {message}"
    ) == (round(36.53 * GIB))
    message = (
        "the total memory required for HLO temporaries (36.53G) exceeds available HBM (15.75G)"
    )
    assert ahead._asked(f"RESOURCE_EXHAUSTED: Ran out of memory on HBM, {message}") == (
        round(36.53 * GIB)
    )


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    "words, operations",
    [
        ("sft tiny-moe --topology v5e-8 --mesh fsdp=2,expert=4", {"ragged-all-to-all"}),
        ("sft tiny-dense --topology v5e-8 --mesh seq=4,tensor=2", {"collective-permute"}),
        ("dpo tiny-ple --lora 4 --topology v5e-8", {"all-reduce"}),
    ],
)
def test_every_part_compiles_for_a_tpu(words, operations):
    report, _ = compiled(f"{words} --seq 256 --batch 8")
    assert report["fits"] and 0 < report["argument_bytes"] <= report["peak_bytes"] < GIB * 8
    assert operations <= {one["operation"] for one in report["collectives"]}
    assert report["estimated_seconds"] is None


def decoding(words):
    return compiled(words, "gemma4_jax.commands.decode_ahead")[0]


@needs_libtpu
@pytest.mark.slow
def test_decoding_compiles_for_a_tpu_and_no_cache_travels():
    report = decoding(
        "tiny-dense --topology v5e-8 --seq 512 --batch 4 --mesh data=2,seq=2,tensor=2"
    )
    assert report["fits"] and 0 < report["cache_bytes"] < report["argument_bytes"]
    assert {one["operation"] for one in report["collectives"]} >= {"all-reduce", "all-gather"}
    # The largest is a device's ids and probabilities of the most likely tokens, or one token's activations.
    assert max(one["bytes"] for one in report["collectives"]) < report["cache_bytes"] / 4


@needs_libtpu
@real_sizes
@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "e2b --topology v5e-8 --seq 131072 --batch 8 --mesh data=8",
        "e4b --topology v5e-8 --seq 131072 --batch 4 --mesh data=4,tensor=2",
        "12b --topology v5e-8 --seq 262144 --batch 1 --mesh seq=2,tensor=4",
        "26b-a4b --topology v5p-8 --seq 262144 --batch 4 --mesh expert=4",
        "31b --topology v5p-8 --seq 262144 --batch 1 --mesh seq=4",
    ],
)
def test_decoding_at_the_longest_context_fits(words):
    report = decoding(words)
    assert report["fits"], report["peak_bytes"] / GIB
    assert max(one["bytes"] for one in report["collectives"]) < 2**18 < report["cache_bytes"]


@needs_libtpu
@real_sizes
@pytest.mark.slow
def test_31b_at_8k_fits_and_gathers_a_layer_at_a_time():
    report, said = compiled(
        "sft 31b --topology v5p-128 --seq 8192 --batch 16 --mesh fsdp=16,tensor=4"
    )
    assert report["fits"] and report["peak_bytes"] < 40 * GIB
    assert "Involuntary full rematerialization" not in said
    d_model, widest = 5376, 21504 // 4
    for one in moved(report, "all-gather", "all-reduce", "reduce-scatter"):
        if VOCAB // 4 in sizes(one):  # the loss's part of the table
            continue
        # One matrix of one layer, of a device's part of `tensor`; activations that `tensor` sums.
        assert one["bytes"] <= 2 * 4 * max(d_model * widest, 8192 * d_model), one
    assert not any(VOCAB in sizes(one) and 8192 in sizes(one) for one in report["collectives"])


@needs_libtpu
@real_sizes
@pytest.mark.slow
def test_31b_at_256k_moves_halos_and_shards():
    report, _ = compiled(
        "sft 31b --topology v5p:4x8x8 --seq 262144 --batch 4 --mesh fsdp=4,seq=16,tensor=4"
    )
    assert report["fits"]
    over_seq = [one for one in report["collectives"] if one["axes"] == ["seq"]]
    # Gradients are summed over `seq`; of rows nothing is, and nothing is gathered.
    assert {one["operation"] for one in over_seq} == {"collective-permute", "all-reduce"}
    shapes = {one["shape"] for one in moved(report, "collective-permute") if one in over_seq}
    halo, d_model, tile = "1,1023", 5376, "32,1,512"  # W - 1; a shard is 32 tiles
    assert shapes == {
        *(f"{kind}[{halo},4,256]" for kind in ("bf16", "f32")),  # K, V of sliding layers; gradients
        f"s32[{halo}]",
        *(f"{kind}[{tile},1,{width}]" for kind in ("bf16", "f32") for width in (512, 128)),
        f"s32[{tile}]",  # V, K's rotated slice and facts, around the ring
        f"bf16[1,8192,{d_model}]",  # half of the hidden states, back in order
        "s32[1,8192]",  # ids and positions, into the order of the ring
    }


@needs_libtpu
@real_sizes
@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "sft 26b-a4b --topology v5p-128 --seq 8192 --batch 64 --mesh fsdp=4,expert=16",
        "sft e2b --topology v5e-8 --seq 2048 --batch 8",
        "sft e4b --topology v5e-16 --seq 2048 --batch 16",
        "dpo 31b --lora 16 --topology v5p-8 --seq 2048 --batch 4",
        "dpo 26b-a4b --lora 8 --topology v5e-16 --seq 1024 --batch 16 --mesh fsdp=1,expert=-1",
    ],
)
def test_the_other_models_fit(words):
    report, said = compiled(words)
    assert report["fits"], report["peak_bytes"] / GIB
    assert "Involuntary full rematerialization" not in said
