"""SamModule: the same run to the bit, checkpoints that rebuild the model, and two ranks that are one."""

import functools
import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from samlit.contracts import Task
from samlit.loading import frames
from samlit.metrics import MeanByName
from samlit.module import SamModule
from samlit.run.examples import Examples
from samlit.run.speed import Speed
from samlit.structures import PromptSet, Ragged
from samlit_encoders.vit import Vit
from tests import conftest, fitting, forks, judging

pytestmark = fitting.lightning_warnings


def batch_of(*numbers, without=()):
    """Discs by number; those in `without` have lost their masks."""
    source = fitting.Discs(10)
    return frames.pack([frames.frame(source[number], 32, () if number in without else None) for number in numbers])


def fitted(module, folder, steps, **others):
    """The losses of a run."""
    losses = []

    class Remember(fitting.pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(outputs["loss"].item())

    trainer = fitting.trainer(folder, [Remember()], max_steps=steps)
    trainer.fit(module, fitting.data(validation=False, count=6), **others)
    return losses, trainer


def seeded(**others):
    torch.manual_seed(7)
    return fitting.module(**others)


def test_two_runs_of_one_seed_are_the_same_to_the_bit(tmp_path):
    a, b, c = seeded(), seeded(), seeded(seed=1)
    first, _ = fitted(a, tmp_path, 4)
    torch.rand(99)  # what somebody else draws is none of its business
    assert fitted(b, tmp_path, 4)[0] == first
    assert fitted(c, tmp_path, 4)[0] != first
    for one, other in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_resumed_run_is_an_unbroken_one(tmp_path):
    def skipping():
        module = seeded()
        for block in module.net.encoder.blocks:
            block.drop_path = 0.5
        return module

    whole, _ = fitted(skipping(), tmp_path, 5)
    first, trainer = fitted(skipping(), tmp_path, 2)  # in the middle of an epoch of three steps
    trainer.save_checkpoint(tmp_path / "two.ckpt", weights_only=False)
    torch.rand(99)
    rest, _ = fitted(skipping(), tmp_path, 5, ckpt_path=tmp_path / "two.ckpt", weights_only=False)
    assert first + rest == whole


def test_a_checkpoint_is_plain_and_rebuilds_the_model(checkpoint):
    saved = torch.load(checkpoint, weights_only=True)
    one, other = (
        SamModule.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True).eval() for _ in range(2)
    )
    assert isinstance(one.net.encoder, Vit)
    assert one.image_size == 32
    assert one.state_dict().keys() == saved["state_dict"].keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, saved["state_dict"][name]), name
    batch = batch_of(0, 1)
    prompts = PromptSet(torch.tensor([1, 0]), {"points": Ragged.of(torch.tensor([[[9.0, 9.0, 1.0]]] * 2))})
    with torch.inference_mode():
        a, b = (module.net(batch.image, batch.sizes, prompts) for module in (one, other))
    assert torch.equal(a.logits, b.logits)
    assert torch.equal(a.iou, b.iou)


class Tight(Task):
    """Asks for every mask by its box, twice, without any chance; remembers nothing."""

    def rounds(self, scene):
        if not len(scene.masks):
            return {}
        boxes = []
        for mask in scene.masks:
            y, x = mask.nonzero().unbind(1)
            boxes.append(torch.stack([x.min(), y.min(), x.max(), y.max()]))
        given = {"boxes": Ragged.of(torch.stack(boxes)[:, None].float())}
        yield PromptSet(scene.image_index, given, multimask=True)
        yield PromptSet(scene.image_index, given, multimask=False)
        return {"many": torch.full((len(scene.masks),), float(len(scene.masks)))}

    def metric(self):
        return MeanByName(["many"])


def tight():
    module = seeded()
    module.task = Tight()
    return module


def test_the_loss_is_a_masks_mean_over_answers_and_the_batchs_over_masks():
    module, batch = tight(), batch_of(0, 1, 2, without=[1])
    module._trainer = SimpleNamespace(world_size=1, global_step=0, global_rank=0, accumulate_grad_batches=1)
    module.log = lambda *_, **__: None
    terms = []
    module.run(Tight(), batch, on_round=lambda turn: terms.append(module.loss(turn.prediction, batch.masks).total))
    loss = SamModule.training_step(module, batch, 0)
    torch.testing.assert_close(loss, (terms[0] + terms[1]).sum() / 2 / 4)


def test_targets_say_which_mask_a_row_asks_for():
    class Backwards(Tight):
        def rounds(self, scene):
            back = torch.arange(len(scene.masks)).flip(0)
            given = {"points": Ragged.of(torch.zeros(len(back), 1, 3))}
            yield PromptSet(scene.image_index[back], given, multimask=True, target=back)

    module, batch, seen = tight(), batch_of(0, 1), []
    module._trainer = SimpleNamespace(world_size=1, global_step=0, global_rank=0, accumulate_grad_batches=1)
    module.log = lambda *_, **__: None
    module.task = Backwards()
    loss = module.loss

    class Spy:
        def __call__(self, prediction, truth):
            seen.append(truth)
            return loss(prediction, truth)

        def __getattr__(self, name):
            return getattr(loss, name)

    module.loss = Spy()
    SamModule.training_step(module, batch, 0)
    assert torch.equal(seen[0], batch.masks.flip(0))


# Two ranks. This file is also the program that each of them runs.

STEPS = [
    ([(0, 1), (2, 3)], ()),  # as many masks on either rank
    ([(0, 1), (2, 3)], (1, 2, 3)),  # two and none
    ([(4, 5), (6, 7)], (4,)),  # two and four
    ([(0, 1), (2, 3)], (0, 1, 2, 3)),  # none at all
]


