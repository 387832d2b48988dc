"""Checkpoints that `train` writes, as models of a sweep."""

import json
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

import gemma4_jax as g4
from configs import evals
from configs.schema import SFTConfig
from configs.sft import tiny
from eval import sweep
from eval.training_run import description_folder, is_training_run, load_step, steps
from gemma4_jax.errors import UserError
from gemma4_jax.sharding import make_mesh
from tests.train.test_checkpointer import rows
from train.checkpointer import Checkpointer
from train.step import init_state
from train.workdir import Workdir


def train_run(workdir, model, average=False) -> SFTConfig:
    """What a run over two steps leaves: parameters that double."""
    base = tiny()
    config = replace(
        base,
        model=replace(base.model, path=str(model), architecture=""),
        run=replace(base.run, workdir=str(workdir)),
    )
    work, params = Workdir(config), g4.load(model).params
    checkpointer, iterator = Checkpointer(work.checkpoints, 5), rows()
    for step in (9, 10):
        next(iterator)
        params = jax.tree.map(lambda leaf: 2 * leaf, params)
        state = init_state(params, optax.adamw(1e-3), 0)
        if average:
            state = replace(state, average=jax.tree.map(lambda leaf: leaf / 4, params))
        checkpointer.save(step, state, iterator)
    checkpointer.close()
    return config


@pytest.mark.parametrize("average", [False, True])
def test_a_checkpoint_is_the_model_that_was_saved(model_folders, tmp_path, average):
    train_run(tmp_path, model_folders[0], average)
    assert is_training_run(tmp_path) and not is_training_run(model_folders[0])
    assert steps(tmp_path) == [9, 10]
    start = g4.load(model_folders[0])
    for mesh in (None, make_mesh({"tensor": 2})):
        found = load_step(tmp_path, 10, "float32", mesh)
        assert found.config == start.config and found.tokenizer is not None
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(a, b * (1 if average else 4)),
            found.params,
            start.params,
        )


def test_a_run_is_its_checkpoints_in_order_and_a_model_is_asked_once(
    model_folders, tmp_path, capsys
):
    train_run(tmp_path / "run", model_folders[0])
    one = model_folders[0]
    config = replace(
        evals.SWEEPS["quick"](),
        checkpoints=(str(tmp_path / "run"), str(one.parent / "step-*"), str(one)),
    )
    found = sweep.sources(config)
    assert [source.name for source in found] == ["run/9", "run/10", "step-0", "step-1"]
    assert len({source.fingerprint for source in found}) == 4
    assert "is the same model as" in capsys.readouterr().out
    bfloat = replace(config, model=replace(config.model, dtype="float32"))
    assert not {s.fingerprint for s in found} & {s.fingerprint for s in sweep.sources(bfloat)}
    with pytest.raises(UserError, match="nothing is called so"):
        sweep.sources(replace(config, checkpoints=("nothing-*",)))


def test_runs_that_have_no_models(model_folders, tmp_path):
    config = train_run(tmp_path, model_folders[0])
    file = tmp_path / "config.json"
    saved = json.loads(file.read_text())
    saved["config"]["lora"]["rank"] = 8
    file.write_text(json.dumps(saved))
    assert steps(tmp_path) == []
    saved["config"]["lora"]["rank"] = 0
    saved["config"]["model"]["path"] = ""
    file.write_text(json.dumps(saved))
    with pytest.raises(UserError, match="does not say what its model is before it exports one"):
        description_folder(tmp_path)
    assert config.model.path


def test_a_changed_tensor_is_another_model(model_folders, tmp_path):
    """One of many tensors, not the first or last, in one file."""
    model = g4.load(model_folders[0])
    before = sweep.sources(_one(model_folders[0]))[0].fingerprint
    assert sweep.sources(_one(model_folders[0]))[0].fingerprint == before
    g4.save_huggingface(model, tmp_path / "copy")
    assert sweep.sources(_one(tmp_path / "copy"))[0].fingerprint == before
    path, leaf = jax.tree_util.tree_leaves_with_path(model.params)[7]
    changed = jax.tree_util.tree_map_with_path(lambda p, x: x + 1 if p == path else x, model.params)
    g4.save_huggingface(replace(model, params=changed), tmp_path / "changed")
    assert sweep.sources(_one(tmp_path / "changed"))[0].fingerprint != before
    assert leaf.size


def _one(folder):
    return replace(evals.SWEEPS["quick"](), checkpoints=(str(folder),))
