"""Edges against drawn boundaries: the benchmark of BSDS500 against its own output, and the task that uses it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import loadmat
from scipy.optimize import linear_sum_assignment

from samlit.evaluation import boundaries
from samlit.loop import drive
from samlit.masks import rle
from samlit.source import Sample
from samlit_tasks._automatic import Automatic
from samlit_tasks.edges import Edges
from tests.clicking import Noisy, samples, scene
from tests.test_predictor_official import SHARED

FIXTURE = SHARED / "fixtures" / "bsds_bench"


@pytest.mark.skipif(not FIXTURE.is_dir(), reason=f"{FIXTURE} is not here: SAMLIT_SHARED names the folder of real data")
def test_the_official_benchmarks_own_output():
    found = []
    for name in ("2018", "3063", "5096", "6046", "8068"):
        edges = np.asarray(Image.open(FIXTURE / "png" / f"{name}.png")) / 255
        cells = loadmat(FIXTURE / "groundTruth" / f"{name}.mat")["groundTruth"].ravel()
        drawn = [np.asarray(cell["Boundaries"][0, 0]) > 0 for cell in cells]
        found.append(boundaries.counts(edges, drawn, np.linspace(1 / 6, 5 / 6, 5)))
    told = boundaries.summary(found)
    row = [float(word) for word in (FIXTURE / "test_2" / "eval_bdry.txt").read_text().split()]
    mine = (told.ods_recall, told.ods_precision, told.ods, told.ois_recall, told.ois_precision, told.ois, told.ap)
    assert mine == pytest.approx(row[1:], abs=1e-3)
    total = boundaries.Counts(*(np.sum([getattr(one, name) for one in found], 0) for name in boundaries.Counts._fields))
    recall, precision = boundaries.curve(total)
    for t, line in enumerate((FIXTURE / "test_2" / "eval_bdry_thr.txt").read_text().splitlines()):
        _, r, p, f = map(float, line.split())
        ours = 2 * recall[t] * precision[t] / (recall[t] + precision[t])
        assert (recall[t], precision[t], ours) == pytest.approx((r, p, f), abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_pixels_are_matched_at_the_least_total_cost(seed):
    chance = np.random.default_rng(seed)
    found, drawn = (chance.random((9, 11)) < chance.random() * 0.4 for _ in range(2))
    radius = 2.3
    one, other = boundaries.match(found, drawn, radius)
    assert not (one & ~found).any()
    assert not (other & ~drawn).any()
    assert one.sum() == other.sum()
    a, b = np.argwhere(found), np.argwhere(drawn)
    distance = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1))
    # A dense assignment in which every pixel may stay alone, for what the benchmark asks for that.
    n, m, alone = len(a), len(b), boundaries.UNMATCHED * radius
    cost = np.full((n + m, n + m), 0.0)
    cost[:n, :m] = np.where(distance <= radius, distance, 1e9)
    cost[:n, m:] = np.where(np.eye(n, dtype=bool), alone, 1e9)
    cost[n:, :m] = np.where(np.eye(m, dtype=bool), alone, 1e9)
    row, column = linear_sum_assignment(cost)
    pairs = (row < n) & (column < m)
    assert one.sum() == pairs.sum()
    # The pixels that are matched can be paired at that total distance.
    chosen = np.where(distance <= radius, distance, 1e9)[np.ix_(one[found], other[drawn])]
    assert chosen[linear_sum_assignment(chosen)].sum() == pytest.approx(cost[row, column][pairs].sum())


def test_thinning_by_hand():
    bar = np.zeros((9, 20), bool)
    bar[3:6, 2:18] = True
    thinned = boundaries.thin(bar)
    assert thinned[4, 4:16].all()
    assert thinned.sum(0).max() == 1
    ring = np.zeros((15, 15), bool)
    ring[2:13, 2:13] = True
    ring[5:10, 5:10] = False
    thinned = boundaries.thin(ring)
    from scipy.ndimage import label

    assert label(~thinned, np.ones((3, 3)) * [[0, 1, 0], [1, 1, 1], [0, 1, 0]])[1] == 2, "a ring stays a ring"
    assert label(thinned, np.ones((3, 3)))[1] == 1
    assert np.array_equal(boundaries.thin(thinned), thinned)
    assert not boundaries.thin(np.zeros((3, 4), bool)).any()
    dot = np.zeros((3, 3), bool)
    dot[1, 1] = True
    assert boundaries.thin(dot).sum() == 1


def test_thinning_as_skimage_does_it():
    # What scikit-image 0.26's `thin` leaves (#) of a mask (# and o).
    lines = [
        "ooo...........oooooooo......",
        "o#o...........##oooooo......",
        "o#o............o#####oo...oo",
        "o#oo............ooooo#oooo#o",
        "oo#oo....oooo........o####oo",
        "oo#oo...oooooooo......oooo#o",
        "ooo#oo..oo####oo..........#o",
        "..o#oo..o#oooo#o........o.#o",
        "...o##oo#o....o#o......oo#oo",
        "....oo##o.....o#ooo...oo#ooo",
        "......o#oo...o#####o..oooooo",
        "......oooo..##oooooo..oooooo",
    ]
    drawn = np.array([list(line) for line in lines])
    assert np.array_equal(boundaries.thin(drawn != "."), drawn == "#")


def test_a_summary_by_hand():
    one = boundaries.Counts(*np.array([[8, 4], [10, 10], [8, 4], [16, 4]]))
    two = boundaries.Counts(*np.array([[6, 5], [10, 10], [6, 5], [6, 5]]))
    told = boundaries.summary([one, two])
    # In all: recall .7 and .45, precision 14/22 and 1; between them F is higher than at either.
    r, p = np.array([0.7, 0.45]), np.array([14 / 22, 1.0])
    w = np.linspace(0, 1, 101)
    f = 2 * (r[0] * (1 - w) + r[1] * w) * (p[0] * (1 - w) + p[1] * w)
    f /= (r[0] * (1 - w) + r[1] * w) + (p[0] * (1 - w) + p[1] * w)
    assert told.ods == pytest.approx(f.max())
    # Each with its own: the first at .8 and .5 (F .615), the second at .6 and 1.
    assert (told.ois_recall, told.ois_precision) == pytest.approx((14 / 20, 14 / 22))
    assert told.r50 == pytest.approx(0.7)
    at = np.arange(101) / 100
    assert told.ap == pytest.approx(np.interp(at, [0.45, 0.7], [1.0, 14 / 22])[45:71].sum() / 100, abs=0.011)
    assert boundaries.summary([]).ods == 0


@pytest.mark.parametrize("degrees", range(0, 180, 15))
def test_nms_thins_a_ridge_of_any_direction(degrees):
    y, x = np.mgrid[-40:40, -40:40]
    off = x * np.cos(np.radians(degrees)) + y * np.sin(np.radians(degrees))
    off = np.where(np.abs(off) < 1e-9, 0, off)
    kept = boundaries.nms(np.exp(-((off / 2.5) ** 2))) > 0.05
    inner = np.hypot(x, y) < 30
    assert kept[inner & (np.abs(off) < 0.5)].all(), "its middle stays, without a gap"
    assert not kept[inner & (np.abs(off) > 1)].any(), "and nothing beside it"


def test_nms_leaves_a_ridge():
    y, x = np.mgrid[:40, :60]
    ridge = np.exp(-(((x - 30 - 0.3 * (y - 20)) / 2.5) ** 2))
    found = boundaries.nms(ridge)
    kept = found[8:32] > 0
    assert (kept.sum(1) <= 2).all()
    assert (kept.any(1)).all()
    # 5 pixels at the border fade away.
    assert found[0].max() == 0
    assert boundaries.nms(np.zeros((6, 5))).max() == 0


def edged():
    """Two images with two discs each, and the rims of these as what people drew."""
    made = []
    for number, (rows, columns) in enumerate(((50, 90), (64, 61))):
        y, x = np.mgrid[:rows, :columns]
        masks = np.stack([(y - 25) ** 2 + (x - at) ** 2 < 15**2 for at in (18, 42)])
        rims = [mask & ~np.roll(mask, 1, axis) | ~mask & np.roll(mask, 1, axis) for mask in masks for axis in (0, 1)]
        image = np.zeros((rows, columns, 3), np.uint8)
        strings = tuple(rle.encode_many(masks))
        made.append(Sample(f"picture {number}", image, strings, boundaries=tuple(rle.encode_many(np.stack(rims)))))
    return scene(made)


def test_the_task_draws_edges_of_masks_and_judges_them(tmp_path):
    view = edged()
    options = Automatic(points_per_side=4, pred_iou_thresh=None, stability_score_thresh=None)

    def found(**keys):
        noisy = Noisy(view, noise=0.3)

        def answer(prompts):
            prompts.target = prompts.image_index * 2 + torch.arange(len(prompts)) % 2
            return noisy(prompts)

        task = Edges(5, border=1, options=options, **keys)
        return task, drive(task, view, answer)

    task, result = found()
    assert [edges.shape for edges in result["edges"]] == [(50, 90), (64, 61)]
    assert 0 < max(edges.max() for edges in result["edges"]) <= 1
    metric = task.metric()
    metric.update(result)
    numbers = {name: float(value) for name, value in metric.compute().items()}
    # A match may be less than a pixel away in images that small, and logits are four times as coarse.
    assert 0.15 < numbers["ods"] <= 1
    assert json.loads(json.dumps(numbers)) == numbers
    task.plot(numbers, metric, tmp_path)
    assert (tmp_path / "edges.png").stat().st_size > 5000
    assert [picture.size for picture in task.show(view, result)] == [(270, 50), (183, 64)]
    assert found(boundary="both")[1]["counts"] != result["counts"]


@pytest.mark.slow
def test_several_processes_count_the_same():
    chance = np.random.default_rng(0)
    edges, drawn = chance.random((40, 50)), [chance.random((40, 50)) < 0.1]
    several = Edges(7, jobs=2)
    waiting = [several._counts(edges * share, drawn) for share in (1, 0.5)]
    for share, many in zip((1, 0.5), waiting, strict=True):
        for a, b in zip(Edges(7)._counts(edges * share, drawn)(), many(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_images_are_matched_beside_each_other():
    """Every image's pixels are given to the processes before any image's counts are waited for."""
    begun, told = [], []

    class Pool:
        def submit(self, count, edges, drawn, thresholds):
            begun.append(edges.shape)
            return SimpleNamespace(result=lambda: told.append(len(begun)) or count(edges, drawn, thresholds))

    view = edged()
    options = Automatic(points_per_side=2, pred_iou_thresh=None, stability_score_thresh=None)
    alone, several = Edges(5, options=options), Edges(5, jobs=2, options=options)
    several._pool = Pool()
    results = []
    for task in (alone, several):
        noisy = Noisy(view)

        def answer(prompts, noisy=noisy):
            prompts.target = prompts.image_index * 2
            return noisy(prompts)

        results.append(drive(task, view, answer)["counts"])
    assert begun == [(50, 90)] * 8 + [(64, 61)] * 8
    assert set(told) == {16}
    assert results[0] == results[1]


def test_what_has_no_boundaries_is_told():
    view = scene(samples())
    with pytest.raises(ValueError, match="picture 0 has no boundaries to judge edges by; the source `bsds` has them"):
        drive(Edges(), view, Noisy(view))


@pytest.mark.parametrize(
    "keys",
    [
        {"thresholds": 0},
        {"jobs": 0},
        {"boundary": "inner"},
        {"radius": 0},
        {"smooth": -1},
        {"border": -1},
        {"margin": 0.0},
        {"margin": float("nan")},
    ],
)
def test_keys_that_make_no_sense_are_refused(keys):
    with pytest.raises(ValueError, match=next(iter(keys))):
        Edges(**keys)
