"""Where a procedural scene is painted: a cluttered ground, textured and shaded polygons, then light and noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import cv2
import numpy as np
import numpy.typing as npt

from samlit_sources import _patterns
from samlit_sources._patterns import COLORS, LOOKS, PATTERNS, TILE, Color

__all__ = ["OVERSAMPLING", "Canvas", "Material"]

OVERSAMPLING = 2
"""Pixels of the canvas a pixel of the picture, each way."""

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Patch = tuple[slice, slice, Bytes]


@dataclass(frozen=True)
class Material:
    """What a part is painted with.

    Attributes:
        name: The colour's name.
        color: Its RGB.
        pattern: One of `PATTERNS`, or nothing for a plain, slightly rough surface.
        turn: Direction of the pattern.
        coarse: Size of the pattern.
        other: The pattern's second colour.
        outlined: Whether the rim is dark.
    """

    name: str
    color: Color
    pattern: str
    turn: int
    coarse: int
    other: Color
    outlined: bool


class Canvas:
    """Colours, light and labels, each twice as fine as the picture.

    Args:
        chance: For choices.
        noise: For noise.
        height: Of the picture.
        width: Of the picture.
        comic: Whether things stand out by thick rims rather than by their colours.
    """

    def __init__(
        self, chance: Random, noise: np.random.Generator, height: int, width: int, comic: bool = False
    ) -> None:
        self.chance, self.noise = chance, noise
        self.height, self.width, self.comic = height, width, comic
        self.unit = max(height, width) / 128  # patterns and lines grow with the picture
        shape = height * OVERSAMPLING, width * OVERSAMPLING
        self.shade: Bytes = np.full(shape, 128, np.uint8)
        self.label: Bytes = np.zeros(shape, np.uint8)
        angle = chance.uniform(0, 2 * math.pi)
        self.light = math.cos(angle), math.sin(angle)
        ground = self._ground()
        if chance.random() < 0.4:  # two grounds that meet in a rough line
            line = height * (chance.uniform(0.3, 0.75) + 0.15 * self._octaves((1, 0.4), 4)[0])
            below = np.arange(height, dtype=np.float32)[:, None] > line[None]
            ground = np.where(below[..., None], self._ground(), ground)
        self._around = cv2.resize(ground, (8, 8), interpolation=cv2.INTER_AREA).tolist()
        self.color = self._cluttered(np.asarray(cv2.resize(ground, shape[::-1]), np.uint8))

    def around(self, x: float, y: float) -> Color:
        """The ground's colour near a place, in pixels of the picture."""
        row, column = int(y * 8 / self.height), int(x * 8 / self.width)
        red, green, blue = self._around[min(7, max(0, row))][min(7, max(0, column))]
        return red, green, blue

    # The ground

    def _ground(self) -> Bytes:
        """Noise of several octaves in three colours, on a slope, often with a faint pattern; (H, W, 3)."""
        r = self.chance
        names = r.sample(tuple(COLORS), 2)
        first = _patterns.jitter(r, COLORS[names[0]], 25)
        second = _patterns.mix(first, COLORS[names[1]], r.uniform(0.15, 0.65))
        third = _patterns.mix(first, _patterns.jitter(r, first, 60), 0.8)
        level = self._octaves((1.0, 0.8, 0.6, 0.45, 0.3), r.choice((2, 3, 5)))
        level += r.uniform(-1.2, 1.2) * _axis(self.width) + r.uniform(-1.2, 1.2) * _axis(self.height)[:, None]
        ground = _patterns.paint(np.clip(level * 42 + 128, 0, 255).astype(np.uint8), first, second, third)
        if r.random() < 0.6:
            kind = r.choice(("striped", "checkered", "bricks", "dotted"))
            tile = self._crop(_patterns.tile(kind, r.randrange(12), r.randrange(3)), self.height, self.width)
            pattern = _patterns.paint(tile, second, _patterns.jitter(r, third, 30), first)
            share = r.uniform(0.1, 0.32)
            ground = np.asarray(cv2.addWeighted(ground, 1 - share, pattern, share, 0), np.uint8)
        return ground

    def _octaves(self, weights: Sequence[float], coarse: int) -> npt.NDArray[np.float32]:
        """Noise of mean 0 and deviation about 1, (H, W), coarse waves first."""
        total = np.zeros((self.height, self.width), np.float32)
        for octave, weight in enumerate(weights):
            side = min(coarse << octave, self.height, self.width)
            small = self.noise.standard_normal((side, side), np.float32)
            total += weight * cv2.resize(small, (self.width, self.height), interpolation=cv2.INTER_CUBIC)
        return total / math.sqrt(sum(weight * weight for weight in weights))

    def _cluttered(self, ground: Bytes) -> Bytes:
        """Blobs, sticks and shards in colours near those beneath: they look like things and are none."""
        r, unit = self.chance, self.unit * OVERSAMPLING
        layer = ground.copy()
        height, width = self.label.shape
        for _ in range(r.randrange(14, 44)):
            x, y = r.randrange(width), r.randrange(height)
            push = r.uniform(12, 55) * r.choice((-1, 1))
            color = [min(255.0, max(0.0, c + push + r.uniform(-18, 18))) for c in layer[y, x].tolist()]
            if r.random() < 0.12:
                color = list(COLORS[r.choice(LOOKS["any"])])
            reach, kind = r.uniform(2, 10) * unit, r.random()
            if kind < 0.4:
                axes = max(1, int(reach)), max(1, int(reach * r.uniform(0.3, 1)))
                cv2.ellipse(layer, (x, y), axes, r.uniform(0, 180), 0, 360, color, -1)
            elif kind < 0.7:
                end = int(x + r.gauss(0, 2) * reach), int(y + r.gauss(0, 2) * reach)
                cv2.line(layer, (x, y), end, color, max(1, int(r.uniform(0.8, 3.5) * unit)))
            else:
                corners = [(x + r.gauss(0, 0.7) * reach, y + r.gauss(0, 0.7) * reach) for _ in range(4)]
                cv2.fillConvexPoly(layer, cv2.convexHull(np.array(corners, np.int32)), color)
        share = r.uniform(0.35, 0.7)
        return np.asarray(cv2.addWeighted(layer, share, ground, 1 - share, 0), np.uint8)

    # Parts

    def material(self, look: str, beneath: Color, extent: float, outlined: bool) -> Material:
        """A colour that can be told from what lies beneath, often only just, and often a pattern.

        Args:
            look: Which colours suit, a key of `LOOKS`.
            beneath: The colour that it must stand out from.
            extent: The part's smaller side in pixels of a picture of 128: small ones stay plain.
            outlined: Whether the thing has dark rims.
        """
        r = self.chance
        ranked = sorted((_patterns.distance(COLORS[name], beneath), name) for name in LOOKS[look])
        clear = [name for gap, name in ranked if gap > (52 if self.comic else 62)] or [ranked[-1][1]]
        name = r.choice(clear[:3] if r.random() < (0.7 if self.comic else 0.6) else clear)
        color = _patterns.jitter(r, COLORS[name], 14)
        pattern = r.choice(PATTERNS) if extent >= 9 and r.random() < (0.4 if extent >= 20 else 0.35) else ""
        other = _patterns.mix(color, COLORS[r.choice(LOOKS["any"])], r.uniform(0.55, 0.95))
        if _patterns.distance(color, other) < 50:
            bright = sum(color) > 380
            other = _patterns.mix(color, COLORS["black" if bright else "white"], 0.45)
        return Material(name, color, pattern, r.randrange(12), r.randrange(3), other, outlined and extent >= 8)

    def fill(self, outlines: Sequence[Floats], material: Material, number: int, ball: bool) -> None:
        """Paint polygons (N, 2), in pixels of the canvas, and label them with a number from 1 to 255."""
        patch = self._stencil(outlines)
        if patch is None:
            return
        rows, columns, stencil = patch
        height, width = stencil.shape
        if material.pattern:
            tile = self._crop(_patterns.tile(material.pattern, material.turn, material.coarse), height, width)
            middle = _patterns.mix(material.color, material.other, 0.5)
            colors = _patterns.paint(tile, material.color, middle, material.other)
        else:
            colors = self._worn(material, height, width)
        if material.outlined:
            rim = _patterns.mix(material.color, (20, 18, 22), 0.65)
            thick = max(2, round((4.8 if self.comic else 2.4) * self.unit))  # the outer half falls outside the part
            if len(outlines) == 1:
                points = np.rint((outlines[0] - (columns.start, rows.start)) * 8).astype(np.int32)
                cv2.polylines(colors, [points], True, rim, thick, shift=3)
            else:  # they overlap: the rim of what they are together
                border, _ = cv2.findContours(stencil, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
                cv2.drawContours(colors, border, -1, rim, thick)
        cv2.copyTo(colors, stencil, self.color[rows, columns])
        cv2.copyTo(self._shaded(height, width, ball), stencil, self.shade[rows, columns])
        np.copyto(self.label[rows, columns], number, where=stencil.view(np.bool_))

    def _worn(self, material: Material, height: int, width: int) -> Bytes:
        """A plain surface: mottled, and fading from one side to the other into a darker and a lighter shade."""
        r = self.chance
        tile = self._crop(_patterns.tile("speckled", material.turn, material.coarse), height, width)
        angle, fade = r.uniform(0, 2 * math.pi), r.uniform(50, 140)
        slope = (fade * math.cos(angle)) * _axis(width) + (fade * math.sin(angle)) * _axis(height)[:, None]
        level = np.clip(slope + 128, 0, 255).astype(np.uint8)
        share = r.uniform(0.25, 0.7)
        level = np.asarray(cv2.addWeighted(tile, share, level, 1, -128 * share), np.uint8)
        dark = _patterns.mix(material.color, (16, 14, 24), r.uniform(0.3, 0.55))
        bright = _patterns.mix(material.color, material.other, r.uniform(0.15, 0.45))
        return _patterns.paint(
            level, dark, material.color, _patterns.mix(bright, (255, 255, 250), r.uniform(0.15, 0.4))
        )

    def shadow(self, outline: Floats, dim: float) -> None:
        """Darken the inside of a polygon (N, 2) to a share of its light."""
        patch = self._stencil([outline])
        if patch is not None:
            rows, columns, stencil = patch
            np.copyto(self.shade[rows, columns], int(128 * dim), where=stencil.view(np.bool_))

    def _stencil(self, outlines: Sequence[Floats]) -> Patch | None:
        """Where polygons lie on the canvas, and 1 inside them, 0 outside; None beyond the canvas."""
        height, width = self.label.shape
        corners = outlines[0] if len(outlines) == 1 else np.concatenate(outlines)
        left, top = corners.min(0).tolist()
        right, bottom = corners.max(0).tolist()
        x0, y0, x1, y1 = max(0, int(left)), max(0, int(top)), min(width, int(right) + 2), min(height, int(bottom) + 2)
        if x1 <= x0 or y1 <= y0:
            return None
        stencil = np.zeros((y1 - y0, x1 - x0), np.uint8)
        for outline in outlines:  # one by one: together, where two overlap would be outside
            cv2.fillPoly(stencil, [np.rint((outline - (x0, y0)) * 8).astype(np.int32)], 1, shift=3)
        return slice(y0, y1), slice(x0, x1), stencil

    def _shaded(self, height: int, width: int, ball: bool) -> Bytes:
        """Light on a part, 128 being neutral: a slope on a board, a bright spot on a ball."""
        x, y = _axis(width), _axis(height)[:, None]
        across, down = self.light
        if ball:
            deep = self.chance.uniform(14, 34)
            level = (128 + deep * 0.9) - deep * 0.8 * ((x - 0.45 * across) ** 2 + (y - 0.45 * down) ** 2)
        else:
            steep = self.chance.uniform(4, 34)
            level = (128 + steep * across * x) + steep * down * y
        return np.clip(level, 50, 205).astype(np.uint8)

    def _crop(self, tile: Bytes, height: int, width: int) -> Bytes:
        """A patch from a random place of a tile, enlarged as much as the picture is."""
        grain = max(self.unit, 1.0)
        h, w = min(TILE, math.ceil(height / grain)), min(TILE, math.ceil(width / grain))
        y, x = self.chance.randrange(TILE - h + 1), self.chance.randrange(TILE - w + 1)
        patch = tile[y : y + h, x : x + w]
        return patch if (h, w) == (height, width) else np.asarray(cv2.resize(patch, (width, height)), np.uint8)

    # The picture

    def develop(self) -> Bytes:
        """The picture, (H, W, 3) uint8 RGB: lit, shrunk, unevenly bright, a little blurred, and noisy."""
        r, size = self.chance, (self.width, self.height)
        lit = cv2.multiply(self.color, cv2.merge([self.shade] * 3), scale=1 / 128)
        image = cv2.resize(lit, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        cast = [r.uniform(0.93, 1.05) for _ in range(3)]
        glow = self.noise.uniform(0.8, 1.14, (3, 3, 1)).astype(np.float32) * np.array(cast, np.float32)
        image *= cv2.resize(glow, size, interpolation=cv2.INTER_LINEAR)
        image = cv2.GaussianBlur(image, (0, 0), r.uniform(0.35, 0.65) * self.unit)
        image += (r.uniform(2, 5) if self.comic else r.uniform(2.5, 8.0)) * self._grain()
        return np.asarray(np.clip(image, 0, 255), np.uint8)

    def _grain(self) -> npt.NDArray[np.float32]:
        """Sensor noise, (H, W, 3): cut from a stock where that is large enough, for it is slow to make."""
        if max(self.height, self.width) > TILE // 2:
            return self.noise.standard_normal((self.height, self.width, 3), np.float32)
        y, x = self.chance.randrange(TILE - self.height), self.chance.randrange(TILE - self.width)
        return _patterns.grain()[y : y + self.height, x : x + self.width]


@lru_cache(maxsize=2048)
def _axis(length: int) -> npt.NDArray[np.float32]:
    """From -1 to 1 in so many steps."""
    return np.linspace(-1, 1, length, dtype=np.float32)
