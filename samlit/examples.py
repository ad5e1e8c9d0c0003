"""A few held-out masks to look at: the model's answers to them, round by round, as validation asks for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samlit.contracts import Prompt, Task
from samlit.loop import Round
from samlit.metrics import mask_iou
from samlit.module import SamModule
from samlit.structures import Batch, Ragged

__all__ = ["Answer", "Example", "Examples", "answered", "chosen"]


@dataclass(frozen=True)
class Answer:
    """What was asked about one mask in one round, and the mask of the model's answer that it is most confident of.

    Attributes:
        prompts: The prompts given, each with its type, in pixels of the frame; masks that the model is fed back are
            left out.
        mask: (H, W) bool.
        iou: With the truth.
        predicted_iou: The model's own estimate.
    """

    prompts: tuple[tuple[Prompt, Tensor], ...]
    mask: npt.NDArray[np.bool_]
    iou: float
    predicted_iou: float


@dataclass(frozen=True)
class Example:
    """One true mask and the answers to it.

    Attributes:
        image: (H, W, 3) uint8, the picture as the frame holds it, without padding.
        truth: (H, W) bool.
        frame: Rows and columns of the frame.
        key: Names the image.
        phrase: Of the mask, empty where there is none.
        answers: By what was asked: "1 point", "2 points", "1 box".
    """

    image: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.bool_]
    frame: tuple[int, int]
    key: str = ""
    phrase: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)


class Examples:
    """Keeps the first few images of each validation, and plays the validation tasks on a mask of each.

    Args:
        count: How many masks.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._seen: list[Batch] = []
        self._played: tuple[int, bool, list[Example]] | None = None

    @property
    def last(self) -> list[Example]:
        """What was played last; empty before."""
        return self._played[2] if self._played else []

    def see(self, batch: Batch, batch_idx: int) -> None:
        """Keep what is needed of a validation batch."""
        if batch_idx == 0:
            self._seen = []
        if sum(len(b.image) for b in self._seen) < self.count and len(batch.masks):
            self._seen.append(chosen(batch, self.count))

    def play(self, trainer: pl.Trainer, module: SamModule) -> list[Example]:
        """The examples as the model answers them now; asked again in the same step, the same list.

        Every rank must call it: a sharded model answers on all ranks together.
        """
        now = (trainer.global_step, trainer.sanity_checking)
        if self._played is None or self._played[:2] != now:
            seen = (
                trainer.strategy.broadcast([b.to("cpu") for b in self._seen]) if trainer.world_size > 1 else self._seen
            )
            was_training = module.training
            module.eval()
            found: list[Example] = []
            if seen:
                batch = chosen(_joined(seen), self.count).to(module.device)
                with torch.no_grad(), trainer.precision_plugin.val_step_context():
                    found = answered(module, batch)
            module.train(was_training)
            self._played = (*now, found)
        return self._played[2]


def chosen(batch: Batch, count: int) -> Batch:
    """A batch of at most `count` of the masks, and of the images that they are on; the same ones every time.

    One mask of each image before a second of any. Large and small ones take turns.
    """
    area = batch.masks.flatten(1).sum(1).tolist()
    ranked: list[list[int]] = []
    for i in range(len(batch.image)):
        mine = [k for k, at in enumerate(batch.image_index.tolist()) if at == i and area[k]]
        mine.sort(key=lambda k: -area[k])
        turn = i % len(mine) if mine else 0
        ranked.append(mine[turn:] + mine[:turn])
    depth = max(map(len, ranked), default=0)
    keep = [mine[d] for d in range(depth) for mine in ranked if d < len(mine)][: max(count, 0)]
    keep.sort()
    index = batch.image_index.tolist()
    images = sorted({index[k] for k in keep})
    return Batch(
        batch.image[images],
        batch.sizes[images],
        batch.original[images],
        batch.masks[keep],
        torch.tensor([images.index(index[k]) for k in keep], dtype=torch.int64, device=batch.masks.device),
        [batch.keys[i] for i in images] if batch.keys else [],
        [batch.phrases[k] for k in keep] if batch.phrases else [],
    )


def _joined(batches: list[Batch]) -> Batch:
    """Several batches as one."""
    first = [0, *accumulate(len(batch.image) for batch in batches)]
    return Batch(
        torch.cat([batch.image for batch in batches]),
        torch.cat([batch.sizes for batch in batches]),
        torch.cat([batch.original for batch in batches]),
        torch.cat([batch.masks for batch in batches]),
        torch.cat([batch.image_index + i for i, batch in zip(first, batches, strict=False)]),
        [key for batch in batches for key in batch.keys],
        [phrase for batch in batches for phrase in batch.phrases or [""] * len(batch.masks)],
    )


def answered(module: SamModule, batch: Batch) -> list[Example]:
    """Every mask of a small batch, with the answers in all rounds of all validation tasks."""
    examples = []
    for k, i in enumerate(batch.image_index.tolist()):
        rows, columns = batch.sizes[i].tolist()
        examples.append(
            Example(
                batch.image[i, :, :rows, :columns].permute(1, 2, 0).cpu().numpy(),
                batch.masks[k, :rows, :columns].cpu().numpy(),
                (batch.image.shape[-2], batch.image.shape[-1]),
                batch.keys[i] if batch.keys else "",
                batch.phrases[k] if batch.phrases else "",
            )
        )
    embedding = module.embed(batch)
    for task in module.validation:
        turns: list[Round] = []
        module.run(task, batch, on_round=turns.append, embedding=embedding)
        for number, turn in enumerate(turns):
            _add(examples, batch, module.net.prompt_types, task, turn, number)
    return examples


def _add(examples: list[Example], batch: Batch, types: dict[str, Prompt], task: Task, turn: Round, number: int) -> None:
    """Write one round's answers down."""
    prompts, prediction = turn
    target = list(range(len(prompts))) if prompts.target is None else prompts.target.tolist()
    # A task may ask several times about a mask in one round: the first is taken. And it may ask about none of them.
    row_of = {k: row for row, k in reversed(list(enumerate(target)))}
    if len(prompts) and max(row_of) >= len(examples):
        return
    # From the second round on, what is as large as the answer is the answer, fed back.
    fed_back = prediction.logits.shape[-2:]
    shown = {n: g for n, g in prompts.given.items() if number == 0 or g.values.shape[-2:] != fed_back}
    most = {name: int(given.valid.sum(1).max()) if len(prompts) else 0 for name, given in shown.items()}
    words = [f"{n} {types[name].option if n == 1 else name}" for name, n in most.items() if n]
    column = " + ".join(words) or f"round {number + 1}"
    if any(column in example.answers for example in examples):
        column = f"{column} ({type(task).__name__}, round {number + 1})"
    best = prediction.best()
    masks = prediction.full(prediction.pick(best)) > 0
    for k, row in row_of.items():
        iou = mask_iou(masks[row], batch.masks[k])
        rows, columns = examples[k].truth.shape
        examples[k].answers[column] = Answer(
            tuple(_values(types, shown, row)),
            masks[row, :rows, :columns].cpu().numpy(),
            float(iou),
            float(prediction.iou[row, best[row]]),
        )


def _values(types: dict[str, Prompt], given: dict[str, Ragged], row: int) -> Iterable[tuple[Prompt, Tensor]]:
    """The prompts of one row, dense ones first, so that they do not cover the others."""
    for name in sorted(given, key=lambda n: -given[n].values.ndim):
        for value, valid in zip(given[name].values[row], given[name].valid[row].tolist(), strict=True):
            if valid:
                yield types[name], value.detach().cpu()
