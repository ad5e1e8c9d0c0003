"""Losses by hand and against torchvision; which mask learns, and what its predicted IoU learns from."""

import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from samlit.losses import Losses
from samlit.metrics import MeanByName, mask_iou
from samlit.structures import Prediction
from samlit.training import focal_dice
from samlit.training.focal_dice import compared


def some(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def answer(logits, iou=None, allowed=None, times=1):
    iou = torch.zeros(logits.shape[:2]) if iou is None else iou
    allowed = torch.ones(logits.shape[:2], dtype=torch.bool) if allowed is None else allowed
    return Prediction(logits, iou, allowed, (logits.shape[2] * times, logits.shape[3] * times))


def focal_and_dice(logits, truth, *how):
    """Of one mask a row, or of several with the truth of (P, 1, H, W)."""
    found = compared(logits if logits.ndim == 4 else logits[:, None], truth if truth.ndim == 3 else truth[:, 0], *how)
    return found[:2] if logits.ndim == 4 else (found.focal[:, 0], found.dice[:, 0])


def focal(logits, target, *how):
    return focal_and_dice(logits, target, *how)[0]


def dice(logits, target):
    return focal_and_dice(logits, target)[1]


def plainly(logits, target, alpha, gamma):
    """Torchvision's focal and the textbook's dice, step by step."""
    t = target.to(logits.dtype).expand_as(logits)
    p = logits.sigmoid()
    overlap, sizes = (p * t).flatten(-2).sum(-1), (p + t).flatten(-2).sum(-1)
    return sigmoid_focal_loss(logits, t, alpha, gamma, "none").mean((-2, -1)), 1 - (2 * overlap + 1) / (sizes + 1)


def test_focal_by_hand():
    logits, target = torch.tensor([[[math.log(3.0), 0.0]]]), torch.tensor([[[True, False]]])
    # p = 3/4 where it is wanted, 1/2 where it is not.
    wanted = 0.25 * 0.25**2 * math.log(4 / 3)
    unwanted = 0.75 * 0.5**2 * math.log(2)
    torch.testing.assert_close(focal(logits, target), torch.tensor([(wanted + unwanted) / 2]))


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 0.0), (0.7, 1.0), (0.9, 3.5)])
def test_both_are_the_plain_ones_and_so_are_their_gradients(alpha, gamma):
    truth = some(2, 1, 5, 4, seed=1) > 0
    ours, theirs = (some(2, 3, 5, 4).requires_grad_() for _ in range(2))
    found, expected = focal_and_dice(ours, truth, alpha, gamma), plainly(theirs, truth, alpha, gamma)
    upstream = some(2, 2, 3, seed=2)
    for losses in (found, expected):
        (losses[0] * upstream[0] + losses[1] * upstream[1]).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_gradients_are_the_slopes():
    truth = some(2, 5, 4, seed=1) > 0
    logits = some(2, 5, 4, scale=1.0).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: focal_and_dice(x, truth, 0.4, 1.5), logits)


@pytest.mark.parametrize("size", [(5, 4), (10, 8), (15, 12), (20, 16), (20, 4), (7, 9), (5, 6)])
@pytest.mark.parametrize("near", [1, 700, 2**18])
def test_logits_are_interpolated_a_few_masks_at_a_time(size, near, monkeypatch):
    monkeypatch.setattr(focal_dice, "NEAR", near)
    truth = some(3, *size, seed=1) > 0
    ours, theirs = (some(3, 2, 5, 4).double().requires_grad_() for _ in range(2))
    found = compared(ours, truth, 0.4, 2.0)
    up = F.interpolate(theirs, size, mode="bilinear", align_corners=False)
    expected = plainly(up, truth[:, None], 0.4, 2.0)
    assert torch.equal(found.hard, up > 0)
    torch.testing.assert_close(found.iou, mask_iou(up > 0, truth[:, None]), check_dtype=False)
    upstream = some(2, 3, 2, seed=2).double()
    for losses in (found, expected):
        (losses[0] * upstream[0] + losses[1] * upstream[1]).sum().backward()
    torch.testing.assert_close(found[:2], expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_logits_far_from_zero_have_finite_losses_and_gradients():
    logits = torch.tensor([[[100.0, -100.0, 60.0, -60.0]]]).requires_grad_()
    by_focal, by_dice = focal_and_dice(logits, torch.tensor([[[False, True, True, False]]]))
    (by_focal + by_dice).sum().backward()
    torch.testing.assert_close(by_focal, torch.tensor([(0.75 * 100 + 0.25 * 100) / 4]))
    assert logits.grad.isfinite().all()


def test_dice_by_hand():
    logits, target = (
        torch.tensor([[math.log(3.0), 0.0], [-math.log(3.0), 0.0]]),
        torch.tensor([[True, True], [False, False]]),
    )
    # Intersection 3/4 + 1/2; sums 3/4 + 1/2 + 1/4 + 1/2 = 2 and 2; one pixel of smoothing.
    torch.testing.assert_close(dice(logits[None], target[None]), torch.tensor([1 - (2.5 + 1) / (4 + 1)]))


def test_each_mask_is_compared_for_itself():
    logits, target = some(4, 3, 6, 5), some(4, 6, 5, seed=1) > 0
    for loss in (focal, dice):
        together = loss(logits, target[:, None])
        alone = torch.stack([torch.cat([loss(logits[[i], j], target[[i]]) for j in range(3)]) for i in range(4)])
        torch.testing.assert_close(together, alone)


def test_only_the_best_of_three_learns():
    truth = some(5, 8, 8, seed=1) > 0
    logits = some(5, 3, 8, 8).requires_grad_()
    terms = Losses(supervise_iou="best")(answer(logits), truth)
    terms.total.sum().backward()
    one = Losses(supervise_iou="best")
    alone = [one(answer(logits.detach()[:, [j]]), truth) for j in range(3)]
    each = torch.stack([a.total for a in alone], 1)
    best = torch.stack([20 * a.focal + a.dice for a in alone], 1).argmin(1)
    assert len(set(best.tolist())) > 1
    touched = logits.grad.abs().sum((2, 3)) > 0
    assert torch.equal(touched, F.one_hot(best, 3).bool())
    torch.testing.assert_close(terms.total, each.gather(1, best[:, None])[:, 0])


def test_a_mask_that_is_not_allowed_never_learns_though_it_is_perfect():
    truth = some(2, 8, 8, seed=1) > 0
    logits = some(2, 4, 8, 8)
    logits[:, 0] = (truth.float() * 2 - 1) * 20
    logits[1, 2] = logits[1, 0]
    logits.requires_grad_()
    iou = torch.zeros(2, 4, requires_grad=True)
    allowed = torch.tensor([[False, True, True, True], [True, False, False, False]])
    terms = Losses()(answer(logits, iou, allowed), truth)
    terms.total.sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 0].abs().sum() == 0
    assert terms.actual_iou[0] < 1
    assert terms.actual_iou[1] == 1
    assert torch.equal(iou.grad != 0, torch.tensor([[False, True, True, True], [True, False, False, False]]))


