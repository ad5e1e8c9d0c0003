"""Masks as prompts, dense (paper section 3, SAM_SPEC 1.4)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from samlit.contracts import Factored, Frame, Prompt
from samlit.layers import LayerNorm2d
from samlit.loading import images
from samlit.structures import Ragged, Scene

__all__ = ["Masks"]


class Masks(Prompt):
    """A rough mask: the low-res logits of an earlier answer, or a mask from a file.

    Values are logits over the whole frame, (4h, 4w).

    Args:
        channels: Width C of the embedding.
        hidden: Width before the last convolution; a quarter of it after the first.
        confidence: Logits of a mask that comes without any, inside it; the negative of it outside.
    """

    name: ClassVar[str] = "masks"
    option: ClassVar[str] = "mask"

    def __init__(self, channels: int = 256, hidden: int = 16, confidence: float = 10.0) -> None:
        super().__init__()
        self.confidence = confidence
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, hidden // 4, 2, 2),
            LayerNorm2d(hidden // 4),
            nn.GELU(),
            nn.Conv2d(hidden // 4, hidden, 2, 2),
            LayerNorm2d(hidden),
            nn.GELU(),
            nn.Conv2d(hidden, channels, 1),
        )
        self.no_mask = nn.Embedding(1, channels)

    def encode(self, given: Ragged, frame: Frame) -> Factored:
        """The last mask given in each row: (P, N, 4h, 4w) -> (P, h, w, hidden), and what makes (P, C, h, w) of it."""
        last = (given.valid.cumsum(1) * given.valid).argmax(1)
        logits = given.values[torch.arange(last.shape[0], device=last.device), last][:, None]
        size = (4 * frame.grid[0], 4 * frame.grid[1])
        if logits.shape[-2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        # The last convolution is a linear map of each cell's few numbers.
        *before, last_one = self.mask_downscaling
        assert isinstance(last_one, nn.Conv2d)
        assert last_one.bias is not None
        x = logits
        for module in before:
            x = module(x)
        return Factored(x.permute(0, 2, 3, 1), last_one.weight.flatten(1), last_one.bias, given.valid.any(1))

    def missing(self) -> Tensor:
        """The vector that stands for "no mask" in every cell."""
        return self.no_mask.weight[0]

    def simulate(self, truth: Tensor, predicted: Tensor | None, scene: Scene) -> Ragged:
        """A mask as a person would bring it: the last answer, or before one a coarse version of the truth."""
        if predicted is None:
            coarse = F.avg_pool2d(truth[:, None].float(), 8, 8, ceil_mode=True) > 0.5
            predicted = F.interpolate(coarse.float(), truth.shape[-2:], mode="nearest")[:, 0] > 0.5
        return Ragged.of((predicted[:, None].float() * 2 - 1) * self.confidence)

    def parse(self, text: str) -> Tensor:
        """The name of an image file, as large as the image: what is not black is the mask."""
        return torch.from_numpy(images.read(text).any(2)).float()

    def check(self, value: Tensor, size: tuple[int, int]) -> None:
        """A mask is as large as its image."""
        if tuple(value.shape) != tuple(size):
            raise ValueError(
                f"the mask is {value.shape[1]} wide and {value.shape[0]} high and the image {size[1]} wide and "
                f"{size[0]} high: they must be equal"
            )

    def rescale(self, value: Tensor, scale: tuple[float, float], frame: tuple[int, int]) -> Tensor:
        """A mask (rows, columns) of the image, 0 or 1, to logits over the frame."""
        size = (round(value.shape[0] * scale[1]), round(value.shape[1] * scale[0]))
        small = F.interpolate(value[None, None], size, mode="bilinear", align_corners=False, antialias=True)
        logits = (small * 2 - 1) * self.confidence
        return F.pad(logits, (0, frame[1] - size[1], 0, frame[0] - size[0]), value=-self.confidence)[0, 0]

    def draw(self, picture: Image.Image, value: Tensor) -> None:
        """A violet tint; the value is (rows, columns) of the picture, inside where it is above 0."""
        inside = Image.fromarray(((value > 0).numpy() * 90).astype(np.uint8)).resize(picture.size)
        picture.paste(Image.new("RGB", picture.size, (150, 80, 220)), mask=inside)
