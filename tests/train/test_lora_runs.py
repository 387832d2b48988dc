"""Whole runs that train adapters: what is saved, exported, continued and refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import dpo, sft
from gemma4_jax import checkpoint
from gemma4_jax.errors import UserError
from gemma4_jax.model.adapters import Quantizer, adapted_matrices, attach
from gemma4_jax.model.weights import Adapted, Quantized, dense
from gemma4_jax.presets import preset
from train import dpo as train_dpo
from train import sft as train_sft
from train.lora import hyperparameters, prepared
from train.progress import Reporter
from train.start import open_start

from .conftest import sum_rows, write_rows
from .test_runs import configure, rows_of

LORA = ("--lora.rank", "4", "--lora.alpha", "8", "--optim.peak-lr", "0.02")


def saved(work: Path) -> dict:
    return ocp.StandardCheckpointer().restore(work / "checkpoints" / "6" / "state")


def merged(params: dict, adapters: dict, config) -> dict:
    return jax.tree.map(
        dense,
        attach(params, adapters, hyperparameters(config.lora)),
        is_leaf=lambda node: isinstance(node, Adapted | Quantized),
    )


@pytest.fixture(scope="module")
def finished(model_folder, tmp_path_factory):
    """A short run with dropout, packing and accumulation, and its configuration."""
    folder = tmp_path_factory.mktemp("lora")
    data = write_rows(folder / "rows.jsonl", sum_rows(40))
    config = configure(
        sft.PRESETS, model_folder, data, folder / "run", *LORA, "--lora.dropout", "0.1",
        *("--data.packing", "--data.max-length", "96", "--batch.rows", "4"),
        *("--batch.accumulation", "2", "--run.save-every", "3"),
    )  # fmt: skip
    assert train_sft.run(config) == 0
    return config


def test_sft_saves_adapters_and_exports_both_ways(finished, model_folder):
    work = Path(finished.run.workdir)
    rows = rows_of(work)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.2
    state = saved(work)
    leaves = jax.tree_util.tree_leaves_with_path(state["params"])
    assert {path[-1].key for path, _ in leaves} == {"lora_a", "lora_b"}
    start = checkpoint.load(model_folder).params
    # Adapters and AdamW's two moments: nothing in the checkpoint is as big as the model.
    size = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert size < sum(leaf.size for leaf in jax.tree.leaves(start)) / 2
    exported = checkpoint.load(work / "huggingface").params
    expected = merged(start, state["params"], finished)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), exported, expected)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), exported, start)
    assert not moved["embed"]["table"] and moved["segment_0"]["slot_0"]["mlp"]["up_proj"]
    told = json.loads((work / "adapter" / "adapter_config.json").read_text())
    assert (told["r"], told["base_model_name_or_path"]) == (4, str(model_folder))


@pytest.mark.slow
def test_a_run_goes_on_where_it_broke_off_bit_for_bit(finished, tmp_path, monkeypatch, capsys):
    run = dataclasses.replace(finished.run, workdir=str(tmp_path / "run"))
    config = dataclasses.replace(finished, run=run)
    advance = Reporter.advance

    def stop(self, step):
        if step == 5:
            raise RuntimeError("power cut")
        advance(self, step)

    monkeypatch.setattr(Reporter, "advance", stop)
    with pytest.raises(RuntimeError, match="power cut"):
        train_sft.run(config)
    monkeypatch.undo()
    assert train_sft.run(config) == 0
    text = capsys.readouterr().out
    assert "step 3 of 6" in text
    assert "LoRA of rank 4: " in text and "experts none in this model" in text
    again, undisturbed = saved(tmp_path / "run"), saved(Path(finished.run.workdir))
    jax.tree.map(np.testing.assert_array_equal, again, undisturbed)
    other = dataclasses.replace(config, lora=dataclasses.replace(config.lora, alpha=9.0))
    with pytest.raises(UserError, match=r"lora.alpha was 8.0, is 9.0"):
        train_sft.run(other)


def test_another_base_is_refused(finished, model_folder, tmp_path):
    """At the same path, so that the configuration does not tell."""
    base, work = tmp_path / "base", tmp_path / "run"
    shutil.copytree(model_folder, base)
    shutil.copytree(finished.run.workdir, work)
    note = json.loads((work / "config.json").read_text())
    note["config"]["model"]["path"] = str(base)
    (work / "config.json").write_text(json.dumps(note))
    config = dataclasses.replace(
        finished,
        model=dataclasses.replace(finished.model, path=str(base)),
        run=dataclasses.replace(finished.run, workdir=str(work)),
    )
    assert train_sft.run(config) == 0
    file = base / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = np.float32(0.5).tobytes()
    file.write_bytes(data)
    with pytest.raises(UserError, match="not those this run's adapters were trained on") as error:
        train_sft.run(config)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_dpo_over_a_base_in_four_bits(model_folder, dpo_file, tmp_path):
    """Precomputed and live references are the same: the quantised base without adapters."""
    rows = {}
    for reference in ("precomputed", "live"):
        work = tmp_path / reference
        config = configure(
            dpo.PRESETS, model_folder, dpo_file, work, *LORA, "--loss.reference", reference,
            "--lora.base-quantization", "nf4",
        )  # fmt: skip
        assert train_dpo.run(config) == 0
        rows[reference] = rows_of(work)
    first, last = rows["precomputed"][0], rows["precomputed"][-1]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert last["loss"] < first["loss"] - 0.05 and last["rewards/margins"] > 0
    for one, two in zip(rows["precomputed"], rows["live"], strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    # The merged export is the model that was trained: rounded base and all.
    start = open_start(config.model, config.seed, config.data.max_length)
    base = prepared(start, config.lora).load()
    q_proj = base["segment_0"]["slot_0"]["attention"]["q_proj"]
    assert isinstance(q_proj, Quantized) and q_proj.codes.dtype == np.uint8
    expected = merged(base, saved(work)["params"], config)
    exported = checkpoint.load(work / "huggingface").params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), exported, expected)


@pytest.mark.slow
def test_adapters_stay_float32_over_a_bfloat16_base(model_folder, sft_file, tmp_path):
    """What the presets of real sizes do: bfloat16, everything recomputed; and DoRA over int8."""
    config = configure(
        sft.PRESETS, model_folder, sft_file, tmp_path / "run", *LORA,
        *("--model.param-dtype", "bfloat16", "--model.compute-dtype", "bfloat16"),
        *("--model.remat", "full", "--lora.dora", "--lora.base-quantization", "int8"),
        *("--lora.targets", "attention", "mlp"),
    )  # fmt: skip
    assert train_sft.run(config) == 0
    rows = rows_of(tmp_path / "run")
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.2
    state = saved(tmp_path / "run")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state["params"])} == {"float32"}
    told = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert told["use_dora"] is True
    exported = json.loads((tmp_path / "run" / "huggingface" / "config.json").read_text())
    assert exported["dtype"] == "bfloat16"


def test_a_quantised_base_is_never_whole(model_folder):
    """From files, each leaf is packed before the next is read; ours and fresh ones leaf by leaf."""
    config = checkpoint.describe(model_folder).config
    quantizer, held = Quantizer(config, "int8"), []

    def finish(path, leaf):
        held.append(path)
        return quantizer(path, leaf)

    packed = checkpoint.load_params(model_folder, config, finish=finish)
    plain = checkpoint.load_params(model_folder, config)
    assert len(held) == len(jax.tree.leaves(plain))
    store = model_folder.parent / "store"
    checkpoint.save(checkpoint.load(model_folder), store)
    same = checkpoint.load_params(store, config, finish=quantizer)
    jax.tree.map(np.testing.assert_array_equal, packed, same)
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(packed["segment_0"]))
    assert nbytes < 0.3 * sum(leaf.nbytes for leaf in jax.tree.leaves(plain["segment_0"]))


def test_nothing_to_adapt_is_one_line(model_folder, sft_file, tmp_path, capsys):
    argv = ["tiny", "--model.architecture", "", "--model.path", str(model_folder)]
    argv += ["--data.path", str(sft_file), "--run.workdir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as leaving:
        train_sft.main([*argv, "--lora.rank", "4", "--lora.targets", "per_layer_input"])
    assert leaving.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    assert "nothing to adapt for lora.targets per_layer_input; it has attention, mlp" in text


def test_presets_fit_their_models():
    for presets, name, model in (
        (sft.PRESETS, "e2b-lora", "e2b"),
        (sft.PRESETS, "26b-a4b-lora", "26b-a4b"),
        (sft.PRESETS, "31b-qlora", "31b"),
        (dpo.PRESETS, "e2b-lora", "e2b"),
    ):
        lora = hyperparameters(presets[name]().lora)
        found = {matrix.target for matrix in adapted_matrices(preset(model), lora)}
        wanted = set(lora.targets) - (set() if preset(model).moe else {"experts"})
        assert found == wanted
