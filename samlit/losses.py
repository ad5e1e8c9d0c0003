"""Focal, dice and IoU losses, and which of three masks learns (paper section 3 and appendix A, SAM_SPEC 2.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from samlit.metrics import mask_iou
from samlit.structures import Prediction

__all__ = ["Losses", "Terms", "focal_and_dice"]


class Terms(NamedTuple):
    """The losses of P rows, (P,) each, and the IoU of the mask that learned, (P,), as a number to watch."""

    total: Tensor
    focal: Tensor
    dice: Tensor
    iou: Tensor
    actual_iou: Tensor


@dataclass(frozen=True)
class Losses:
    """What is minimised at every answer.

    Attributes:
        focal: Weight of the focal loss.
        dice: Weight of the dice loss.
        iou: Weight of the error of the predicted IoU.
        alpha: Focal loss's weight of pixels inside the mask; the paper gives none, MaskFormer and SAM 2 take 0.25.
        gamma: Focal loss's exponent; as above, 2.
        iou_error: Whether that error is "squared", as the paper says, or "absolute", as in SAM 2.
        answers: Whether a mask's loss is the "mean" over its answers or their "sum", as in SAM 2; the paper says of
            neither.
        first: Weight of a task's first answer, the ambiguous one, over that of a later one.
        supervise_iou: Which of three masks have their predicted IoU corrected: "all", as SAM 2 does, so that ranking
            by it means something, or "best", the one that learns, as SAM did.
        resolution: Side of the grid on which masks are compared, as a share of the frame's: 1 is the frame itself, 1/4
            the grid of SAM's low-res logits. Logits are interpolated; the truth has the cells that are more than half
            inside, and of those that are just half inside every other one. The paper does not say.
    """

    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    alpha: float = 0.25
    gamma: float = 2.0
    iou_error: Literal["squared", "absolute"] = "squared"
    answers: Literal["mean", "sum"] = "mean"
    first: float = 1.0
    supervise_iou: Literal["all", "best"] = "all"
    resolution: float = 1.0

    def __post_init__(self) -> None:
        if self.first <= 0:
            raise ValueError(f"first: the weight of the first answer is above 0, not {self.first:g}")
        if not 0 < self.resolution <= 1:
            raise ValueError(f"resolution: a share of the frame's side, above 0 and at most 1, not {self.resolution:g}")

    def weight(self, answer: int) -> float:
        """What a mask's answer counts for, by its number from 0."""
        return self.first if answer == 0 else 1.0

    def share(self, answers: int) -> float:
        """What the weighted sum over so many answers is multiplied with to be a mask's loss."""
        return 1.0 if self.answers == "sum" or not answers else 1.0 / sum(map(self.weight, range(answers)))

    def __call__(self, prediction: Prediction, truth: Tensor) -> Terms:
        """Compare an answer with the truth, (P, H, W) bool; of several masks only the best one's loss counts."""
        h, w = (max(1, round(self.resolution * side)) for side in prediction.frame)
        truth, prediction = _cells(truth, h, w), replace(prediction, frame=(h, w))
        best, actual = self._best(prediction, truth)
        by_focal, by_dice = focal_and_dice(prediction.full(prediction.pick(best)), truth, self.alpha, self.gamma)
        off = prediction.iou.float() - actual
        off = off**2 if self.iou_error == "squared" else off.abs()
        if self.supervise_iou == "all":
            by_iou = (off * prediction.allowed).sum(1) / prediction.allowed.sum(1)
        else:
            by_iou = off.gather(1, best[:, None])[:, 0]
        total = self.focal * by_focal + self.dice * by_dice + self.iou * by_iou
        return Terms(total, by_focal, by_dice, by_iou, actual.gather(1, best[:, None])[:, 0])

    @torch.no_grad()
    def _best(self, prediction: Prediction, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the M masks learns, (P,) int64, and the IoU of each, (P, M); the others need no gradient."""
        logits, truth = prediction.full(prediction.logits), truth[:, None]
        actual = mask_iou(logits > 0, truth)
        if actual.shape[1] == 1:
            return torch.zeros_like(actual[:, 0], dtype=torch.int64), actual
        by_focal, by_dice = focal_and_dice(logits, truth, self.alpha, self.gamma)
        losses = self.focal * by_focal + self.dice * by_dice
        return losses.masked_fill(~prediction.allowed, torch.inf).argmin(1), actual


def _cells(truth: Tensor, h: int, w: int) -> Tensor:
    """Masks on a coarser grid, (P, H, W) bool -> (P, h, w) bool."""
    if truth.shape[1:] == (h, w):
        return truth
    share = F.interpolate(truth[:, None].float(), (h, w), mode="area")[:, 0]
    row, column = torch.arange(h, device=truth.device), torch.arange(w, device=truth.device)
    # Half a cell goes to every other cell: all of them, or none, would move every second edge.
    return (share > 0.5) | ((share == 0.5) & ((row[:, None] + column) % 2 == 0))


def focal_and_dice(logits: Tensor, truth: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> tuple[Tensor, Tensor]:
    """Sigmoid focal loss, mean over pixels, and dice loss with one pixel of smoothing, in one go over the masks.

    Focal is RetinaNet's (arXiv 1708.02002), dice V-Net's (arXiv 1606.04797), both as MaskFormer takes them for masks.

    Args:
        logits: (..., H, W) float.
        truth: Bool, broadcasts to `logits`.
        alpha: Focal loss's weight of pixels inside the mask; those outside have 1 - alpha.
        gamma: Focal loss's exponent.

    Returns:
        Both losses, (...) each.
    """
    both: tuple[Tensor, Tensor] = _FocalAndDice.apply(logits, truth, alpha, gamma)
    return both


class _FocalAndDice(torch.autograd.Function):
    """Both losses of m = sigmoid(z), the probability missed: z is the logit, its sign turned inside the mask.

    With e = softplus(z), the cross-entropy, dm/dz = m (1 - m) and de/dz = m. Left to autograd, this chain of
    elementwise steps would keep a dozen maps at the frame's resolution; here two are kept.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, truth: Tensor, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
        inside = truth.to(logits.dtype)  # products of floats: choosing by truth values is slow on a CPU
        sign = 1 - 2 * inside
        z = logits * sign
        m, e = z.sigmoid(), F.softplus(z)
        lever = m.pow(gamma).mul_((1 - alpha) + (2 * alpha - 1) * inside)
        focal = (lever * e).flatten(-2).mean(-1)
        size = inside.flatten(-2).sum(-1)
        missed_inside, missed = (m * inside).flatten(-2).sum(-1), m.flatten(-2).sum(-1)
        twice = 2 * (size - missed_inside) + 1  # twice the intersection
        sizes = missed - 2 * missed_inside + 2 * size + 1  # of the prediction and the truth
        if ctx.needs_input_grad[0]:
            # d focal/dz = weight m^gamma (m + gamma (1 - m) e)
            by_focal = lever.mul_(e.mul_(1 - m).mul_(gamma).add_(m)).mul_(sign).div_(z.shape[-2] * z.shape[-1])
            slope = m.addcmul_(m, m, value=-1).mul_(sign)
            ctx.save_for_backward(by_focal, slope, inside, twice, sizes)
        return focal, 1 - twice / sizes

    @staticmethod
    def backward(ctx: Any, d_focal: Tensor, d_dice: Tensor) -> tuple[Tensor, None, None, None]:
        by_focal, slope, inside, twice, sizes = ctx.saved_tensors
        outer = d_dice * twice / sizes**2  # d dice/dm outside the mask, a number a mask
        inner = 2 * d_dice / sizes - outer
        by_dice = (inside * (inner - outer)[..., None, None]).add_(outer[..., None, None]).mul_(slope)
        return by_dice.addcmul_(by_focal, d_focal[..., None, None]), None, None, None
