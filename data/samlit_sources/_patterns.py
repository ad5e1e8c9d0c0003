"""Named colours and tiles of pattern for procedural scenes."""

from __future__ import annotations

import math
from functools import lru_cache
from random import Random

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["COLORS", "LOOKS", "PATTERNS", "TILE", "Color", "distance", "grain", "jitter", "mix", "paint", "tile"]

Bytes = npt.NDArray[np.uint8]
Color = tuple[float, float, float]

TILE = 384
"""Pixels a side of a tile."""

PATTERNS = ("striped", "dotted", "checkered", "speckled")
"""What a thing may be called after, beside its colour."""

COLORS: dict[str, Color] = {
    "red": (196, 48, 44),
    "orange": (230, 128, 42),
    "yellow": (232, 202, 70),
    "green": (84, 148, 66),
    "teal": (48, 148, 148),
    "blue": (62, 98, 188),
    "purple": (124, 76, 164),
    "pink": (232, 144, 172),
    "brown": (122, 84, 54),
    "grey": (138, 140, 142),
    "white": (236, 234, 228),
    "black": (44, 42, 46),
    "beige": (214, 194, 156),
}
LOOKS: dict[str, tuple[str, ...]] = {
    "any": tuple(COLORS),
    "main": ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "grey", "white", "beige"),
    "bright": ("red", "orange", "yellow", "pink", "blue", "white", "teal"),
    "dark": ("black", "brown", "purple", "blue"),
    "light": ("white", "beige", "yellow", "pink", "grey"),
    "wood": ("brown", "beige", "orange", "red", "grey"),
    "metal": ("grey", "white", "teal", "yellow", "beige", "orange"),
    "glass": ("blue", "teal", "white", "yellow", "black"),
    "tiles": ("red", "brown", "orange", "grey", "purple", "blue"),
    "wheel": ("black", "grey", "brown", "red", "orange", "blue"),
    "green": ("green", "teal", "brown"),
    "pink": ("pink", "orange", "beige", "red", "black"),
}
"""The colours that suit a part, by the word for it in `_families`."""


def distance(a: Color, b: Color) -> float:
    """How different two colours look, roughly: 0 to 450."""
    return math.sqrt(2 * (a[0] - b[0]) ** 2 + 4 * (a[1] - b[1]) ** 2 + 2 * (a[2] - b[2]) ** 2) / 1.6


def mix(a: Color, b: Color, share: float) -> Color:
    """The colour that lies a share of the way from `a` to `b`."""
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share


def jitter(r: Random, color: Color, by: float) -> Color:
    """A colour near this one, lighter or darker by up to `by`, and tinted by up to half of it."""
    level, half = r.uniform(-by, by), by / 2
    red, green, blue = (min(255.0, max(0.0, c + level + r.uniform(-half, half))) for c in color)
    return red, green, blue


_SHARES = np.linspace(0, 1, 128, dtype=np.float32)
_RAMP = np.zeros((256, 3), np.float32)
_RAMP[:128, 0], _RAMP[:128, 1] = 1 - _SHARES, _SHARES
_RAMP[128:, 1], _RAMP[128:, 2] = 1 - _SHARES, _SHARES


def paint(level: Bytes, low: Color, middle: Color, high: Color) -> Bytes:
    """Colour a pattern: levels (H, W) uint8 to (H, W, 3) uint8, from `low` at 0 through `middle` to `high` at 255."""
    ramp = np.clip(_RAMP @ np.array((low, middle, high), np.float32), 0, 255).astype(np.uint8)
    return np.asarray(cv2.applyColorMap(level, ramp[:, None]))


@lru_cache(maxsize=256)
def tile(kind: str, turn: int, coarse: int) -> Bytes:
    """A square of pattern, (TILE, TILE) uint8, the same in every process.

    Args:
        kind: One of PATTERNS, or bricks.
        turn: Direction in twelfths of half a turn.
        coarse: From 0 for fine to 2.
    """
    c, s = math.cos(turn * math.pi / 12), math.sin(turn * math.pi / 12)
    y, x = np.mgrid[:TILE, :TILE].astype(np.float32)
    u, v = c * x + s * y, c * y - s * x
    period = (9.0, 13.0, 19.0)[coarse] + turn * 0.25
    if kind == "striped":
        level = 4 * np.sin(u * 2 * math.pi / period)
    elif kind == "checkered":
        level = 9 * np.sin(u * math.pi / period) * np.sin(v * math.pi / period)
    elif kind == "dotted":
        shifted = v + period / 2 * np.mod(np.floor(u / period), 2)
        level = 0.32 * period - np.hypot(np.mod(u, period) - period / 2, np.mod(shifted, period) - period / 2)
    elif kind == "bricks":
        along = u + period * np.mod(np.floor(v / period), 2)
        level = np.minimum(np.mod(v, period), np.mod(along, 2 * period)) - 2.5
    else:
        noise = np.random.Generator(np.random.SFC64(turn * 3 + coarse))
        level = np.zeros((TILE, TILE), np.float32)
        for side in (TILE // 4, TILE // 8, TILE // (12 + 8 * coarse)):
            small = noise.standard_normal((side, side), np.float32)
            level += 0.44 * cv2.resize(small, (TILE, TILE), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(128 + 127 * level, 0, 255), np.uint8)


@lru_cache(maxsize=1)
def grain() -> npt.NDArray[np.float32]:
    """Noise of deviation 1 to cut from, (TILE, TILE, 3)."""
    return np.random.Generator(np.random.SFC64(77)).standard_normal((TILE, TILE, 3), np.float32)
