"""SAM 2's training on images (arXiv 2408.00714): how it differs from SAM's, rule by rule."""

from __future__ import annotations

from torch import Tensor

from samlit.structures import Ragged, Scene
from samlit_tasks.interactive import Interactive

__all__ = ["InteractiveSam2"]


class InteractiveSam2(Interactive):
    """Interactive training by SAM 2's rules: a click or a box, and 7 corrections; 8 passes.

    Unlike SAM's, the first prompt is of one type for all masks of a step; a box, being two points, is answered with one
    mask; no pass is without a new prompt; and what is fed back is not detached. Its other choices are the losses'
    (`iou_error: absolute`, `answers: sum`) and the boxes' (`spread: uniform`).

    Args:
        first: Prompt types of the first pass and how often each is drawn; half points and half boxes if not given.
        corrections: Passes that each get one more prompt, simulated from the last answer's error.
        correct_with: Prompt type of the corrections.
        from_truth: Chance that a correction falls anywhere into the true mask instead of into the error, drawn for
            each pass.
        stop: Chance that a training step ends after an answer, as of `interactive`; SAM 2 has none.
        detach: Whether gradients stop at the logits that are fed back.
    """

    def __init__(
        self,
        first: dict[str, float] | None = None,
        corrections: int = 7,
        correct_with: str = "points",
        from_truth: float = 0.1,
        stop: float = 0.0,
        detach: bool = False,
    ) -> None:
        super().__init__(first, corrections, correct_with, mask_only=False, stop=stop, detach=detach)
        if not 0 <= from_truth <= 1:
            raise ValueError(f"from_truth: a chance from 0 to 1, not {from_truth:g}")
        self.from_truth = from_truth

    def _first(self, scene: Scene) -> tuple[dict[str, Ragged], bool | None]:
        """One prompt for each mask, all of one type; three masks answer a click, and one a box."""
        (drawn,) = scene.chance.choices(list(self.first), list(self.first.values()))
        given = {drawn: scene.prompts[drawn].simulate(scene.masks, None, scene)}
        return given, {"points": True, "boxes": False}.get(drawn)

    def _correction(self, scene: Scene, predicted: Tensor) -> Ragged:
        """One more prompt for each mask, where the answer is wrong, or now and then anywhere in the mask."""
        anywhere = scene.training and scene.chance.random() < self.from_truth
        return scene.prompts[self.correct_with].simulate(scene.masks, None if anywhere else predicted, scene)
