"""Sizes that programs are compiled for, so that a few serve every prompt.

A program's shapes are its rows, its cache capacity and, for prefill, its chunk. Each is rounded up to
one of a short list: contexts of every length up to 262 144 make do with 6 chunks and 21 capacities.
"""

from collections.abc import Iterator

# Below this, padding costs less than another program.
_SMALLEST_CHUNK = 16
_SMALLEST_CAPACITY = 128


def power_of_two(size: int) -> int:
    """The next power of two, `size` itself if it is one."""
    return 1 << max(0, size - 1).bit_length()


def capacity(positions: int, largest: int) -> int:
    """Cache positions to allocate: 128, 256, 512, then also 1.5 times each, at most `largest`.

    A full layer reads all of its capacity at every step, so long caches get the finer steps: at most
    a third of what is read is empty.
    """
    size = power_of_two(max(positions, _SMALLEST_CAPACITY))
    if size >= 1024 and positions <= size // 4 * 3:
        size = size // 4 * 3
    return min(size, largest)


def chunks(length: int, largest: int) -> Iterator[tuple[int, int]]:
    """(start, size) of the chunks that cover `length` tokens: full ones, then one rounded up."""
    start = 0
    while start < length:
        size = min(largest, max(_SMALLEST_CHUNK, power_of_two(length - start)))
        yield start, size
        start += size
