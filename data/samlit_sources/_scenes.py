"""A small renderer of cluttered, textured scenes whose every visible part is known and has a phrase."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from samlit import rle, shards
from samlit_sources._families import COMPOSITES, SMALL, Part

__all__ = ["VERSION", "Drawing", "Job", "render", "write"]

VERSION = 1
"""Counts up whenever the same seed would draw another scene."""

OVERSAMPLING = 2
TILE = 512
MIN_AREA = 32  # visible pixels of a mask, in a frame of 128
MIN_VISIBLE = 0.4  # share of a mask that nothing hides
MAX_SHARED = 0.9  # IoU with its whole above which a part is no mask of its own

Bytes = npt.NDArray[np.uint8]
Color = tuple[float, float, float]

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
PATTERNS = ("striped", "dotted", "checkered", "speckled")


@dataclass(frozen=True)
class Drawing:
    """A scene and the truth about it.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        masks: (K, H, W) bool, visible pixels: each object before its parts.
        phrases: K phrases, no two the same.
    """

    image: Bytes
    masks: npt.NDArray[np.bool_]
    phrases: tuple[str, ...]


@dataclass
class _Material:
    name: str
    color: Color
    pattern: str = ""
    other: Color = (0.0, 0.0, 0.0)
    outline: bool = False


@dataclass
class _Node:
    """A painted part: its numbers on the label canvas are `first` to `last`, its own parts' included."""

    part: Part
    material: _Material | None
    first: int
    last: int = 0
    painted: int = 0
    nodes: list[_Node] = field(default_factory=list)
    mask: npt.NDArray[np.bool_] | None = None
    area: int = 0
    center: tuple[float, float] = (0.0, 0.0)
    annotated: bool = False


def render(seed: int, split: int, index: int, size: int) -> Drawing:
    """Scene number `index`; depends on these four numbers and nothing else.

    Args:
        seed: Of the whole set.
        split: Stream of scenes; no two streams share one.
        index: From 0.
        size: Long side in pixels.
    """
    state = np.random.SeedSequence([seed, split, index]).generate_state(4)
    painter = _Painter(Random(int(state[0]) << 32 | int(state[1])), np.random.Generator(np.random.SFC64(int(state[2]))), size)
    painter.background()
    painter.objects()
    return painter.finish()


