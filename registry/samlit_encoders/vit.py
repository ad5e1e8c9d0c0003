"""Plain ViT with window and global attention and decomposed relative positions, SAM's image encoder.

Paper section 3 and appendix A; ViTDet (arXiv 2203.16527); SAM_SPEC 1.2. Parameter names are the released ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samlit.contracts import Encoder
from samlit.layers import LayerNorm2d
from samlit.structures import Embedding

__all__ = ["Vit", "vit_b", "vit_h", "vit_l"]


class Vit(Encoder):
    """Plain ViT of any size, window and global blocks, relative positions.

    Weights of another `image_size` load: absolute and relative positions are interpolated.

    Args:
        image_size: Side of the square frame in pixels.
        dim: Width of the blocks.
        depth: Number of blocks.
        heads: Attention heads a block.
        global_blocks: Blocks, from 0, that attend over the whole grid; the others attend in windows.
        window: Side of a window in cells.
        patch: Pixels of the frame a cell, each way.
        channels: Width C of the image embedding.
        mlp_ratio: Hidden width of a block's MLP over `dim`.
        stem: How pixels become cells: one convolution of the patch's size ("patch", as SAM), or 3 x 3 convolutions
            of stride 2 ("conv", arXiv 2106.14881), which learn far more from few images and whose finer maps serve
            a decoder's `high_res`.
        drop_path: Chance that a block is skipped in training, 0 at the first block rising to this at the last.
    """

    def __init__(
        self,
        image_size: int = 1024,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        global_blocks: Sequence[int] = (2, 5, 8, 11),
        window: int = 14,
        patch: int = 16,
        channels: int = 256,
        mlp_ratio: float = 4.0,
        stem: Literal["patch", "conv"] = "patch",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise ValueError(f"image_size {image_size} is not a multiple of the patch, {patch}")
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of the number of heads, {heads}")
        if outside := [i for i in global_blocks if not 0 <= i < depth]:
            raise ValueError(f"global_blocks {outside} are not among the {depth} blocks, 0 to {depth - 1}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path {drop_path} is not a chance from 0 to below 1")
        self.channels, self.stride, self.depth = channels, patch, depth
        grid = image_size // patch
        self.patch_embed = _Patches(dim, patch) if stem == "patch" else _Convolutions(dim, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, dim))
        self.blocks = nn.ModuleList(
            _Block(dim, heads, 0 if i in global_blocks else window, grid, mlp_ratio, drop_path * i / max(depth - 1, 1))
            for i in range(depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(dim, channels, 1, bias=False),
            LayerNorm2d(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            LayerNorm2d(channels),
        )
        self.detail = None
        if isinstance(self.patch_embed, _Convolutions):
            self.detail = _Details(dim, self.patch_embed.detail_widths, channels)
        # Waves of the position, as in MAE, which SAM starts from: what is where can be read from the first step on.
        self.pos_embed.data.copy_(_waves(grid, dim))
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):  # as ViTDet; what SAM did is not published (SAM_SPEC 1.6)
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.register_load_state_dict_pre_hook(_fit_positions)  # type: ignore[no-untyped-call]

    def forward(self, image: Tensor) -> Embedding:
        """Encode normalised images: (B, 3, H, W) float -> (B, C, h, w)."""
        x, early = self.patch_embed(image)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = x.permute(0, 3, 1, 2)
        return Embedding(self.neck(x), () if self.detail is None else self.detail(x, *early))

    def layer_of(self, parameter: str) -> tuple[int, int]:
        """Pixels and positions first, then a layer a block, then the neck (SAM_SPEC 2.4)."""
        layers = self.depth + 2
        if parameter.startswith(("patch_embed.", "pos_embed")):
            return 0, layers
        if parameter.startswith("blocks."):
            return int(parameter.split(".")[1]) + 1, layers
        return layers - 1, layers


def _waves(grid: int, dim: int) -> Tensor:
    """Sines and cosines of a cell's row and column, MAE's positions: (1, grid, grid, dim)."""
    quarter = dim // 4
    rate = 10_000.0 ** (-torch.arange(quarter) / quarter)
    angle = torch.arange(grid)[:, None] * rate
    one = F.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, dim // 2 - 2 * quarter))  # (grid, dim / 2)
    down, across = one[:, None].expand(grid, grid, -1), one[None].expand(grid, grid, -1)
    return F.pad(torch.cat([across, down], 2), (0, dim - 2 * (dim // 2)))[None]


def _fit_positions(vit: Vit, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Bring positions that were learned on another grid to this one's, before they are loaded."""
    key, (_, h, w, _) = f"{prefix}pos_embed", vit.pos_embed.shape
    if key in state and state[key].ndim == 4 and state[key].shape[1:3] != (h, w):
        maps = state[key].float().permute(0, 3, 1, 2)
        maps = F.interpolate(maps, (h, w), mode="bicubic", align_corners=False)
        state[key] = maps.permute(0, 2, 3, 1).to(state[key].dtype)
    for name, parameter in vit.named_parameters():
        key = prefix + name
        if name.endswith(("rel_pos_h", "rel_pos_w")) and key in state and len(state[key]) != len(parameter):
            table = state[key].float().t()[None]  # (1, d, distances), as SAM itself does for a grid that is not its own
            state[key] = F.interpolate(table, len(parameter), mode="linear")[0].t().to(state[key].dtype)


