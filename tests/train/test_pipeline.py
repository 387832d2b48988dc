"""Batches: the arrays of an example, the order of epochs, the exact position."""

import ast
import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from gemma4_jax.data.encode import Sequence, sft_encoder
from gemma4_jax.errors import UserError
from gemma4_jax.text.tokenizer import Tokenizer
from train.data.mixture import Mixture
from train.data.order import Order, Share, bucket_sizes
from train.data.pipeline import PackedRows, PairRows, SFTRows, iterate
from train.data.prepared import Prepared, prepare
from train.data.sequences import fill, padded_length


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


@pytest.mark.parametrize("count", [2, 3, 6])
def test_processes_share_every_batch_and_go_on_in_other_numbers(count):
    source = SFTRows(dataset([4] * 10), max_length=64)
    whole = iterate(source, rows=6, seed=0)
    expected = [next(whole)["tokens"] for _ in range(9)]

    def joined(count, state, batches):
        """What `count` processes read from a position on, put together."""
        readers = []
        for index in range(count):
            reader = iterate(source, 6, 0, share=index, shares=count)
            reader.set_state(state)
            readers.append(reader)
        found = [np.concatenate([next(r)["tokens"] for r in readers]) for _ in range(batches)]
        (state,) = {str(reader.get_state()) for reader in readers}
        return found, ast.literal_eval(state)

    first, state = joined(count, {"batches": 0}, 4)
    assert state == {"batches": 4}
    # From `count` processes to three, to one.
    second, state = joined(3, state, 3)
    third, state = joined(1, state, 2)
    np.testing.assert_array_equal([*first, *second, *third], expected)


def test_a_batch_that_processes_cannot_share_is_refused():
    source = SFTRows(dataset([4] * 10), max_length=64)
    with pytest.raises(
        UserError, match=r"batch.rows is 6; .* multiple of 4, the parts that processes"
    ):
        iterate(source, 6, 0, shares=4)


def test_a_mixture_keeps_its_shares_and_every_row_of_each():
    data = Mixture([(Fraction(7), dataset([4] * 5)), (Fraction(3), dataset([4] * 20))])
    assert data.sequence(4).tokens.tolist() == [400, 401, 402, 403]
    assert data.sequence(5).tokens.tolist() == [0, 1, 2, 3]
    assert data.lengths.tolist() == [4] * 25
    source = SFTRows(data, max_length=64)
    (small, _), (large, _) = ((part.start, part.stop) for part in source.parts)
    order = Order(source.parts, source.lengths, [64], rows=10, seed=0)
    drawn = np.concatenate([order.batch(n)[0] for n in range(20)])
    for first in range(0, 200, 10):
        assert (drawn[first : first + 10] < large).sum() == 7
    # The small one comes round 28 times, the large one three times, each in ever new orders.
    little, much = drawn[drawn < large], drawn[drawn >= large]
    assert all(sorted(little[i : i + 5]) == [*range(small, large)] for i in range(0, 140, 5))
    assert all(sorted(much[i : i + 20]) == [*range(5, 25)] for i in range(0, 60, 20))
    assert len({tuple(little[i : i + 5]) for i in range(0, 140, 5)}) > 20


def test_a_mixtures_fingerprint_knows_weights_and_contents():
    one, two = dataset([4] * 5), replace(dataset([4] * 20), fingerprint="g")

    def fingerprint(*weights):
        return Mixture(
            [(Fraction(w), d) for w, d in zip(weights, (one, two), strict=True)]
        ).fingerprint

    assert fingerprint("0.7", "0.3") == fingerprint(7, 3)
    assert len({fingerprint(7, 3), fingerprint(3, 7), one.fingerprint}) == 3


def test_parts_of_a_mixture_are_packed_apart():
    data = Mixture([(Fraction(1), dataset([5, 9, 3, 7])), (Fraction(1), dataset([8, 4, 6]))])
    source = PackedRows(data, max_length=16, seed=0)
    (one, two) = source.parts
    counted = [
        sum((source[i]["segment_ids"] > 0).sum() for i in range(p.start, p.stop))
        for p in (one, two)
    ]
    assert counted == [24, 18] and two.stop == len(source)


