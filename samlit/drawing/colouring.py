"""Many masks over an image, each in a colour of its own."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.source import Sample

__all__ = ["coloured", "shown"]

Picture = npt.NDArray[np.uint8]


def coloured(image: Picture, masks: Sequence[Rle], strength: float = 0.5) -> Picture:
    """The image with its masks, the smaller ones above, outlined.

    Args:
        image: (H, W, 3) uint8.
        masks: Of the image's size.
        strength: Of the colours, 0 to 1.

    Returns:
        (H, W, 3) uint8.
    """
    out = image.astype(np.float32)
    edge = np.zeros(image.shape[:2], np.bool_)
    for number, mask in enumerate(sorted(masks, key=rle.area, reverse=True)):
        x0, y0, x1, y1 = rle.box(mask)
        if x0 == x1:
            continue
        drawn = rle.draw(mask, (y1 - y0, x1 - x0), (slice(y0, y1), slice(x0, x1)))
        # Steps of the golden angle: neighbours in the list are far from each other in colour.
        colour = np.array(colorsys.hls_to_rgb(number * 0.381966 % 1, 0.55, 0.75), np.float32) * 255
        part = out[y0:y1, x0:x1]
        part[drawn] = image[y0:y1, x0:x1][drawn] * (1 - strength) + colour * strength
        inner = cv2.erode(np.pad(drawn, 1).astype(np.uint8), np.ones((3, 3), np.uint8))[1:-1, 1:-1]
        border = edge[y0:y1, x0:x1]
        border[drawn] = inner[drawn] == 0
    out[edge] = out[edge] * 0.3 + 255 * 0.7
    return out.round().astype(np.uint8)


def shown(samples: Sequence[Sample], masks: Iterable[Sequence[Rle]]) -> list[Image.Image]:
    """Pictures of samples, each with its masks, as a task shows them."""
    pairs = zip(samples, masks, strict=True)
    return [Image.fromarray(coloured(sample.pixels(), list(some))) for sample, some in pairs]
