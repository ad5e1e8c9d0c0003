"""Candidates are the masks that a model teaches for prompts of their kind, and no others."""

import torch

from samlit.structures import Batch, Prediction, Ragged, Scene
from samlit.text.searching import search


class Words:
    """A prompt type that knows two phrases, and sees in a mask how much of it is in the left half."""

    name = "text"

    def told(self, phrases, device):
        return Ragged.of(torch.tensor([[[1.0, 0.0]] if phrase == "left" else [[0.0, 1.0]] for phrase in phrases]))

    def likeness(self, masks, scene, image_index):
        left = masks[..., : masks.shape[-1] // 2].flatten(1).sum(1) / masks.flatten(1).sum(1)
        return torch.stack([left, 1 - left], 1)


def ended(generator, answer):
    asked = next(generator)
    while True:
        try:
            asked = generator.send(answer(asked))
        except StopIteration as stop:
            return stop.value


def test_masks_that_are_not_taught_are_no_candidates():
    """Text is answered with the single mask here, and a click with three; what else is drawn is nonsense."""
    batch = Batch(
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        *(torch.tensor([[32, 32]]) for _ in range(2)),
        torch.zeros(0, 32, 32, dtype=torch.bool),
        torch.zeros(0, dtype=torch.int64),
    )

    def answer(asked):
        assert asked.multimask is None
        logits = torch.full((len(asked), 4, 8, 8), -1.0)
        allowed = torch.zeros(len(asked), 4, dtype=torch.bool)
        if "text" in asked.given:
            right = asked.given["text"].values[:, 0, 1] > 0
            logits[~right, 0, :, :4], logits[right, 0, :, 4:] = 1.0, 1.0
            logits[:, 1:] = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
            allowed[:, 0] = True
        else:
            logits[:, 0], logits[:, 1, 2:6, 2:6] = 1.0, 1.0
            allowed[:, 1:] = True
        return Prediction(logits, torch.rand(len(asked), 4), allowed, (32, 32))

    scene = Scene(batch, {"text": Words(), "points": object()})
    found = ended(search(scene, 0, ["left", "right"], side=2), answer)
    assert sorted((mask.any(0).sum().item(), mask.any(1).sum().item()) for mask in found.masks) == [
        (16, 16), (16, 32), (16, 32),
    ]  # fmt: skip
    best = found.scores.argmax(1)
    assert found.masks[best[0], :, :16].all()
    assert found.masks[best[1], :, 16:].all()
    assert found.scores.shape == (2, 3)
