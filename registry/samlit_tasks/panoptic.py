"""Panoptic segmentation out of masks of everything (arXiv 1801.00868)."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from samlit.contracts import Task
from samlit.drawing.colouring import shown
from samlit.evaluation import segments as _segments
from samlit.metrics import Collected
from samlit.structures import Prediction, PromptSet, Result, Scene
from samlit_tasks._automatic import Automatic, everything, questions
from samlit_tasks._labelled import joined, labeller, masks_of

__all__ = ["Panoptic"]

UNFILTERED = Automatic(pred_iou_thresh=None, stability_score_thresh=None)


class Panoptic(Task):
    """Panoptic segmentation: masks of everything with classes, each pixel in one of them; PQ, SQ, RQ.

    A pixel belongs to the smallest labelled mask that it is in, and masks of the same stuff are one segment. Classes
    come from `labels`. Without it they are the truth's: a mask is named as the segment that half of it is in, and as a
    thing only where it is that thing with an IoU above .5. So what is judged is masks, not who names them.

    Args:
        annotations: The panoptic JSON of the images that are judged.
        segments: Folder of its PNG files; the one of the JSON's name beside it if not given.
        labels: Who names masks. "text" for the model's text prompt: the class whose name CLIP finds nearest to what a
            mask shows. A file of `samlit head`, HEAD.safetensors, for a trained head. Or the class path of a function,
            called with an image's `Sample` and its masks (strings): the id of a category, or None, for each.
        options: How masks are found.
    """

    prompts: tuple[str, ...] = ("points",)
    originals = True

    def __init__(
        self, annotations: str, segments: str | None = None, labels: str | None = None, options: Automatic = UNFILTERED
    ) -> None:
        self.annotations = _segments.Panoptic(annotations, segments)
        if labels == "text":
            self.prompts = ("points", "text")
        self.labels, self.options = labeller(labels, self.annotations, self.annotations.things), options

    def rounds(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """Yield the grid's points; the result is "panoptic", counts by class of each image, and the "segments"."""
        known = [self.annotations.segments(sample.key, sample.size) for sample in scene.batch.samples]
        found = yield from everything(scene, self.options)
        made, rows = [], []
        for k, (sample, masks) in enumerate(zip(scene.batch.samples, found, strict=True)):
            strings = [one.rle for one in masks]
            named = self.labels(scene, k, strings)
            mine = joined(strings, named, sample.size, self.annotations.things)
            told = _segments.compare(known[k], mine)
            made.append(mine)
            rows.append([[kind, *counts] for kind, counts in told.items()])
        return {"panoptic": rows, "segments": made}

    def questions(self, scene: Scene) -> int:
        """All batches of points, of all windows."""
        return questions(scene, self.options)

    def metric(self) -> Quality:
        """PQ, SQ and RQ, in all, of things and of stuff."""
        return Quality(self.annotations.things)

    def show(self, scene: Scene, result: Result) -> Sequence[Image.Image]:
        """Each image with its segments in colours."""
        return shown(scene.batch.samples, (masks_of(mine) for mine in result["segments"]))


class Quality(Collected):
    """PQ of all images together.

    Args:
        things: Classes that can be counted.
    """

    def __init__(self, things: set[Any]) -> None:
        super().__init__()
        self.things = things

    def rows(self, result: Mapping[str, Any]) -> Iterable[Any]:
        """A row an image: class, sum of IoU, and segments found rightly, wrongly and not at all."""
        rows: Iterable[Any] = result.get("panoptic", ())
        return rows

    def judge(self, rows: list[Any]) -> dict[str, float]:
        """Over all images."""
        return _segments.quality([{kind: counts for kind, *counts in row} for row in rows], self.things)
