"""What a training's answers have come to since they were last logged: means by pass, over steps, masks and ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from samlit.losses import Terms

__all__ = ["Tally"]

MOST = 64
"""Passes that are told apart; the paper has 11."""
STEP = ("focal", "dice", "iou", "miou", "miou_first", "miou_last")
"""What is told of a step, a mean over its passes or of the first and the last."""


class Tally:
    """Adds up on the device, so that no step waits for a number; reduced over ranks only when it is read.

    What is not finite is not counted: such a step is left out.
    """

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
            self._passes = torch.zeros(3, MOST, device=loss.device)
            self._steps = torch.zeros(2 + len(STEP) + 1, device=loss.device)
        one = torch.ones_like(loss, dtype=torch.float32)
        self._steps[:2] += _finite(torch.stack([loss.detach().float(), one]))
        if not passes:
            return
        # (passes, terms): a pass counts as much as any other of its step.
        mean = torch.stack([torch.stack(list(terms)).detach().float().mean(1) for terms in passes])
        _, focal, dice, iou, actual = mean.unbind(1)
        step = (focal.mean(), dice.mean(), iou.mean(), actual.mean(), actual[0], actual[-1], one)
        self._steps[2:] += _finite(torch.stack(step))
        for number, terms in enumerate(passes[:MOST]):
            rows = torch.stack([terms.total, terms.actual_iou, torch.ones_like(terms.total)]).detach()
            self._passes[:, number] += _finite(rows.float().sum(1))

    def take(self, add_up: Callable[[Tensor], Tensor] = lambda total: total) -> dict[str, float]:
        """The means by name since the last time, empty where there were none; the device finishes first.

        A step's loss is normalised by the masks of all ranks, so the mean over ranks is the loss of the whole batch.

        Args:
            add_up: Over ranks, all of which must come here.
        """
        if self._passes is None or self._steps is None:
            return {}
        total = add_up(torch.cat([self._steps, self._passes.flatten()])).tolist()
        self._passes, self._steps = None, None
        loss, steps, *of_step = total[: 3 + len(STEP)]
        means = {"train/loss": loss / steps} if steps else {}
        if of_step[-1]:
            means |= {f"train/{name}": x / of_step[-1] for name, x in zip(STEP, of_step, strict=False)}
        rest = total[3 + len(STEP) :]
        for number, (one, iou, count) in enumerate(zip(rest, rest[MOST:], rest[2 * MOST :], strict=False), 1):
            if count:
                means |= {f"train/pass_{number:02}/loss": one / count, f"train/pass_{number:02}/miou": iou / count}
        return means


def _finite(numbers: Tensor) -> Tensor:
    """The numbers, or zeros where one of them is none."""
    return torch.where(numbers.isfinite().all(), numbers, 0.0)
