"""Low-res logits to masks at an image's own size, as run-length strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from samlit import frames, rle
from samlit.rle import Rle
from samlit.structures import Scene, Window

__all__ = ["Traced", "enlarge", "masks", "trace"]


class Traced(NamedTuple):
    """One mask at its image's own size.

    Attributes:
        rle: As COCO writes it; of the window's size where the prompt was about a window.
        area: Pixels.
        box: x0, y0, x1, y1, the last pixel included, as SAM writes it; zeros where the mask is empty.
        stability: IoU of the masks at logits of +offset and -offset; nan where the latter is empty.
    """

    rle: Rle
    area: int
    box: tuple[int, int, int, int]
    stability: float


def enlarge(logits: Tensor, side: int, original: tuple[int, int]) -> Tensor:
    """Low-res logits over the frame, (P, 4h, 4w), at an image's own size, (P, rows, columns), as SAM does it.

    Args:
        logits: Of masks.
        side: Of the frame, pixels.
        original: Rows and columns of the image that the frame shows.
    """
    rows, columns = frames.fit(*original, side)
    up = F.interpolate(logits[:, None].float(), (side, side), mode="bilinear", align_corners=False)
    up = up[:, :, :rows, :columns]
    return F.interpolate(up, original, mode="bilinear", align_corners=False)[:, 0]


def trace(
    logits: Tensor, side: int, original: tuple[int, int], threshold: float = 0.0, offset: float = 1.0
) -> Iterator[Traced]:
    """Masks of low-res logits, one after the other.

    Args:
        logits: (P, 4h, 4w).
        side: Of the frame, pixels.
        original: Rows and columns of the image, or of the window, that the frame shows.
        threshold: A pixel is in the mask where its logit exceeds it.
        offset: For the stability, SAM_SPEC 3.3.
    """
    for one in logits:
        up = enlarge(one[None], side, original)[0]
        drawn = rle.encode((up > threshold).cpu().numpy())
        x0, y0, x1, y1 = rle.box(drawn)
        area = rle.area(drawn)
        inner, outer = int((up > threshold + offset).sum()), int((up > threshold - offset).sum())
        box = (x0, y0, x1 - 1, y1 - 1) if area else (0, 0, 0, 0)
        yield Traced(drawn, area, box, inner / outer if outer else float("nan"))


def masks(scene: Scene, logits: Tensor, image_index: Tensor | Sequence[int], window: Window | None = None) -> list[Rle]:
    """The masks of P low-res logits, each of its own image's size; (P, 4h, 4w) and (P,)."""
    found: list[Rle] = []
    index = torch.as_tensor(image_index).tolist()
    for one, image in zip(logits, index, strict=True):
        rows, columns = scene.batch.original[image].tolist()
        original = (rows, columns) if window is None else (window.y1 - window.y0, window.x1 - window.x0)
        found += [traced.rle for traced in trace(one[None], scene.frame[0], original)]
    return found
