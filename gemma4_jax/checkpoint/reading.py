"""A Hugging Face folder's weights into our parameter tree.

Each leaf is allocated once, in its final form, and filled block by block from the files: a block is
read with `pread`, converted, checked and transposed into place. Beside the result, memory holds a
few blocks (about 4 MiB a thread): a float32 tree comes out of a bfloat16 file without a second
copy of either.

Not here: names (`huggingface.py`), which tensors are read at all (`matching.py`), the file format
(`safetensors.py`), config and tokenizer (`description.py`).
"""

import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gemma4_jax.checkpoint.host import all_finite
from gemma4_jax.checkpoint.huggingface import Part, TextTensor, text_tensors
from gemma4_jax.checkpoint.matching import match
from gemma4_jax.checkpoint.safetensors import DTYPES, StoredTensor, pread_into, read_folder
from gemma4_jax.checkpoint.transpose import transpose_into
from gemma4_jax.config import ModelConfig
from gemma4_jax.errors import UserError
from gemma4_jax.model.transformer import abstract_params

BLOCK_BYTES = 1 << 20
_MAX_THREADS = 8
_ALIGNMENT = 64  # what XLA:CPU wants of memory that it adopts instead of copying

Params = dict[str, Any]
Path_ = tuple[str, ...]


def read_params(
    folder: Path,
    config: ModelConfig,
    dtype: Any,
    sharding_for: Callable[[Path_], jax.sharding.Sharding | None] = lambda path: None,
    finish: Callable[[Path_, jax.Array], Any] = lambda path, leaf: leaf,
) -> Params:
    """The parameter tree of a folder's text model, all leaves of `dtype`.

    sharding_for: where to put the leaf of a path (keys from the root); None: the default device. On
    the CPU the arrays adopt the memory they were read into. finish: what takes the leaf's place, such
    as its quantised form; the leaf is gone before the next one is read.

    Raises UserError for damaged files, missing or unexpected tensors, shapes the config does not
    imply, types that are no floats, and values that are not finite in `dtype`.
    """
    stored = read_folder(folder)
    sources = match(folder, config, stored)
    pieces: dict[Path_, list[tuple[TextTensor, Part]]] = {}
    for tensor in text_tensors(config):
        for part in tensor.parts:
            pieces.setdefault(part.path, []).append((tensor, part))
    params: Params = {}
    with ExitStack() as stack:
        files = {}
        for file in {source.file for source in sources.values()}:
            files[file] = os.open(file, os.O_RDONLY)
            stack.callback(os.close, files[file])
        threads = min(_MAX_THREADS, os.cpu_count() or 1)
        scratch = _Scratch()
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        for path, leaf in _leaves(abstract_params(config, dtype)):
            array = _allocate(leaf.shape, np.dtype(leaf.dtype))
            jobs: list[_Block] = []
            for tensor, part in pieces[path]:
                source = sources[tensor.name]
                jobs.extend(_blocks(tensor, part, source, files[source.file], array))
            for _ in pool.map(lambda block: block.read(scratch), jobs):
                pass
            leaf = jax.device_put(array, sharding_for(path)).block_until_ready()
            _insert(params, path, finish(path, leaf))
    return params


def _allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Uninitialised memory that a CPU jax array can adopt."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes].view(dtype).reshape(shape)


@dataclass(frozen=True)
class _Block:
    """Rows of a stored matrix and where they go: `target` is [rows, columns] or its transpose."""

    source: StoredTensor
    descriptor: int
    offset: int
    target: np.ndarray
    transposed: bool

    def read(self, scratch: "_Scratch") -> None:
        """Read, check, convert, transpose; the last two in the order that moves fewer bytes."""
        rows = self.target
        stored, wanted = DTYPES[self.source.dtype], self.target.dtype
        if self.transposed or stored != wanted:
            shape = self.target.shape[::-1] if self.transposed else self.target.shape
            rows = scratch.array("rows", shape, stored)
        raw = rows.view(np.uint8).reshape(-1).data
        pread_into(self.descriptor, raw, self.offset, self.source.file)
        values = rows
        if stored != wanted and stored.itemsize >= wanted.itemsize:
            values = scratch.array("values", rows.shape, wanted)
            with np.errstate(over="ignore", invalid="ignore"):  # _check_finite says it better
                values[...] = rows
        _check_finite(self.source, rows, values)
        if self.transposed:
            transpose_into(self.target, values)
        elif values is not self.target:
            self.target[...] = values


class _Scratch(threading.local):
    """Memory that each thread uses again and again: fresh pages would cost more than the work."""

    def __init__(self) -> None:
        self.buffers: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """An uninitialised array in this thread's buffer of that name."""
        nbytes = math.prod(shape) * dtype.itemsize
        if name not in self.buffers or self.buffers[name].nbytes < nbytes:
            self.buffers[name] = np.empty(nbytes, np.uint8)
        return self.buffers[name][:nbytes].view(dtype).reshape(shape)


def _blocks(
    tensor: TextTensor, part: Part, source: StoredTensor, descriptor: int, leaf: np.ndarray
) -> Iterator[_Block]:
    """Cut the rows of a part into blocks of about BLOCK_BYTES."""
    stack, rows, columns = tensor.matrices
    first, stop = part.rows or (0, rows)
    here = leaf[part.spans]
    swapped = part.transposed
    here = (
        here.reshape(stack, columns, stop - first) if swapped else here.reshape(stack, -1, columns)
    )
    row_bytes = columns * DTYPES[source.dtype].itemsize
    step = max(1, BLOCK_BYTES // (columns * max(leaf.itemsize, DTYPES[source.dtype].itemsize)))
    for number in range(stack):
        for row in range(first, stop, step):
            to = slice(row - first, min(row + step, stop) - first)
            target = here[number][:, to] if swapped else here[number][to]
            offset = source.offset + (number * rows + row) * row_bytes
            yield _Block(source, descriptor, offset, target, swapped)


def _check_finite(source: StoredTensor, stored: np.ndarray, values: np.ndarray) -> None:
    if all_finite(values):
        return
    if all_finite(stored):
        raise UserError(
            f"{source.file}: {source.name} holds values too large for {values.dtype.name}; "
            "load it as float32"
        )
    raise UserError(f"{source.file}: {source.name} holds NaN or Inf; the checkpoint is broken")


def _leaves(tree: Params, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _insert(tree: Params, path: Path_, leaf: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf
