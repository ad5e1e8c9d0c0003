"""`samlit segment --text WORDS --find THRESHOLD`: all that is called so in pictures, or that nothing is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from samlit import atomic
from samlit.drawing.colouring import coloured
from samlit.evaluation.answers import Answers
from samlit.loading import frames, images
from samlit.masks import rle, tracing
from samlit.masks.rle import Rle
from samlit.model import Sam
from samlit.shell import terminal
from samlit.source import Sample
from samlit.structures import Scene
from samlit.text.searching import Candidates, search

__all__ = ["find", "run"]

PICTURES = {".png", ".jpg", ".jpeg"}


@torch.no_grad()
def find(net: Sam, side: int, sample: Sample, phrase: str, threshold: float, grid: int = 16) -> list[tuple[Rle, float]]:
    """The masks in an image, of its own size, that a phrase means, with their scores, surest first.

    Args:
        net: A model that takes text.
        side: Of its frame, pixels.
        sample: The image.
        phrase: What is looked for.
        threshold: Score from which on a mask is believed, as `samlit evaluate --task text_to_mask` chooses it.
        grid: Points along a side of the grid that finds candidates beside the phrase's own masks.
    """
    batch = frames.pack([frames.frame(sample, side)]).to(net.pixel_mean.device)
    batch.samples = [sample]
    scene = Scene(batch, net.prompt_types)
    answers, asking = Answers(net, batch), search(scene, 0, [phrase], grid)
    prompts = next(asking)
    while True:
        try:
            prompts = asking.send(answers(prompts))
        except StopIteration as end:
            found: Candidates = end.value
            break
    scores = found.scores[0]
    kept = [k for k in scores.argsort(descending=True).tolist() if float(scores[k]) >= threshold]
    if not kept:
        return []
    index = torch.zeros(len(kept), dtype=torch.long, device=found.logits.device)
    strings = tracing.masks(scene, found.logits[kept], index)
    return list(zip(strings, scores[kept].tolist(), strict=True))


def run(net: Sam, side: int, names: Sequence[str], out: Path, phrase: str, threshold: float) -> None:
    """Find all that a phrase means in images, and write it.

    Args:
        net: The model, on its device.
        side: Of the frame, pixels.
        names: Files of images.
        out: A picture, a .json with COCO's results, or a folder for one PNG a mask.
        phrase: What is looked for.
        threshold: Score from which on a mask is believed.
    """
    rows: list[dict[str, Any]] = []
    for name in names:
        pixels = images.read(name)
        found = find(net, side, Sample(name, pixels, ()), phrase, threshold)
        terminal.say(f"{name}: {len(found) or 'nothing'} found for {phrase!r}")
        for i, (mask, score) in enumerate(found, 1):
            terminal.say(f"{name}: mask {i}, {rle.area(mask)} pixels, score {score:.2f}")
        if out.suffix.lower() == ".json":
            for mask, score in found:
                x0, y0, x1, y1 = rle.box(mask)
                segmentation = {"size": list(mask.size), "counts": mask.counts}
                box = [x0, y0, x1 - x0, y1 - y0]
                rows.append({"file_name": name, "segmentation": segmentation, "bbox": box, "score": round(score, 4)})
        elif out.suffix.lower() in PICTURES:
            picture = Image.fromarray(coloured(pixels, [mask for mask, _ in found]))
            with atomic.writing(out) as stream:
                picture.save(stream, format="PNG" if out.suffix.lower() == ".png" else "JPEG", quality=95)
        else:
            for i, (mask, _) in enumerate(found, 1):
                with atomic.writing(out / f"{Path(name).stem}_{i}.png") as stream:
                    Image.fromarray(rle.decode(mask).astype(np.uint8) * 255).save(stream, format="PNG")
    if out.suffix.lower() == ".json":
        atomic.write(out, json.dumps(rows, indent=1) + "\n")
