"""Masks of everything in an image, from a grid of points (SAM_SPEC 3.2, 3.3)."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torchvision.ops import batched_nms

from samlit.everything import Found
from samlit.loading import images
from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.masks.tracing import Traced, strings, trace
from samlit.structures import Prediction, PromptSet, Ragged, Scene, Window

__all__ = ["Automatic", "everything", "questions"]

EDGE = 20.0
"""Pixels of the image within which a box is at its window's edge."""


@dataclass(frozen=True)
class Automatic:
    """How masks of everything are found: the parameters of SAM's automatic mask generator.

    Args:
        points_per_side: Of the grid over the whole image.
        points_per_batch: Points that are answered together; what is needed of memory grows with it.
        pred_iou_thresh: Masks are kept above this predicted IoU; all of them if null, or 0 or less.
        stability_score_thresh: Masks are kept from this stability on; all of them if null, or 0 or less.
        stability_score_offset: Logits that the stability's two masks are away from the mask's threshold.
        box_nms_thresh: Of two masks of a window with boxes of a higher IoU the one of lower predicted IoU goes.
        crop_n_layers: How often the image is looked at in parts: 2 x 2 windows, then 4 x 4, and so on.
        crop_nms_thresh: The same between windows, of which smaller ones are preferred.
        crop_overlap_ratio: Of the image's short side, by how much windows overlap.
        crop_n_points_downscale_factor: By how much the grid is coarser from layer to layer.
        min_mask_region_area: Smaller islands are removed, and smaller holes filled.
        drop_small: Whether a mask of which all islands are smaller goes, as the paper says; the largest one stays
            otherwise, as in the released generator.
        max_mask_share: Masks of this share of the image or more go, as the paper says of .95; none if null, as in the
            released generator.
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
    drop_small: bool = False
    max_mask_share: float | None = None

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
        if self.stability_score_offset < 0:
            raise ValueError(f"stability_score_offset: 0 or more, not {self.stability_score_offset:g}")
        if self.max_mask_share is not None and not 0 < self.max_mask_share <= 1:
            raise ValueError(f"max_mask_share: a share, above 0 and up to 1, not {self.max_mask_share:g}")


def everything(
    scene: Scene, options: Automatic, keep_logits: bool = False
) -> Generator[PromptSet, Prediction, list[list[Found]]]:
    """Ask about every point of a grid, for every image of a scene, and in parts of it.

    Masks are of the images' own sizes where the scene has samples, else of the part of the frame that shows each image.

    Args:
        scene: With samples, where windows are asked about.
        options: How.
        keep_logits: Whether what is found keeps its logits.

    Returns:
        For each image what was found, ordered by how NMS left it.

    Raises:
        ValueError: Windows are asked about, and the scene has no samples.
    """
    if options.crop_n_layers and not scene.batch.samples:
        raise ValueError("crop_n_layers: parts of images are not at hand while training; 0 there")
    sizes = _sizes(scene)
    # Whole images are asked about together: a batch of points may be of several of them.
    views = [_View(image, size, (0, 0, size[1], size[0]), 0) for image, size in enumerate(sizes)]
    every = yield from _seen(scene, views, options, keep_logits)
    for image, size in enumerate(sizes):
        found = every[image]
        for layer, crop in _windows(*size, options):
            (part,) = yield from _seen(scene, [_View(image, size, crop, layer)], options, keep_logits)
            found += part
        if options.crop_n_layers:
            found = _apart(found, [1 / _size(one.crop) for one in found], options.crop_nms_thresh)
        if options.min_mask_region_area:
            found = _cleaned(found, options)
        every[image] = found
    return every


def questions(scene: Scene, options: Automatic) -> int:
    """How many prompt sets `everything` yields."""
    sizes = _sizes(scene)
    points = [len(sizes) * _per_side(options, 0) ** 2]
    points += [_per_side(options, layer) ** 2 for size in sizes for layer, _ in _windows(*size, options)]
    return sum(-(-count // options.points_per_batch) for count in points)


class _View(NamedTuple):
    """What is looked at: an image, rows and columns of it, and x0, y0, x1, y1 of what is seen of it in that layer."""

    image: int
    original: tuple[int, int]
    crop: tuple[int, int, int, int]
    layer: int

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns that are seen."""
        x0, y0, x1, y1 = self.crop
        return y1 - y0, x1 - x0


