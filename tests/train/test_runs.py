"""Whole runs through the entry points: what they leave behind, what they refuse."""

import dataclasses
import html
import json
import shutil
import signal
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import cli, dpo, sft
from gemma4_jax import checkpoint
from gemma4_jax.data.encode import dpo_encoder, sft_encoder
from gemma4_jax.errors import UserError
from gemma4_jax.presets import preset
from tests.oracle.theirs import their_logits
from train import dpo as train_dpo
from train import metrics
from train import sft as train_sft
from train.data.sequences import fill
from train.losses import batch_totals, make_sft_loss
from train.reference import choose_reference

from .conftest import sum_pairs, sum_rows, write_rows


def configure(presets, model: Path, data: Path, work: Path, *flags: str):
    words = ["--model.architecture", "", "--model.path", str(model)]
    words += ["--data.path", str(data), "--run.workdir", str(work)]
    words += ["--run.steps", "6", "--run.log-every", "1", "--run.export-huggingface"]
    words += ["--run.samples", "0"]  # they compile a sampler
    return cli.parse("train", presets, ["tiny", *words, *flags])


def rows_of(work: Path) -> list[dict]:
    return [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(model_folder, tmp_path_factory):
    """A short SFT run with packing and accumulation, and its configuration."""
    folder = tmp_path_factory.mktemp("sft")
    data = write_rows(folder / "rows.jsonl", sum_rows(40))
    config = configure(
        sft.PRESETS, model_folder, data, folder / "run", "--data.packing",
        *("--data.max-length", "96", "--batch.rows", "4", "--batch.accumulation", "2"),
        *("--run.samples", "2", "--run.tensorboard", "--run.profile-at", "3"),
    )  # fmt: skip
    assert train_sft.run(config) == 0
    return config


def test_sft_learns_and_leaves_everything_behind(finished, model_folder):
    work = Path(finished.run.workdir)
    rows = rows_of(work)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.2
    # Of packed rows of 96 most is tokens, and none is padding.
    each = np.diff([0, *(row["num_tokens"] for row in rows)])
    assert (each > 4 * 96 / 2).all() and (each < 4 * 96).all()
    assert (work / "metrics.png").stat().st_size > 1000
    saved = json.loads((work / "config.json").read_text())
    assert saved["task"] == "sft"
    assert saved["config"] == json.loads(json.dumps(dataclasses.asdict(finished)))

    exported = checkpoint.load(work / "huggingface")
    start = checkpoint.load(model_folder)
    assert exported.config.layer_types == start.config.layer_types
    files = exported.tokenizer.files
    assert files["tokenizer.model"] == start.tokenizer.files["tokenizer.model"]
    state = ocp.StandardCheckpointer().restore(work / "checkpoints" / "6" / "state")
    jax.tree.map(np.testing.assert_array_equal, exported.params, state["params"])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), exported.params, start.params)
    assert moved["embed"]["table"]


def test_transformers_computes_the_same_from_a_trained_model(finished, transformers):
    folder = Path(finished.run.workdir) / "huggingface"
    model = checkpoint.load(folder)
    tokens = np.random.default_rng(0).integers(5, model.config.vocab_size, (2, 40)).astype(np.int32)
    theirs = their_logits(transformers, folder, tokens)
    np.testing.assert_allclose(model.logits(tokens), theirs, atol=2e-4)
    assert np.abs(theirs).max() > 1  # of something to compare


def test_a_report_shows_the_run(finished):
    work = Path(finished.run.workdir)
    page = (work / "report.html").read_text()
    noted = [json.loads(line) for line in (work / "samples.jsonl").open()]
    assert [each["step"] for each in noted] == [0, 6]
    assert all(len(each["texts"]) == 2 for each in noted)
    assert noted[0]["texts"] != noted[1]["texts"]
    for words in (
        "before training",
        "after step 6",
        "in the data",
        "optim.peak_lr",
        "data:image/png",
    ):
        assert words in page
    assert html.escape("<|turn>model") in page
    for name in ("memory_gib", "tokens_per_second", "tflops_per_device"):
        assert rows_of(work)[-1][name] > 0 and name in page


