"""Muon: matrices move by their orthogonalised momentum, everything else by AdamW (Jordan et al. 2024)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonal"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, chosen by Jordan for its slope at zero; singular values end between 0.7 and 1.2."""


class Muon(torch.optim.AdamW):
    """AdamW whose groups may say `muon=True`: their matrices and kernels move by orthogonalised Nesterov momentum.

    PyTorch's own Muon takes matrices only and one at a time; here one optimiser serves a whole model, as Lightning
    wants it, and matrices of one shape are orthogonalised together.

    Args:
        groups: Parameter groups; those with `muon` hold matrices and kernels, (out, in, rows, columns).
        lr: Rate of groups that name none.
        betas: AdamW's averages.
        momentum: Muon's average.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.999), momentum: float = 0.95
    ) -> None:
        for group in groups:
            group.setdefault("muon", False)
            group.setdefault("momentum", momentum)
            if group["muon"] and any(p.ndim < 2 for p in group["params"]):
                raise ValueError("Muon moves matrices and kernels; a group of it holds something else")
        super().__init__(groups, lr=lr, betas=betas)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        hidden: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            if group["muon"]:
                hidden += self._move(group)
        for parameter, _ in hidden:
            parameter.grad = None  # AdamW passes over what has no gradient
        super().step()
        for parameter, gradient in hidden:
            parameter.grad = gradient
        return loss

    @torch.no_grad()
    def _move(self, group: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
        """Move a group's matrices; returns them with their gradients."""
        moved = [(p, p.grad) for p in group["params"] if p.grad is not None]
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, gradient in moved:
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(gradient)
                state["step"] = torch.tensor(0.0)  # AdamW looks for one when a saved state is loaded
            state["momentum"].lerp_(gradient, 1 - group["momentum"])
            by_shape[parameter.shape].append((parameter, gradient.lerp(state["momentum"], group["momentum"])))
        for shape, pairs in by_shape.items():
            # A kernel (out, in, rows, columns) is the matrix that takes a patch to its outputs.
            directions = orthogonal(torch.stack([update.flatten(1) for _, update in pairs]))
            rate = group["lr"] * max(1.0, shape[0] / math.prod(shape[1:])) ** 0.5
            for (parameter, _), direction in zip(pairs, directions, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction.view(shape), alpha=-rate)
        return moved


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearly orthogonal matrices along the given ones: (n, rows, columns) -> the same, singular values about 1.

    Newton-Schulz iteration, which only multiplies; float32 throughout, since bfloat16 is slow on many processors.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.float().mT if tall else matrices.float()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    out: Tensor = (x.mT if tall else x).to(matrices.dtype)
    return out
