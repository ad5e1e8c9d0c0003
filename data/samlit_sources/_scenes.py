"""Procedural scenes: things with parts and sub-parts, of which every visible pixel is known and has a phrase."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import cv2
import numpy as np
import numpy.typing as npt

from samlit.masks import rle
from samlit.shards import records
from samlit_sources import _patterns, _worded
from samlit_sources._canvas import OVERSAMPLING, Canvas, Material
from samlit_sources._families import COMPOSITES, SIMPLE, SMALL, STURDY, Part, badge
from samlit_sources._patterns import Color
from samlit_sources._phrases import Seen, name

__all__ = ["VERSION", "Drawing", "Lot", "draw", "render", "use_one_thread"]

VERSION = 12
"""Counts up whenever the same numbers would draw another scene."""

MIN_VISIBLE = 0.4
"""Share of a mask at least that nothing else hides."""
MAX_SHARED = 0.9
"""IoU with its whole above which a part is no mask of its own."""

Bool = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Drawing:
    """A scene and the truth about it.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        masks: (K, H, W) bool, visible pixels: each thing before its parts.
        phrases: K phrases, no two the same.
    """

    image: npt.NDArray[np.uint8]
    masks: Bool
    phrases: tuple[str, ...]


@dataclass(frozen=True)
class Lot:
    """Some scenes to draw: numbers `start` up to, not including, `start + count`; the rest is as for `render`."""

    seed: int
    split: int
    start: int
    count: int
    size: int
    min_area: int
    style: str
    combinations: str = "all"


def draw(lot: Lot) -> list[records.Record]:
    """Draw scenes and encode them.

    It stands here, and not beside the source, so that a new process need not import torch for it.
    """
    return [_record(lot, index) for index in range(lot.start, lot.start + lot.count)]


def use_one_thread() -> None:
    """Keep OpenCV from starting threads of its own, where there is a process a processor already."""
    cv2.setNumThreads(1)


def _record(lot: Lot, index: int) -> records.Record:
    drawing = render(lot.seed, lot.split, index, lot.size, lot.min_area, lot.style, lot.combinations)
    bgr = cv2.cvtColor(drawing.image, cv2.COLOR_RGB2BGR)
    # Colours at full resolution: halved, as is usual, they would blur parts of a few pixels into each other.
    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    settings = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    _, jpeg = cv2.imencode(".jpg", bgr, settings)
    named = zip(rle.encode_many(drawing.masks), drawing.phrases, strict=True)
    annotations = tuple(records.Annotation(mask, phrase) for mask, phrase in named)
    height, width = drawing.image.shape[:2]
    return records.Record(index, (height, width), jpeg.tobytes(), annotations)


@dataclass
class _Node:
    """A painted part; its labels on the canvas are `first` to `last`, those of its own parts included."""

    part: Part
    first: int
    last: int = 0
    material: Material | None = None
    nodes: list[_Node] = field(default_factory=list)
    painted: int = 0  # pixels of the canvas before other things hid any
    mask: Bool = field(default_factory=lambda: np.zeros((0, 0), np.bool_))
    area: int = 0
    center: tuple[float, float] = (0.0, 0.0)
    annotated: bool = False


def render(
    seed: int,
    split: int,
    index: int,
    size: int,
    min_area: int = 32,
    style: str = "rich",
    combinations: str = "all",
) -> Drawing:
    """Draw a scene; it depends on these numbers and nothing else.

    Args:
        seed: Of the whole set.
        split: Stream of scenes; no two streams share one.
        index: Number of the scene, from 0.
        size: Long side in pixels, a multiple of 8.
        min_area: Visible pixels of a mask at least, in a picture of 128; in others as much of the picture.
        style: "rich", or "clear": fewer and larger things, of fewer kinds, every part with a dark rim; or "worded": a
            few things in colours and textures that their phrases say in full.
        combinations: Of worded things, see `_worded.plan`.
    """
    state = np.random.SeedSequence([seed, split, index]).generate_state(3, np.uint64).tolist()
    chance, noise = Random(state[0]), np.random.Generator(np.random.SFC64(state[1:]))
    short = chance.choice((8, 8, 7, 6)) * size // 8
    height, width = (size, short) if chance.random() < 0.5 else (short, size)
    canvas = Canvas(chance, noise, height, width, comic=style != "rich")
    if style == "worded":
        return _worded_drawing(chance, canvas, _worded.plan(chance, combinations), min_area)
    things = _things(chance, canvas, style == "clear")
    image = canvas.develop()
    for thing in things:
        _see(canvas, thing, None, min_area * canvas.unit**2)
    masks: list[Bool] = []
    phrases: list[str] = []
    _describe(chance, [thing for thing in things if thing.area >= 16 * canvas.unit**2], "", masks, phrases)
    stacked = np.stack(masks) if masks else np.zeros((0, height, width), np.bool_)
    return Drawing(image, stacked, tuple(phrases))


def _things(r: Random, canvas: Canvas, clear: bool) -> list[_Node]:
    """Paint composite and small things, large ones mostly behind small ones."""
    long = max(canvas.height, canvas.width)
    if clear:
        shares = [r.uniform(0.62, 0.85)] + [r.uniform(0.35, 0.5) for _ in range(r.choice((0, 0, 1)))]
    else:
        shares = [r.uniform(0.5, 0.72)] + [r.uniform(0.25, 0.42) for _ in range(r.choice((0, 0, 1, 1, 1, 2)))]
    kinds = r.sample(STURDY if clear else COMPOSITES, len(shares))
    if r.random() < 0.2:
        kinds[-1] = kinds[0]
    plans = [(share + r.uniform(0, 0.15), kind(r), share * long / 2) for kind, share in zip(kinds, shares, strict=True)]
    small = r.choice(SMALL)
    for _ in range(r.randrange(2, 5)):
        small = small if r.random() < 0.4 else r.choice(SMALL)
        depth = 0.6 if r.random() < 0.2 else r.uniform(0, 0.4)
        plans.append((depth, small(r), (r.uniform(0.09, 0.15) if clear else r.uniform(0.045, 0.1)) * long))
    outlined = r.random() < 0.4 or clear
    taken: list[tuple[float, float, float]] = []
    placed = [(depth, part, *_place(r, canvas, reach, taken), reach) for depth, part, reach in plans]
    things: list[_Node] = []
    for _, part, x, y, reach in sorted(placed, key=lambda plan: -plan[0]):
        first = things[-1].last + 1 if things else 1
        things.append(_thing(r, canvas, part, x, y, reach, first, outlined or r.random() < 0.2))
    return things


def _worded_drawing(r: Random, canvas: Canvas, plan: Sequence[_worded.Worded], min_area: int) -> Drawing:
    """Paint things in their very colours and textures."""
    long = max(canvas.height, canvas.width)
    taken: list[tuple[float, float, float]] = []
    things: list[_Node] = []
    for words in plan:
        part, reach = SIMPLE[words.noun](r), r.uniform(0.13, 0.21) * long
        if words.badge:
            part.parts.append(badge(_worded.PART, r.uniform(0.36, 0.42)))
        first = things[-1].last + 1 if things else 1
        materials = {
            words.noun: _material(r, words.color, words.texture),
            _worded.PART: _material(r, words.badge or words.color, ""),
        }
        x, y = _place(r, canvas, reach, taken)
        things.append(_thing(r, canvas, part, x, y, reach, first, True, materials))
    image = canvas.develop()
    masks: list[Bool] = []
    phrases: list[str] = []
    for words, thing in zip(plan, things, strict=True):
        _see(canvas, thing, None, min_area * canvas.unit**2)
        if thing.annotated and words.named:
            masks.append(thing.mask)
            phrases.append(words.phrase)
            for child in thing.nodes:
                if child.annotated:
                    masks.append(child.mask)
                    phrases.append(words.part_phrase)
    stacked = np.stack(masks) if masks else np.zeros((0, *image.shape[:2]), np.bool_)
    return Drawing(image, stacked, tuple(phrases))


def _material(r: Random, color: str, texture: str) -> Material:
    """A named colour, a little off, with a texture of a lighter or darker shade of it."""
    own = _patterns.jitter(r, _patterns.COLORS[color], 12)
    other = _patterns.mix(own, _patterns.COLORS["black" if sum(own) > 380 else "white"], 0.5)
    return Material(color, own, texture, r.randrange(12), r.randrange(2), other, outlined=True)


def _place(r: Random, canvas: Canvas, reach: float, taken: list[tuple[float, float, float]]) -> tuple[float, float]:
    """A place, of a few at random, where a thing hides others at most a little."""
    best = (-math.inf, 0.0, 0.0)
    edge = 0.85 * reach
    for _ in range(8):
        x = r.uniform(min(edge, canvas.width / 2), max(canvas.width - edge, canvas.width / 2))
        y = r.uniform(min(edge, canvas.height / 2), max(canvas.height - edge, canvas.height / 2))
        gap = min((math.hypot(x - a, y - b) / (reach + c) for a, b, c in taken), default=1.0)
        best = max(best, (min(gap, r.uniform(0.65, 1.1)), x, y))
    taken.append((best[1], best[2], reach))
    return best[1], best[2]


def _thing(
    r: Random,
    canvas: Canvas,
    part: Part,
    x: float,
    y: float,
    reach: float,
    first: int,
    outlined: bool,
    given: dict[str, Material] | None = None,
) -> _Node:
    """Paint a thing at (x, y), in pixels of the picture, with its shadow; turned, stretched, or seen in a mirror.

    Materials by noun may be given; all others are chosen here.
    """
    stretch = math.exp(r.uniform(-0.22, 0.22))
    tilt = r.uniform(-0.16, 0.16) if part.parts and r.random() < 0.85 else r.uniform(-1.0, 1.0)
    across, down = reach * stretch * r.choice((-1, 1)) * OVERSAMPLING, reach / stretch * OVERSAMPLING
    c, s = math.cos(tilt), math.sin(tilt)
    turn = np.array([[across * c, across * s], [-down * s, down * c]])
    origin = np.array([x, y]) * OVERSAMPLING
    if r.random() < 0.6:
        away = origin - r.uniform(0.08, 0.2) * reach * OVERSAMPLING * np.array(canvas.light)
        dim = r.uniform(0.6, 0.85)
        for piece in (part, *part.parts):
            for outline in piece.outline:
                canvas.shadow(outline @ turn + away, dim)
    node = _paint(r, canvas, part, turn, origin, first, {}, canvas.around(x, y), outlined, given or {})
    counts = cv2.calcHist([canvas.label], [0], None, [256], [0, 256])
    _measure(node, np.cumsum(counts, dtype=np.int64).tolist())
    return node


def _paint(
    r: Random,
    canvas: Canvas,
    part: Part,
    turn: Floats,
    origin: Floats,
    first: int,
    materials: dict[str, Material],
    beneath: Color,
    outlined: bool,
    given: Mapping[str, Material],
) -> _Node:
    """Paint a part and what lies on it; parts of one name are mostly of one material, or of the given one."""
    node = _Node(part, first, first)
    if part.outline:
        outlines = [outline @ turn + origin for outline in part.outline]
        material = given.get(part.noun)
        material = materials.get(part.noun) if material is None else material
        if material is None or (part.noun not in given and r.random() < 0.1):
            extent = min(np.ptp(outlines[0], axis=0).tolist()) / OVERSAMPLING / canvas.unit
            material = materials[part.noun] = canvas.material(part.look, beneath, extent, outlined)
        node.material, beneath = material, material.color
        canvas.fill(outlines, material, first, part.round)
    for child in part.parts:
        painted = _paint(r, canvas, child, turn, origin, node.last + 1, materials, beneath, outlined, given)
        node.nodes.append(painted)
        node.last = painted.last
    return node


def _measure(node: _Node, upto: list[int]) -> None:
    """Note how much each part shows; `upto` counts the canvas's pixels of labels up to each."""
    node.painted = upto[node.last] - upto[node.first - 1]
    for child in node.nodes:
        _measure(child, upto)