def _sizes(scene: Scene) -> list[tuple[int, int]]:
    sizes = scene.batch.original if scene.batch.samples else scene.batch.sizes
    return [(rows, columns) for rows, columns in sizes.tolist()]


def _per_side(options: Automatic, layer: int) -> int:
    return max(options.points_per_side // int(options.crop_n_points_downscale_factor**layer), 1)


def _windows(rows: int, columns: int, options: Automatic) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """Each window with its layer, without the whole image, which is layer 0."""
    for layer in range(1, options.crop_n_layers + 1):
        side = 2**layer
        overlap = int(options.crop_overlap_ratio * min(rows, columns) * (2 / side))
        wide, high = (math.ceil((overlap * (side - 1) + length) / side) for length in (columns, rows))
        for i in range(side):  # columns outside: the order of the released generator
            for j in range(side):
                x0, y0 = (wide - overlap) * i, (high - overlap) * j
                yield layer, (x0, y0, min(x0 + wide, columns), min(y0 + high, rows))


def _seen(
    scene: Scene, views: Sequence[_View], options: Automatic, keep_logits: bool
) -> Generator[PromptSet, Prediction, list[list[Found]]]:
    """What each view shows: of whole images any number of them, of windows one."""
    side, device = scene.frame[0], scene.batch.image.device
    window = Window(views[0].image, *views[0].crop) if views and views[0].layer else None
    least_iou, least_stable = (
        least if least is not None and least > 0 else None
        for least in (options.pred_iou_thresh, options.stability_score_thresh)
    )
    # Every point of every view: in pixels of the view and of the frame, and whose it is.
    within = [_grid(options, view.layer) * view.size[::-1] for view in views]
    scales = [np.array(images.fit(*view.size, side)[::-1]) / view.size[::-1] for view in views]
    framed = [points * scale for points, scale in zip(within, scales, strict=True)]
    whose = [(v, point) for v, points in enumerate(within) for point in range(len(points))]
    found: list[list[Found]] = [[] for _ in views]
    for at in range(0, len(whose), options.points_per_batch):
        some = whose[at : at + options.points_per_batch]
        points = torch.tensor(np.array([framed[v][point] for v, point in some]), dtype=torch.float32, device=device)
        values = torch.cat([points, torch.ones_like(points[:, :1])], 1)[:, None]
        index = torch.tensor([views[v].image for v, _ in some], device=device)
        # Rows ask for no true mask: none of the batch has that number.
        target = torch.full_like(index, len(scene.masks))
        answer = yield PromptSet(index, {"points": Ragged.of(values)}, True, target, window, min_iou=least_iou)
        iou, logits, masks = answer.iou.flatten(), answer.logits.flatten(0, 1), answer.iou.shape[1]
        good = (iou > least_iou).tolist() if least_iou is not None else [True] * len(iou)
        predicted = iou.tolist()
        for v in dict.fromkeys(v for v, _ in some):
            view = views[v]
            numbers = [n for n, keep in enumerate(good) if keep and some[n // masks][0] == v]
            keep = torch.tensor(numbers, dtype=torch.int64, device=device)
            traces = trace(logits[keep], side, view.size, offset=options.stability_score_offset)
            stable = list[tuple[int, Traced]]()
            for number, traced in zip(numbers, traces, strict=True):
                if placed := _placed(traced, view, options, least_stable):
                    stable.append((number, placed))
            # As strings, a quarter of what runs take, for there may be thousands before the NMS.
            drawn = strings([traced for _, traced in stable])
            for mask, (number, traced) in zip(drawn, stable, strict=True):
                x, y = within[v][some[number // masks][1]]
                point = float(x + view.crop[0]), float(y + view.crop[1])
                kept = logits[number].clone() if keep_logits else None
                told = (predicted[number], traced.stability, point, view.crop, kept)
                found[v].append(Found(mask, traced.area, traced.box, *told))
    return [_apart(some, [one.predicted_iou for one in some], options.box_nms_thresh) for some in found]


def _grid(options: Automatic, layer: int) -> npt.NDArray[np.float64]:
    """The points of a layer's windows, (N, 2), x and y as shares of their sides."""
    per_side = _per_side(options, layer)
    line = (np.arange(per_side) + 0.5) / per_side
    return np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)


def _placed(traced: Traced, view: _View, options: Automatic, least_stable: float | None) -> Traced | None:
    """A mask of a view in its image; None where it is not stable, nearly all of it, or cut by the window's edge."""
    if least_stable is not None and not traced.stability >= least_stable:
        return None
    share = math.inf if options.max_mask_share is None else options.max_mask_share
    if traced.area >= share * view.original[0] * view.original[1]:
        return None
    placed = traced.within((view.crop[1], view.crop[0]), view.original) if view.layer else traced
    return None if _at_edge(placed.box, view.crop, view.original) else placed


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


def _cleaned(found: list[Found], options: Automatic) -> list[Found]:
    """Without small holes and islands; of masks that are alike then, those that were not changed stay."""
    cleaned, untouched = [], []
    for one in found:
        drawn = _without_small(one.rle, one.box, options.min_mask_region_area) if one.area else None
        untouched.append(float(drawn is None))
        if drawn is not None:
            x0, y0, x1, y1 = rle.box(drawn)
            one = replace(one, rle=drawn, area=rle.area(drawn), box=(x0, y0, x1 - 1, y1 - 1))
        # Of a mask without a large island only the largest one is left.
        if options.drop_small and one.area < options.min_mask_region_area:
            untouched.pop()
            continue
        cleaned.append(one)
    return _apart(cleaned, untouched, max(options.box_nms_thresh, options.crop_nms_thresh))


def _without_small(mask: Rle, box: tuple[int, int, int, int], least: int) -> Rle | None:
    """A mask with small holes filled, and then without small islands, of which the largest stays; None if it was so.

    Only the part of the image around its box is looked at. What is outside of it is more than a hole.
    """
    size = mask.size
    # From an even row and column: OpenCV numbers pieces by blocks of 2 x 2, and of equal islands the first one stays.
    top, bottom = max(box[1] - 1, 0) // 2 * 2, min(box[3] + 2, size[0])
    left, right = max(box[0] - 1, 0) // 2 * 2, min(box[2] + 2, size[1])
    # To the image's edge where there is so little left that it may be one.
    if top * (right - left) < least:
        top = 0
    if (size[0] - bottom) * (right - left) < least:
        bottom = size[0]
    if left * (bottom - top) < least:
        left = 0
    if (size[1] - right) * (bottom - top) < least:
        right = size[1]
    shape = bottom - top, right - left
    part = rle.draw(mask, shape, (slice(top, bottom), slice(left, right)))
    labels, areas = _components(~part)
    # A side that is not the image's edge has one piece of the background along all of it, which goes on outside.
    if top or left:
        areas[labels[0, 0]] = least
    if bottom < size[0] or right < size[1]:
        areas[labels[-1, -1]] = least
    small = areas < least
    small[0] = False
    changed = bool(small.any())
    if changed:
        part |= small[labels]
    labels, areas = _components(part)
    large = areas >= least
    large[0] = False
    if large.sum() < len(areas) - 1:
        changed = True
        if not large.any():
            large[1 + areas[1:].argmax()] = True
        part = large[labels]
    if not changed:
        return None
    return rle.from_ends([rle.moved(rle.runs(rle.encode(part)), shape, (top, left), size)], size)[0]


def _components(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Pieces, joined by corners too: the number of each pixel's, 0 where it is in none, and the pixels of each."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return labels.astype(np.int32, copy=False), stats[:, cv2.CC_STAT_AREA].astype(np.int32)
