"""The paper's training: a first prompt, corrections where the answer is wrong (appendix A, SAM_SPEC 2.1)."""

from __future__ import annotations

from collections.abc import Generator
from itertools import takewhile

import torch
from torch import Tensor

from samlit.contracts import Prompt, Task
from samlit.metrics import mask_iou
from samlit.structures import Prediction, PromptSet, Ragged, Result, Scene

__all__ = ["Interactive"]


class Interactive(Task):
    """Interactive training: a point or a box, 8 corrections, 2 answers to a mask alone; 11 passes.

    Args:
        first: Prompt types of the first pass and how often each is drawn, mask by mask; half points and half noisy
            boxes if not given. Any registered prompt type can stand here.
        corrections: Passes that each get one more prompt, simulated from the last answer's error.
        correct_with: Prompt type of the corrections.
        mask_only: Whether there are two more passes without a new prompt, one after a random correction and one last.
        stop: Chance that a training step ends after an answer, drawn anew after each but the last. The first passes
            teach most for their time, and a model that cannot yet answer has nothing to correct: a short run learns
            most in short chains. The paper has none.
        detach: Whether gradients stop at the logits that are fed back. The paper does not say; SAM 2 lets them pass.
    """

    def __init__(
        self,
        first: dict[str, float] | None = None,
        corrections: int = 8,
        correct_with: str = "points",
        mask_only: bool = True,
        stop: float = 0.0,
        detach: bool = True,
    ) -> None:
        self.first = first or {"points": 0.5, "boxes": 0.5}
        if min(self.first.values()) < 0 or sum(self.first.values()) <= 0:
            raise ValueError(f"first: shares of prompt types must be positive, not {self.first}")
        if not 0 <= stop <= 1:
            raise ValueError(f"stop: a chance from 0 to 1, not {stop:g}")
        self.corrections, self.correct_with = corrections, correct_with
        self.mask_only, self.stop, self.detach = mask_only, stop, detach
        self.attached = not detach

    def rounds(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """Yield the passes' prompts for all K masks at once; the result is "iou", (passes, K)."""
        truth, ious = scene.masks, []
        if not len(truth):
            return {}
        given, multimask = self._first(scene)
        prediction = yield PromptSet(scene.image_index, dict(given), multimask)
        for corrects in self._plan(scene):
            best = prediction.best()
            predicted, logits = prediction.mask(best), prediction.pick(best)
            logits = logits.detach() if self.detach else logits
            ious.append(mask_iou(predicted, truth))
            given["masks"] = Ragged.of(logits[:, None].float())
            if corrects:
                new = self._correction(scene, predicted)
                given[self.correct_with] = given[self.correct_with].append(new) if self.correct_with in given else new
            prediction = yield PromptSet(scene.image_index, dict(given), multimask=False)
        ious.append(mask_iou(prediction.mask(prediction.best()), truth))
        return {"iou": torch.stack(ious)}

    def _first(self, scene: Scene) -> tuple[dict[str, Ragged], bool | None]:
        """One prompt for each mask, its type drawn for each, and how many masks answer it: as SAM's rule has it."""
        share = torch.tensor(list(self.first.values()), dtype=torch.float32, device=scene.masks.device)
        drawn = torch.multinomial(share, len(scene.masks), replacement=True, generator=scene.generator)
        given: dict[str, Ragged] = {}
        for i, name in enumerate(self.first):
            prompt = scene.prompts[name]
            if prompt.costly:
                given[name] = _only(prompt, scene, drawn == i)
                continue
            # Every other type is simulated for every mask, so that what runs never depends on what was drawn.
            given[name] = prompt.simulate(scene.masks, None, scene).where(drawn == i)
        return given, None

    def _correction(self, scene: Scene, predicted: Tensor) -> Ragged:
        """One more prompt for each mask, where the answer, (K, H, W) bool, is wrong."""
        return scene.prompts[self.correct_with].simulate(scene.masks, predicted, scene)

    def _plan(self, scene: Scene) -> list[bool]:
        """For each pass after the first, whether it gets a new prompt.

        The paper puts one of the two mask-only passes at a random place among the corrections: here, uniformly into
        one of the gaps between them (SAM_SPEC 7.8).
        """
        plan = [True] * self.corrections
        if self.mask_only:
            plan.insert(scene.chance.randint(1, max(self.corrections - 1, 1)) if plan else 0, False)
            plan.append(False)
        if scene.training and self.stop:
            plan = list(takewhile(lambda _: scene.chance.random() >= self.stop, plan))
        return plan


def _only(prompt: Prompt, scene: Scene, rows: Tensor) -> Ragged:
    """Prompts for the masks that `rows` (K,) bool names, and none for the others."""
    if rows.is_meta:  # without values, to count what a step takes, nobody knows which
        return prompt.simulate(scene.masks, None, scene).where(rows)
    which = rows.nonzero()[:, 0]
    some = prompt.simulate(scene.masks[which], None, scene.of(which))
    values = some.values.new_zeros((len(rows), *some.values.shape[1:]))
    valid = some.valid.new_zeros((len(rows), *some.valid.shape[1:]))
    values[which], valid[which] = some.values, some.valid
    return Ragged(values, valid)
