"""The reference pass: continued where it was killed, bound to its parameters and data."""

import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.errors import UserError
from train.checksum import tree_checksum
from train.reference import check_live, precompute, read_reference

PARAMS = {"a": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.ones(4, jnp.bfloat16)}}


class Pairs:
    """Seven made-up pairs; pair i is filled with i."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return {"tokens": np.full((2, 4), index, np.int32)}


class Forward:
    """log-probability of pair i: (scale * i, -i). Fails before the given call."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = 0, fail_at

    def __call__(self, params, batch):
        assert batch["tokens"].shape == (2, 2, 4)
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        self.calls += 1
        first = batch["tokens"][:, 0, 0].astype(np.float32)
        return jnp.stack([params["a"][0, 1] * first, -first], axis=1)


EXPECTED = np.stack([np.arange(7.0), -np.arange(7.0)], axis=1)


def test_pass_over_all_pairs(tmp_path):
    assert read_reference(tmp_path, "data", 7) is None
    found = precompute(Forward(), PARAMS, Pairs(), 2, tmp_path, "data")
    np.testing.assert_array_equal(found, EXPECTED)
    np.testing.assert_array_equal(read_reference(tmp_path, "data", 7), EXPECTED)
    assert read_reference(tmp_path, "other data", 7) is None


def test_continues_where_it_was_stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        precompute(Forward(fail_at=2), PARAMS, Pairs(), 2, tmp_path, "data")
    with open(tmp_path / "data.f32", "ab") as file:
        file.write(b"torn")  # a kill inside a write
    assert read_reference(tmp_path, "data", 7) is None
    forward = Forward()
    np.testing.assert_array_equal(
        precompute(forward, PARAMS, Pairs(), 2, tmp_path, "data"), EXPECTED
    )
    assert forward.calls == 2


def test_other_parameters_start_over(tmp_path):
    precompute(Forward(), PARAMS, Pairs(), 2, tmp_path, "data")
    twice = {**PARAMS, "a": PARAMS["a"] * 2}
    forward = Forward()
    found = precompute(forward, twice, Pairs(), 2, tmp_path, "data")
    assert forward.calls == 4
    np.testing.assert_array_equal(found, EXPECTED * [2, 1])


def test_checksum_notices_bits_places_and_leaves():
    base = tree_checksum(PARAMS)
    assert tree_checksum({**PARAMS, "a": PARAMS["a"] + 0}) == base
    swapped = PARAMS["a"].at[0, 0].set(1.0).at[0, 1].set(0.0)
    others = [
        {**PARAMS, "a": PARAMS["a"].at[1, 2].add(1e-6)},
        {**PARAMS, "a": swapped},
        {**PARAMS, "a": PARAMS["a"].reshape(3, 2)},
        {**PARAMS, "b": {"c": PARAMS["b"]["c"].at[3].set(2)}},
    ]
    assert len({base, *map(tree_checksum, others)}) == 5


def test_a_live_reference_must_stay_the_same(tmp_path):
    check_live(tmp_path, PARAMS, resuming=False)
    check_live(tmp_path, PARAMS, resuming=True)
    other = {**PARAMS, "a": PARAMS["a"] * 2}
    with pytest.raises(UserError, match="not those this run was started with"):
        check_live(tmp_path, other, resuming=True)
    check_live(tmp_path, other, resuming=False)
