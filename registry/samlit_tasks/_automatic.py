"""Masks of everything in an image, from a grid of points (SAM_SPEC 3.2, 3.3)."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from samlit import frames, rle
from samlit.rle import Rle
from samlit.structures import Prediction, PromptSet, Ragged, Scene, Window
from samlit.tracing import trace

__all__ = ["Automatic", "Found", "everything"]

EDGE = 20.0
"""Pixels of the image within which a box is at its window's edge."""


@dataclass(frozen=True)
class Automatic:
    """How masks of everything are found: the parameters of SAM's automatic mask generator.

    Args:
        points_per_side: Of the grid over the whole image.
        points_per_batch: Points that are answered together; what is needed of memory grows with it.
        pred_iou_thresh: Masks are kept above this predicted IoU; all if null.
        stability_score_thresh: Masks are kept from this stability on; all if null.
        stability_score_offset: Logits that the stability's two masks are away from the mask's threshold.
        box_nms_thresh: Of two masks of a window with boxes of a higher IoU the one of lower predicted IoU goes.
        crop_n_layers: How often the image is looked at in parts: 2 x 2 windows, then 4 x 4, and so on.
        crop_nms_thresh: The same between windows, of which smaller ones are preferred.
        crop_overlap_ratio: Of the image's short side, by how much windows overlap.
        crop_n_points_downscale_factor: By how much the grid is coarser from layer to layer.
        min_mask_region_area: Smaller islands are removed, and smaller holes filled.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float | None = 0.88
    stability_score_thresh: float | None = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0

    def __post_init__(self) -> None:
        """Refuse what finds nothing.

        Raises:
            ValueError: A number is out of its range; one line.
        """
        for name in ("points_per_side", "points_per_batch", "crop_n_points_downscale_factor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: one at least, not {getattr(self, name)}")
        if self.crop_n_layers < 0:
            raise ValueError(f"crop_n_layers: 0 or more, not {self.crop_n_layers}")


@dataclass(frozen=True)
class Found:
    """One mask that was found.

    Attributes:
        rle: Of the image's own size.
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


def everything(
    scene: Scene, options: Automatic, keep_logits: bool = False
) -> Generator[PromptSet, Prediction, list[list[Found]]]:
    """Ask about every point of a grid, for every image of a scene, and in parts of it.

    Args:
        scene: With samples, where windows are asked about.
        options: How.
        keep_logits: Whether what is found keeps its logits.

    Returns:
        For each image what was found, ordered by how NMS left it.
    """
    every: list[list[Found]] = []
    for image in range(len(scene.batch.image)):
        rows, columns = scene.batch.original[image].tolist()
        found: list[Found] = []
        windows = list(_windows(rows, columns, options))
        for layer, window in windows:
            part = yield from _window(scene, image, (rows, columns), window, layer, options, keep_logits)
            found += part
        if len(windows) > 1:
            found = _apart(found, [1 / _size(one.crop) for one in found], options.crop_nms_thresh)
        if options.min_mask_region_area:
            found = _cleaned(found, options)
        every.append(found)
    return every


def _windows(rows: int, columns: int, options: Automatic) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """Each window with its layer: the whole image first."""
    yield 0, (0, 0, columns, rows)
    for layer in range(1, options.crop_n_layers + 1):
        side = 2**layer
        overlap = int(options.crop_overlap_ratio * min(rows, columns) * (2 / side))
        wide, high = (math.ceil((overlap * (side - 1) + length) / side) for length in (columns, rows))
        for i in range(side):  # columns outside: the order of the released generator
            for j in range(side):
                x0, y0 = (wide - overlap) * i, (high - overlap) * j
                yield layer, (x0, y0, min(x0 + wide, columns), min(y0 + high, rows))


