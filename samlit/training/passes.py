"""Learning from a task's answers one by one, in memory that does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from samlit.losses import Losses, Terms
from samlit.model import Sam
from samlit.structures import Batch, Embedding, Prediction, PromptSet, Ragged
from samlit.training.memory import PASS, needing

__all__ = ["Passes"]


class Passes:
    """Answers a task's prompts, and learns from every answer before the next prompts are asked for.

    What an answer keeps for its gradient, gigabytes for the paper's 64 masks, is gone when the answer is given: its
    loss goes back at once, into the image embedding and the weights of prompts and decoder, where gradients add up.
    `loss` then hands all of them on in one ordinary backward pass, the encoder's. So there is nothing here that
    gradient accumulation, DDP, FSDP or a gradient scaler would have to know of; and every weight always gets a
    gradient, zeros where a step did not ask for it, so that no rank waits for another.

    A task that lets gradients through from an answer to the next prompts (`Task.attached`) needs all answers' graphs at
    the end. They are made again then, one at a time, and only the logits are kept till then.

    Args:
        net: The model; its encoder has embedded the batch.
        losses: What is minimised.
        batch: The images and their true masks.
        embedding: Of the batch's images, with the encoder's graph where it is trained.
        masks: () float, what losses are divided by: the masks of the step.
        attached: Whether the task is one that lets gradients through.
        at_once: Rows that are answered together; all of them if not given. Gradients are the same.
    """

    def __init__(
        self,
        net: Sam,
        losses: Losses,
        batch: Batch,
        embedding: Embedding,
        masks: Tensor,
        attached: bool = False,
        at_once: int | None = None,
    ) -> None:
        self.net, self.losses, self.batch, self.masks = net, losses, batch, masks
        self.attached, self.at_once = attached, at_once
        self.terms: list[Terms] = []
        # The passes end at leaves that stand for the embedding.
        maps = [embedding.image, *embedding.early]
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in maps]
        self._leaf = Embedding(leaves[0], tuple(leaves[1:]))
        weights = [p for name, p in net.named_parameters() if not name.startswith("encoder.")]
        pairs = [*zip(maps, leaves, strict=True), *((p, p) for p in weights)]
        self._whole = [whole for whole, _ in pairs if whole.requires_grad]
        self._of = [leaf for whole, leaf in pairs if whole.requires_grad]
        self._gradients: list[Tensor | None] = [None] * len(self._of)
        self._pending: list[Tensor] = []

    def answer(self, prompts: PromptSet) -> Prediction:
        """Answer P prompts and learn from the answer; the prediction has a graph only where the task is attached."""
        masks = f"{len(prompts)} masks of {len(self.batch.image)} images"
        with needing(f"learning from pass {len(self.terms) + 1} of the task, {masks}", PASS):
            return self._answer(prompts)

    def _answer(self, prompts: PromptSet) -> Prediction:
        weight = self.losses.weight(len(self.terms))
        found: list[tuple[Prediction, Terms]] = []
        for some in _parts(prompts, self.at_once):
            if self.attached:
                turn = recomputed(self._learn, some, use_reentrant=False, preserve_rng_state=False)
                self._pending.append(weight * turn[1].total.sum())
            else:
                turn = self._learn(some)
                self._add(weight * turn[1].total.sum())
                turn = (_detached(turn[0]), turn[1])
            found.append((turn[0], Terms(*(x.detach() for x in turn[1]))))
        self.terms.append(Terms(*(torch.cat(x) for x in zip(*(terms for _, terms in found), strict=True))))
        return _joined([prediction for prediction, _ in found])

    def loss(self) -> Tensor:
        """The loss of all answers, (); its gradient is that of everything learned, in encoder, prompts and decoder."""
        if self._pending:
            self._add(torch.stack(self._pending).sum())
        total = self.masks.new_zeros(())
        for number, terms in enumerate(self.terms):
            total = total + self.losses.weight(number) * terms.total.sum()
        # Only now is it known of how many answers the mean is taken.
        scale = self.losses.share(len(self.terms)) / self.masks
        whole = [
            torch.zeros_like(x) if g is None else g * scale for x, g in zip(self._of, self._gradients, strict=True)
        ]
        loss: Tensor = _Given.apply(total * scale, whole, *self._whole)
        return loss

    def _learn(self, prompts: PromptSet) -> tuple[Prediction, Terms]:
        frame = (self.batch.image.shape[-2], self.batch.image.shape[-1])
        prediction = self.net.answer(self._leaf, prompts, frame)
        truth = self.batch.masks if prompts.target is None else self.batch.masks[prompts.target]
        return prediction, self.losses(prediction, truth)

    def _add(self, loss: Tensor) -> None:
        """Add a loss's gradient to what there is."""
        if not self._of:
            return
        with torch.autocast(loss.device.type, enabled=False):  # what goes back has the precision of what came
            new = torch.autograd.grad(loss, self._of, allow_unused=True)
        for i, gradient in enumerate(new):
            known = self._gradients[i]
            if gradient is not None:
                self._gradients[i] = gradient if known is None else known.add_(gradient)


class _Given(torch.autograd.Function):
    """A number whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Sequence[Tensor], *of: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return None, None, *(gradient * outer[0].to(gradient.dtype) for gradient in gradients)


def _parts(prompts: PromptSet, at_once: int | None) -> Iterator[PromptSet]:
    """A prompt set in parts of so many rows, each of which says which mask it asks for."""
    rows = len(prompts)
    if at_once is None or rows <= at_once:
        yield prompts
        return
    target = prompts.target
    if target is None:
        target = torch.arange(rows, device=prompts.image_index.device)
    for first in range(0, rows, at_once):
        some = slice(first, first + at_once)
        given = {name: Ragged(values[some], valid[some]) for name, (values, valid) in prompts.given.items()}
        yield PromptSet(prompts.image_index[some], given, prompts.multimask, target[some])


def _detached(prediction: Prediction) -> Prediction:
    return replace(prediction, logits=prediction.logits.detach(), iou=prediction.iou.detach())


def _joined(parts: list[Prediction]) -> Prediction:
    if len(parts) == 1:
        return parts[0]
    logits, iou, allowed = (torch.cat([getattr(x, name) for x in parts]) for name in ("logits", "iou", "allowed"))
    drawn = [part.drawn for part in parts if part.drawn is not None]
    return Prediction(logits, iou, allowed, parts[0].frame, torch.cat(drawn) if len(drawn) == len(parts) else None)
