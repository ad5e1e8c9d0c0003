"""Boxes (paper section 3, SAM_SPEC 1.4)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from PIL import ImageDraw
from PIL.Image import Image
from torch import Tensor, nn

from samlit.contracts import Frame, Prompt, Sparse
from samlit.structures import Ragged, Scene

__all__ = ["Boxes"]


class Boxes(Prompt):
    """A box around what is wanted.

    Values are xyxy in pixels, both corners inside the box: the box of one pixel (5, 7) is (5, 7, 5, 7).

    Args:
        channels: Width C of the embedding.
        noise: Standard deviation of a simulated coordinate, as a share of the box's side (paper appendix A).
        max_noise: Most that a simulated coordinate moves, in pixels of a frame of 1024; it scales with the frame.
            The paper does not say whether its 20 pixels bound the deviation or the move: here, the move.
        spread: Whether a coordinate moves by a "gaussian" chance, as in the paper, or a "uniform" one up to `noise` and
            `max_noise`, as in SAM 2.
        ambiguous: Whether a box alone is answered with three masks, as in the paper. Without, it counts as its two
            corners and is answered with one mask, as in SAM 2.
    """

    name: ClassVar[str] = "boxes"
    option: ClassVar[str] = "box"
    padding: ClassVar[Literal["needs", "replaces", "ignores"]] = "replaces"

    def __init__(
        self,
        channels: int = 256,
        noise: float = 0.1,
        max_noise: float = 20.0,
        ambiguous: bool = True,
        spread: Literal["gaussian", "uniform"] = "gaussian",
    ) -> None:
        super().__init__()
        self.noise, self.max_noise, self.ambiguous, self.spread = noise, max_noise, ambiguous, spread
        self.top_left = nn.Embedding(1, channels)
        self.bottom_right = nn.Embedding(1, channels)

    def encode(self, given: Ragged, frame: Frame) -> Sparse:
        """Two tokens a box, its corners: (P, N, 4) -> (P, 2N, C)."""
        corners = frame.position(given.values.view(*given.values.shape[:-1], 2, 2) + 0.5, frame.size)  # (P, N, 2, C)
        corners = corners + torch.cat([self.top_left.weight, self.bottom_right.weight])
        return Sparse(corners.flatten(1, 2), given.valid.repeat_interleave(2, 1))

    def simulate(self, truth: Tensor, predicted: Tensor | None, scene: Scene) -> Ragged:
        """The mask's tight box, with noise while training; kept on the frame, corners in order."""
        h, w = truth.shape[-2:]
        columns, rows = truth.any(1), truth.any(2)
        box = torch.stack(
            [_first(columns), _first(rows), w - 1 - _first(columns.flip(1)), h - 1 - _first(rows.flip(1))], 1
        ).float()
        if scene.training:
            side = (box[:, 2:] - box[:, :2] + 1).repeat(1, 2)
            most = self.max_noise * max(h, w) / 1024
            if self.spread == "uniform":
                move = 2 * torch.rand(box.shape, device=box.device, generator=scene.generator) - 1
                box = box + move * (self.noise * side).clamp_max(most)
            else:
                move = torch.randn(box.shape, device=box.device, generator=scene.generator) * self.noise * side
                box = box + move.clamp(-most, most)
            box = torch.cat([torch.minimum(box[:, :2], box[:, 2:]), torch.maximum(box[:, :2], box[:, 2:])], 1)
            box = box.clamp_min(0).minimum(box.new_tensor([w - 1, h - 1, w - 1, h - 1]))
        return Ragged(box[:, None], rows.any(1)[:, None])

    def count(self, given: Ragged) -> Tensor:
        """One prompt a box, or its two corners."""
        boxes = given.valid.sum(1)
        return boxes if self.ambiguous else 2 * boxes

    def parse(self, text: str) -> Tensor:
        """`X0,Y0,X1,Y1`: two opposite corners."""
        try:
            x0, y0, x1, y1 = (float(word) for word in text.split(","))
        except ValueError:
            raise ValueError(f"a box is X0,Y0,X1,Y1, two opposite corners, like 20,30,200,180; not {text!r}") from None
        return torch.tensor([min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)])

    def rescale(self, value: Tensor, scale: tuple[float, float], frame: tuple[int, int]) -> Tensor:
        """Move with the image."""
        return value * value.new_tensor(scale * 2)

    def check(self, value: Tensor, size: tuple[int, int]) -> None:
        """A box touches the image."""
        x0, y0, x1, y1 = value.tolist()
        if not value.isfinite().all() or x1 < 0 or y1 < 0 or x0 >= size[1] or y0 >= size[0]:
            raise ValueError(
                f"the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) is outside the image, "
                f"which is {size[1]} wide and {size[0]} high"
            )

    def draw(self, picture: Image, value: Tensor) -> None:
        """A yellow frame."""
        x0, y0, x1, y1 = value.tolist()
        ImageDraw.Draw(picture).rectangle((x0, y0, x1, y1), outline=(255, 210, 40), width=2)


def _first(where: Tensor) -> Tensor:
    """(P, L) bool to the first index that holds, (P,) int64."""
    return where.to(torch.uint8).argmax(1)
