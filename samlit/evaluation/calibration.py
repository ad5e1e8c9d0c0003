"""Whether the predicted IoU can be believed: predicted against actual, by bins of the predicted."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from samlit.metrics import mask_iou
from samlit.structures import Prediction

__all__ = ["Calibration", "Reliability", "shown_ious"]


class Reliability(NamedTuple):
    """Answers sorted into bins by their predicted IoU, a number a bin.

    Attributes:
        predicted: Mean predicted IoU, 0 where a bin is empty.
        actual: Mean IoU with the truth, 0 where a bin is empty.
        answers: How many.
    """

    predicted: list[float]
    actual: list[float]
    answers: list[float]

    @property
    def total(self) -> float:
        """Answers in all bins."""
        return sum(self.answers)

    @property
    def error(self) -> float:
        """The expected calibration error (arXiv 1706.04599): |predicted - actual| of a bin, averaged over answers."""
        off = sum(n * abs(p - a) for p, a, n in zip(*self, strict=True))
        return off / max(self.total, 1.0)


class Calibration(Metric):
    """Counts answers by their predicted IoU, over all batches and ranks.

    Args:
        bins: Of equal width from 0 to 1.
    """

    full_state_update = False

    def __init__(self, bins: int = 10) -> None:
        super().__init__()
        self.bins = bins
        self.add_state("total", torch.zeros(3, bins, dtype=torch.float64), dist_reduce_fx="sum")

    total: Tensor

    def update(self, predicted: Tensor, actual: Tensor) -> None:
        """Take in answers, (P,) each; a predicted IoU is a raw value, outside 0 to 1 it counts as the nearer end."""
        predicted = predicted.double().nan_to_num(0.0).clamp(0, 1)
        at = (predicted * self.bins).long().clamp(max=self.bins - 1)
        self.total.index_add_(1, at, torch.stack([predicted, actual.double(), torch.ones_like(predicted)]))

    def compute(self) -> Reliability:
        """What was seen by now."""
        predicted, actual, count = self.total
        some = count.clamp_min(1)
        return Reliability((predicted / some).tolist(), (actual / some).tolist(), count.tolist())


def shown_ious(prediction: Prediction, truth: Tensor, at_once: int = 64) -> tuple[Tensor, Tensor]:
    """Predicted and actual IoU of what a person is shown, the most confident mask of each row: (P,) each.

    Args:
        prediction: Of P rows.
        truth: (P, H, W) bool, in the frame.
        at_once: Masks that are compared at the frame's resolution at the same time.
    """
    best = prediction.best()
    logits, pieces = prediction.pick(best), range(0, len(best), at_once)
    actual = [mask_iou(prediction.full(logits[i : i + at_once]) > 0, truth[i : i + at_once]) for i in pieces]
    return prediction.iou.gather(1, best[:, None])[:, 0], torch.cat(actual) if actual else best.float()
