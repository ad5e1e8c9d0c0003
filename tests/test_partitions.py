"""Images cut into segments: of masks, brought to a number, judged; by hand and against plain counting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from samlit.evaluation import partitions
from samlit.loading import frames
from samlit.loop import drive
from samlit.masks import rle
from samlit.source import Sample
from samlit.structures import Scene
from samlit_prompts.points import Points
from samlit_tasks import superpixels

labels = st.builds(
    lambda seed, rows, columns, most: np.random.default_rng(seed).integers(0, most, (rows, columns)).astype(np.int32),
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 9),
)


def same(a, b):
    """Whether two label maps are the same partition."""
    pairs = {(x, y) for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)}
    return len(pairs) == len(np.unique(a)) == len(np.unique(b))


def test_a_pixel_belongs_to_the_smallest_mask_that_it_is_in():
    large, small, bar = np.zeros((3, 6, 8), bool)
    large[:, :6] = True
    small[1:3, 1:3] = True
    bar[4, :] = True
    masks = rle.encode_many(np.stack([small, large, bar]))
    expected = np.where(large, 1, 0)
    expected[bar] = 2
    expected[small] = 3
    assert same(partitions.of_masks(masks, (6, 8), connected=False), expected)
    pieces = partitions.of_masks(masks, (6, 8))
    assert len(np.unique(pieces)) == 6  # the bar cuts both the large mask and what is left in two
    assert partitions.of_masks([], (3, 4)).tolist() == np.zeros((3, 4), int).tolist()
    assert partitions.of_masks([rle.encode(np.zeros((3, 4)))], (3, 4)).max() == 0


@settings(max_examples=50, deadline=None)
@given(labels)
def test_pieces_are_the_connected_parts_of_each_label(found):
    expected, first = np.zeros_like(found), 0
    for label in np.unique(found):
        part, count = ndimage.label(found == label)
        expected[part > 0] = part[part > 0] + first
        first += count
    assert same(partitions._pieces(found), expected)


@settings(max_examples=80, deadline=None)
@given(labels, st.integers(1, 144))
def test_there_are_as_many_segments_as_are_asked_for_and_no_border_is_moved(found, count):
    count = min(count, found.size)
    before = len(np.unique(found))
    after = partitions.to_number(found, count)
    assert sorted(np.unique(after)) == list(range(count))
    finer, coarser = (after, found) if count >= before else (found, after)
    pairs = {(x, y) for x, y in zip(finer.ravel().tolist(), coarser.ravel().tolist(), strict=True)}
    assert len(pairs) == len(np.unique(finer))  # each finer segment is in one coarser


def test_the_smallest_is_joined_with_the_neighbour_of_the_longest_border():
    found = np.array([[0, 0, 0, 1, 1], [0, 0, 0, 2, 1], [0, 0, 0, 2, 1], [0, 0, 0, 1, 1]])
    assert same(partitions.to_number(found, 2), np.where(found == 0, 0, 1))  # 3 edges with 1, 2 with 0


def test_the_largest_is_cut_across_its_longer_side():
    found = np.zeros((2, 9), np.int32)
    found[:, 8] = 1
    assert partitions.to_number(found, 3).tolist() == [[0] * 4 + [2] * 4 + [1]] * 2
    with pytest.raises(ValueError, match="19 segments of 18 pixels"):
        partitions.to_number(found, 19)


TRUTH = np.repeat([[0] * 5 + [1] * 5], 4, 0)


def test_a_partition_is_perfect_against_itself_and_finer_ones():
    finer = np.arange(40).reshape(4, 10)
    for segments in (TRUTH, finer):
        assert partitions.boundary_recall(TRUTH, segments, 0) == 1
        assert partitions.undersegmentation(TRUTH, segments) == 0
        assert partitions.accuracy(TRUTH, segments) == 1


def test_the_numbers_by_hand():
    # Three segments of 4 x 3, 4 x 3 and 4 x 4; the middle one has 8 pixels on the left of the border and 4 right of it.
    segments = np.repeat([[0] * 3 + [1] * 3 + [2] * 4], 4, 0)
    assert partitions.accuracy(TRUTH, segments) == pytest.approx((12 + 8 + 16) / 40)
    assert partitions.undersegmentation(TRUTH, segments) == pytest.approx((4 + 4) / 40)  # min(8, 4) on both sides
    # The true boundary is column 4, the segments' are columns 2 and 5.
    assert [partitions.boundary_recall(TRUTH, segments, within) for within in (0, 1)] == [0, 1]
    assert partitions.boundary_recall(TRUTH, np.zeros_like(TRUTH), 2) == 0
    assert partitions.boundary_recall(np.zeros_like(TRUTH), segments) == 1


@settings(max_examples=50, deadline=None)
@given(labels, st.integers(0, 10**6), st.integers(0, 2))
def test_the_numbers_against_plain_counting(truth, seed, within):
    segments = np.random.default_rng(seed).integers(0, 5, truth.shape)
    best = leak = 0
    for s in np.unique(segments):
        best += max(((segments == s) & (truth == t)).sum() for t in np.unique(truth))
        for t in np.unique(truth):
            inside = ((segments == s) & (truth == t)).sum()
            leak += min(inside, (segments == s).sum() - inside)
    assert partitions.accuracy(truth, segments) == pytest.approx(best / truth.size)
    assert partitions.undersegmentation(truth, segments) == pytest.approx(leak / truth.size)
    mine = [
        (y, x)
        for y in range(truth.shape[0])
        for x in range(truth.shape[1])
        if truth[y, x] not in (truth[y, min(x + 1, truth.shape[1] - 1)],)
        or truth[y, x] != truth[min(y + 1, truth.shape[0] - 1), x]
    ]
    theirs = np.argwhere(partitions.boundaries(segments))
    hit = sum(any(max(abs(y - v), abs(x - u)) <= within for v, u in theirs) for y, x in mine)
    assert partitions.boundary_recall(truth, segments, within) == pytest.approx(hit / len(mine) if mine else 1)


def test_superpixels_of_everything_have_the_number_that_is_asked_for(monkeypatch):
    halves = np.zeros((2, 20, 30), bool)
    halves[0, :, :15] = True
    halves[1] = ~halves[0]
    made = [Sample("a", np.zeros((20, 30, 3), np.uint8), tuple(rle.encode_many(halves)))]
    batch = frames.pack([frames.frame(sample, 32) for sample in made])
    batch.samples = made

    class Mask:
        rle = made[0].masks[0]

    def found(scene, options):
        assert options.pred_iou_thresh is None
        yield "asked"
        return [[Mask()]]

    monkeypatch.setattr(superpixels, "everything", found)
    task = superpixels.Superpixels(segments=7)
    result = drive(task, Scene(batch, {"points": Points(8)}), lambda prompts: prompts)
    assert len(np.unique(result["labels"][0])) == 7
    assert result["boundary_recall"].tolist() == result["achievable_accuracy"].tolist() == [1.0]
    assert result["undersegmentation_error"].tolist() == [0.0]
    metric = task.metric()
    metric.update(result)
    assert {name: float(value) for name, value in metric.compute().items()} == {
        "boundary_recall": 1,
        "undersegmentation_error": 0,
        "achievable_accuracy": 1,
    }
    (picture,) = task.show(Scene(batch, {}), result)
    assert picture.size == (30, 20)
    with pytest.raises(ValueError, match="segments: one at least"):
        superpixels.Superpixels(segments=0)