def test_tensorboard_and_a_profile(finished):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    work = Path(finished.run.workdir)
    (file,) = (work / "tensorboard").iterdir()
    data, points = file.read_bytes(), {}
    while data:  # records: length, its checksum, content, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        content = data[12 : 12 + length]
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked_crc32c(content)
        event = Event.FromString(content)
        for value in event.summary.value:
            points[value.tag, event.step] = value.simple_value
        data = data[16 + length :]
    for row in rows_of(work):
        assert points["train/loss", row["step"]] == pytest.approx(row["loss"], rel=1e-6)
    assert list((work / "profile").rglob("*.xplane.pb"))


def test_a_finished_run_only_says_so(finished, capsys):
    before = (Path(finished.run.workdir) / "metrics.jsonl").read_bytes()
    assert train_sft.run(finished) == 0
    assert "step 6 of 6" in capsys.readouterr().out
    assert (Path(finished.run.workdir) / "metrics.jsonl").read_bytes() == before


def test_another_configuration_is_refused_in_one_line(finished):
    other = dataclasses.replace(
        finished, seed=1, optim=dataclasses.replace(finished.optim, peak_lr=1e-4)
    )
    with pytest.raises(UserError) as error:
        train_sft.run(other)
    text = str(error.value)
    assert "optim.peak_lr was 0.002, is 0.0001; seed was 0, is 1" in text
    assert "\n" not in text and "run.workdir" in text


def test_what_does_not_change_the_result_may_change(finished):
    run = dataclasses.replace(finished.run, log_every=3, save_every=7, keep=1)
    assert train_sft.run(dataclasses.replace(finished, run=run)) == 0


