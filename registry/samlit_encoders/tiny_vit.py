"""TinyViT, MobileSAM's image encoder (arXiv 2207.10666, arXiv 2306.14289).

Parameter names are the released ones below `image_encoder.`, with nothing renamed. The classification head that the
official file brings along (`norm_head.*`, `head.*`) has no place here and is left out when a state is loaded. timm's
TinyViT is the same network under other names and at a stride of 32; in evaluation it keeps old attention biases when
weights change. The tests hold this one to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samlit.contracts import Encoder
from samlit.layers import hold_norms, neck
from samlit.structures import Embedding

__all__ = ["TinyVit"]


class TinyVit(Encoder):
    """TinyViT of any size, MobileSAM's encoder of 5 million weights by default.

    Convolutions to a quarter of a cell, then attention in windows. It has no absolute positions: weights serve any
    image size.

    Args:
        image_size: Side of the square frame in pixels, a multiple of 16.
        dims: Widths of the convolutional stage and the three of attention.
        depths: Blocks of each stage.
        heads: Attention heads of the last three stages.
        windows: Sides of their windows in cells.
        channels: Width C of the image embedding.
        mlp_ratio: Hidden width of an MLP over its stage's.
        drop_path: Chance that a block is skipped in training, 0 at the first block rising to this at the last.
        freeze_norms: Whether batch norms keep their stored statistics in training. Batches of few images need it, and
            so do weights whose norms are folded into their convolutions: their statistics are stored as 0 and 1.
        detail: Whether the finer maps of the first two stages are given to a decoder with `high_res`.
        early: Whether what goes into the third stage is an early map (B, dims[2], h, w) too, for the decoder `hq`.
    """

    def __init__(
        self,
        image_size: int = 1024,
        dims: Sequence[int] = (64, 128, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (4, 5, 10),
        windows: Sequence[int] = (7, 14, 7),
        channels: int = 256,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        freeze_norms: bool = False,
        detail: bool = False,
        early: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.stride, self.freeze_norms, self.early = channels, 16, freeze_norms, early
        if image_size % self.stride:
            raise ValueError(f"image_size {image_size} is not a multiple of {self.stride}")
        if (len(dims), len(depths), len(heads), len(windows)) != (4, 4, 3, 3):
            raise ValueError("there are four stages: give 4 dims, 4 depths, 3 heads and 3 windows")
        if wrong := [(dim, count) for dim, count in zip(dims[1:], heads, strict=True) if dim % count]:
            raise ValueError("dim {} is not a multiple of the number of heads, {}".format(*wrong[0]))
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path {drop_path} is not a chance from 0 to below 1")
        self.depths = tuple(depths)
        chances = iter(torch.linspace(0, drop_path, sum(depths)).tolist())
        self.patch_embed = _Stem(dims[0])
        stages = [_Stage(_Convolution(dims[0], next(chances)) for _ in range(depths[0]))]
        for dim, depth, count, window in zip(dims[1:], depths[1:], heads, windows, strict=True):
            stages.append(_Stage(_Block(dim, count, window, mlp_ratio, next(chances)) for _ in range(depth)))
        self.layers = nn.ModuleList(stages)
        for i, (before, after) in enumerate(pairwise(dims)):
            # The last stage stays at a stride of 16, MobileSAM's one change of TinyViT.
            stages[i].downsample = _Downsample(before, after, stride=2 if i < 2 else 1)
        self.neck = neck(dims[-1], channels)
        self.detail = None
        if detail:
            self.detail = nn.ModuleList([nn.Conv2d(dims[0], channels // 8, 1), nn.Conv2d(dims[1], channels // 4, 1)])
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.register_load_state_dict_pre_hook(_without_head)  # type: ignore[no-untyped-call]

    def forward(self, image: Tensor) -> Embedding:
        """Encode normalised images: (B, 3, H, W) float -> (B, C, h, w)."""
        x = self.patch_embed(image)
        maps, early = [], []
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, _Stage)
            if i == 2 and self.early:
                early.append(x)
            x = layer(x)
            maps.append(x)
            if layer.downsample is not None:
                x = layer.downsample(x)
        finer = () if self.detail is None else tuple(out(map_) for out, map_ in zip(self.detail, maps, strict=False))
        return Embedding(self.neck(x), (*finer, *early))

    def train(self, mode: bool = True) -> TinyVit:
        """Switch between training and evaluation; frozen norms stay in evaluation."""
        super().train(mode)
        if self.freeze_norms:
            hold_norms(self)
        return self

    def layer_of(self, parameter: str) -> tuple[int, int]:
        """The stem first, then a layer a block, with the step to the next stage in its last one, then the neck."""
        layers = sum(self.depths) + 2
        if parameter.startswith("patch_embed."):
            return 0, layers
        if not parameter.startswith("layers."):
            return layers - 1, layers
        _, stage, what, number, *_ = parameter.split(".")
        block = int(number) if what == "blocks" else self.depths[int(stage)] - 1
        return 1 + sum(self.depths[: int(stage)]) + block, layers


def _without_head(encoder: TinyVit, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Leave out the ImageNet classifier of the official file before a state is loaded."""
    for key in [key for key in state if key.startswith((f"{prefix}norm_head.", f"{prefix}head."))]:
        del state[key]


