"""First fit: nothing lost, nothing too long, little empty, same for the same seed."""

import numpy as np
import pytest

from train.data.packing import first_fit


@pytest.mark.parametrize("count", [0, 1, 3, 2000])
def test_every_row_once_and_no_group_too_long(count):
    lengths = np.random.default_rng(0).integers(1, 101, count)
    groups = first_fit(lengths, 100, seed=1)
    assert sorted(i for group in groups for i in group) == list(range(count))
    assert all(lengths[group].sum() <= 100 for group in groups)


def test_groups_are_nearly_full():
    lengths = np.random.default_rng(0).lognormal(5, 0.7, 5000).astype(int).clip(1, 1024)
    groups = first_fit(lengths, 1024, seed=0)
    assert lengths.sum() / (len(groups) * 1024) > 0.95


def test_seed_decides():
    lengths = np.random.default_rng(0).integers(1, 60, 300)

    def plan(seed):
        return [tuple(group) for group in first_fit(lengths, 100, seed)]

    assert plan(3) == plan(3)
    assert plan(3) != plan(4)


def test_a_row_that_cannot_fit_is_refused():
    with pytest.raises(ValueError, match="101 tokens does not fit into 100"):
        first_fit(np.asarray([5, 101]), 100, seed=0)