SHARES = [([0, 3], [1, 2]), ([0, 1, 2, 3], [])]
"""The images that each rank has judged."""

each = functools.partial(torch.utils.data.DataLoader, batch_size=None)


class Fixed(fitting.pl.LightningDataModule):
    """The batches of STEPS."""

    def train_dataloader(self):
        rank = self.trainer.global_rank
        return each([batch_of(*both[rank], without=without) for both, without in STEPS])

    def val_dataloader(self):
        return each([batch_of(*((0, 1), (2,))[self.trainer.global_rank], without=[1])])


class Gradients(fitting.pl.Callback):
    """Keeps every step's gradients, and lets no step be taken, so that all steps start from the same weights."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.steps.append({name: p.grad.clone() for name, p in module.net.named_parameters()})
        for p in module.net.parameters():
            p.grad = None


class Watch(fitting.pl.Callback):
    """Keeps the numbers of every step, and the images whose masks score best and worst over both ranks."""

    def __init__(self):
        self.examples, self.numbers, self.extremes = Examples(1, 2), [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.numbers.append(module.numbers)

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx):
        assert set(outputs["iou"].tolist()) == {2.0}
        scores = torch.tensor([float(batch.keys[i].removeprefix("disc ")) for i in batch.image_index])
        self.examples.see(batch, batch_idx, {"iou": scores})

    def on_validation_end(self, trainer, module):
        played = self.examples.play(trainer, module)
        self.extremes = [[(e.key, *e.answers) for e in mine] for mine in played]


def rank_main(folder):
    torch.set_num_threads(1)
    module, keep, watch, speed = tight(), Gradients(), Watch(), Speed()
    module.validation = [Tight()]
    module.metrics = torch.nn.ModuleList([Tight().metric()])
    trainer = fitting.pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        logger=False,
        callbacks=[speed, keep, watch],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        default_root_dir=folder,
    )
    trainer.fit(module, Fixed())
    told = {"scores": module.scores, "numbers": watch.numbers, "extremes": watch.extremes, "speed": speed.numbers}
    every = judging.judges(Path(folder) / f"annotations {trainer.global_rank}").items()
    # Images are dealt out to both ranks, and then the second one has none.
    told["judged"] = [
        {name: judging.judged(metric, [four[n] for n in shares[trainer.global_rank]]) for name, (metric, four) in every}
        for shares in SHARES
    ]
    (Path(folder) / f"{trainer.global_rank}.json").write_text(json.dumps(told))
    if trainer.is_global_zero:
        torch.save(keep.steps, Path(folder) / "gradients.pt")


def test_two_ranks_are_one_and_none_waits_for_ever(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(2):
        told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        told |= {"NODE_RANK": "0", "RANK": str(rank)}
        said = tmp_path / f"{rank}.txt"
        ranks.append(forks.start(rank_main, str(tmp_path), env={**os.environ, **told}, cwd=conftest.ROOT, out=said))
    try:
        for rank, process in enumerate(ranks):
            process.join(450)
            assert process.exitcode == 0, (tmp_path / f"{rank}.txt").read_text()[-3000:]
    finally:
        for process in ranks:
            process.kill()

    together = torch.load(tmp_path / "gradients.pt", weights_only=True)
    told, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert str(told) == str(other)  # every number is of both ranks
    assert len(together) == len(told["numbers"]) == len(STEPS)
    for (both, without), found, numbers in zip(STEPS, together, told["numbers"], strict=True):
        module = tight()
        module._trainer = SimpleNamespace(world_size=1, global_step=0, global_rank=0, accumulate_grad_batches=1)
        module.log = lambda *_, **__: None
        loss = SamModule.training_step(module, batch_of(*both[0], *both[1], without=without), 0)
        loss.backward()
        alone = module.tally.take()
        assert numbers["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
        if len(without) < 4:  # means over masks, wherever they are
            assert numbers.keys() == alone.keys() >= {"train/miou", "train/pass_02/loss", "train/pass_02/miou"}
            for name in ("loss", "miou"):
                name = f"train/pass_02/{name}"
                assert numbers[name] == pytest.approx(alone[name], abs=1e-5)
        else:
            assert numbers.keys() == alone.keys() == {"train/loss"}
        largest = 0.0
        for name, p in module.net.named_parameters():
            expected = torch.zeros_like(p) if p.grad is None else p.grad
            torch.testing.assert_close(
                found[name], expected, atol=1e-5, rtol=1e-4, msg=functools.partial("{}: {}".format, name)
            )
            largest = max(largest, float(expected.abs().max()))
        assert (largest > 1e-2) == (len(without) < 4)
    # One image of two masks on either rank: a mean over masks, the same wherever it is asked.
    assert told["scores"] == {"many": 2.0}
    asked = ["1 box", "1 box (Tight, round 2)"]
    zero, two = (["disc 0", *asked], ["disc 2", *asked])
    assert told["extremes"] == [[zero], [two, zero], [zero, two]]
    assert told["speed"]["speed/images_per_second"] > 0
    # What a task's metric says is of the images of both ranks, as if one had judged all of them.
    for name, (metric, four) in judging.judges(tmp_path / "annotations").items():
        expected = judging.judged(metric, four)
        assert len(set(expected.values()) - {0.0, 1.0}) > 0
        for one in told["judged"]:
            assert one[name] == pytest.approx(expected, nan_ok=True), name
