"""The model's answers to a task's prompts, about whole images, windows of them or changed ones, each embedded once."""

from __future__ import annotations

from dataclasses import replace

from samlit.loading import frames
from samlit.model import Sam
from samlit.structures import Batch, Change, Embedding, Prediction, PromptSet, Window
from samlit.training.memory import VALIDATION, needing

__all__ = ["Answers"]


class Answers:
    """Call it with prompts.

    Args:
        net: The model, on the batch's device.
        batch: The images; for prompts about windows and changed images with its samples.
        embedding: Of the images; made when first needed if not given.
    """

    def __init__(self, net: Sam, batch: Batch, embedding: Embedding | None = None) -> None:
        self.net, self.batch, self._whole = net, batch, embedding
        self._other: tuple[Window | None, Change | None, Embedding] | None = None

    def __call__(self, prompts: PromptSet) -> Prediction:
        """Answer them.

        Raises:
            ValueError: They are about a window or changed images, and the batch has no samples.
        """
        batch, window, change = self.batch, prompts.window, prompts.change
        embedding = self.whole() if window is None and change is None else self._of(window, change)
        if window is not None:
            prompts = replace(prompts, image_index=prompts.image_index.new_zeros(len(prompts)))
        with needing(f"answering {len(prompts)} prompts", VALIDATION):
            return self.net.answer(embedding, prompts, (batch.image.shape[-2], batch.image.shape[-1]))

    def whole(self) -> Embedding:
        """The embedding of the images as they are."""
        if self._whole is None:
            self._whole = self.net.embed(self.batch.image, self.batch.sizes)
        return self._whole

    def _of(self, window: Window | None, change: Change | None) -> Embedding:
        """The embedding of a window, or of all images, changed if so; only the last one is kept."""
        if self._other is None or self._other[:2] != (window, change):
            self._other = None
            batch = self.batch
            if not batch.samples:
                raise ValueError("prompts about a window of an image, or a changed one, need it: Task.originals")
            if batch.embedding is not None:
                raise ValueError("prompts about a window of an image, or a changed one, need it, and it comes embedded")
            samples = batch.samples if window is None else [batch.samples[window.image]]
            if change is not None:
                samples = [replace(sample, image=change.apply(sample.pixels())) for sample in samples]
            at = None if window is None else (slice(window.y0, window.y1), slice(window.x0, window.x1))
            shown = frames.pack([frames.frame(one, batch.image.shape[-1], keep=(), window=at) for one in samples])
            shown = shown.to(batch.image.device)
            self._other = window, change, self.net.embed(shown.image, shown.sizes)
        return self._other[2]
