"""Instance segmentation: any detector's boxes, answered with masks (paper section 7.4, SAM_SPEC 5.4)."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from samlit.contracts import Task
from samlit.drawing.colouring import shown
from samlit.evaluation.detection import LVIS_MOST, Annotations, average_precision, read_boxes
from samlit.masks import tracing
from samlit.masks.rle import Rle
from samlit.metrics import Collected
from samlit.structures import Prediction, PromptSet, Ragged, Result, Scene

__all__ = ["Instances"]

AT_ONCE = 64
SURE = 0.5
"""Score from which a picture shows an answer."""


class Instances(Task):
    """Instance segmentation: AP of the masks that answer a detector's boxes, by COCO's rules or LVIS's.

    Each box is asked about, and, as in the paper, asked about once more together with the logits of the most confident
    mask: that answer counts. Scores and classes stay the detector's. Without a detector's boxes the true ones are
    taken: what a detector without fault would reach.

    Args:
        annotations: The COCO or LVIS JSON of the images that are judged.
        boxes: A detector's COCO results: a JSON list of image_id, category_id, bbox and score.
        refine: Whether boxes are asked about a second time.
        lvis: Whether LVIS's rules count: classes that nobody looked for in an image are left out, 300 masks an image.
    """

    prompts: Sequence[str] = ("boxes",)
    originals = True

    def __init__(self, annotations: str, boxes: str | None = None, refine: bool = True, lvis: bool = False) -> None:
        self.annotations = Annotations(annotations)
        self.boxes = None if boxes is None else read_boxes(boxes, self.annotations)
        self.refine, self.lvis = refine, lvis
        if refine:
            self.prompts = ("boxes", "masks")

    def rounds(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """Yield each image's boxes, and the same with masks; the result is "instances": results by image."""
        found: list[dict[str, Any]] = []
        for image, sample in enumerate(scene.batch.samples):
            number = self.annotations.image(sample.key)
            stated = self.annotations.images[number]
            if (stated["height"], stated["width"]) != sample.size:
                raise ValueError(
                    f"{self.annotations.path}: image {number} is {stated['height']} x {stated['width']} there, and "
                    f"{sample.key} is {sample.size[0]} x {sample.size[1]}: they do not belong together"
                )
            rows = self._asked(number)
            results: list[dict[str, Any]] = []
            for at in range(0, len(rows), AT_ONCE):
                results += yield from self._masks(scene, image, number, rows[at : at + AT_ONCE])
            found.append({"image": number, "results": results})
        return {"instances": found}

    def _asked(self, number: Any) -> list[Mapping[str, Any]]:
        """The boxes of an image."""
        if self.boxes is not None:
            # The best first: those that no rule counts need no mask.
            rows: Sequence[Mapping[str, Any]] = self.boxes.get(number, ())
            return list(rows[: LVIS_MOST if self.lvis else None])
        mine = self.annotations.of_image.get(number, ())
        return [{**annotation, "score": 1.0} for annotation in mine if not annotation.get("iscrowd")]

    def _masks(
        self, scene: Scene, image: int, number: Any, rows: list[Mapping[str, Any]]
    ) -> Generator[PromptSet, Prediction, list[dict[str, Any]]]:
        device, prompt = scene.image_index.device, scene.prompts["boxes"]
        (h, w), (high, wide) = scene.batch.sizes[image].tolist(), scene.batch.samples[image].size
        # Corners are x + width, y + height, as SAM's own tools pass them.
        corners = torch.tensor([[x, y, x + width, y + height] for x, y, width, height in (r["bbox"] for r in rows)])
        values = torch.stack([prompt.rescale(one, (w / wide, h / high), scene.frame) for one in corners.float()])
        index = torch.full((len(rows),), image, device=device)
        # Rows ask for no true mask: none of the batch has that number.
        target = torch.full_like(index, len(scene.masks))
        given = {"boxes": Ragged.of(values[:, None].to(device))}
        answer = yield PromptSet(index, given, target=target)
        logits = answer.pick(answer.best())
        if self.refine:
            given["masks"] = Ragged.of(logits[:, None].float())
            answer = yield PromptSet(index, given, multimask=False, target=target)
            logits = answer.pick(answer.best())
        masks = tracing.masks(scene, logits, index)
        return [
            {
                "image_id": number,
                "category_id": row["category_id"],
                "segmentation": {"size": list(mask.size), "counts": mask.counts},
                "score": row["score"],
            }
            for row, mask in zip(rows, masks, strict=True)
        ]

    def show(self, scene: Scene, result: Result) -> Sequence[Image.Image]:
        """Each image with its masks, of boxes that the detector is half sure of, in colours."""
        sure = ([one["segmentation"] for one in row["results"] if one["score"] >= SURE] for row in result["instances"])
        masks = ([Rle(tuple(told["size"]), told["counts"]) for told in some] for some in sure)
        return shown(scene.batch.samples, masks)

    def metric(self) -> Precision:
        """AP, in all, at two thresholds, by size, and by frequency with LVIS's rules."""
        return Precision(self.annotations, self.lvis)


class Precision(Collected):
    """AP of all results together.

    Args:
        annotations: Of the images.
        lvis: Whether LVIS's rules count.
    """

    def __init__(self, annotations: Annotations, lvis: bool = False) -> None:
        super().__init__()
        self.annotations, self.lvis = annotations, lvis

    def rows(self, result: Mapping[str, Any]) -> Iterable[Any]:
        """A row an image."""
        rows: Iterable[Any] = result.get("instances", ())
        return rows

    def judge(self, rows: list[Any]) -> dict[str, float]:
        """Over all images that were judged."""
        results = [one for row in rows for one in row["results"]]
        return average_precision(self.annotations.only(row["image"] for row in rows), results, self.lvis)
