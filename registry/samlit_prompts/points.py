"""Points, positive and negative (paper section 3, SAM_SPEC 1.4)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from PIL import ImageDraw
from PIL.Image import Image
from torch import Tensor, nn

from samlit.contracts import Frame, Prompt, Sparse
from samlit.masks import clicks
from samlit.structures import Ragged, Scene

__all__ = ["Points"]


class Points(Prompt):
    """Clicks on what is wanted (label 1) and on what is not (label 0).

    Values are (x, y, label), in pixels.

    Args:
        channels: Width C of the embedding.
    """

    name: ClassVar[str] = "points"
    option: ClassVar[str] = "point"
    padding: ClassVar[Literal["needs", "replaces", "ignores"]] = "needs"

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        self.background = nn.Embedding(1, channels)
        self.foreground = nn.Embedding(1, channels)
        self.not_a_point = nn.Embedding(1, channels)

    def encode(self, given: Ragged, frame: Frame) -> Sparse:
        """Position code of the pixel's middle, and a vector for the label: (P, N, 3) -> (P, N, C)."""
        code = frame.position(given.values[..., :2] + 0.5, frame.size)
        wanted = given.values[..., 2:] > 0.5
        return Sparse(code + torch.where(wanted, self.foreground.weight, self.background.weight), given.valid)

    def padding_token(self) -> Tensor:
        """The vector that stands for "not a point", without a position."""
        return self.not_a_point.weight[0]

    def simulate(self, truth: Tensor, predicted: Tensor | None, scene: Scene) -> Ragged:
        """Click in the error: anywhere in it while training, at its centre otherwise.

        Before the first answer all of the mask is missing, so the click falls into it. Where nothing is wrong, a
        training click confirms a pixel of the background (as SAM 2 does; the paper does not say, SAM_SPEC 7.7), and
        none is made otherwise.
        """
        predicted = torch.zeros_like(truth) if predicted is None else predicted
        if scene.training:
            wrong = truth ^ predicted
            perfect = ~wrong.flatten(1).any(1)
            xy, found = clicks.uniform(torch.where(perfect[:, None, None], ~truth, wrong), scene.generator)
            x, y = xy.unbind(1)
            label = truth[torch.arange(len(truth), device=truth.device), y, x]
        else:
            xy, label, found = clicks.centre(truth, predicted)
        return Ragged(torch.cat([xy, label[:, None]], 1)[:, None].float(), found[:, None])

    def parse(self, text: str) -> Tensor:
        """`X,Y` or `X,Y,LABEL`, label 1 (wanted, the default) or 0 (not wanted)."""
        try:
            x, y, *rest = (float(word) for word in text.split(","))
            (label,) = rest or (1.0,)
            if label not in (0, 1):
                raise ValueError
        except ValueError:
            raise ValueError(f"a point is X,Y or X,Y,LABEL with label 1 or 0, like 120,80,1; not {text!r}") from None
        return torch.tensor([x, y, label])

    def rescale(self, value: Tensor, scale: tuple[float, float], frame: tuple[int, int]) -> Tensor:
        """Move with the image."""
        return value * value.new_tensor([*scale, 1])

    def check(self, value: Tensor, size: tuple[int, int]) -> None:
        """A point lies on the image."""
        x, y = value[:2].tolist()
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            raise ValueError(
                f"the point ({x:g}, {y:g}) is outside the image, which is {size[1]} wide and {size[0]} high"
            )

    def draw(self, picture: Image, value: Tensor) -> None:
        """A green or a red dot with a white rim."""
        x, y, label = value.tolist()
        r = max(5.0, max(picture.size) / 60)
        ImageDraw.Draw(picture).ellipse(
            (x - r, y - r, x + r, y + r), fill=(40, 200, 90) if label > 0.5 else (230, 50, 50), outline="white", width=2
        )
