"""Scribbles: strokes over what is wanted and over what is not."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from PIL import ImageDraw
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F

from samlit.contracts import Dense, Frame, Prompt, Sparse
from samlit.layers import LayerNorm2d
from samlit.masks import clicks
from samlit.structures import Ragged, Scene

__all__ = ["Scribbles"]

TURNS = 8
"""Directions that a simulated stroke looks into at every step."""


class Scribbles(Prompt):
    """Strokes on what is wanted (label 1) and on what is not (label 0).

    A value is a line through any number of points, (points, 3): x, y in pixels, and the label in each of them. In the
    frame it is a fixed number of points, at equal distances along the line.

    A simulated stroke is a walk through the error from a pixel of it to both sides: at each step it looks into several
    directions around its last one and takes one whose way stays inside, rather straight on than not, rather deep
    inside than along an edge.

    Args:
        channels: Width C of the embedding.
        points: Points of a stroke in the frame.
        length: Of a simulated stroke, over the square root of its region's area; in training from a quarter of it up.
        dense: Whether strokes are drawn into a map that is added to the image embedding; otherwise each of their
            points is a token.
    """

    name: ClassVar[str] = "scribbles"
    option: ClassVar[str] = "scribble"

    def __init__(self, channels: int = 256, points: int = 9, length: float = 1.2, dense: bool = False) -> None:
        super().__init__()
        if points < 3 or points % 2 == 0:
            raise ValueError(
                f"points: an odd number from 3, for a stroke goes to both sides of its middle; not {points}"
            )
        self.points, self.length, self.dense = points, length, dense
        if dense:
            hidden = max(channels // 16, 4)
            last = nn.Conv2d(4 * hidden, channels, 1)
            self.drawing = nn.Sequential(
                nn.Conv2d(2, hidden, 2, 2),
                LayerNorm2d(hidden),
                nn.GELU(),
                nn.Conv2d(hidden, 4 * hidden, 2, 2),
                LayerNorm2d(4 * hidden),
                nn.GELU(),
                last,
            )
            # A model that was trained without strokes begins as it was.
            nn.init.zeros_(last.weight)
            assert last.bias is not None
            nn.init.zeros_(last.bias)
        else:
            self.background = nn.Embedding(1, channels)
            self.foreground = nn.Embedding(1, channels)

    def encode(self, given: Ragged, frame: Frame) -> Sparse | Dense:
        """Tokens of the points, (P, N, points, 3) -> (P, N * points, C), or a map of the strokes, (P, C, h, w)."""
        if self.dense:
            grid = (4 * frame.grid[0], 4 * frame.grid[1])
            return Dense(self.drawing(_draw(given, frame.size, grid)), given.valid.any(1))
        code = frame.position(given.values[..., :2] + 0.5, frame.size)
        code = code + torch.where(given.values[..., 2:] > 0.5, self.foreground.weight, self.background.weight)
        return Sparse(code.flatten(1, 2), given.valid.repeat_interleave(self.points, 1))

    def simulate(self, truth: Tensor, predicted: Tensor | None, scene: Scene) -> Ragged:
        """A stroke through the error: from anywhere in it while training, otherwise from its deepest place.

        As with points, before the first answer all of the mask is the error, and where nothing is wrong a training
        stroke confirms some of the background.
        """
        predicted = torch.zeros_like(truth) if predicted is None else predicted
        rows = torch.arange(len(truth), device=truth.device)
        wrong = truth ^ predicted
        if scene.training:
            wrong = torch.where(wrong.flatten(1).any(1)[:, None, None], wrong, ~truth)
            xy, found = clicks.uniform(wrong, scene.generator)
            label = truth[rows, xy[:, 1], xy[:, 0]]
        else:
            xy, wanted, found = clicks.centre(truth, predicted)
            label = wanted > 0
        region = wrong & (truth == label[:, None, None])
        line = self._walk(region, xy, scene)
        labels = label[:, None, None].expand(-1, self.points, 1)
        return Ragged(torch.cat([line, labels], 2)[:, None], found[:, None])

    def _walk(self, region: Tensor, start: Tensor, scene: Scene) -> Tensor:
        """A line inside each region (P, H, W) with its middle at `start` (P, 2): (P, points, 2) float.

        All regions at once, and nothing waits for the device.
        """
        side = region.sum((1, 2)).sqrt() * self.length
        noise = 0.0
        if scene.training:
            noise = 1.0
            side = side * (0.25 + 0.75 * self._random(start, (len(start),), scene))
        step = (side / (self.points - 1)).clamp_min(1.0)
        # How deep inside a pixel lies, roughly: the share of the region around it.
        wide = 2 * (max(region.shape[-2:]) // 24) + 1
        depth = region[:, None].float()
        for window in ((wide, 1), (1, wide)):
            depth = F.avg_pool2d(depth, window, 1, (window[0] // 2, window[1] // 2))
        at = start.float()
        angle = torch.arange(2 * TURNS, device=at.device) * (math.pi / TURNS)
        ahead = self._choose(region, depth[:, 0], at, angle.expand(len(at), -1), step, noise, scene)
        halves = []
        for heading in (ahead, ahead + math.pi):
            spot, line = at, []
            for _ in range(self.points // 2):
                turn = torch.linspace(-math.pi / 2, math.pi / 2, TURNS + 1, device=at.device)
                heading = self._choose(region, depth[:, 0], spot, heading[:, None] + turn, step, noise, scene)
                there = _ahead(spot, heading, step)
                spot = torch.where(_inside(region, spot, there)[:, None], there, spot)
                line.append(spot)
            halves.append(line)
        return torch.stack([*reversed(halves[1]), at, *halves[0]], 1)

    def _choose(
        self, region: Tensor, depth: Tensor, at: Tensor, angles: Tensor, step: Tensor, noise: float, scene: Scene
    ) -> Tensor:
        """Of each row's angles (P, A) one to go on with: (P,)."""
        there = _ahead(at[:, None], angles, step[:, None])
        score = _look(depth, there) - 0.3 * torch.linspace(-1, 1, angles.shape[1], device=at.device).abs()
        if noise:
            score = score + noise * 0.4 * self._random(at, angles.shape, scene)
        score = score - 10.0 * ~_inside(region, at[:, None], there)
        return angles.gather(1, score.argmax(1, keepdim=True))[:, 0]

    @staticmethod
    def _random(like: Tensor, shape: tuple[int, ...], scene: Scene) -> Tensor:
        return torch.rand(shape, device=like.device, generator=scene.generator)

    def parse(self, text: str) -> Tensor:
        """`X,Y;X,Y;...` or `X,Y;X,Y;...,LABEL`: a line, with label 1 (wanted, the default) or 0 (not wanted)."""
        try:
            places = [[float(word) for word in place.split(",")] for place in text.strip(" ;").split(";")]
            label = places[-1].pop() if len(places[-1]) == 3 else 1.0
            if label not in (0, 1) or any(len(place) != 2 for place in places):
                raise ValueError
        except ValueError:
            raise ValueError(
                "a scribble is X,Y;X,Y;... or X,Y;X,Y;...,LABEL with label 1 or 0, like '20,30;60,35;90,80,0'; "
                f"not {text!r}"
            ) from None
        return torch.tensor([[x, y, label] for x, y in places])

    def rescale(self, value: Tensor, scale: tuple[float, float], frame: tuple[int, int]) -> Tensor:
        """Move with the image, and make of any number of points the stroke's own."""
        line = value * value.new_tensor([*scale, 1])
        along = F.pad((line[1:, :2] - line[:-1, :2]).norm(dim=1).cumsum(0), (1, 0))
        wanted = torch.linspace(0, 1, self.points, dtype=value.dtype) * along[-1]
        after = torch.searchsorted(along, wanted).clamp(1 if len(line) > 1 else 0, len(line) - 1)
        before = (after - 1).clamp_min(0)
        share = (wanted - along[before]) / (along[after] - along[before]).clamp_min(1e-6)
        points = line[before] + (line[after] - line[before]) * share[:, None].clamp(0, 1)
        points[:, 2] = line[0, 2]
        return points

    def check(self, value: Tensor, size: tuple[int, int]) -> None:
        """A stroke lies on the image and has one label."""
        if value.ndim != 2 or value.shape[1] != 3 or not len(value):
            raise ValueError(f"a scribble is (points, 3): x, y and label of each; not {tuple(value.shape)}")
        inside = (value[:, :2] >= 0) & (value[:, :2] < value.new_tensor([size[1], size[0]]))
        for x, y in value[~inside.all(1), :2].tolist():
            raise ValueError(
                f"the scribble's point ({x:g}, {y:g}) is outside the image, which is {size[1]} wide and {size[0]} high"
            )
        if set(value[:, 2].tolist()) not in ({0.0}, {1.0}):
            raise ValueError("a scribble has one label, 1 or 0, the same in all of its points")

    def draw(self, picture: Image, value: Tensor) -> None:
        """A green or a red line with a white rim."""
        line = [(x, y) for x, y in value[:, :2].tolist()]
        width = max(4, round(max(picture.size) / 120))
        colour = (40, 200, 90) if value[0, 2] > 0.5 else (230, 50, 50)
        pen = ImageDraw.Draw(picture)
        for reach, ink in ((width + 3, "white"), (width, colour)):
            pen.line(line, fill=ink, width=reach, joint="curve")
            for x, y in (line[0], line[-1]):
                pen.ellipse((x - reach / 2, y - reach / 2, x + reach / 2, y + reach / 2), fill=ink)


