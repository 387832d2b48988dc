"""Hugging Face folders for tests, written from the format's description."""

import json
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gemma4_jax.checkpoint.huggingface import prefix, text_tensors
from gemma4_jax.config import ModelConfig

FORMATS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
NAMES = {dtype: name for name, dtype in FORMATS.items()}


def write_tensors(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file, from the format's description."""
    header, offset = {}, 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    raw = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(raw)) + raw)
        for array in tensors.values():
            stream.write(np.ascontiguousarray(array).tobytes())


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder's safetensors files, from the format's description."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, info in header.items():
            begin, end = (8 + length + n for n in info["data_offsets"])
            raw = np.frombuffer(data[begin:end], FORMATS[info["dtype"]])
            tensors[name] = raw.reshape(info["shape"])
    return tensors


def copy_folder(
    source: Path,
    target: Path,
    change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = dict,
    config: Callable[[dict], dict] = dict,
    shards: int = 1,
) -> Path:
    """`source` with its tensors and its config changed, in one file or in shards with an index."""
    target.mkdir(parents=True, exist_ok=True)
    settings = config(json.loads((source / "config.json").read_text()))
    (target / "config.json").write_text(json.dumps(settings))
    tensors = change(read_tensors(source))
    if shards == 1:
        write_tensors(target / "model.safetensors", tensors)
        return target
    places = {}
    for number, names in enumerate(_split(tensors, shards), 1):
        name = f"model-{number:05d}-of-{shards:05d}.safetensors"
        write_tensors(target / name, {n: tensors[n] for n in names})
        places |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    return target


def _split(names: Iterable[str], parts: int) -> list[list[str]]:
    names = list(names)
    return [names[i::parts] for i in range(parts)]  # neighbours in unlike files


def random_tensors(config: ModelConfig, dtype: Any) -> dict[str, np.ndarray]:
    """Noise for every tensor of a model, by its name in a file."""
    noise = np.random.default_rng(0).standard_normal(1_000_003).astype(dtype)
    return {
        prefix(config) + tensor.name: np.resize(noise, tensor.shape)
        for tensor in text_tensors(config)
    }
