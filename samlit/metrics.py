"""Intersection over union, and a torchmetrics metric that averages named numbers over everything seen."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from samlit.masks.counting import pixels

__all__ = ["Collected", "MeanByName", "mask_iou"]


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of masks: (..., H, W) bool, broadcast against each other -> (...) float; 1 where both are empty."""
    both, either = pixels(a & b), pixels(a | b)
    return torch.where(either > 0, both / either.clamp_min(1), 1.0)


class MeanByName(Metric):
    """The mean of each of some named numbers, one number a mask, over all batches and ranks.

    Args:
        names: What a result holds, in the order in which it is shown.
        counts: Those of them that are no share of 1, a count for instance: while training they are logged, and enter
            neither the mean that chooses the best checkpoint nor the curves.
    """

    full_state_update = False

    def __init__(self, names: Sequence[str], counts: Sequence[str] = ()) -> None:
        super().__init__()
        self.names, self.counts = tuple(names), tuple(counts)
        zeros = torch.zeros(len(self.names), dtype=torch.float64)
        self.add_state("total", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("count", zeros.clone(), dist_reduce_fx="sum")

    total: Tensor
    count: Tensor

    def update(self, result: Mapping[str, Tensor]) -> None:
        """Take in a result: (K,) numbers by name; names that are not asked for, and missing ones, are passed over."""
        for i, name in enumerate(self.names):
            if name in result:
                self.total[i] += result[name].double().sum()
                self.count[i] += result[name].numel()

    def compute(self) -> dict[str, Tensor]:
        """Means by name, 0 where nothing was seen."""
        mean = (self.total / self.count.clamp_min(1)).float()
        return dict(zip(self.names, mean.unbind(), strict=True))


class Collected(Metric, ABC):
    """A metric of everything at once: results are collected as rows, over all ranks, and judged together at the end.

    A subclass turns a result into rows in `rows`, and judges all of them in `judge`. Rows are JSON, so they are saved
    with what has been evaluated so far.

    Attributes:
        counts: The numbers that are left out where a validation's are averaged into one: counts, seconds, errors.
    """

    full_state_update = False
    counts: Sequence[str] = ()

    def __init__(self) -> None:
        super().__init__()
        self.add_state("collected", [], dist_reduce_fx="cat")

    collected: list[Tensor] | Tensor

    @abstractmethod
    def rows(self, result: Mapping[str, Any]) -> Iterable[Any]:
        """What is to be kept of a task's result: any values that JSON can hold, one an image for instance."""

    @abstractmethod
    def judge(self, rows: list[Any]) -> dict[str, float]:
        """Numbers by name, of the rows of all images; called with none too."""

    def update(self, result: Mapping[str, Any]) -> None:
        """Take in a result."""
        text = "".join(json.dumps(row) + "\n" for row in self.rows(result))
        if text:
            assert isinstance(self.collected, list)
            self.collected.append(torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).to(self.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Bring ranks together; one that has judged no image takes part with no bytes, not with no numbers."""
        if isinstance(self.collected, list) and not self.collected:
            self.collected.append(torch.zeros(0, dtype=torch.uint8, device=self.device))
        super().sync(*args, **kwargs)

    def all_rows(self) -> list[Any]:
        """The rows of all results so far; where ranks have been brought together, of all of them."""
        parts = self.collected if isinstance(self.collected, list) else [self.collected]
        text = b"".join(part.cpu().numpy().tobytes() for part in parts)
        return [json.loads(line) for line in text.splitlines()]

    def compute(self) -> dict[str, Tensor]:
        """What `judge` says."""
        return {name: torch.tensor(float(number)) for name, number in self.judge(self.all_rows()).items()}
