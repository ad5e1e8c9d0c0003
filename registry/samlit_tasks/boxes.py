"""mIoU from the true box (SAM_SPEC 6.6)."""

from __future__ import annotations

from collections.abc import Generator

from samlit.contracts import Task
from samlit.metrics import MeanByName, mask_iou
from samlit.structures import Prediction, PromptSet, Result, Scene

__all__ = ["Boxes"]


class Boxes(Task):
    """The true mask's tight box: the most confident of the masks that answer it, and the best."""

    prompts = ("boxes",)

    def rounds(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """Yield all K boxes; the result is IoU (K,) as "box" and "box_best"."""
        if not len(scene.masks):
            return {}
        given = {"boxes": scene.prompts["boxes"].simulate(scene.masks, None, scene)}
        answer = yield PromptSet(scene.image_index, given)
        iou = mask_iou(answer.full(answer.logits) > 0, scene.masks[:, None]) * answer.allowed
        return {"box": iou.gather(1, answer.best()[:, None])[:, 0], "box_best": iou.amax(1)}

    def metric(self) -> MeanByName:
        """Mean IoU by name."""
        return MeanByName(["box", "box_best"])
