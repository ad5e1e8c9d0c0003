"""What is told of a training: means by pass, and whether the predicted IoU can be believed."""

import math

import pytest
import torch

from samlit.evaluation.calibration import Calibration, shown_ious
from samlit.losses import Terms
from samlit.run.tally import MOST, Tally
from samlit.structures import Prediction


def terms(*rows):
    """A pass whose rows have these losses; their IoU is a tenth of it."""
    total = torch.tensor(rows)
    return Terms(total, 2 * total, 3 * total, 4 * total, total / 10)


def test_a_pass_is_a_mean_over_masks_and_a_step_one_over_passes():
    tally = Tally()
    assert tally.take() == {}
    tally.add(torch.tensor(2.0), [terms(1.0, 3.0), terms(2.0, 2.0)], 5)
    tally.add(torch.tensor(4.0), [terms(8.0)], 1)  # a step that ended after one pass
    tally.add(torch.tensor(0.0), [], 1)  # and one without masks
    told = tally.take()
    assert told == pytest.approx(
        {
            "train/loss": 2.0,
            "train/focal": 10.0,
            "train/dice": 15.0,
            "train/iou": 20.0,
            "train/miou": 0.5,
            "train/miou_first": 0.5,
            "train/miou_last": 0.5,
            "train/pass_01/loss": 4.0,
            "train/pass_01/miou": 0.4,
            "train/pass_02/loss": 2.0,
            "train/pass_02/miou": 0.2,
        }
    )
    assert (tally.images, tally.answers) == (7, 5)
    assert tally.take() == {}
    tally.add(torch.tensor(0.0), [], 1)
    assert tally.take() == {"train/loss": 0.0}


def test_ranks_are_added_up_masks_and_all():
    one, other = Tally(), Tally()
    one.add(torch.tensor(2.0), [terms(1.0), terms(1.0)], 1)
    other.add(torch.tensor(6.0), [terms(4.0, 4.0, 4.0)], 1)
    kept = []
    other.take(lambda total: kept.append(total) or total)
    told = one.take(lambda total: total + kept[0])
    assert (told["train/loss"], told["train/pass_01/loss"], told["train/pass_02/loss"]) == (4.0, 3.25, 1.0)


def test_a_step_that_is_left_out_is_not_counted():
    tally = Tally()
    tally.add(torch.tensor(float("nan")), [terms(float("inf")), terms(2.0)], 1)
    assert tally.take() == {"train/pass_02/loss": 2.0, "train/pass_02/miou": pytest.approx(0.2)}
    tally.add(torch.tensor(float("nan")), [terms(float("nan"))], 1)
    tally.add(torch.tensor(3.0), [terms(4.0)], 1)
    told = tally.take()
    assert (told["train/loss"], told["train/focal"], told["train/pass_01/loss"]) == (3.0, 8.0, 4.0)


def test_more_passes_than_are_told_apart_are_no_error():
    tally = Tally()
    tally.add(torch.tensor(1.0), [terms(1.0)] * (MOST + 3), 1)
    assert f"train/pass_{MOST}/miou" in tally.take()


def test_the_calibration_error_is_the_mean_distance_of_predicted_and_actual():
    calibration = Calibration()
    calibration.update(torch.tensor([0.92, 0.98]), torch.tensor([0.5, 0.6]))
    calibration.update(torch.tensor([0.15, 1.7, -3.0, math.nan]), torch.tensor([0.25, 1.0, 0.0, 0.1]))
    found = calibration.compute()
    assert found.answers == [2, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    assert found.actual[9] == pytest.approx(0.7)
    assert found.predicted[9] == pytest.approx((0.92 + 0.98 + 1) / 3)
    assert found.error == pytest.approx((2 * 0.05 + 0.1 + 3 * (2.9 / 3 - 0.7)) / 6)
    calibration.reset()
    calibration.update(torch.zeros(0), torch.zeros(0))
    assert calibration.compute().error == calibration.compute().total == 0
    sure = torch.linspace(0, 1, 101)
    calibration.update(sure, sure)
    assert calibration.compute().error == pytest.approx(0, abs=1e-7)
    assert not calibration.state_dict()  # it is no part of a checkpoint


@pytest.mark.parametrize("rows", [0, 5])
def test_what_is_compared_is_the_mask_that_a_person_is_shown(rows):
    chance = torch.Generator().manual_seed(1)
    logits, iou = torch.randn(rows, 3, 4, 4, generator=chance), torch.rand(rows, 3, generator=chance)
    allowed = torch.tensor([False, True, True]).repeat(rows, 1)
    truth = torch.rand(rows, 16, 16, generator=chance) > 0.5
    prediction = Prediction(logits, iou, allowed, (16, 16))
    predicted, actual = shown_ious(prediction, truth, at_once=2)
    assert len(predicted) == len(actual) == rows
    for row in range(rows):
        best = 1 + int(iou[row, 1:].argmax())
        mask = prediction.full(logits)[row, best] > 0
        assert actual[row] == (mask & truth[row]).sum() / (mask | truth[row]).sum()
        assert predicted[row] == iou[row, best]