class _Patches(nn.Module):
    """(B, 3, H, W) to (B, h, w, dim), one linear map a patch."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x: Tensor = self.proj(image)
        return x.permute(0, 2, 3, 1), ()


class _Convolutions(nn.Module):
    """(B, 3, H, W) to (B, h, w, dim), halving the map at each convolution."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        steps = patch.bit_length() - 1
        if patch != 2**steps or steps < 3:
            raise ValueError(f"the conv stem halves the map at each step: patch must be 8, 16 or 32, not {patch}")
        # The largest map is narrow and has no norm: it would cost more than all others together.
        first = nn.Sequential(nn.Conv2d(3, min(32, dim), 3, 2, 1), nn.GELU())
        widths = [min(32, dim), *(max(dim >> (steps - 1 - i), min(64, dim)) for i in range(1, steps))]
        self.halve = nn.ModuleList([first])
        for a, b in pairwise(widths):
            self.halve.append(nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), LayerNorm2d(b), nn.GELU()))
        self.proj = nn.Conv2d(dim, dim, 1)
        self.detail_widths = widths[-3], widths[-2]  # of the maps with four and two rows a cell

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        maps = [image.contiguous(memory_format=torch.channels_last)]  # as the norms and the blocks want it
        for halve in self.halve:
            maps.append(halve(maps[-1]))
        x: Tensor = self.proj(maps[-1])
        return x.permute(0, 2, 3, 1), (maps[-3], maps[-2])


