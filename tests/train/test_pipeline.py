"""Batches: the arrays of an example, the order of epochs, the exact position."""

import numpy as np
import pytest

from train.data.pipeline import PackedRows, PairRows, SFTRows, iterate
from train.data.prepared import Prepared
from train.data.sequences import Sequence, fill, padded_length


def sequence(first: int, length: int, learn: int) -> Sequence:
    return Sequence(np.arange(first, first + length, dtype=np.int32), np.arange(length) >= learn)


def dataset(lengths: list[int]) -> Prepared:
    """Sequence i has tokens 100 i, 100 i + 1, ...; all but its first two count."""
    parts = [sequence(100 * i, length, 2) for i, length in enumerate(lengths)]
    return Prepared(
        tokens=np.concatenate([p.tokens for p in parts]),
        loss_mask=np.concatenate([p.loss_mask for p in parts]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        fingerprint="f",
        summary="s",
    )


def test_fill_shifts_targets_within_each_sequence():
    example = fill([sequence(10, 4, 2), sequence(20, 3, 0)], 9)
    assert example["tokens"].tolist() == [10, 11, 12, 13, 20, 21, 22, 0, 0]
    assert example["targets"].tolist() == [11, 12, 13, 0, 21, 22, 0, 0, 0]
    # 12 and 13 count; 20 does not, although its mask says so: it is the first of its sequence.
    assert example["loss_mask"].astype(int).tolist() == [0, 1, 1, 0, 1, 1, 0, 0, 0]
    assert example["segment_ids"].tolist() == [1, 1, 1, 1, 2, 2, 2, 0, 0]
    assert example["positions"].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 0]


@pytest.mark.parametrize(
    ("longest", "limit", "length"), [(3, 512, 64), (65, 512, 128), (500, 500, 500)]
)
def test_padded_length(longest, limit, length):
    assert padded_length(np.asarray([2, longest]), limit) == length


def test_packed_rows_hold_every_sequence_once():
    data = dataset([5, 9, 3, 7, 8, 4])
    source = PackedRows(data, max_length=16, seed=0)
    tokens = [source[i]["tokens"][source[i]["segment_ids"] > 0] for i in range(len(source))]
    assert sorted(np.concatenate(tokens)) == sorted(data.tokens)
    assert len(source) < 6
    assert source[0]["tokens"].shape == (16,)


def test_pairs_carry_their_reference():
    reference = np.asarray([[1, 2], [3, 4]], np.float32)
    source = PairRows(dataset([5, 6, 7, 8]), max_length=64, reference=reference)
    assert len(source) == 2
    example = source[1]
    assert example["tokens"].shape == (2, 64)
    assert example["tokens"][:, 0].tolist() == [200, 300]
    assert example["reference_logprobs"].tolist() == [3, 4]
    assert "reference_logprobs" not in PairRows(dataset([5, 6]), max_length=64)[0]


def test_every_epoch_has_every_row_in_another_order():
    source = SFTRows(dataset([4] * 10), max_length=64)
    batches = iterate(source, rows=4, seed=0)
    first = np.concatenate([next(batches)["tokens"][:, 0] for _ in range(5)])
    assert sorted(first[:10]) == sorted(first[10:]) == [100 * i for i in range(10)]
    assert first[:10].tolist() != first[10:].tolist()


def test_seed_fixes_the_order():
    source = SFTRows(dataset([4] * 10), max_length=64)

    def order(seed):
        batches = iterate(source, rows=5, seed=seed)
        return [next(batches)["tokens"][:, 0].tolist() for _ in range(4)]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_state_restores_the_exact_position():
    source = SFTRows(dataset([4] * 10), max_length=64)
    batches = iterate(source, rows=3, seed=0)
    for _ in range(5):
        next(batches)
    state = batches.get_state()
    expected = [next(batches)["tokens"] for _ in range(6)]
    other = iterate(source, rows=3, seed=0)
    next(other)
    other.set_state(state)
    np.testing.assert_array_equal(expected, [next(other)["tokens"] for _ in range(6)])


def test_a_data_set_smaller_than_a_batch_still_fills_it():
    batches = iterate(SFTRows(dataset([4, 5]), max_length=64), rows=5, seed=0)
    assert next(batches)["tokens"].shape == (5, 64)
