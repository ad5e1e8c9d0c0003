"""A few held-out masks to look at: the model's answers to them, round by round, as validation asks for them.

The first few, which stay the same from validation to validation, and those that were answered best and worst.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samlit.contracts import Prompt, Task
from samlit.loop import Round
from samlit.metrics import mask_iou
from samlit.module import SamModule
from samlit.source import Sample
from samlit.structures import Batch, Ragged

__all__ = ["Answer", "Example", "Examples", "Played", "answered", "chosen", "told"]


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


class Played(NamedTuple):
    """Examples with the answers of now: the first ones, those answered best (best first), and worst (worst first)."""

    first: list[Example]
    best: list[Example]
    worst: list[Example]


class _Extreme(NamedTuple):
    """A mask that may be among the best or the worst.

    Attributes:
        order: Smaller is more extreme; equals in the order of their images' names.
        batch: The mask and its image alone, on the host.
    """

    order: tuple[float, str, int]
    batch: Batch


class Examples:
    """Keeps the first few images of each validation and a few of the best and the worst, and plays the tasks on them.

    Args:
        count: How many masks of the first images.
        extremes: How many masks of those answered best, and as many of those answered worst; one of an image at most.
    """

    def __init__(self, count: int, extremes: int = 0) -> None:
        self.count, self.extremes = count, extremes
        self._seen: list[Batch] = []
        self._best: list[_Extreme] = []
        self._worst: list[_Extreme] = []
        self._played: tuple[int, bool, Played] | None = None

    @property
    def last(self) -> list[Example]:
        """The first ones as they were played last; empty before."""
        return self._played[2].first if self._played else []

    def see(self, batch: Batch, batch_idx: int, outputs: Any = None) -> None:
        """Keep what is needed of a validation batch.

        Args:
            batch: The images and their masks.
            batch_idx: Its number, from 0 in each validation.
            outputs: What the validation step returned: "iou", (K,), tells the best masks from the worst.
        """
        if batch_idx == 0:
            self._seen, self._best, self._worst = [], [], []
        if sum(len(b.image) for b in self._seen) < self.count and len(batch.masks):
            self._seen.append(chosen(batch, self.count))
        iou = outputs.get("iou") if isinstance(outputs, dict) else None
        if self.extremes and iou is not None and len(iou):
            self._compare(batch, iou)

    def _compare(self, batch: Batch, iou: Tensor) -> None:
        """Keep the most extreme masks of a batch where they are more so than those before."""
        score, index = iou.double().tolist(), batch.image_index.tolist()
        drawn = batch.masks.flatten(1).any(1).tolist()
        for kept, sign in ((self._best, -1.0), (self._worst, 1.0)):
            of_image: dict[int, tuple[float, str, int]] = {}
            for k, i in enumerate(index):
                if drawn[k]:
                    order = (sign * score[k], batch.keys[i] if batch.keys else "", k)
                    of_image[i] = min(of_image.get(i, order), order)
            for order in sorted(of_image.values()):
                if len(kept) == self.extremes and order >= kept[-1].order:
                    break
                kept.append(_Extreme(order, _part(batch, [order[2]]).to("cpu")))
                kept.sort(key=lambda extreme: extreme.order)
                del kept[self.extremes :]

    def play(self, trainer: pl.Trainer, module: SamModule) -> Played:
        """The examples as the model answers them now; asked again in the same step, the same lists.

        Every rank must call it: a sharded model answers on all ranks together.
        """
        now = (trainer.global_step, trainer.sanity_checking)
        if self._played is None or self._played[:2] != now:
            seen = (
                trainer.strategy.broadcast([b.to("cpu") for b in self._seen]) if trainer.world_size > 1 else self._seen
            )
            first = [chosen(_joined(seen), self.count)] if seen else []
            both = (_most(trainer, kept, self.extremes) for kept in (self._best, self._worst))
            was_training = module.training
            module.eval()
            with torch.no_grad(), trainer.precision_plugin.val_step_context():
                played = [[example for b in batches for example in _played(module, b)] for batches in (first, *both)]
            module.train(was_training)
            self._played = (*now, Played(*played))
        return self._played[2]


def _most(trainer: pl.Trainer, mine: list[_Extreme], count: int) -> list[Batch]:
    """The most extreme masks of all ranks; only they travel."""
    if trainer.world_size == 1:
        return [extreme.batch for extreme in mine]
    of_rank: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(of_rank, [extreme.order for extreme in mine])
    places = sorted((order, rank, n) for rank, orders in enumerate(of_rank) for n, order in enumerate(orders))
    found: list[Batch] = []
    for _, rank, n in places[:count]:
        sent: Any = mine[n].batch if rank == trainer.global_rank else None
        found.append(trainer.strategy.broadcast(sent, src=rank))
    return found


def _played(module: SamModule, batch: Batch) -> list[Example]:
    """A small batch answered image by image, so that a few examples take no more memory than a batch of one."""
    found: list[Example] = []
    for i in range(len(batch.image)):
        rows = [k for k, at in enumerate(batch.image_index.tolist()) if at == i]
        found += answered(module, _part(batch, rows).to(module.device))
    return found


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
    return _part(batch, sorted(keep))


def _part(batch: Batch, keep: list[int]) -> Batch:
    """Some masks of a batch, by ascending numbers, and the images that they are on."""
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
        samples=[_some(batch.samples[i], [k for k in keep if index[k] == i], index) for i in images]
        if batch.samples
        else [],
    )


def _some(sample: Sample, keep: list[int], index: list[int]) -> Sample:
    """A sample with some of its masks, by their numbers in the batch."""
    own = [k - index.index(index[k]) for k in keep]
    phrases = tuple(sample.phrases[k] for k in own) if sample.phrases else ()
    return replace(sample, masks=tuple(sample.masks[k] for k in own), phrases=phrases)


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
    embedding = module.embed(batch)
    played: list[tuple[Task, list[Round]]] = []
    for task in module.validation:
        turns: list[Round] = []
        module.run(task, batch, on_round=turns.append, embedding=embedding)
        played.append((task, turns))
    return told(batch, module.net.prompt_types, played)


def told(batch: Batch, types: dict[str, Prompt], played: Iterable[tuple[Task, Sequence[Round]]]) -> list[Example]:
    """Every mask of a small batch, with what tasks have asked about it and were answered."""
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
    for task, turns in played:
        for number, turn in enumerate(turns):
            if turn.prompts.window is None:
                _add(examples, batch, types, task, turn, number)
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