def test_shares_are_exact_everywhere():
    weights = (Fraction(5, 8), Fraction(1, 3), Fraction(1, 1000), Fraction(2))
    share, counts = Share(weights), [0] * 4
    for n in range(5000):
        stream, before = share[n]
        assert before == counts[stream], n
        counts[stream] += 1
        for weight, count in zip(weights, counts, strict=True):
            assert abs(count - (n + 1) * weight / sum(weights)) < 3
    # Far out nothing is rounded.
    stream, before = share[10**15]
    assert share[10**15 + 1] != (stream, before)


def test_buckets_keep_rows_of_a_length_together():
    lengths = [10] * 30 + [100] * 20 + [300] * 10
    source = SFTRows(dataset(lengths), max_length=512)
    batches = iterate(source, rows=5, seed=0, buckets=3)
    drawn, shapes = [], []
    for _ in range(12):
        batch = next(batches)
        shapes.append(batch["tokens"].shape)
        drawn += (batch["tokens"][:, 0] // 100).tolist()
    # One pass of 12 batches: every row once, in three shapes in the proportion of their rows.
    assert sorted(drawn) == [*range(60)]
    assert {shape: shapes.count(shape) for shape in shapes} == {
        (5, 64): 6,
        (5, 128): 4,
        (5, 320): 2,
    }
    assert shapes != sorted(shapes)

    state = batches.get_state()
    expected = [next(batches)["tokens"] for _ in range(7)]
    again = iterate(source, rows=5, seed=0, buckets=3)
    again.set_state(state)
    for batch in expected:
        np.testing.assert_array_equal(next(again)["tokens"], batch)


def test_pairs_come_in_buckets_too():
    source = PairRows(dataset([10, 100, 10, 20, 30, 10, 70, 10]), max_length=512)
    batches = iterate(source, rows=2, seed=0, buckets=2)
    assert {next(batches)["tokens"].shape for _ in range(2)} == {(2, 2, 64), (2, 2, 128)}


@pytest.mark.parametrize("seed", range(5))
def test_bucket_sizes_leave_the_least_padding(seed):
    rng = np.random.default_rng(seed)
    steps = [*range(64, 641, 64)]
    lengths = rng.lognormal(5, 0.8, 200).astype(int).clip(2, 640)
    lengths[0] = 640

    def padded(sizes):
        return np.asarray(sizes)[np.searchsorted(sizes, lengths)].sum()

    costs = []
    for count in (1, 2, 3, 4):
        sizes = bucket_sizes(lengths, steps, count)
        others = itertools.combinations(steps[:-1], count - 1)
        assert len(sizes) <= count and sizes[-1] == 640
        assert padded(sizes) == min(padded([*other, 640]) for other in others)
        costs.append(padded(sizes))
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1]
    assert bucket_sizes(np.asarray([640] * 3), steps, 4) == [640]


@pytest.mark.slow
def test_worker_processes_change_nothing(rows_file, tmp_path):
    rows = [{"text": f"one two three {'four ' * (i % 5)}{i}"} for i in range(30)]
    data = prepare(
        rows_file(*rows), sft_encoder(Tokenizer.builtin(), "small"), max_length=64, overlong="error",
        cache_dir=tmp_path, settings={},
    )  # fmt: skip
    source = SFTRows(data, max_length=64)
    plain, workers = iterate(source, 4, 0), iterate(source, 4, 0, workers=2)
    for _ in range(9):
        np.testing.assert_array_equal(next(workers)["tokens"], next(plain)["tokens"])
    state = workers.get_state()
    workers.close()
    other = iterate(source, 4, 0, workers=3)
    other.set_state(state)
    for _ in range(5):
        np.testing.assert_array_equal(next(other)["tokens"], next(plain)["tokens"])
    other.close()
