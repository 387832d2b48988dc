"""Pages are never given out twice, and what is reused is what was asked for."""

import numpy as np
import pytest

from gemma4_jax.sample.paging import Pages, Prefix


class World:
    """Pages with contents, and rows that read them, checked after every move."""

    def __init__(self, count, size, snapshots):
        self.pages = Pages(count, size, snapshots)
        self.content, self.saved, self.rows = {}, {}, []

    def start(self, tokens):
        size = self.pages.size
        prefix = self.pages.find(tokens)
        assert prefix.tokens == len(prefix.pages) * size < len(tokens)
        for j, page in enumerate(prefix.pages):
            assert self.content[page] == tokens[j * size : (j + 1) * size]
        if prefix.snapshot is not None:
            assert self.saved[prefix.snapshot] == tokens[: prefix.tokens]
        self.pages.reuse(prefix, tokens)
        fresh = self.pages.take(-(-len(tokens) // size) - len(prefix.pages))
        if fresh is None:
            self.pages.release(prefix.pages)
            return False
        read = {page for _, pages in self.rows for page in pages}
        assert not read & set(fresh) and not set(prefix.pages) & set(fresh)
        pages = [*prefix.pages, *fresh]
        for j, page in enumerate(pages):
            self.content[page] = tokens[j * size : (j + 1) * size]
        self.rows.append((tokens, pages))
        return True

    def keep(self, row, held, evict=True):
        tokens, pages = self.rows[row]
        place = self.pages.keep(tokens[:held], pages, evict=evict)
        if place is not None:
            self.saved[place] = tokens[: held // self.pages.size * self.pages.size]

    def end(self, row):
        self.pages.release(self.rows.pop(row)[1])

    def check(self):
        read = {page for _, pages in self.rows for page in pages}
        assert self.pages.in_use == len(read)
        assert self.pages.available == self.pages.count - len(read)


@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_moves(seed):
    rng = np.random.default_rng(seed)
    world = World(count=24, size=4, snapshots=int(rng.integers(1, 6)))
    refused = 0
    for _ in range(1500):
        move = rng.integers(4)
        if move == 0:
            # Few different tokens: many prompts begin alike.
            refused += not world.start(rng.integers(2, size=int(rng.integers(1, 30))).tolist())
        elif world.rows:
            row = int(rng.integers(len(world.rows)))
            if move == 1:
                world.end(row)
            else:
                held = int(rng.integers(len(world.rows[row][0]) + 1))
                world.keep(row, held, evict=bool(move == 2))
        world.check()
    assert refused
    while world.rows:
        world.end(0)
    world.pages.forget()
    assert world.pages.available == 24 and world.pages.find([0] * 9) == Prefix()


def test_a_prefix_needs_pages_and_a_snapshot():
    world = World(count=8, size=4, snapshots=1)
    one, other = list(range(10)), [*range(8), 99, 98]
    assert world.start(one)
    world.keep(0, 10)
    assert world.pages.find(other).tokens == 8
    assert world.pages.find(one[:8]).tokens == 0  # one token is always left to read
    assert world.start([50] * 5)
    world.keep(1, 5)  # takes the only snapshot
    assert world.pages.find(other).tokens == 0
    world.keep(0, 10, evict=False)
    assert world.pages.find(other).tokens == 0
    world.keep(0, 10)
    assert world.pages.find(other).tokens == 8


def test_the_least_used_go_first():
    world = World(count=4, size=4, snapshots=4)
    for first in (1, 2):
        assert world.start([first] * 5)
        world.keep(0, 5)
        world.end(0)
    assert world.start([1] * 5)  # used again
    world.end(0)
    assert world.start([3] * 12)
    assert world.pages.find([1] * 5).tokens == 4
    assert world.pages.find([2] * 5).tokens == 0
