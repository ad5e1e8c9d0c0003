"""mIoU from the true box (SAM_SPEC 6.6)."""

from __future__ import annotations

from collections.abc import Generator

import torch

from samlit.contracts import Task
from samlit.evaluation.originals import Truths
from samlit.masks import tracing
from samlit.metrics import MeanByName, mask_iou
from samlit.structures import Prediction, PromptSet, Result, Scene

__all__ = ["Boxes"]


class Boxes(Task):
    """The true mask's tight box: the most confident of the masks that answer it, and the best.

    Boxes and IoU are those of the images' own size in `samlit evaluate`, and of the frame while training.

    Args:
        multimask: Whether a box is answered with three masks or with one; by the model's own rule if not given,
            three where a box is one prompt, as the paper has it. The released predictor's examples ask for one.
    """

    prompts = ("boxes",)

    def __init__(self, multimask: bool | None = None) -> None:
        self.multimask = multimask

    def rounds(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """Yield the boxes of all K masks; the result is IoU (K,) as "box" and "box_best"."""
        if not len(scene.masks):
            return {}
        if scene.batch.samples:
            return (yield from self._own(scene))
        given = {"boxes": scene.prompts["boxes"].simulate(scene.masks, None, scene)}
        answer = yield PromptSet(scene.image_index, given, multimask=self.multimask)
        iou = mask_iou(answer.full(answer.logits) > 0, scene.masks[:, None]) * answer.allowed
        return {"box": iou.gather(1, answer.best()[:, None])[:, 0], "box_best": iou.amax(1)}

    def _own(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """All masks at their images' own size."""
        truths, device = Truths(scene), scene.image_index.device
        found: dict[str, list[float]] = {"box": [], "box_best": []}
        for some in truths.portions():
            corners = [truths.boxes[k] for k in some]
            given = {"boxes": truths.given("boxes", some, [[(x0, y0, x1 - 1, y1 - 1)] for x0, y0, x1, y1 in corners])}
            index = truths.index(some)
            target = torch.tensor(some, device=device)
            answer = yield PromptSet(index, given, multimask=self.multimask, target=target)
            best = answer.best().tolist()
            for i, k in enumerate(some):
                which = answer.allowed[i].nonzero()[:, 0].tolist()
                masks = tracing.masks(scene, answer.logits[i, which], [truths.image[k]] * len(which))
                iou = {m: truths.iou(k, mask) for m, mask in zip(which, masks, strict=True)}
                found["box"].append(iou[best[i]])
                found["box_best"].append(max(iou.values()))
        return {name: torch.tensor(values, device=device) for name, values in found.items()}

    def metric(self) -> MeanByName:
        """Mean IoU by name."""
        return MeanByName(["box", "box_best"])
