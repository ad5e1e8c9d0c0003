"""The order of samples, whatever the number of workers and ranks; going on in mid-epoch; what becomes of a sample."""

import gc
import signal
import subprocess
import sys
import weakref
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samlit.loading import frames, images
from samlit.loading.augment import Augment
from samlit.loading.loader import Loader
from samlit.masks import rle
from samlit.source import Sample, Source

SIDE = 16


class Numbered(Source):
    """Images that show their number, with as many masks, a phrase each."""

    def __init__(self, count=11, masks=None, shape=(8, 16)):
        self.count, self.masks, self.shape = count, masks, shape

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rows, columns = self.shape
        image = np.full((rows, columns, 3), index, np.uint8)
        drawn = []
        for k in range(index % 4 if self.masks is None else self.masks):
            mask = np.zeros(self.shape, bool)
            mask[k % rows, : columns // 2 - 1] = True
            drawn.append(rle.encode(mask))
        return Sample(f"{index}", image, tuple(drawn), tuple(f"row {k}" for k in range(len(drawn))))


def loader(source=None, batch_size=2, **others):
    return Loader(source or Numbered(), SIDE, batch_size, **others)


def keys(batches):
    """Of each batch, the names of its samples; a blank image has none."""
    return [[key for key in batch.keys if key] for batch in batches]


def flat(lists):
    return [item for items in lists for item in items]


def global_batches(world, batch_size, state=None, **others):
    """By step, the set of samples of all ranks."""
    each = []
    for rank in range(world):
        one = loader(batch_size=batch_size, rank=rank, world=world, **others)
        if state:
            one.load_state_dict(state)
        each.append(keys(one))
    assert len({len(batches) for batches in each}) == 1
    return [sorted(flat(step)) for step in zip(*each, strict=True)]


def test_the_order_is_the_same_for_any_number_of_ranks():
    assert global_batches(1, 4) == global_batches(2, 2) == global_batches(4, 1)
    assert len(global_batches(2, 2)) == len(loader(rank=1, world=2)) == 3
    assert [len(step) for step in global_batches(4, 1)] == [4, 4, 3]


def test_ranks_share_nothing():
    seen = [key for rank in range(3) for batch in keys(loader(rank=rank, world=3, batch_size=1)) for key in batch]
    assert len(seen) == len(set(seen)) == 11


def equal(a, b):
    assert a.keys == b.keys
    assert a.phrases == b.phrases
    for name in ("image", "sizes", "original", "masks", "image_index"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_workers_change_nothing():
    options = {"max_masks": 2, "augment": Augment(flip=0.5), "seed": 3}
    alone, helped = list(loader(**options)), list(loader(workers=2, **options))
    assert len(alone) == len(helped) == 6
    for a, b in zip(alone, helped, strict=True):
        equal(a, b)


def test_an_epoch_is_a_shuffle_and_the_next_one_another():
    one = loader(batch_size=1)
    first, second = keys(one), keys(one)
    assert one.state_dict() == {"epoch": 1, "samples": 11}
    numbers = [[str(i)] for i in range(11)]
    assert sorted(first) == sorted(second) == sorted(numbers)
    assert first != second
    assert numbers not in (first, second)
    assert keys(loader(batch_size=1)) == first
    assert keys(loader(batch_size=1, seed=1)) != first


def test_the_masks_and_flips_of_a_sample_differ_by_epoch_and_not_by_when_it_is_asked():
    options = {"source": Numbered(20, masks=6), "max_masks": 2, "augment": Augment(flip=0.5), "batch_size": 1}
    one = loader(**options)
    first = {b.keys[0]: b for b in one}
    second = {b.keys[0]: b for b in one}
    assert len(first) == 20
    assert any(first[k].phrases != second[k].phrases for k in first)
    again = loader(**options)
    again.load_state_dict({"epoch": 1, "samples": 0})
    for b in again:
        equal(b, second[b.keys[0]])


def endless(one):
    while True:
        yield from one


@pytest.mark.parametrize("consumed", [0, 1, 4, 5, 6, 7])
def test_going_on_in_mid_epoch_is_exact(consumed):
    whole = list(islice(endless(loader(augment=Augment(flip=0.5))), 8))
    broken = loader(augment=Augment(flip=0.5))
    list(islice(endless(broken), consumed))
    state = broken.state_dict()
    assert state == {"epoch": consumed // 7, "samples": {6: 11, 7: 2}.get(consumed, 2 * consumed)}
    resumed = loader(augment=Augment(flip=0.5))
    resumed.load_state_dict(state)
    for a, b in zip(islice(endless(resumed), 8 - consumed), whole[consumed:], strict=True):
        equal(a, b)


@pytest.mark.parametrize(("before", "after"), [((1, 2), (2, 2)), ((2, 2), (1, 3)), ((2, 1), (3, 1)), ((1, 1), (2, 4))])
@pytest.mark.parametrize("steps", [1, 2])
def test_going_on_with_other_ranks_repeats_and_leaves_out_nothing(before, after, steps):
    world, batch_size = before
    done = flat(global_batches(world, batch_size)[:steps])
    state = {"epoch": 0, "samples": steps * world * batch_size}
    world, batch_size = after
    rest = flat(global_batches(world, batch_size, state))
    assert len(done) == steps * before[0] * before[1]
    assert sorted(done + rest) == sorted(map(str, range(11)))


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
    buffer=st.integers(1, 40),
    epoch_size=st.none() | st.integers(1, 40),
    runs=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(0, 12)), min_size=1, max_size=4),
    seed=st.integers(0, 3),
)
def test_whatever_breaks_off_and_goes_on_with_whatever_ranks_sees_what_an_unbroken_run_sees(
    sizes, buffer, epoch_size, runs, seed
):
    source = Sharded(sizes)
    unbroken = source.order(seed, buffer).take(0, 1000).samples.tolist()
    state, seen = {"epoch": 0, "samples": 0}, []
    for world, batch_size, steps in runs:
        ranks = []
        for rank in range(world):
            one = Loader(source, SIDE, batch_size, seed, rank, world, shuffle_buffer=buffer, epoch_size=epoch_size)
            one.load_state_dict(state)
            ranks.append((one, islice(endless(one), steps)))
        for batches in zip(*(iterator for _, iterator in ranks), strict=True):
            # The positions of a global batch go round the ranks.
            each = [[int(key) for key in batch.keys if key] for batch in batches]
            seen += [one[i] for i in range(batch_size) for one in each if i < len(one)]
        states = [one.state_dict() for one, _ in ranks]
        assert all(one == states[0] for one in states)
        state = states[0]
    # An epoch ends with a smaller batch, never with samples left out.
    assert seen == unbroken[: len(seen)]
    assert len(seen) == state["epoch"] * (epoch_size or len(source)) + state["samples"]


