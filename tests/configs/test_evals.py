"""The command lines of evaluation: presets, flags, and one line for every mistake."""

import subprocess
import sys
import time

import pytest

from configs import cli, evals
from configs.evals import SweepConfig

NEEDED = ("--tasks", "aime=a.jsonl", "--workdir", "runs/x")
MODEL = ("--model.path", "m")


def parse(*argv):
    return cli.parse("python -m eval.run", evals.PRESETS, argv, evals.require)


def sweep(*argv):
    return cli.parse("python -m eval.sweep", evals.SWEEPS, argv, evals.require)


def complaint(capsys, call, *argv):
    with pytest.raises(SystemExit) as leaving:
        call(*argv)
    assert leaving.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


def test_flags_change_the_preset():
    config = parse("quick", *MODEL, *NEEDED, "--generation.top-k", "0", "--limit", "7")
    assert (config.generation.top_k, config.generation.samples, config.limit) == (0, 1, 7)
    assert config.paths() == {"aime": "a.jsonl"}
    config = parse(
        "thinking",
        *MODEL,
        "--tasks",
        "a=b",
        "c=d=e",
        "--workdir",
        "w",
        "--generation.thinking",
        "False",
    )
    assert config.paths() == {"a": "b", "c": "d=e"}
    assert config.generation.thinking is False


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("quik", *MODEL, *NEEDED), ["unknown preset 'quik'", "did you mean quick?"]),
        ((), ["no preset", "known: quick, thinking, reference"]),
        (
            ("quick", *MODEL, *NEEDED, "--generation.temprature", "1"),
            ["mean --generation.temperature"],
        ),
        (("quick", *NEEDED), ["no model", "--model.path", "--server.url"]),
        (
            ("quick", *MODEL, *NEEDED, "--server.url", "http://x/v1"),
            ["model.path and server.url", "one"],
        ),
        (("quick", *MODEL, "--workdir", "w"), ["no benchmark", "--tasks NAME=PATH"]),
        (("quick", *MODEL, "--tasks", "a=b"), ["no folder", "--workdir"]),
        (("quick", *MODEL, *NEEDED, "--tasks", "a.jsonl"), ["tasks has 'a.jsonl'", "NAME=PATH"]),
        (("quick", *MODEL, *NEEDED, "--tasks", "a=b", "a=c"), ["a twice"]),
        (("quick", *MODEL, *NEEDED, "--generation.samples", "0"), ["generation.samples is 0"]),
        (
            ("quick", *MODEL, *NEEDED, "--generation.temperature", "-1"),
            ["generation.temperature is -1"],
        ),
        (
            ("quick", *MODEL, *NEEDED, "--generation.top-p", "2"),
            ["generation.top_p is 2", "1: off"],
        ),
        (
            ("quick", *MODEL, *NEEDED, "--model.max-slots", "12"),
            ["max_slots is 12", "power of two"],
        ),
        (("quick", *MODEL, *NEEDED, "--protocol", "refrence"), ["'refrence'", "'reference'"]),
        (
            ("quick", "--server.url", "localhost:8000", *NEEDED),
            ["server.url is 'localhost:8000'", "http://"],
        ),
        (("quick", *MODEL, *NEEDED, "--limit", "-1"), ["limit is -1"]),
        (("quick", *MODEL, *NEEDED, "--seed", "-1"), ["seed is -1"]),
    ],
)
def test_mistakes_of_a_run(capsys, argv, words):
    text = complaint(capsys, parse, *argv)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("temprature=1", ["'temprature=1'", "known names: protocol, samples"]),
        ("protocol=mine", ["'protocol=mine'", "thinking and reference"]),
        ("temperature=hot", ["'temperature=hot'", "'hot' is not a number"]),
        ("thinking=1", ["'thinking=1'", "true or false"]),
        ("samples=0", ["generation.samples is 0"]),
    ],
)
def test_mistakes_of_a_sweep(capsys, settings, words):
    text = complaint(capsys, sweep, "quick", "--checkpoints", "a", *NEEDED, "--settings", settings)
    assert all(word in text for word in words), text


def test_a_sweep_is_a_run_for_each_of_its_settings():
    config = sweep(
        "quick", "--checkpoints", "a", "b", *NEEDED,
        "--settings", "temperature=0,samples=2", "protocol=reference,thinking=true,top_k=5",
    )  # fmt: skip
    cold, reference = config.variants()
    assert (cold.generation.temperature, cold.generation.samples, cold.protocol) == (
        0.0,
        2,
        "thinking",
    )
    assert (reference.protocol, reference.generation.thinking, reference.generation.top_k) == (
        "reference", True, 5,
    )  # fmt: skip
    assert reference.generation.samples == 1  # of the preset
    assert SweepConfig().variants() == [SweepConfig()]
    with pytest.raises(ValueError, match="no model; give --checkpoints"):
        evals.require(SweepConfig())


@pytest.mark.parametrize("name", evals.PRESETS)
def test_docstring_names_hardware_command_and_result(name):
    for presets, program in ((evals.PRESETS, "eval.run"), (evals.SWEEPS, "eval.sweep")):
        text = presets[name].__doc__
        assert f"python -m {program} {name} " in text
        assert "Hardware: " in text and "Expect: " in text


@pytest.mark.parametrize("program", ["eval.run", "eval.sweep"])
def test_help_is_instant_and_loads_no_jax(repository, program):
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", program, "--help"],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "presets:" in done.stdout
    assert time.perf_counter() - start < 5  # a busy machine
    assert " jax\n" not in done.stderr and " numpy\n" not in done.stderr
