"""mIoU after k clicks (paper section 7.1, SAM_SPEC 5.1 and 6.5)."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch

from samlit.contracts import Task
from samlit.metrics import MeanByName, mask_iou
from samlit.structures import Prediction, PromptSet, Ragged, Result, Scene

__all__ = ["Points"]


class Points(Task):
    """Clicks at the centre of the error, one after the other, and the IoU after some of them.

    The first click is answered with three masks. Two persons click on: one takes the mask that the model is most
    confident of, the other ("best") the best of the three. Every later click is answered with one mask, and is given
    together with all earlier clicks and the last answer's logits.

    Args:
        clicks: After how many clicks the IoU is taken, ascending.
    """

    prompts = ("points", "masks")

    def __init__(self, clicks: Sequence[int] = (1, 3, 5, 8)) -> None:
        if not clicks or sorted(set(clicks)) != list(clicks) or clicks[0] < 1:
            raise ValueError(f"clicks must be ascending numbers from 1, not {list(clicks)}")
        self.clicks = tuple(clicks)

    def rounds(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """Yield all K masks' next click; the result is IoU (K,) by name, like "3_clicks" and "3_clicks_best"."""
        k = len(scene.masks)
        if not k:
            return {}
        clicker = scene.prompts["points"]
        points = clicker.simulate(scene.masks, None, scene)
        answer = yield PromptSet(scene.image_index, {"points": points}, multimask=True)
        each = mask_iou(answer.full(answer.logits) > 0, scene.masks[:, None])
        # From here on rows are twice the masks: one person each.
        truth, index = scene.masks.repeat(2, 1, 1), scene.image_index.repeat(2)
        target = torch.arange(k, device=index.device).repeat(2)
        points = Ragged(points.values.repeat(2, 1, 1), points.valid.repeat(2, 1))
        logits = torch.cat([answer.pick(answer.best()), answer.pick(each.argmax(1))])
        result: Result = {}
        for count in range(1, self.clicks[-1] + 1):
            if count > 1:
                points = points.append(clicker.simulate(truth, answer.full(logits) > 0, scene))
                given = {"points": points, "masks": Ragged.of(logits[:, None])}
                answer = yield PromptSet(index, given, multimask=False, target=target)
                logits = answer.pick(answer.best())
            if count in self.clicks:
                iou = mask_iou(answer.full(logits) > 0, truth)
                result[_name(count)], result[f"{_name(count)}_best"] = iou[:k], iou[k:]
        return result

    def metric(self) -> MeanByName:
        """Mean IoU by name."""
        return MeanByName([name + end for name in map(_name, self.clicks) for end in ("", "_best")])


def _name(clicks: int) -> str:
    return f"{clicks}_click{'s' if clicks > 1 else ''}"
