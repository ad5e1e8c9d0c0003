"""`samlit segment --everything`: masks of all there is in pictures, from the shell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samlit import atomic
from samlit.contracts import Task
from samlit.drawing.colouring import coloured
from samlit.everything import find
from samlit.loading import images
from samlit.model import Sam
from samlit.shell import terminal
from samlit.shell.bars import bar

__all__ = ["run"]

PICTURES = {".png", ".jpg", ".jpeg"}


def run(net: Sam, side: int, names: Sequence[str], out: Path, task: Task) -> None:
    """Find everything in images, and write it.

    Args:
        net: The model, on its device.
        side: Of the frame, pixels.
        names: Files of images.
        out: A picture, a .json with the released generator's records, or a folder for one PNG a mask.
        task: Of everything, with the options that were typed.

    Raises:
        ValueError: An image is damaged.
    """
    rows: list[dict[str, Any]] = []
    for name in names:
        pixels = images.read(name)
        with bar() as progress:
            found = find(net, side, pixels, task, progress, Path(name).name)
        terminal.say(f"{name}: {len(found)} masks")
        if out.suffix.lower() == ".json":
            rows += [{"file_name": name, **one.record()} for one in found]
        elif out.suffix.lower() in PICTURES:
            picture = Image.fromarray(coloured(pixels, [one.rle for one in found]))
            with atomic.writing(out) as stream:
                picture.save(stream, format="PNG" if out.suffix.lower() == ".png" else "JPEG", quality=95)
        else:
            for i, one in enumerate(found, 1):
                with atomic.writing(out / f"{Path(name).stem}_{i}.png") as stream:
                    Image.fromarray(one.mask.astype(np.uint8) * 255).save(stream, format="PNG")
    if out.suffix.lower() == ".json":
        atomic.write(out, json.dumps(rows, indent=1) + "\n")