def _window(
    scene: Scene,
    image: int,
    original: tuple[int, int],
    crop: tuple[int, int, int, int],
    layer: int,
    options: Automatic,
    keep_logits: bool,
) -> Generator[PromptSet, Prediction, list[Found]]:
    """What one window shows."""
    x0, y0, x1, y1 = crop
    rows, columns = y1 - y0, x1 - x0
    side = scene.frame[0]
    size = frames.fit(rows, columns, side)
    per_side = max(options.points_per_side // options.crop_n_points_downscale_factor**layer, 1)
    line = (np.arange(per_side) + 0.5) / per_side
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    within = grid * [columns, rows]
    device = scene.batch.image.device
    framed = torch.as_tensor(within * [size[1] / columns, size[0] / rows], dtype=torch.float32, device=device)
    window = Window(image, *crop) if layer else None
    found: list[Found] = []
    for at in range(0, len(grid), options.points_per_batch):
        some = framed[at : at + options.points_per_batch]
        values = torch.cat([some, torch.ones_like(some[:, :1])], 1)[:, None]
        index = torch.full((len(some),), image, device=device)
        answer = yield PromptSet(index, {"points": Ragged.of(values)}, multimask=True, window=window)
        iou = answer.iou.flatten()
        logits = answer.logits.flatten(0, 1)
        masks = answer.iou.shape[1]
        keep = torch.arange(len(iou), device=device)
        if options.pred_iou_thresh is not None:
            keep = keep[iou > options.pred_iou_thresh]
        traces = trace(logits[keep], side, (rows, columns), offset=options.stability_score_offset)
        for number, predicted, traced in zip(keep.tolist(), iou[keep].tolist(), traces, strict=True):
            least = options.stability_score_thresh
            if least is not None and not traced.stability >= least:
                continue
            bx0, by0, bx1, by1 = traced.box
            box = (bx0 + x0, by0 + y0, bx1 + x0, by1 + y0)
            if _at_edge(box, crop, original):
                continue
            px, py = within[at + number // masks]
            found.append(
                Found(
                    traced.rle, traced.area, box, predicted, traced.stability, (float(px + x0), float(py + y0)), crop,
                    logits[number].clone() if keep_logits else None,
                )
            )  # fmt: skip
    found = _apart(found, [one.predicted_iou for one in found], options.box_nms_thresh)
    if window is None:
        return found
    return [replace(one, rle=_placed(one.rle, crop, original)) for one in found]


def _at_edge(box: tuple[int, int, int, int], crop: tuple[int, int, int, int], original: tuple[int, int]) -> bool:
    """Whether a box ends at an edge of its window that is not the image's."""
    whole = (0, 0, original[1], original[0])
    return any(
        abs(side - edge) <= EDGE and abs(side - end) > EDGE for side, edge, end in zip(box, crop, whole, strict=True)
    )


def _apart(found: list[Found], scores: list[float], most: float) -> list[Found]:
    """Those whose boxes are not much like a better one's, the best first."""
    if not found:
        return []
    boxes = torch.tensor([one.box for one in found], dtype=torch.float32)
    keep = batched_nms(boxes, torch.tensor(scores), torch.zeros(len(found)), most)
    return [found[i] for i in keep.tolist()]


def _size(box: tuple[int, int, int, int]) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _placed(mask: Rle, crop: tuple[int, int, int, int], original: tuple[int, int]) -> Rle:
    """A window's mask in its image."""
    whole = np.zeros(original, np.bool_)
    whole[crop[1] : crop[3], crop[0] : crop[2]] = rle.decode(mask)
    return rle.encode(whole)


def _cleaned(found: list[Found], options: Automatic) -> list[Found]:
    """Without small holes and islands; of masks that are alike then, those that were not changed stay."""
    cleaned, untouched = [], []
    for one in found:
        mask = rle.decode(one.rle)
        mask, filled = _without_small(mask, options.min_mask_region_area, holes=True)
        mask, removed = _without_small(mask, options.min_mask_region_area, holes=False)
        untouched.append(float(not (filled or removed)))
        if filled or removed:
            drawn = rle.encode(mask)
            x0, y0, x1, y1 = rle.box(drawn)
            one = replace(one, rle=drawn, area=int(mask.sum()), box=(x0, y0, x1 - 1, y1 - 1))
        cleaned.append(one)
    return _apart(cleaned, untouched, max(options.box_nms_thresh, options.crop_nms_thresh))


def _without_small(mask: np.ndarray, least: int, holes: bool) -> tuple[np.ndarray, bool]:
    """A mask with small holes filled, or small islands removed but for the largest; and whether that changed it."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((mask ^ holes).astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    small = [i + 1 for i, area in enumerate(areas) if area < least]
    if not small:
        return mask, False
    if holes:
        return mask | np.isin(labels, small), True
    kept = [i for i in range(1, count) if i not in small] or [int(areas.argmax()) + 1]
    return np.isin(labels, kept), True
