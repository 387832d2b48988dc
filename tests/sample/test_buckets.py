"""A few sizes cover every prompt."""

from gemma4_jax.sample.buckets import capacity, chunks, power_of_two


def test_chunks_cover_exactly_with_little_padding():
    sizes = set()
    for length in range(1, 1500):
        end = 0
        for start, size in chunks(length, 256):
            assert start == end
            end += size
            sizes.add(size)
        assert length <= end < length + max(16, length)
        assert [s for s, _ in chunks(length, 256)] == list(range(0, length, 256))
    assert sizes == {16, 32, 64, 128, 256}
    assert list(chunks(0, 256)) == []


def test_a_small_or_odd_largest_chunk_is_kept_to():
    assert list(chunks(10, 4)) == [(0, 4), (4, 4), (8, 4)]
    assert max(size for _, size in chunks(1000, 100)) == 100


def test_capacities_are_few_enough_and_bounded():
    found = [capacity(n, 262_144) for n in range(1, 262_145, 37)]
    assert all(c >= n for c, n in zip(found, range(1, 262_145, 37), strict=True))
    assert len(set(found)) == 21
    assert all(
        c <= 1.51 * max(n, 512) or c <= 512
        for c, n in zip(found, range(1, 262_145, 37), strict=True)
    )
    assert capacity(900, 1000) == 1000
    assert [capacity(n, 10**6) for n in (1, 128, 129, 600, 1025, 1537)] == [
        128,
        128,
        256,
        768,
        1536,
        2048,
    ]


def test_powers_of_two():
    assert [power_of_two(n) for n in (1, 2, 3, 4, 5, 33)] == [1, 2, 4, 4, 8, 64]