class _Painter:
    """One scene in the making: colours, light and labels on canvases twice as fine as the picture."""

    def __init__(self, chance: Random, noise: np.random.Generator, size: int) -> None:
        self.chance, self.noise = chance, noise
        short = chance.choice((8, 8, 7, 6)) * size // 8
        self.height, self.width = (size, short) if chance.random() < 0.5 else (short, size)
        self.unit = size / 128
        shape = self.height * OVERSAMPLING, self.width * OVERSAMPLING
        self.color: Bytes = np.zeros((*shape, 3), np.uint8)
        self.shade: Bytes = np.full(shape, 128, np.uint8)
        self.label: Bytes = np.zeros(shape, np.uint8)
        self.used = 0
        self.things: list[_Node] = []
        angle = chance.uniform(0, 2 * math.pi)
        self.light = math.cos(angle), math.sin(angle)
        self.outlined = chance.random() < 0.4

    # The background

    def background(self) -> None:
        """Paint noise, gradients, patterns and clutter that is no object."""
        r = self.chance
        ground = self._ground()
        if r.random() < 0.4:  # two grounds that meet in a rough line
            other = self._ground()
            line = self.height * r.uniform(0.3, 0.75) + self._octaves((1, 0.4), 4)[0] * self.height * 0.15
            below = np.arange(self.height, dtype=np.float32)[:, None] > line[None, :]
            ground = np.where(below[..., None], other, ground)
        self.color = cv2.resize(ground, (self.label.shape[1], self.label.shape[0]), interpolation=cv2.INTER_LINEAR)
        self.around = cv2.resize(ground, (8, 8), interpolation=cv2.INTER_AREA).astype(np.float32)
        self._clutter()

    def _ground(self) -> Bytes:
        r = self.chance
        names = r.sample(list(COLORS), 2)
        first = _jitter(r, COLORS[names[0]], 25)
        second = _mix(first, COLORS[names[1]], r.uniform(0.15, 0.7))
        third = _mix(first, _jitter(r, first, 60), 0.8)
        field_ = self._octaves((1.0, 0.8, 0.6, 0.45, 0.3), r.choice((2, 3, 5)))
        slope = r.uniform(-1.2, 1.2), r.uniform(-1.2, 1.2)
        field_ += slope[0] * np.linspace(-1, 1, self.width, dtype=np.float32)[None]
        field_ += slope[1] * np.linspace(-1, 1, self.height, dtype=np.float32)[:, None]
        level = np.clip(field_ * 42 + 128, 0, 255).astype(np.uint8)
        ground = _ramp(first, second, third)[level]
        if r.random() < 0.6:
            tile = self._crop(_tile(r.choice(("striped", "checkered", "bricks", "dotted")), r.randrange(12), r.randrange(3)), self.height, self.width)
            strength = r.uniform(0.1, 0.32)
            pattern = _ramp(second, _jitter(r, third, 30), first)[tile]
            ground = cv2.addWeighted(ground, 1 - strength, pattern, strength, 0)
        return np.asarray(ground, np.uint8)

    def _octaves(self, weights: tuple[float, ...], coarse: int) -> npt.NDArray[np.float32]:
        """Noise of mean 0 and deviation about 1 on the picture's grid, coarse waves first."""
        total = np.zeros((self.height, self.width), np.float32)
        for octave, weight in enumerate(weights):
            side = min(coarse << octave, self.height, self.width)
            small = self.noise.standard_normal((side, side), np.float32)
            total += weight * cv2.resize(small, (self.width, self.height), interpolation=cv2.INTER_CUBIC)
        return total / math.sqrt(sum(w * w for w in weights))

    def _clutter(self) -> None:
        """Blobs, sticks and shards in colours near those beneath: things that look like parts and are none."""
        r, unit = self.chance, self.unit * OVERSAMPLING
        layer = self.color.copy()
        height, width = self.label.shape
        for _ in range(r.randrange(14, 46)):
            x, y = r.randrange(width), r.randrange(height)
            base = layer[y, x].tolist()
            push = r.uniform(12, 60) * r.choice((-1, 1))
            color = [min(255, max(0, c + push + r.uniform(-18, 18))) for c in base]
            if r.random() < 0.15:
                color = list(COLORS[r.choice(LOOKS["any"])])
            reach, kind = r.uniform(2, 11) * unit, r.random()
            if kind < 0.4:
                axes = (int(reach), max(1, int(reach * r.uniform(0.3, 1))))
                cv2.ellipse(layer, (x, y), axes, r.uniform(0, 180), 0, 360, color, -1)
            elif kind < 0.7:
                end = (int(x + r.gauss(0, 2) * reach), int(y + r.gauss(0, 2) * reach))
                cv2.line(layer, (x, y), end, color, max(1, int(r.uniform(0.8, 3.5) * unit)))
            else:
                corners = [(x + r.gauss(0, 0.7) * reach, y + r.gauss(0, 0.7) * reach) for _ in range(r.choice((3, 4, 5)))]
                cv2.fillConvexPoly(layer, cv2.convexHull(np.array(corners, np.int32)), color)
        strength = r.uniform(0.35, 0.75)
        self.color = np.asarray(cv2.addWeighted(layer, strength, self.color, 1 - strength, 0), np.uint8)

    # The objects

    def objects(self) -> None:
        """Paint composite and small things, the large ones rather behind the small."""
        r = self.chance
        long = 128 * self.unit
        sizes = [r.uniform(0.48, 0.72)] + [r.uniform(0.26, 0.5) for _ in range(r.choice((1, 1, 2, 2, 3)))]
        drawn: list[tuple[float, float, float]] = []
        plans: list[tuple[float, Part, float, float, float]] = []
        families = r.sample(COMPOSITES, len(sizes))
        if r.random() < 0.2:  # twins
            families[-1] = families[0]
        for make, share in zip(families, sizes, strict=True):
            reach = share * long / 2
            x, y = self._place(reach, drawn)
            plans.append((share + r.uniform(0, 0.15), make(r), x, y, reach))
        kind = r.choice(SMALL)
        for _ in range(r.randrange(2, 6)):
            kind = kind if r.random() < 0.35 else r.choice(SMALL)
            reach = r.uniform(0.04, 0.1) * long
            x, y = self._place(reach, drawn)
            plans.append((0.6 if r.random() < 0.2 else r.uniform(0, 0.4), kind(r), x, y, reach))
        for _, part, x, y, reach in sorted(plans, key=lambda plan: -plan[0]):
            if self.used < 200:
                self._thing(part, x, y, reach)

    def _place(self, reach: float, drawn: list[tuple[float, float, float]]) -> tuple[float, float]:
        """A place where the thing covers others a little at most, if there is one."""
        r, best = self.chance, (-math.inf, 0.0, 0.0)
        for _ in range(8):
            x = r.uniform(min(reach * 0.85, self.width / 2), max(self.width - reach * 0.85, self.width / 2))
            y = r.uniform(min(reach * 0.85, self.height / 2), max(self.height - reach * 0.85, self.height / 2))
            gap = min((math.hypot(x - a, y - b) / (reach + c) for a, b, c in drawn), default=1.0)
            best = max(best, (min(gap, r.uniform(0.65, 1.1)), x, y))
        drawn.append((best[1], best[2], reach))
        return best[1], best[2]

    def _thing(self, part: Part, x: float, y: float, reach: float) -> None:
        r = self.chance
        stretch = math.exp(r.uniform(-0.22, 0.22))
        tilt = r.uniform(-0.16, 0.16) if part.parts and r.random() < 0.85 else r.uniform(-1.0, 1.0)
        sx, sy = reach * stretch * r.choice((-1, 1)) * OVERSAMPLING, reach / stretch * OVERSAMPLING
        c, s = math.cos(tilt), math.sin(tilt)
        matrix = np.array([[sx * c, sx * s], [-sy * s, sy * c]])
        origin = np.array([x * OVERSAMPLING, y * OVERSAMPLING])
        if r.random() < 0.6:
            offset = np.array(self.light) * -r.uniform(0.08, 0.2) * reach * OVERSAMPLING
            self._shadow(part, matrix, origin + offset, r.uniform(0.6, 0.85))
        gx = min(7, max(0, int(x * 8 / self.width)))
        gy = min(7, max(0, int(y * 8 / self.height)))
        materials: dict[str, _Material] = {}
        beneath: Color = tuple(self.around[gy, gx].tolist())
        node = self._paint(part, matrix, origin, materials, beneath, r.random() < 0.3 or self.outlined)
        counts = np.cumsum(np.bincount(self.label.ravel(), minlength=256))
        _count(node, counts.tolist())
        self.things.append(node)

    def _shadow(self, part: Part, matrix: npt.NDArray[np.float64], origin: npt.NDArray[np.float64], dim: float) -> None:
        for child in (part, *part.parts):
            for outline in child.outline:
                area = self._stencil([outline @ matrix + origin])
                if area is not None:
                    rows, columns, stencil = area
                    patch = np.full(stencil.shape, int(128 * dim), np.uint8)
                    cv2.copyTo(patch, stencil, self.shade[rows, columns])

    def _stencil(self, outlines: list[npt.NDArray[np.float64]]) -> tuple[slice, slice, Bytes] | None:
        """The polygons filled in white, and where that patch lies on the canvas; None outside it."""
        height, width = self.label.shape
        low = np.min([o.min(0) for o in outlines], 0)
        high = np.max([o.max(0) for o in outlines], 0)
        x0, y0 = max(0, int(low[0])), max(0, int(low[1]))
        x1, y1 = min(width, int(high[0]) + 2), min(height, int(high[1]) + 2)
        if x1 <= x0 or y1 <= y0:
            return None
        stencil = np.zeros((y1 - y0, x1 - x0), np.uint8)
        for outline in outlines:
            points = np.rint((outline - (x0, y0)) * 8).astype(np.int32)
            cv2.fillPoly(stencil, [points], 255, shift=3)
        return slice(y0, y1), slice(x0, x1), stencil

    def _paint(
        self,
        part: Part,
        matrix: npt.NDArray[np.float64],
        origin: npt.NDArray[np.float64],
        materials: dict[str, _Material],
        beneath: Color,
        outlined: bool,
    ) -> _Node:
        """Paint a part and what lies on it."""
        self.used += 1
        node = _Node(part, None, self.used)
        under = beneath
        if part.outline:
            outlines = [outline @ matrix + origin for outline in part.outline]
            area = self._stencil(outlines)
            extent = min((outlines[0].max(0) - outlines[0].min(0)).tolist()) / OVERSAMPLING / self.unit
            material = materials.get(part.noun)
            if material is None or self.chance.random() < 0.1:
                material = self._material(part, beneath, extent, outlined)
                materials[part.noun] = material
            node.material, under = material, material.color
            if area is not None:
                self._fill(material, *area, outlines, part.round, node.first)
        for child in part.parts:
            node.nodes.append(self._paint(child, matrix, origin, materials, under, outlined))
        node.last = self.used
        return node

    def _material(self, part: Part, beneath: Color, extent: float, outlined: bool) -> _Material:
        """A colour that can be told from what lies beneath, often only just, and often a pattern."""
        r = self.chance
        names = sorted(LOOKS[part.look], key=lambda name: _distance(COLORS[name], beneath))
        clear = [name for name in names if _distance(COLORS[name], beneath) > 62] or names[-1:]
        name = r.choice(clear[:3]) if r.random() < 0.5 else r.choice(clear)
        color = _jitter(r, COLORS[name], 14)
        patterned = extent >= 12 and r.random() < (0.5 if extent >= 20 else 0.35)
        pattern = r.choice(PATTERNS) if patterned else ""
        others = sorted(COLORS, key=lambda other: abs(_distance(COLORS[other], color) - r.uniform(70, 200)))
        other = _mix(color, COLORS[others[0]], r.uniform(0.55, 0.95))
        return _Material(name, color, pattern, other, outlined and extent >= 8)

    def _fill(
        self,
        material: _Material,
        rows: slice,
        columns: slice,
        stencil: Bytes,
        outlines: list[npt.NDArray[np.float64]],
        ball: bool,
        number: int,
    ) -> None:
        r = self.chance
        height, width = stencil.shape
        if material.pattern:
            key = material.pattern, int(material.color[0]) % 12, int(material.color[1]) % 3
            patch = _ramp(material.color, _mix(material.color, material.other, 0.5), material.other)[self._crop(_tile(*key), height, width)]
        else:
            rough = 6 + 22 * r.random() ** 2
            dark, bright = (tuple(c + sign * rough for c in material.color) for sign in (-1, 1))
            patch = _ramp(dark, material.color, bright)[self._crop(_tile("speckled", r.randrange(12), r.randrange(3)), height, width)]
        if material.outline:
            dark = _mix(material.color, (20, 18, 22), 0.65)
            points = [np.rint((outline - (columns.start, rows.start)) * 8).astype(np.int32) for outline in outlines]
            if len(points) == 1:
                patch = np.ascontiguousarray(patch)
                cv2.polylines(patch, points, True, dark, max(2, round(2.4 * self.unit)), shift=3)
        cv2.copyTo(patch, stencil, self.color[rows, columns])
        cv2.copyTo(self._shaded(height, width, ball), stencil, self.shade[rows, columns])
        self.label[rows, columns][stencil > 0] = number

    def _shaded(self, height: int, width: int, ball: bool) -> Bytes:
        x = np.linspace(-1, 1, width, dtype=np.float32)[None]
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        lx, ly = self.light
        if ball:
            deep = self.chance.uniform(14, 34)
            level = 128 + deep * 0.9 - deep * 0.8 * ((x - 0.45 * lx) ** 2 + (y - 0.45 * ly) ** 2)
        else:
            steep = self.chance.uniform(4, 34)
            level = 128 + steep * lx * x + steep * ly * y
        return np.asarray(np.clip(level, 50, 205), np.uint8)

    def _crop(self, tile: Bytes, height: int, width: int) -> Bytes:
        """A patch of a tile from a random place; patterns grow with the picture."""
        grain = max(self.unit, 1.0)
        h, w = min(TILE, math.ceil(height / grain)), min(TILE, math.ceil(width / grain))
        y, x = self.chance.randrange(TILE - h + 1), self.chance.randrange(TILE - w + 1)
        patch = tile[y : y + h, x : x + w]
        return patch if (h, w) == (height, width) else np.asarray(cv2.resize(patch, (width, height)), np.uint8)

    # The picture and the truth

    def finish(self) -> Drawing:
        """Light, blur, noise; then the masks of all that can be seen, with their phrases."""
        r = self.chance
        lit = cv2.multiply(self.color, cv2.merge([self.shade] * 3), scale=1 / 128)
        image = cv2.resize(lit, (self.width, self.height), interpolation=cv2.INTER_AREA).astype(np.float32)
        glow = cv2.resize(self.noise.uniform(0.78, 1.14, (3, 3)).astype(np.float32), (self.width, self.height), interpolation=cv2.INTER_LINEAR)
        cast = np.array([r.uniform(0.93, 1.05) for _ in range(3)], np.float32)
        image *= glow[..., None] * cast
        image = cv2.GaussianBlur(image, (0, 0), r.uniform(0.35, 0.7) * self.unit)
        y, x = r.randrange(TILE - 127), r.randrange(TILE - 127)
        grain = _grain()[y : y + self.height, x : x + self.width] if max(self.height, self.width) <= 128 else self.noise.standard_normal(image.shape, np.float32)
        image += grain * r.uniform(2.5, 8.0)
        picture = np.clip(image, 0, 255).astype(np.uint8)
        for thing in self.things:
            self._see(thing, None)
        shown = [thing for thing in self.things if thing.area >= MIN_AREA / 2 * self.unit**2]
        masks: list[Any] = []
        phrases: list[str] = []
        _describe(r, shown, "", masks, phrases)
        stacked = np.stack(masks) if masks else np.zeros((0, self.height, self.width), np.bool_)
        return Drawing(picture, stacked, tuple(phrases))

    def _see(self, node: _Node, whole: _Node | None) -> None:
        """Find the visible pixels of a node and of its parts, and whether they make a mask."""
        inside = cv2.inRange(self.label, node.first, node.last)
        node.mask = cv2.resize(inside, (self.width, self.height), interpolation=cv2.INTER_AREA) >= 127
        node.area = int(np.count_nonzero(node.mask))
        if node.area:
            rows, columns = node.mask.sum(1), node.mask.sum(0)
            node.center = (
                float(columns @ np.arange(self.width)) / node.area,
                float(rows @ np.arange(self.height)) / node.area,
            )
        seen = cv2.countNonZero(inside) >= MIN_VISIBLE * node.painted
        own = whole is None or node.area <= MAX_SHARED * whole.area
        node.annotated = node.area >= MIN_AREA * self.unit**2 and seen and own
        for child in node.nodes:
            self._see(child, node)


