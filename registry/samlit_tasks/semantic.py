"""Semantic segmentation out of masks of everything."""

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

__all__ = ["Semantic"]

UNFILTERED = Automatic(pred_iou_thresh=None, stability_score_thresh=None)


class Semantic(Task):
    """Semantic segmentation: masks of everything with classes; mIoU over classes.

    A pixel has the class of the smallest labelled mask that it is in. Classes come from `labels`, or, without it, from
    the truth, as what half of the mask is in: what is judged then is masks, not who names them. Pixels that nobody
    annotated are left out; what is in no mask counts as missed.

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
        self.labels, self.options = labeller(labels, self.annotations), options

    def rounds(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """Yield the grid's points; the result is "semantic", pixels by class of each image, and the "segments"."""
        known = [self.annotations.segments(sample.key, sample.size) for sample in scene.batch.samples]
        found = yield from everything(scene, self.options)
        made, rows = [], []
        for k, (sample, masks) in enumerate(zip(scene.batch.samples, found, strict=True)):
            strings = [one.rle for one in masks]
            mine = joined(strings, self.labels(scene, k, strings), sample.size, set())
            told = _segments.shares(known[k], mine)
            made.append(mine)
            rows.append([[kind, *pixels] for kind, pixels in told.items()])
        return {"semantic": rows, "segments": made}

    def questions(self, scene: Scene) -> int:
        """All batches of points, of all windows."""
        return questions(scene, self.options)

    def show(self, scene: Scene, result: Result) -> Sequence[Image.Image]:
        """Each image with its classes in colours."""
        return shown(scene.batch.samples, (masks_of(mine) for mine in result["segments"]))

    def metric(self) -> MeanIou:
        """MIoU."""
        return MeanIou()


class MeanIou(Collected):
    """The mean over classes of their IoU over all images."""

    def rows(self, result: Mapping[str, Any]) -> Iterable[Any]:
        """A row an image: class, pixels of both, pixels of either."""
        rows: Iterable[Any] = result.get("semantic", ())
        return rows

    def judge(self, rows: list[Any]) -> dict[str, float]:
        """Over all images."""
        return {"miou": _segments.mean_iou({kind: (both, either) for kind, both, either in row} for row in rows)}
