"""The order of samples: every sample once a pass, near its shard's others, entered at any position."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samlit.loading.order import Mixed, Shuffled

sizes = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any)


@settings(deadline=None)
@given(sizes, st.integers(0, 5), st.integers(1, 100), st.data())
def test_each_pass_has_every_sample_once_and_is_entered_anywhere(sizes, seed, buffer, data):
    order, count = Shuffled(sizes, seed, buffer), sum(sizes)
    passes, samples = order.take(0, 3 * count)
    assert passes.tolist() == [number for number in range(3) for _ in range(count)]
    for number in range(3):
        assert sorted(samples[number * count : (number + 1) * count].tolist()) == list(range(count))
    start = data.draw(st.integers(0, 3 * count))
    stop = data.draw(st.integers(start, 3 * count))
    again = Shuffled(sizes, seed, buffer).take(start, stop)
    assert again.samples.tolist() == samples[start:stop].tolist()
    assert again.passes.tolist() == passes[start:stop].tolist()


@settings(deadline=None)
@given(sizes, st.integers(0, 5), st.integers(1, 60))
def test_a_piece_needs_no_more_shards_than_lie_in_it(sizes, seed, buffer):
    count = sum(sizes)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    samples = Shuffled(sizes, seed, buffer).take(0, count).samples
    open_before = set()
    seen_whole = np.zeros(len(sizes), int)
    for start in range(0, count, buffer):
        piece = shard_of[samples[start : start + buffer]]
        # A shard is in consecutive pieces: once it is left it never comes back.
        for shard in set(piece.tolist()):
            assert seen_whole[shard] == 0 or shard in open_before
        np.add.at(seen_whole, piece, 1)
        open_before = set(piece.tolist())
    assert seen_whole.tolist() == list(sizes)


def test_another_seed_or_pass_is_another_order_of_shards_and_samples():
    order = Shuffled([100] * 50, 0, 200)
    passes = [order.take(number * 5000, (number + 1) * 5000).samples for number in range(2)]
    other = Shuffled([100] * 50, 1, 200).take(0, 5000).samples
    for a, b in ((passes[0], passes[1]), (passes[0], other)):
        assert not np.array_equal(a, b)
        assert not np.array_equal(a[::200] // 100, b[::200] // 100)


def test_what_fits_into_the_buffer_is_shuffled_as_a_whole():
    samples = Shuffled([10] * 100, 0, 1000).take(0, 1000).samples
    # Of 1,000 samples of a whole shuffle about one stays beside its neighbour; of shuffled shards most would be near.
    near = np.abs(np.diff(samples // 10)) <= 1
    assert near.mean() < 0.06
    assert np.array_equal(samples, np.random.default_rng([0, 0]).permutation(1000))


def test_orders_of_millions_cost_what_is_taken():
    order = Shuffled([11_186] * 1000, 0, 16_384)
    passes, samples = order.take(5 * 11_186_000 + 7_000_000, 5 * 11_186_000 + 7_000_064)
    assert set(passes.tolist()) == {5}
    assert len(set((samples // 11_186).tolist())) <= 3


def test_a_buffer_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"^shuffle_buffer: one sample at least, not 0$"):
        Shuffled([3], 0, 0)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 10)), min_size=1, max_size=4),
    st.integers(0, 3),
    st.data(),
)
def test_a_mixture_keeps_shares_epochs_and_each_ones_own_order(parts, seed, data):
    counts, repeats = [count for count, _ in parts], [repeat for _, repeat in parts]
    epoch = sum(count * repeat for count, repeat in parts)
    shares = [Fraction(count * repeat, epoch) for count, repeat in parts]
    first = np.cumsum([0, *counts[:-1]]).tolist()

    def mixed():
        return Mixed([Shuffled([count], seed, 7) for count in counts], shares, first, seed, epoch)

    passes, samples = mixed().take(0, 2 * epoch)
    for number in range(2):
        part = samples[number * epoch : (number + 1) * epoch]
        # An epoch has every sample of a source as often as it is repeated.
        expected = np.repeat(np.arange(sum(counts)), np.repeat(repeats, counts))
        assert np.array_equal(np.sort(part), expected)
    for place, count in enumerate(counts):
        mine = (samples >= first[place]) & (samples < first[place] + count)
        own = Shuffled([count], seed, 7).take(0, int(mine.sum()))
        assert np.array_equal(samples[mine] - first[place], own.samples)
        assert np.array_equal(passes[mine], own.passes)
    start = data.draw(st.integers(0, 2 * epoch))
    stop = data.draw(st.integers(start, 2 * epoch))
    again = mixed().take(start, stop)
    assert np.array_equal(again.samples, samples[start:stop])
    assert np.array_equal(again.passes, passes[start:stop])


def test_a_mixture_is_even_over_blocks_and_random_within():
    shares = [Fraction(9, 10), Fraction(1, 10)]
    mixed = Mixed([Shuffled([50_000], 0, 50_000), Shuffled([300], 0, 300)], shares, [0, 50_000], 0, 100_000)
    rare = mixed.take(0, 20 * Mixed.BLOCK).samples >= 50_000
    by_block = rare.reshape(20, Mixed.BLOCK).sum(1)
    assert set(by_block.tolist()) <= {102, 103}
    gaps = np.diff(np.flatnonzero(rare))
    assert gaps.min() == 1
    assert gaps.max() > 30


@settings(deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5), st.integers(0, 10_000))
def test_shares_are_never_taken_back(weights, position):
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    mixed = Mixed([Shuffled([1], 0, 1)] * len(shares), shares, [0] * len(shares), 0, 1000)
    now, after = mixed.counts(position), mixed.counts(position + 1)
    assert sum(now) == position
    assert sum(b - a for a, b in zip(now, after, strict=True)) == 1
    assert all(b >= a for a, b in zip(now, after, strict=True))
    assert all(abs(count - share * position) <= len(shares) for count, share in zip(now, shares, strict=True))
