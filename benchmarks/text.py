"""What a model makes of phrases: held-out scenes, and the answers to all of their phrases.

python benchmarks/text.py --weights runs/text_tiny/best.ckpt --picture docs/pictures/text.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from samlit import pictures
from samlit.predictor import Predictor
from samlit_sources import _scenes, _worded

ZOOM = 2
Pixels = npt.NDArray[np.uint8]


def cell(image: Pixels, mask: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_], phrase: str) -> Pixels:
    """An answer over its image, with its phrase, its IoU, and a star where no training scene had the combination."""
    side = 128 * ZOOM
    shown = Image.fromarray(pictures.overlay(image, mask, pictures.ORANGE))
    shown = shown.resize((shown.width * ZOOM, shown.height * ZOOM), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (side + 4, side + 40), "white")
    canvas.paste(shown, (2, 38))
    iou = (mask & truth).sum() / max(1, (mask | truth).sum())
    star = " *" if _worded.held_out(*phrase.split()[:-3:-1]) else ""
    words = phrase.split()
    pen = ImageDraw.Draw(canvas)
    lines = [" ".join(words[:4]), " ".join(words[4:])] if len(words) > 4 else [phrase, ""]
    pen.text((3, 1), lines[0], fill="black", font_size=15)
    pen.text((3, 18), f"{lines[1]}  {iou:.2f}{star}".strip(), fill="black", font_size=15)
    return np.asarray(canvas)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--first", type=int, default=1000, help="number of the first scene; the recipe's are below 100")
    parser.add_argument("--cells", type=int, default=20)
    parser.add_argument("--columns", type=int, default=5)
    given = parser.parse_args()
    predictor = Predictor.load(given.weights)
    cells: list[Pixels] = []
    index = given.first
    while len(cells) < given.cells:
        scene = _scenes.render(0, 1, index, 128, 60, "worded", "all")
        index += 1
        predictor.set_image(scene.image)
        for truth, phrase in zip(scene.masks, scene.phrases, strict=True):
            mask = predictor.predict({"text": [phrase]}).masks[0].numpy()
            cells.append(cell(scene.image, mask, truth, phrase))
    cells = cells[: given.cells]
    rows = [np.hstack(cells[at : at + given.columns]) for at in range(0, len(cells), given.columns)]
    given.picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.vstack(rows)).save(given.picture, optimize=True)
    print(f"{given.picture}: {given.picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
