"""The model's answers to a task's prompts, about whole images or windows of them, each embedded once."""

from __future__ import annotations

from dataclasses import replace

from samlit import frames
from samlit.memory import VALIDATION, needing
from samlit.model import Sam
from samlit.structures import Batch, Embedding, Prediction, PromptSet, Window

__all__ = ["Answers"]


class Answers:
    """Call it with prompts.

    Args:
        net: The model, on the batch's device.
        batch: The images; for prompts about windows with its samples.
        embedding: Of the images; made when first needed if not given.
    """

    def __init__(self, net: Sam, batch: Batch, embedding: Embedding | None = None) -> None:
        self.net, self.batch, self._whole = net, batch, embedding
        self._window: tuple[Window, Embedding] | None = None

    def __call__(self, prompts: PromptSet) -> Prediction:
        """Answer them.

        Raises:
            ValueError: They are about a window, and the batch has no samples.
        """
        batch, window = self.batch, prompts.window
        if window is None:
            embedding = self._whole = self.net.embed(batch.image, batch.sizes) if self._whole is None else self._whole
        else:
            embedding = self._of(window)
            prompts = replace(prompts, image_index=prompts.image_index.new_zeros(len(prompts)))
        with needing(f"answering {len(prompts)} prompts", VALIDATION):
            return self.net.answer(embedding, prompts, (batch.image.shape[-2], batch.image.shape[-1]))

    def _of(self, window: Window) -> Embedding:
        """A window's embedding; only the last one is kept."""
        if self._window is None or self._window[0] != window:
            self._window = None
            batch = self.batch
            if not batch.samples:
                raise ValueError("prompts about a window of an image need the image: Task.originals")
            at = slice(window.y0, window.y1), slice(window.x0, window.x1)
            framed = frames.frame(batch.samples[window.image], batch.image.shape[-1], keep=(), window=at)
            shown = frames.pack([framed]).to(batch.image.device)
            self._window = window, self.net.embed(shown.image, shown.sizes)
        return self._window[1]
