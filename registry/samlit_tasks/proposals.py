"""Object proposals: how many of the things in an image are among 1,000 masks (paper section 7.3, SAM_SPEC 5.3)."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from samlit.contracts import Task
from samlit.drawing.colouring import shown
from samlit.evaluation.detection import Annotations, average_recall, groups
from samlit.everything import Found
from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.metrics import Collected
from samlit.structures import Prediction, PromptSet, Result, Scene
from samlit_tasks._automatic import Automatic, everything, questions

__all__ = ["Proposals"]

PAPERS = Automatic(points_per_side=64, pred_iou_thresh=None, stability_score_thresh=None, box_nms_thresh=0.9)


class Proposals(Task):
    """Object proposals: recall of true masks by the best masks of everything, whatever their class.

    As in the paper: a grid of 64 x 64 points, no filters, NMS at .9, and of more than 1,000 masks those with the
    highest mean of predicted IoU and stability. Numbers are by size of the annotations, and by frequency where
    categories have one, as LVIS's. Images without a proposal count.

    Args:
        annotations: The COCO or LVIS JSON of the images that are judged; by the source's own masks if not given.
        matching: Which masks count as found: "coco", in which proposals by rank take the best mask that is free, or
            "detectron2", in which the pairs of the highest IoU are taken. The paper does not say which it was.
        most: Proposals of an image.
        options: How masks are found.
    """

    prompts = ("points",)
    originals = True

    def __init__(
        self,
        annotations: str | None = None,
        matching: Literal["coco", "detectron2"] = "coco",
        most: int = 1000,
        options: Automatic = PAPERS,
    ) -> None:
        if matching not in ("coco", "detectron2"):
            raise ValueError(f"matching: coco or detectron2, not {matching!r}")
        if most < 1:
            raise ValueError(f"most: one at least, not {most}")
        self.annotations = None if annotations is None else Annotations(annotations)
        self.matching, self.most, self.options = matching, most, options

    def rounds(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """Yield the grid's points; the result is "proposals", pairs and groups by image, and the "hits"."""
        known = [self._truths(sample.key, sample.masks) for sample in scene.batch.samples]
        found = yield from everything(scene, self.options)
        rows, hits = [], []
        for truths, masks in zip(known, found, strict=True):
            ranked = sorted(masks, key=_rank)[: self.most]
            iou = _iou([mask for _, mask in truths], [one.rle for one in ranked])
            # Pairs that count for something: all of them would be gigabytes for LVIS.
            pairs = [(int(k), int(n), float(iou[k, n])) for k, n in np.argwhere(iou >= 0.5)]
            best = {k: n for k, n, _ in sorted(pairs, key=lambda pair: pair[2])}
            hits.append([ranked[n].rle for n in best.values()])
            rows.append({"pairs": pairs, "groups": [names for names, _ in truths], "masks": len(ranked)})
        return {"proposals": rows, "hits": hits}

    def _truths(self, key: str, masks: Sequence[Rle]) -> list[tuple[list[str], Rle]]:
        """True masks of an image with the groups that they are in."""
        if self.annotations is None:
            return [(groups({"area": rle.area(mask)}, {}), mask) for mask in masks]
        known = self.annotations
        return [(groups(one, known.categories), mask) for one, mask in known.masks(known.image(key))]

    def show(self, scene: Scene, result: Result) -> Sequence[Image.Image]:
        """Each image with the proposal nearest to each true mask, of those with an IoU of .5 or more, in colours."""
        return shown(scene.batch.samples, result["hits"])

    def questions(self, scene: Scene) -> int:
        """All batches of points, of all windows."""
        return questions(scene, self.options)

    def metric(self) -> Recall:
        """AR, in all, by size and by frequency, and masks an image."""
        return Recall(self.matching == "coco")


class Recall(Collected):
    """AR of all images together.

    Args:
        greedy: Whether proposals by rank take masks.
    """

    counts = ("masks",)

    def __init__(self, greedy: bool = True) -> None:
        super().__init__()
        self.greedy = greedy

    def rows(self, result: Mapping[str, Any]) -> Iterable[Any]:
        """A row an image."""
        rows: Iterable[Any] = result.get("proposals", ())
        return rows

    def judge(self, rows: list[Any]) -> dict[str, float]:
        """Over all true masks."""
        iou = [np.zeros((len(row["groups"]), row["masks"])) for row in rows]
        for values, row in zip(iou, rows, strict=True):
            for k, n, value in row["pairs"]:
                values[k, n] = value
        found = average_recall(iou, [row["groups"] for row in rows], self.greedy)
        numbers = {"ar" if name == "all" else f"ar_{name}": value for name, value in found.items() if value == value}
        return numbers | {"masks": float(np.mean([row["masks"] for row in rows])) if rows else 0.0}


def _rank(one: Found) -> float:
    """Lower is better; a mask without a stability is the last."""
    return -(one.predicted_iou + (one.stability if one.stability == one.stability else -1.0)) / 2


def _iou(truths: Sequence[Rle], found: Sequence[Rle]) -> np.ndarray:
    """(K, N)."""
    if not truths or not found:
        return np.zeros((len(truths), len(found)))
    shared = rle.intersections(truths, found)
    areas, others = (np.array([rle.area(mask) for mask in masks]) for masks in (truths, found))
    return np.asarray(shared / np.maximum(areas[:, None] + others - shared, 1))
