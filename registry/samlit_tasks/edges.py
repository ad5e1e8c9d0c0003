"""Edges out of masks of everything, judged by BSDS500's benchmark (paper section 7.2, SAM_SPEC 5.2, 6.1)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image
from torchmetrics import Metric

from samlit.contracts import Task
from samlit.drawing.lines import draw_precision
from samlit.evaluation import boundaries
from samlit.everything import Found
from samlit.masks import rle, tracing
from samlit.metrics import Collected
from samlit.structures import Prediction, PromptSet, Result, Scene
from samlit_tasks._automatic import Automatic, everything

__all__ = ["Edges"]

PAPERS = Automatic(points_per_side=16, pred_iou_thresh=None, stability_score_thresh=None)


class Edges(Task):
    """Edges: where masks of everything end, against the boundaries that people drew (BSDS500's benchmark).

    As in the paper: a grid of 16 x 16 points, no filters, NMS at .7; of each mask the Sobel magnitude of its
    probability where that meets the mask's outer boundary; the greatest of all masks, stretched to [0, 1], thinned by
    edge NMS. The paper leaves open what the keys below say, and others have found that NMS decides. Needs a source with
    boundaries, such as `bsds`.

    Args:
        thresholds: How many an edge map is cut at, evenly spaced.
        boundary: Which pixels are a mask's boundary: the "outer" ones next to it, or "both" sides of it.
        radius: Of NMS, pixels across the edge on both sides.
        margin: What an edge is multiplied with before it is compared there.
        smooth: Radius of the triangle filter, before an edge's direction is taken.
        border: Pixels at the image's border over which edges fade.
        jobs: Processes that match pixels, of all images of a batch at once.
        options: How masks are found.
    """

    prompts = ("points",)
    originals = True

    def __init__(
        self,
        thresholds: int = 99,
        boundary: Literal["outer", "both"] = "outer",
        radius: int = 1,
        margin: float = 1.01,
        smooth: int = 4,
        border: int = 5,
        jobs: int = 1,
        options: Automatic = PAPERS,
    ) -> None:
        if boundary not in ("outer", "both"):
            raise ValueError(f"boundary: outer or both, not {boundary!r}")
        for name, value in (("thresholds", thresholds), ("radius", radius), ("jobs", jobs)):
            if value < 1:
                raise ValueError(f"{name}: one at least, not {value}")
        for name, value in (("smooth", smooth), ("border", border)):
            if value < 0:
                raise ValueError(f"{name}: pixels, 0 for none, not {value}")
        if not margin > 0:
            raise ValueError(f"margin: what an edge is multiplied with, more than 0, not {margin}")
        self.boundary, self.radius, self.margin, self.smooth, self.border = boundary, radius, margin, smooth, border
        self.thresholds = np.linspace(1 / (thresholds + 1), 1 - 1 / (thresholds + 1), thresholds)
        self.jobs, self.options = jobs, options
        self._pool: ProcessPoolExecutor | None = None

    def rounds(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """Yield the grid's points; the result is "counts", a row an image, and the "edges" (H, W) of each."""
        for sample in scene.batch.samples:
            if not sample.boundaries:
                raise ValueError(f"{sample.key} has no boundaries to judge edges by; the source `bsds` has them")
        found = yield from everything(scene, self.options, keep_logits=True)
        maps, counted = [], []
        for sample, masks in zip(scene.batch.samples, found, strict=True):
            edges = self._edges(scene, sample.size, masks)
            maps.append(edges)
            counted.append(self._counts(edges, [rle.decode(mask) for mask in sample.boundaries]))
        # Only now is waited for, so that images are matched beside each other, and beside the next one's edges.
        return {"counts": [[column.tolist() for column in counts()] for counts in counted], "edges": maps}

    def _edges(self, scene: Scene, size: tuple[int, int], masks: Sequence[Found]) -> np.ndarray:
        """An image's edge map, (H, W) from 0 to 1."""
        most = np.zeros(size, np.float32)
        for one in masks:
            assert one.logits is not None
            sure = tracing.enlarge(one.logits[None], scene.frame[0], size)[0].sigmoid().cpu().numpy()
            slope = np.hypot(cv2.Sobel(sure, cv2.CV_32F, 1, 0), cv2.Sobel(sure, cv2.CV_32F, 0, 1))
            mask = (sure > 0.5).astype(np.uint8)
            around = cv2.dilate(mask, np.ones((3, 3), np.uint8)) > 0
            inner = mask > 0 if self.boundary == "outer" else cv2.erode(mask, np.ones((3, 3), np.uint8)) > 0
            np.maximum(most, slope, out=most, where=around & ~inner)
        low, high = float(most.min()), float(most.max())
        stretched = (most - low) / (high - low) if high > low else most
        return np.asarray(boundaries.nms(stretched, self.radius, self.margin, self.smooth, self.border))

    def _counts(self, edges: np.ndarray, drawn: Sequence[np.ndarray]) -> Callable[[], boundaries.Counts]:
        """An image's counts at all thresholds, once they are asked for; with several processes they begin at once."""
        if self.jobs == 1:
            return partial(boundaries.counts, edges, drawn, self.thresholds)
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.jobs, mp_context=get_context("spawn"))
        # Low thresholds leave more to match: each process takes some of all.
        parts = [self.thresholds[i :: 4 * self.jobs] for i in range(4 * self.jobs)]
        work = [self._pool.submit(boundaries.counts, edges, drawn, part) for part in parts]

        def result() -> boundaries.Counts:
            table = np.zeros((4, len(self.thresholds)), np.int64)
            for i, one in enumerate(work):
                table[:, i :: 4 * self.jobs] = one.result()
            return boundaries.Counts(*table)

        return result

    def metric(self) -> Boundary:
        """ODS, OIS, AP and R50."""
        return Boundary()

    def show(self, scene: Scene, result: Result) -> Sequence[Image.Image]:
        """Each image beside its edges, and the boundaries of all annotators."""
        shown = []
        for sample, edges in zip(scene.batch.samples, result["edges"], strict=True):
            drawn = np.mean([rle.decode(mask) for mask in sample.boundaries], 0)
            grey = [np.repeat(np.rint(255 - 255 * map_)[..., None], 3, 2).astype(np.uint8) for map_ in (edges, drawn)]
            shown.append(Image.fromarray(np.concatenate([sample.pixels(), *grey], 1)))
        return shown

    def plot(self, numbers: Mapping[str, float], metric: Metric, folder: Path) -> None:
        """Precision by recall, over lines of equal F."""
        assert isinstance(metric, Boundary)
        recall, precision = metric.curve()
        told = f"edges: ODS {numbers['ods']:.3f}, AP {numbers['ap']:.3f}"
        draw_precision(folder / "edges.png", recall.tolist(), precision.tolist(), told)


class Boundary(Collected):
    """BSDS500's numbers, of all images together."""

    def rows(self, result: Mapping[str, Any]) -> Iterable[Any]:
        """A row an image: four lists of pixels, by threshold."""
        rows: Iterable[Any] = result.get("counts", ())
        return rows

    def judge(self, rows: list[Any]) -> dict[str, float]:
        """Over all images."""
        found = boundaries.summary([_read(row) for row in rows])
        return {name: getattr(found, name) for name in ("ods", "ois", "ap", "r50", "ods_recall", "ods_precision")}

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Recall and precision of all images together, by threshold."""
        images = [_read(row) for row in self.all_rows()]
        total = (np.sum([getattr(one, name) for one in images], 0) for name in boundaries.Counts._fields)
        return boundaries.curve(boundaries.Counts(*total))


def _read(row: Sequence[Sequence[int]]) -> boundaries.Counts:
    return boundaries.Counts(*(np.array(column, np.int64) for column in row))
