"""True masks at their images' own sizes: how good an answer is there, and where the next click falls."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from samlit.masks import clicks, rle
from samlit.masks.rle import Rle
from samlit.structures import Ragged, Scene

__all__ = ["Click", "Truths"]

Click = tuple[int, int, int]
"""x, y and label, in pixels of the image."""
AT_ONCE = 64


class Truths:
    """The true masks of a scene, as its samples hold them: of any sizes, as strings, drawn only where they are.

    Args:
        scene: Its batch has samples.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.masks = [mask for sample in scene.batch.samples for mask in sample.masks]
        self.image = scene.image_index.tolist()
        self.boxes = [tuple(box) for s in scene.batch.samples for box in rle.boxes(s.masks).tolist()]
        sizes, original = scene.batch.sizes.tolist(), scene.batch.original.tolist()
        self._centres: dict[int, Click | None] = {}
        self.scale = [(w / columns, h / rows) for (h, w), (rows, columns) in zip(sizes, original, strict=True)]

    def __len__(self) -> int:
        return len(self.masks)

    def portions(self) -> Iterator[list[int]]:
        """The numbers of all masks that have a pixel, so many at a time that memory does not grow with them."""
        some = [k for k, (x0, _, x1, _) in enumerate(self.boxes) if x0 < x1]
        for at in range(0, len(some), AT_ONCE):
            yield some[at : at + AT_ONCE]

    def index(self, of: Sequence[int]) -> Tensor:
        """(P,) int64, the image of each of some masks; on the scene's device."""
        device = self.scene.image_index.device
        return torch.tensor([self.image[k] for k in of], dtype=torch.int64, device=device)

    def iou(self, k: int, answer: Rle) -> float:
        """Of mask `k` and an answer of its image's size; 1 where both are empty."""
        truth, found = self._drawn(k, answer)[:2]
        either = int(np.count_nonzero(truth | found))
        return int(np.count_nonzero(truth & found)) / either if either else 1.0

    def click(self, k: int, answer: Rle | None = None, taken: Sequence[Click] = ()) -> Click | None:
        """Deepest inside the larger error (SAM_SPEC 6.5), or inside the mask before there is an answer.

        Exact distances at the image's own size; the image's border is an edge. The label is 1 where more is missing
        than is too much, strictly; among equals the first pixel in reading order.

        Args:
            k: The mask.
            answer: Of its image's size.
            taken: Clicks before this one; no pixel of theirs is clicked again.

        Returns:
            None where nothing is wrong, or nothing that is not taken.
        """
        if answer is None and not taken:
            if k not in self._centres:
                self._centres[k] = self._click(k, None, ())
            return self._centres[k]
        return self._click(k, answer, taken)

    def _click(self, k: int, answer: Rle | None, taken: Sequence[Click]) -> Click | None:
        truth, found, (x0, y0) = self._drawn(k, answer)
        known = [(x - x0, y - y0) for x, y, _ in taken]
        missed, missed_at = clicks.deepest(truth & ~found, known)
        extra, extra_at = clicks.deepest(found & ~truth, known)
        if not max(missed, extra):
            return None
        x, y = missed_at if missed > extra else extra_at
        return x0 + x, y0 + y, int(missed > extra)

    def anywhere(self, k: int, seed: int) -> Click:
        """Any pixel of mask `k`, which has one, each as likely as any other.

        The image's name and the mask's number in it are the chance, so what else is in the batch changes nothing.
        """
        x0, y0, x1, y1 = self.boxes[k]
        image = self.image[k]
        chance = random.Random(f"{seed} {self.scene.batch.samples[image].key} {k - self.image.index(image)}")
        mask = rle.draw(self.masks[k], (y1 - y0, x1 - x0), (slice(y0, y1), slice(x0, x1)))
        y, x = np.nonzero(mask)
        at = chance.randrange(len(x))
        return x0 + int(x[at]), y0 + int(y[at]), 1

    def given(self, name: str, of: Sequence[int], values: Sequence[Sequence[Sequence[float]]]) -> Ragged:
        """Prompts for the model: values in pixels of the images, any number a row, to values in pixels of the frame.

        Args:
            name: Of the prompt type.
            of: The mask that each row asks for.
            values: Of each row; at least one row has one.
        """
        prompt, frame = self.scene.prompts[name], self.scene.frame
        width = next(len(value) for row in values for value in row)
        moved = torch.zeros(len(values), max(map(len, values)), width)
        valid = torch.zeros(moved.shape[:2], dtype=torch.bool)
        for i, (k, row) in enumerate(zip(of, values, strict=True)):
            if row:
                scaled = prompt.rescale(torch.tensor(row, dtype=torch.float32), self.scale[self.image[k]], frame)
                moved[i, : len(row)], valid[i, : len(row)] = scaled, True
        device = self.scene.image_index.device
        return Ragged(moved.to(device), valid.to(device))

    def _drawn(self, k: int, answer: Rle | None) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """The mask and an answer where either has a pixel, and the (x, y) where that begins."""
        boxes = [self.boxes[k]] + ([] if answer is None else [rle.box(answer)])
        boxes = [box for box in boxes if box[0] < box[2]]
        if not boxes:
            return np.zeros((0, 0), bool), np.zeros((0, 0), bool), (0, 0)
        (x0, y0), (x1, y1) = (
            [extreme(box[i] for box in boxes) for i in corner] for extreme, corner in ((min, (0, 1)), (max, (2, 3)))
        )
        size, window = (y1 - y0, x1 - x0), (slice(y0, y1), slice(x0, x1))
        truth = rle.draw(self.masks[k], size, window)
        return truth, np.zeros(size, bool) if answer is None else rle.draw(answer, size, window), (x0, y0)
