"""One training step, run without values: what it computes, and what it needs memory for."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from samlit.errors import UsageError, one_line
from samlit.loop import drive
from samlit.module import SamModule
from samlit.plan.hollow import Hollow
from samlit.plan.meter import Meter, Work
from samlit.structures import Batch, Embedding, Prediction, PromptSet, Scene
from samlit.training.adamw import AVERAGE
from samlit.training.passes import Passes

__all__ = ["Largest", "Load", "Part", "Schedule", "kept", "measure", "schedule", "take"]

Question = tuple[object, ...]
"""What of a prompt set decides how much work the answer is: types, how many values of each, how many masks."""


class Part(NamedTuple):
    """Weights of a part of the model."""

    name: str
    trained: int
    frozen: int


class Largest(NamedTuple):
    """The pass of a step that needs most memory.

    Attributes:
        number: From 0.
        before: Answers of no rows in the shape of those before it.
    """

    number: int
    before: list[Prediction]


class Schedule(NamedTuple):
    """How often a task asks what in a training step.

    Attributes:
        often: By question, the mean number of times.
        seeds: Of steps that together ask every question.
    """

    often: dict[Question, float]
    seeds: list[int]

    @property
    def passes(self) -> float:
        """The mean number of passes."""
        return sum(self.often.values())


@dataclass
class Load:
    """What one step of one device computes, and the bytes that it needs there.

    Attributes:
        parts: Weights by part.
        encoder: FLOPs of embedding the batch, and of the way back.
        decoder: FLOPs of all passes, the mean over the steps of a training.
        passes: The mean number of passes.
        largest: By seed of a step, its pass that needs most.
        weights: Of the whole model.
        blocks: Of each of the encoder's blocks that are sharded (`Encoder.shards`), a weight once.
        gradients: Of all trained weights.
        moments: What the optimiser keeps.
        averages: Of the weights, where they are averaged.
        batch: Images and masks.
        kept: What the encoder keeps for its gradient.
        answer: The most that one pass needs, its loss and its gradient, on top of it and of what was learned before.
        passing: The most during the passes: what the encoder keeps, a pass, and what the passes have learned.
        returning: The most during the encoder's backward pass, without gradients that have arrived.
        returning_with_gradients: The same with them.
        stepping: What the optimiser's step needs for itself.
    """

    parts: list[Part] = field(default_factory=list)
    encoder: Work = field(default_factory=Work)
    decoder: Work = field(default_factory=Work)
    passes: float = 0.0
    largest: dict[int, Largest] = field(default_factory=dict)
    weights: int = 0
    blocks: list[int] = field(default_factory=list)
    gradients: int = 0
    moments: int = 0
    averages: int = 0
    batch: int = 0
    kept: int = 0
    answer: int = 0
    passing: int = 0
    returning: int = 0
    returning_with_gradients: int = 0
    stepping: int = 0


def schedule(module: SamModule, fewest: int = 16, most: int = 256) -> Schedule:
    """Count what the task asks, by driving it over a picture as small as can be, as often as its chance needs.

    Args:
        module: With the task.
        fewest: Steps that are counted at least.
        most: Steps that are counted where they are not all of one length.
    """
    asked: list[Counter[Question]] = []
    for seed in range(most):
        asked.append(Counter(_questions(module, seed)))
        if len(asked) == fewest and len({count.total() for count in asked}) == 1:
            break
    mean: Counter[Question] = Counter()
    for count in asked:
        mean.update(count)
    often = {question: times / len(asked) for question, times in mean.items()}
    seeds, missing = [], set(often)
    while missing:
        best = max(range(len(asked)), key=lambda seed: (len(missing & asked[seed].keys()), -seed))
        seeds.append(best)
        missing -= asked[best].keys()
    return Schedule(often, seeds)


def _questions(module: SamModule, seed: int, side: int = 32) -> Iterator[Question]:
    """What one step asks about one mask of a picture of a few pixels; the answers are noise."""
    chance = torch.Generator().manual_seed(seed)
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    mask[:, side // 4 : side // 2, side // 4 : side // 2] = True
    size = torch.full((1, 2), side)
    image = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    batch = Batch(image, size, size, mask, torch.zeros(1, dtype=torch.int64), ["plan"], ["a square"])
    questions: list[Question] = []

    def answer(prompts: PromptSet) -> Prediction:
        questions.append(_question(prompts))
        masks = {True: 3, False: 1, None: 4}[prompts.multimask]
        logits = torch.randn(len(prompts), masks, side // 4, side // 4, generator=chance)
        iou = torch.rand(len(prompts), masks, generator=chance)
        return Prediction(logits, iou, torch.ones_like(iou, dtype=torch.bool), (side, side))

    drive(module.task, Scene(batch, module.net.prompt_types, seed, True, seed), answer)
    yield from questions


def _question(prompts: PromptSet) -> Question:
    given = sorted((name, value.valid.shape[1]) for name, value in prompts.given.items())
    return (prompts.multimask, *given)


def measure(
    module: SamModule,
    asked: Schedule,
    images: int,
    masks: int,
    side: int,
    half: torch.dtype | None = None,
    embedded: bool = False,
    largest: dict[int, Largest] | None = None,
) -> Load:
    """Run steps of `images` with `masks` each without values, and read what they take.

    Work is counted for as many rows as are answered together, and as often as there are so many; memory is read from a
    whole batch, in a step that ends with its largest pass.

    Args:
        module: Built without weights, on the meta device.
        asked: What the task asks.
        images: Of the batch.
        masks: Of each image.
        side: Of the frame in pixels.
        half: What a mixed precision computes in; None where there is none.
        embedded: Whether images come embedded (`data.embeddings`).
        largest: `Load.largest` of an earlier measurement: memory alone is read then, and no work counted.

    Raises:
        UsageError: The task, or a part of the model, decides by values what to compute; or nothing is trained.
    """
    net = module.train().net
    load = Load(parts=[_part("encoder", net.encoder), _part("prompts", net.prompts), _part("decoder", net.decoder)])
    load.weights = sum(map(_bytes, {*net.parameters(), *net.buffers()}))
    load.blocks = [sum(map(_bytes, {*block.parameters()})) for block in net.encoder.shards()]
    trained = [p for p in net.parameters() if p.requires_grad]
    load.gradients = sum(map(_bytes, trained))
    if not trained:
        raise UsageError("plan: nothing of the model is trained")
    load.passes = asked.passes
    try:
        maps = _embedding(module, images, side) if embedded else None
        batch = _batch(images, images * masks, side, maps)
        load.batch = sum(map(_bytes, _tensors(batch)))
        if largest is None:
            few, each = Load(), dict[Question, Work]()
            rows = min(module.masks_at_once or images * masks, images * masks)
            for seed in asked.seeds:
                take(module, _batch(images, rows, side, maps), seed, few, each, Hollow(half))
            if asked.often.keys() - each.keys():
                raise NotImplementedError("what is asked depends on what was answered")
            largest, load.encoder, times = few.largest, few.encoder, images * masks / rows
            load.decoder = sum((each[question] * (often * times) for question, often in asked.often.items()), Work())
        load.largest, encoder = largest, load.encoder
        for seed in asked.seeds:
            only = None if module.task.attached else largest[seed]
            take(module, batch, seed, load, {}, Hollow(half), module.masks_at_once, only)
        load.encoder = encoder
        _optimise(module, trained, load)
    except (RuntimeError, NotImplementedError) as error:
        task = type(module.task).__name__
        raise UsageError(
            f"plan: a step of the task {task} cannot be run without values ({one_line(error)[:160]}): plan it with "
            "another task or another part of the model"
        ) from error
    return load


def kept(module: SamModule, images: int, side: int, half: torch.dtype | None = None) -> int:
    """Bytes that the encoder keeps for its gradient; as in `measure`."""
    net, batch, hollow = module.train().net, _batch(images, 0, side), Hollow(half)
    with hollow.step(), Meter([*net.parameters(), *net.buffers(), batch.image]).running() as meter:
        embedding = module.embed(batch)
        held = meter.held
        del embedding
    return held


def take(
    module: SamModule,
    batch: Batch,
    seed: int,
    load: Load,
    each: dict[Question, Work],
    hollow: Hollow | None = None,
    at_once: int | None = None,
    only: Largest | None = None,
) -> None:
    """Take one step, with values or without.

    Args:
        module: Takes it.
        batch: From which it learns.
        seed: Of all that is drawn.
        load: Is told of this step's work, and the most of what it and those before it held.
        each: Is told the work of each answer.
        hollow: How to compute without values.
        at_once: Rows that are learned from together.
        only: The pass that is learned from; those before it are answered by outlines, and none comes after it.
    """
    net = module.net
    net.zero_grad(set_to_none=True)
    meter = Meter(
        [*net.parameters(), *net.buffers(), *_tensors(batch)], [p for p in net.parameters() if p.requires_grad]
    )
    with hollow.step() if hollow else nullcontext(), meter.running():
        loss = _forward(module, batch, seed, load, each, meter, hollow, at_once, only)
        if hollow:
            hollow.forget()
        meter.mark()
        loss.backward()  # type: ignore[no-untyped-call]
        load.encoder = load.encoder + meter.work
        load.returning = max(load.returning, meter.most)
        load.returning_with_gradients = max(load.returning_with_gradients, meter.most_with_gradients)


class _Enough(Exception):
    """The last pass that is wanted has been answered."""


def _forward(
    module: SamModule,
    batch: Batch,
    seed: int,
    load: Load,
    each: dict[Question, Work],
    meter: Meter,
    hollow: Hollow | None,
    at_once: int | None,
    only: Largest | None,
) -> Tensor:
    """The loss of a step; nothing else of it lives on."""
    net = module.net
    embedding = module.embed(batch)
    load.encoder, load.kept, meter.work = meter.work, max(load.kept, meter.held), Work()
    masks = torch.ones((), device=batch.image.device)
    passes = Passes(net, module.loss, batch, embedding, masks, attached=module.task.attached, at_once=at_once)
    asked: list[tuple[Question, Work, int]] = []
    outlines: list[Prediction] = []

    def answer(prompts: PromptSet) -> Prediction:
        number = len(outlines)
        if only and number < only.number:
            outlines.append(only.before[number])
            return _as_many(only.before[number], len(prompts))
        if only and number:
            passes.answer(prompts)  # once before: what answers before it have taught is there then
        load.passing = max(load.passing, meter.most)
        meter.mark()
        before, meter.work = meter.held, Work()
        prediction = passes.answer(prompts)
        asked.append((_question(prompts), meter.work, meter.most - before))
        outlines.append(_as_many(prediction, 0))
        if only:
            raise _Enough
        return prediction

    scene = Scene(batch, net.prompt_types, seed, True, seed)
    if hollow:  # there is no generator of its device, and nothing is drawn
        scene.__dict__["generator"] = torch.Generator()
    with suppress(_Enough):
        drive(module.task, scene, answer)
    meter.work = Work()
    loss = passes.loss()
    # An attached task's answers go backward only now: each in proportion to its way forward.
    late, forward = meter.work, sum(work.forward for _, work, _ in asked) or 1.0
    for question, work, _ in asked:
        each[question] = work + late * (work.forward / forward)
    most = [size for _, _, size in asked] or [0]
    load.answer, load.passing = max(load.answer, *most), max(load.passing, meter.most)
    if not only:
        load.largest[seed] = Largest(most.index(max(most)), outlines)
    meter.work = Work()
    return loss


def _as_many(like: Prediction, rows: int) -> Prediction:
    """An answer of the same shape to so many rows, of no values."""
    logits, iou, allowed = (x.new_empty(rows, *x.shape[1:]) for x in (like.logits, like.iou, like.allowed))
    return Prediction(logits, iou, allowed, like.frame)


def _optimise(module: SamModule, trained: list[nn.Parameter], load: Load) -> None:
    """One step of the optimiser: what it keeps, and what it needs."""
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    # Fused kernels compute without values too; only torch's list of devices that have them lacks the one for that.
    adam = importlib.import_module("torch.optim.adam")
    with mock.patch.object(adam, "_device_dtype_check_for_fused", return_value=None):
        optimizer, _ = module.optim.build(module.net, 1)
        meter = Meter([x for p in trained if p.grad is not None for x in (p, p.grad)])
        with meter.running():
            optimizer.step()
    state = [(n, x) for kept in optimizer.state.values() for n, x in kept.items() if isinstance(x, Tensor) and x.ndim]
    load.averages = sum(_bytes(x) for name, x in state if name == AVERAGE)
    load.moments = sum(_bytes(x) for name, x in state) - load.averages
    load.stepping = max(meter.most - load.moments - load.averages, 0)
    for parameter in trained:
        parameter.grad = None


def _embedding(module: SamModule, images: int, side: int) -> Embedding:
    """Images embedded, as they are kept: in half precision."""
    batch = _batch(images, 0, side)
    with Hollow().step(), torch.no_grad():
        found = module.net.embed(batch.image, batch.sizes)
    return Embedding(found.image.half(), tuple(x.half() for x in found.early))


def _tensors(batch: Batch) -> list[Tensor]:
    found = [x for x in vars(batch).values() if isinstance(x, Tensor)]
    return found if batch.embedding is None else [*found, batch.embedding.image, *batch.embedding.early]


def _batch(images: int, masks: int, side: int, embedding: Embedding | None = None) -> Batch:
    """So many images, and masks in all."""
    size = torch.empty(images, 2, dtype=torch.int64, device="meta")
    return Batch(
        torch.empty(images, 3, side, side, dtype=torch.uint8, device="meta"),
        size,
        size,
        torch.empty(masks, side, side, dtype=torch.bool, device="meta"),
        torch.empty(masks, dtype=torch.int64, device="meta"),
        ["plan"] * images,
        ["a thing"] * masks,
        embedding,
    )


def _part(name: str, module: nn.Module) -> Part:
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return Part(name, trained, sum(p.numel() for p in module.parameters()) - trained)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