def test_other_data_are_refused(finished, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", sum_rows(41))
    other = dataclasses.replace(finished, data=dataclasses.replace(finished.data, path=str(data)))
    with pytest.raises(UserError, match=r"the data is not what the run in .* was started with"):
        train_sft.run(other)


def test_the_same_data_elsewhere_are_fine(finished, tmp_path):
    data = write_rows(tmp_path / "elsewhere.jsonl", sum_rows(40))
    other = dataclasses.replace(finished, data=dataclasses.replace(finished.data, path=str(data)))
    assert train_sft.run(other) == 0


def test_dpo_precomputed_and_live(model_folder, dpo_file, tmp_path):
    rows = {}
    for reference in ("precomputed", "live"):
        work = tmp_path / reference
        config = configure(dpo.PRESETS, model_folder, dpo_file, work, "--loss.reference", reference)
        assert train_dpo.run(config) == 0
        rows[reference] = rows_of(work)
        assert (work / "huggingface" / "model.safetensors").exists()
    first, last = rows["precomputed"][0], rows["precomputed"][-1]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert last["loss"] < first["loss"] - 0.05
    assert last["rewards/margins"] > 0 and last["rewards/accuracies"] == 1
    assert last["rewards/chosen"] > last["rewards/rejected"]
    for one, two in zip(rows["precomputed"], rows["live"], strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    # Six steps of four pairs are the data once: both sides of each pair, prompts too, padding not.
    tokenizer = checkpoint.load(model_folder).tokenizer
    encode = dpo_encoder(tokenizer, preset("tiny-dense").family, "keep")
    pairs = [side for row in sum_pairs(24) for e in encode(row).examples for side in e]
    assert last["num_tokens"] == sum(len(side.tokens) for side in pairs)
    assert first["num_tokens"] < last["num_tokens"]
    files = list((tmp_path / "precomputed" / "reference").glob("*.f32"))
    assert len(files) == 1 and files[0].stat().st_size == 24 * 2 * 4


def test_a_run_that_diverges_stops_with_a_sentence(model_folder, sft_file, tmp_path):
    config = configure(
        sft.PRESETS, model_folder, sft_file, tmp_path / "run", "--optim.peak-lr", "1e38",
        *("--optim.max-bad-steps", "3", "--run.steps", "50"),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"3 steps in a row, up to step \d+, .*optim.peak_lr"):
        train_sft.run(config)
    rows = rows_of(tmp_path / "run")
    assert rows[-1]["skipped"] >= 2 and rows[-1]["step"] < 50
    (saved,) = (tmp_path / "run").glob("bad_batch_*.npz")
    assert np.load(saved)["tokens"].shape == (8, 64)


def test_dpo_with_a_mix_of_losses_and_a_reference_that_follows(
    model_folder, dpo_file, tmp_path, capsys
):
    flags = ["--loss.types", "sigmoid", "sft", "--loss.weights", "1", "0.5"]
    flags += ["--loss.sync-every", "2", "--optim.average-decay", "0.5", "--optim.group-norms"]
    config = configure(dpo.PRESETS, model_folder, dpo_file, tmp_path / "run", *flags)
    assert train_dpo.run(config) == 0
    assert "reference: live copy: it follows the policy every 2 steps" in capsys.readouterr().out
    rows = rows_of(tmp_path / "run")
    for row in rows:
        mixed = row["loss/sigmoid"] + 0.5 * row["loss/sft"]
        assert row["loss"] == pytest.approx(mixed, rel=1e-5)
        assert row["grad_norm/attention"] < row["grad_norm"]
    state = ocp.StandardCheckpointer().restore(tmp_path / "run" / "checkpoints" / "6" / "state")
    exported = checkpoint.load(tmp_path / "run" / "huggingface").params
    jax.tree.map(np.testing.assert_array_equal, exported, state["average"])
    far = jax.tree.map(lambda a, b: bool((a != b).any()), state["reference"], state["params"])
    assert far["embed"]["table"]
    # The same command goes on, and only says that all is done.
    assert train_dpo.run(config) == 0


def test_validation_source_by_source_and_the_best_is_kept(model_folder, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", sum_rows(30))
    near = write_rows(tmp_path / "near.jsonl", sum_rows(7))
    far = write_rows(tmp_path / "far.jsonl", [
        {"messages": [{"role": "user", "content": "and"}, {"role": "assistant", "content": "the of"}]}
    ])  # fmt: skip
    config = configure(
        sft.PRESETS, model_folder, data, tmp_path / "run", "--run.save-every", "2",
        *("--data.validation", str(near), str(far), "--run.keep", "1", "--run.keep-best", "1"),
        *("--batch.rows", "4", "--loss.neftune-alpha", "5", "--loss.label-smoothing", "0.1"),
        *("--optim.peak-lr", "0.02"),
    )  # fmt: skip
    assert train_sft.run(config) == 0
    rows = {row["step"]: row for row in rows_of(tmp_path / "run")}
    assert all(("validation_loss" in rows[step]) == (step % 2 == 0) for step in rows)
    last = rows[6]
    losses = [last["validation/near/loss"], last["validation/far/loss"]]
    assert last["validation_loss"] == pytest.approx(sum(losses) / 2)
    assert last["validation/near/perplexity"] == pytest.approx(np.exp(losses[0]))
    assert losses[0] < losses[1]  # of what it was trained on it knows more

    # The loss of all rows at once, without noise or smoothing.
    model = checkpoint.load(tmp_path / "run" / "huggingface")
    encode = sft_encoder(model.tokenizer, model.config.family, "keep")
    examples = [e for row in sum_rows(7) for e in encode(row).examples]
    batch = {n: jnp.asarray(np.stack(x)) for n, x in transpose(fill([e[0]], 64) for e in examples)}
    loss = make_sft_loss(model.module, model.config)
    wanted = loss(model.params, batch, batch_totals(batch), jax.random.key(0), None).value
    assert losses[0] == pytest.approx(float(wanted), rel=1e-5)

    best = min((2, 4, 6), key=lambda step: rows[step]["validation_loss"])
    kept = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {best, 6}


def transpose(examples):
    """Arrays of all examples by name."""
    examples = list(examples)
    return [(name, [example[name] for example in examples]) for name in examples[0]]


def test_validation_of_pairs_with_adapters(model_folder, dpo_file, tmp_path):
    held_out = write_rows(tmp_path / "held-out.jsonl", sum_pairs(5))
    found = {}
    for reference in ("precomputed", "live"):
        config = configure(
            dpo.PRESETS, model_folder, dpo_file, tmp_path / reference,
            *("--data.validation", str(held_out), "--loss.reference", reference),
            *("--lora.rank", "2", "--lora.dropout", "0.5", "--run.save-every", "3"),
        )  # fmt: skip
        assert train_dpo.run(config) == 0
        found[reference] = rows_of(tmp_path / reference)
    # Dropout is for training alone, and draws alike in both.
    for step in (3, 6):
        one, other = (found[name][step - 1]["validation_loss"] for name in found)
        assert one == pytest.approx(other, rel=1e-4)
    last = found["live"][-1]
    assert last["validation_loss"] < np.log(2)
    assert 0 <= last["validation/held-out/rewards/accuracies"] <= 1
    assert "validation/held-out/perplexity" not in last


def test_dpo_with_packed_pairs(model_folder, dpo_file, tmp_path, capsys):
    for reference in ("precomputed", "live"):
        config = configure(
            dpo.PRESETS, model_folder, dpo_file, tmp_path / reference, "--data.packing",
            *("--data.max-length", "128", "--loss.reference", reference, "--batch.rows", "2"),
        )  # fmt: skip
        assert train_dpo.run(config) == 0
    assert "prompts once" in capsys.readouterr().out
    one, other = rows_of(tmp_path / "precomputed"), rows_of(tmp_path / "live")
    assert one[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert one[-1]["loss"] < one[0]["loss"] - 0.05 and one[-1]["rewards/accuracies"] == 1
    for left, right in zip(one, other, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "pairs", "visits", "live", "words"),
    [
        ([], 100, 100, False, "one pass over 100 pairs"),
        ([], 1000, 100, True, "the run visits 100 of 1000 pairs"),
        (["--lora.rank", "4"], 100, 100, True, "the base without its adapters"),
        (["--lora.rank", "4"], 100, 300, False, "one pass over 100 pairs"),
        (["--loss.reference", "precomputed"], 1000, 100, False, "as loss.reference says"),
        (["--loss.reference", "live"], 10, 100, True, "as loss.reference says"),
    ],
)
def test_the_cheaper_reference_is_chosen(flags, pairs, visits, live, words, tmp_path):
    config = configure(dpo.PRESETS, tmp_path, tmp_path, tmp_path, *flags)
    found = choose_reference(config, pairs, visits)
    assert found[0] is live and words in found[1] and "\n" not in found[1]


GOOD = '{"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]}'
BAD_ROLE = GOOD.replace("assistant", "asistant")
LONG = GOOD.replace('"two"', json.dumps("two " * 400))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file or folder"),
        ("", "the file is empty"),
        (f"{GOOD}\n{{", "rows.jsonl:2: not JSON"),
        (f'{GOOD}\n{{"txt": "x"}}', "rows.jsonl:2: no known format in this row (keys: 'txt')"),
        (
            f'{GOOD}\n{{"messages": [{{"role": "user", "content": "x"}}]}}',
            "rows.jsonl:2: no assistant",
        ),
        (f"{GOOD}\n{BAD_ROLE}", "did you mean 'assistant'?"),
        (f"{GOOD}\n{LONG}", "1 of 2 rows are longer than data.max_length = 256"),
    ],
)
def test_bad_data_stop_the_command_with_one_line(model_folder, tmp_path, capsys, content, words):
    data = tmp_path / "rows.jsonl"
    if content is not None:
        data.write_text(content)
    argv = ["tiny", "--model.architecture", "", "--model.path", str(model_folder)]
    argv += ["--data.path", str(data), "--run.workdir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as leaving:
        train_sft.main(argv)
    assert leaving.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and words in text


@pytest.mark.slow
def test_a_mixture_with_bad_rows_in_buckets_from_workers(
    model_folder, sft_file, tmp_path, capsys, monkeypatch
):
    """Everything at once: it trains, says what it left out, and goes on where it was."""
    other = tmp_path / "more.jsonl"
    long = GOOD.replace('"two"', json.dumps("two " * 60))
    other.write_text(f"{GOOD}\n{BAD_ROLE}\n{long}\n")
    flags = ["--data.path", "", "--data.mixture", f"3:{sft_file}", f"1:{other}"]
    flags += ["--data.on-error", "skip", "--data.buckets", "2"]
    write = metrics.MetricsFile.write

    def write_and_stop(self, step, values):
        write(self, step, values)
        if step == 3:
            signal.raise_signal(signal.SIGTERM)

    codes = []
    for name, stop, workers in (("whole", False, 0), ("parts", True, 2), ("parts", False, 0)):
        monkeypatch.setattr(metrics.MetricsFile, "write", write_and_stop if stop else write)
        flags_now = [*flags, "--data.workers", str(workers)]
        config = configure(sft.PRESETS, model_folder, sft_file, tmp_path / name, *flags_now)
        codes.append(train_sft.run(config))
    assert codes == [0, 128 + signal.SIGTERM, 0]
    out = capsys.readouterr().out
    assert "0.75 of (40 rows" in out
    assert f"1 rows rejected, the first at {other}:2: unknown role" in out
    (rejected,) = [
        f for f in (tmp_path / "whole" / "cache").glob("*/rejected.jsonl") if f.stat().st_size
    ]
    assert json.loads(rejected.read_text())["where"] == f"{other}:2"
    whole, parts = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    for name in ("loss", "num_tokens"):
        assert [row[name] for row in whole] == [row[name] for row in parts]
    assert len(whole) == 6 and all(row["input_wait"] >= 0 for row in whole[1:])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.path", "nowhere"], "nowhere: no such folder"),
        (["--model.path", "", "--model.architecture", "tiny-plo"], "unknown model 'tiny-plo'"),
        (["--model.path", "", "--model.architecture", "no.json"], "cannot read model.architecture"),
        (["--data.max-length", "5000"], "more than the 1024 positions"),
        (["--model.tokenizer", "nowhere.model"], "nowhere.model: no such file"),
        (["--run.workdir", "/dev/null/x"], "cannot use /dev/null/x as work folder"),
    ],
)
def test_bad_flags_stop_the_command_with_one_line(
    model_folder, sft_file, tmp_path, capsys, flags, words
):
    argv = ["tiny", "--model.architecture", "", "--model.path", str(model_folder)]
    argv += ["--data.path", str(sft_file), "--run.workdir", str(tmp_path / "run"), *flags]
    with pytest.raises(SystemExit) as leaving:
        train_sft.main(argv)
    assert leaving.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and words in text


def test_a_tokenizer_larger_than_the_model_is_refused(sft_file, model_folder, tmp_path):
    from gemma4_jax.text.train_tokenizer import train_tokenizer

    big = tmp_path / "tokenizer.model"
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnop"), (900, 6))
    train_tokenizer(("".join(word) for word in letters), 500, big)
    config = configure(
        sft.PRESETS, model_folder, sft_file, tmp_path / "run", "--model.tokenizer", str(big)
    )
    with pytest.raises(UserError, match=r"the tokenizer has 500 tokens .* 384 rows"):
        train_sft.run(config)


def test_nan_in_the_weights_is_found_before_training(model_folder, sft_file, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    file = broken / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    file.write_bytes(data)
    argv = ["tiny", "--model.architecture", "", "--model.path", str(broken)]
    argv += ["--data.path", str(sft_file), "--run.workdir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as leaving:
        train_sft.main(argv)
    assert leaving.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and "NaN" in text
