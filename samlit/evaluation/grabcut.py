"""GrabCut from a box (Rother et al. 2004): what a box gives without any learning, the baseline beside the models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samlit.structures import Batch

__all__ = ["grabcut", "iou_from_boxes"]

ITERATIONS = 5


def grabcut(image: npt.NDArray[np.uint8], box: Sequence[float], around: float | None = None) -> npt.NDArray[np.bool_]:
    """Cut out what is in a box: probable foreground inside, background outside, five iterations.

    The same input gives the same mask. Where GrabCut has no answer (nothing lies outside the box, OpenCV refuses, no
    pixel is left) the answer is the box itself.

    Args:
        image: (H, W, 3) uint8, RGB.
        box: xyxy in pixels, both corners inside the box, as the prompt `boxes` has it; cut at the image's border.
        around: How much picture beside the box is background to learn from, in sides of the box, 10 pixels at least.
            None is all of it, the textbook's way; 1 takes a small part of the time, for masks about as good.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: The image is not (H, W, 3) uint8, or the box is not four finite numbers or not on the image.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"GrabCut takes an image (H, W, 3) uint8, not {image.shape} {image.dtype}")
    rows, columns = image.shape[:2]
    x0, y0, x1, y1 = _pixels(box, rows, columns)
    inside = np.zeros((rows, columns), np.bool_)
    inside[y0:y1, x0:x1] = True

    margin = max(rows, columns) if around is None else max(10, math.ceil(around * max(x1 - x0, y1 - y0)))
    window = (slice(max(y0 - margin, 0), y1 + margin), slice(max(x0 - margin, 0), x1 + margin))
    state = np.where(inside[window], cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    if (state == cv2.GC_PR_FGD).all():  # no colour to call background
        return inside
    cv2.setRNGSeed(0)  # the colour models begin with a random k-means
    try:
        # Colours are compared by distance only: RGB does as well as OpenCV's BGR.
        cv2.grabCut(
            np.ascontiguousarray(image[window]),
            state,
            None,
            np.zeros((1, 65)),
            np.zeros((1, 65)),
            ITERATIONS,
            cv2.GC_INIT_WITH_MASK,
        )
    except cv2.error:
        return inside
    cut = (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)
    if not cut.any():
        return inside
    mask = np.zeros_like(inside)
    mask[window] = cut
    return mask


def iou_from_boxes(batch: Batch, around: float | None = None) -> Tensor:
    """IoU of GrabCut's mask from each true mask's tight box, on the picture as the frame holds it, without padding.

    Args:
        batch: Its images are still uint8; on any device.
        around: As `grabcut`'s.

    Returns:
        (K,) float32 on the CPU; NaN where a mask has no pixel and so no box.
    """
    images, masks, sizes = batch.image.cpu(), batch.masks.cpu(), batch.sizes.tolist()
    out = torch.full((len(masks),), torch.nan)
    for k, i in enumerate(batch.image_index.tolist()):
        rows, columns = sizes[i]
        truth = masks[k, :rows, :columns].numpy()
        y, x = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
        if not len(y):
            continue
        image = images[i, :, :rows, :columns].permute(1, 2, 0).numpy()  # (rows, columns, 3)
        mask = grabcut(image, (x[0], y[0], x[-1], y[-1]), around)
        out[k] = float((mask & truth).sum() / (mask | truth).sum())
    return out


def _pixels(box: Sequence[float], rows: int, columns: int) -> tuple[int, int, int, int]:
    """A box as whole pixels of the image, x1 and y1 exclusive, one pixel at least."""
    if len(box) != 4 or not all(math.isfinite(value) for value in box):
        raise ValueError(f"a box is four numbers x0, y0, x1, y1, not {tuple(box)}")
    x0, y0, x1, y1 = (round(float(value)) for value in box)
    if x1 < x0 or y1 < y0 or x1 < 0 or y1 < 0 or x0 >= columns or y0 >= rows:
        raise ValueError(f"the box {tuple(float(value) for value in box)} is not on the image of {columns} x {rows}")
    return max(x0, 0), max(y0, 0), min(x1, columns - 1) + 1, min(y1, rows - 1) + 1
