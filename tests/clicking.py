"""Scenes with samples of several sizes, and a model that answers them at random about the truth."""

import numpy as np
import torch
from torch.nn import functional as F

from samlit.loading import frames
from samlit.masks import rle
from samlit.source import Sample
from samlit.structures import Prediction, Scene
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points

SIDE = 64


def samples(seed=0, sizes=((50, 90), (130, 61)), count=3):
    """Pictures of several sizes, with masks that are ragged at their edges."""
    chance = np.random.default_rng(seed)
    made = []
    for number, (rows, columns) in enumerate(sizes):
        y, x = np.mgrid[:rows, :columns]
        masks = []
        for _ in range(count):
            cy, cx, r = chance.integers(8, rows - 8), chance.integers(8, columns - 8), chance.integers(5, 20)
            masks.append(((y - cy) ** 2 + (x - cx) ** 2 <= r * r) ^ (chance.random(y.shape) < 0.02))
        image = chance.integers(0, 256, (rows, columns, 3), np.uint8)
        made.append(Sample(f"picture {number}", image, tuple(rle.encode_many(np.stack(masks)))))
    return made


def scene(made, side=SIDE):
    batch = frames.pack([frames.frame(sample, side) for sample in made])
    batch.samples = list(made)
    return Scene(batch, {kind.name: kind(8) for kind in (Points, Boxes, Masks)})


class Noisy:
    """Answers with blobs that have to do with the truth, and remembers what it was asked and what it said."""

    def __init__(self, view, noise=6.0, seed=0):
        self.view, self.noise, self.asked, self.said = view, noise, [], []
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, prompts):
        rows, num = len(prompts), 1 if prompts.multimask is False else 3
        target = torch.arange(rows) if prompts.target is None else prompts.target
        truth = F.interpolate(self.view.masks[target][:, None].float(), scale_factor=0.25)
        coarse = torch.randn(rows, num, 5, 5, generator=self.generator)
        noise = F.interpolate(coarse, truth.shape[-2:], mode="bilinear")
        logits = 8 * truth - 4 + self.noise * noise
        iou = torch.rand(rows, num, generator=self.generator)
        said = Prediction(logits, iou, torch.ones_like(iou, dtype=torch.bool), (SIDE, SIDE))
        self.asked.append(prompts)
        self.said.append(said)
        return said
