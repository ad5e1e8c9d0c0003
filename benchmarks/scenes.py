"""How hard the procedural scenes are for methods that learn nothing, and a picture of them.

python benchmarks/scenes.py --scenes 50 --picture docs/pictures/shapes.png
python benchmarks/scenes.py --scenes 50 --style clear --min-area 300 --picture docs/pictures/shapes_clear.png
python benchmarks/scenes.py --scenes 50 --style worded --min-area 60 --picture docs/pictures/shapes_worded.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from samlit_sources import _scenes

TOLERANCES = (4, 8, 12, 16, 24, 32, 48, 64)
Mask = npt.NDArray[np.bool_]


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union of two masks, (H, W) bool each."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def click(mask: Mask) -> tuple[int, int]:
    """The pixel (x, y) of a mask that is farthest from its border."""
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)


def threshold(image: npt.NDArray[np.uint8], at: tuple[int, int]) -> Mask:
    """Otsu's threshold on the grey image; of the click's side, the piece that the click is in."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    _, side = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    _, pieces = cv2.connectedComponents((side == side[at[1], at[0]]).astype(np.uint8))
    return np.asarray(pieces == pieces[at[1], at[0]])


def flood_fill(image: npt.NDArray[np.uint8], at: tuple[int, int], tolerance: int, fixed: bool) -> Mask:
    """What is joined to the click by pixels within a tolerance of their neighbour's colour, or of the click's."""
    filled = np.zeros((image.shape[0] + 2, image.shape[1] + 2), np.uint8)
    step = (tolerance,) * 3
    cv2.floodFill(
        image.copy(), filled, at, 0, step, step, 4 | cv2.FLOODFILL_MASK_ONLY | fixed * cv2.FLOODFILL_FIXED_RANGE
    )
    return np.asarray(filled[1:-1, 1:-1] > 0)


def grab_cut(image: npt.NDArray[np.uint8], mask: Mask) -> Mask:
    """GrabCut, 5 iterations, from the true box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
    if box[2] * box[3] == mask.size:  # no background is left to learn from
        return np.ones_like(mask)
    label = np.zeros(mask.shape, np.uint8)
    cv2.setRNGSeed(0)
    cv2.grabCut(image, label, tuple(map(int, box)), np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_RECT)
    return np.asarray(label & 1 > 0)


def baselines(scenes: list[_scenes.Drawing], every: int = 1) -> dict[str, float]:
    """Mean IoU of each method over all masks, or every so manieth; for flood fill of each single tolerance."""
    found: dict[str, list[float]] = {}
    for number, scene in enumerate(scenes):
        for mask in scene.masks[number % every :: every]:
            at = click(mask)
            found.setdefault("threshold", []).append(iou(threshold(scene.image, at), mask))
            for tolerance in TOLERANCES:
                for fixed, kind in ((False, "step"), (True, "range")):
                    answer = flood_fill(scene.image, at, tolerance, fixed)
                    found.setdefault(f"flood fill, {kind} {tolerance}", []).append(iou(answer, mask))
            found.setdefault("GrabCut", []).append(iou(grab_cut(scene.image, mask), mask))
    return {name: float(np.mean(values)) for name, values in found.items()}


def picture(scenes: list[_scenes.Drawing], columns: int = 4, zoom: int = 2) -> npt.NDArray[np.uint8]:
    """The scenes in rows, the masks of every second one outlined; (H, W, 3) uint8 RGB."""
    side = max(max(scene.image.shape) for scene in scenes) * zoom
    cells = []
    for number, scene in enumerate(scenes):
        height, width = scene.image.shape[:2]
        image = cv2.resize(scene.image, (width * zoom, height * zoom), interpolation=cv2.INTER_NEAREST)
        for order, mask in enumerate(scene.masks if number % 2 else ()):
            large = cv2.resize(mask.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            outlines, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            hue = np.full((1, 1, 3), (order * 67 % 180, 230, 255), np.uint8)
            cv2.drawContours(image, outlines, -1, cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0].tolist(), 1)
        cell = np.full((side + 4, side + 4, 3), 255, np.uint8)
        top, left = (side - height * zoom) // 2 + 2, (side - width * zoom) // 2 + 2
        cell[top : top + height * zoom, left : left + width * zoom] = image
        cells.append(cell)
    return np.vstack([np.hstack(cells[start : start + columns]) for start in range(0, len(cells), columns)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=50, help="held-out scenes to measure on")
    parser.add_argument("--size", type=int, default=128, help="long side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--style", choices=("rich", "clear", "worded"), default="rich")
    parser.add_argument("--min-area", type=int, default=32, help="visible pixels of a mask at least")
    parser.add_argument("--picture", type=Path, help="also draw 12 scenes to this PNG")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    count = max(given.scenes, 12)
    scenes = [_scenes.render(given.seed, 1, index, given.size, given.min_area, given.style) for index in range(count)]
    if given.picture:
        given.picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(scenes[:12])).save(given.picture, optimize=True)
        print(f"{given.picture}: {given.picture.stat().st_size / 1000:.0f} kB")
    scenes = scenes[: given.scenes]
    results = baselines(scenes)
    fill = max((name for name in results if name.startswith("flood")), key=results.__getitem__)
    print(f"{sum(len(scene.masks) for scene in scenes)} masks in {len(scenes)} scenes of {given.size} px, mean IoU")
    for name in ("threshold", fill, "GrabCut"):
        print(f"  {name:<22} {results[name]:.3f}")


if __name__ == "__main__":
    main()
