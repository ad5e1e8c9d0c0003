"""A model, data and a trainer so small that a fit takes a second."""

import functools

import lightning.pytorch as pl
import numpy as np
import pytest

from samlit.datamodule import SamData
from samlit.masks import rle
from samlit.module import SamModule
from samlit.source import Sample, Source
from samlit_decoders.mask import Mask
from samlit_encoders.vit import Vit
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points
from samlit_tasks.boxes import Boxes as BoxTask
from samlit_tasks.interactive import Interactive
from samlit_tasks.points import Points as PointTask


class Discs(Source):
    """Noisy pictures with a bright disc and a bright bar."""

    def __init__(self, count=3, side=32):
        self.count, self.side = count, side

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        chance = np.random.default_rng(index)
        y, x = np.mgrid[: self.side - 8, : self.side]
        disc = (x - 9) ** 2 + (y - 8 - index) ** 2 <= 25
        bar = (x > 19) & (x < 28) & (y > 5) & (y < 20)
        image = chance.integers(0, 90, (*disc.shape, 3)) + 150 * (disc | bar)[..., None]
        masks = tuple(rle.encode_many(np.stack([disc, bar])))
        return Sample(f"disc {index}", image.astype(np.uint8), masks, ("the round one", "the bar"))


def module(validation=None, **others):
    return SamModule(
        functools.partial(Vit, dim=16, depth=1, heads=2, global_blocks=(0,), window=4, patch=8, channels=16),
        [Points, Boxes, Masks],
        functools.partial(Mask, depth=1, heads=1, mlp_dim=16, iou_hidden=16),
        Interactive(corrections=1),
        [PointTask((1, 2)), BoxTask()] if validation is None else validation,
        32,
        **others,
    )


def data(validation=True, count=4):
    return SamData(Discs(count), Discs(3) if validation else None, 32, 2)


def trainer(folder, callbacks, logger=False, **others):
    options = {
        "max_steps": 2,
        "num_sanity_val_steps": -1,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
    } | others
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(callback, pl.callbacks.ModelCheckpoint) for callback in callbacks),
        default_root_dir=folder,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )


lightning_warnings = [
    pytest.mark.filterwarnings(f"ignore:.*{words}")
    for words in ("LeafSpec", "have overridden `transfer_batch", "does not have many workers", "Total length of `list`")
]
