"""Where clicks fall: uniformly in a region, or at the deepest place of the larger error, against brute force."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from samlit.masks import clicks

IRREGULAR = """
.....##..
..#......
.########
#.......#
"""


def region(text):
    return torch.tensor([[c == "#" for c in line] for line in text.split()])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_pixel_is_as_likely_as_any_other():
    where, draws = region(IRREGULAR), 13_000
    xy, found = clicks.uniform(where.expand(draws, -1, -1), generator(1))
    assert found.all()
    counts = torch.zeros(where.shape)
    counts.index_put_((xy[:, 1], xy[:, 0]), torch.ones(draws), accumulate=True)
    assert counts[~where].sum() == 0
    expected = draws / int(where.sum())
    chi_square = float(((counts[where] - expected) ** 2 / expected).sum())
    # 12 degrees of freedom (13 pixels): beyond 32.9 once in a thousand, and below 2.2 as seldom.
    assert int(where.sum()) == 13
    assert 2.2 < chi_square < 32.9


@pytest.mark.parametrize(("x", "y"), [(0, 0), (6, 0), (0, 2), (6, 2), (3, 1)])
def test_one_pixel_is_found_as_x_and_y(x, y):
    where = torch.zeros(1, 3, 7, dtype=torch.bool)
    where[0, y, x] = True
    for seed in range(5):
        xy, found = clicks.uniform(where, generator(seed))
        assert xy.tolist() == [[x, y]]
        assert found.tolist() == [True]


def test_first_and_last_pixel_are_reached():
    xy, _ = clicks.uniform(torch.ones(600, 2, 5, dtype=torch.bool), generator(2))
    assert {tuple(pixel) for pixel in xy.tolist()} == {(x, y) for x in range(5) for y in range(2)}


def test_an_empty_region_is_flagged_beside_full_ones():
    where = torch.zeros(3, 4, 6, dtype=torch.bool)
    where[0, 3, 5] = where[2] = True
    xy, found = clicks.uniform(where, generator())
    assert found.tolist() == [True, False, True]
    assert xy[0].tolist() == [5, 3]
    assert (xy >= 0).all()
    assert (xy < torch.tensor([6, 4])).all()
    none, nothing = clicks.uniform(where[:0], generator())
    assert none.shape == (0, 2)
    assert nothing.shape == (0,)


def test_clicks_are_the_generators_alone():
    where = torch.rand(40, 9, 7, generator=generator(3)) > 0.4
    torch.manual_seed(1)
    first, _ = clicks.uniform(where, generator(4))
    torch.manual_seed(2)
    again, _ = clicks.uniform(where, generator(4))
    other, _ = clicks.uniform(where, generator(5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def deepest(error):
    """Depth and (x, y) of the deepest pixel, by comparing every pixel with every one outside, borders included."""
    padded = np.pad(error, 1)
    outside = np.argwhere(~padded)
    best, at = 0.0, (0, 0)
    for y, x in np.argwhere(padded):  # in reading order, so that only a deeper one replaces the first
        depth = np.sqrt(((outside - (y, x)) ** 2).sum(1).min())
        if depth > best + 1e-9:
            best, at = depth, (int(x) - 1, int(y) - 1)
    return best, at


def oracle(truth, predicted):
    missed, missed_at = deepest(truth & ~predicted)
    extra, extra_at = deepest(predicted & ~truth)
    if missed > extra + 1e-9:
        return missed_at, 1, True
    return extra_at, 0, extra > 0


def blobs(chance, rows=11, columns=16):
    y, x = np.mgrid[:rows, :columns]
    mask = np.zeros((rows, columns), bool)
    for _ in range(chance.integers(0, 4)):
        cy, cx, r = chance.integers(0, rows), chance.integers(0, columns), chance.integers(1, 7)
        mask |= (y - cy) ** 2 + (x - cx) ** 2 <= r * r
    return mask ^ (chance.random(mask.shape) < 0.03)


def test_the_centre_is_that_of_brute_force():
    chance = np.random.default_rng(0)
    truth, predicted = (np.stack([blobs(chance) for _ in range(40)]) for _ in range(2))
    predicted[:5] = False
    xy, label, found = clicks.centre(torch.from_numpy(truth), torch.from_numpy(predicted))
    seen = {0: 0, 1: 0}
    for i in range(len(truth)):
        at, wanted, wrong = oracle(truth[i], predicted[i])
        assert bool(found[i]) == wrong
        if wrong:
            assert (tuple(xy[i].tolist()), int(label[i])) == (at, wanted)
            seen[wanted] += 1
    assert min(seen.values()) > 5


def test_the_border_is_an_edge():
    truth = torch.ones(1, 5, 9, dtype=torch.bool)
    xy, label, found = clicks.centre(truth, torch.zeros_like(truth))
    assert xy.tolist() == [[2, 2]]  # the first of the five that are three pixels deep
    assert (label.tolist(), found.tolist()) == ([1], [True])


def test_where_errors_are_equally_deep_the_click_is_negative():
    truth = torch.zeros(1, 5, 9, dtype=torch.bool)
    predicted = torch.zeros_like(truth)
    truth[0, 1:4, 0:3] = True
    predicted[0, 1:4, 5:8] = True
    xy, label, _ = clicks.centre(truth, predicted)
    assert (xy.tolist(), label.tolist()) == ([[6, 2]], [0])


def test_among_equals_the_first_in_reading_order_is_taken():
    truth = torch.zeros(1, 6, 6, dtype=torch.bool)
    truth[0, 4, 0] = truth[0, 1, 5] = truth[0, 1, 2] = True
    xy, label, _ = clicks.centre(truth, torch.zeros_like(truth))
    assert (xy.tolist(), label.tolist()) == ([[2, 1]], [1])


def test_nothing_wrong_is_no_click():
    truth = torch.rand(2, 5, 8, generator=generator()) > 0.5
    predicted = truth.clone()
    predicted[1, 2, 6] ^= True
    xy, label, found = clicks.centre(truth, predicted)
    assert found.tolist() == [False, True]
    assert (xy[1].tolist(), int(label[1])) == ([6, 2], int(truth[1, 2, 6]))


def test_the_oracle_itself():
    assert deepest(np.ones((3, 3), bool)) == (2.0, (1, 1))
    assert deepest(np.zeros((3, 3), bool)) == (0.0, (0, 0))


def test_the_deepest_pixel_is_the_first_of_equals_whatever_the_memory():
    # OpenCV's distances differ in their last bit with the place in memory, which must not decide.
    chance = np.random.default_rng(0)
    for _ in range(60):
        h, w = chance.integers(20, 140, 2)
        region = np.zeros((h, w), bool)
        for _ in range(chance.integers(1, 4)):
            y, x = chance.integers(0, (h - 8, w - 8))
            height, width = chance.integers(4, (h - y, w - x))
            region[y : y + height, x : x + width] = True
        inside = np.pad(region, 1)
        squared = np.rint(ndimage.distance_transform_edt(inside) ** 2).astype(int)[1:-1, 1:-1]
        y, x = divmod(int(squared.argmax()), w)
        truth = torch.from_numpy(region)[None]
        for _ in range(4):
            xy, label, found = clicks.centre(truth.clone(), torch.zeros_like(truth))
            assert (xy[0].tolist(), label.tolist(), found.tolist()) == ([x, y], [1], [True])
        xy, label, _ = clicks.centre(torch.zeros_like(truth), truth)
        assert (xy[0].tolist(), label.tolist()) == ([x, y], [0])
