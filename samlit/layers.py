"""What plug-ins share: layer norm over channels, SAM's neck, MLP, and the random Fourier position code."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samlit.kept import Kept

__all__ = ["MLP", "LayerNorm2d", "PositionCode", "hold_norms", "neck"]


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of each pixel (SAM_SPEC 1.2).

    Args:
        channels: C of the maps (B, C, h, w).
        eps: Added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, h, w)."""
        return F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps).permute(
            0, 3, 1, 2
        )


def neck(dim: int, channels: int) -> nn.Sequential:
    """SAM's neck (SAM_SPEC 1.2): a backbone's map (B, dim, h, w) to the image embedding (B, C, h, w)."""
    return nn.Sequential(
        nn.Conv2d(dim, channels, 1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels),
    )


def hold_norms(module: nn.Module) -> None:
    """Keep the batch norms of a module at their stored statistics until it is switched to training again."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


class MLP(nn.Module):
    """Linear layers with ReLU between (SAM_SPEC 1.5, hypernetworks and IoU head).

    Args:
        widths: Of the input, each hidden layer, and the output.
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., first width) to (..., last width)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


class PositionCode(nn.Module):
    """Random Fourier code of positions, one matrix for points, boxes and cells (SAM_SPEC 1.4).

    Args:
        channels: C, even.
        scale: Standard deviation of the random matrix.
    """

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, channels: int, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", scale * torch.randn(2, channels // 2))
        self._kept = Kept()

    def forward(self, xy: Tensor, size: tuple[int, int]) -> Tensor:
        """Encode positions: (..., 2) in units of pixels of a map of `size` (rows, columns) -> (..., C), in float32.

        Positions are continuous: the middle of pixel (0, 0) is (0.5, 0.5).
        """
        extent = torch.tensor([size[1], size[0]], dtype=torch.float32, device=xy.device)
        with torch.autocast(xy.device.type, enabled=False):
            angle = 2 * math.pi * ((2 * (xy.float() / extent) - 1) @ self.positional_encoding_gaussian_matrix)
            return torch.cat([angle.sin(), angle.cos()], -1)

    def grid(self, size: tuple[int, int]) -> Tensor:
        """Code of a map's cell centres: (C, rows, columns)."""
        matrix = self.positional_encoding_gaussian_matrix

        def make() -> Tensor:
            y = torch.arange(size[0], device=matrix.device) + 0.5
            x = torch.arange(size[1], device=matrix.device) + 0.5
            xy = torch.stack([x.expand(size), y[:, None].expand(size)], -1)
            code: Tensor = self(xy, size)
            return code.permute(2, 0, 1).contiguous()

        return self._kept.get(f"grid {size}", (matrix,), make)
