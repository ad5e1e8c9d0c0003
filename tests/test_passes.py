"""Learning answer by answer: the gradients of one graph over all of them, in the memory of one."""

import functools
import weakref
from collections import Counter

import pytest
import torch

from samlit.contracts import Task
from samlit.loading import frames
from samlit.loop import drive
from samlit.losses import Losses
from samlit.model import Sam
from samlit.structures import PromptSet, Scene
from samlit.training.passes import Passes
from samlit_decoders.mask import Mask
from samlit_encoders.vit import Vit
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points
from samlit_tasks.interactive import Interactive
from samlit_tasks.interactive_sam2 import InteractiveSam2
from tests import fitting


def model(seed=0):
    torch.manual_seed(seed)
    encoder = Vit(32, dim=16, depth=1, heads=2, global_blocks=(0,), window=4, patch=8, channels=16, stem="conv")
    decoder = functools.partial(Mask, depth=1, heads=1, mlp_dim=16, iou_hidden=16, high_res=True)
    return Sam(encoder, [Points, Boxes, Masks], decoder).train()


@pytest.fixture(scope="module")
def batch():
    return pictures(32)


def pictures(side):
    source = fitting.Discs(3)
    return frames.pack([frames.frame(source[i], side, () if i == 1 else None) for i in range(3)])


class Turned(Task):
    """Asks for every mask twice, the last one first."""

    def rounds(self, scene):
        back = torch.arange(len(scene.masks)).flip(0).repeat(2)
        for _ in range(2):
            given = scene.prompts["points"].simulate(scene.masks[back], None, scene)
            yield PromptSet(scene.image_index[back], {"points": given}, None, back)


def scene_of(net, batch):
    return Scene(batch, net.prompt_types, 3, True, 5)


def plainly(net, task, batch, losses):
    """One graph over all answers, as the equations say it."""
    embedding, totals = net.embed(batch.image, batch.sizes), []

    def learn(turn):
        target = turn.prompts.target
        totals.append(losses(turn.prediction, batch.masks if target is None else batch.masks[target]).total)

    size = batch.image.shape[-2:]
    drive(task, scene_of(net, batch), lambda prompts: net.answer(embedding, prompts, size), learn)
    weights = torch.tensor([losses.first, *[1.0] * (len(totals) - 1)])
    whole = sum(weight * total.sum() for weight, total in zip(weights, totals, strict=True))
    return whole / (weights.sum() if losses.answers == "mean" else 1) / len(batch.masks)


def passing(net, task, batch, losses, at_once=None):
    embedding = net.embed(batch.image, batch.sizes)
    masks = torch.tensor(float(max(len(batch.masks), 1)))
    passes = Passes(net, losses, batch, embedding, masks, attached=task.attached, at_once=at_once)
    drive(task, scene_of(net, batch), passes.answer)
    return passes.loss()


def gradients(net):
    return {name: p.grad for name, p in net.named_parameters()}


TASKS = {
    "interactive": Interactive(corrections=3),
    "attached": Interactive(corrections=2, detach=False),
    "sam2": InteractiveSam2(corrections=2),
    "targets": Turned(),
}


