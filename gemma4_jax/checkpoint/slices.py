"""What of a stored matrix the slices of a leaf need, and where in them it goes.

A leaf is cut into boxes, one for each distinct slice that this process's devices hold; a leaf that is not
cut is one box. Index arithmetic only. Not here: which axis is cut (gemma4_jax/sharding.py), reading
(`reading.py`).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from gemma4_jax.checkpoint.huggingface import Part, TextTensor

Span = tuple[int, int]  # first, and one after the last
Bounds = tuple[Span, ...]  # a span for every axis of a leaf


@dataclass(frozen=True)
class Box:
    """A box of a leaf of `shape`, and memory for its numbers."""

    shape: tuple[int, ...]
    bounds: Bounds
    array: np.ndarray


@dataclass(frozen=True)
class Region:
    """Neighbouring columns of some rows of a stored matrix, and where they go.

    number: of the matrix in its stack. targets: for each slice, which of the region's columns it has, and
    the array for them: [rows, columns], or the other way round if the part is transposed.
    """

    number: int
    rows: Span
    columns: Span
    targets: tuple[tuple[Span, np.ndarray], ...]


def own_bounds(shape: tuple[int, ...], sharding: jax.sharding.Sharding | None) -> list[Bounds]:
    """The distinct boxes of a leaf on this process's devices; all of it if there is no sharding."""
    if sharding is None:
        return [tuple((0, size) for size in shape)]
    indices = sharding.addressable_devices_indices_map(shape).values()
    return list(dict.fromkeys(bounds_of(shape, index) for index in indices if index is not None))


def bounds_of(shape: tuple[int, ...], index: Sequence[slice]) -> Bounds:
    """An index of slices, as numbers."""
    return tuple(cut.indices(size)[:2] for cut, size in zip(index, shape, strict=True))


def regions(tensor: TextTensor, part: Part, boxes: Sequence[Box]) -> Iterator[Region]:
    """What is to be read of a part for the boxes of its leaf, each stored number once.

    Columns that several boxes have side by side are one region: a process whose devices share whole rows
    reads them whole.
    """
    stack, rows, columns = tensor.matrices
    first, stop = part.rows or (0, rows)
    height = stop - first
    sizes = (stack, columns, height) if part.transposed else (stack, height, columns)
    found: dict[tuple[Span, Span], list[tuple[Span, np.ndarray]]] = {}
    for box in boxes:
        at = [(i - span[0], span) for i, span in zip(part.index, box.bounds, strict=False)]
        if not all(0 <= i < span[1] - span[0] for i, span in at):
            continue  # a layer that this box does not have
        of_stack, *rest = _flattened(box, len(at), sizes)
        of_rows, of_columns = reversed(rest) if part.transposed else rest
        here = box.array[tuple(slice(i, i + 1) for i, _ in at)]  # a view, also of a single number
        here = here.reshape([last - start for start, last in (of_stack, *rest)])
        of_rows = (first + of_rows[0], first + of_rows[1])
        found.setdefault((of_stack, of_rows), []).append((of_columns, here))
    for (of_stack, of_rows), cells in found.items():
        for run in _touching(cells):
            start, last = run[0][0][0], run[-1][0][1]
            for place, number in enumerate(range(*of_stack)):
                targets = tuple(
                    ((of_columns[0] - start, of_columns[1] - start), here[place])
                    for of_columns, here in run
                )
                yield Region(number, of_rows, (start, last), targets)


def _flattened(box: Box, lead: int, sizes: Sequence[int]) -> Iterator[Span]:
    """The box's bounds beyond `lead` axes, where neighbouring axes are merged to axes of `sizes`."""
    axes = list(zip(box.shape[lead:], box.bounds[lead:], strict=True))
    for size in sizes:
        whole, start, taken = 1, 0, 1
        while whole < size:
            extent, (begin, end) = axes.pop(0)
            if taken > 1 and end - begin < extent:
                raise NotImplementedError(
                    f"a leaf of shape {box.shape} is cut along an axis that is stored inside another"
                )
            whole, start, taken = whole * extent, start * extent + begin, taken * (end - begin)
        yield start, start + taken


def _touching(cells: list[tuple[Span, np.ndarray]]) -> Iterator[list[tuple[Span, np.ndarray]]]:
    """Cells in runs without gaps, in order of their spans."""
    cells = sorted(cells, key=lambda cell: cell[0])
    run = cells[:1]
    for before, cell in itertools.pairwise(cells):
        if before[0][1] != cell[0][0]:
            yield run
            run = []
        run.append(cell)
    yield run