@pytest.mark.parametrize(("resolution", "times"), [(0.5, 2), (1.0, 1)])
def test_the_predicted_iou_learns_from_the_real_one(resolution, times):
    truth = torch.zeros(1, 4 * times, 4 * times, dtype=torch.bool)
    truth[0, :, : 2 * times] = True
    logits = torch.full((1, 3, 4, 4), -1.0)
    logits[0, 0, :, :3] = 0.01  # 8 of 12, by a hair above the threshold
    logits[0, 1, :, 0] = 9.0  # 4 of 8
    predicted = torch.tensor([[0.9, 0.3, 1.2]], requires_grad=True)
    actual = torch.tensor([2 / 3, 1 / 2, 0.0])
    off = (predicted.detach()[0] - actual) ** 2
    every = Losses(supervise_iou="all", resolution=resolution)(answer(logits, predicted, times=times), truth)
    torch.testing.assert_close(every.iou, off.mean()[None])
    best = Losses(supervise_iou="best", resolution=resolution)(answer(logits, predicted, times=times), truth)
    which = int((actual - best.actual_iou).abs().argmin())
    torch.testing.assert_close(best.iou, off[which][None])
    (gradient,) = torch.autograd.grad(best.iou.sum(), predicted)
    torch.testing.assert_close(gradient[0], 2 * (predicted.detach()[0] - actual) * F.one_hot(torch.tensor(which), 3))


def test_the_target_of_the_predicted_iou_has_no_gradient():
    logits = some(2, 3, 4, 4).requires_grad_()
    terms = Losses(focal=0.0, dice=0.0)(answer(logits), some(2, 4, 4, seed=1) > 0)
    (gradient,) = torch.autograd.grad(terms.total.sum(), logits)
    assert gradient.abs().sum() == 0


def test_weights_make_the_total():
    prediction, truth = answer(some(3, 3, 4, 4), some(3, 3, seed=2)), some(3, 4, 4, seed=1) > 0
    terms = Losses(focal=2.0, dice=3.0, iou=5.0)(prediction, truth)
    torch.testing.assert_close(terms.total, 2 * terms.focal + 3 * terms.dice + 5 * terms.iou)


@pytest.mark.parametrize("resolution", [0.5, 1.0])
def test_an_empty_truth_is_a_loss_like_any_other(resolution):
    logits = torch.stack([torch.full((3, 4, 4), -30.0), torch.full((3, 4, 4), 30.0)]).requires_grad_()
    terms = Losses(resolution=resolution)(
        answer(logits, torch.ones(2, 3), times=2), torch.zeros(2, 8, 8, dtype=torch.bool)
    )
    terms.total.sum().backward()
    assert logits.grad.isfinite().all()
    assert terms.total[0] < 1e-3  # empty and said so, with IoU 1 of nothing and nothing
    assert terms.total[1] > 100
    assert terms.actual_iou.tolist() == [1.0, 0.0]


