"""From an image of any size to the frame and back (SAM_SPEC 1.7), and from samples to a packed batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from samlit import rle
from samlit.structures import Batch, Sample

__all__ = ["Framed", "fit", "frame", "pack"]


class Framed(NamedTuple):
    """A sample in the frame.

    Attributes:
        key: The sample's name.
        image: (S, S, 3) uint8, zero where padded.
        size: Rows and columns that hold picture.
        original: Rows and columns of the picture, or of the window of it that is shown, before it was resized.
        masks: (K, S, S) bool.
        phrases: One a mask, or none.
    """

    key: str
    image: np.ndarray
    size: tuple[int, int]
    original: tuple[int, int]
    masks: np.ndarray
    phrases: tuple[str, ...]


def fit(height: int, width: int, side: int) -> tuple[int, int]:
    """Rows and columns of an image resized so that its long side is `side`."""
    scale = side / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def frame(
    sample: Sample,
    side: int,
    keep: Sequence[int] | None = None,
    window: tuple[slice, slice] | None = None,
    long_side: int | None = None,
) -> Framed:
    """Resize a sample so that its long side is `side`, and pad it right and below to a square.

    The image is resized as SAM does it (8-bit, bilinear, antialiased); masks are drawn from their strings straight at
    the size that is wanted.

    Args:
        sample: With masks of any number.
        side: S, pixels.
        keep: Which masks to draw; all if not given.
        window: Rows and columns of the sample to show; all if not given.
        long_side: Of the picture in the frame, at most `side`; that if not given.
    """
    pixels = sample.pixels()
    shown = pixels if window is None else np.ascontiguousarray(pixels[window])
    height, width = shown.shape[:2]
    h, w = fit(height, width, long_side or side)
    image = np.zeros((side, side, 3), np.uint8)
    if (h, w) == (height, width):
        image[:h, :w] = shown
    else:
        image[:h, :w] = np.asarray(Image.fromarray(shown).resize((w, h), Image.Resampling.BILINEAR))
    keep = range(len(sample.masks)) if keep is None else keep
    masks = np.zeros((len(keep), side, side), bool)
    for i, k in enumerate(keep):
        masks[i, :h, :w] = rle.draw(sample.masks[k], (h, w), window)
    phrases = tuple(sample.phrases[k] for k in keep) if sample.phrases else ()
    return Framed(sample.key, image, (h, w), (height, width), masks, phrases)


def pack(samples: Sequence[Framed]) -> Batch:
    """Pack B samples with all of their masks."""
    counts = torch.tensor([len(s.masks) for s in samples])
    phrases = [p for s in samples for p in (s.phrases or ("",) * len(s.masks))]
    image: Tensor = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2).contiguous()
    return Batch(
        image=image,
        sizes=torch.tensor([s.size for s in samples]),
        original=torch.tensor([s.original for s in samples]),
        masks=torch.from_numpy(np.concatenate([s.masks for s in samples])),
        image_index=torch.arange(len(samples)).repeat_interleave(counts),
        keys=[s.key for s in samples],
        phrases=phrases,
    )
