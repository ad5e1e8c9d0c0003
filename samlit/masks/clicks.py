"""Where a click falls in a region: uniformly, or at the place farthest from its edge."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
import torch
from torch import Tensor

from samlit.masks.counting import pixels

__all__ = ["centre", "deepest", "uniform"]


def uniform(region: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw one pixel from each region, every pixel as likely as any other (paper appendix A, SAM_SPEC 2.1).

    All regions at once, and nothing waits for the device: count the pixels of each row, draw one number, find its row
    and then its column.

    Args:
        region: (P, H, W) bool.
        generator: On the region's device.

    Returns:
        (P, 2) int64, (x, y) of the pixel; and (P,) bool, False where the region is empty.
    """
    p, h, w = region.shape
    below = pixels(region, dim=1).cumsum(1)  # pixels down to and including each row
    total = below[:, -1]
    drawn = torch.rand(p, device=region.device, generator=generator, dtype=torch.float64) * total
    rank = torch.minimum(drawn.to(torch.int32), (total - 1).clamp_min(0))[:, None] + 1  # from 1 to total
    y = torch.searchsorted(below, rank).clamp_max(h - 1)
    above = torch.where(y > 0, below.gather(1, (y - 1).clamp_min(0)), 0)
    row = region.gather(1, y[:, :, None].expand(p, 1, w))[:, 0]
    x = torch.searchsorted(row.cumsum(1, dtype=torch.int32), rank - above).clamp_max(w - 1)
    return torch.cat([x, y], 1), total > 0


def centre(truth: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Place each click farthest inside the larger error, as interactive benchmarks do (SAM_SPEC 6.5).

    Exact Euclidean distances; the image's border counts as an edge; among equals the first pixel in reading order,
    and false positives where both errors are equally deep.

    Args:
        truth: (P, H, W) bool.
        predicted: (P, H, W) bool.

    Returns:
        (P, 2) int64, (x, y) of the pixel; (P,) int64, label 1 in a false negative and 0 in a false positive; and (P,)
        bool, False where nothing is wrong.
    """
    xy = np.zeros((len(truth), 2), np.int64)
    label = np.zeros(len(truth), np.int64)
    found = np.zeros(len(truth), bool)
    for i, (t, p) in enumerate(zip(truth.cpu().numpy(), predicted.cpu().numpy(), strict=True)):
        missed, missed_at = deepest(t & ~p)
        extra, extra_at = deepest(p & ~t)
        label[i] = missed > extra
        xy[i] = missed_at if missed > extra else extra_at
        found[i] = max(missed, extra) > 0
    out = (torch.from_numpy(a).to(truth.device) for a in (xy, label, found))
    return next(out), next(out), next(out)


def deepest(region: np.ndarray, taken: Iterable[tuple[int, int]] = ()) -> tuple[int, tuple[int, int]]:
    """The pixel deepest inside a region, the first of equals in reading order; only the region's box is looked at.

    Args:
        region: (H, W) bool; its border is an edge.
        taken: Pixels (x, y) that are not to be found, as RITM's "not clicked" map; they make nothing else shallower.

    Returns:
        The square of its distance to the region's edge, 0 where there is none, and its (x, y).
    """
    rows = np.flatnonzero(region.any(1))
    if not len(rows):
        return 0, (0, 0)
    y0, y1 = rows[0], rows[-1] + 1
    columns = np.flatnonzero(region[y0:y1].any(0))
    x0, x1 = columns[0], columns[-1] + 1
    # One pixel of nothing all around, for OpenCV does not take the border of an image for an edge.
    padded = np.pad(region[y0:y1, x0:x1], 1).astype(np.uint8)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    # Squares of distances are whole numbers. The roots that OpenCV gives differ in their last bit with the place in
    # memory, and so would the pixel that is deepest among equals.
    squared = np.rint(distance * distance).astype(np.int64)
    for x, y in taken:
        if x0 <= x < x1 and y0 <= y < y1:
            squared[y - y0, x - x0] = 0
    y, x = divmod(int(squared.argmax()), int(x1 - x0))
    depth = int(squared[y, x])
    return (depth, (int(x0) + x, int(y0) + y)) if depth else (0, (0, 0))
