"""Hugging Face folders of every kind load to the same parameters."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gemma4_jax import checkpoint
from gemma4_jax.config import ModelConfig
from gemma4_jax.sharding import make_mesh
from tests.checkpoint.conftest import Case
from tests.checkpoint.folders import copy_folder

Tensors = dict[str, np.ndarray]


def same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_logits_are_the_oracles(case: Case) -> None:
    logits = case.model.logits(case.vectors["input_ids"].astype(np.int32))
    np.testing.assert_allclose(logits, case.vectors["logits"], atol=1e-3, rtol=0)


def test_released_dialect(case: Case, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((case.folder / "config_release.json").read_bytes())
    (tmp_path / "model.safetensors").symlink_to(case.folder / "model.safetensors")
    model = checkpoint.load(tmp_path)
    assert model.config == case.model.config
    same(model.params, case.model.params)


def test_shards(case: Case, tmp_path: Path) -> None:
    same(checkpoint.load(copy_folder(case.folder, tmp_path, shards=3)).params, case.model.params)


@pytest.mark.parametrize("prefix", ["model.language_model.", "model.", "language_model.", ""])
def test_prefixes(ple: Case, tmp_path: Path, prefix: str) -> None:
    def rename(tensors: Tensors) -> Tensors:
        return {prefix + k.removeprefix("model.language_model."): v for k, v in tensors.items()}

    same(checkpoint.load(copy_folder(ple.folder, tmp_path, rename)).params, ple.model.params)


@pytest.mark.parametrize("wanted", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_float_types(case: Case, tmp_path: Path, stored: Any, wanted: Any) -> None:
    def convert(tensors: Tensors) -> Tensors:
        return {name: value.astype(stored) for name, value in tensors.items()}

    model = checkpoint.load(copy_folder(case.folder, tmp_path, convert), dtype=wanted)
    same(
        model.params,
        jax.tree.map(lambda x: np.asarray(x).astype(stored).astype(wanted), case.model.params),
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype(wanted)}
    assert model.module.dtype == wanted


def test_blocks_of_any_size_fill_the_same_leaves(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that do and do not divide the rows; and blocks above and below the XLA transpose."""
    for nbytes in (1, 700, 4096):
        monkeypatch.setattr("gemma4_jax.checkpoint.reading.BLOCK_BYTES", nbytes)
        same(checkpoint.load_params(case.folder, case.model.config), case.model.params)
    monkeypatch.setattr("gemma4_jax.checkpoint.transpose._SMALL", 0)
    same(checkpoint.load_params(case.folder, case.model.config), case.model.params)
    monkeypatch.setattr("gemma4_jax.checkpoint.transpose._cpu_device", lambda: None)
    same(checkpoint.load_params(case.folder, case.model.config), case.model.params)


def with_unused_kv(config: ModelConfig) -> Callable[[Tensors], Tensors]:
    """Adds what Google's E2B and E4B files hold for layers that share."""

    def add(tensors: Tensors) -> Tensors:
        for layer in config.layers[config.first_shared_layer :]:
            name = f"model.language_model.layers.{layer.index}.self_attn."
            size = layer.num_kv_heads * layer.head_dim
            for kind in ("k_proj", "v_proj"):
                tensors[f"{name}{kind}.weight"] = np.ones((size, config.d_model), np.float32)
            tensors[f"{name}k_norm.weight"] = np.ones(layer.head_dim, np.float32)
        return tensors

    return add


def test_unused_kv_of_shared_layers(
    ple: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_folder(ple.folder, tmp_path, with_unused_kv(ple.model.config))
    with caplog.at_level(logging.INFO, "gemma4_jax"):
        same(checkpoint.load(folder).params, ple.model.params)
    (line,) = caplog.messages
    assert "ignored unused K/V of layers that share: 15 tensors" in line


def test_towers_are_skipped_with_one_line(
    case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def add(tensors: Tensors) -> Tensors:
        return tensors | {
            "model.vision_tower.patch.weight": np.ones((500, 10), np.float32),
            "model.audio_tower.step": np.ones((3,), np.int8),  # no float, and not looked at
            "model.embed_vision.embedding_projection.weight": np.full((2, 2), np.nan, np.float32),
        }

    same(checkpoint.load(copy_folder(case.folder, tmp_path, add)).params, case.model.params)
    (line,) = caplog.messages  # a warning: visible without any logging set up
    assert "skipped audio_tower, embed_vision, vision_tower: 3 tensors, 0.0 MB" in line


def test_an_output_head_is_the_table_or_ignored_with_a_word(
    ple: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def tied(tensors: Tensors) -> Tensors:
        return tensors | {"lm_head.weight": tensors["model.language_model.embed_tokens.weight"]}

    def untied(tensors: Tensors) -> Tensors:
        return tied(tensors) | {"lm_head.weight": tied(tensors)["lm_head.weight"] + 1}

    same(checkpoint.load(copy_folder(ple.folder, tmp_path / "a", tied)).params, ple.model.params)
    assert caplog.messages == []
    same(checkpoint.load(copy_folder(ple.folder, tmp_path / "b", untied)).params, ple.model.params)
    (line,) = caplog.messages
    assert "lm_head.weight differs from the embedding table and is ignored" in line


def test_generation_config_and_tokenizer_come_along(ple: Case, tmp_path: Path) -> None:
    copy_folder(ple.folder, tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 106, 50]}')
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    model = checkpoint.load(tmp_path)
    assert model.config.token_ids.eos == (1, 106, 50)
    assert model.tokenizer is None
    assert model.chat_template == "{{ messages }}"


@pytest.mark.parametrize("sizes", [None, {"data": 2, "fsdp": 2}])
def test_the_arrays_own_their_memory(ple: Case, sizes: dict[str, int] | None) -> None:
    """Donating adopted memory, which devices may share, must not reach other arrays."""
    mesh = None if sizes is None else make_mesh(sizes)
    params = checkpoint.load_params(ple.folder, ple.model.config, mesh=mesh)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree), donate_argnums=0)
    twice = step(step(params))
    same(twice, jax.tree.map(lambda x: np.asarray(x) * 4, ple.model.params))
