"""Superpixels out of masks of everything: boundary recall, under-segmentation error, achievable accuracy."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch
from PIL import Image

from samlit.contracts import Task
from samlit.evaluation import partitions
from samlit.metrics import MeanByName
from samlit.structures import Prediction, PromptSet, Result, Scene
from samlit_tasks._automatic import Automatic, everything

__all__ = ["Superpixels"]


UNFILTERED = Automatic(pred_iou_thresh=None, stability_score_thresh=None)
"""A segment need not be a thing."""


class Superpixels(Task):
    """Superpixels: an image cut into a number of segments by masks of everything, and judged.

    Each pixel belongs to the smallest mask that it is in, and parts that do not touch are segments of their own. Too
    many segments are joined, the smallest first, too few are cut in halves, the largest first, so that each image has
    the number that is asked for. The true segments are those that the true masks cut the image into, and what is left;
    of a data set with several annotators take one (`--set annotator=1`).

    Args:
        segments: How many an image is cut into.
        within: Pixels that a segment's boundary may be away from a true one.
        options: How masks of everything are found.
    """

    prompts = ("points",)
    originals = True

    def __init__(self, segments: int = 200, within: int = 2, options: Automatic = UNFILTERED) -> None:
        if segments < 1 or within < 0:
            raise ValueError(f"segments: one at least, within: 0 or more; not {segments} and {within}")
        self.segments, self.within = segments, within
        self.options = options

    def rounds(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """Yield the grid's points; the result is numbers (B,) by name and "labels", the segments of each image."""
        found = yield from everything(scene, self.options)
        result: dict[str, list[float]] = {name: [] for name in self._names}
        labels = []
        for sample, masks in zip(scene.batch.samples, found, strict=True):
            cut = partitions.of_masks([mask.rle for mask in masks], sample.size)
            cut = partitions.to_number(cut, min(self.segments, cut.size))
            truth = partitions.of_masks(sample.masks, sample.size, connected=False)
            values = (
                partitions.boundary_recall(truth, cut, self.within),
                partitions.undersegmentation(truth, cut),
                partitions.accuracy(truth, cut),
            )
            for name, value in zip(self._names, values, strict=True):
                result[name].append(value)
            labels.append(cut)
        numbers = {name: torch.tensor(values, dtype=torch.float64) for name, values in result.items()}
        return {**numbers, "labels": labels}

    def metric(self) -> MeanByName:
        """Means over images."""
        return MeanByName(self._names, counts=["undersegmentation_error"])

    def show(self, scene: Scene, result: Result) -> Sequence[Image.Image]:
        """Each image with the boundaries of its segments."""
        shown = []
        for sample, labels in zip(scene.batch.samples, result["labels"], strict=True):
            picture = np.array(sample.pixels())
            picture[partitions.boundaries(labels)] = (255, 210, 40)
            shown.append(Image.fromarray(picture))
        return shown

    _names = ("boundary_recall", "undersegmentation_error", "achievable_accuracy")
