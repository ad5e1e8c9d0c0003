"""Everything-mode: masks of all there is, from a grid of points (paper section 5.1, SAM_SPEC 3.2, 3.3)."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch
from PIL import Image

from samlit.contracts import Task
from samlit.drawing.colouring import shown
from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.metrics import MeanByName
from samlit.structures import Prediction, PromptSet, Result, Scene
from samlit_tasks._automatic import Automatic, everything, questions

__all__ = ["Everything"]

RELEASED = Automatic()
THRESHOLDS = np.arange(10) * 0.05 + 0.5


class Everything(Task):
    """Masks of everything, as by SAM's automatic mask generator, and how many true ones are among them.

    A true mask is found at a threshold where one of the masks has at least so much IoU with it. Nothing speaks against
    masks of what nobody annotated, so that only recall is judged. Usable while training too: masks are judged in the
    frame there, and without windows.

    Args:
        options: How masks are found; the defaults are the released generator's.
    """

    prompts = ("points",)

    def __init__(self, options: Automatic = RELEASED) -> None:
        self.options = options

    def rounds(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """Yield the grid's points; the result is what was "found" and how many, and recall of each true mask (K,)."""
        found = yield from everything(scene, self.options)
        best: list[float] = []
        for image, masks in enumerate(found):
            truths = _truths(scene, image)
            best += _best_iou(truths, [one.rle for one in masks])
        iou = torch.tensor(best, dtype=torch.float64)
        hits = iou[:, None] >= torch.from_numpy(THRESHOLDS) - 1e-9
        return {
            "average_recall": hits.double().mean(1),
            "recall_50": hits[:, 0].double(),
            "recall_75": hits[:, 5].double(),
            "masks": torch.tensor([float(len(masks)) for masks in found]),
            "found": found,
        }

    def questions(self, scene: Scene) -> int:
        """All batches of points, of all windows."""
        return questions(scene, self.options)

    def metric(self) -> MeanByName:
        """Mean recall over true masks, and masks an image."""
        return MeanByName(["average_recall", "recall_50", "recall_75", "masks"], counts=["masks"])

    def show(self, scene: Scene, result: Result) -> Sequence[Image.Image]:
        """Each image with its masks in colours."""
        return shown(scene.batch.samples, ([one.rle for one in masks] for masks in result["found"]))


def _truths(scene: Scene, image: int) -> list[Rle]:
    """An image's true masks: of its own size, or of the part of the frame that shows it."""
    if scene.batch.samples:
        return list(scene.batch.samples[image].masks)
    rows, columns = scene.batch.sizes[image].tolist()
    mine = scene.masks[scene.image_index == image][:, :rows, :columns]
    return rle.encode_many(mine.cpu().numpy())


def _best_iou(truths: Sequence[Rle], found: Sequence[Rle]) -> list[float]:
    """Of each true mask that has a pixel the IoU with the mask that is most like it."""
    truths = [mask for mask in truths if rle.area(mask)]
    if not truths or not found:
        return [0.0] * len(truths)
    shared = rle.intersections(truths, found)
    areas, others = (np.array([rle.area(mask) for mask in masks]) for masks in (truths, found))
    iou = shared / (areas[:, None] + others - shared)
    return [float(value) for value in iou.max(1)]
