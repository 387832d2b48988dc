"""What save_huggingface writes is what was loaded, and what transformers loads."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gemma4_jax import checkpoint
from gemma4_jax.build import build
from gemma4_jax.config import ModelConfig
from gemma4_jax.errors import UserError
from gemma4_jax.model.transformer import abstract_params
from gemma4_jax.presets import preset
from gemma4_jax.text.tokenizer import Tokenizer
from tests.checkpoint.conftest import Case
from tests.checkpoint.folders import copy_folder, read_tensors
from tests.oracle.theirs import their_logits


def equal_bytes(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].shape, a[name].dtype) == (b[name].shape, b[name].dtype), name
        assert a[name].tobytes() == b[name].tobytes(), name


def test_there_and_back_is_byte_for_byte(case: Case, tmp_path: Path) -> None:
    checkpoint.save_huggingface(case.model, tmp_path / "out")
    equal_bytes(read_tensors(case.folder), read_tensors(tmp_path / "out"))
    again = checkpoint.load(tmp_path / "out")
    assert again.config == case.model.config


@pytest.mark.parametrize("blocks", [1, 700, 4096])
def test_blocks_of_any_size(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    monkeypatch.setattr("gemma4_jax.checkpoint.writing.BLOCK_BYTES", blocks)
    checkpoint.save_huggingface(case.model, tmp_path / "out")
    equal_bytes(read_tensors(case.folder), read_tensors(tmp_path / "out"))


def test_bfloat16_there_and_back(case: Case, tmp_path: Path) -> None:
    folder = copy_folder(
        case.folder,
        tmp_path / "bf16",
        lambda tensors: {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()},
    )
    model = checkpoint.load(folder, dtype="bfloat16")
    checkpoint.save_huggingface(model, tmp_path / "out")
    equal_bytes(read_tensors(folder), read_tensors(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    # float32 parameters, stored smaller because asked to
    checkpoint.save_huggingface(case.model, tmp_path / "small", dtype="bfloat16")
    equal_bytes(read_tensors(folder), read_tensors(tmp_path / "small"))


def test_shards_and_index(case: Case, tmp_path: Path) -> None:
    checkpoint.save_huggingface(case.model, tmp_path / "out", max_shard_bytes=100_000)
    equal_bytes(read_tensors(case.folder), read_tensors(tmp_path / "out"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    tensors = read_tensors(case.folder)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    sizes = [f.stat().st_size for f in (tmp_path / "out").glob("model-*.safetensors")]
    assert len(sizes) == len(set(index["weight_map"].values())) > 3
    jax.tree.map(
        np.testing.assert_array_equal, checkpoint.load(tmp_path / "out").params, case.model.params
    )


def test_sharded_parameters(ple: Case, tmp_path: Path) -> None:
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def place(path: Any, leaf: jax.Array) -> jax.Array:
        axis = {"table": 0, "projection": 0, "q_proj": leaf.ndim - 3}.get(path[-1].key)
        if axis is None:
            return leaf
        spec = jax.sharding.PartitionSpec(*[None] * axis, "d")
        return jax.device_put(leaf, jax.NamedSharding(mesh, spec))

    params = jax.tree_util.tree_map_with_path(place, ple.model.params)
    model = replace(ple.model, params=params)
    checkpoint.save_huggingface(model, tmp_path / "out")
    equal_bytes(read_tensors(ple.folder), read_tensors(tmp_path / "out"))


def test_tokenizer_and_stop_ids_go_along(ple: Case, tmp_path: Path) -> None:
    ids = replace(ple.model.config.token_ids, eos=(1, 106, 50), suppress=(9, 8))
    config = replace(ple.model.config, token_ids=ids)
    model = replace(ple.model, config=config, tokenizer=Tokenizer.builtin())
    checkpoint.save_huggingface(model, tmp_path / "out")
    about = checkpoint.describe(tmp_path / "out")
    assert about.config == config
    assert about.tokenizer is not None
    assert about.tokenizer.encode("two words") == Tokenizer.builtin().encode("two words")


def test_what_may_be_replaced(ple: Case, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    checkpoint.save_huggingface(ple.model, out)
    checkpoint.save_huggingface(ple.model, out, dtype="bfloat16")  # an earlier export: replaced
    assert {t.dtype for t in read_tensors(out).values()} == {np.dtype(ml_dtypes.bfloat16)}
    foreign = copy_folder(ple.folder, tmp_path / "foreign")
    with pytest.raises(UserError, match="exists and is no earlier export"):
        checkpoint.save_huggingface(ple.model, foreign)
    assert {t.dtype for t in read_tensors(foreign).values()} == {np.dtype(np.float32)}
    checkpoint.save_huggingface(ple.model, foreign, dtype="bfloat16", overwrite=True)
    assert {t.dtype for t in read_tensors(foreign).values()} == {np.dtype(ml_dtypes.bfloat16)}
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file; give the name of a folder"):
        checkpoint.save_huggingface(ple.model, tmp_path / "file")
    with pytest.raises(UserError, match="unknown dtype 'int8'"):
        checkpoint.save_huggingface(ple.model, tmp_path / "other", dtype="int8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "foreign", "new"]


def test_a_failed_export_leaves_the_old_one(
    ple: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save_huggingface(ple.model, tmp_path / "out")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gemma4_jax.checkpoint.writing._pwrite", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save_huggingface(ple.model, tmp_path / "out", dtype="bfloat16")
    equal_bytes(read_tensors(ple.folder), read_tensors(tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_transformers_computes_the_same(
    case: Case, tmp_path: Path, transformers: ModuleType
) -> None:
    checkpoint.save_huggingface(case.model, tmp_path / "out")
    theirs = their_logits(transformers, tmp_path / "out", case.vectors["input_ids"])
    np.testing.assert_array_equal(theirs, case.vectors["logits"])


@pytest.mark.parametrize(
    ("name", "hf_type"),
    [
        ("tiny-ple", "gemma4_text"),
        ("tiny-moe", "gemma4_text"),
        ("tiny-dense", "gemma4"),
        ("tiny-dense", "gemma4_unified"),
    ],
)
def test_transformers_loads_every_kind_of_export(
    tmp_path: Path, transformers: ModuleType, name: str, hf_type: str
) -> None:
    config = replace(preset(name), hf_type=hf_type)
    model = build(config, random_params(config))
    checkpoint.save_huggingface(model, tmp_path / "out")
    tokens = np.arange(3, 83, dtype=np.int32).reshape(2, 40)  # past the window of 32
    theirs = their_logits(transformers, tmp_path / "out", tokens)
    ours = np.asarray(model.logits(tokens))
    np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=0)
    assert np.abs(ours).max() > 1


def random_params(config: ModelConfig) -> dict[str, Any]:
    """Parameters of which no two leaves are alike, scales of norms included."""
    rng = np.random.default_rng(7)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        noise = rng.standard_normal(leaf.shape)
        scalar = path[-1].key in ("scale", "layer_scalar", "router_scale", "expert_scale")
        return jnp.asarray(1 + 0.2 * noise if scalar else 0.1 * noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))
