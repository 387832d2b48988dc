"""Folders of our own, there and back."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax import checkpoint
from gemma4_jax.errors import UserError
from gemma4_jax.text.tokenizer import Tokenizer
from tests.checkpoint.conftest import ORACLE, Case


def test_there_and_back(case: Case, tmp_path: Path) -> None:
    checkpoint.save(case.model, tmp_path / "ours")
    again = checkpoint.load(tmp_path / "ours")
    assert again.config == case.model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, case.model.params)


def test_restores_in_another_type(ple: Case, tmp_path: Path) -> None:
    checkpoint.save(ple.model, tmp_path / "ours")
    small = checkpoint.load(tmp_path / "ours", dtype="bfloat16").params
    jax.tree.map(
        np.testing.assert_array_equal,
        small,
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), ple.model.params),
    )


def test_everything_else_comes_along(ple: Case, tmp_path: Path) -> None:
    ids = replace(ple.model.config.token_ids, eos=(1, 106), suppress=(7,))
    model = replace(
        ple.model,
        config=replace(ple.model.config, token_ids=ids),
        tokenizer=Tokenizer.builtin(),
    )
    checkpoint.save(model, tmp_path / "ours")
    about = checkpoint.describe(tmp_path / "ours")
    assert about.config == model.config
    assert about.tokenizer is not None and about.tokenizer.vocab_size == 262_144


def test_what_may_be_replaced(ple: Case, tmp_path: Path) -> None:
    checkpoint.save(ple.model, tmp_path / "ours")
    checkpoint.save(ple.model, tmp_path / "ours")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="is no earlier model folder"):
        checkpoint.save(ple.model, tmp_path / "other")
    checkpoint.save(ple.model, tmp_path / "other", overwrite=True)
    assert checkpoint.describe(tmp_path / "other").config == ple.model.config
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "ours"]


def damaged(source: Path, target: Path, **keys: object) -> Path:
    """A copy whose config.json says something else."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    config.get("text_config", config).update(keys)
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_errors(ple: Case, tmp_path: Path) -> None:
    good = tmp_path / "ours"
    checkpoint.save(ple.model, good)
    with pytest.raises(UserError, match=r"embed/table has shape \[256, 40\], .* \[300, 40\]"):
        checkpoint.load(damaged(good, tmp_path / "wide", vocab_size=300))
    with pytest.raises(UserError, match="parameters do not belong to this model: per_layer_embed"):
        checkpoint.load(damaged(good, tmp_path / "plain", hidden_size_per_layer_input=0))
    checkpoint.save(checkpoint.load(ORACLE / "dense"), tmp_path / "dense")
    with pytest.raises(UserError, match="parameters are missing: per_layer_embed/norm/scale"):
        checkpoint.load(damaged(tmp_path / "dense", tmp_path / "d", hidden_size_per_layer_input=4))
    shutil.copytree(good, tmp_path / "cut")
    for file in (tmp_path / "cut" / "params").rglob("*"):
        if file.is_file() and "/d/" in str(file):
            file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be restored, it is damaged") as caught:
        checkpoint.load(tmp_path / "cut")
    assert "\n" not in str(caught.value)


def test_values_that_are_not_finite(ple: Case, tmp_path: Path) -> None:
    params = dict(ple.model.params)
    params["final_norm"] = {"scale": params["final_norm"]["scale"].at[3].set(jnp.nan)}
    checkpoint.save(replace(ple.model, params=params), tmp_path / "ours")
    with pytest.raises(UserError, match="final_norm/scale holds NaN or Inf"):
        checkpoint.load(tmp_path / "ours")
