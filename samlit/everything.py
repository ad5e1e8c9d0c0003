"""Masks of all there is in an image, by the task `everything`: for Python, for commands, and for the annotator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samlit.contracts import Task
from samlit.evaluation.answers import Answers
from samlit.loading import frames
from samlit.loop import drive
from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.model import Sam
from samlit.source import Sample
from samlit.structures import Prediction, PromptSet, Scene

__all__ = ["Found", "find"]


@dataclass(frozen=True)
class Found:
    """One mask of everything in an image.

    Attributes:
        rle: The mask as a COCO string, of the image's own size.
        area: Pixels.
        box: x0, y0, x1, y1, the last pixel included.
        predicted_iou: What the model expects.
        stability: IoU of the masks at two thresholds; of the mask before small regions were removed.
        point: x, y in the image, that was asked about.
        crop: x0, y0, x1, y1 of the window that it was found in.
        logits: (4h, 4w), low-res logits over that window's frame, where they were to be kept.
    """

    rle: Rle
    area: int
    box: tuple[int, int, int, int]
    predicted_iou: float
    stability: float
    point: tuple[float, float]
    crop: tuple[int, int, int, int]
    logits: Tensor | None = None

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(H, W) bool, drawn each time: a thousand masks of a large image would not fit."""
        return rle.decode(self.rle)

    def record(self) -> dict[str, object]:
        """The official generator's record, its mask as a COCO string, as in SA-1B."""
        x0, y0, x1, y1 = self.box
        cx0, cy0, cx1, cy1 = self.crop
        return {
            "segmentation": {"size": list(self.rle.size), "counts": self.rle.counts},
            "area": self.area,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "predicted_iou": self.predicted_iou,
            "point_coords": [list(self.point)],
            "stability_score": self.stability,
            "crop_box": [cx0, cy0, cx1 - cx0, cy1 - cy0],
        }


def find(
    net: Sam,
    side: int,
    pixels: npt.NDArray[np.uint8],
    task: Task,
    progress: Callable[[int, int, str], object] = lambda done, total, what: None,
    what: str = "",
) -> list[Found]:
    """Ask a model about everything in an image.

    Args:
        net: The model, on its device.
        side: Of its frame, pixels.
        pixels: (H, W, 3) uint8, RGB.
        task: `everything`, with its options.
        progress: Told after each batch of points how many there were, how many there will be, and `what`.
        what: The image's name, for whoever watches.

    Returns:
        The masks, of the image's own size, in the order in which NMS left them: by predicted IoU within a window.
    """
    sample = Sample("", pixels, ())
    batch = frames.pack([frames.frame(sample, side)]).to(net.pixel_mean.device)
    batch.samples = [sample]
    scene = Scene(batch, net.prompt_types)
    answers, total, done = Answers(net, batch), task.questions(scene), 0

    def answer(prompts: PromptSet) -> Prediction:
        nonlocal done
        given = answers(prompts)
        done += 1
        progress(done, total, what)
        return given

    with torch.no_grad():
        (found,) = drive(task, scene, answer)["found"]
    return list(found)
