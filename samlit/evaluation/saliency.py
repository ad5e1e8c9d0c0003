"""How well a map of what stands out agrees with a mask: F-measure, mean absolute error, S-measure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["Saliency", "absolute_error", "f_curve", "s_measure"]

Map = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
LEVELS = 256
BETA = 0.3
"""The square of beta: precision counts more than recall (Achanta et al., CVPR 2009)."""


def absolute_error(found: Map, truth: Mask) -> float:
    """The mean of |map - mask|: (H, W) from 0 to 1, (H, W) bool."""
    return float(np.abs(found.astype(np.float64) - truth).mean())


def f_curve(found: Map, truth: Mask) -> npt.NDArray[np.float64]:
    """The F-measure at 256 thresholds from 255/255 down to 0, (256,); 0 where nothing is found rightly.

    The map is rounded to bytes, as the published code reads it from files; a pixel is in at and above the threshold.

    Args:
        found: (H, W), from 0 to 1.
        truth: (H, W) bool.
    """
    level = np.rint(found * (LEVELS - 1)).astype(np.int64)
    inside = np.bincount(level[truth], minlength=LEVELS)[::-1].cumsum()
    chosen = np.bincount(level.ravel(), minlength=LEVELS)[::-1].cumsum()
    precision = inside / np.maximum(chosen, 1)
    recall = inside / max(int(truth.sum()), 1)
    curve: npt.NDArray[np.float64] = (1 + BETA) * precision * recall
    return curve / np.where(inside > 0, BETA * precision + recall, 1)


def s_measure(found: Map, truth: Mask, alpha: float = 0.5) -> float:
    """The structure measure of Fan et al. (ICCV 2017): alpha of its object part, the rest of its region part.

    Args:
        found: (H, W), from 0 to 1.
        truth: (H, W) bool.
        alpha: Weight of the object part.
    """
    values: npt.NDArray[np.float64] = np.asarray(found, np.float64)
    share = float(truth.mean())
    if share in (0.0, 1.0):
        return float(values.mean() if share else 1 - values.mean())
    objects = share * _object(values[truth]) + (1 - share) * _object(1 - values[~truth])
    return max(alpha * objects + (1 - alpha) * _regions(values, truth), 0.0)


def _object(values: npt.NDArray[np.float64]) -> float:
    """How near to 1, and how even, the values are that should be 1."""
    mean = float(values.mean())
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return 2 * mean / (mean * mean + 1 + deviation)


def _regions(found: npt.NDArray[np.float64], truth: Mask) -> float:
    """Structural similarity of the four parts about the mask's centre of mass, each weighed by its area."""
    y, x = (int(np.rint(c.mean())) + 1 for c in np.nonzero(truth))
    total = 0.0
    for rows in (slice(0, y), slice(y, None)):
        for columns in (slice(0, x), slice(x, None)):
            part = truth[rows, columns]
            if part.size:
                total += part.size / truth.size * _similarity(found[rows, columns], part.astype(np.float64))
    return total


def _similarity(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    mean_a, mean_b, less = float(a.mean()), float(b.mean()), max(a.size - 1, 1)
    variances = float(((a - mean_a) ** 2).sum() + ((b - mean_b) ** 2).sum()) / less
    if variances < 1e-20:  # of equal numbers, whose mean was rounded
        variances = 0.0
    above = 4 * mean_a * mean_b * float(((a - mean_a) * (b - mean_b)).sum()) / less
    below = (mean_a * mean_a + mean_b * mean_b) * variances
    if above:
        return above / below
    return 0.0 if below else 1.0


class Saliency(Metric):
    """Max-F of the mean curve, mean absolute error and mean S-measure, over all images and ranks.

    Attributes:
        counts: The error, of which less is better, is no part of a validation's mean.
    """

    full_state_update = False
    counts = ("mae",)

    def __init__(self) -> None:
        super().__init__()
        self.add_state("curve", torch.zeros(LEVELS, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    curve: Tensor
    sums: Tensor

    def update(self, result: Mapping[str, Any]) -> None:
        """Take in "f_curve" (B, 256), "mae" and "s_measure" (B,) of a batch's images; nothing is fine."""
        for curve, mae, structure in zip(
            *(result.get(name, ()) for name in ("f_curve", "mae", "s_measure")), strict=True
        ):
            self.curve += torch.as_tensor(curve, dtype=torch.float64, device=self.curve.device)
            self.sums += self.sums.new_tensor([float(mae), float(structure), 1.0])

    def compute(self) -> dict[str, Tensor]:
        """Numbers by name; the curve is averaged over images before its highest value is taken."""
        count = self.sums[2].clamp_min(1)
        return {
            "max_f": (self.curve.max() / count).float(),
            "mae": (self.sums[0] / count).float(),
            "s_measure": (self.sums[1] / count).float(),
        }