@pytest.mark.parametrize("at_once", [None, 1, 3])
@pytest.mark.parametrize("losses", [Losses(), Losses(first=3.0, resolution=0.5), Losses(answers="sum")], ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_gradients_are_those_of_one_graph(task, losses, at_once, batch):
    one, other = model(), model()
    expected = plainly(one, TASKS[task], batch, losses)
    expected.backward()
    loss = passing(other, TASKS[task], batch, losses, at_once)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    (2 * loss).backward()  # as accumulation and gradient scalers have it
    for name, gradient in gradients(other).items():
        wanted = gradients(one)[name]
        wanted = torch.zeros_like(gradient) if wanted is None else wanted
        size = wanted.abs().max().clamp_min(1e-3)  # of all of the tensor: a single number may cancel out
        assert (gradient / 2 - wanted).abs().max() <= 1e-5 * size, name


def test_in_half_precision_too(batch):
    one, other = model(), model()
    task, losses = TASKS["interactive"], Losses()
    with torch.autocast("cpu", torch.bfloat16):
        expected = plainly(one, task, batch, losses)
        loss = passing(other, task, batch, losses)
    expected.backward()
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    wanted = {name: gradient for name, gradient in gradients(one).items() if gradient is not None}
    # Some are zero but for rounding: a softmax does not see its keys' bias.
    scale = max(gradient.norm() for gradient in wanted.values()) / 1000
    # What is added up in another order is rounded to 8 bits in between.
    far = {n: (gradients(other)[n] - g).norm() / g.norm().clamp_min(scale) for n, g in wanted.items()}
    assert max(far.values()) < 0.03, far


def test_every_weight_has_a_gradient_without_any_mask(batch):
    net = model()
    empty = frames.pack([frames.frame(fitting.Discs(1)[0], 32, ())])
    loss = passing(net, TASKS["interactive"], empty, Losses())
    loss.backward()
    assert loss.item() == 0
    for name, gradient in gradients(net).items():
        assert gradient is not None, name
        assert not gradient.any(), name


@pytest.mark.parametrize(
    "frozen", [("encoder",), ("prompts", "decoder"), ("encoder", "prompts"), ("encoder", "prompts", "decoder")]
)
@pytest.mark.parametrize("task", ["interactive", "attached"])
def test_what_is_frozen_stays_out_of_it(task, frozen, batch):
    one, other = model(), model()
    for net in (one, other):
        for part in frozen:
            net.get_submodule(part).requires_grad_(False)
    expected, loss = plainly(one, TASKS[task], batch, Losses()), passing(other, TASKS[task], batch, Losses())
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert loss.requires_grad == expected.requires_grad == (len(frozen) < 3)
    if loss.requires_grad:
        expected.backward()
        loss.backward()
    for name, gradient in gradients(other).items():
        wanted = gradients(one)[name]
        assert (gradient is None) == name.startswith(frozen)
        if gradient is not None and wanted is not None:
            torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-6)


class Held:
    def __init__(self, tensor):
        self.tensor = tensor


class Kept:
    """Counts the bytes that are kept for gradients at one time; weights, and what is kept twice, not twice."""

    def __init__(self, net):
        self.weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
        self.times, self.now, self.most = Counter(), 0, 0

    def keep(self, tensor):
        storage, held = tensor.untyped_storage(), Held(tensor)
        at, size = storage.data_ptr(), storage.nbytes()
        if at not in self.weights:
            self.now += size * (not self.times[at])
            self.times[at] += 1
            self.most = max(self.most, self.now)
            weakref.finalize(held, self.let_go, at, size)
        return held

    def let_go(self, at, size):
        self.times[at] -= 1
        self.now -= size * (not self.times[at])


def kept(learn, task, **options):
    """Most bytes that a step keeps for its gradients, beside the encoder's."""
    net, batch = model(), pictures(128)
    counts = Kept(net)
    embedding = net.embed(batch.image, batch.sizes)
    passes = Passes(net, Losses(), batch, embedding, torch.tensor(4.0), attached=task.attached, **options)
    with torch.autograd.graph.saved_tensors_hooks(counts.keep, lambda held: held.tensor):
        if learn == "one by one":
            drive(task, scene_of(net, batch), passes.answer)
            passes.loss().backward()
        else:
            plainly(net, task, batch, Losses()).backward()
    return counts.most


def test_what_is_kept_does_not_grow_with_passes_and_shrinks_with_parts():
    # The first pass is the smallest, for prompts without a mask share their image's first projections: so two.
    two, eleven = Interactive(corrections=1, mask_only=False), Interactive()
    a_pass = kept("one by one", two)
    assert kept("one by one", eleven) <= 1.2 * a_pass  # nine clicks are more tokens than two
    assert kept("in one graph", eleven) > 5 * a_pass
    assert kept("one by one", eleven, at_once=1) < 0.4 * a_pass


def test_an_attached_task_keeps_little_more_than_its_logits():
    few, many = (kept("one by one", InteractiveSam2(corrections=n)) for n in (1, 7))
    plain = [kept("in one graph", InteractiveSam2(corrections=n)) for n in (1, 7)]
    assert many - few < 0.1 * (plain[1] - plain[0])
