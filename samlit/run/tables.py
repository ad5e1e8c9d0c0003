"""Examples as W&B shows them: images with masks that can be hidden, and a table of every answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from samlit.drawing import pictures
from samlit.run.examples import Answer, Example, Played

__all__ = ["as_image", "as_images", "as_table"]

LARGE = 512
"""Images with a longer side are logged as JPEG."""


def as_image(picture: Image.Image, caption: str | None = None, masks: dict[str, Any] | None = None) -> Any:
    """A picture."""
    import wandb

    large = max(picture.size) > LARGE
    return wandb.Image(picture, caption=caption, masks=masks, file_type="jpg" if large else "png")


def as_images(examples: Sequence[Example]) -> dict[str, list[Any]]:
    """By what was asked ("examples/1 point"), each example's image with its answer."""
    images: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for example in examples for name in example.answers):
        have = [(example, example.answers[name]) for example in examples if name in example.answers]
        images[f"examples/{name}"] = [_masked(example, answer) for example, answer in have]
    return images


def as_table(played: Played) -> Any:
    """A row an answer, the worst masks first, with its four pictures and IoUs; None where there are no examples."""
    import wandb

    order = {"worst": played.worst, "best": played.best, "first": played.first}
    columns = ["which", "image", "phrase", "asked", *pictures.PANELS, "IoU", "predicted IoU"]
    rows = []
    for which, examples in order.items():
        for example in examples:
            for name in pictures.rounds_to_show([example]):
                answer = example.answers[name]
                drawn = pictures.panels(example, answer)
                # JPEG, a tenth of PNG's size: a run has a table a validation.
                shown = [wandb.Image(drawn[panel], file_type="jpg") for panel in pictures.PANELS]
                words = [which, example.key, example.phrase, name]
                rows.append([*words, *shown, answer.iou, answer.predicted_iou])
    return wandb.Table(columns=columns, data=rows) if rows else None


def _masked(example: Example, answer: Answer) -> Any:
    """An image with its prompts drawn, and masks that W&B can show and hide."""
    scale = max(1, -(-256 // max(example.truth.shape)))  # so that a prompt's mark leaves something to see
    rows, columns = example.truth.shape
    picture = Image.fromarray(example.image).resize((columns * scale, rows * scale), Image.Resampling.BICUBIC)
    pictures.prompted(picture, example, answer)
    masks = {
        name: {
            "mask_data": mask.repeat(scale, 0).repeat(scale, 1).astype(np.uint8),
            "class_labels": {0: "background", 1: name},
        }
        for name, mask in (("prediction", answer.mask), ("truth", example.truth))
    }
    words = f"IoU {answer.iou:.2f}, predicted {answer.predicted_iou:.2f}"
    return as_image(picture, f"{words}: {example.phrase}" if example.phrase else words, masks)
