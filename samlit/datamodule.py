"""SamData, the LightningDataModule: sources to packed batches."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl

from samlit.augment import Augment
from samlit.contracts import Source
from samlit.loader import Loader, rank_and_world
from samlit.quarantine import Quarantine

__all__ = ["SamData"]


class SamData(pl.LightningDataModule):
    """Feeds packed batches from a training and a validation source.

    Args:
        source: What is trained on.
        validation: What is validated on; nothing if not given.
        image_size: Side of the square frame in pixels; images are resized to fit and padded right and below.
        batch_size: Images a step and device.
        max_masks: Most masks of an image while training, drawn at random.
        max_val_masks: Most masks of an image while validating, the first ones.
        max_area: Masks covering more than this share of their image are not trained on.
        augment: How a training image may differ from the one on disk.
        epoch_size: Images of an epoch, over all devices; an exact pass over the source if not given.
        shuffle_buffer: Images that are shuffled together, after their shards have been: what reading in order gains,
            against how far apart neighbours come.
        max_damaged: Share of the images that may be left out because they are damaged; more of them end the run, and
            what they are is in `quarantine.jsonl` in the run's folder.
        workers: Loader processes a device.
        seed: Of the order, the masks drawn and the augmentations; `seed_everything`, said once there.
    """

    def __init__(
        self,
        source: Source,
        validation: Source | None = None,
        image_size: int = 1024,
        batch_size: int = 1,
        max_masks: int = 64,
        max_val_masks: int = 256,
        max_area: float = 0.9,
        augment: Augment = Augment(),  # noqa: B008 - frozen
        epoch_size: int | None = None,
        shuffle_buffer: int = 16384,
        max_damaged: float = 0.01,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.source, self.validation = source, validation
        self.image_size, self.batch_size = image_size, batch_size
        self.max_masks, self.max_val_masks = max_masks, max_val_masks
        self.max_area, self.augment = max_area, augment
        self.epoch_size, self.shuffle_buffer, self.max_damaged = epoch_size, shuffle_buffer, max_damaged
        self.workers, self.seed = workers, seed
        for name, number in (("epoch_size", epoch_size), ("shuffle_buffer", shuffle_buffer)):
            if number is not None and number < 1:
                raise ValueError(f"{name}: one image at least, not {number}")
        if not 0 <= max_damaged <= 1:
            raise ValueError(f"max_damaged: a share from 0 to 1, not {max_damaged}")
        self._prepared = False

    def prepare_data(self) -> None:
        """Let the sources write, index or download what they need, once a machine and process."""
        if self._prepared:
            return
        from samlit.progress import bar

        for source in (self.source, self.validation):
            if source is not None:
                with bar() as progress:
                    source.prepare(progress)
        self._prepared = True

    def setup(self, stage: str) -> None:
        """Refuse data that cannot be trained on.

        Raises:
            ValueError: There are no samples.
        """
        for name, source in (("source", self.source), ("validation", self.validation)):
            if source is not None and len(source) == 0:
                raise ValueError(f"data.{name} holds no images: {type(source).__name__} found none to read")

    def train_dataloader(self) -> Loader:
        """Shuffled batches that resume in mid-epoch."""
        return self._loader(self.source, True)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Every validation image once, in order."""
        return [] if self.validation is None else self._loader(self.validation, False)

    def _loader(self, source: Source, training: bool) -> Loader:
        rank, world = rank_and_world()
        return Loader(
            source,
            self.image_size,
            self.batch_size,
            self.seed,
            rank,
            world,
            self.workers,
            training,
            self.max_masks if training else self.max_val_masks,
            self.max_area,
            self.augment,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            shuffle_buffer=self.shuffle_buffer,
            epoch_size=self.epoch_size,
            quarantine=self._quarantine(source, rank, world),
        )

    def _quarantine(self, source: Source, rank: int, world: int) -> Quarantine:
        """Where what cannot be used is counted; what the source knows already is judged at once, by every rank."""
        folder = Path(self.trainer.default_root_dir if self.trainer else ".")
        mine = -(-len(source) // world)
        quarantine = Quarantine(folder / "quarantine.jsonl", self.max_damaged, min(mine, 1000), told=rank == 0)
        quarantine.known(source.faults(), len(source))
        return quarantine
