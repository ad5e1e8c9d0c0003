"""How answers hold when prompts or images are disturbed: mIoU against the strength."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from PIL import Image
from torchmetrics import Metric

from samlit.contracts import Task
from samlit.drawing import lines
from samlit.evaluation.originals import Truths
from samlit.masks import rle, tracing
from samlit.metrics import MeanByName
from samlit.structures import Change, Prediction, PromptSet, Result, Scene

__all__ = ["Robustness"]

STRENGTHS: dict[str, tuple[float, ...]] = {
    "jitter": (0.05, 0.1, 0.2, 0.4),
    "jitter_pixels": (2, 5, 10, 20),
    "wrong": (0.2, 0.4, 0.6, 0.8),
    "jpeg": (50, 20, 10, 5),
    "blur": (1, 2, 4, 8),
}
POINTS = 5
"""Of a mask where some are on the wrong side."""


def jpeg(image: np.ndarray, quality: float) -> np.ndarray:
    """An image, (H, W, 3) uint8, as a JPEG file of that quality shows it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=int(quality))
    return np.asarray(Image.open(file))


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """An image, (H, W, 3) uint8, under a Gaussian of that deviation in pixels."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma)) if sigma else image


IMAGES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {"jpeg": jpeg, "blur": blur}


class Robustness(Task):
    """mIoU of a point or a box against the strength of a disturbance: jitter, wrong side, JPEG, blur.

    Disturbances are applied one at a time. What is judged is the mask that the model is most confident of, at the
    images' own size. Chance is the same at all strengths, so that a curve falls for no other reason than the strength.

    Args:
        disturb: Strengths by disturbance, weakest first: `jitter`, a deviation as share of the mask's size (the root
            of its area); `jitter_pixels`, one in pixels of the image; `wrong`, the chance that a point that should be
            in the mask is beside it, in its box enlarged by half a side all around, while five points are asked with;
            `jpeg`, the quality of the file that the image goes through; `blur`, a Gaussian's deviation in pixels of
            the image. All but `jitter_pixels` if not given.
        prompt: What is asked with: the point farthest from the mask's edge, or its box.
        seed: Of all chance.
    """

    originals = True

    def __init__(
        self,
        disturb: dict[str, list[float]] | None = None,
        prompt: Literal["points", "boxes"] = "points",
        seed: int = 0,
    ) -> None:
        if prompt not in ("points", "boxes"):
            raise ValueError(f"prompt: points or boxes, not {prompt!r}")
        usual = [name for name in STRENGTHS if name != "jitter_pixels" and (name, prompt) != ("wrong", "boxes")]
        self.disturb: dict[str, tuple[float, ...]] = {name: STRENGTHS[name] for name in usual}
        if disturb:
            self.disturb = {name: tuple(strengths) for name, strengths in disturb.items()}
        for name, strengths in self.disturb.items():
            if name not in STRENGTHS:
                raise ValueError(f"disturb: {name!r} is no disturbance (known: {', '.join(STRENGTHS)})")
            if not strengths or min(strengths) < 0 or len(set(strengths)) < len(strengths):
                raise ValueError(f"disturb: {name} needs strengths, each once, not {list(strengths)}")
            if name == "wrong" and (max(strengths) > 1 or prompt == "boxes"):
                raise ValueError("disturb: wrong is a chance up to 1, of points")
            if name == "jpeg" and not all(1 <= quality <= 100 for quality in strengths):
                raise ValueError(f"disturb: jpeg is a quality from 1 to 100, not {list(strengths)}")
        self.seed, self.prompts = seed, (prompt,)
        self.prompt: str = prompt

    def rounds(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """Yield all masks' prompts at each strength; the result is IoU (K,) by name, like "blur_4"."""
        truths, found = Truths(scene), {}
        for name, disturbance, strength in self._names():
            ious: list[float] = []
            for some in truths.portions():
                values = [self._asked(scene, truths, k, disturbance, strength) for k in some]
                given = {self.prompt: truths.given(self.prompt, some, values)}
                change = None
                if disturbance in IMAGES:
                    change = Change(name, partial(_changed, by=IMAGES[disturbance], strength=strength))
                index = truths.index(some)
                target = torch.tensor(some, device=index.device)
                answer = yield PromptSet(index, given, target=target, change=change)
                masks = tracing.masks(scene, answer.pick(answer.best()), index)
                ious += [truths.iou(k, mask) for k, mask in zip(some, masks, strict=True)]
            found[name] = torch.tensor(ious, device=scene.image_index.device)
        return found

    def _asked(
        self, scene: Scene, truths: Truths, k: int, disturbance: str, strength: float
    ) -> list[tuple[float, ...]]:
        """The prompts for a mask, disturbed, in pixels of its image."""
        image = truths.image[k]
        rows, columns = scene.batch.samples[image].size
        chance = random.Random(f"{self.seed} {scene.batch.samples[image].key} {k - truths.image.index(image)}")
        x0, y0, x1, y1 = truths.boxes[k]
        if self.prompt == "points":
            click = truths.click(k)
            assert click is not None  # of a mask that has a pixel
            places = [(float(click[0]), float(click[1]))]
        else:
            places = [(x0, y0), (x1 - 1, y1 - 1)]
        if disturbance.startswith("jitter"):
            size = math.sqrt(rle.area(truths.masks[k])) if disturbance == "jitter" else 1.0
            places = [
                (x + chance.gauss(0, 1) * strength * size, y + chance.gauss(0, 1) * strength * size) for x, y in places
            ]
        elif disturbance == "wrong":
            places = _sided(truths, k, (rows, columns), strength, chance)
        places = [(min(max(x, 0.0), columns - 1.0), min(max(y, 0.0), rows - 1.0)) for x, y in places]
        if self.prompt == "points":
            return [(x, y, 1) for x, y in places]
        (xa, ya), (xb, yb) = places
        return [(min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb))]

    def metric(self) -> MeanByName:
        """Mean IoU by name."""
        return MeanByName([name for name, _, _ in self._names()])

    def plot(self, numbers: Mapping[str, float], metric: Metric, folder: Path) -> None:
        """A line a disturbance: mIoU against strength, each as share of the strongest."""
        drawn = {}
        for disturbance, strengths in self.disturb.items():
            # A JPEG of quality 100 is the least disturbed.
            size = {s: 100 - s if disturbance == "jpeg" else s for s in strengths}
            most = max(size.values()) or 1.0
            start = numbers["wrong_0" if disturbance == "wrong" else "undisturbed"]
            points = [(0.0, start)] + [(size[s] / most, numbers[f"{disturbance}_{s:g}"]) for s in strengths]
            worst = min(strengths) if disturbance == "jpeg" else max(strengths)
            drawn[f"{disturbance}, up to {worst:g}"] = sorted(points)
        title = f"{self.prompt[:-1] if self.prompt == 'points' else 'box'} prompts, disturbed"
        lines.draw(folder / "robustness.png", drawn, title, "share of the strongest disturbance", "mIoU")

    def _names(self) -> list[tuple[str, str, float]]:
        """What is asked: a name, the disturbance and its strength."""
        asked = [("undisturbed", "", 0.0)]
        for disturbance, strengths in self.disturb.items():
            # Five points are another question than one: their curve begins at a place of its own.
            first = (0.0,) if disturbance == "wrong" and 0 not in strengths else ()
            asked += [(f"{disturbance}_{strength:g}", disturbance, strength) for strength in (*first, *strengths)]
        return asked


