"""`gemma4 plan`: presets, config.json, folders; text and JSON."""

import json
import sys

import pytest

from gemma4_jax.commands.plan_compiled import compile_ahead
from gemma4_jax.errors import UserError
from gemma4_jax.hf_config import config_to_hf
from gemma4_jax.plan.memory import bytes_by_part, peak
from gemma4_jax.plan.model import count_parameters, make_plan
from gemma4_jax.plan.speed import step_time
from gemma4_jax.plan.traffic import exchanges
from gemma4_jax.plan.workload import Workload, sizes_of
from gemma4_jax.presets import PRESETS, preset
from gemma4_jax.topology import parse


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_page(run, name):
    result = run("plan", name)
    total = f"{count_parameters(preset(name)).total:,}".replace(",", " ")
    assert result.code == 0 and result.err == ""
    for part in (total, "training step", "h100", "GiB at"):
        assert part in result.out
    assert ("active per token" in result.out) == (preset(name).moe is not None)
    assert ("value+rotated" in result.out) == preset(name).k_eq_v
    assert max(map(len, result.out.splitlines())) <= 125


def test_the_page_shows_the_plan(run):
    plan = make_plan(preset("31b"), context=32_768, batch=4)
    out = run("plan", "31b", "--context", "32768", "--batch", "4").out
    for number in (
        f"{plan.flops.training / 1e9:.3f}",
        f"{plan.weights / 2**30:.3f}",
        f"{plan.training['total'] / 2**30:.3f}",
        f"{plan.caches['value'][262_144] / 2**30:.3f}",
        f"{plan.cache_per_token['both'] / 1024:.1f}",
        f"{plan.decode_limits['v6e'].seconds_per_step * 1e3:.2f}",
        f"{plan.train_limits['tpu7x'].tokens_per_second_per_chip:.0f}",
    ):
        assert number in out.replace("\n", " ").split(" ")


def test_json_is_the_plan(run):
    wanted = json.loads(json.dumps(make_plan(preset("e4b"), dtype="float32").as_dict()))
    assert json.loads(run("plan", "e4b", "--dtype", "float32", "--json").out) == wanted


def test_a_config_file_and_a_folder(run, model_folder, tmp_path):
    file = tmp_path / "some.json"
    file.write_text(json.dumps(config_to_hf(preset("26b-a4b"))))
    assert run("plan", str(file)).out == run("plan", "26b-a4b").out
    assert "2 layers" in run("plan", str(model_folder)).out


def test_mistakes_are_one_line(complaint, tmp_path):
    file = tmp_path / "config.json"
    file.write_text("{")
    other = tmp_path / "other.json"
    other.write_text('{"model_type": "llama"}')
    for words, parts in (
        (("e2c",), ["unknown model 'e2c'", "did you mean 'e2b'?"]),
        ((), ["MODEL"]),
        (("nowhere/config.json",), ["no such file"]),
        ((str(file),), [str(file), "JSON"]),
        ((str(other),), [str(other), "llama"]),
        (("e2b", "--context", "0"), ["from 1 to 131072"]),
        (("e2b", "--context", "many"), ["--context", "'many'"]),
        (("e2b", "--batch", "-1"), ["at least 1"]),
        (("e2b", "--dtype", "bf16"), ["unknown dtype 'bf16'", "bfloat16"]),
        (("e2b", "--jsn"), ["did you mean --json?"]),
        (("e2b", "extra"), ["extra"]),
    ):
        line = complaint("plan", *words)
        for part in parts:
            assert part in line


MACHINE = ("plan", "12b", "--topology", "h100-8", "--batch", "16")


def test_a_page_for_a_machine(run):
    result = run(*MACHINE, "--mesh", "fsdp=4,tensor=2", "--top", "2")
    assert result.code == 0 and result.err == ""
    for part in (
        "8 devices of 74.506 GiB, 1 hosts",
        "mesh fsdp=4,tensor=2",
        "tensor sums",
        "reduce-scatter",
        "MFU",
        "None of it was measured",
        "of 35 meshes",
    ):
        assert part in result.out
    assert max(map(len, result.out.splitlines())) <= 125


