"""One picture a task, of what `samlit evaluate --task NAME --out FOLDER/NAME` has left there.

python benchmarks/task_pictures.py --folder out --picture docs/pictures/tasks.jpg

A task that draws a curve is shown by it, the others by their first picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from samlit import atomic

TASKS = {
    "points": "points: clicks, and what is wrong",
    "boxes": "boxes",
    "clicks": "clicks: mIoU by click",
    "everything": "everything",
    "proposals": "proposals",
    "instances": "instances",
    "panoptic": "panoptic",
    "semantic": "semantic",
    "foreground": "foreground",
    "superpixels": "superpixels",
    "robustness": "robustness: mIoU by strength",
}
PART = {"points": (2 / 3, 1 / 4), "boxes": (2 / 3, 1 / 2)}
"""What of a sheet's width and height is shown, from the top left."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="a folder for each task in it, named as the task")
    parser.add_argument("--picture", required=True)
    options = parser.parse_args()
    there = [name for name in TASKS if (Path(options.folder) / name).is_dir()]
    if not there:
        parser.error(f"--folder {options.folder}: there is no folder in it that is named as a task")
    figure = Figure((14, 3.6 * -(-len(there) // 4)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(-(-len(there) // 4), 4, squeeze=False).flat
    for name, one in zip(there, axes, strict=False):
        one.imshow(shown(Path(options.folder) / name, name))
        one.set_title(TASKS[name], fontsize=12)
    for one in list(figure.axes):
        one.axis("off")
    picture = Path(options.picture)
    atomic.replacing(picture, lambda path: figure.savefig(path, format="jpeg", dpi=100, pil_kwargs={"quality": 88}))
    print(f"saved to {options.picture}")


def shown(folder: Path, name: str) -> np.ndarray:
    """The task's plot, where it draws one, or its first picture, (H, W, 3) uint8."""
    plot = folder / f"{name}.png"
    picture = Image.open(plot if plot.is_file() else folder / "pictures" / "00000.png").convert("RGB")
    across, down = PART.get(name, (1, 1))
    return np.asarray(picture.crop((0, 0, int(across * picture.width), int(down * picture.height))))


if __name__ == "__main__":
    main()
