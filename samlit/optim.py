"""AdamW or Muon with layer-wise rates and a warmed-up schedule (paper appendix A, SAM_SPEC 2.3 and 2.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from samlit.model import Sam
from samlit.muon import Muon

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
        warmup: Steps of linear warm-up.
        schedule: After the warm-up: "step" divides by ten at each milestone, "cosine" falls to 0 at the last step.
        milestones: Where "step" falls, as shares of all steps; the paper's 60,000 and 86,666 of 90,000.
    """

    lr: float = 8e-4
    algorithm: Literal["adamw", "muon"] = "adamw"
    muon_lr: float = 0.02
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 1.0
    warmup: int = 250
    schedule: Literal["step", "cosine", "constant"] = "step"
    milestones: Sequence[float] = (60_000 / 90_000, 86_666 / 90_000)

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
            if name.startswith("encoder."):
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
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.schedule == "cosine":
            done = (step - self.warmup) / max(steps - self.warmup, 1)
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        if self.schedule == "step":
            return float(0.1 ** sum(step >= share * steps for share in self.milestones))
        return 1.0

    def build(
        self, model: Sam, steps: int, shared: bool = False
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """The optimiser and its schedule over so many steps; `shared` where ranks have the same gradients."""
        groups = self.groups(model)
        optimizer: torch.optim.Optimizer
        if self.algorithm == "muon":
            optimizer = Muon(groups, self.lr, self.betas, shared=shared)
        else:
            optimizer = torch.optim.AdamW([{k: g[k] for k in g if k != "muon"} for g in groups], self.lr, self.betas)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, steps))