def test_slices_that_a_tpu_does_not_gather_are_said(run):
    words = "plan", "31b", "--batch", "64", "--top", "1", "--topology"
    said = "slices of D are 84 wide"
    out = run(*words, "v5p-128", "--mesh", "fsdp=-1").out
    assert said in out and "32 would not have that" in out.replace("\n", " ")
    assert max(map(len, out.splitlines())) <= 125
    assert said not in run(*words, "v5p-128", "--mesh", "fsdp=32,tensor=-1").out
    assert said not in run(*words, "h100-64", "--mesh", "fsdp=64").out


def test_json_of_a_machine_is_the_arithmetic(run):
    found = json.loads(run(*MACHINE, "--mesh", "fsdp=8", "--remat", "dots", "--json").out)
    chosen = found["chosen"]
    work = Workload(
        config=preset("12b"),
        tokens=8192,
        rows=16,
        sizes=sizes_of({"fsdp": 8}),
        remat="dots",
        accumulation=chosen["accumulation"],
    )
    parts = bytes_by_part(work)
    assert chosen["memory"] == {**parts, "peak": peak(parts)}
    assert [e["sent"] for e in chosen["traffic"]] == [e.sent for e in exchanges(work)]
    assert chosen["time"]["step"] == step_time(work, parse("h100-8")).step
    assert found["search"]["fit"] and found["compiled"] is None


def test_decoding_and_adapters_on_a_machine(run):
    out = run("plan", "31b", "--topology", "v5e-16", "--task", "decode", "--batch", "8").out
    assert "decoding, 8 conversations of 8192 tokens, parameters bfloat16" in out
    assert "cache" in out and "gradients" not in out
    out = run("plan", "e2b", "--topology", "v5e-8", "--lora", "16", "--base", "nf4").out
    assert "adapters of rank 16" in out and "base nf4" in out


PROGRAM = """
import json, sys
words = sys.argv[1:]
print("a line of the compiler", file=sys.stderr)
if "--topology" in words and "v5p-16" in words:
    print("error: out of memory", file=sys.stderr)
    raise SystemExit(2)
print(json.dumps({"words": words}))
"""


def test_the_program_that_compiles_is_given_the_plan(tmp_path):
    """A stand-in that says what it was asked; the real one is train/ahead.py."""
    program = tmp_path / "ahead.py"
    program.write_text(PROGRAM)
    work = Workload(
        config=preset("31b"), tokens=4096, rows=8, sizes=sizes_of({"fsdp": 4}), accumulation=2
    )
    words = compile_ahead(work, parse("v5p-8"), "31b", (sys.executable, str(program)))["words"]
    told = (
        "sft 31b --topology v5p-8 --seq 4096 --batch 8 --mesh fsdp=4 --remat full --accumulation 2 "
        "--lora 0 --json"
    )
    assert " ".join(words) == told
    with pytest.raises(UserError, match="out of memory"):
        compile_ahead(work, parse("v5p-16"), "31b", (sys.executable, str(program)))
    with pytest.raises(UserError, match="h100-8 is none"):
        compile_ahead(work, parse("h100-8"), "31b")
    with pytest.raises(UserError, match="run this in a clone"):
        compile_ahead(work, parse("v5p-8"), "31b", (sys.executable, "-m", "no.such.program"))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--topology", "v5p-100"), "nearest"),
        (("--seq", "4096"), "say which: --topology"),
        (("--topology", "v5e-8", "--context", "64"), "is called --seq"),
        (("--topology", "v5e-8", "--mesh", "fsdp"), "a mesh is axis=number"),
        (("--topology", "v5e-8", "--mesh", "fsdp=16"), "needs 16 devices, there are 8"),
        (("--topology", "v5e-8", "--mesh", "rows=2"), "got 'rows=2'"),
        (("--topology", "v5e-8", "--remat", "full"), "goes with --mesh"),
        (("--topology", "v5e-8", "--base", "nf4"), "add --lora"),
        (("--topology", "v5e-8", "--task", "grpo"), "unknown --task 'grpo'"),
        (("--topology", "v5e-8", "--optimizer", "adam"), "did you mean 'adamw'?"),
        (("--topology", "v5e-8", "--lora", "0"), "at least 1"),
    ],
)
def test_mistakes_about_machines(complaint, words, part):
    assert part in complaint("plan", "12b", *words)
