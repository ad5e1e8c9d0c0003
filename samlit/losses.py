"""Focal, dice and IoU losses, and which of three masks learns (paper section 3 and appendix A, SAM_SPEC 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from samlit.metrics import mask_iou
from samlit.structures import Prediction

__all__ = ["Losses", "Terms", "dice", "focal"]


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
        iou: Weight of the squared error of the predicted IoU.
        alpha: Focal loss's weight of pixels inside the mask; the paper gives none, MaskFormer and SAM 2 take 0.25.
        gamma: Focal loss's exponent; as above, 2.
        first: Weight of a task's first answer, the ambiguous one, over that of a later one. The paper says of neither
            sum nor mean; here a mask's loss is the mean over its answers.
        supervise_iou: Which of three masks have their predicted IoU corrected: "all", as SAM 2 does, so that ranking
            by it means something, or "best", the one that learns, as SAM did.
        resolution: Where masks are compared: "low" on the low-res logits' grid, with the truth averaged down to it,
            or "full" on the frame, with the logits interpolated up to it. The paper does not say.
    """

    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    alpha: float = 0.25
    gamma: float = 2.0
    first: float = 1.0
    supervise_iou: Literal["all", "best"] = "all"
    resolution: Literal["low", "full"] = "full"

    def __post_init__(self) -> None:
        if self.first <= 0:
            raise ValueError(f"first: the weight of the first answer is above 0, not {self.first:g}")

    def over_answers(self, losses: Tensor) -> Tensor:
        """A mask's loss: (answers, K), in the order in which they were given -> (K,)."""
        weight = torch.ones(len(losses), 1, device=losses.device)
        weight[0] = self.first
        return (weight * losses).sum(0) / weight.sum()

    def __call__(self, prediction: Prediction, truth: Tensor) -> Terms:
        """Compare an answer with the truth, (P, H, W) bool; of several masks only the best one's loss counts."""
        target = truth.float()
        logits = prediction.logits.float()
        if self.resolution == "full":
            logits = prediction.full(logits)
        else:
            target = F.interpolate(target[:, None], logits.shape[-2:], mode="area")[:, 0]
        by_focal = focal(logits, target[:, None], self.alpha, self.gamma)
        by_dice = dice(logits, target[:, None])
        mask_loss = (self.focal * by_focal + self.dice * by_dice).masked_fill(~prediction.allowed, torch.inf)
        best = mask_loss.argmin(1, keepdim=True)
        with torch.no_grad():
            actual = mask_iou(logits > 0, target[:, None] > 0.5)
        off = (prediction.iou.float() - actual) ** 2
        if self.supervise_iou == "all":
            by_iou = (off * prediction.allowed).sum(1) / prediction.allowed.sum(1)
        else:
            by_iou = off.gather(1, best)[:, 0]
        return Terms(
            mask_loss.gather(1, best)[:, 0] + self.iou * by_iou,
            by_focal.gather(1, best)[:, 0],
            by_dice.gather(1, best)[:, 0],
            by_iou,
            actual.gather(1, best)[:, 0],
        )


def focal(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss, mean over pixels: (..., H, W) logits, and targets in [0, 1] that broadcast to them -> (...).

    RetinaNet's (arXiv 1708.02002), as MaskFormer takes it for masks.
    """
    target = target.expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = logits.sigmoid()
    miss = p + target - 2 * p * target  # 1 - probability of the target
    weight = 1 - alpha + (2 * alpha - 1) * target
    return (weight * miss.pow(gamma) * entropy).flatten(-2).mean(-1)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """Dice loss with one pixel of smoothing: (..., H, W) logits, targets that broadcast to them -> (...)."""
    p = logits.sigmoid().flatten(-2)
    t = target.flatten(-2)
    return 1 - (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1)
