"""The safetensors format: which tensors a folder holds, and their bytes.

Files are read with `pread` into memory the caller owns. Not mapped: mapped pages count as resident
memory, and a checkpoint would be held twice. Not here: what the tensors mean (`huggingface.py`).

A file is 8 bytes of header length (little endian), a JSON header with dtype, shape and data_offsets
of every name, and the tensors' bytes in row-major order
(https://github.com/huggingface/safetensors#format).
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gemma4_jax.errors import UserError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Bytes an element takes, of the types that may stand in a file without being weights of ours.
_SIZES = {name: dtype.itemsize for name, dtype in DTYPES.items()} | {
    **{"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8},
    **{"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1},
}
# transformers insists on a format; the other key tells our exports from other people's folders.
_METADATA = {"format": "pt", "written_by": "gemma4_jax"}
_MAX_HEADER = 100_000_000  # the reference implementation's own limit


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: `nbytes` bytes from `offset`; `dtype` as the format spells it (BF16)."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file; UserError if the file is damaged, cut short or something else."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise _damaged(file, size, f"its header would take {length} bytes")
            raw = stream.read(length)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = {name: _entry(file, name, info, 8 + length) for name, info in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise _damaged(file, size, "its header is not the JSON it should be") from None
    for tensor in tensors.values():
        if tensor.offset + tensor.nbytes > size:
            raise _damaged(
                file, size, f"{tensor.name} would end at byte {tensor.offset + tensor.nbytes}"
            )
    return tensors


def _damaged(file: Path, size: int, what: str) -> UserError:
    return UserError(
        f"{file} is truncated or no safetensors file: {what}, the file has {size}; "
        "download it again (a Git LFS pointer is not the file itself)"
    )


def _entry(file: Path, name: str, info: Mapping[str, Any], data_start: int) -> StoredTensor:
    begin, end = info["data_offsets"]
    shape = tuple(int(n) for n in info["shape"])
    dtype = str(info["dtype"])
    expected = math.prod(shape) * _SIZES.get(dtype, 0)
    if begin < 0 or end < begin or (dtype in _SIZES and end - begin != expected):
        raise UserError(
            f"{file}: {name} is {dtype} {list(shape)}, {expected} bytes, but its data offsets "
            f"[{begin}, {end}] say otherwise; the file is damaged"
        )
    return StoredTensor(file, name, dtype, shape, data_start + begin, end - begin)


def read_folder(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder, in one file or in shards with an index."""
    if (folder / INDEX_NAME).is_file():
        return _read_shards(folder)
    if (folder / SINGLE_NAME).is_file():
        return read_header(folder / SINGLE_NAME)
    found = sorted(p.name for p in folder.glob("*.safetensors"))
    if len(found) == 1:
        return read_header(folder / found[0])
    if found:
        raise UserError(
            f"{folder}: {len(found)} safetensors files but neither {SINGLE_NAME} nor {INDEX_NAME}, "
            "which says what is where"
        )
    raise UserError(f"{folder}: no safetensors file here (expected {SINGLE_NAME} or {INDEX_NAME})")


def _read_shards(folder: Path) -> dict[str, StoredTensor]:
    index = read_json(folder / INDEX_NAME)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
        raise UserError(f"{folder / INDEX_NAME}: weight_map must be an object of file names")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise UserError(f"{folder}: shard {shard!r} of {INDEX_NAME} is not in the folder")
        tensors |= read_header(folder / shard)
    if lost := sorted(set(places) - set(tensors)):
        raise UserError(
            f"{folder}: {len(lost)} tensors of {INDEX_NAME} are in no shard: {', '.join(lost[:3])}"
        )
    return tensors


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; UserError naming the file otherwise."""
    try:
        value = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: must hold a JSON object, not {type(value).__name__}")
    return value


def pread_into(descriptor: int, view: memoryview, offset: int, file: Path) -> None:
    """Fill `view` from a file; safe to call from several threads at once."""
    done = 0
    while done < len(view):
        try:
            got = os.preadv(descriptor, [view[done:]], offset + done)
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from None
        if got == 0:
            raise UserError(f"{file} ends at byte {offset + done}, {len(view) - done} too early")
        done += got


def pread_rows(descriptor: int, rows: np.ndarray, offset: int, stride: int, file: Path) -> None:
    """Fill `rows` [R, C] from a file in which each row begins `stride` bytes after the one before it.

    Of what lies between two rows nothing is read: a call a row is 1 to 3 us, which moves 10 kB.
    """
    raw = rows.view(np.uint8).reshape(-1).data
    width = len(raw) // len(rows)
    if width == stride:
        pread_into(descriptor, raw, offset, file)
        return
    for number in range(len(rows)):
        here = raw[number * width : (number + 1) * width]
        pread_into(descriptor, here, offset + number * stride, file)


def header_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """Header of a file that holds `tensors` {name: (dtype, shape)} one after another, in order."""
    header: dict[str, Any] = {"__metadata__": _METADATA}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * _SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # tensors start aligned
    return len(raw).to_bytes(8, "little") + raw


def format_name(dtype: np.dtype[Any]) -> str:
    """What the format calls a float type of numpy's."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def written_by_us(file: Path) -> bool:
    """Whether a safetensors file has the mark that `header_bytes` leaves."""
    with file.open("rb") as stream:
        return json.dumps(_METADATA, separators=(",", ":")).encode() in stream.read(200)
