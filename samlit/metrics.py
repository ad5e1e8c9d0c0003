"""Intersection over union, and a torchmetrics metric that averages named numbers over everything seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["MeanByName", "mask_iou"]


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of masks: (..., H, W) bool, broadcast against each other -> (...) float; 1 where both are empty."""
    both, either = _count(a & b), _count(a | b)
    return torch.where(either > 0, both / either.clamp_min(1), 1.0)


def _count(mask: Tensor) -> Tensor:
    """Pixels of masks, (..., H, W) bool -> (...) int32; bytes add up faster than truths do."""
    return mask.view(torch.uint8).flatten(-2).sum(-1, dtype=torch.int32)


class MeanByName(Metric):
    """The mean of each of some named numbers, one number a mask, over all batches and ranks.

    Args:
        names: What a result holds, in the order in which it is shown.
    """

    full_state_update = False

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        zeros = torch.zeros(len(self.names), dtype=torch.float64)
        self.add_state("total", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("count", zeros.clone(), dist_reduce_fx="sum")

    total: Tensor
    count: Tensor

    def update(self, result: Mapping[str, Tensor]) -> None:
        """Take in a result: (K,) numbers by name; names that are not asked for, and missing ones, are passed over."""
        for i, name in enumerate(self.names):
            if name in result:
                self.total[i] += result[name].double().sum()
                self.count[i] += result[name].numel()

    def compute(self) -> dict[str, Tensor]:
        """Means by name, 0 where nothing was seen."""
        mean = (self.total / self.count.clamp_min(1)).float()
        return dict(zip(self.names, mean.unbind(), strict=True))