def _changed(image: np.ndarray, by: Callable[[np.ndarray, float], np.ndarray], strength: float) -> np.ndarray:
    return by(image, strength)


def _sided(
    truths: Truths, k: int, size: tuple[int, int], share: float, chance: random.Random
) -> list[tuple[float, float]]:
    """Points that should be in a mask, some of which are beside it; chance is the same whatever the share."""
    x0, y0, x1, y1 = truths.boxes[k]
    left, top = max(x0 - (x1 - x0) // 2, 0), max(y0 - (y1 - y0) // 2, 0)
    right, bottom = min(x1 + (x1 - x0) // 2, size[1]), min(y1 + (y1 - y0) // 2, size[0])
    window = slice(top, bottom), slice(left, right)
    mask = rle.draw(truths.masks[k], (bottom - top, right - left), window)
    places: list[tuple[float, float]] = []
    for _ in range(POINTS):
        wrong, at, beside = chance.random() < share, chance.random(), chance.random()
        inside, outside = np.flatnonzero(mask), np.flatnonzero(~mask)
        pixels, drawn = (outside, beside) if wrong and len(outside) else (inside, at)
        y, x = divmod(int(pixels[int(drawn * len(pixels))]), mask.shape[1])
        places.append((float(left + x), float(top + y)))
    return places
