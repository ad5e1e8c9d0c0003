"""Attention of moved tokens to cells and back, with gradients that add up in place.

The cells are the largest thing that a decoder holds, and these are where nearly all of their gradient comes from: left
to autograd, each use of them makes a map of their size and adds it to the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["look", "looked"]


def look(at: Tensor, moved: Tensor, cells: Tensor) -> Tensor:
    """What R tokens find in the cells.

    Args:
        at: (n, R, hw), added to the scores.
        moved: (n, R, C), the tokens as the cells see them.
        cells: (n, hw, C).

    Returns:
        (n, R, C), sums of cells.
    """
    if _by_hand(cells):
        found: Tensor = _Look.apply(at, moved, cells)
        return found
    return torch.baddbmm(at, moved, cells.transpose(1, 2)).softmax(-1) @ cells


def looked(at: Tensor, moved: Tensor, cells: Tensor, values: Tensor, heads: int) -> Tensor:
    """The cells, and what they find in the tokens, added.

    Args:
        at: (n, heads T, hw), added to the scores.
        moved: (n, heads T, C), the tokens as the cells see them.
        cells: (n, hw, C).
        values: (n, heads T, C), what each token of each head has to give.
        heads: In each of which a cell shares out its attention.
    """
    if _by_hand(cells):
        found: Tensor = _Looked.apply(at, moved, cells, values, heads)
        return found
    return torch.baddbmm(cells, _shares(at, moved, cells, heads).transpose(1, 2), values)


def _by_hand(cells: Tensor) -> bool:
    """Whether gradients are asked for where sums of large maps are dear, and in one precision."""
    plain = cells.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return plain and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _shares(at: Tensor, moved: Tensor, cells: Tensor, heads: int) -> Tensor:
    """(n, heads T, hw), each cell's attention to the tokens of each head."""
    scores = torch.baddbmm(at, moved, cells.transpose(1, 2))
    return torch.unflatten(scores, 1, (heads, -1)).softmax(2).flatten(1, 2)


class _Look(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, at: Tensor, moved: Tensor, cells: Tensor) -> Tensor:
        weights = torch.baddbmm(at, moved, cells.transpose(1, 2)).softmax(-1)
        ctx.save_for_backward(weights, moved, cells)
        return weights @ cells

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, moved, cells = ctx.saved_tensors
        slope = torch._softmax_backward_data(outer @ cells.transpose(1, 2), weights, -1, weights.dtype)
        by_cells = (weights.transpose(1, 2) @ outer).baddbmm_(slope.transpose(1, 2), moved)
        return slope, slope @ cells, by_cells


class _Looked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, at: Tensor, moved: Tensor, cells: Tensor, values: Tensor, heads: int) -> Tensor:
        weights = _shares(at, moved, cells, heads)
        ctx.save_for_backward(weights, moved, cells, values)
        ctx.heads = heads
        return torch.baddbmm(cells, weights.transpose(1, 2), values)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        weights, moved, cells, values = ctx.saved_tensors
        apart = torch.unflatten(weights, 1, (ctx.heads, -1))
        slope = torch.unflatten(values @ outer.transpose(1, 2), 1, (ctx.heads, -1))
        slope = torch._softmax_backward_data(slope, apart, 2, apart.dtype).flatten(1, 2)
        by_cells = torch.baddbmm(outer, slope.transpose(1, 2), moved)
        return slope, slope @ cells, by_cells, weights @ outer, None
