"""SamData, the LightningDataModule: sources to packed batches."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import lightning.pytorch as pl

from samlit.errors import UsageError
from samlit.loading.augment import Augment
from samlit.loading.embedding_cache import Embeddings, keep
from samlit.loading.loader import Loader, rank_and_world
from samlit.loading.quarantine import Quarantine
from samlit.model import Sam
from samlit.source import Source

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
        forgetting: What else is validated on, to see what a fine-tuning forgets: something that the model was good at
            before. Its numbers are `forgetting/NAME`; they choose no checkpoint.
        embeddings: Folder of a cache of image embeddings, for an encoder that is frozen (`model.freeze`): they are
            computed once, before the training, and the encoder then rests. Of all augmentations only `flip` goes with
            it.
        test: What `samlit test` judges the model on in the end; no training reads it.
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
        forgetting: Source | None = None,
        embeddings: str | None = None,
        test: Source | None = None,
    ) -> None:
        super().__init__()
        self.source, self.validation, self.forgetting, self.test = source, validation, forgetting, test
        self.image_size, self.batch_size = image_size, batch_size
        self.max_masks, self.max_val_masks = max_masks, max_val_masks
        self.max_area, self.augment = max_area, augment
        self.epoch_size, self.shuffle_buffer, self.max_damaged = epoch_size, shuffle_buffer, max_damaged
        self.workers, self.seed = workers, seed
        for name, number in (("epoch_size", epoch_size), ("shuffle_buffer", shuffle_buffer)):
            if number is not None and number < 1:
                raise ValueError(f"{name}: one image at least, not {number}")
        if forgetting is not None and validation is None:
            raise ValueError("forgetting: goes with a validation, of what is learned")
        if not 0 <= max_damaged <= 1:
            raise ValueError(f"max_damaged: a share from 0 to 1, not {max_damaged}")
        if embeddings is not None and (wrong := augment.beyond_flips()):
            keys = " and ".join(f"data.augment.{name}" for name in wrong)
            raise UsageError(f"data.embeddings: a kept embedding is of one picture; leave out {keys}, or embeddings")
        self.embeddings = embeddings
        self._kept: dict[int, Embeddings] = {}
        self._prepared = False

    def prepare_data(self, testing: bool | None = None) -> None:
        """Let the sources write, index or download what they need, once a machine and process.

        Args:
            testing: Whether the source of tests is needed, and no other; what the trainer does tells, if not given.
        """
        if self._prepared:
            return
        from samlit.run.progress import bar

        if testing is None:
            testing = self.trainer is not None and self.trainer.state.fn == "test"
        for source in (self.test,) if testing else (self.source, self.validation, self.forgetting):
            if source is not None:
                with bar() as progress:
                    source.prepare(progress)
        self._prepared = True

    def setup(self, stage: str) -> None:
        """Refuse data that cannot be trained on.

        Raises:
            ValueError: There are no samples.
        """
        for name in ("test",) if stage == "test" else ("source", "validation", "forgetting"):
            source = getattr(self, name)
            if source is not None and len(source) == 0:
                raise ValueError(f"data.{name} holds no images: {type(source).__name__} found none to read")

    def keep_embeddings(self, net: Sam) -> None:
        """Embed all images once, where `embeddings` names a folder; loaders made after this give embeddings.

        Args:
            net: With the weights that the training begins with, on its device.

        Raises:
            UsageError: Its encoder is trained.
            SamlitError: The embeddings cannot be written.
        """
        if self.embeddings is None:
            return
        from samlit.run.progress import bar

        rank, world = rank_and_world()
        for source in (self.source, self.validation, self.forgetting):
            if source is not None:
                with bar() as progress:
                    self._kept[id(source)] = keep(
                        net,
                        source,
                        self.embeddings,
                        self.image_size,
                        mirrored=source is self.source and self.augment.flip > 0,
                        numbers=self._seen(world) if source is self.source else None,
                        batch_size=self.batch_size,
                        rank=rank,
                        world=world,
                        precision=self.trainer.precision if self.trainer else "32-true",
                        context=self.trainer.precision_plugin.val_step_context if self.trainer else nullcontext,
                        progress=progress if rank == 0 else _quietly,
                    )
        if self.trainer is not None:
            self.trainer.strategy.barrier("embeddings")

    def _seen(self, world: int) -> list[int] | None:
        """The samples that a training of a known number of steps will see, ascending; None for all."""
        steps = -1 if self.trainer is None else self.trainer.max_steps
        if self.trainer is None or steps < 0:
            return None
        images = steps * self.trainer.accumulate_grad_batches * self.batch_size * world
        order = self.source.order(self.seed, self.shuffle_buffer)
        if images >= 2 * len(self.source):  # as good as all
            return None
        return sorted(set(order.take(0, images)[1].tolist()))

    def train_dataloader(self) -> Loader:
        """Shuffled batches that resume in mid-epoch."""
        return self._loader(self.source, True)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Every validation image once, in order; then, where there is one, every image of the forgetting meter."""
        loaders = [self._loader(source, False) for source in (self.validation, self.forgetting) if source is not None]
        return loaders[0] if len(loaders) == 1 else loaders

    def test_dataloader(self) -> Loader:
        """Every image of the test once, in order.

        Raises:
            UsageError: There is no source of tests.
        """
        if self.test is None:
            raise UsageError("data.test: there is no source to test on")
        return self._loader(self.test, False)

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
            kept=self._kept.get(id(source)),
        )

    def _quarantine(self, source: Source, rank: int, world: int) -> Quarantine:
        """Where what cannot be used is counted; what the source knows already is judged at once, by every rank."""
        folder = Path(self.trainer.default_root_dir if self.trainer else ".")
        mine = -(-len(source) // world)
        quarantine = Quarantine(folder / "quarantine.jsonl", self.max_damaged, min(mine, 1000), told=rank == 0)
        quarantine.known(source.faults(), len(source))
        return quarantine


def _quietly(done: int, total: int, what: str) -> None:
    """The first rank's bar is enough."""
