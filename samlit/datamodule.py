"""SamData, the LightningDataModule: sources to packed batches."""

from __future__ import annotations

import lightning.pytorch as pl

from samlit.augment import Augment
from samlit.contracts import Source
from samlit.loader import Loader, rank_and_world

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
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.source, self.validation = source, validation
        self.image_size, self.batch_size = image_size, batch_size
        self.max_masks, self.max_val_masks = max_masks, max_val_masks
        self.max_area, self.augment = max_area, augment
        self.workers, self.seed = workers, seed
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
            ValueError: There are no samples, or fewer than a step takes.
        """
        for name, source in (("source", self.source), ("validation", self.validation)):
            if source is not None and len(source) == 0:
                raise ValueError(f"data.{name} holds no images: {type(source).__name__} found none to read")
        needed = self.batch_size * rank_and_world()[1]
        if stage == "fit" and len(self.source) < needed:
            raise ValueError(
                f"data.source holds {len(self.source)} images and a step takes {needed}: lower data.batch_size"
            )

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
        )