class _Normed(nn.Module):
    """A convolution without bias and its batch norm; a `quiet` one begins as nothing."""

    def __init__(self, before: int, after: int, kernel: int = 1, stride: int = 1, groups: int = 1, quiet: bool = False):
        super().__init__()
        self.c = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(after)
        nn.init.constant_(self.bn.weight, 0.0 if quiet else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.c(x))
        return out


class _Stem(nn.Module):
    """(B, 3, H, W) to (B, dim, H / 4, W / 4)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(_Normed(3, dim // 2, 3, 2), nn.GELU(), _Normed(dim // 2, dim, 3, 2))

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.seq(image)
        return out


class _Stage(nn.Module):
    """Blocks of one width, and the step to the next stage, which the encoder takes."""

    def __init__(self, blocks: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class _Skip(nn.Module):
    """What both kinds of block share: in training, a branch is left out now and then."""

    drop_path: float

    def skip(self, x: Tensor) -> Tensor:
        """Scale or drop a branch (B, ...), image by image."""
        if not self.training or not self.drop_path:
            return x
        keep = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop_path
        return x * keep / (1 - self.drop_path)


class _Convolution(_Skip):
    """Widen, convolve each channel, narrow, add; (B, dim, h, w)."""

    def __init__(self, dim: int, drop_path: float, widen: int = 4) -> None:
        super().__init__()
        self.conv1 = _Normed(dim, widen * dim)
        self.conv2 = _Normed(widen * dim, widen * dim, 3, groups=widen * dim)
        self.conv3 = _Normed(widen * dim, dim, quiet=True)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return F.gelu(x + self.skip(branch))


class _Downsample(nn.Module):
    """To the next stage's width, and to half the map where the stride is 2."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _Normed(before, after)
        self.conv2 = _Normed(after, after, 3, stride, groups=after)
        self.conv3 = _Normed(after, after)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return out


class _Block(_Skip):
    """Attention in windows, a convolution of each channel, an MLP; (B, dim, h, w)."""

    def __init__(self, dim: int, heads: int, window: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.window, self.drop_path = window, drop_path
        self.attn = _Attention(dim, heads, window)
        self.local_conv = _Normed(dim, dim, 3, groups=dim)
        self.mlp = _FeedForward(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = x + self.skip(self._attend(x))
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.skip(self.mlp(x))
        return x.permute(0, 3, 1, 2)

    def _attend(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        s = self.window
        rows, columns = -(-h // s), -(-w // s)
        # Zeros before the norm, and not masked, as the released weights were trained: a padded cell is the norm's bias.
        x = F.pad(x, (0, 0, 0, columns * s - w, 0, rows * s - h))
        x = x.reshape(b, rows, s, columns, s, c).transpose(2, 3).reshape(-1, s * s, c)
        x = self.attn(x).view(b, rows, columns, s, s, c).transpose(2, 3).reshape(b, rows * s, columns * s, c)
        return x[:, :h, :w]


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return out


class _Attention(nn.Module):
    """Attention within a window, with a bias for each distance in rows and columns."""

    offset: Tensor
    qkv_by_head = True

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        at = torch.arange(window)
        apart = (at[:, None] - at[None, :]).abs()
        offset = apart[:, None, :, None] * window + apart[None, :, None, :]
        self.register_buffer("offset", offset.reshape(window**2, window**2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(windows, cells, dim), the same."""
        # The released weights keep a head's query, key and value side by side.
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        bias = self.attention_biases[:, self.offset].to(q.dtype)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        out: Tensor = self.proj(x.transpose(1, 2).flatten(2))
        return out
