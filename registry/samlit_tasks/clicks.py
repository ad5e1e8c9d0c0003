"""How many clicks a mask takes: RITM's protocol (arXiv 2102.06583, SAM_SPEC 6.5)."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torchmetrics import Metric

from samlit.contracts import Task
from samlit.drawing import lines
from samlit.evaluation.originals import Click, Truths
from samlit.masks import tracing
from samlit.metrics import Collected
from samlit.structures import Prediction, PromptSet, Ragged, Result, Scene

__all__ = ["Clicks"]


class Clicks(Task):
    """Clicks until a mask is good: their number (NoC), failures, mIoU click by click, time a click.

    RITM's rule, at the images' own size: a click falls where the larger error is deepest, on no pixel twice. Where
    nothing wrong is left that has not been clicked on, it falls on the image's first pixel as background, as there.
    The first click is answered with the mask that the model is most confident of, each later one with its single mask.
    The time of a click is that of everything, the images' embeddings and the person's choice included, as there.

    Args:
        targets: IoU to be reached, ascending; "noc_90" is the mean number of clicks to .90.
        most: Clicks that a mask gets at most. It counts as so many where a target is never reached, and as a failure,
            as it does where the target is reached by the last click.
        until: IoU from which a mask gets no more clicks; the highest target if not given. That changes no NoC. For the
            mIoU of all clicks on all masks give more than 1.
        feed: Whether the last answer's logits are given with the clicks.
    """

    prompts = ("points", "masks")
    originals = True

    def __init__(
        self,
        targets: Sequence[float] = (0.8, 0.85, 0.9),
        most: int = 20,
        until: float | None = None,
        feed: bool = True,
    ) -> None:
        if not targets or sorted(set(targets)) != list(targets) or not 0 < targets[0] <= targets[-1] <= 1:
            raise ValueError(f"targets: ascending IoU above 0 and up to 1, not {list(targets)}")
        if most < 1:
            raise ValueError(f"most: one click at least, not {most}")
        if until is not None and until < targets[-1]:
            raise ValueError(f"until: {until:g} ends before the target {targets[-1]:g} can be reached")
        self.targets, self.most, self.feed = tuple(targets), most, feed
        self.until = targets[-1] if until is None else until

    def rounds(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """Yield the next click of all masks that are not good yet.

        The result is "ious", the IoU after each click of each mask, and "seconds", the time of all of them.
        """
        began = time.monotonic()
        truths, ious = Truths(scene), []
        for some in truths.portions():
            ious += yield from self._clicked(scene, truths, some)
        return {"ious": ious, "seconds": time.monotonic() - began}

    def _clicked(
        self, scene: Scene, truths: Truths, of: list[int]
    ) -> Generator[PromptSet, Prediction, list[list[float]]]:
        """IoU after each click of some masks."""
        ious: dict[int, list[float]] = {k: [] for k in of}
        clicked: dict[int, list[Click]] = {k: [] for k in of}
        live, masks, logits = of, dict.fromkeys(of), torch.zeros(0)
        for count in range(self.most):
            for k in live:
                clicked[k].append(truths.click(k, masks[k], clicked[k]) or (0, 0, 0))
            given = {"points": truths.given("points", live, [clicked[k] for k in live])}
            if count and self.feed:
                given["masks"] = Ragged.of(logits[:, None].float())
            index = truths.index(live)
            target = torch.tensor(live, device=index.device)
            answer = yield PromptSet(index, given, multimask=not count, target=target)
            logits = answer.pick(answer.best())
            for k, mask in zip(live, tracing.masks(scene, logits, index), strict=True):
                masks[k] = mask
                ious[k].append(truths.iou(k, mask))
            on = [i for i, k in enumerate(live) if ious[k][-1] < self.until]
            live, logits = [live[i] for i in on], logits[on]
            if not live:
                break
        return list(ious.values())

    def metric(self) -> Counted:
        """NoC and failures by target, mIoU by click, seconds a click."""
        return Counted(self.targets, self.most)

    def plot(self, numbers: Mapping[str, float], metric: Metric, folder: Path) -> None:
        """The mIoU after each click."""
        curve = [(n, numbers[_name(n)]) for n in range(1, self.most + 1)]
        title = f"mIoU after each click; a mask gets no more from {self.until:g} on"
        lines.draw(folder / "clicks.png", {"mIoU": curve}, title, "clicks", "mIoU", (None, 1.0))


class Counted(Collected):
    """Judges the IoU after each click of all masks.

    Args:
        targets: IoU to be reached.
        most: Clicks that a mask gets at most.
    """

    def __init__(self, targets: Sequence[float], most: int) -> None:
        super().__init__()
        self.targets, self.most = tuple(targets), most
        told = [f"{name}_{100 * target:g}" for target in targets for name in ("noc", "failures")]
        self.counts = (*told, "seconds_per_click")

    def rows(self, result: Mapping[str, Any]) -> Iterable[Any]:
        """One a scene."""
        if result.get("ious"):
            yield {"ious": result["ious"], "seconds": result["seconds"]}

    def judge(self, rows: list[Any]) -> dict[str, float]:
        """Of all masks alike; a mask that is done keeps its IoU."""
        ious = [one for row in rows for one in row["ious"]]
        masks = max(len(ious), 1)
        found: dict[str, float] = {}
        for target in self.targets:
            needed = [next((n for n, iou in enumerate(one, 1) if iou >= target), self.most) for one in ious]
            found[f"noc_{100 * target:g}"] = sum(needed) / masks
            found[f"failures_{100 * target:g}"] = sum(n == self.most for n in needed)
        for count in range(1, self.most + 1):
            found[_name(count)] = sum(one[min(count, len(one)) - 1] for one in ious) / masks
        found["seconds_per_click"] = sum(row["seconds"] for row in rows) / max(sum(map(len, ious)), 1)
        return found


def _name(clicks: int) -> str:
    return f"{clicks}_click{'s' if clicks > 1 else ''}"
