"""`gemma4 plan`: presets, config.json, folders; text and JSON."""

import json

import pytest

from gemma4_jax.hf_config import config_to_hf
from gemma4_jax.plan.model import count_parameters, make_plan
from gemma4_jax.presets import PRESETS, preset


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
