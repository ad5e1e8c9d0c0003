"""Words that single out each thing of a scene and each of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

__all__ = ["Seen", "name"]

_COUNT = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


@dataclass(frozen=True)
class Seen:
    """What words can be made of.

    Attributes:
        noun: "wheel".
        color: "red".
        pattern: "striped", or nothing.
        area: Visible pixels.
        center: (x, y) of their middle.
    """

    noun: str
    color: str
    pattern: str
    area: int
    center: tuple[float, float]


def name(chance: Random, things: Sequence[Seen], whole: bool) -> list[str]:
    """A phrase for each of a few siblings, such as "the left striped wheel"; no two the same.

    Args:
        chance: For words that may stand or not.
        things: All that lie on one other thing, or in the scene.
        whole: Whether they are the scene's own things, which are always called after their colour.
    """
    plain = []
    for thing in things:
        alike = [other for other in things if other.noun == thing.noun]
        colors = len({other.color for other in alike})
        patterns = len({other.pattern for other in alike})
        if whole or colors > 1:
            adjective = thing.color
        elif thing.pattern and (patterns > 1 or chance.random() < 0.8):
            adjective = thing.pattern
        else:
            adjective = thing.color if len(alike) == 1 and chance.random() < 0.3 else ""
        plain.append(f"{adjective} {thing.noun}".strip())
    phrases = [""] * len(things)
    for words in dict.fromkeys(plain):
        same = [number for number, other in enumerate(plain) if other == words]
        for number, text in zip(same, _apart([things[n] for n in same], words), strict=True):
            phrases[number] = f"the {text}"
    return phrases


def _apart(things: Sequence[Seen], words: str) -> list[str]:
    """Tell things of the same words apart by size, else by place."""
    num = len(things)
    if num == 1:
        return [words]
    if num == 2:
        large = 0 if things[0].area >= things[1].area else 1
        if things[large].area > 1.9 * things[1 - large].area:
            return [f"{'large' if number == large else 'small'} {words}" for number in range(2)]
    across, down = (max(t.center[axis] for t in things) - min(t.center[axis] for t in things) for axis in (0, 1))
    axis = 0 if across >= 0.8 * down else 1
    order = sorted(range(num), key=lambda number: (things[number].center[axis], number))
    first, last = (("left", "right"), ("upper", "lower"))[axis]
    if num == 2:
        texts = [f"{first} {words}", f"{last} {words}"]
    elif num == 3:
        texts = [f"{first} {words}", f"middle {words}", f"{last} {words}"]
    else:
        count = (*_COUNT, *(f"{number}th" for number in range(len(_COUNT) + 1, num + 1)))
        texts = [f"{count[number]} {words} from the {('left', 'top')[axis]}" for number in range(num)]
    return [texts[order.index(number)] for number in range(num)]
