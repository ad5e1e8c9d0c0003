"""What a scene of named things shows, and the words that it is called by: colour, texture, shape, part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

__all__ = ["COLORS", "COMBINATIONS", "NOUNS", "PART", "TEXTURES", "Worded", "held_out", "plan"]

NOUNS = ("ball", "star", "leaf", "brick", "diamond", "heart")
COLORS = ("red", "yellow", "green", "blue", "purple", "pink", "white", "black")
TEXTURES = ("", "striped", "dotted")
PART = "badge"
"""What some things carry in their middle."""
COMBINATIONS = ("known", "held_out", "all")


@dataclass(frozen=True)
class Worded:
    """A thing as words have it.

    Attributes:
        noun: Its shape.
        color: Its colour.
        texture: Of its surface; empty for a plain one.
        badge: Colour of what it carries; empty for nothing.
        named: Whether it and its part are masks of the scene.
    """

    noun: str
    color: str
    texture: str
    badge: str = ""
    named: bool = True

    @property
    def phrase(self) -> str:
        """Such as "the striped red star"."""
        return " ".join(word for word in ("the", self.texture, self.color, self.noun) if word)

    @property
    def part_phrase(self) -> str:
        """Such as "the white badge of the striped red star"."""
        return f"the {self.badge} {PART} of {self.phrase}"


def held_out(noun: str, color: str) -> bool:
    """Whether a shape in a colour is never seen where combinations are "known": one colour in eight for each shape."""
    return NOUNS.index(noun) == COLORS.index(color)


def plan(r: Random, combinations: str) -> Sequence[Worded]:
    """Three to five things, no two of which a phrase means both.

    The second is often of the first one's colour and the third of its shape, so that a single word seldom tells them
    apart.

    Args:
        r: Chance.
        combinations: Which of them are masks: "known", of which alone the scene then consists, "held_out", or "all".
    """
    things: list[Worded] = []
    wanted = r.randrange(3, 6)
    while len(things) < wanted:
        noun, color = r.choice(NOUNS), r.choice(COLORS)
        if len(things) == 1 and r.random() < 0.6:
            color = things[0].color
        elif len(things) == 2 and r.random() < 0.6:
            noun = things[0].noun
        if combinations == "held_out" and not things:  # there is one at least
            color = COLORS[NOUNS.index(noun)]
        apart = held_out(noun, color)
        if combinations == "known" and apart:
            continue
        texture = r.choice(TEXTURES)
        alike = [other.texture for other in things if (other.noun, other.color) == (noun, color)]
        if alike and (not texture or "" in alike or texture in alike):
            continue
        badge = r.choice([other for other in COLORS if other != color]) if r.random() < 0.3 else ""
        named = combinations == "all" or apart == (combinations == "held_out")
        things.append(Worded(noun, color, texture, badge, named))
    return things
