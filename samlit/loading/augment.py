"""Chance that makes many images of few: mirrored, turned, seen from nearer or farther, in another light."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from samlit.faults import blaming
from samlit.loading.frames import Framed, frame
from samlit.masks import rle
from samlit.source import Sample

__all__ = ["Augment"]

_GREY = np.array([0.299, 0.587, 0.114])  # of RGB


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

    def frame(
        self,
        sample: Sample,
        side: int,
        max_masks: int,
        chance: np.random.Generator,
        max_area: float = 1.0,
        pixels: bool = True,
    ) -> Framed:
        """A sample in the frame as chance has it, with at most so many of its masks.

        A mask that has no pixel in the frame, too thin for its grid, or covers more than `max_area` of the picture is
        not among them, and takes no other's place.

        Args:
            sample: With masks of any number.
            side: Of the frame, pixels.
            max_masks: Most masks, drawn at random.
            chance: Where all of it comes from.
            max_area: Share of the picture that a mask may cover.
            pixels: Whether the image is looked at; without `color`.

        Raises:
            Damaged: The image or the string of a mask that is drawn cannot be used; it names the sample.
        """
        window, long_side, masks = None, side, np.arange(len(sample.masks))
        if self.zoom != (1.0, 1.0):
            least, most = self.zoom
            zoom = math.exp(chance.uniform(math.log(least), math.log(most)))
            if zoom > 1:
                window, masks = _window(sample, zoom, chance)
            else:
                long_side = max(round(side * zoom), 1)
        order = chance.permutation(masks).tolist()
        framed = frame(
            sample, side, order, window, long_side, exact=False, most=max_masks, max_area=max_area, pixels=pixels
        )
        if self.color:
            framed = replace(framed, picture=self._lit(framed.picture, chance))
        mirrored = chance.random() < self.flip
        quarters = int(chance.integers(4)) if self.turn else 0
        original = framed.original[::-1] if quarters % 2 else framed.original
        return replace(framed, original=original, mirrored=mirrored, quarters=quarters)

    def beyond_flips(self) -> list[str]:
        """The keys by which images are made that are neither the one on disk nor its mirror image."""
        still = Augment(flip=self.flip)
        return [name for name, value in vars(self).items() if value != getattr(still, name)]

    def _lit(self, picture: npt.NDArray[np.uint8], chance: np.random.Generator) -> npt.NDArray[np.uint8]:
        """In another light: (h, w, 3) to the same, brightness, contrast and saturation as one affine map of RGB."""
        brightness, contrast, saturation = (1 + self.color * chance.uniform(-1, 1) for _ in range(3))
        picture = np.ascontiguousarray(picture)
        grey = brightness * float(np.dot(_GREY, cv2.mean(picture)[:3]))  # what contrast is about: the mean
        change = saturation * np.eye(3) + (1 - saturation) * _GREY
        shift = np.full((3, 1), (1 - contrast) * grey)
        lit: npt.NDArray[np.uint8] = cv2.transform(picture, np.hstack([brightness * contrast * change, shift]))
        return lit


def _window(
    sample: Sample, zoom: float, chance: np.random.Generator
) -> tuple[tuple[slice, slice], npt.NDArray[np.int64]]:
    """A square of the image that shows the middle of one of its masks, and the numbers of all masks whose it shows."""
    size = sample.size
    with blaming(sample.key, sample.shard):
        boxes = rle.boxes(sample.masks)
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
