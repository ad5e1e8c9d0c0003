"""From what a step takes to what a training needs: memory of a device, images a second, hours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from samlit.plan.step import Load
from samlit.run.gpus import Gpu

__all__ = ["SPARE", "Run", "Speed", "memory", "most", "speed"]

SPARE = 0.08
"""Share of a GPU's memory that is left to its context, to libraries' workspaces and to gaps between tensors."""

Strategy = Literal["single", "ddp", "fsdp"]


@dataclass(frozen=True)
class Run:
    """What a recipe says of the size of a training.

    Attributes:
        images: Of a device's batch.
        masks: Of an image, at most.
        side: Of the frame in pixels.
        precision: As Lightning calls it.
        strategy: How several devices share the work.
        devices: How many there are.
        accumulate: Batches of a step.
        steps: Of the training; None where the recipe counts epochs and the images are not known.
        bucket_view: Whether DDP's buckets are the gradients, and no copies of them.
    """

    images: int
    masks: int
    side: int
    precision: str
    strategy: Strategy
    devices: int
    accumulate: int
    steps: int | None
    bucket_view: bool = False

    @property
    def batch(self) -> int:
        """Images of a step over all devices."""
        return self.images * self.devices * self.accumulate

    @property
    def half(self) -> bool:
        """Whether products are computed in half precision."""
        return not self.precision.startswith("32")


def memory(load: Load, run: Run) -> dict[str, int]:
    """Bytes of a device by what they hold. What is held at one time or another is under `during ...`."""
    shards = run.devices if run.strategy == "fsdp" else 1
    rest, block = load.weights - sum(load.blocks), max(load.blocks, default=0)
    # One block is computed with while the next one comes; what is in no block stays gathered through a step.
    gathered = rest + 2 * block if shards > 1 else 0
    gradients = -(-load.gradients // shards)
    # DDP's buckets are there from the start; they are the gradients, or hold a copy of each.
    buckets = load.gradients if run.strategy == "ddp" and not run.bucket_view else 0
    stays = gradients if run.accumulate > 1 or (run.strategy == "ddp" and run.bucket_view) else 0
    parts = {
        "weights": -(-load.weights // shards),
        "gathered weights": gathered,
        "gradients": gradients,
        "gradient buckets": buckets,
        "optimiser": -(-load.moments // shards),
        "averages": -(-load.averages // shards),
        "batch": load.batch,
        "encoder": load.kept,
        "pass": load.answer,
    }
    state = parts["weights"] + parts["optimiser"] + parts["averages"] + buckets
    returning = load.returning + gradients if stays or shards > 1 else load.returning_with_gradients
    parts["during the passes"] = state + gathered + load.batch + stays + load.passing
    # A block's whole gradients are there before they are shared out, as its gathered weights are.
    parts["during the encoder's backward"] = state + 2 * gathered + load.batch + returning
    parts["during the optimiser's step"] = state + gradients + -(-load.stepping // shards)
    return parts


def most(parts: dict[str, int]) -> int:
    """The most bytes at any time."""
    return max(size for name, size in parts.items() if name.startswith("during"))


@dataclass(frozen=True)
class Speed:
    """What to expect of a kind of GPU.

    Attributes:
        rate: Images a second of one.
        hours: Of the training on all of them; None where its length is not known.
    """

    rate: float
    hours: float | None

    def told(self) -> dict[str, Any]:
        """For JSON."""
        return {"images_per_second_and_gpu": self.rate, "hours": self.hours}


def speed(load: Load, run: Run, gpu: Gpu, share: float) -> Speed:
    """Images a second where products run at a share of a GPU's peak, and the optimiser at its memory's bandwidth."""
    peak = (gpu.half if run.half and (gpu.bf16 or "bf16" not in run.precision) else gpu.full) * 1e12
    batch = (load.encoder.total + load.decoder.total) / (share * peak)
    # Weights, moments and averages are read and written, gradients read.
    shards = run.devices if run.strategy == "fsdp" else 1
    moved = 2 * (load.gradients + load.moments + load.averages) + load.gradients
    step = run.accumulate * batch + moved / shards / (gpu.bandwidth * 1e9)
    rate = run.images * run.accumulate / step if step else math.inf
    return Speed(rate, None if run.steps is None else run.steps * step / 3600)
