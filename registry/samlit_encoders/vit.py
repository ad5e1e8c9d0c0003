"""Plain ViT with window and global attention and decomposed relative positions, SAM's image encoder.

Paper section 3 and appendix A; ViTDet (arXiv 2203.16527); SAM_SPEC 1.2. Parameter names are the released ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recomputed

from samlit.contracts import Encoder
from samlit.layers import LayerNorm2d, neck
from samlit.structures import Embedding
from samlit_encoders._attention import Attention

__all__ = ["Vit", "VitB", "VitH", "VitL", "resized"]

BAND = 1024  # cells that run through a block together on a processor that does not train


class Vit(Encoder):
    """Plain ViT of any size, window and global blocks, relative positions.

    Weights of another `image_size` load, and images of any size that is a multiple of `patch` are encoded: absolute and
    relative positions are interpolated.

    Args:
        image_size: Side of the square frame in pixels that positions are learned for.
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
        drop_path: Chance that a branch of a block is skipped in training, 0 at the first block rising to this at the
            last.
        checkpoint: Keep only what goes into a block and compute the rest again for the gradient: a third more work, a
            fraction of the memory.
        early: Blocks, from 0, whose outputs are emitted as further maps (B, dim, h, w), after the stem's: the first
            global block's for the decoder `hq`.
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
        checkpoint: bool = False,
        early: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise ValueError(f"image_size {image_size} is not a multiple of the patch, {patch}")
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of the number of heads, {heads}")
        for name, blocks in (("global_blocks", global_blocks), ("early", early)):
            if outside := [i for i in blocks if not 0 <= i < depth]:
                raise ValueError(f"{name} {outside} are not among the {depth} blocks, 0 to {depth - 1}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path {drop_path} is not a chance from 0 to below 1")
        self.channels, self.stride, self.depth, self.checkpoint = channels, patch, depth, checkpoint
        self.early = tuple(early)
        grid = image_size // patch
        self.patch_embed = _Patches(dim, patch) if stem == "patch" else _Convolutions(dim, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, dim))
        self.blocks = nn.ModuleList(
            _Block(dim, heads, 0 if i in global_blocks else window, grid, mlp_ratio, drop_path * i / max(depth - 1, 1))
            for i in range(depth)
        )
        self.neck = neck(dim, channels)
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
        """Encode normalised images: (B, 3, H, W) float -> (B, C, h, w).

        Raises:
            ValueError: H or W is not a multiple of the patch.
        """
        if image.shape[-2] % self.stride or image.shape[-1] % self.stride:
            size = " x ".join(map(str, image.shape[-2:]))
            raise ValueError(f"vit: an image of {size} is not a multiple of the patch, {self.stride}")
        x, early = self.patch_embed(image)
        x = x + resized(self.pos_embed, x.shape[1:3])
        recompute = self.checkpoint and torch.is_grad_enabled()
        emitted: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks):
            x = recomputed(block, x, use_reentrant=False) if recompute else block(x)
            if i in self.early:
                emitted[i] = x.permute(0, 3, 1, 2)
        x = x.permute(0, 3, 1, 2)
        finer = () if self.detail is None else self.detail(x, *early)
        return Embedding(self.neck(x), (*finer, *(emitted[i] for i in self.early)))

    def convert(self, state: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
        """A masked autoencoder's weights, which SAM started from, as this encoder's."""
        if layout != "mae":
            return super().convert(state, layout)
        from samlit_encoders._mae import from_mae

        return from_mae(state, self)

    def shards(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)

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


def resized(positions: Tensor, size: Sequence[int]) -> Tensor:
    """Positions of cells (1, rows, columns, dim) for a grid of another size, as ViTDet: (1, *size, dim)."""
    if positions.shape[1:3] == tuple(size):
        return positions
    maps = F.interpolate(positions.permute(0, 3, 1, 2), tuple(size), mode="bicubic", align_corners=False)
    return maps.permute(0, 2, 3, 1)


def _fit_positions(vit: Vit, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Bring positions that were learned on another grid to this one's, before they are loaded."""
    key = f"{prefix}pos_embed"
    if key in state and state[key].ndim == 4:
        state[key] = resized(state[key].float(), vit.pos_embed.shape[1:3]).to(state[key].dtype)
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
        self.attn = Attention(dim, heads, window or grid, window)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = _FeedForward(dim, int(dim * mlp_ratio))
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        if self.window:  # no window needs to know of those above and below it
            return self._in_bands(lambda band: self._feed(self._look(band)), x, self.window)
        return self._in_bands(self._feed, self._look(x), 1)

    def _look(self, x: Tensor) -> Tensor:
        return x + self._skip(self.attn(self.norm1(x)))

    def _feed(self, x: Tensor) -> Tensor:
        return x + self._skip(self.mlp(self.norm2(x)))

    def _in_bands(self, run: Callable[[Tensor], Tensor], x: Tensor, unit: int) -> Tensor:
        """Run on bands of rows that a processor's cache holds; each a multiple of `unit` rows but for the last.

        Not in half precision: there is less to hold, and weights are packed for the processor's units at each call.
        """
        b, h, w, _ = x.shape
        wide = x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if self.training or not wide or b * h * w <= BAND or torch.compiler.is_compiling():
            return run(x)
        rows = max(BAND // (w * unit), 1) * unit
        images = [torch.cat([run(band) for band in torch.split(x[i : i + 1], rows, 1)], 1) for i in range(b)]
        return torch.cat(images) if b > 1 else images[0]

    def _skip(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_path:
            return x
        keep = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop_path  # of each image on its own
        return x * keep / (1 - self.drop_path)


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin2(F.gelu(self.lin1(x)))
        return out


class VitB(Vit):
    """SAM's ViT-B: 12 blocks of width 768.

    Args:
        image_size: Side of the square frame in pixels that positions are learned for.
        drop_path: Chance that a branch of a block is skipped in training, rising to this at the last (paper: 0.6).
        checkpoint: Compute a block again for its gradient instead of keeping what it computed.
        early: Blocks whose outputs are emitted as well, for the decoder `hq`.
    """

    def __init__(
        self, image_size: int = 1024, drop_path: float = 0.0, checkpoint: bool = False, early: Sequence[int] = ()
    ) -> None:
        super().__init__(
            image_size, 768, 12, 12, (2, 5, 8, 11), drop_path=drop_path, checkpoint=checkpoint, early=early
        )


class VitL(Vit):
    """SAM's ViT-L: 24 blocks of width 1024.

    Args:
        image_size: Side of the square frame in pixels that positions are learned for.
        drop_path: Chance that a branch of a block is skipped in training, rising to this at the last (paper: 0.4).
        checkpoint: Compute a block again for its gradient instead of keeping what it computed.
        early: Blocks whose outputs are emitted as well, for the decoder `hq`.
    """

    def __init__(
        self, image_size: int = 1024, drop_path: float = 0.0, checkpoint: bool = False, early: Sequence[int] = ()
    ) -> None:
        super().__init__(
            image_size, 1024, 24, 16, (5, 11, 17, 23), drop_path=drop_path, checkpoint=checkpoint, early=early
        )


class VitH(Vit):
    """SAM's ViT-H: 32 blocks of width 1280, the paper's default.

    Args:
        image_size: Side of the square frame in pixels that positions are learned for.
        drop_path: Chance that a branch of a block is skipped in training, rising to this at the last (paper: 0.4).
        checkpoint: Compute a block again for its gradient instead of keeping what it computed.
        early: Blocks whose outputs are emitted as well, for the decoder `hq`.
    """

    def __init__(
        self, image_size: int = 1024, drop_path: float = 0.0, checkpoint: bool = False, early: Sequence[int] = ()
    ) -> None:
        super().__init__(
            image_size, 1280, 32, 16, (7, 15, 23, 31), drop_path=drop_path, checkpoint=checkpoint, early=early
        )