def test_low_and_full_resolution_agree_on_what_both_can_show():
    flat = torch.tensor([2.0, -1.0])[:, None, None, None].expand(2, 1, 4, 6)
    truth = torch.zeros(2, 16, 24, dtype=torch.bool)
    truth[:, 4:12, 8:20] = True  # whole cells of the low-res grid
    low, full = (Losses(resolution=r)(answer(flat, times=4), truth) for r in (0.25, 1.0))
    torch.testing.assert_close(low.focal, full.focal)
    torch.testing.assert_close(low.actual_iou, full.actual_iou)
    # Dice has one pixel of smoothing on either grid, and the frame has sixteen pixels where the low grid has one.
    both, sum_of_both = 6 * flat[:, 0, 0, 0].sigmoid(), 24 * flat[:, 0, 0, 0].sigmoid() + 6
    torch.testing.assert_close(low.dice, 1 - (2 * both + 1) / (sum_of_both + 1))
    torch.testing.assert_close(full.dice, 1 - (2 * both + 1 / 16) / (sum_of_both + 1 / 16))


def test_a_coarser_grid_has_the_cells_that_are_mostly_inside():
    truth = torch.zeros(1, 4, 8, dtype=torch.bool)
    truth[0, 0, 0] = truth[0, 0, 2] = truth[0, 0, 3] = truth[0, 1, 3] = True  # a quarter and three quarters of a cell
    truth[0, :, 4] = truth[0, :, 6] = True  # half of every cell
    logits = some(1, 1, 2, 4)
    terms = Losses(resolution=0.5)(answer(logits, times=2), truth)
    target = torch.tensor([[[False, True, True, False], [False, False, False, True]]])
    torch.testing.assert_close(terms.dice, dice(logits[:, 0], target))
    torch.testing.assert_close(terms.focal, focal(logits[:, 0], target))
    torch.testing.assert_close(terms.actual_iou, mask_iou(logits[:, 0] > 0, target))


@pytest.mark.parametrize("resolution", [0.0, -1.0, 1.5])
def test_a_resolution_is_a_share_of_the_frame(resolution):
    with pytest.raises(ValueError, match="resolution: a share of the frame's side"):
        Losses(resolution=resolution)


def test_half_precision_answers_are_compared_in_full():
    logits, iou, truth = some(2, 3, 8, 8), some(2, 3, seed=2), some(2, 8, 8, seed=1) > 0
    half = Losses()(answer(logits.bfloat16(), iou.bfloat16()), truth)
    full = Losses()(answer(logits.bfloat16().float(), iou.bfloat16().float()), truth)
    assert half.total.dtype == torch.float32
    assert torch.equal(half.total, full.total)


def test_iou_of_masks():
    a = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)[:, None]
    b = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)[:, None]
    torch.testing.assert_close(mask_iou(a, b), torch.tensor([1 / 3, 1.0, 0.0]))
    assert mask_iou(a[:, None], b[None]).shape == (3, 3)


def test_means_are_over_masks_not_over_batches():
    metric = MeanByName(["a", "b", "never"])
    metric.update({"a": torch.tensor([1.0, 1.0, 1.0]), "b": torch.tensor([0.5])})
    metric.update({"a": torch.tensor([0.0]), "unknown": torch.tensor([9.0])})
    metric.update({})
    torch.testing.assert_close(
        metric.compute(), {"a": torch.tensor(0.75), "b": torch.tensor(0.5), "never": torch.tensor(0.0)}
    )
    metric.reset()
    metric.update({"a": torch.zeros(0)})
    assert metric.compute()["a"] == 0


def test_a_masks_loss_is_the_mean_over_its_answers_or_their_sum_and_the_first_may_weigh_more():
    def of(losses, answers):
        return sum(losses.weight(i) * answer for i, answer in enumerate(answers)) * losses.share(len(answers))

    assert of(Losses(), [1.0, 3.0, 5.0]) == 3.0
    assert of(Losses(first=2.0), [1.0, 3.0, 5.0]) == 2.5
    assert of(Losses(first=7.0), [4.0]) == 4.0
    assert of(Losses(answers="sum"), [1.0, 3.0, 5.0]) == 9.0
    assert of(Losses(answers="sum", first=2.0), [1.0, 3.0, 5.0]) == 10.0
    assert Losses().share(0) == Losses(answers="sum").share(0) == 1


def test_the_error_of_the_predicted_iou_is_squared_or_absolute():
    truth = torch.zeros(1, 8, 8, dtype=torch.bool)
    truth[:, :4] = True
    logits = torch.where(truth[:, None], 5.0, -5.0)  # IoU 1
    prediction = Prediction(logits, torch.tensor([[0.7]]), torch.ones(1, 1, dtype=torch.bool), (8, 8))
    squared, absolute = (Losses(iou_error=kind)(prediction, truth).iou for kind in ("squared", "absolute"))
    assert squared.item() == pytest.approx(0.09, abs=1e-6)
    assert absolute.item() == pytest.approx(0.3, abs=1e-6)
    with pytest.raises(ValueError, match="above 0, not 0"):
        Losses(first=0.0)
