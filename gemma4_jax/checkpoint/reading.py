"""A Hugging Face folder's weights into our parameter tree.

Each slice of a leaf is allocated once, in its final form, and filled block by block from the files: a
block is read with `pread`, converted, checked and transposed into place. Beside the result, memory holds a
few blocks (about 4 MiB a thread): a float32 tree comes out of a bfloat16 file without a second copy of
either. Without a mesh a leaf is one slice; with one, a process reads the bytes of its own devices' slices
and no others.

Not here: names (`huggingface.py`), which tensors are read at all (`matching.py`), what of them belongs to a
slice (`slices.py`), the file format (`safetensors.py`), config and tokenizer (`description.py`).
"""

import functools
import math
import operator
import os
import threading
from collections.abc import Callable, Iterator, Sequence
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
from gemma4_jax.checkpoint.safetensors import DTYPES, StoredTensor, pread_rows, read_folder
from gemma4_jax.checkpoint.slices import Bounds, Box, Span, bounds_of, own_bounds, regions
from gemma4_jax.checkpoint.transpose import transpose_into
from gemma4_jax.config import ModelConfig
from gemma4_jax.distributed import all_succeed
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
    places: Params | None = None,
    finish: Callable[[Path_, jax.Array], Any] = lambda path, leaf: leaf,
) -> Params:
    """The parameter tree of a folder's text model, all leaves of `dtype`.

    places: a sharding for every leaf; None: all on the default device. On the CPU the arrays adopt the
    memory they were read into. finish: what takes the leaf's place, such as its quantised form; the leaf is
    gone before the next one is read.

    Raises UserError for damaged files, missing or unexpected tensors, shapes the config does not
    imply, types that are no floats, and values that are not finite in `dtype`; where several processes
    read, in all of them.
    """
    alone = all(place.is_fully_addressable for place in jax.tree.leaves(places))
    with all_succeed(f"read {folder}", alone):
        sources = match(folder, config, read_folder(folder))
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
            place = None if places is None else _at(places, path)
            boxes = [
                Box(leaf.shape, bounds, _allocate(bounds, np.dtype(leaf.dtype)))
                for bounds in own_bounds(leaf.shape, place)
            ]
            jobs: list[_Block] = []
            for tensor, part in pieces[path]:
                source = sources[tensor.name]
                jobs.extend(_blocks(tensor, part, source, files[source.file], boxes))
            with all_succeed(f"read its slices of {folder}", alone):
                for _ in pool.map(lambda block: block.read(scratch), jobs):
                    pass
            array = _placed(boxes, place)
            del boxes, jobs
            _insert(params, path, finish(path, array))
    return params


def _allocate(bounds: Bounds, dtype: np.dtype[Any]) -> np.ndarray:
    """Uninitialised memory for a box that a CPU jax array can adopt."""
    shape = [stop - start for start, stop in bounds]
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def _placed(boxes: Sequence[Box], place: jax.sharding.Sharding | None) -> jax.Array:
    """The leaf whose boxes these are."""
    if place is None:
        return jax.device_put(boxes[0].array).block_until_ready()
    shape, arrays = boxes[0].shape, {box.bounds: box.array for box in boxes}
    return jax.make_array_from_callback(
        shape, place, lambda index: arrays[bounds_of(shape, index or ())]
    ).block_until_ready()


@dataclass(frozen=True)
class _Block:
    """Some rows of a region: where they begin in the file, `stride` bytes apart, and where they go."""

    source: StoredTensor
    descriptor: int
    offset: int
    stride: int
    shape: tuple[int, int]
    targets: tuple[tuple[Span, np.ndarray], ...]
    transposed: bool

    def read(self, scratch: "_Scratch") -> None:
        """Read, check, convert, transpose; the last two in the order that moves fewer bytes."""
        first = self.targets[0][1]
        stored, wanted = DTYPES[self.source.dtype], first.dtype
        direct = not self.transposed and stored == wanted and len(self.targets) == 1
        rows = first if direct else scratch.array("rows", self.shape, stored)
        pread_rows(self.descriptor, rows, self.offset, self.stride, self.source.file)
        values = rows
        if stored != wanted and stored.itemsize >= wanted.itemsize:
            values = scratch.array("values", rows.shape, wanted)
            with np.errstate(over="ignore", invalid="ignore"):  # _check_finite says it better
                values[...] = rows
        _check_finite(self.source, rows, values)
        if direct:
            return
        for (start, stop), target in self.targets:
            if self.transposed:
                transpose_into(target, values[:, start:stop])
            else:
                target[...] = values[:, start:stop]


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
    tensor: TextTensor, part: Part, source: StoredTensor, descriptor: int, boxes: Sequence[Box]
) -> Iterator[_Block]:
    """Cut what the boxes need of a part into blocks of about BLOCK_BYTES."""
    _, rows, columns = tensor.matrices
    stored = DTYPES[source.dtype]
    for region in regions(tensor, part, boxes):
        start, stop = region.columns
        wide = max(stored.itemsize, boxes[0].array.itemsize)
        step = max(1, BLOCK_BYTES // ((stop - start) * wide))
        first, last = region.rows
        for row in range(first, last, step):
            to = slice(row - first, min(row + step, last) - first)
            targets = tuple(
                (of_columns, array[:, to] if part.transposed else array[to])
                for of_columns, array in region.targets
            )
            place = (region.number * rows + row) * columns + start
            yield _Block(
                source=source,
                descriptor=descriptor,
                offset=source.offset + place * stored.itemsize,
                stride=columns * stored.itemsize,
                shape=(to.stop - to.start, stop - start),
                targets=targets,
                transposed=part.transposed,
            )


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


def _at(tree: Params, path: Path_) -> Any:
    return functools.reduce(operator.getitem, path, tree)


def _insert(tree: Params, path: Path_, leaf: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf
