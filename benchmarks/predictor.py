"""What the predictor answers about a drawn scene, as a picture, and how long it takes.

python benchmarks/predictor.py --weights mobile_sam.pt --picture docs/pictures/predictor.png
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from samlit.drawing import pictures
from samlit.masks import clicks
from samlit.predictor import Masks, Predictor, Prompts
from samlit_sources import _scenes

COLOURS = (pictures.ORANGE, pictures.BLUE, pictures.GREEN)
CAPTION = 34


def panel(
    predictor: Predictor,
    image: npt.NDArray[np.uint8],
    caption: str,
    prompts: Prompts,
    masks: list[npt.NDArray[np.bool_]],
) -> npt.NDArray[np.uint8]:
    """An image with masks and the prompts that they answer, and a line of text above."""
    for i, mask in enumerate(masks):
        image = pictures.overlay(image, mask, COLOURS[i % len(COLOURS)])
    picture = Image.fromarray(image)
    for name, values in prompts.items():
        for value in values:
            predictor.net.prompt_types[name].draw(picture, torch.as_tensor(value))
    whole = Image.new("RGB", (picture.width, picture.height + CAPTION), "white")
    whole.paste(picture, (0, CAPTION))
    ImageDraw.Draw(whole).text((4, 7), caption, fill="black", font_size=18)
    return np.asarray(whole)


def sheet(predictor: Predictor, scene: _scenes.Drawing) -> npt.NDArray[np.uint8]:
    """One point and its three masks, boxes around many things at once, and a box that a click corrects."""
    picture = scene.image
    predictor.set_image(picture)
    # The scene's masks overlap, a part lies on its whole: things that are clear of each other are shown.
    order = sorted(range(len(scene.masks)), key=lambda i: -int(scene.masks[i].sum()))
    apart: list[int] = []
    for i in order:
        if not any((scene.masks[i] & scene.masks[j]).any() for j in apart):
            apart.append(i)
    boxes = [box(scene.masks[i]) for i in apart[:9]]
    part = min((i for i in order if i not in apart and scene.masks[i].sum() > 1500), key=order.index, default=order[0])
    point = click(scene.masks[part])
    rows = []
    three = predictor.predict({"points": [point]})
    for i, (mask, iou) in enumerate(zip(three.masks, three.iou.tolist(), strict=True)):
        rows.append(
            panel(predictor, picture, f"one point: answer {i + 1}, {iou:.2f}", {"points": [point]}, [mask.numpy()])
        )
    found = [answer.masks[0].numpy() for answer in predictor.predict_each([{"boxes": [one]} for one in boxes])]
    rows.append(panel(predictor, picture, f"{len(boxes)} boxes at once", {"boxes": boxes}, found))
    return np.concatenate(rows, 1)


def box(mask: npt.NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Around a mask, xyxy."""
    y, x = np.nonzero(mask)
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


def click(mask: npt.NDArray[np.bool_]) -> tuple[float, float, float]:
    """On a mask's deepest place."""
    truth = torch.from_numpy(mask)[None]
    (x, y), *_ = clicks.centre(truth, torch.zeros_like(truth))[0].tolist()
    return x, y, 1.0


def seconds(run: Callable[[], object]) -> float:
    """The shortest of three runs after one that warms up."""
    run()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print the times, and draw the picture if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, help="what Predictor.load takes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scene", type=int, default=2, help="number of a held-out scene")
    parser.add_argument("--size", type=int, default=384, help="its long side in pixels")
    parser.add_argument("--picture", type=Path, help="also draw a picture to this PNG")
    given = parser.parse_args()
    predictor = Predictor.load(given.weights, given.device)
    scene = _scenes.render(0, 1, given.scene, given.size, 32, "clear")
    if given.picture:
        given.picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet(predictor, scene)).save(given.picture, optimize=True)
        print(f"{given.picture}: {given.picture.stat().st_size / 1000:.0f} kB")
    prompts: list[Prompts] = [{"boxes": [box(mask)]} for mask in scene.masks][:16]

    def alone() -> list[Masks]:
        return [predictor.predict(one) for one in prompts]

    print(f"embed an image      {seconds(lambda: predictor.set_image(scene.image)):8.3f} s")
    print(f"one box             {seconds(lambda: predictor.predict(prompts[0])):8.3f} s")
    print(f"{len(prompts):2} boxes, in turns  {seconds(alone):8.3f} s")
    print(f"{len(prompts):2} boxes, at once   {seconds(lambda: list(predictor.predict_each(prompts))):8.3f} s")


if __name__ == "__main__":
    main()
