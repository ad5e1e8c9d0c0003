"""Focal, dice and IoU losses, and which of three masks learns (paper section 3 and appendix A, SAM_SPEC 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from samlit.structures import Prediction
from samlit.training.focal_dice import compared

__all__ = ["Losses", "Terms"]


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
        truth = _cells(truth, h, w)
        if prediction.logits.shape[1] == 1:
            best = torch.zeros(len(truth), dtype=torch.int64, device=truth.device)
            found = compared(prediction.logits, truth, self.alpha, self.gamma)
            actual = found.iou
            if (h, w) == tuple(prediction.frame):
                prediction.drawn = found.hard[:, 0]
        else:
            with torch.no_grad():  # which of the masks learns; the others need no gradient
                each = compared(prediction.logits, truth, self.alpha, self.gamma)
                losses = self.focal * each.focal + self.dice * each.dice
                best, actual = losses.masked_fill(~prediction.allowed, torch.inf).argmin(1), each.iou
            found = compared(prediction.pick(best)[:, None], truth, self.alpha, self.gamma)
        by_focal, by_dice = found.focal[:, 0], found.dice[:, 0]
        off = prediction.iou.float() - actual
        off = off**2 if self.iou_error == "squared" else off.abs()
        if self.supervise_iou == "all":
            by_iou = (off * prediction.allowed).sum(1) / prediction.allowed.sum(1)
        else:
            by_iou = off.gather(1, best[:, None])[:, 0]
        total = self.focal * by_focal + self.dice * by_dice + self.iou * by_iou
        return Terms(total, by_focal, by_dice, by_iou, actual.gather(1, best[:, None])[:, 0])


def _cells(truth: Tensor, h: int, w: int) -> Tensor:
    """Masks on a coarser grid, (P, H, W) bool -> (P, h, w) bool."""
    if truth.shape[1:] == (h, w):
        return truth
    share = F.interpolate(truth[:, None].float(), (h, w), mode="area")[:, 0]
    row, column = torch.arange(h, device=truth.device), torch.arange(w, device=truth.device)
    # Half a cell goes to every other cell: all of them, or none, would move every second edge.
    return (share > 0.5) | ((share == 0.5) & ((row[:, None] + column) % 2 == 0))
