"""What a model makes of phrases, on scenes that neither training nor validation shows.

python benchmarks/text.py --weights runs/text_tiny/best.ckpt --scenes 100
python benchmarks/text.py --weights runs/text_tiny/best.ckpt --picture docs/pictures/text.png

The table says what is lost where: `text` is the mIoU of what phrases are answered with; `found` is the share of the
answers that are nearer to the mask that is meant than to any other of the scene, and `drawn` their mIoU; `clicked` is
the mIoU of what the phrase with a click in the mask's middle is answered with.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from samlit.drawing import pictures
from samlit.predictor import Predictor
from samlit_sources import _scenes, _worded

SIDE = 128
ZOOM = 2
SMALL, LARGE = 16, 32
"""Square roots of a mask's pixels, in a scene of 128."""
Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


class Answer(NamedTuple):
    """What a phrase is answered with, (H, W), and what it is with a click in the middle of its mask.

    `ious` are those of the first with all masks of the scene, of which `own` is meant.
    """

    image: Pixels
    phrase: str
    truth: Mask
    mask: Mask
    clicked: Mask
    ious: list[float]
    own: int


def iou(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def answers(predictor: Predictor, first: int) -> Iterator[list[Answer]]:
    """Scenes without end, of all combinations, from a number on."""
    while True:
        scene = _scenes.render(0, 1, first, SIDE, 60, "worded", "all")
        first += 1
        predictor.set_image(scene.image)
        said = [{"text": [phrase]} for phrase in scene.phrases]
        both = [{**words, "points": [_middle(mask)]} for words, mask in zip(said, scene.masks, strict=True)]
        found, clicked = ([each.masks[0].numpy() for each in predictor.predict_each(asked)] for asked in (said, both))
        yield [
            Answer(scene.image, phrase, truth, mask, click, [iou(mask, other) for other in scene.masks], own)
            for own, (phrase, truth, mask, click) in enumerate(
                zip(scene.phrases, scene.masks, found, clicked, strict=True),
            )
        ]


def _middle(mask: Mask) -> tuple[int, int, int]:
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = divmod(int(depth.argmax()), mask.shape[1])
    return column, row, 1


def kinds(answer: Answer) -> list[str]:
    """The rows of the table that an answer belongs to."""
    _, of, whole = answer.phrase.rpartition(" of ")
    *before, color, noun = whole.split()
    side = float(answer.truth.sum()) ** 0.5
    size = "small" if side < SMALL else "large" if side >= LARGE else "middle-sized"
    return [
        "all",
        f"a {_worded.PART}" if of else "a whole thing",
        *([] if of else [next((word for word in before if word in _worded.TEXTURES), "plain"), noun, color]),
        f"{size} ({'below' if size == 'small' else 'from'} {LARGE if size == 'large' else SMALL}²)",
        "held out" if _worded.held_out(noun, color) else "seen combinations",
    ]


def table(scenes: Sequence[Sequence[Answer]]) -> str:
    """A line a kind of phrase."""
    rows: dict[str, list[Answer]] = defaultdict(list)
    for answer in (answer for scene in scenes for answer in scene):
        for kind in kinds(answer):
            rows[kind].append(answer)
    order = {"all": 0, "a whole thing": 1, f"a {_worded.PART}": 2}
    lines = [f"{'':24}{'masks':>6}{'text':>7}{'found':>7}{'drawn':>7}{'clicked':>9}"]
    for kind in sorted(rows, key=lambda kind: (order.get(kind, 3), kind)):
        some = rows[kind]
        right = [each for each in some if each.ious[each.own] > 0 and each.ious[each.own] == max(each.ious)]
        numbers = (
            np.mean([each.ious[each.own] for each in some]),
            len(right) / len(some),
            np.mean([each.ious[each.own] for each in right]) if right else 0.0,
            np.mean([iou(each.clicked, each.truth) for each in some]),
        )
        lines.append(
            f"{kind:24}{len(some):>6}" + "".join(f"{number:>7.3f}" for number in numbers[:3]) + f"{numbers[3]:>9.3f}"
        )
    return "\n".join(lines)


def cell(answer: Answer) -> Pixels:
    """An answer over its image, with its phrase, its IoU, and a star where no training scene had the combination."""
    side = SIDE * ZOOM
    shown = Image.fromarray(pictures.overlay(answer.image, answer.mask, pictures.ORANGE))
    shown = shown.resize((shown.width * ZOOM, shown.height * ZOOM), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (side + 4, side + 40), "white")
    canvas.paste(shown, (2, 38))
    words = answer.phrase.split()
    star = " *" if _worded.held_out(words[-1], words[-2]) else ""
    pen = ImageDraw.Draw(canvas)
    lines = [" ".join(words[:4]), " ".join(words[4:])]
    pen.text((3, 1), lines[0], fill="black", font_size=15)
    pen.text((3, 18), f"{lines[1]}  {answer.ious[answer.own]:.2f}{star}".strip(), fill="black", font_size=15)
    return np.asarray(canvas)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--scenes", type=int, default=0, help="print the table of so many scenes")
    parser.add_argument("--picture", type=Path, help="draw the first answers")
    parser.add_argument("--first", type=int, default=1000, help="number of the first scene; the recipe's are below 100")
    parser.add_argument("--cells", type=int, default=20)
    parser.add_argument("--columns", type=int, default=5)
    given = parser.parse_args()
    predictor = Predictor.load(given.weights)
    if given.scenes:
        print(table(list(islice(answers(predictor, given.first), given.scenes))))
    if given.picture:
        every = (answer for scene in answers(predictor, given.first) for answer in scene)
        cells = [cell(answer) for answer in islice(every, given.cells)]
        rows = [np.hstack(cells[at : at + given.columns]) for at in range(0, len(cells), given.columns)]
        given.picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.vstack(rows)).quantize(128).save(given.picture, optimize=True)
        print(f"{given.picture}: {given.picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
