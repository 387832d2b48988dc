"""Whatever is wrong with a folder: one line that says what, where, and what to do."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gemma4_jax import checkpoint
from gemma4_jax.errors import UserError
from tests.checkpoint.conftest import ORACLE, Case
from tests.checkpoint.folders import copy_folder

SOURCE = ORACLE / "ple"
TEXT = "model.language_model."
NORM = f"{TEXT}layers.3.input_layernorm.weight"
Tensors = dict[str, np.ndarray]


def fails(folder: Path, message: str, dtype: str = "float32") -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        checkpoint.load(folder, dtype)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if k not in names}


def replaced(name: str, value: np.ndarray) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: value}


def with_value(name: str, value: float) -> Callable[[Tensors], Tensors]:
    """The last element of a tensor changed."""

    def change(tensors: Tensors) -> Tensors:
        tensors[name] = tensors[name].copy()
        tensors[name].flat[-1] = value
        return tensors

    return change


def test_paths(tmp_path: Path) -> None:
    fails(tmp_path / "nothing", "no such folder; give a local one")
    (tmp_path / "file").write_text("x")
    fails(tmp_path / "file", "is a file; give the folder that holds config.json")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "no config.json here")
    copy_folder(SOURCE, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    fails(tmp_path / "bare", "no safetensors file here (expected model.safetensors or")


def test_folders_of_training_runs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"task": "sft", "config": {}}')
    (tmp_path / "checkpoints").mkdir()
    fails(tmp_path, "has exported no model yet; finish it with run.export_huggingface on")
    copy_folder(SOURCE, tmp_path / "huggingface")
    fails(tmp_path, f"its model is in {tmp_path / 'huggingface'}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config.json: not valid JSON: Expecting value"),
        ("[1, 2]", "config.json: must hold a JSON object, not list"),
        ('{"model_type": "llama"}', "model_type 'llama' is not supported (supported: gemma4,"),
    ],
)
def test_configs(tmp_path: Path, text: str, message: str) -> None:
    copy_folder(SOURCE, tmp_path)
    (tmp_path / "config.json").write_text(text)
    fails(tmp_path, message)


def test_generation_config(tmp_path: Path) -> None:
    copy_folder(SOURCE, tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    fails(tmp_path, "generation_config.json: not valid JSON")


def test_missing_tensors(tmp_path: Path) -> None:
    copy_folder(SOURCE, tmp_path / "one", without(NORM))
    fails(tmp_path / "one", f"1 tensors are missing that config.json implies: {NORM} [40]")
    copy_folder(SOURCE, tmp_path / "many", lambda t: {k: v for k, v in t.items() if "mlp" not in k})
    fails(tmp_path / "many", "27 tensors are missing")
    copy_folder(SOURCE, tmp_path / "all", without(f"{TEXT}embed_tokens.weight"))
    fails(tmp_path / "all", "no embed_tokens.weight under any of the prefixes")


def test_wrong_shape_names_both(tmp_path: Path) -> None:
    name = f"{TEXT}layers.0.self_attn.q_proj.weight"
    copy_folder(SOURCE, tmp_path, replaced(name, np.zeros((40, 64), np.float32)))
    fails(tmp_path, f"{name} has shape [40, 64], config.json implies [64, 40]")


def test_unexpected_tensors(tmp_path: Path) -> None:
    extra = {f"{TEXT}layers.{i}.surprise": np.zeros(3, np.float32) for i in range(5)}
    copy_folder(SOURCE, tmp_path, lambda tensors: tensors | extra)
    fails(tmp_path, "5 tensors do not belong to this model: model.language_model.layers.0.surprise")


@pytest.mark.parametrize(("dtype", "stored"), [(np.int8, "I8"), ("float8_e4m3fn", "F8_E4M3")])
def test_types_that_are_no_weights(tmp_path: Path, dtype: str, stored: str) -> None:
    import ml_dtypes

    kind = getattr(ml_dtypes, dtype) if isinstance(dtype, str) else dtype
    copy_folder(SOURCE, tmp_path, replaced(NORM, np.zeros(40, kind)))
    fails(tmp_path, f"{NORM} is stored as {stored}; supported are F64, F32, F16, BF16")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [NORM, f"{TEXT}layers.0.mlp.up_proj.weight"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_that_are_not_finite(tmp_path: Path, name: str, value: float, dtype: str) -> None:
    copy_folder(SOURCE, tmp_path, with_value(name, value))
    fails(tmp_path, f"{name} holds NaN or Inf; the checkpoint is broken", dtype)


def test_values_too_large_for_the_wanted_type(tmp_path: Path) -> None:
    copy_folder(SOURCE, tmp_path, with_value(NORM, 1e5))
    fails(tmp_path, f"{NORM} holds values too large for float16; load it as float32", "float16")
    assert checkpoint.load_params(tmp_path, checkpoint.describe(tmp_path).config, "bfloat16")


def test_truncated_files(tmp_path: Path) -> None:
    copy_folder(SOURCE, tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for size, message in (
        (0, "is truncated or no safetensors file: its header would take 0 bytes, the file has 0"),
        (5, "is truncated or no safetensors file: its header would take"),
        (1000, "is truncated or no safetensors file: its header would take"),
        (len(whole) - 1, f"would end at byte {len(whole)}, the file has {len(whole) - 1}"),
    ):
        file.write_bytes(whole[:size])
        fails(tmp_path, message)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    fails(tmp_path, "a Git LFS pointer is not the file itself")


def header_changed(folder: Path, change: Callable[[dict], object]) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = change(json.loads(data[8 : 8 + length]))
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + length :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: b"{not json", "its header is not the JSON it should be"),
        (lambda header: [1], "its header is not the JSON it should be"),
        (
            lambda header: header | {"x": {"dtype": "F32"}},
            "its header is not the JSON it should be",
        ),
        (
            lambda header: header | {"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}},
            "x is F32 [3], 12 bytes, but its data offsets [0, 4] say otherwise",
        ),
    ],
)
def test_damaged_headers(tmp_path: Path, change: Callable[[dict], object], message: str) -> None:
    copy_folder(SOURCE, tmp_path)
    header_changed(tmp_path, change)
    fails(tmp_path, message)


def test_shards(tmp_path: Path) -> None:
    index = "model.safetensors.index.json"
    folder = copy_folder(SOURCE, tmp_path / "lost", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    fails(folder, f"shard 'model-00002-of-00002.safetensors' of {index} is not in the folder")
    folder = copy_folder(SOURCE, tmp_path / "bad", shards=2)
    (folder / index).write_text('{"weight_map": 3}')
    fails(folder, "weight_map must be an object of file names")
    (folder / index).write_text('{"weight_map": {"a": "../outside.safetensors"}}')
    fails(folder, "shard '../outside.safetensors'")
    folder = copy_folder(SOURCE, tmp_path / "index", shards=2)
    places = json.loads((folder / index).read_text())
    places["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    (folder / index).write_text(json.dumps(places))
    fails(folder, f"1 tensors of {index} are in no shard: ghost")
    (folder / index).unlink()
    fails(folder, "2 safetensors files but neither model.safetensors nor")


def test_arguments(ple: Case) -> None:
    with pytest.raises(UserError, match="unknown dtype 'int8'"):
        checkpoint.load(ple.folder, dtype="int8")
