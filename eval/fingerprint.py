"""Which model it was: a digest of all that decides what it writes, cheap enough for the largest.

Weights are not read whole: of every tensor's bytes a few places are, so that changing any one tensor (a merged
adapter, another step) changes the digest, and 60 GB take a second. A single changed number may escape.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemma4_jax.checkpoint.description import CONFIG, GENERATION
from gemma4_jax.errors import UserError
from gemma4_jax.text import chat

# Bytes that are read at each place, and most bytes between places of files whose tensors are not known.
_READ, _EVERY = 4096, 4 << 20
# Files beside the weights that change what a model writes.
_BESIDE = (CONFIG, GENERATION, "tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def model_fingerprint(folder: Path, weights: Path, dtype: str, template: str) -> str:
    """16 hexadecimal digits of a model.

    folder: has its configuration and tokenizer; weights: the folder of its safetensors, or what Orbax wrote.
    dtype: in which it computes. template: how it is prompted (`template_hash`).
    """
    digest = hashlib.sha256(f"{dtype} {template}\n".encode())
    for name in _BESIDE:
        file = folder / name
        if file.is_file():
            content = file.read_bytes()
            digest.update(f"{name} {len(content)}\n".encode() + content)
    for file in _files(weights):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(weights)} {size}\n".encode())
        with file.open("rb") as handle:
            for place in sorted(set(_places(handle, size))):
                handle.seek(place)
                digest.update(handle.read(_READ))
    return digest.hexdigest()[:16]


def template_hash(family: str) -> str:
    """16 hexadecimal digits of how this version writes prompts: another template is another model to a
    score."""
    probe = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    texts = [
        chat.render(messages, enable_thinking=thinking, family=family)
        for messages in (probe, probe[1:])
        for thinking in (False, True)
    ]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def data_digest(path: Path) -> str:
    """SHA-256 of a benchmark's file, or of the names and contents of a folder's files."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_file():
        return _sha256(path)
    digest = hashlib.sha256()
    for file in sorted(found for found in path.rglob("*") if found.is_file()):
        digest.update(f"{file.relative_to(path)} {_sha256(file)}\n".encode())
    return digest.hexdigest()


def _files(weights: Path) -> list[Path]:
    """Those that hold numbers."""
    if found := sorted(weights.glob("*.safetensors")):
        return found
    inside = weights / "params" if (weights / "params").is_dir() else weights
    return sorted(path for path in inside.rglob("*") if path.is_file())


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None


def _places(handle: Any, size: int) -> Iterator[int]:
    """Where to read: the beginning and the end, every so often, and three places of each tensor."""
    yield from (0, max(0, size - _READ))
    yield from range(0, size, _EVERY)
    if not handle.name.endswith(".safetensors"):
        return
    length = int.from_bytes(handle.read(8), "little")
    try:
        header = json.loads(handle.read(min(length, size)))
        spans = [v["data_offsets"] for name, v in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # damaged; loading it says so
    yield from range(8, 8 + length, _READ)
    for begin, end in spans:
        first = 8 + length + begin
        last = max(first, 8 + length + end - _READ)
        yield from (first, (first + last) // 2, last)