def _ahead(at: Tensor, angle: Tensor, step: Tensor) -> Tensor:
    """From places (..., 2) a step into a direction: (..., 2)."""
    return at + torch.stack([angle.cos(), angle.sin()], -1) * step[..., None]


def _look(maps: Tensor, xy: Tensor) -> Tensor:
    """What maps (P, H, W) hold at places (P, ..., 2) (x, y), zero outside them: (P, ...)."""
    h, w = maps.shape[-2:]
    x, y = xy.round().long().unbind(-1)
    outside = (x < 0) | (y < 0) | (x >= w) | (y >= h)
    rows = torch.arange(len(maps), device=maps.device).view(-1, *(1,) * (x.ndim - 1))
    return maps[rows, y.clamp(0, h - 1), x.clamp(0, w - 1)].masked_fill(outside, 0)


def _inside(region: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Whether the way from one place to another, (P, ..., 2) each, stays in a region (P, H, W): (P, ...) bool."""
    share = torch.arange(1, 5, device=end.device) / 4
    way = start[..., None, :] + (end - start)[..., None, :] * share[:, None]
    return _look(region, way).all(-1)


def _draw(given: Ragged, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Strokes (P, N, points, 3) of a frame of `size` as two maps, of wanted and not wanted: (P, 2, rows, columns).

    1 on the line, falling to 0 within two pixels of the map; segment after segment, for all at once are a lot.
    """
    values, valid = given
    scale = values.new_tensor([grid[1] / size[1], grid[0] / size[0]])
    lines = (values[..., :2] + 0.5) * scale
    y = torch.arange(grid[0], device=values.device, dtype=values.dtype)[:, None] + 0.5
    x = torch.arange(grid[1], device=values.device, dtype=values.dtype) + 0.5
    drawn = values.new_zeros(len(values), 2, *grid)
    for n in range(values.shape[1]):
        nearest = values.new_full((len(values), *grid), torch.inf)
        for k in range(values.shape[2] - 1):
            (ax, ay), (bx, by) = (lines[:, n, i].t()[..., None, None] for i in (k, k + 1))
            dx, dy = bx - ax, by - ay
            share = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy).clamp_min(1e-6)).clamp(0, 1)
            nearest = torch.minimum(nearest, (x - ax - share * dx).square() + (y - ay - share * dy).square())
        ink = (1.5 - nearest.sqrt() * 0.75).clamp(0, 1) * valid[:, n, None, None]
        wanted = values[:, n, 0, 2, None, None] > 0.5
        drawn = torch.maximum(drawn, torch.stack([ink * wanted, ink * ~wanted], 1))
    return drawn