class _Details(nn.Module):
    """What the blocks have understood, brought back to the stem's finer maps from the top down (arXiv 1612.03144)."""

    def __init__(self, dim: int, widths: tuple[int, int], channels: int) -> None:
        super().__init__()
        quarter, half = widths
        self.lateral = nn.ModuleList([nn.Conv2d(dim, half, 1), nn.Conv2d(half, quarter, 1)])
        self.smooth = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), LayerNorm2d(width), nn.GELU())
            for width in (half, quarter)
        )
        self.out = nn.ModuleList([nn.Conv2d(half, channels // 4, 1), nn.Conv2d(quarter, channels // 8, 1)])

    def forward(self, x: Tensor, quarters: Tensor, halves: Tensor) -> tuple[Tensor, ...]:
        """(B, dim, h, w) and the stem's maps to (B, C/8, 4h, 4w) and (B, C/4, 2h, 2w)."""
        found = []
        for finer, lateral, smooth, out in zip((halves, quarters), self.lateral, self.smooth, self.out, strict=True):
            x = smooth(finer + F.interpolate(lateral(x), scale_factor=2.0, mode="nearest"))
            found.append(out(x))
        return tuple(reversed(found))


class _Block(nn.Module):
    """Pre-norm attention and MLP over (B, h, w, dim); window 0 attends over the whole grid."""

    def __init__(self, dim: int, heads: int, window: int, grid: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _Attention(dim, heads, window or grid)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = _FeedForward(dim, int(dim * mlp_ratio))
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._skip(self._attend(self.norm1(x)))
        return x + self._skip(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        if not self.window:
            out: Tensor = self.attn(x)
            return out
        b, h, w, c = x.shape
        s = self.window
        rows, columns = -(-h // s), -(-w // s)
        # Zeros after the norm, and not masked: the released weights were trained to see them (SAM_SPEC 1.2).
        x = F.pad(x, (0, 0, 0, columns * s - w, 0, rows * s - h))
        x = x.view(b, rows, s, columns, s, c).transpose(2, 3).reshape(-1, s, s, c)
        x = self.attn(x).view(b, rows, columns, s, s, c).transpose(2, 3).reshape(b, rows * s, columns * s, c)
        return x[:, :h, :w]

    def _skip(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_path:
            return x
        keep = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop_path
        return x * keep / (1 - self.drop_path)


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin2(F.gelu(self.lin1(x)))
        return out


class _Attention(nn.Module):
    """Attention over a square grid with decomposed relative positions."""

    def __init__(self, dim: int, heads: int, grid: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid - 1, dim // heads))
        at = torch.arange(grid)
        self.register_buffer("offset", at[:, None] - at[None, :] + grid - 1, persistent=False)
        self.register_buffer("here", torch.eye(grid), persistent=False)

    offset: Tensor
    here: Tensor

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        d = c // self.heads
        q, k, v = self.qkv(x).view(b, h, w, 3, self.heads, d).permute(3, 0, 4, 1, 2, 5)  # each (B, heads, h, w, d)
        # The bias of query (i, j) on key (i', j') is q.Rh[i - i'] + q.Rw[j - j'], of the unscaled q. As a product it
        # is [q.Rh, q.Rw] . [1 at i', 1 at j']: h + w further dimensions of a head, exact in any attention kernel.
        up = torch.einsum("bnijd,ikd->bnijk", q, self.rel_pos_h[self.offset])
        across = torch.einsum("bnijd,jkd->bnijk", q, self.rel_pos_w[self.offset])
        here = self.here.to(k.dtype)
        row = here[:, None, :].expand(h, w, h).expand(*k.shape[:2], h, w, h)
        column = here[None, :, :].expand(h, w, w).expand(*k.shape[:2], h, w, w)
        q = torch.cat([q * d**-0.5, up, across], -1).flatten(2, 3)
        k = torch.cat([k, row, column], -1).flatten(2, 3)
        x = F.scaled_dot_product_attention(q, k, v.flatten(2, 3), scale=1.0)
        x = x.view(b, self.heads, h, w, d).permute(0, 2, 3, 1, 4).reshape(b, h, w, c)
        out: Tensor = self.proj(x)
        return out


def vit_b(image_size: int = 1024, drop_path: float = 0.0) -> Vit:
    """SAM's ViT-B: 12 blocks of width 768.

    Args:
        image_size: Side of the square frame in pixels.
        drop_path: Chance that a block is skipped in training, rising to this at the last (paper: 0.6).
    """
    return Vit(image_size, 768, 12, 12, (2, 5, 8, 11), drop_path=drop_path)


def vit_l(image_size: int = 1024, drop_path: float = 0.0) -> Vit:
    """SAM's ViT-L: 24 blocks of width 1024.

    Args:
        image_size: Side of the square frame in pixels.
        drop_path: Chance that a block is skipped in training, rising to this at the last (paper: 0.4).
    """
    return Vit(image_size, 1024, 24, 16, (5, 11, 17, 23), drop_path=drop_path)


def vit_h(image_size: int = 1024, drop_path: float = 0.0) -> Vit:
    """SAM's ViT-H: 32 blocks of width 1280, the paper's default.

    Args:
        image_size: Side of the square frame in pixels.
        drop_path: Chance that a block is skipped in training, rising to this at the last (paper: 0.4).
    """
    return Vit(image_size, 1280, 32, 16, (7, 15, 23, 31), drop_path=drop_path)
