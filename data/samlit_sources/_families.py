"""The things that procedural scenes show: trees of named parts, drawn at random in a unit square."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
import numpy.typing as npt

__all__ = ["COMPOSITES", "SIMPLE", "SMALL", "STURDY", "Part", "badge"]

Polygon = npt.NDArray[np.float64]


@dataclass
class Part:
    """A named part and the parts that lie on it; later ones are painted over earlier ones.

    Attributes:
        noun: What it is called.
        outline: Polygons (N, 2) in a square from -1 to 1, x to the right and y down; none for a mere group.
        parts: What it consists of or carries.
        look: Which colours and textures suit it, a key of `samlit_sources._scenes.LOOKS`.
        round: Whether it is shaded as a ball rather than as a board.
    """

    noun: str
    outline: list[Polygon]
    parts: list[Part] = field(default_factory=list)
    look: str = "any"
    round: bool = False


def _oval(
    x: float, y: float, rx: float, ry: float | None = None, tilt: float = 0.0, span: tuple[float, float] = (0.0, 1.0)
) -> Polygon:
    """An ellipse, or the piece of one between two shares of the turn (0 is right, .25 is down)."""
    num = max(10, int(36 * (span[1] - span[0])))
    turn = 2 * math.pi * np.linspace(span[0], span[1], num, endpoint=span[1] - span[0] < 1)
    across, down = rx * np.cos(turn), (rx if ry is None else ry) * np.sin(turn)
    c, s = math.cos(tilt), math.sin(tilt)
    return np.stack([x + across * c - down * s, y + across * s + down * c], 1)


def _poly(*corners: tuple[float, float]) -> Polygon:
    return np.array(corners, np.float64)


def _rect(x0: float, y0: float, x1: float, y1: float, corner: float = 0.0) -> Polygon:
    """A rectangle, its corners rounded by a radius."""
    if corner <= 0:
        return _poly((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    r = min(corner, (x1 - x0) / 2, (y1 - y0) / 2)
    return np.concatenate(
        [
            _oval(x1 - r, y1 - r, r, span=(0, 0.25))[::3],
            _oval(x0 + r, y1 - r, r, span=(0.25, 0.5))[::3],
            _oval(x0 + r, y0 + r, r, span=(0.5, 0.75))[::3],
            _oval(x1 - r, y0 + r, r, span=(0.75, 1))[::3],
        ]
    )


def _bar(x0: float, y0: float, x1: float, y1: float, width: float) -> Polygon:
    """A straight bar from one point to another."""
    length = math.hypot(x1 - x0, y1 - y0)
    nx, ny = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
    return _poly((x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny))


def _wavy(x: float, y: float, rx: float, ry: float, waves: int, depth: float, phase: float = 0.0) -> Polygon:
    """A closed outline with bumps: blossoms, crowns, clouds."""
    turn = np.linspace(0, 2 * math.pi, 8 * waves, endpoint=False)
    swing = 1 - depth + depth * np.abs(np.cos(waves * turn / 2 + phase))
    return np.stack([x + rx * swing * np.cos(turn), y + ry * swing * np.sin(turn)], 1)


def _blob(r: Random, x: float, y: float, rx: float, ry: float, rough: float = 0.15) -> Polygon:
    """An irregular round outline."""
    turn = np.linspace(0, 2 * math.pi, 28, endpoint=False)
    swing = np.ones(28)
    for wave in range(2, 6):
        swing += rough / wave * r.gauss(0, 1) * np.cos(wave * turn + r.uniform(0, 6.3))
    return np.stack([x + rx * swing * np.cos(turn), y + ry * swing * np.sin(turn)], 1)


def _star(points: int, inner: float) -> Polygon:
    turn = np.arange(2 * points) * math.pi / points - math.pi / 2
    reach = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return np.stack([reach * np.cos(turn), reach * np.sin(turn)], 1)


def _wheel(r: Random, x: float, y: float, size: float) -> Part:
    hub = Part("hub", [_oval(x, y, size * r.uniform(0.36, 0.52))], look="metal", round=True)
    return Part("wheel", [_oval(x, y, size)], [hub], look="wheel")


def _eye(r: Random, x: float, y: float, size: float, tall: float = 1.0) -> Part:
    off = r.uniform(-0.2, 0.2) * size
    pupil = Part("pupil", [_oval(x + off, y + off / 2, size * r.uniform(0.45, 0.58))], look="dark")
    return Part("eye", [_oval(x, y, size, size * tall)], [pupil], look="light")


def _cart(r: Random) -> Part:
    top, floor = r.uniform(-0.55, -0.25), r.uniform(0.2, 0.35)
    left, right, slant = -r.uniform(0.75, 0.9), r.uniform(0.6, 0.8), r.uniform(0, 0.2)
    body = Part("body", [_poly((left, top), (right, top), (right - slant, floor), (left + slant, floor))], look="main")
    if r.random() < 0.6:
        y = r.uniform(0.35, 0.65) * (floor - top) + top
        body.parts.append(Part("stripe", [_rect(left + slant / 2 + 0.02, y - 0.1, right - slant / 2 - 0.02, y + 0.1)]))
    load = [
        Part("sack" if r.random() < 0.5 else "stone", [_blob(r, x, top - 0.05, 0.3, r.uniform(0.25, 0.4))], round=True)
        for x in (-0.4, 0.1, 0.4)[: r.randrange(4)]
    ]
    size = r.uniform(0.28, 0.4)
    wheels = [_wheel(r, left + 0.42, 0.95 - size, size), _wheel(r, right - 0.35, 0.95 - size, size)]
    handle = Part("handle", [_bar(right - 0.1, floor - 0.25, 1.0, r.uniform(-0.8, -0.3), 0.13)], look="wood")
    return Part("cart", [], [*load, handle, body, *wheels])


def _house(r: Random) -> Part:
    eaves, side = r.uniform(-0.3, 0.0), r.uniform(0.65, 0.85)
    wall = Part("wall", [_rect(-side, eaves, side, 0.95)], look="main")
    flat = r.choice((0.0, 0.0, 0.35))
    roof = Part("roof", [_poly((-1, eaves), (-flat, -0.95), (flat, -0.95), (1, eaves))], look="tiles")
    if r.random() < 0.4:
        roof.parts.append(Part("skylight", [_oval(0, (eaves - 0.95) / 2 + 0.1, 0.2)], look="glass"))
    door_x, window_x = r.choice(((-0.4, 0.32), (0.4, -0.32)))
    tall = r.uniform(0.55, 0.75) * (0.95 - eaves)
    door = Part("door", [_rect(door_x - 0.2, 0.95 - tall, door_x + 0.2, 0.95)], look="wood")
    door.parts.append(Part("knob", [_oval(door_x + 0.1, 0.97 - tall / 2, 0.09)], look="metal", round=True))
    y, w = eaves + 0.16 + 0.26, r.uniform(0.24, 0.3)
    window = Part("window", [_rect(window_x - w, y - 0.26, window_x + w, y + 0.26)], look="light")
    if r.random() < 0.5:
        window.parts = [
            Part("pane", [_rect(window_x - w + 0.07, y - 0.19, window_x - 0.03, y + 0.19)], look="glass"),
            Part("pane", [_rect(window_x + 0.03, y - 0.19, window_x + w - 0.07, y + 0.19)], look="glass"),
        ]
    else:
        window.parts = [
            Part("pane", [_rect(window_x - w + 0.08, y - 0.18, window_x + w - 0.08, y + 0.18)], look="glass")
        ]
    wall.parts = [door, window]
    parts = [wall, roof]
    if r.random() < 0.6:
        x = r.choice((-1, 1)) * r.uniform(0.4, 0.55)
        parts.insert(0, Part("chimney", [_rect(x - 0.12, -0.9, x + 0.12, eaves)], look="tiles"))
    return Part("house", [], parts)


def _robot(r: Random) -> Part:
    wide, neck, hip = r.uniform(0.38, 0.5), r.uniform(-0.3, -0.2), r.uniform(0.4, 0.55)
    eyes = [_eye(r, side * wide * 0.5, -0.66, r.uniform(0.14, 0.17)) for side in (-1, 1)]
    mouth = Part("mouth", [_rect(-wide * 0.6, neck - 0.2, wide * 0.6, neck - 0.08, 0.05)], look="dark")
    head = Part("head", [_rect(-wide, -0.93, wide, neck, r.choice((0.0, 0.12, 0.3)))], [*eyes, mouth], look="metal")
    panel = Part("panel", [_rect(-0.26, neck + 0.17, 0.26, hip - 0.15, 0.06)], look="any")
    panel.parts = [
        Part("button", [_oval(x, (neck + hip) / 2, 0.1)], look="bright", round=True)
        for x in ((-0.12, 0.12) if r.random() < 0.5 else (0.0,))
    ]
    side = r.uniform(0.45, 0.6)
    torso = Part("torso", [_rect(-side, neck, side, hip, r.choice((0.0, 0.1)))], [panel], look="main")
    raised = r.uniform(-0.5, 0.4), r.uniform(-0.5, 0.4)
    arms = [
        Part("arm", [_bar(s * (side - 0.05), neck + 0.2, s * 0.95, neck + 0.25 + up, 0.2)], look="metal")
        for s, up in zip((-1, 1), raised, strict=True)
    ]
    legs = [Part("leg", [_rect(s * 0.26 - 0.14, hip - 0.05, s * 0.26 + 0.14, 0.97)], look="metal") for s in (-1, 1)]
    return Part("robot", [], [*arms, *legs, torso, head])


def _flower(r: Random) -> Part:
    y, size, bend = r.uniform(-0.45, -0.3), r.uniform(0.45, 0.58), r.uniform(-0.15, 0.15)
    core = Part("centre", [_oval(0, y, size * r.uniform(0.35, 0.48))], look="bright", round=True)
    petals = _wavy(0, y, size, size, r.randrange(5, 9), r.uniform(0.25, 0.4), r.uniform(0, 3))
    blossom = Part("blossom", [petals], [core], look="main")
    stem = Part("stem", [_poly((-0.06, y), (0.06, y), (bend + 0.09, 0.5), (bend - 0.05, 0.5))], look="green")
    leaf = Part("leaf", [_oval(bend + r.choice((-0.3, 0.3)), 0.22, 0.3, 0.13, r.uniform(-0.4, 0.4))], look="green")
    pot = Part("pot", [_poly((-0.42, 0.42), (0.42, 0.42), (0.3, 0.97), (-0.3, 0.97))], look="any")
    pot.parts.append(Part("rim", [_rect(-0.48, 0.38, 0.48, 0.56)], look="any"))
    return Part("flower", [], [stem, leaf, blossom, pot])


def _fish(r: Random) -> Part:
    tall = r.uniform(0.42, 0.62)
    eye = _eye(r, -0.5, -tall * 0.25, r.uniform(0.15, 0.19))
    fin = Part("fin", [_poly((0.0, 0.0), (0.42, tall * 0.15), (0.3, tall * 0.7), (0.1, tall * 0.35))], look="any")
    body = Part("body", [_oval(-0.15, 0, 0.8, tall)], [fin, eye], look="main", round=True)
    tail = Part("tail", [_poly((0.4, 0), (0.98, -r.uniform(0.4, 0.6)), (0.8, 0), (0.98, r.uniform(0.4, 0.6)))])
    crest = Part("crest", [_poly((-0.45, -tall * 0.75), (0.1, -tall - 0.33), (0.38, -tall * 0.6), (0, -tall * 0.6))])
    return Part("fish", [], [tail, crest, body])


def _tree(r: Random) -> Part:
    w, y = r.uniform(0.12, 0.2), r.uniform(-0.4, -0.25)
    trunk = Part("trunk", [_poly((-w, y), (w, y), (w * 1.5, 0.97), (-w * 1.5, 0.97))], look="wood")
    if r.random() < 0.5:
        trunk.parts.append(Part("hollow", [_oval(0, 0.55, w * 0.65, w * 0.9)], look="dark"))
    if r.random() < 0.3:
        crown = Part(
            "crown",
            [_poly((0, -0.97), (0.62, 0.1), (0.25, 0.1), (0.75, 0.5), (-0.75, 0.5), (-0.25, 0.1), (-0.62, 0.1))],
        )
        spots = [(0.0, -0.35), (-0.3, 0.3), (0.3, 0.28)]
    else:
        crown = Part("crown", [_wavy(0, y, r.uniform(0.68, 0.9), 0.57, r.randrange(7, 11), 0.22, r.uniform(0, 3))])
        spots = [(-0.4, y - 0.1), (0.05, y + 0.25), (0.38, y - 0.18), (0.0, y - 0.3)]
    crown.look = "main"
    noun = r.choice(("fruit", "apple", "lantern"))
    crown.parts = [
        Part(noun, [_oval(x + r.uniform(-0.06, 0.06), z, r.uniform(0.12, 0.16))], look="bright", round=True)
        for x, z in r.sample(spots, r.randrange(1, len(spots)))
    ]
    return Part("tree", [], [trunk, crown])


def _boat(r: Random) -> Part:
    deck, keel, lean = r.uniform(0.2, 0.35), r.uniform(0.5, 0.7), r.uniform(-0.1, 0.1)
    hull = Part("hull", [_poly((-0.97, deck), (0.97, deck), (keel, 0.95), (-keel, 0.95))], look="main")
    spots = r.choice(((-0.4, 0.0, 0.4), (-0.3, 0.3), (0.0,)))
    hull.parts = [
        Part(
            "porthole",
            [_oval(x, (deck + 0.95) / 2, 0.16)],
            [Part("glass", [_oval(x, (deck + 0.95) / 2, 0.1)], look="glass")],
            look="metal",
        )
        for x in spots
    ]
    mast = Part("mast", [_bar(lean - 0.05, deck, lean, -0.95, 0.11)], look="wood")
    sail = Part(
        "sail",
        [_poly((lean + 0.08, -0.85), (r.uniform(0.65, 0.9), deck - 0.15), (lean + 0.08, deck - 0.1))],
        look="any",
    )
    sail.parts.append(Part("emblem", [_oval(lean + 0.3, deck - 0.38, 0.15)], look="bright"))
    jib = Part(
        "jib", [_poly((lean - 0.1, -0.7), (-r.uniform(0.55, 0.8), deck - 0.12), (lean - 0.1, deck - 0.12))], look="any"
    )
    return Part("boat", [], [mast, sail, *([jib] if r.random() < 0.6 else []), hull])


def _mushroom(r: Random) -> Part:
    rim, w = r.uniform(-0.05, 0.15), r.uniform(0.2, 0.34)
    stem = Part("stem", [_poly((-w, rim - 0.1), (w, rim - 0.1), (w * 1.4, 0.95), (-w * 1.4, 0.95))], look="light")
    if r.random() < 0.5:
        stem.parts.append(Part("ring", [_oval(0, rim + 0.28, w * 1.35, 0.13)], look="any"))
    cap = Part("cap", [_oval(0, rim, 0.95, 0.95 + rim, span=(0.5, 1.0))], look="main", round=True)
    places = [(-0.5, -0.25), (0.0, -0.6), (0.48, -0.3), (-0.05, -0.2)]
    cap.parts = [
        Part("spot", [_oval(x, rim + y * 0.9, r.uniform(0.13, 0.2), r.uniform(0.11, 0.15))], look="light")
        for x, y in r.sample(places, r.randrange(2, 5))
    ]
    return Part("mushroom", [], [stem, cap])


def _snowman(r: Random) -> Part:
    small, large = r.uniform(0.28, 0.34), r.uniform(0.42, 0.5)
    head_y = 0.97 - 2 * large - small + 0.12
    eyes = [Part("eye", [_oval(s * small * 0.4, head_y - 0.04, 0.085)], look="dark") for s in (-1, 1)]
    nose = Part("nose", [_poly((-0.03, head_y + 0.02), (0.33, head_y + 0.12), (-0.02, head_y + 0.16))], look="bright")
    head = Part("head", [_oval(0, head_y, small)], [*eyes, nose], look="light", round=True)
    belly = Part("belly", [_oval(0, 0.97 - large, large * 1.1, large)], look="light", round=True)
    belly.parts = [Part("button", [_oval(0, 0.97 - large * k, 0.1)], look="bright", round=True) for k in (1.35, 0.75)]
    top = head_y - small * 0.7
    band = Part("band", [_rect(-0.24, top - 0.16, 0.24, top - 0.02)], look="bright")
    hat = Part(
        "hat",
        [_rect(-0.24, top - r.uniform(0.38, 0.5), 0.24, top), _rect(-0.42, top - 0.05, 0.42, top + 0.07)],
        [band],
        look="main",
    )
    arms = [
        Part("arm", [_bar(s * large * 0.8, 0.3, s * 0.97, r.uniform(-0.2, 0.3), 0.09)], look="wood") for s in (-1, 1)
    ]
    scarf = Part(
        "scarf",
        [
            _rect(-small * 0.95, head_y + small * 0.62, small * 0.95, head_y + small * 1.1, 0.08),
            _rect(small * 0.2, head_y + small * 0.7, small * 0.75, head_y + small * 2.1),
        ],
        look="bright",
    )
    return Part("snowman", [], [*arms, belly, head, scarf, hat])


def _car(r: Random) -> Part:
    roof, waist, floor = r.uniform(-0.5, -0.4), r.uniform(-0.08, 0.02), 0.38
    front, back = r.uniform(0.45, 0.6), r.uniform(0.5, 0.8)
    cabin = Part(
        "cabin",
        [_poly((-back, waist + 0.03), (-back + 0.2, roof), (front - 0.25, roof), (front, waist + 0.03))],
        look="any",
    )
    cabin.parts = [
        Part(
            "window",
            [
                _poly(
                    (-back + 0.14, waist - 0.04), (-back + 0.27, roof + 0.1), (-0.08, roof + 0.1), (-0.08, waist - 0.04)
                )
            ],
            look="glass",
        ),
        Part(
            "window",
            [_poly((0.04, waist - 0.04), (0.04, roof + 0.1), (front - 0.3, roof + 0.1), (front - 0.14, waist - 0.04))],
            look="glass",
        ),
    ]
    body = Part("body", [_rect(-0.97, waist, 0.97, floor, 0.16)], look="main")
    body.parts = [Part("lamp", [_oval(0.85, waist + 0.15, 0.1)], look="bright", round=True)]
    if r.random() < 0.6:
        door = Part("door", [_rect(-0.25, waist + 0.05, 0.22, floor - 0.04, 0.04)], look="any")
        door.parts.append(Part("grip", [_rect(-0.2, waist + 0.11, 0.02, waist + 0.19)], look="dark"))
        body.parts.append(door)
    size = r.uniform(0.24, 0.31)
    wheels = [_wheel(r, x, floor, size) for x in (-0.55, 0.55)]
    return Part("car", [], [cabin, body, *wheels])


def _butterfly(r: Random) -> Part:
    reach, low, tilt = r.uniform(0.42, 0.5), r.uniform(0.3, 0.4), r.uniform(0.2, 0.7)
    wings = []
    for s in (-1, 1):
        spot = Part(
            "spot",
            [_oval(s * 0.58, -0.38, 0.17)],
            [Part("dot", [_oval(s * 0.58, -0.38, 0.09)], look="dark")],
            look="light",
        )
        tip = Part("tail spot", [_oval(s * 0.45, 0.42, 0.14)], look="bright")
        outline = [_oval(s * 0.5, -0.35, reach, 0.42, -s * tilt), _oval(s * 0.42, 0.4, low + 0.05, low, s * tilt)]
        wings.append(Part("wing", outline, [spot, tip], look="main"))
    body = Part("body", [_oval(0, 0, 0.12, 0.6)], look="dark", round=True)
    head = Part("head", [_oval(0, -0.6, 0.16)], look="any", round=True)
    return Part("butterfly", [], [*wings, body, head])


def _rocket(r: Random) -> Part:
    w, nose = r.uniform(0.28, 0.38), r.uniform(-0.5, -0.35)
    glass = Part("glass", [_oval(0, -0.1, w * 0.42)], look="glass", round=True)
    window = Part("window", [_oval(0, -0.1, w * 0.68)], [glass], look="metal")
    belt = Part("belt", [_rect(-w, 0.28, w, 0.44)], look="any")
    hull = Part("hull", [_rect(-w, nose - 0.02, w, 0.6)], [window, belt], look="main")
    cone = Part("nose", [_oval(0, nose, w, 0.97 + nose, span=(0.5, 1.0))], look="bright")
    fins = [
        Part("fin", [_poly((s * (w - 0.04), 0.1), (s * 0.8, 0.55), (s * 0.8, 0.8), (s * (w - 0.04), 0.58))])
        for s in (-1, 1)
    ]
    core = Part("core", [_oval(0, 0.68, w * 0.4, 0.16)], look="light")
    flame = Part(
        "flame",
        [_poly((-w * 0.8, 0.55), (w * 0.8, 0.55), (w * 0.3, 0.8), (0, 0.98), (-w * 0.3, 0.8))],
        [core],
        look="bright",
    )
    return Part("rocket", [], [flame, *fins, hull, cone])


def _cat(r: Random) -> Part:
    ears = []
    for s in (-1, 1):
        inner = Part("inner ear", [_poly((s * 0.66, -0.72), (s * 0.62, -0.36), (s * 0.36, -0.48))], look="pink")
        ears.append(Part("ear", [_poly((s * 0.78, -0.95), (s * 0.82, -0.1), (s * 0.1, -0.5))], [inner], look="main"))
    eyes = [_eye(r, s * r.uniform(0.34, 0.4), -0.05, 0.21, r.uniform(0.75, 1.0)) for s in (-1, 1)]
    nose = Part("nose", [_poly((-0.13, 0.22), (0.13, 0.22), (0, 0.4))], look="pink")
    muzzle = Part("muzzle", [_oval(0, 0.42, r.uniform(0.38, 0.5), 0.28)], [nose], look="light")
    head = Part(
        "face", [_oval(0, 0.12, r.uniform(0.82, 0.92), r.uniform(0.68, 0.76))], [*eyes, muzzle], look="main", round=True
    )
    return Part("cat", [], [*ears, head])


COMPOSITES: Sequence[Callable[[Random], Part]] = (
    _cart,
    _house,
    _robot,
    _flower,
    _fish,
    _tree,
    _boat,
    _mushroom,
    _snowman,
    _car,
    _butterfly,
    _rocket,
    _cat,
)
"""Things of three levels: whole, part, part of a part."""

STURDY: Sequence[Callable[[Random], Part]] = (_cart, _house, _robot, _car, _rocket, _cat)
"""Those of them without stalks, masts and twigs."""


def _simple(noun: str, outline: Iterable[Polygon], shaded: bool = False) -> Part:
    return Part(noun, list(outline), look="main", round=shaded)


SMALL: Sequence[Callable[[Random], Part]] = (
    lambda r: _simple("ball", [_oval(0, 0, 0.95)], True),
    lambda r: _simple("star", [_star(5, r.uniform(0.42, 0.55))]),
    lambda r: _simple("pebble", [_blob(r, 0, 0, 0.9, r.uniform(0.55, 0.8), 0.2)], True),
    lambda r: _simple("leaf", [_poly((-1, 0), (-0.4, -0.42), (0.3, -0.4), (1, 0), (0.3, 0.4), (-0.4, 0.42))]),
    lambda r: _simple("brick", [_rect(-0.95, -0.5, 0.95, 0.5)]),
    lambda r: _simple("diamond", [_poly((0, -1), (0.7, 0), (0, 1), (-0.7, 0))]),
    lambda r: _simple(
        "heart",
        [_poly((0, 0.95), (-0.93, -0.1), (0.93, -0.1)), _oval(-0.47, -0.28, 0.5), _oval(0.47, -0.28, 0.5)],
    ),
)
"""Things of one level."""

SIMPLE: Mapping[str, Callable[[Random], Part]] = dict(
    zip(("ball", "star", "pebble", "leaf", "brick", "diamond", "heart"), SMALL, strict=True)
)
"""The same by their names."""


def badge(noun: str, size: float) -> Part:
    """A disc in the middle of a thing."""
    return Part(noun, [_oval(0, 0, size)], round=False)
