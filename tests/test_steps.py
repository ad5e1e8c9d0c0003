"""Steps: norms, clipping, steps that are left out, averages of the weights, and memory that is not enough."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from samlit.errors import SamlitError
from samlit.kept import Kept, forget
from samlit.run.checkpointing import Checkpoints
from samlit.structures import PromptSet, Ragged
from samlit.training.adamw import AVERAGE, AdamW
from samlit.training.gradients import Diverged, Gradients
from samlit.training.memory import OutOfMemory, needing
from samlit.training.muon import Muon
from samlit.training.optim import Optim
from tests import fitting

pytestmark = fitting.lightning_warnings


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5))


def optimizer_of(net, algorithm, average=0.0):
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 0.3, "muon": algorithm == "muon"},
        {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    if algorithm == "muon":
        return Muon(groups, 0.05, average=average)
    return AdamW([{k: g[k] for k in g if k != "muon"} for g in groups], 0.05, average=average)


def backward(net, seed, factor=1.0):
    chance = torch.Generator().manual_seed(seed)
    net.zero_grad()
    net(torch.randn(2, 3, 6, 6, generator=chance) * factor).square().mean().backward()


def everything(net, optimizer):
    """All numbers of a training, by name."""
    states = {f"{i}.{k}": x for i, s in optimizer.state_dict()["state"].items() for k, x in s.items()}
    return copy.deepcopy({**net.state_dict(), **states})


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_a_step_without_a_finite_gradient_changes_nothing_at_all(algorithm, fault):
    module = net()
    optimizer = optimizer_of(module, algorithm, average=0.9)
    gradients = Gradients(module, 10)
    for step, factor in enumerate([1.0, 1.0, fault, fault, 1.0], 1):
        before = everything(module, optimizer)
        backward(module, step, factor)
        norm = gradients.judge(optimizer, step, clip=0.5)
        optimizer.step()
        after = everything(module, optimizer)
        if factor == 1.0:
            assert math.isfinite(norm)
            moved = [name for name in before if not torch.equal(before[name], after[name])]
            assert {"0.weight", "1.running_mean", "1.num_batches_tracked", "3.bias"} <= set(moved)
        else:
            assert not math.isfinite(norm)
            assert before.keys() == after.keys()
            for name, value in before.items():
                assert torch.equal(value, after[name]), name
    assert gradients.state_dict() == {"left_out": 2, "in_a_row": 0}


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_judging_steps_changes_none_that_is_taken(algorithm):
    ours, theirs = net(), net()
    a, b = optimizer_of(ours, algorithm), optimizer_of(theirs, algorithm)
    gradients = Gradients(ours, 10)
    for step in range(4):
        backward(ours, step)
        backward(theirs, step)
        expected = torch.stack([p.grad.norm() for p in theirs.parameters()]).norm()
        torch.testing.assert_close(gradients.judge(a, step, clip=0.7), expected)
        torch.nn.utils.clip_grad_norm_([p for group in b.param_groups for p in group["params"]], 0.7)
        a.step()
        b.step()
    for one, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_values_are_clipped_where_that_is_asked_for():
    module = net()
    optimizer = optimizer_of(module, "adamw")
    backward(module, 0, 100.0)
    assert Gradients(module, 1).judge(optimizer, 1, clip=0.01, by_value=True) > 1
    assert max(float(p.grad.abs().max()) for p in module.parameters()) == pytest.approx(0.01)


def test_too_many_in_a_row_end_the_run_and_say_what_to_try():
    module = net()
    optimizer = optimizer_of(module, "adamw")
    gradients = Gradients(module, 3)
    for step, factor in enumerate([1, math.nan, math.nan, 1, math.nan, math.nan], 1):
        backward(module, step, factor)
        gradients.judge(optimizer, step)
        optimizer.step()
        if math.isnan(factor):
            with pytest.warns(UserWarning, match=f"step {step} is left out"):
                gradients.check()
        else:
            gradients.check()
    going_on = Gradients(module, 3, gradients.state_dict())  # the row is not forgotten
    backward(module, 7, math.nan)
    going_on.judge(optimizer, 7)
    with pytest.raises(Diverged, match=r"3 times in a row, the last time at step 7.*model\.optim\.lr.*ckpt_path last"):
        going_on.check()
    assert going_on.state_dict() == {"left_out": 5, "in_a_row": 0}


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_an_average_is_the_recursion_by_hand(algorithm):
    module = net()
    optimizer = optimizer_of(module, algorithm, average=0.3)
    expected = {}
    for step in range(1, 7):
        backward(module, step)
        optimizer.step()
        decay = min(0.3, (1 + step) / (10 + step))
        assert (decay < 0.3) == (step < 3)
        for name, p in module.named_parameters():
            new = p.detach().double()
            expected[name] = new if step == 1 else decay * expected[name] + (1 - decay) * new
    assert optimizer.swap()
    for name, p in module.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name].float(), atol=1e-6, rtol=1e-5)
        assert torch.equal(optimizer.state[p][AVERAGE].isfinite(), torch.ones_like(p, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="swapped"):
        optimizer.step()
    module.zero_grad()


def test_swapping_twice_is_nothing_and_there_is_nothing_to_swap_at_first():
    module = net()
    optimizer = optimizer_of(module, "muon", average=0.9)
    assert not optimizer.swap()
    backward(module, 0)
    optimizer.step()
    backward(module, 1)
    optimizer.step()
    before = everything(module, optimizer)
    optimizer.swap()
    assert not torch.equal(before["0.weight"], module[0].weight)
    optimizer.swap()
    for name, value in everything(module, optimizer).items():
        assert torch.equal(value, before[name]), name


def test_averages_need_weights_that_can_hold_them():
    with pytest.raises(ValueError, match="bf16-mixed"):
        AdamW([{"params": [nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))]}], 0.1, average=0.99)
    with pytest.raises(ValueError, match="below 1"):
        AdamW([{"params": [nn.Parameter(torch.zeros(3))]}], 0.1, average=1.0)


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_what_another_adamw_saved_goes_on(algorithm):
    module = net()
    groups = [{"params": list(module.parameters())}]
    old = torch.optim.AdamW(groups, 0.1)
    backward(module, 0)
    old.step()
    new = AdamW([{"params": list(module.parameters())}], 0.1, average=0.5)
    new.load_state_dict(old.state_dict())
    new.found_inf = torch.tensor(1.0)
    before = copy.deepcopy(module.state_dict())
    new.step()  # only the fused one can leave out a step
    for name, value in before.items():
        assert torch.equal(value, module.state_dict()[name])


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_what_is_kept_of_weights_is_made_again_after_a_step(algorithm):
    module, kept = net(), Kept()
    optimizer = optimizer_of(module, algorithm, average=0.5)
    weights = list(module.parameters())

    def sums():
        with torch.no_grad():
            return [float(kept.get(str(i), (w,), lambda w=w: w.sum())) for i, w in enumerate(weights)]

    for change in (optimizer.step, optimizer.step, optimizer.swap):
        backward(module, 0)
        before = sums()
        change()
        now = sums()
        assert now == [float(w.detach().sum()) for w in weights]
        assert all(a != b for a, b in zip(before, now, strict=True))
    weights[0].data.add_(1.0)  # without a word
    assert sums()[0] != float(weights[0].detach().sum())
    forget()
    assert sums()[0] == float(weights[0].detach().sum())


# In a training.


class Watch(fitting.pl.Callback):
    """Spoils the gradient of some steps; keeps what was logged and which weights were judged."""

    def __init__(self, bad=(), fault=math.nan):
        self.bad, self.fault = bad, fault
        self.logged, self.judged, self.weights = [], [], []

    def on_train_start(self, trainer, module):
        self.start = copy.deepcopy(module.net.state_dict())

    def on_after_backward(self, trainer, module):
        if trainer.global_step + 1 in self.bad:
            next(iter(module.net.decoder.parameters())).grad[:1] = self.fault

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        logged = trainer.callback_metrics
        self.logged.append((float(logged["train/grad_norm"]), float(logged["train/skipped"])))
        self.weights.append(copy.deepcopy(module.net.state_dict()))

    def on_validation_end(self, trainer, module):
        self.judged.append(copy.deepcopy(module.net.state_dict()))


def fitted(folder, steps, watch, optim, checkpoints=True, **others):
    torch.manual_seed(5)
    module = fitting.module(optim=optim)
    callbacks = [watch, *([Checkpoints(last_every=1)] if checkpoints else [])]
    options = {"max_steps": steps, "val_check_interval": 2, "check_val_every_n_epoch": None}
    trainer = fitting.trainer(folder, callbacks, gradient_clip_val=0.5, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is left out")
        trainer.fit(module, fitting.data(count=6), **others)
    return module, trainer


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_averages_are_judged_and_saved_and_a_resumed_run_is_an_unbroken_one(algorithm, tmp_path):
    optim = Optim(lr=1e-2, algorithm=algorithm, warmup=0, schedule="constant", ema=0.5)
    watch = Watch(bad=(2, 5))
    module, trainer = fitted(tmp_path / "whole", 5, watch, optim)
    assert [skipped for _, skipped in watch.logged] == [0, 1, 1, 1, 2]
    assert [math.isfinite(norm) for norm, _ in watch.logged] == [True, False, True, True, False]
    state = trainer.optimizers[0].state
    averages = {name: state[p][AVERAGE] for name, p in module.net.named_parameters()}
    last = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)
    for name, value in averages.items():
        weight = module.net.state_dict()[name]
        assert torch.equal(last["state_dict"][f"net.{name}"], value), name
        assert torch.equal(weight, watch.weights[-1][name])
    assert not torch.equal(averages["decoder.mask_tokens.weight"], module.net.decoder.mask_tokens.weight)
    # What is validated is the average of then: it is what lies in the checkpoint of that step.
    best = torch.load(tmp_path / "whole" / "best.ckpt", weights_only=True)
    judged = watch.judged[best["global_step"] // 2]
    assert all(torch.equal(best["state_dict"][f"net.{name}"], value) for name, value in judged.items())

    fitted(tmp_path / "broken", 3, Watch(bad=(2,)), optim)
    again = Watch(bad=(5,))
    more, more_trainer = fitted(
        tmp_path / "broken", 5, again, optim, ckpt_path=tmp_path / "broken" / "last.ckpt", weights_only=False
    )
    assert str(again.logged) == str(watch.logged[3:])
    for (name, a), b in zip(module.named_parameters(), more.parameters(), strict=True):
        assert torch.equal(a, b), name
        for key, value in state[a].items():
            assert torch.equal(value, more_trainer.optimizers[0].state[b][key]), (name, key)
    # Without averages one goes on from the weights, not from the averages; the one before the last is of a step before.
    plain, before = Watch(), tmp_path / "broken" / "previous.ckpt"
    _, trainer = fitted(tmp_path / "plain", 5, plain, Optim(algorithm=algorithm), ckpt_path=before, weights_only=False)
    assert len(plain.weights) == 1
    assert all(torch.equal(plain.start[name], value) for name, value in watch.weights[3].items())
    assert all(AVERAGE not in state for state in trainer.optimizers[0].state.values())


def test_a_run_that_learns_nothing_any_more_ends_and_keeps_its_weights(tmp_path):
    optim = Optim(lr=1e-2, warmup=0, schedule="constant", max_skipped=2)
    watch = Watch(bad=(3, 4, 5))
    with pytest.raises(SamlitError, match="2 times in a row, the last time at step 4"):
        fitted(tmp_path, 6, watch, optim)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    for name, value in watch.weights[1].items():
        assert torch.equal(saved["state_dict"][f"net.{name}"], value)


# Memory.

CUDA = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB"
CPU = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: tried to allocate 99 bytes."


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(CUDA), RuntimeError(CPU), MemoryError()])
def test_memory_that_is_not_enough_is_one_line(error):
    with (
        pytest.raises(OutOfMemory) as found,
        needing("taking the step", "less"),
        needing("answering 7 masks", "a smaller model.masks_at_once"),
    ):
        raise error
    amount = {CUDA: " (it wanted 2.50 GiB more)", CPU: " (it wanted 99 bytes more)"}.get(str(error), "")
    assert str(found.value) == f"out of memory while answering 7 masks{amount}: try a smaller model.masks_at_once"


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="mat1 and mat2") as found, needing("a", "b"):
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not isinstance(found.value, SamlitError)


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("encoder", "embedding 2 images.*model.encoder.checkpoint"),
        ("decoder", "learning from pass 2 of the task, 4 masks of 2 images.*model.masks_at_once"),
        ("backward", "going back through the encoder.*model.encoder.checkpoint"),
        ("step", "taking the optimiser's step"),
        ("task", "simulating the task's prompts"),
    ],
)
def test_it_is_told_in_which_part_memory_was_not_enough(part, told, tmp_path, monkeypatch):
    module, count = fitting.module(), []

    def refuse(*_, **__):
        count.append(1)
        if part != "decoder" or len(count) == 2:
            raise torch.OutOfMemoryError(CUDA)

    if part == "encoder":
        module.net.encoder.register_forward_pre_hook(refuse)
    elif part == "decoder":
        module.net.decoder.register_forward_pre_hook(refuse)
    elif part == "backward":
        next(iter(module.net.encoder.parameters())).register_hook(refuse)
    elif part == "step":
        monkeypatch.setattr(AdamW, "_take", refuse)
    else:
        monkeypatch.setattr(type(module.task), "rounds", refuse)
    with pytest.raises(OutOfMemory, match=f"out of memory while {told}"):
        fitting.trainer(tmp_path, [], max_steps=1).fit(module, fitting.data(validation=False))


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_what_was_made_of_the_weights_is_made_again_after_a_step(algorithm):
    net = fitting.module().net.eval()
    optimizer, _ = Optim(lr=0.1, algorithm=algorithm, warmup=0).build(net, 10)
    image, sizes = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.tensor([[32, 32]])
    asked = PromptSet(torch.tensor([0]), {"points": Ragged.of(torch.tensor([[[9.0, 9.0, 1.0]]]))})

    def answer(model):
        with torch.no_grad():
            return model(image, sizes, asked).logits

    before = answer(net)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    after = answer(net)
    assert not torch.equal(after, before)
    assert torch.equal(after, answer(copy.deepcopy(net)))  # a copy has kept nothing
