"""Cut-outs of images around masks, as CLIP is shown what a mask means (SAM_SPEC 1.10)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from samlit.structures import Batch

__all__ = ["cut"]


def cut(
    batch: Batch,
    masks: Tensor,
    image_index: Tensor,
    size: int,
    zoom: Tensor,
    masked: Tensor,
) -> tuple[Tensor, Tensor]:
    """Squares around masks, each of its box's longer side enlarged, what is beyond the image black.

    Args:
        batch: The images, in the frame.
        masks: (P, H, W) bool; one of no pixel is cut out of the image's corner.
        image_index: (P,) int64, the image of each.
        size: S, pixels.
        zoom: (P,) float, how many times the longer side of the mask's box a square's side is.
        masked: (P,) bool, where all that is not in the mask becomes black.

    Returns:
        Pictures (P, 3, S, S) float from 0 to 1, and the masks in them, (P, S, S) bool.
    """
    pictures = torch.zeros(len(masks), 3, size, size, device=masks.device)
    inside = torch.zeros(len(masks), size, size, dtype=torch.bool, device=masks.device)
    boxes = _boxes(masks).tolist()
    rows = zip(boxes, image_index.tolist(), zoom.tolist(), masked.tolist(), strict=True)
    for k, ((x0, y0, x1, y1), image, factor, only) in enumerate(rows):
        side = max(2, round(factor * max(x1 - x0, y1 - y0)))
        left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
        shown = _window(batch.image[image], left, top, side).float() / 255
        mask = _window(masks[k][None], left, top, side).float()
        if only:
            shown = shown * mask
        # Enlarged or reduced alike, without the patterns that a coarse picture would get from a fine one.
        both = torch.cat([shown, mask])[None]
        scaled = F.interpolate(both, (size, size), mode="bilinear", align_corners=False, antialias=side > size)[0]
        pictures[k], inside[k] = scaled[:3].clamp(0, 1), scaled[3] >= 0.5
    return pictures, inside


def _window(image: Tensor, left: int, top: int, side: int) -> Tensor:
    """(C, side, side) of (C, H, W), zero beyond its edges."""
    height, width = image.shape[-2:]
    seen = image[:, max(0, top) : max(0, min(height, top + side)), max(0, left) : max(0, min(width, left + side))]
    before = max(0, -left), max(0, -top)
    after = side - before[0] - seen.shape[2], side - before[1] - seen.shape[1]
    return F.pad(seen, (before[0], after[0], before[1], after[1]))


def _boxes(masks: Tensor) -> Tensor:
    """(P, 4) int64, xyxy with the second corner outside; the first pixel for a mask of none."""
    columns, rows = masks.any(1), masks.any(2)
    ends = []
    for line in (columns, rows):
        first = line.to(torch.uint8).argmax(1)
        last = line.shape[1] - line.flip(1).to(torch.uint8).argmax(1)
        some = line.any(1)
        ends.append((first.where(some, 0), last.where(some, 1)))
    (x0, x1), (y0, y1) = ends
    return torch.stack([x0, y0, x1, y1], 1)
