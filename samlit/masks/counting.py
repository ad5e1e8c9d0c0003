"""How many pixels masks have."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pixels"]

NEAR = 2**18
"""How many pixels are counted at a time on a processor: a sum of truths first makes numbers of all of them."""


def pixels(mask: Tensor, dim: int = 2) -> Tensor:
    """Count the pixels of masks, (..., H, W) bool -> (...) int32; or with `dim` 1 of their rows, (..., H).

    Bytes add up faster than truths do, and a few masks at a time do so in the processor's cache.
    """
    rows = mask.contiguous().view(torch.uint8).flatten(-dim) if dim > 1 else mask.contiguous().view(torch.uint8)
    if mask.device.type != "cpu" or rows.numel() <= NEAR or torch.compiler.is_compiling():
        return rows.sum(-1, dtype=torch.int32)
    flat = rows.view(-1, rows.shape[-1])
    counts = [some.sum(-1, dtype=torch.int32) for some in torch.split(flat, max(1, NEAR // flat.shape[1]))]
    return torch.cat(counts).view(rows.shape[:-1])
