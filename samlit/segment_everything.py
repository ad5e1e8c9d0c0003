"""`samlit segment --everything`: masks of all there is in pictures, from the shell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from samlit import atomic, frames, images, rle
from samlit.answers import Answers
from samlit.bars import bar
from samlit.colouring import coloured
from samlit.contracts import Task
from samlit.loop import drive
from samlit.model import Sam
from samlit.structures import Prediction, PromptSet, Sample, Scene

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
        sample = Sample(name, pixels, ())
        batch = frames.pack([frames.frame(sample, side)]).to(net.pixel_mean.device)
        batch.samples = [sample]
        scene = Scene(batch, net.prompt_types)
        answers, total, done = Answers(net, batch), task.questions(scene), 0
        with bar() as progress, torch.no_grad():

            def answer(
                prompts: PromptSet,
                answers: Answers = answers,
                total: int = total,
                what: str = Path(name).name,
                progress: Any = progress,
            ) -> Prediction:
                nonlocal done
                given = answers(prompts)
                done += 1
                progress(done, total, what)
                return given

            (found,) = drive(task, scene, answer)["found"]
        print(f"{name}: {len(found)} masks")
        if out.suffix.lower() == ".json":
            rows += [{"file_name": name, **one.record()} for one in found]
        elif out.suffix.lower() in PICTURES:
            picture = Image.fromarray(coloured(pixels, [one.rle for one in found]))
            with atomic.writing(out) as stream:
                picture.save(stream, format="PNG" if out.suffix.lower() == ".png" else "JPEG", quality=95)
        else:
            for i, one in enumerate(found, 1):
                with atomic.writing(out / f"{Path(name).stem}_{i}.png") as stream:
                    Image.fromarray(rle.decode(one.rle).astype(np.uint8) * 255).save(stream, format="PNG")
    if out.suffix.lower() == ".json":
        atomic.write(out, json.dumps(rows, indent=1) + "\n")
