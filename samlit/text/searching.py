"""All that a phrase means in an image: candidates, and how near CLIP sees each of them to the phrase."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from samlit.structures import Prediction, PromptSet, Ragged, Scene

__all__ = ["Candidates", "Worded", "search", "words_of"]


@runtime_checkable
class Worded(Protocol):
    """What a prompt type of words can do beside what every prompt type can."""

    def told(self, phrases: list[str], device: torch.device) -> Ragged:
        """Phrases, one a row."""

    def likeness(self, masks: Tensor, scene: Scene, image_index: Tensor) -> Tensor:
        """What masks (P, H, W) show, (P, D), of length 1, to be compared with what phrases mean."""


class Candidates(NamedTuple):
    """Masks that phrases may mean.

    Attributes:
        logits: (P, 4h, 4w), low-res logits.
        masks: (P, H, W) bool, the same in the frame.
        scores: (phrases, P), the cosine of what each shows with what each phrase means.
    """

    logits: Tensor
    masks: Tensor
    scores: Tensor


def words_of(scene: Scene) -> Worded:
    """The model's prompt type of words.

    Raises:
        ValueError: What is called text cannot be told phrases.
    """
    words = scene.prompts["text"]
    if not isinstance(words, Worded):
        raise ValueError("the prompt type called text cannot be told phrases")
    return words


def search(
    scene: Scene, image: int, phrases: Sequence[str], side: int = 0, nms: float = 0.7
) -> Generator[PromptSet, Prediction, Candidates]:
    """Yield the prompts that find candidates in one of a scene's images, and return them.

    Args:
        scene: With the images themselves.
        image: Which one.
        phrases: One at least.
        side: Points along a side of a grid that finds candidates beside the phrases' own masks; 0 for none.
        nms: Of two candidates of more IoU than this, the one of higher predicted IoU stays, before CLIP sees any.
    """
    words, device = words_of(scene), scene.image_index.device

    def about(given: dict[str, Ragged], rows: int) -> PromptSet:
        index = torch.full((rows,), image, device=device)
        return PromptSet(index, given, target=torch.full_like(index, len(scene.masks)))

    told = words.told(list(phrases), device)
    answer = yield about({"text": told}, len(phrases))
    found = [_allowed(answer)]
    if side and "points" in scene.prompts:
        points = _grid(scene, image, side)
        for some in torch.split(points.values, 64):
            answer = yield about({"points": Ragged.of(some)}, len(some))
            found.append(_allowed(answer))
    logits, iou = (torch.cat(parts) for parts in zip(*found, strict=True))
    logits = logits[_thinned(logits > 0, iou, nms)]
    masks = answer.full(logits) > 0
    scores = told.values[:, 0] @ words.likeness(masks, scene, torch.full((len(masks),), image, device=device)).T
    return Candidates(logits, masks, scores)


def _allowed(answer: Prediction) -> tuple[Tensor, Tensor]:
    """Logits (n, 4h, 4w) and predicted IoU (n,) of the masks that prompts of their kind are answered with."""
    return answer.logits[answer.allowed], answer.iou[answer.allowed]


def _grid(scene: Scene, image: int, side: int) -> Ragged:
    rows, columns = scene.batch.sizes[image].tolist()
    share = (torch.arange(side, device=scene.image_index.device) + 0.5) / side
    y, x = torch.meshgrid(share * rows, share * columns, indexing="ij")
    return Ragged.of(torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 1, 3))


def _thinned(masks: Tensor, iou: Tensor, most: float) -> list[int]:
    """The masks (P, h, w) that are not empty and not another one again of higher predicted IoU (P,)."""
    flat = masks.flatten(1).float()
    area, shared = flat.sum(1), flat @ flat.T
    again = shared > most * (area[:, None] + area - shared)
    kept: list[int] = []
    for k in iou.argsort(descending=True).tolist():
        if area[k] and not again[k, kept].any():
            kept.append(k)
    return kept