def _see(canvas: Canvas, node: _Node, whole: _Node | None, least: float) -> None:
    """Find the visible pixels of a part and of its parts, and whether they make a mask."""
    inside = cv2.inRange(canvas.label, node.first, node.last)
    node.mask = _halved(inside)
    rows, columns = np.count_nonzero(node.mask, 1), np.count_nonzero(node.mask, 0)
    node.area = int(rows.sum())
    if node.area:
        node.center = (
            float(columns @ np.arange(len(columns)) / node.area),
            float(rows @ np.arange(len(rows)) / node.area),
        )
    shown = cv2.countNonZero(inside) >= MIN_VISIBLE * node.painted
    own = whole is None or node.area <= MAX_SHARED * whole.area
    node.annotated = node.area >= least and shown and own
    for child in node.nodes:
        _see(canvas, child, node, least)


def _halved(inside: npt.NDArray[np.uint8]) -> Bool:
    """Each 2x2 pixels' majority; the first of them decides a tie, so that no two neighbours get the same pixel."""
    a, b, c, d = inside[::2, ::2], inside[::2, 1::2], inside[1::2, ::2], inside[1::2, 1::2]
    return np.asarray(((a & (b | c | d)) | (b & c & d)).astype(np.bool_))


def _describe(r: Random, nodes: list[_Node], of: str, masks: list[Bool], phrases: list[str]) -> None:
    """Name some siblings and their parts, and gather the masks that count: wholes before parts."""
    seen = []
    for node in nodes:
        look = _appearance(node)
        seen.append(Seen(node.part.noun, look.name, look.pattern, node.area, node.center))
    for node, words in zip(nodes, name(r, seen, whole=not of), strict=True):
        if node.annotated:
            masks.append(node.mask)
            phrases.append(words + of)
        worth_a_word = [child for child in node.nodes if child.area >= max(8, node.area // 400)]
        _describe(r, worth_a_word, f" of {words}{of}", masks, phrases)


def _appearance(node: _Node) -> Material:
    """The material that a thing is called after: its own, or its main part's."""
    if node.material is not None:
        return node.material
    main = [child for child in node.nodes if child.part.look == "main"] or node.nodes
    return _appearance(max(main, key=lambda child: child.area))
