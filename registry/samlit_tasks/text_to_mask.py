"""Text to mask (paper section 7.5): phrases that name one thing, several, or nothing that is there."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from samlit.contracts import Task
from samlit.evaluation.finding import Found, best_threshold, judge
from samlit.metrics import Collected, mask_iou
from samlit.structures import Prediction, PromptSet, Ragged, Result, Scene
from samlit.text.searching import search, words_of

__all__ = ["TextToMask"]

NAMES = ("text", "other", "click", "text_click")


class TextToMask(Task):
    """Text to mask: mIoU where a phrase names one thing; precision and recall where several, or none.

    "text" is the mIoU of what a phrase alone is answered with, "other" that of what another phrase of the same image
    is answered with, for which a model that does not listen gets as much. "click" is that of one point in the middle,
    and "text_click" of phrase and point together, the paper's repair. All are in the frame.

    What a phrase finds are candidates, scored by how near CLIP sees them to the phrase. Phrases of the batch's other
    images are asked about too, and should find nothing. The threshold is chosen on every second image and judged on
    the others.

    Args:
        find: Whether masks are found by phrases; it needs the images and a CLIP that sees.
        side: Points along a side of the grid that finds candidates beside the phrase's own masks; 0 for none.
        absent: Most phrases that an image is asked about in vain.
        threshold: Score from which on a candidate is found; chosen if not given.
        nms: Of two candidates of more IoU than this, the one of higher predicted IoU stays.
    """

    prompts = ("text",)

    def __init__(
        self,
        find: bool = True,
        side: int = 0,
        absent: int = 4,
        threshold: float | None = None,
        nms: float = 0.7,
    ) -> None:
        if side < 0 or absent < 0:
            raise ValueError("side and absent: no less than 0")
        self.find, self.side, self.absent, self.threshold, self.nms = find, side, absent, threshold, nms

    def rounds(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """Yield phrases; the result is IoU by name, one a phrase of one thing, and "found", a row a phrase."""
        meant = _meant(scene)
        result: Result = {}
        single = [(image, phrase, masks[0]) for (image, phrase), masks in meant.items() if len(masks) == 1]
        if single:
            result |= yield from self._single(scene, single)
        if self.find and meant:
            result["found"] = yield from self._find(scene, meant)
        return result

    def _single(self, scene: Scene, rows: list[tuple[int, str, int]]) -> Generator[PromptSet, Prediction, Result]:
        """Phrases of one mask each."""
        device = scene.masks.device
        words = words_of(scene)
        which = torch.tensor([mask for _, _, mask in rows], device=device)
        index, truth = scene.image_index[which], scene.masks[which]

        def ask(given: dict[str, Ragged], right: bool = True) -> Generator[PromptSet, Prediction, Tensor]:
            # A wrong phrase asks for none of the masks, as far as the predicted IoU is held to the actual one.
            target = which if right else torch.full_like(which, len(scene.masks))
            answer = yield PromptSet(index, given, target=target)
            return mask_iou(answer.mask(answer.best()), truth)

        phrases = [phrase for _, phrase, _ in rows]
        text = words.told(phrases, device)
        result: Result = {"text": (yield from ask({"text": text}))}
        others = [_other(phrases, [image for image, _, _ in rows], k) for k in range(len(rows))]
        if some := [k for k, phrase in enumerate(others) if phrase]:
            told = words.told([phrase or phrases[k] for k, phrase in enumerate(others)], device)
            result["other"] = (yield from ask({"text": told}, right=False))[some]
        if "points" in scene.prompts:
            click = scene.prompts["points"].simulate(truth, None, scene)
            result["click"] = yield from ask({"points": click})
            result["text_click"] = yield from ask({"text": text, "points": click})
        return result

    def _find(
        self, scene: Scene, meant: Mapping[tuple[int, str], list[int]]
    ) -> Generator[PromptSet, Prediction, list[Any]]:
        """A row a phrase and image: the image's key, how many masks are meant, scores, IoUs."""
        rows: list[Any] = []
        spoken = list(dict.fromkeys(phrase for _, phrase in meant))
        for image in range(len(scene.batch.image)):
            own = [phrase for of, phrase in meant if of == image]
            asked = own + [phrase for phrase in spoken if phrase not in own][: self.absent]
            if not asked:
                continue
            found = yield from search(scene, image, asked, self.side, self.nms)
            for phrase, score in zip(asked, found.scores, strict=True):
                truth = scene.masks[meant.get((image, phrase), [])]
                ious = mask_iou(found.masks[:, None], truth[None])
                rows.append([scene.batch.keys[image], len(truth), score.tolist(), ious.tolist()])
        return rows

    def metric(self) -> Finding:
        """Mean IoU by name, and precision, recall and presence of what is found."""
        return Finding(self.find, self.threshold)


class Finding(Collected):
    """MIoU by name, and what finding by phrases comes to.

    Args:
        find: Whether there is anything found.
        threshold: Of the score; chosen on every second image if not given.
    """

    def __init__(self, find: bool, threshold: float | None) -> None:
        super().__init__()
        self.find, self.threshold = find, threshold
        self.counts = ["other", "threshold", "precision", "recall", "f1", "presence_mcc", "cgf1"]

    def rows(self, result: Mapping[str, Any]) -> Iterable[Any]:
        """The IoUs of a batch, and a row a phrase that was looked for."""
        ious = {name: result[name].tolist() for name in NAMES if name in result}
        yield from [{"ious": ious}] if ious else []
        yield from ({"found": row} for row in result.get("found", ()))

    def judge(self, rows: list[Any]) -> dict[str, float]:
        """Over all batches."""
        numbers: dict[str, float] = {}
        for name in NAMES:
            values = [value for row in rows for value in row.get("ious", {}).get(name, ())]
            if values:
                numbers[name] = sum(values) / len(values)
        found = [row["found"] for row in rows if "found" in row]
        if self.find and found:
            keys = {key: k for k, key in enumerate(sorted({row[0] for row in found}))}
            sets: tuple[list[Found], list[Found]] = [], []
            for key, *about in found:
                sets[keys[key] % 2].append(Found(*about))
            # With one image there is nothing to choose on but what is judged.
            threshold = best_threshold(sets[0]) if self.threshold is None else self.threshold
            judged = judge((sets[1] or sets[0]) if self.threshold is None else sets[0] + sets[1], threshold)
            numbers |= {"precision": judged.precision, "recall": judged.recall, "f1": judged.f1}
            numbers |= {"presence_mcc": judged.mcc, "cgf1": judged.cgf1, "threshold": threshold}
        return numbers


def _meant(scene: Scene) -> dict[tuple[int, str], list[int]]:
    """The masks that each phrase of each image means."""
    meant: dict[tuple[int, str], list[int]] = {}
    for mask, (image, phrase) in enumerate(zip(scene.image_index.tolist(), scene.batch.phrases, strict=False)):
        if phrase:
            meant.setdefault((image, phrase), []).append(mask)
    return meant


def _other(phrases: Sequence[str], images: Sequence[int], row: int) -> str:
    """The next phrase of the same image; empty where there is no other one."""
    mine = [k for k, image in enumerate(images) if image == images[row]]
    return phrases[mine[(mine.index(row) + 1) % len(mine)]] if len(mine) > 1 else ""
