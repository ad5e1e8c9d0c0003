"""AdamW or Muon with layer-wise rates and a warmed-up schedule (paper appendix A, SAM_SPEC 2.3, 2.4 and 2.9)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from samlit.model import Sam
from samlit.training.adamw import AdamW
from samlit.training.muon import Muon

__all__ = ["Optim"]


@dataclass(frozen=True)
class Optim:
    """How the weights move.

    Attributes:
        lr: Rate after the warm-up.
        algorithm: "adamw", as the paper, or "muon" for matrices and kernels with AdamW for the rest.
        muon_lr: Muon's rate after the warm-up.
        weight_decay: Of matrices and kernels; biases, norms, embeddings and positions have none.
        betas: AdamW's averages.
        layer_decay: Each encoder layer's rate is the next one's times this; 1 is the same rate everywhere.
        rel_pos_decay: Whether relative positions have their layer's rate, as ViTDet's, or the full one, as SAM 2's.
        warmup: Steps of linear warm-up.
        warmup_from: Share of the rate that the warm-up starts from; one step's share of it if not given.
        schedule: After the warm-up: "step" divides by ten at each milestone, "cosine" falls to `final` at the last
            step, "rsqrt" falls as the reciprocal square root of the steps since, as SAM 2's.
        milestones: Where "step" falls, as shares of all steps; the paper's 60,000 and 86,666 of 90,000.
        final: Share of the rate that "cosine" ends with.
        timescale: Steps after the warm-up in which "rsqrt" falls to 0.71, and three times as many to a half.
        cooldown: Last steps, in which what the schedule says is brought down to 0 linearly; SAM 2's are 5,000.
        ema: Decay of an average of the weights, which is validated, kept in checkpoints and given away in place of the
            last ones; 0.9999 is usual, 0 is none. It takes the memory of the weights once more.
        max_skipped: A step whose gradient is not finite is left out; after so many in a row the run ends.
    """

    lr: float = 8e-4
    algorithm: Literal["adamw", "muon"] = "adamw"
    muon_lr: float = 0.02
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 1.0
    rel_pos_decay: bool = True
    warmup: int = 250
    warmup_from: float | None = None
    schedule: Literal["step", "cosine", "rsqrt", "constant"] = "step"
    milestones: Sequence[float] = (60_000 / 90_000, 86_666 / 90_000)
    final: float = 0.0
    timescale: int = 1000
    cooldown: int = 0
    ema: float = 0.0
    max_skipped: int = 10

    def __post_init__(self) -> None:
        for name, value, least in (("timescale", self.timescale, 1), ("max_skipped", self.max_skipped, 1)):
            if value < least:
                raise ValueError(f"optim.{name}: {least} at least, not {value}")
        for name, share in (("final", self.final), ("warmup_from", self.warmup_from or 0.0)):
            if not 0 <= share <= 1:
                raise ValueError(f"optim.{name}: a share from 0 to 1, not {share}")

    def groups(self, model: Sam) -> list[dict[str, Any]]:
        """Parameter groups by rate and decay, in a fixed order."""
        groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            last = name.rsplit(".", 1)[-1]
            plain = parameter.ndim < 2 or "pos" in last or "bias" in last or id(parameter) in embeddings
            scale = 1.0
            if name.startswith("encoder.") and (self.rel_pos_decay or "rel_pos" not in last):
                layer, layers = model.encoder.layer_of(name.removeprefix("encoder."))
                scale = self.layer_decay ** (layers - 1 - layer)
            matrix = not plain and min(len(parameter), parameter.numel() // len(parameter)) > 1
            muon = self.algorithm == "muon" and matrix
            groups.setdefault((scale, 0.0 if plain else self.weight_decay, muon), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": (self.muon_lr if muon else self.lr) * scale,
                "weight_decay": decay,
                "muon": muon,
            }
            for (scale, decay, muon), parameters in groups.items()
        ]

    def factor(self, step: int, steps: int) -> float:
        """What the rate is multiplied with at a step, from 0, of so many."""
        left = min(1.0, max(steps - step, 0) / self.cooldown) if self.cooldown else 1.0
        return self._scheduled(step, steps) * left

    def _scheduled(self, step: int, steps: int) -> float:
        if step < self.warmup:
            if self.warmup_from is None:
                return (step + 1) / (self.warmup + 1)
            return self.warmup_from + (1 - self.warmup_from) * step / self.warmup
        if self.schedule == "cosine":
            done = (step - self.warmup) / max(steps - self.warmup, 1)
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        if self.schedule == "step":
            return float(0.1 ** sum(step >= share * steps for share in self.milestones))
        if self.schedule == "rsqrt":
            return math.sqrt(self.timescale / (self.timescale + step - self.warmup))
        return 1.0

    def build(self, model: Sam, steps: int, shared: bool = False) -> tuple[AdamW, torch.optim.lr_scheduler.LRScheduler]:
        """The optimiser and its schedule over so many steps; `shared` where ranks have the same gradients."""
        groups = self.groups(model)
        optimizer: AdamW
        if self.algorithm == "muon":
            optimizer = Muon(groups, self.lr, self.betas, shared=shared, average=self.ema)
        else:
            optimizer = AdamW([{k: g[k] for k in g if k != "muon"} for g in groups], self.lr, self.betas, self.ema)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, steps))
