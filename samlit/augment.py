"""Chance that makes many images of few: mirrored, turned, seen from nearer or farther, in another light."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from samlit import rle
from samlit.frames import Framed, frame
from samlit.structures import Sample

__all__ = ["Augment"]


@dataclass(frozen=True)
class Augment:
    """How a training image may differ from the one on disk; by default not at all, as in the paper.

    Attributes:
        flip: Chance that it is mirrored.
        turn: Whether it is turned by 0, 90, 180 or 270 degrees; for images without an up, as a microscope's.
        zoom: Least and most that it is enlarged, drawn evenly on a logarithmic scale (large-scale jitter, arXiv
            2012.07177). Above 1, the frame shows a square of it around one of its masks, as much smaller than its long
            side; below 1, it fills that part of the frame. A mask whose middle is not shown is not trained on.
        color: Most that brightness, contrast and saturation change, each on its own; 0.4 is from 60 % to 140 %.

    Raises:
        ValueError: A range or a chance is none.
    """

    flip: float = 0.0
    turn: bool = False
    zoom: tuple[float, float] = (1.0, 1.0)
    color: float = 0.0

    def __post_init__(self) -> None:
        least, most = self.zoom
        if not 0 < least <= most < math.inf:
            raise ValueError(f"zoom: the least and the most, above 0 and in that order, not [{least}, {most}]")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip: a chance from 0 to 1, not {self.flip}")
        if not 0 <= self.color <= 1:
            raise ValueError(f"color: a share from 0 to 1, not {self.color}")

    def frame(self, sample: Sample, side: int, max_masks: int, chance: np.random.Generator) -> Framed:
        """A sample in the frame as chance has it, with at most so many of its masks.

        Args:
            sample: With masks of any number.
            side: Of the frame, pixels.
            max_masks: Most masks, drawn at random.
            chance: Where all of it comes from.
        """
        window, long_side, masks = None, side, np.arange(len(sample.masks))
        if self.zoom != (1.0, 1.0):
            least, most = self.zoom
            zoom = math.exp(chance.uniform(math.log(least), math.log(most)))
            if zoom > 1:
                window, masks = _window(sample, zoom, chance)
            else:
                long_side = max(round(side * zoom), 1)
        keep = chance.permutation(masks)[:max_masks]
        framed = frame(sample, side, sorted(keep.tolist()), window, long_side)
        if self.color:
            framed = self._lit(framed, chance)
        if chance.random() < self.flip:
            framed = _moved(framed, lambda picture: picture[:, ::-1])
        if self.turn:
            quarters = int(chance.integers(4))
            framed = _moved(framed, lambda picture: np.rot90(picture, quarters))
        return framed

    def _lit(self, framed: Framed, chance: np.random.Generator) -> Framed:
        """In another light; the padding stays black."""
        h, w = framed.size
        picture = Image.fromarray(np.ascontiguousarray(framed.image[:h, :w]))
        for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            picture = change(picture).enhance(1 + self.color * chance.uniform(-1, 1))
        image = framed.image.copy()
        image[:h, :w] = np.asarray(picture)
        return framed._replace(image=image)


def _window(
    sample: Sample, zoom: float, chance: np.random.Generator
) -> tuple[tuple[slice, slice], npt.NDArray[np.int64]]:
    """A square of the image that shows the middle of one of its masks, and the numbers of all masks whose it shows."""
    size = sample.size
    boxes = np.array([rle.box(mask) for mask in sample.masks]).reshape(-1, 4)
    # (row, column) of the middles: of whole pixels, so that one is in a window or is not
    middles = (boxes[:, :2] + boxes[:, 2:])[:, ::-1] // 2
    side = max(round(max(size) / zoom), 1)
    target = middles[chance.integers(len(middles))] if len(middles) else chance.integers(size)
    window = []
    for length, at in zip(size, target.tolist(), strict=True):
        first, last = max(at - side + 1, 0), min(at, max(length - side, 0))
        start = int(chance.integers(first, last + 1))
        window.append(slice(start, min(start + side, length)))
    rows, columns = window
    low, high = (rows.start, columns.start), (rows.stop, columns.stop)
    return (rows, columns), np.flatnonzero(((middles >= low) & (middles < high)).all(1))


def _moved(framed: Framed, move: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]) -> Framed:
    """The picture and its masks moved alike, (rows, columns, ...) to the same; the padding stays right and below."""
    h, w = framed.size
    image, masks = np.zeros_like(framed.image), np.zeros_like(framed.masks)
    moved = move(framed.image[:h, :w])
    turned = moved.shape[:2] != (h, w)
    rows, columns = moved.shape[:2]
    image[:rows, :columns] = moved
    for mask, moved_mask in zip(framed.masks, masks, strict=True):
        moved_mask[:rows, :columns] = move(mask[:h, :w])
    original = framed.original[::-1] if turned else framed.original
    return framed._replace(image=image, masks=masks, size=(rows, columns), original=original)
