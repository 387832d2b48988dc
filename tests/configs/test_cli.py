"""The command line of training: presets, flags, and one line for every mistake."""

import subprocess
import sys
import time

import pytest

from configs import cli, dpo, sft
from configs.schema import SFTConfig

NEEDED = ("--data.path", "rows.jsonl", "--run.workdir", "runs/x")


def parse(*argv: str) -> SFTConfig:
    return cli.parse("python -m train.sft", sft.PRESETS, argv)


def complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as leaving:
        parse(*argv)
    assert leaving.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


def test_flags_change_the_preset():
    config = parse(
        "tiny", *NEEDED, "--optim.peak_lr", "3e-6", "--batch.rows", "6", "--data.packing"
    )
    assert config.optim.peak_lr == 3e-6
    assert config.batch.rows == 6
    assert config.data.packing is True
    assert config.optim.b2 == sft.tiny().optim.b2


def test_targets_are_a_list_of_words():
    config = parse("tiny", *NEEDED, "--lora.rank", "4", "--lora.targets", "mlp", "experts")
    assert config.lora.targets == ("mlp", "experts")


def test_both_spellings_and_none():
    assert parse("tiny", *NEEDED, "--optim.peak-lr=2e-6").optim.peak_lr == 2e-6
    assert parse("tiny", *NEEDED, "--run.steps", "None").run.steps is None
    assert parse("e2b", "--model.path", "m", *NEEDED, "--data.no-packing").data.packing is False


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("e2c", *NEEDED), ["unknown preset 'e2c'", "did you mean e2b?", "known: tiny, e2b"]),
        ((), ["no preset", "known: tiny"]),
        (("tiny", *NEEDED, "--optim.peek-lr", "1"), ["--optim.peek-lr", "mean --optim.peak-lr?"]),
        (("tiny", *NEEDED, "--optim.peak-lr", "x"), ["--optim.peak-lr", "'x'"]),
        (("tiny", *NEEDED, "--optim.schedule", "cosin"), ["'cosin'", "'cosine'"]),
        (("tiny", *NEEDED, "stray"), ["stray"]),
        (("tiny", "--run.workdir", "runs/x"), ["no data", "--data.path"]),
        (("tiny", "--data.path", "x"), ["no work folder", "--run.workdir"]),
        (("e2b", *NEEDED), ["no model", "--model.path"]),
        (("tiny", *NEEDED, "--model.path", "x"), ["model.path is 'x'", "'tiny-ple'"]),
        (("tiny", *NEEDED, "--batch.rows", "0"), ["batch.rows is 0", "at least 1"]),
        (("tiny", *NEEDED, "--batch.rows", "-3"), ["batch.rows is -3"]),
        (("tiny", *NEEDED, "--batch.accumulation", "3"), ["divisor of batch.rows = 8"]),
        (("tiny", *NEEDED, "--data.max-length", "0"), ["data.max_length is 0"]),
        (("tiny", *NEEDED, "--run.steps", "0"), ["run.steps is 0"]),
        (("tiny", *NEEDED, "--run.save-every", "0"), ["run.save_every is 0"]),
        (("tiny", *NEEDED, "--run.epochs", "nan"), ["run.epochs is nan"]),
        (("tiny", *NEEDED, "--optim.peak-lr", "-1"), ["optim.peak_lr is -1.0", "above 0"]),
        (("tiny", *NEEDED, "--optim.b2", "1"), ["optim.b2 is 1.0", "below 1"]),
        (("tiny", *NEEDED, "--optim.warmup-fraction", "2"), ["optim.warmup_fraction is 2.0"]),
        (("tiny", *NEEDED, "--optim.clip-norm", "0"), ["optim.clip_norm is 0.0"]),
        (("tiny", *NEEDED, "--seed", "-1"), ["seed is -1"]),
        (("tiny", *NEEDED, "--lora.rank", "-1"), ["lora.rank is -1", "at least 0"]),
        (("tiny", *NEEDED, "--lora.alpha", "0"), ["lora.alpha is 0.0", "above 0"]),
        (("tiny", *NEEDED, "--lora.dropout", "1"), ["lora.dropout is 1.0", "below 1"]),
        (("tiny", *NEEDED, "--lora.dropout", "0.1"), ["lora.dropout is 0.1", "set lora.rank"]),
        (("tiny", *NEEDED, "--lora.dora"), ["lora.dora is True", "set lora.rank"]),
        (("tiny", *NEEDED, "--lora.base-quantization", "nf4"), ["'nf4'", "set lora.rank"]),
        (("tiny", *NEEDED, "--lora.base-quantization", "fp4"), ["'fp4'", "'nf4'"]),
        (("tiny", *NEEDED, "--lora.targets", "router"), ["'router'", "'experts'"]),
        (
            ("tiny", *NEEDED, "--router.noise", "--router.freeze"),
            ["router.noise is True", "freeze"],
        ),
        (
            ("tiny", *NEEDED, "--router.noise", "--lora.rank", "4"),
            ["router.noise is True", "rank 4"],
        ),
        (
            ("tiny", *NEEDED, "--router.capacity-factor", "0"),
            ["router.capacity_factor is 0.0", "above 0", "None"],
        ),
        (("tiny", *NEEDED, "--lora.rnk", "4"), ["--lora.rnk", "mean --lora.rank?"]),
    ],
)
def test_a_mistake_is_one_line(capsys, argv, words):
    text = complaint(capsys, *argv)
    for word in words:
        assert word in text


def test_dpo_checks_beta(capsys):
    with pytest.raises(SystemExit):
        cli.parse("python -m train.dpo", dpo.PRESETS, ("tiny", *NEEDED, "--loss.beta", "0"))
    assert "loss.beta is 0.0" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["tiny", "--help"]])
@pytest.mark.parametrize("module", ["train.sft", "train.dpo"])
def test_help_imports_no_array_library(module, words):
    program = (
        "import sys; from importlib import import_module\n"
        f"try: import_module('{module}').main({words!r})\n"
        "except SystemExit as leaving: assert not leaving.code, leaving.code\n"
        "heavy = {'jax', 'numpy', 'flax', 'grain', 'orbax', 'optax', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: python -m" in done.stdout
    assert ("tiny" in done.stdout) and time.monotonic() - start < 60
