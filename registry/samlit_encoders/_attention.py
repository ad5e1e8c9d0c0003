"""Attention over a grid or its windows with decomposed relative positions (SAM_SPEC 1.2), each way it is computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Attention", "relative"]

SCORES = 1 << 19  # of one chunk, 2 MiB in float32: what a core's second-level cache holds
SMALL = 512  # keys up to which, on a processor, all scores at once beat a kernel that never holds them


class Attention(nn.Module):
    """Self-attention of the cells of a grid, all with all or in windows.

    Args:
        dim: Width of a cell.
        heads: Number of heads.
        grid: Side of the grid that positions are learned for; of a window where there are windows.
        window: Side of a window; 0 attends over the whole grid.
    """

    def __init__(self, dim: int, heads: int, grid: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid - 1, dim // heads))

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, dim) to the same."""
        size = x.shape[1:3]
        qkv = self.qkv(x)
        if self.window:
            qkv = _cut(qkv, self.window, self.qkv.bias)
        n, h, w, _ = qkv.shape
        q, k, v = qkv.view(n, h, w, 3, self.heads, -1).permute(3, 0, 4, 1, 2, 5).flatten(3, 4)  # (n, heads, h w, d)
        x = _attend(q, k, v, relative(self.rel_pos_h, h), relative(self.rel_pos_w, w))
        x = x.transpose(1, 2).reshape(n, h, w, -1)
        if self.window:
            x = _join(x, size)
        out: Tensor = self.proj(x)
        return out


def relative(table: Tensor, size: int) -> Tensor:
    """Vectors by distance (2 S - 1, d) as vectors of a query's and a key's place: (size, size, d).

    A table of another size is interpolated, as SAM does for a grid that is not its own.
    """
    if len(table) != 2 * size - 1:
        table = F.interpolate(table.t()[None], 2 * size - 1, mode="linear")[0].t()
    at = torch.arange(size, device=table.device)
    return table[at[:, None] - at + size - 1]


def _cut(qkv: Tensor, side: int, bias: Tensor) -> Tensor:
    """Windows of a map: (B, h, w, c) to (B x windows, side, side, c).

    SAM pads with zeros before the projection and does not mask the padding: the released weights were trained to see
    it (SAM_SPEC 1.2). A zero's query, key and value are the bias, so there is nothing to project.
    """
    b, h, w, c = qkv.shape
    down, right = -h % side, -w % side
    bias = bias.to(qkv.dtype)
    if right:
        qkv = torch.cat([qkv, bias.expand(b, h, right, c)], 2)
    if down:
        qkv = torch.cat([qkv, bias.expand(b, down, w + right, c)], 1)
    return qkv.view(b, (h + down) // side, side, -1, side, c).transpose(2, 3).reshape(-1, side, side, c)


def _join(x: Tensor, size: torch.Size) -> Tensor:
    """The map of windows, without their padding: (B x windows, side, side, c) to (B, h, w, c)."""
    side = x.shape[1]
    h, w = size
    down, across = -(-h // side), -(-w // side)
    x = x.view(-1, down, across, side, side, x.shape[-1]).transpose(2, 3)
    return x.reshape(-1, down * side, across * side, x.shape[-1])[:, :h, :w].contiguous()


def _attend(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Attention with the bias q.Rh[i - i'] + q.Rw[j - j'], of the unscaled q, for query (i, j) and key (i', j').

    Args:
        q: (n, heads, h w, d), as k and v.
        k: Keys.
        v: Values.
        rows: (h, h, d), Rh by i and i'.
        columns: (w, w, d), Rw by j and j'.
    """
    h, w = len(rows), len(columns)
    grid = q.reshape(*q.shape[:2], h, w, -1)
    down = torch.einsum("nmijd,ikd->nmijk", grid, rows).flatten(2, 3)  # (n, heads, h w, h)
    across = torch.einsum("nmijd,jkd->nmijk", grid, columns).flatten(2, 3)  # (n, heads, h w, w)
    learns = any(t.requires_grad for t in (q, down, across))
    wide = q.dtype in (torch.float32, torch.float64)
    if q.device.type == "cpu" and wide and not learns and not torch.compiler.is_compiling():
        return _in_chunks(q, k, v, down, across)
    # The bias is a product, [q.Rh, q.Rw] . [1 at i', 1 at j']: h + w further dimensions of a head, exact in any kernel.
    here = torch.cat(
        [
            torch.eye(h, dtype=k.dtype, device=k.device).repeat_interleave(w, 0),
            torch.eye(w, dtype=k.dtype, device=k.device).repeat(h, 1),
        ],
        1,
    )
    d = q.shape[-1]
    q = torch.cat([q * d**-0.5, down, across], -1)
    k = torch.cat([k, here.expand(*k.shape[:2], -1, -1)], -1)
    if q.device.type == "cpu" and h * w <= SMALL:
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v
    # Kernels that never hold all scores want values as wide as keys.
    v = F.pad(v, (0, h + w))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :d]


def _in_chunks(q: Tensor, k: Tensor, v: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """The same without gradients: scores come in chunks that stay in a processor's cache, and are written over."""
    (n, m, cells, d), h, w = q.shape, down.shape[-1], across.shape[-1]
    q, v, down, across = (t.reshape(n * m, cells, -1) for t in (q, v, down, across))
    k = k.reshape(n * m, cells, d).transpose(1, 2)
    heads, rows = max(SCORES // cells**2, 1), min(max(SCORES // cells, 1), cells)
    out, memory = torch.empty_like(q), q.new_empty(heads * rows * cells)
    for i in range(0, n * m, heads):
        for j in range(0, cells, rows):
            at = slice(i, i + heads), slice(j, j + rows)
            part = q[at]
            scores = memory[: part.shape[0] * part.shape[1] * cells].view(*part.shape[:2], cells)
            torch.add(down[at][..., None], across[at][..., None, :], out=scores.view(*part.shape[:2], h, w))
            scores.baddbmm_(part, k[i : i + heads], alpha=d**-0.5)
            torch.softmax(scores, -1, out=scores)
            torch.bmm(scores, v[i : i + heads], out=out[at])
    return out.view(n, m, cells, d)