def _count(node: _Node, upto: list[int]) -> None:
    """Note how many fine pixels each part shows before other things cover it."""
    node.painted = upto[node.last] - upto[node.first - 1]
    for child in node.nodes:
        _count(child, upto)


def _describe(r: Random, nodes: list[_Node], of: str, masks: list[Any], phrases: list[str]) -> None:
    """Give each of some siblings words that single it out, and gather the masks, wholes before parts."""
    words = _names(r, nodes, whole=not of)
    for node, word in zip(nodes, words, strict=True):
        phrase = word + of
        if node.annotated:
            masks.append(node.mask)
            phrases.append(phrase)
        least = max(12, node.area // 400)
        _describe(r, [child for child in node.nodes if child.area >= least], f" of {phrase}", masks, phrases)


def _names(r: Random, nodes: list[_Node], whole: bool) -> list[str]:
    """Phrases for siblings: "the red cart", "the left striped wheel"; no two the same."""
    looks = [_appearance(node) for node in nodes]
    nouns = [node.part.noun for node in nodes]
    adjectives = []
    for material, noun in zip(looks, nouns, strict=True):
        alike = [other for other, name in zip(looks, nouns, strict=True) if name == noun]
        differ = len({(m.name, m.pattern) for m in alike}) > 1
        if whole or (differ and len({m.name for m in alike}) > 1):
            adjectives.append(material.name)
        elif material.pattern and (differ or r.random() < 0.8):
            adjectives.append(material.pattern)
        else:
            adjectives.append(material.name if r.random() < 0.3 and len(alike) == 1 else "")
    plain = [f"{a} {n}".strip() for a, n in zip(adjectives, nouns, strict=True)]
    names = [""] * len(nodes)
    for name in dict.fromkeys(plain):
        same = [i for i, other in enumerate(plain) if other == name]
        for i, words in zip(same, _apart([nodes[i] for i in same], name), strict=True):
            names[i] = f"the {words}"
    return names


def _apart(nodes: list[_Node], name: str) -> list[str]:
    """Tell things of one name apart by size or place."""
    num = len(nodes)
    if num == 1:
        return [name]
    if num == 2 and max(n.area for n in nodes) > 1.9 * min(n.area for n in nodes):
        return [f"{'large' if n.area == max(m.area for m in nodes) else 'small'} {name}" for n in nodes]
    spread = [max(n.center[axis] for n in nodes) - min(n.center[axis] for n in nodes) for axis in (0, 1)]
    axis = 0 if spread[0] >= 0.8 * spread[1] else 1
    order = sorted(range(num), key=lambda i: (nodes[i].center[axis], i))
    ends = (("left", "right"), ("upper", "lower"))[axis]
    if num <= 3:
        words = [ends[0], *(["middle"] if num == 3 else []), ends[1]]
        texts = [f"{word} {name}" for word in words]
    else:
        count = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
        texts = [f"{count[i]} {name} from the {('left', 'top')[axis]}" for i in range(num)]
    return [texts[order.index(i)] for i in range(num)]


def _appearance(node: _Node) -> _Material:
    """The material that a thing is called after: its own, or its main part's."""
    if node.material is not None:
        return node.material
    named = [child for child in node.nodes if child.part.look == "main"] or node.nodes
    return _appearance(max(named, key=lambda child: child.area))


# Colours and patterns


def _jitter(r: Random, color: Color, by: float) -> Color:
    level = r.uniform(-by, by)
    red, green, blue = (min(255.0, max(0.0, c + level + r.uniform(-by, by) / 2)) for c in color)
    return red, green, blue


def _mix(a: Color, b: Color, share: float) -> Color:
    red, green, blue = (x + (y - x) * share for x, y in zip(a, b, strict=True))
    return red, green, blue


def _distance(a: Color, b: Color) -> float:
    return math.sqrt(2 * (a[0] - b[0]) ** 2 + 4 * (a[1] - b[1]) ** 2 + 2 * (a[2] - b[2]) ** 2) / 1.6


def _ramp(first: Color, second: Color, third: Color) -> Bytes:
    """256 colours from the first through the second to the third: (256, 3) uint8."""
    half = np.linspace(0, 1, 128, dtype=np.float32)[:, None]
    a, b, c = (np.array(color, np.float32) for color in (first, second, third))
    return np.asarray(np.clip(np.concatenate([a + (b - a) * half, b + (c - b) * half]), 0, 255), np.uint8)


@lru_cache(maxsize=256)
def _tile(kind: str, turn: int, coarse: int) -> Bytes:
    """A square of pattern, (TILE, TILE) uint8, the same in every process.

    Args:
        kind: One of PATTERNS, or bricks.
        turn: Direction in twelfths of half a turn.
        coarse: From 0 for fine to 2.
    """
    angle = turn * math.pi / 12
    c, s = math.cos(angle), math.sin(angle)
    y, x = np.mgrid[:TILE, :TILE].astype(np.float32)
    u, v = c * x + s * y, c * y - s * x
    period = (9.0, 13.0, 19.0)[coarse] + turn * 0.25
    if kind == "striped":
        level = np.sin(u * 2 * math.pi / period) * 4
    elif kind == "checkered":
        level = np.sin(u * math.pi / period) * np.sin(v * math.pi / period) * 9
    elif kind == "dotted":
        near = (np.mod(u, period) - period / 2) ** 2 + (np.mod(v + period / 2 * (np.floor(u / period) % 2), period) - period / 2) ** 2
        level = period * 0.32 - np.sqrt(near)
    elif kind == "bricks":
        row = np.floor(v / period)
        level = np.minimum(np.mod(v, period), np.mod(u + row % 2 * period, 2 * period)) - 2.5
    else:
        noise = np.random.Generator(np.random.SFC64(turn * 3 + coarse))
        level = np.zeros((TILE, TILE), np.float32)
        for side in (TILE // 4, TILE // 8, TILE // (12 + 8 * coarse)):
            level += cv2.resize(noise.standard_normal((side, side), np.float32), (TILE, TILE), interpolation=cv2.INTER_CUBIC)
        level *= 0.8
    return np.asarray(np.clip(128 + 127 * level, 0, 255) if kind != "speckled" else np.clip(128 + 70 * level, 0, 255), np.uint8)


@lru_cache(maxsize=1)
def _grain() -> npt.NDArray[np.float32]:
    """Sensor noise to cut from, (TILE, TILE, 3)."""
    return np.random.Generator(np.random.SFC64(77)).standard_normal((TILE, TILE, 3), np.float32)


@dataclass(frozen=True)
class Job:
    """One shard of scenes to write: numbers `start` up to `start + count`."""

    path: Path
    seed: int
    split: int
    start: int
    count: int
    size: int


def write(job: Job) -> int:
    """Draw a shard's scenes and write them; returns how many.

    It stands here, and not beside the source, so that a new process need not import torch for it.
    """
    cv2.setNumThreads(1)  # there is a process a processor
    return shards.write(job.path, (_record(job, index) for index in range(job.start, job.start + job.count)))


def _record(job: Job, index: int) -> shards.Record:
    drawing = render(job.seed, job.split, index, job.size)
    settings = [cv2.IMWRITE_JPEG_QUALITY, 95]
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(drawing.image, cv2.COLOR_RGB2BGR), settings)
    masks = zip(rle.encode_many(drawing.masks), drawing.phrases, strict=True)
    annotations = tuple(shards.Annotation(mask, phrase) for mask, phrase in masks)
    height, width = drawing.image.shape[:2]
    return shards.Record(index, (height, width), jpeg.tobytes(), annotations)
