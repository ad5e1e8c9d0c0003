"""Saliency: what stands out of an image, asked for with a grid of points about its centre."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from samlit.contracts import Task
from samlit.evaluation import saliency
from samlit.evaluation.saliency import Saliency
from samlit.masks import rle, tracing
from samlit.structures import Prediction, PromptSet, Ragged, Result, Scene

__all__ = ["Foreground"]


class Foreground(Task):
    """Saliency: the model's answer to points about the centre against all true masks of an image together.

    A grid of points covers the middle of the image, and each is answered with three masks. Of those that are neither
    too small nor too large the one is taken with the highest product of predicted IoU and of the root of the share of
    the grid's points that are in it: a thing, not its parts. The paper has no such task; that choice is ours.

    Args:
        points_per_side: Of the grid.
        span: Share of the image's sides that the grid covers, about its centre.
        least: Share of the image that the mask covers at least,
        most: and at most; if all masks are smaller or larger, the best of them is taken.
        soft: Whether the map that is judged is the sigmoid of the mask's logits, or the mask alone.
    """

    prompts = ("points",)
    originals = True

    def __init__(
        self,
        points_per_side: int = 4,
        span: float = 0.6,
        least: float = 0.01,
        most: float = 0.7,
        soft: bool = True,
    ) -> None:
        if points_per_side < 1:
            raise ValueError(f"points_per_side: one at least, not {points_per_side}")
        if not 0 < span <= 1:
            raise ValueError(f"span: a share of the image's sides above 0 and up to 1, not {span:g}")
        if not 0 <= least < most <= 1:
            raise ValueError(f"least and most: shares of the image, ascending, not {least:g} and {most:g}")
        self.points_per_side, self.span, self.least, self.most = points_per_side, span, least, most
        self.soft = soft

    def rounds(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """Yield each image's grid; the result is "mae" and "s_measure" (B,), "f_curve" (B, 256) and the "maps"."""
        maps: list[np.ndarray] = []
        for image, sample in enumerate(scene.batch.samples):
            points = self._grid(scene, image)
            index = torch.full((len(points),), image, dtype=torch.int64, device=points.device)
            # Rows ask for no true mask: none of the batch has that number.
            target = torch.full_like(index, len(scene.masks))
            given = {"points": Ragged.of(points[:, None])}
            answer = yield PromptSet(index, given, multimask=True, target=target)
            logits = self._chosen(scene, image, points, answer)
            up = tracing.enlarge(logits[None], scene.frame[0], sample.size)[0]
            maps.append((up.sigmoid() if self.soft else (up > 0).float()).cpu().numpy())
        truths = [_together(sample.masks, sample.size) for sample in scene.batch.samples]
        pairs = list(zip(maps, truths, strict=True))
        return {
            "mae": [saliency.absolute_error(map_, truth) for map_, truth in pairs],
            "s_measure": [saliency.s_measure(map_, truth) for map_, truth in pairs],
            "f_curve": [saliency.f_curve(map_, truth) for map_, truth in pairs],
            "maps": maps,
        }

    def _grid(self, scene: Scene, image: int) -> Tensor:
        """(P, 3), points in pixels of the frame, each to be in the mask."""
        rows, columns = scene.batch.sizes[image].tolist()
        side = self.points_per_side
        share = (torch.arange(side, dtype=torch.float32) + 0.5) / side * self.span + (1 - self.span) / 2
        y, x = torch.meshgrid(share * rows, share * columns, indexing="ij")
        points = torch.stack([x.flatten(), y.flatten(), torch.ones(side * side)], 1)
        return points.to(scene.image_index.device)

    def _chosen(self, scene: Scene, image: int, points: Tensor, answer: Prediction) -> Tensor:
        """The low-res logits, (4h, 4w), of the mask that stands out."""
        logits, iou = answer.logits.flatten(0, 1).float(), answer.iou.flatten().float()
        high, wide = logits.shape[-2:]
        rows, columns = scene.batch.sizes[image].tolist()
        # The part of the low-res map that holds picture.
        inside = logits[:, : max(rows * high // scene.frame[0], 1), : max(columns * wide // scene.frame[1], 1)] > 0
        share = inside.float().mean((1, 2))
        x = (points[:, 0] * wide / scene.frame[1]).long().clamp(0, wide - 1)
        y = (points[:, 1] * high / scene.frame[0]).long().clamp(0, high - 1)
        score = iou * (logits[:, y, x] > 0).float().mean(1).sqrt()
        fits = (share >= self.least) & (share <= self.most)
        return logits[int(torch.where(fits, score, score - 10).argmax())]

    def metric(self) -> Saliency:
        """Max-F, mean absolute error and S-measure."""
        return Saliency()

    def show(self, scene: Scene, result: Result) -> Sequence[Image.Image]:
        """Each image beside its map."""
        shown = []
        for sample, map_ in zip(scene.batch.samples, result["maps"], strict=True):
            grey = np.repeat(np.rint(map_ * 255).astype(np.uint8)[..., None], 3, 2)
            shown.append(Image.fromarray(np.concatenate([sample.pixels(), grey], 1)))
        return shown


def _together(masks: Sequence[rle.Rle], size: tuple[int, int]) -> np.ndarray:
    """All masks as one, (H, W) bool."""
    found = np.zeros(size, np.bool_)
    for mask in masks:
        found |= rle.decode(mask)
    return found
