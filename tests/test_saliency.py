"""Max-F, mean absolute error and S-measure, against cases worked out by hand and the definitions written plainly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samlit.evaluation import saliency
from samlit.loading import frames
from samlit.loop import drive
from samlit.masks import rle
from samlit.source import Sample
from samlit.structures import Prediction, Scene
from samlit_prompts.points import Points
from samlit_tasks.foreground import Foreground

HALF = np.array([[1, 1, 0, 0]] * 4, bool)


def test_the_error_of_a_map_by_hand():
    assert saliency.absolute_error(HALF.astype(float), HALF) == 0
    assert saliency.absolute_error(np.full((4, 4), 0.25), HALF) == pytest.approx((0.75 + 0.25) / 2)


def test_the_f_curve_by_hand():
    found = np.array([[1.0, 0.6, 0.6, 0.0]] * 4)
    curve = saliency.f_curve(found, HALF)
    assert curve.shape == (256,)
    # From 255 down to above 153: 4 pixels, all right, half of the truth. At 153: 12 pixels, 8 of them right.
    high, middle, low = (1.3 * p * r / (0.3 * p + r) for p, r in ((1, 0.5), (8 / 12, 1), (0.5, 1)))
    assert curve[0] == curve[101] == pytest.approx(high)
    assert curve[102] == curve[254] == pytest.approx(middle)
    assert curve[255] == pytest.approx(low)
    assert saliency.f_curve(np.zeros((4, 4)), HALF)[:255].max() == 0
    assert saliency.f_curve(found, np.zeros((4, 4), bool)).max() == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_the_f_curve_is_that_of_thresholds_one_by_one(seed):
    chance = np.random.default_rng(seed)
    found, truth = chance.random((7, 9)) ** 2, chance.random((7, 9)) < 0.4
    truth[3, 4] = True
    curve = saliency.f_curve(found, truth)
    for threshold in (255, 200, 128, 30, 1, 0):
        chosen = np.rint(found * 255) >= threshold
        right = (chosen & truth).sum()
        p, r = right / max(chosen.sum(), 1), right / truth.sum()
        assert curve[255 - threshold] == pytest.approx(1.3 * p * r / (0.3 * p + r) if right else 0)


def test_s_measure_of_a_perfect_map_is_one_and_of_its_opposite_zero():
    truth = np.zeros((20, 30), bool)
    truth[4:13, 5:21] = True
    assert saliency.s_measure(truth.astype(float), truth) == pytest.approx(1)
    assert saliency.s_measure(1.0 - truth, truth) == pytest.approx(0, abs=1e-9)


def test_s_measure_where_the_truth_is_all_or_nothing_is_the_maps_mean():
    found = np.full((4, 5), 0.3)
    assert saliency.s_measure(found, np.ones((4, 5), bool)) == pytest.approx(0.3)
    assert saliency.s_measure(found, np.zeros((4, 5), bool)) == pytest.approx(0.7)


def test_s_measure_by_hand():
    # The mask is the left half, the map .8 on it and .2 beside it. Both are even, so their objects have no deviation.
    # The mask's centre of mass, column 0.5 and row 1.5, is cut after: after column 0 and row 2.
    found = np.where(HALF, 0.8, 0.2)
    objects = 2 * 0.8 / (0.8**2 + 1)  # of the mask, and of what is not it
    # The left parts, 3 + 1 pixels, have no contrast and count as alike. The right parts, 9 + 3 pixels of three
    # columns, have all of it: means .4 and 1/3, and sums of products over 8 (or 2), one less than pixels.
    regions = 3 / 16 + 1 / 16
    for pixels, freedom in ((9, 8), (3, 2)):
        covariance = 0.6 * pixels * 2 / 9 / freedom
        variances = (0.6**2 + 1) * pixels * 2 / 9 / freedom
        regions += pixels / 16 * 4 * 0.4 / 3 * covariance / ((0.4**2 + 1 / 9) * variances)
    assert saliency.s_measure(found, HALF) == pytest.approx(0.5 * objects + 0.5 * regions)


def test_the_metric_takes_the_highest_value_of_the_mean_curve():
    metric = saliency.Saliency()
    one, two = np.zeros(256), np.zeros(256)
    one[3], one[9] = 1.0, 0.6
    two[9] = 0.6
    metric.update({"f_curve": [one], "mae": [0.1], "s_measure": [0.9]})
    metric.update({"f_curve": [two], "mae": [0.3], "s_measure": [0.5]})
    metric.update({})
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == pytest.approx({"max_f": 0.6, "mae": 0.2, "s_measure": 0.7})


# The task.


def view():
    masks = np.zeros((2, 48, 64), bool)
    masks[0, 10:40, 16:36] = masks[1, 10:40, 36:50] = True
    made = [Sample("a", np.zeros((48, 64, 3), np.uint8), tuple(rle.encode_many(masks)))]
    made.append(Sample("b", np.zeros((64, 30, 3), np.uint8), ()))
    batch = frames.pack([frames.frame(sample, 64) for sample in made])
    batch.samples = made
    return Scene(batch, {"points": Points(8)}), masks.any(0)


def answers(masks, iou):
    """Each row is answered with these masks of the first image, (M, 48, 64), and their predicted IoU."""
    asked = []

    def answer(prompts):
        asked.append(prompts)
        framed = torch.zeros(len(masks), 64, 64)
        framed[:, :48] = torch.from_numpy(np.stack(masks)).float()
        logits = (framed[:, ::4, ::4] * 20 - 10).expand(len(prompts), -1, -1, -1)
        scores = torch.tensor(iou).expand(len(prompts), -1)
        return Prediction(logits, scores, torch.ones_like(scores, dtype=torch.bool), (64, 64))

    return answer, asked


def test_foreground_asks_about_the_middle_and_takes_the_thing_not_its_parts():
    scene, truth = view()
    part, everything = truth.copy(), np.ones_like(truth)
    part[:, 24:] = False
    answer, asked = answers([part, truth, everything], [0.95, 0.9, 0.99])
    result = drive(Foreground(soft=False), scene, answer)
    assert [prompts.image_index.tolist() for prompts in asked] == [[0] * 16, [1] * 16]
    for prompts, (high, wide) in zip(asked, ((48, 64), (64, 30)), strict=True):
        x, y, label = prompts.given["points"].values[:, 0].unbind(1)
        assert (label == 1).all()
        assert (x.min(), x.max()) == pytest.approx((0.275 * wide, 0.725 * wide), rel=1e-5)
        assert (y.min(), y.max()) == pytest.approx((0.275 * high, 0.725 * high), rel=1e-5)
    assert result["mae"][0] < 0.1
    assert result["s_measure"][0] > 0.8
    assert result["f_curve"][0].max() > 0.9
    first, second = result["maps"]
    assert (first.shape, second.shape) == ((48, 64), (64, 30))
    assert set(np.unique(first)) == {0, 1}
    soft = drive(Foreground(), scene, answer)["maps"][0]
    assert len(np.unique(soft)) > 10
    assert ((soft > 0.5) == (first > 0)).all()
    shown = Foreground().show(scene, result)
    assert [picture.size for picture in shown] == [(128, 48), (60, 64)]
    metric = Foreground().metric()
    metric.update(result)
    assert float(metric.sums[2]) == 2


def test_of_masks_that_are_all_too_large_the_best_is_taken():
    scene, truth = view()
    answer, _ = answers([truth, truth], [0.2, 0.9])
    found = drive(Foreground(least=0.001, most=0.002), scene, answer)
    assert found["mae"][0] < 0.1


@pytest.mark.parametrize("keys", [{"points_per_side": 0}, {"span": 0}, {"least": 0.9}])
def test_foreground_refuses_what_makes_no_sense(keys):
    with pytest.raises(ValueError, match=next(iter(keys))):
        Foreground(**keys)
