"""Muon: matrices move by their orthogonalised momentum, everything else by AdamW (Jordan et al. 2024)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from samlit.training.adamw import AdamW
from samlit.training.rows import placed, rows

__all__ = ["Muon", "orthogonal"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, chosen by Jordan for its slope at zero; singular values end between 0.7 and 1.2."""


class Muon(AdamW):
    """AdamW whose groups may say `muon=True`: their matrices and kernels move by orthogonalised Nesterov momentum.

    PyTorch's own Muon takes matrices only and one at a time; here one optimiser serves a whole model, as Lightning
    wants it, matrices of one shape are orthogonalised together, and ranks share the work.

    Args:
        groups: Parameter groups; those with `muon` hold matrices and kernels, (out, in, rows, columns).
        lr: Rate of groups that name none.
        betas: AdamW's averages.
        momentum: Muon's average.
        shared: Whether several ranks have the same gradients, or each some rows of them (DDP, FSDP), so that each
            orthogonalises some of the matrices for all of them.
        average: Decay of the weights' average; 0 for none.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.95,
        shared: bool = False,
        average: float = 0.0,
    ) -> None:
        for group in groups:
            group.setdefault("muon", False)
            group.setdefault("momentum", momentum)
            if group["muon"] and any(p.ndim < 2 for p in group["params"]):
                raise ValueError("Muon moves matrices and kernels; a group of it holds something else")
        super().__init__(groups, lr, betas, average)
        self.shared = shared

    def _take(self) -> None:
        """One step of both."""
        groups = [group for group in self.param_groups if group["muon"]]
        hidden = [(p, p.grad) for group in groups for p in group["params"] if p.grad is not None]
        self._move(groups)
        for parameter, _ in hidden:
            parameter.grad = None  # AdamW passes over what has no gradient
        super()._take()
        for parameter, gradient in hidden:
            parameter.grad = gradient

    @torch.no_grad()
    def _move(self, groups: list[dict[str, Any]]) -> None:
        """Move the groups' matrices; by nothing where the step is left out."""
        left_out = None if self.found_inf is None else self.found_inf != 0
        updates: list[Tensor] = []
        for group in groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter.grad)
                    state["step"] = torch.zeros((), device=parameter.device)
                gradient = parameter.grad
                share: float | Tensor = 1 - group["momentum"]
                one: float | Tensor = 1.0
                if left_out is not None:
                    gradient = gradient.masked_fill(left_out, 0)
                    share, one = (torch.where(left_out, 0.0, number) for number in (share, one))
                state["step"] += one
                momentum = state["momentum"].lerp_(gradient, share)
                # A kernel (out, in, rows, columns) is the matrix that takes a patch to its outputs.
                update = gradient.lerp(momentum, group["momentum"])
                # Of a matrix's rows alone nothing can be made orthogonal: where ranks share it, it is put together.
                whole = update.full_tensor() if isinstance(update, DTensor) else update
                updates.append(whole.flatten(1))
        directions = iter(_orthogonal(updates, self.shared))
        for group in groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                direction = next(directions)
                rate = group["lr"] * max(1.0, direction.shape[0] / direction.shape[1]) ** 0.5
                stay: float | Tensor = 1 - group["lr"] * group["weight_decay"]
                if left_out is not None:
                    direction, stay = direction.masked_fill(left_out, 0), torch.where(left_out, 1.0, stay)
                direction = direction.view(parameter.shape)
                if isinstance(parameter, DTensor):
                    direction = placed(direction[slice(*rows(parameter))], parameter)
                parameter.mul_(stay)
                parameter.add_(direction, alpha=-rate)


def _orthogonal(matrices: list[Tensor], shared: bool) -> list[Tensor]:
    """Nearly orthogonal matrices along the given ones, which are the same on every rank if the work is `shared`."""
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if shared and dist.is_initialized() else (1, 0)
    whose = _deal([min(m.shape) ** 2 * max(m.shape) for m in matrices], ranks)
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for i, matrix in enumerate(matrices):
        if whose[i] == rank:
            by_shape[matrix.shape].append(i)
    found = list(matrices)
    for indices in by_shape.values():
        for i, direction in zip(indices, orthogonal(torch.stack([matrices[i] for i in indices])), strict=True):
            found[i] = direction
    if ranks == 1 or not matrices:
        return found
    owned = [[i for i, owner in enumerate(whose) if owner == r] for r in range(ranks)]
    lengths = [sum(matrices[i].numel() for i in indices) for indices in owned]
    sent = matrices[0].new_zeros(max(lengths))
    sent[: lengths[rank]] = torch.cat([found[i].flatten() for i in owned[rank]]) if owned[rank] else sent[:0]
    received = sent.new_empty(ranks * len(sent))
    dist.all_gather_into_tensor(received, sent)
    for r, indices in enumerate(owned):
        parts = torch.split(received[r * len(sent) :][: lengths[r]], [matrices[i].numel() for i in indices])
        for i, part in zip(indices, parts, strict=True):
            found[i] = part.view(matrices[i].shape)
    return found


def _deal(costs: list[int], ranks: int) -> list[int]:
    """The rank that takes each piece of work: the dearest first, each to who has least."""
    load, whose = [0] * ranks, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        whose[i] = load.index(min(load))
        load[whose[i]] += costs[i]
    return whose


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearly orthogonal matrices along the given ones: (n, rows, columns) -> the same, singular values about 1.

    Newton-Schulz iteration, which only multiplies; float32 throughout, since bfloat16 is slow on many processors.
    Every step is a polynomial of the Gram matrix times the one before, so that for a long matrix the steps are taken
    on the small Gram matrix, and their product is applied once.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.float().mT if tall else matrices.float()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram, product = x @ x.mT, None
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else factor @ product
        if step < steps - 1:
            gram = factor @ gram @ factor
    x = x if product is None else product @ x
    out: Tensor = (x.mT if tall else x).to(matrices.dtype)
    return out
