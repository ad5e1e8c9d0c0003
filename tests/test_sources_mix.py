"""Several sources as one."""

import pickle

import numpy as np
import pytest

from samlit.faults import Damaged
from samlit.loading.loader import Loader
from samlit.source import Sample, Source
from samlit_sources.mix import Mix


class Named(Source):
    """Blank images with a name."""

    def __init__(self, name, count, shards=None):
        self.name, self.count, self.sizes = name, count, shards or [count]
        self.prepared, self.asked = 0, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return Sample(f"{self.name}{index}", np.zeros((4, 4, 3), np.uint8), ())

    def shards(self):
        return self.sizes

    def prepare(self, progress=lambda done, total, what: None):
        self.prepared += 1
        progress(1, 1, self.name)

    def prefetch(self, indices):
        self.asked.append(list(indices))

    def faults(self):
        return [Damaged("cut", "the end is missing", shard=self.name)]


def keys(loader):
    return [key for batch in loader for key in batch.keys]


def test_it_has_the_samples_of_all():
    mix = Mix([Named("a", 3), Named("b", 0), Named("c", 2)])
    assert [mix[i].key for i in range(len(mix))] == ["a0", "a1", "a2", "c0", "c1"]
    for index in (-1, 5):
        with pytest.raises(IndexError, match=r"^the sources have 5 samples, there is no number -?\d$"):
            mix[index]
    assert [fault.shard for fault in mix.faults()] == ["a", "b", "c"]
    told = []
    mix.prepare(lambda done, total, what: told.append(what))
    assert told == ["a", "b", "c"]
    mix.prefetch([4, 0, 3, 2])
    assert [source.asked for source in mix.sources] == [[[0, 2]], [], [[1, 0]]]
    assert pickle.loads(pickle.dumps(mix))[3].key == "c0"


def test_repeated_sources_come_so_often_an_epoch_each_in_its_own_order():
    mix = Mix([Named("auto", 40, [10] * 4), Named("manual", 3)], repeat=[1, 10])
    loader = Loader(mix, 4, 5, seed=2)
    first, second = keys(loader), keys(loader)
    assert len(first) == len(second) == 70
    for epoch in (first, second):
        assert sorted({key for key in epoch if key.startswith("auto")}) == sorted(f"auto{i}" for i in range(40))
        assert [epoch.count(f"manual{i}") for i in range(3)] == [10, 10, 10]
    assert first != second
    # Pass after pass, and not ten times the same at once.
    manual = [key for key in first if key.startswith("manual")]
    assert all(sorted(manual[i : i + 3]) == ["manual0", "manual1", "manual2"] for i in range(0, 30, 3))


def test_half_passes_are_made_up_for_by_the_next_epoch():
    loader = Loader(Mix([Named("a", 4), Named("b", 2)], repeat=[2.5, 1]), 4, 3)
    first, second = keys(loader), keys(loader)
    assert len(first) == len(second) == 12
    assert sorted((first + second).count(f"a{i}") for i in range(4)) == [5, 5, 5, 5]


def test_weights_are_shares_whatever_the_sizes():
    mix = Mix([Named("big", 10_000), Named("small", 10)], weights=[3, 1])
    seen = keys(Loader(mix, 4, 64, epoch_size=4000))
    assert len(seen) == 4000
    assert abs(sum(key.startswith("small") for key in seen) - 1000) < 30  # exact at every 1,024 samples, chance within
    assert sum(key.startswith("small") for key in seen[:3072]) == 768
    assert keys(Loader(Mix([Named("a", 7), Named("b", 5)]), 4, 1)) != []


def test_a_validation_sees_each_sample_once():
    mix = Mix([Named("a", 3), Named("b", 2)], repeat=[1, 10])
    assert keys(Loader(mix, 4, 2, training=False)) == ["a0", "a1", "a2", "b0", "b1"]


def test_the_same_sources_within_sources():
    inner = Mix([Named("a", 2), Named("b", 2)], repeat=[1, 2])
    seen = keys(Loader(Mix([inner, Named("c", 6)], repeat=[2, 1]), 4, 1))
    assert len(seen) == 2 * 4 + 6
    assert sum(key[0] == "c" for key in seen) == 6


@pytest.mark.parametrize(
    ("sources", "given", "message"),
    [
        (0, {}, "sources: one at least"),
        (2, {"repeat": [1]}, "repeat: one number a source, 2, not 1"),
        (2, {"weights": [1, 0]}, "weights: numbers above 0, not .*"),
        (2, {"repeat": [1, -2]}, "repeat: numbers above 0, not .*"),
        (2, {"repeat": [1, 2], "weights": [1, 2]}, "repeat or weights, not both: .*"),
    ],
)
def test_mixtures_that_make_no_sense(sources, given, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Mix([Named("a", 1)] * sources, **given)
