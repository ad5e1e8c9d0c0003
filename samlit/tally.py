"""What a training's answers have come to since they were last logged: means by pass, over steps, masks and ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from samlit.losses import Terms

__all__ = ["Tally"]

MOST = 64
"""Passes that are told apart; the paper has 11."""


class Tally:
    """Adds up on the device, so that no step waits for a number; reduced over ranks only when it is read."""

    def __init__(self) -> None:
        self.images = self.answers = 0
        self._passes: Tensor | None = None
        self._steps: Tensor | None = None

    def add(self, loss: Tensor, passes: Sequence[Terms], images: int) -> None:
        """Take in a batch: its loss, (), the terms of each pass's rows, none where no image had a mask.

        `images` and `answers` count on for as long as the training lasts.
        """
        self.images += images
        self.answers += sum(len(terms.total) for terms in passes)
        if self._passes is None or self._steps is None:
            self._passes = torch.zeros(len(Terms._fields) + 1, MOST, device=loss.device)
            self._steps = torch.zeros(2, device=loss.device)
        self._steps += torch.stack([loss.detach().float(), torch.ones_like(loss, dtype=torch.float32)])
        for number, terms in enumerate(passes[:MOST]):
            rows = torch.stack([*terms, torch.ones_like(terms.total)]).detach()
            self._passes[:, number] += rows.float().sum(1)

    def take(self, reduce: Callable[[Tensor], Tensor] = lambda total: total) -> dict[str, float]:
        """The means by name since the last time, empty where there were none; the device finishes first.

        A step's loss is normalised by the masks of all ranks, so the mean over ranks is the loss of the whole batch.

        Args:
            reduce: Adds up over ranks, all of which must come here.
        """
        if self._passes is None or self._steps is None:
            return {}
        total = reduce(torch.cat([self._steps, self._passes.flatten()])).cpu()
        self._passes, self._steps = None, None
        means = {"train/loss": float(total[0] / total[1])}
        *sums, count = total[2:].view(-1, MOST)
        passes = count.count_nonzero()
        if not passes:
            return means
        mean = Terms(*(x[:passes] / count[:passes] for x in sums))
        for name in ("focal", "dice", "iou"):
            means[f"train/{name}"] = float(getattr(mean, name).mean())
        means["train/miou"] = float(mean.actual_iou.mean())
        means["train/miou_first"], means["train/miou_last"] = float(mean.actual_iou[0]), float(mean.actual_iou[-1])
        for number, (one, iou) in enumerate(zip(mean.total.tolist(), mean.actual_iou.tolist(), strict=True), 1):
            means[f"train/pass_{number:02}/loss"], means[f"train/pass_{number:02}/miou"] = one, iou
        return means
