"""Our parameter tree into a Hugging Face folder that transformers and other engines load.

Tensor by tensor and block by block, straight to its place in the file: beside the parameters,
memory holds a few blocks. Adapted weights are merged on the way. The folder appears under its name only
when it is complete.

Not here: names (`huggingface.py`), the header (`safetensors.py`), the files beside the weights
(`description.py`).
"""

import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gemma4_jax.build import Model, dtype_named
from gemma4_jax.checkpoint.description import refuse_taken_apart, write_description, write_json
from gemma4_jax.checkpoint.folders import replacing
from gemma4_jax.checkpoint.host import host_block
from gemma4_jax.checkpoint.huggingface import Part, TextTensor, prefix, text_tensors
from gemma4_jax.checkpoint.safetensors import (
    INDEX_NAME,
    SINGLE_NAME,
    format_name,
    header_bytes,
    written_by_us,
)
from gemma4_jax.checkpoint.transpose import transposed
from gemma4_jax.model.weights import Adapted, Quantized, dense

MAX_SHARD_BYTES = 5_000_000_000
BLOCK_BYTES = 4 << 20
# Each may hold one layer's part of a leaf that had to be fetched from an accelerator.
_THREADS = 2


def save_huggingface(
    model: Model,
    path: str | Path,
    dtype: Any = None,
    *,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write `model` as a Hugging Face folder: weights, config, generation config, tokenizer.

    dtype: of the stored weights; None: as the parameters are. overwrite: replace any folder at
    `path`; otherwise an earlier export is replaced and anything else refused. max_shard_bytes:
    weights beyond it go to several files with an index.

    Raises UserError if `path` is a file, holds something else, or cannot be written.
    """
    refuse_taken_apart(model)
    stored = dtype_named(_at(model.params, ("embed", "table")).dtype if dtype is None else dtype)
    with replacing(Path(path), _is_export, "export", overwrite) as folder:
        _write_weights(folder, model, np.dtype(stored), max_shard_bytes)
        write_description(folder, model, np.dtype(stored).name)


def _is_export(folder: Path) -> bool:
    return any(written_by_us(file) for file in folder.glob("*.safetensors"))


def _write_weights(folder: Path, model: Model, dtype: np.dtype[Any], max_shard_bytes: int) -> None:
    shards: list[list[TextTensor]] = [[]]
    size = 0
    for tensor in text_tensors(model.config):
        nbytes = math.prod(tensor.shape) * dtype.itemsize
        if shards[-1] and size + nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += nbytes
    start = prefix(model.config)
    places: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(shards, 1):
        name = SINGLE_NAME
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        total += _write_file(folder / name, model.params, start, tensors, dtype)
        places |= {start + tensor.name: name for tensor in tensors}
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(folder / INDEX_NAME, index)


def _write_file(
    file: Path,
    params: Mapping[str, Any],
    start: str,
    tensors: list[TextTensor],
    dtype: np.dtype[Any],
) -> int:
    """Write one file; returns the bytes of its tensors."""
    header = header_bytes({start + t.name: (format_name(dtype), t.shape) for t in tensors})
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(descriptor, header)
        jobs: list[_Job] = []
        offset = len(header)
        for tensor in tensors:
            jobs.extend(
                _Job(tensor, part, _at(params, part.path), dtype, descriptor, offset)
                for part in tensor.parts
            )
            offset += math.prod(tensor.shape) * dtype.itemsize
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(_Job.write, jobs):
                pass
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return offset - len(header)


@dataclass(frozen=True)
class _Job:
    """One part of a tensor on its way to the file, the tensor starting at `offset`."""

    tensor: TextTensor
    part: Part
    leaf: Any
    dtype: np.dtype[Any]
    descriptor: int
    offset: int

    def write(self) -> None:
        """Fetch, transpose, convert and write, a block of rows at a time."""
        stack, rows, columns = self.tensor.matrices
        first, stop = self.part.rows or (0, rows)
        read = self._reader(stack, stop - first, columns)
        step = max(1, BLOCK_BYTES // (columns * self.dtype.itemsize))
        for number in range(stack):
            for row in range(first, stop, step):
                block = read(number, slice(row - first, min(row + step, stop) - first))
                where = self.offset + (number * rows + row) * columns * self.dtype.itemsize
                _pwrite(self.descriptor, block.astype(self.dtype, order="C", copy=False), where)

    def _reader(self, stack: int, height: int, columns: int) -> Callable[[int, slice], np.ndarray]:
        """What returns rows of one matrix of the stack, oriented as the file wants them."""
        if not self.part.index and not self.part.transposed and self.leaf.ndim > 1:
            # The big tables: never fetched whole.
            return lambda number, rows: host_block(self.leaf, rows).reshape(-1, columns)
        values = _fetch(self.leaf, self.part.spans)
        if not self.part.transposed:
            plain = values.reshape(stack, height, columns)
            return lambda number, rows: plain[number, rows]
        turned = values.reshape(stack, columns, height)
        return lambda number, rows: transposed(turned[number, :, rows])


def _fetch(leaf: Any, spans: tuple[slice, ...]) -> np.ndarray:
    """leaf[spans] in host memory; adapters are merged and packed weights unpacked, a layer at a time."""
    if isinstance(leaf, Adapted | Quantized):
        return np.asarray(dense(jax.tree.map(lambda array: array[spans], leaf)))
    return host_block(leaf, *spans)


def _pwrite(descriptor: int, block: np.ndarray, offset: int) -> None:
    view = block.view(np.uint8).reshape(-1).data
    while len(view):
        done = os.pwrite(descriptor, view, offset)
        view, offset = view[done:], offset + done


def _at(params: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        params = params[key]
    return params
