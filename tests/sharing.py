"""Fits on one rank and on two, of which the same must come.

Prompts are made of the masks alone, so that a rank asks what a single process asks about the same images; but of what
type they are depends on the image, so that one rank asks by points and the other by boxes.
"""

import functools
import logging
import warnings

import lightning.pytorch as pl
import torch
from torch.distributed.tensor import DTensor

from samlit.contracts import Task
from samlit.datamodule import SamData
from samlit.module import SamModule
from samlit.parallel import Replicated, Sharded
from samlit.run.checkpointing import AtomicIO
from samlit.source import Sample
from samlit.structures import PromptSet, Ragged
from samlit.training.lora import Lora
from samlit.training.optim import Optim
from samlit_decoders.mask import Mask
from samlit_encoders.vit import Vit
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points
from samlit_tasks.boxes import Boxes as BoxTask
from tests import fitting


class Pictures(fitting.Discs):
    """Discs and bars, and a picture without a mask."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return Sample(sample.key, sample.image, () if index == 1 else sample.masks)


class Told(Task):
    """A point or a box, by the picture, then a click on the first wrong pixel."""

    def rounds(self, scene):
        truth = scene.batch.masks
        if not len(truth):
            return {}
        y, x = _first(truth)
        click = torch.stack([x + 0.5, y + 0.5, torch.ones_like(x)], 1)
        by_point = pointed(scene.batch.image)[scene.image_index]
        rows = [mask.nonzero() for mask in truth]
        box = torch.stack([torch.cat([r.min(0).values.flip(0), r.max(0).values.flip(0) + 1]) for r in rows]).float()
        given = {}
        if by_point.any():
            given["points"] = Ragged(click[:, None], by_point[:, None])
        if not by_point.all():
            given["boxes"] = Ragged(box[:, None], ~by_point[:, None])
        prediction = yield PromptSet(scene.image_index, dict(given), None)
        best = prediction.best()
        wrong = (prediction.full(prediction.pick(best)) > 0) ^ truth
        y, x = _first(wrong)
        label = truth[torch.arange(len(truth)), y.long(), x.long()].float()
        more = Ragged.of(torch.stack([x + 0.5, y + 0.5, label], 1)[:, None])
        given["points"] = given["points"].append(more) if "points" in given else more
        given["masks"] = Ragged.of(prediction.pick(best)[:, None].float())
        yield PromptSet(scene.image_index, given, False)
        return {}


def _first(mask):
    at = mask.flatten(1).float().argmax(1)
    return (at // mask.shape[2]).float(), (at % mask.shape[2]).float()


class Plain(SamModule):
    """With an optimiser in which a small difference stays small; Adam's first steps make signs of them."""

    frozen = False

    def setup(self, stage):
        super().setup(stage)
        self.net.encoder.requires_grad_(not self.frozen)

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.net.parameters() if p.requires_grad], lr=0.3, momentum=0.9)


class Losses(pl.Callback):
    """Keeps every step's loss, averaged over the ranks."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(trainer.strategy.reduce(outputs["loss"].detach().clone(), reduce_op="mean")))


class Stir(pl.Callback):
    """Changes weights after each validation, as averages of them do that are put in for it and taken out after it."""

    @torch.no_grad()
    def on_validation_end(self, trainer, module):
        for p in trainer.optimizers[0].param_groups[0]["params"]:
            p.mul_(1.01)


class Loaded(pl.Callback):
    """What there is when a training begins."""

    def on_train_start(self, trainer, module):
        self.state = state(trainer, module)


def model(kind=SamModule, **others):
    torch.manual_seed(1)
    return kind(
        functools.partial(Vit, dim=16, depth=2, heads=2, global_blocks=(1,), window=2, patch=8, channels=16),
        [Points, Boxes, Masks],
        functools.partial(Mask, depth=1, heads=1, mlp_dim=16, iou_hidden=16),
        Told(),
        [BoxTask()],
        32,
        **others,
    )


def pictures(batch_size):
    return SamData(Pictures(7), Pictures(4), 32, batch_size, seed=5)


def pointed(images):
    """(B,), which images are asked about by points."""
    return images.float().mean((1, 2, 3)) % 1 < 0.5


def state(trainer, module):
    """Weights and moments, put together."""
    optimizer = trainer.optimizers[0]
    moments = {
        f"{i}/{key}": whole(value)
        for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])
        for key, value in optimizer.state[p].items()
        if isinstance(value, torch.Tensor)
    }
    return {name: whole(p) for name, p in module.net.named_parameters()} | moments


def whole(tensor):
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def fit(strategy, ranks, module, folder, checkpoint=None, save=None, callbacks=(), **options):
    """What a training comes to: the losses of its batches, the last validation, weights and moments in the end."""
    seen, loaded, few = Losses(), Loaded(), {"max_steps": 4, "limit_val_batches": 0}
    trainer = pl.Trainer(
        accelerator="cpu", devices=ranks, strategy=strategy, logger=False, callbacks=[seen, loaded, *callbacks],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        use_distributed_sampler=False, check_val_every_n_epoch=None, **few | options,
    )  # fmt: skip
    trainer.strategy.checkpoint_io = AtomicIO()
    data = pictures(2 // ranks)
    trainer.fit(module, data, ckpt_path=checkpoint)
    if save:
        trainer.save_checkpoint(folder / save)
    found = {"losses": seen.losses, "loaded": loaded.state, "state": state(trainer, module), "scores": module.scores}
    found["rows"] = [len(getattr(p, "_local_tensor", p)) for p in module.net.parameters()]
    return found


CASES = {
    "plain": {},
    "clipped and accumulated": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05},
    "frozen encoder": {},
    "a mask at a time": {},
    "changes of low rank": {},
    "validated": {"limit_val_batches": 2, "val_check_interval": 2, "num_sanity_val_steps": -1, "callbacks": [Stir()]},
}


def case(name, strategy, ranks, folder):
    """One of the comparisons."""
    added = Lora(rank=2, adapter=2, targets=("encoder.*.qkv", "decoder.*.q_proj"))
    module = model(
        Plain,
        masks_at_once=1 if name == "a mask at a time" else None,
        lora=added if name == "changes of low rank" else None,
    )
    module.frozen = name == "frozen encoder"
    return fit(strategy, ranks, module, folder, **CASES[name])


def adam(strategy, ranks, folder, algorithm="adamw", **options):
    """A training with an optimiser that has several groups, saved or gone on with."""
    optim = Optim(warmup=0, schedule="constant", layer_decay=0.8, lr=1e-3, algorithm=algorithm, ema=0.5)
    return fit(strategy, ranks, model(optim=optim), folder, **options)


def one_of_two(folder, rank):
    """All that one of two ranks does, in a process of its own."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    found = {}
    for name in CASES:
        for strategy in (Replicated, Sharded):
            found[f"{name}, {strategy.__name__}"] = case(name, strategy(), 2, folder)
    found["muon"] = adam(Sharded(), 2, folder, "muon", max_steps=2)
    found["pieces"] = adam(Sharded(pieces=True), 2, folder, max_steps=2, save="pieces.ckpt")
    found["file"] = adam(Sharded(), 2, folder, max_steps=2, save="file.ckpt")
    for strategy, source in ((Replicated, "pieces"), (Sharded, "pieces"), (Sharded, "file"), (Sharded, "single")):
        went_on = adam(strategy(), 2, folder, checkpoint=folder / f"{source}.ckpt")
        found[f"{source} to {strategy.__name__} on 2"] = went_on
    if rank == 0:
        torch.save(found, folder / "found.pt")
