"""mIoU after k clicks (paper section 7.1, SAM_SPEC 5.1 and 6.5)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Literal

import torch

from samlit.contracts import Task
from samlit.evaluation.originals import Truths
from samlit.masks import clicks, tracing
from samlit.metrics import MeanByName, mask_iou
from samlit.structures import Prediction, PromptSet, Ragged, Result, Scene

__all__ = ["Points"]


class Points(Task):
    """Clicks at the centre of the error, one after the other, and the IoU after some of them.

    The first click is answered with three masks. Two persons click on: one takes the mask that the model is most
    confident of, the other ("best", the paper's oracle) the best of the three. Every later click is answered with one
    mask, and is given together with all earlier clicks and the last answer's logits. Clicks and IoU are those of the
    images' own size in `samlit evaluate`, and of the frame while training.

    Args:
        clicks: After how many clicks the IoU is taken, ascending.
        first: Where the first click falls: at the place of the mask that is farthest from its edge, or anywhere in it.
        feed: Whether the last answer's logits are given with the clicks. The paper does not say; SAM 2 does it.
        seed: Of random first clicks.
    """

    prompts = ("points", "masks")

    def __init__(
        self,
        clicks: Sequence[int] = (1, 2, 3, 5, 9),
        first: Literal["centre", "random"] = "centre",
        feed: bool = True,
        seed: int = 0,
    ) -> None:
        if not clicks or sorted(set(clicks)) != list(clicks) or clicks[0] < 1:
            raise ValueError(f"clicks must be ascending numbers from 1, not {list(clicks)}")
        if first not in ("centre", "random"):
            raise ValueError(f"first: centre or random, not {first!r}")
        self.clicks, self.first, self.feed, self.seed = tuple(clicks), first, feed, seed

    def rounds(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """Yield the masks' next clicks; the result is IoU (K,) by name, like "3_clicks" and "3_clicks_best"."""
        if not len(scene.masks):
            return {}
        if not scene.batch.samples:
            return (yield from self._framed(scene))
        truths, found = Truths(scene), {name: list[float]() for name in self._names()}
        for some in truths.portions():
            ious = yield from self._own(scene, truths, some)
            for name, values in ious.items():
                found[name] += values
        return {name: torch.tensor(values, device=scene.masks.device) for name, values in found.items()}

    def _own(
        self, scene: Scene, truths: Truths, of: list[int]
    ) -> Generator[PromptSet, Prediction, dict[str, list[float]]]:
        """Some masks at their images' own size: their IoU by name."""
        centre = self.first == "centre"
        first = [truths.click(k) if centre else truths.anywhere(k, self.seed) for k in of]
        index, target = truths.index(of), torch.tensor(of, device=scene.image_index.device)
        given = {"points": truths.given("points", of, [[click] if click else [] for click in first])}
        answer = yield PromptSet(index, given, multimask=True, target=target)
        num = answer.logits.shape[1]
        masks = tracing.masks(scene, answer.logits.flatten(0, 1), index.repeat_interleave(num))
        each = [[truths.iou(k, masks[i * num + m]) for m in range(num)] for i, k in enumerate(of)]
        chosen = answer.best().tolist(), [max(range(num), key=row.__getitem__) for row in each]
        # A chain of clicks begins with one of a click's masks; where the two persons choose the same, it is one chain.
        chains = list(dict.fromkeys((i, m) for which in chosen for i, m in enumerate(which)))
        persons = [[chains.index((i, m)) for i, m in enumerate(which)] for which in chosen]
        own, row = [i for i, _ in chains], torch.tensor([i for i, _ in chains], device=index.device)
        logits = answer.logits[row, torch.tensor([m for _, m in chains], device=index.device)]
        masks = [masks[i * num + m] for i, m in chains]
        ious, points = [each[i][m] for i, m in chains], [[click] if (click := first[i]) else [] for i in own]
        found: dict[str, list[float]] = {}
        for count in range(1, self.clicks[-1] + 1):
            if count > 1:
                for i, clicked, mask in zip(own, points, masks, strict=True):
                    if (click := truths.click(of[i], mask)) is not None:
                        clicked.append(click)
                given = {"points": truths.given("points", [of[i] for i in own], points)}
                if self.feed:
                    given["masks"] = Ragged.of(logits[:, None].float())
                answer = yield PromptSet(index[row], given, multimask=False, target=target[row])
                logits = answer.pick(answer.best())
                masks = tracing.masks(scene, logits, index[row])
                ious = [truths.iou(of[i], mask) for i, mask in zip(own, masks, strict=True)]
            if count in self.clicks:
                for end, chain in zip(("", "_best"), persons, strict=True):
                    found[_name(count) + end] = [ious[c] for c in chain]
        return found

    def _framed(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """All K masks in the frame."""
        k = len(scene.masks)
        clicker = scene.prompts["points"]
        if self.first == "centre":
            points = clicker.simulate(scene.masks, None, scene)
        else:
            xy, some = clicks.uniform(scene.masks, scene.generator)
            points = Ragged(torch.cat([xy, torch.ones_like(xy[:, :1])], 1)[:, None].float(), some[:, None])
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
                given = {"points": points} | ({"masks": Ragged.of(logits[:, None])} if self.feed else {})
                answer = yield PromptSet(index, given, multimask=False, target=target)
                logits = answer.pick(answer.best())
            if count in self.clicks:
                iou = mask_iou(answer.full(logits) > 0, truth)
                result[_name(count)], result[f"{_name(count)}_best"] = iou[:k], iou[k:]
        return result

    def metric(self) -> MeanByName:
        """Mean IoU by name."""
        return MeanByName(self._names())

    def _names(self) -> list[str]:
        return [name + end for name in map(_name, self.clicks) for end in ("", "_best")]


def _name(clicks: int) -> str:
    return f"{clicks}_click{'s' if clicks > 1 else ''}"