class Sharded(Numbered):
    """Numbered images in shards."""

    def __init__(self, sizes):
        super().__init__(sum(sizes), masks=0)
        self.sizes = sizes

    def shards(self):
        return self.sizes


@pytest.mark.parametrize("count", [1, 3, 4, 5, 6, 7, 8, 11])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_sees_every_sample_once_on_some_rank(count, world):
    source, seen, images = Numbered(count, masks=2), [], set()
    for rank in range(world):
        one = loader(source, rank=rank, world=world, training=False)
        batches = list(one)
        assert len(batches) == len(one) == -(-count // (2 * world))
        images.add(len(batches))
        # A rank for which nothing is left takes part with a blank image without masks.
        seen += [b.keys[i] for b in batches for i in b.image_index.tolist()]
        assert all(len(b.image) > 0 for b in batches)
    assert sorted(seen) == sorted(str(i) for i in range(count) for _ in range(2))


def test_validation_comes_in_order_and_again():
    one = loader(training=False, batch_size=3)
    assert keys(one) == keys(one) == [["0", "1", "2"], ["3", "4", "5"], ["6", "7", "8"], ["9", "10"]]
    iterator = iter(one)
    next(iterator)
    assert keys(one)[0] == ["0", "1", "2"]


def test_masks_are_drawn_in_training_and_the_first_ones_otherwise():
    source = Numbered(8, masks=6)
    drawn = list(loader(source, max_masks=2, batch_size=1))
    assert {len(b.masks) for b in drawn} == {2}
    assert len({tuple(b.phrases) for b in drawn}) > 3
    for b in drawn:
        for mask, phrase in zip(b.masks, b.phrases, strict=True):
            assert mask.any(1).nonzero().flatten().tolist() == [int(phrase[-1])]
    (kept,) = {tuple(b.phrases) for b in loader(source, max_masks=2, batch_size=1, training=False)}
    assert kept == ("row 0", "row 1")


class Two(Source):
    """A mask of nearly everything, and a small one."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        big, small = np.ones((8, 16), bool), np.zeros((8, 16), bool)
        small[:2, :3] = True
        big[0] = False
        big[1, 0] = False
        return Sample(
            str(index), np.zeros((8, 16, 3), np.uint8), tuple(map(rle.encode, (big, small))), ("big", "small")
        )


@pytest.mark.parametrize(("max_area", "kept"), [(0.9, ["big", "small"]), (0.86, ["small"]), (0.01, [])])
def test_masks_that_cover_too_much_of_their_picture_are_not_trained_on(max_area, kept):
    # Of 128 pixels the big one has 111, 0.867; of the square frame it covers less than half.
    (batch,) = loader(Two(), batch_size=4, max_area=max_area)
    assert batch.phrases == kept * 4
    assert len(batch.masks) == len(batch.image_index) == 4 * len(kept)
    (all_,) = loader(Two(), batch_size=4, max_area=0.01, training=False)
    assert all_.phrases == ["big", "small"] * 4


def test_images_without_masks_are_packed_with_the_others():
    (batch,) = loader(Numbered(9), batch_size=9, training=False)
    assert batch.image_index.tolist() == [1, 2, 2, 3, 3, 3, 5, 6, 6, 7, 7, 7]
    assert batch.phrases == [f"row {k}" for i in range(9) for k in range(i % 4)]
    assert batch.image[:, 0, 0, 0].tolist() == list(range(9))
    (none,) = loader(Numbered(2, masks=0), training=False)
    assert none.masks.shape == (0, SIDE, SIDE)
    assert none.masks.dtype == torch.bool
    assert none.image_index.shape == (0,)
    assert none.image_index.dtype == torch.int64


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1500, 2250, (683, 1024)), (480, 640, (768, 1024)), (427, 640, (683, 1024)), (321, 481, (683, 1024)),
     (333, 500, (682, 1024)), (1, 5000, (1, 1024)), (1024, 1024, (1024, 1024))],
)  # fmt: skip
def test_sizes_in_the_frame_are_sams(height, width, expected):
    assert images.fit(height, width, 1024) == expected


def test_the_frame_is_the_resized_picture_and_zeros():
    chance = np.random.default_rng(0)
    mask = np.zeros((6, 10), bool)
    mask[:, 5:] = True
    sample = Sample("a", chance.integers(1, 255, (6, 10, 3), np.uint8), (rle.encode(mask),))
    framed = frames.frame(sample, 20)
    assert (framed.size, framed.original) == ((12, 20), (6, 10))
    assert not framed.image[12:].any()
    assert framed.image[:12].all()
    assert np.array_equal(framed.masks[0], np.pad(mask.repeat(2, 0).repeat(2, 1), ((0, 8), (0, 0))))
    same = frames.frame(sample, 10)
    assert np.array_equal(same.image[:6], sample.image)


class Counting(Numbered):
    """Remembers what it was asked for."""

    def __init__(self, count):
        super().__init__(count, masks=0)
        self.read, self.hints = [], []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index % 256)

    def prefetch(self, indices):
        self.hints.append(list(indices))


def test_going_on_reads_nothing_that_was_read_before():
    source = Counting(3_000_000)
    one = loader(source, batch_size=4, shuffle_buffer=1000)
    one.load_state_dict({"epoch": 7, "samples": 2_500_000})
    next(iter(one))
    assert source.read == source.order(0, 1000).take(7 * 3_000_000 + 2_500_000, 7 * 3_000_000 + 2_500_004)[1].tolist()


def test_a_source_is_told_what_comes_next():
    source = Counting(10)
    list(loader(source, batch_size=4))
    order = source.order(0, 16_384).take(0, 10)[1].tolist()
    assert source.hints == [order[:8], order[4:], order[8:]]


@pytest.mark.parametrize("epoch_size", [4, 11, 25])
def test_an_epoch_of_a_fixed_size_goes_on_where_the_last_one_ended(epoch_size):
    one = loader(batch_size=2, epoch_size=epoch_size)
    assert len(one) == -(-epoch_size // 2)
    seen = [key for _ in range(4) for batch in keys(one) for key in batch]
    assert len(seen) == 4 * epoch_size
    passes = [seen[i : i + 11] for i in range(0, len(seen) - 10, 11)]
    assert all(sorted(one) == sorted(map(str, range(11))) for one in passes)


def test_workers_live_through_epochs():
    one = loader(workers=1, batch_size=4)
    first = {(key, int(batch.image[0, 0, 0, 0])) for batch in one for key in batch.keys[:1]}
    pids = [worker.pid for worker in one._loader._iterator._workers]
    iterator = iter(one)
    next(iterator)  # an epoch that is broken off leaves nothing behind in the next one
    assert one.state_dict() == {"epoch": 1, "samples": 4}
    one.load_state_dict({"epoch": 0, "samples": 0})
    again = {(key, int(batch.image[0, 0, 0, 0])) for batch in one for key in batch.keys[:1]}
    assert again == first
    assert [worker.pid for worker in one._loader._iterator._workers] == pids


def test_pinning_packs_where_the_loaders_thread_does_it(monkeypatch):
    pinned = []
    pack = frames.pack

    def recorded(samples, pinned_=False, **others):
        pinned.append(others.get("pinned", pinned_))
        return pack(samples)

    monkeypatch.setattr(frames, "pack", recorded)
    one = loader(training=False, batch_size=3)
    (made, *_) = list(one._loader)
    assert not pinned
    assert made.pin_memory() is made
    assert pinned == [True]
    assert made.batch() is made.packed
    assert pinned == [True]


def test_a_loader_that_is_dropped_is_gone_at_once():
    # In a cycle it would wait for the garbage collector, and its workers for their timeouts.
    gc.disable()
    try:
        one = loader(batch_size=4)
        list(one)
        gone = weakref.ref(one)
        del one
        assert gone() is None
    finally:
        gc.enable()


WORKERS_OF_A_KILLED_PROCESS = """
import os, signal, sys
import numpy as np
from samlit.loading.loader import Loader
from samlit.source import Sample, Source

class Large(Source):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return Sample(str(index), np.full((256, 256, 3), index, np.uint8), ())

if __name__ == "__main__":
    loader = Loader(Large(), 256, 4, workers=1)
    next(iter(loader))
    print(loader._loader._iterator._workers[0].pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_of_a_killed_process_end_too(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WORKERS_OF_A_KILLED_PROCESS)
    # Their output is this pipe, too: reading it ends when they have ended.
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert int(run.stdout)
