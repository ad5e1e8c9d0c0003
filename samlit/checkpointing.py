"""Checkpoints that a crash or a full disk cannot spoil: `best.ckpt` and `last.ckpt` in the run's folder."""

from __future__ import annotations

import os
import warnings
import zipfile
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from samlit import pieces
from samlit.atomic import replacing
from samlit.errors import SamlitError, one_line

__all__ = ["AtomicIO", "Checkpoints", "plain"]


class AtomicIO(TorchCheckpointIO):
    """Saves checkpoints whole or not at all, and refuses damaged ones."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save beside the file, then take its place.

        Raises:
            SamlitError: It could not be written; what was there is untouched.
        """
        checkpoint = {**checkpoint, "hyper_parameters": plain(checkpoint.get("hyper_parameters", {}))}

        try:
            replacing(path, lambda beside: torch.save(checkpoint, beside))
        except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError where the disk is full
            before = "; the one that was there is untouched" if Path(path).exists() else ""
            raise SamlitError(f"the checkpoint {path} could not be written ({one_line(error)}){before}") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, location: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint after reading it through once.

        Raises:
            FileNotFoundError: There is none.
            SamlitError: It is damaged.
        """
        if pieces.is_folder(path):
            return pieces.read(Path(path))
        if Path(path).is_file():
            # torch.load sees no flipped bit, though every part of the file is stored with its check sum.
            try:
                with zipfile.ZipFile(path) as file:
                    damaged = file.testzip()
            except zipfile.BadZipFile:
                damaged = "its end"
            if damaged:
                raise SamlitError(f"the checkpoint {path} is damaged (at {damaged}): go on from another one")
        loaded: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
        return loaded


class Checkpoints(ModelCheckpoint):
    """Keeps the best checkpoint, as `best.ckpt`, and the last one, as `last.ckpt`.

    Args:
        monitor: The number that says which is best.
        mode: Whether the best is the highest or the lowest.
        folder: Where they are kept; the run's folder if not given.
        last_every: Steps between saves of the last one; besides, it is saved after each validation, after each epoch
            where there is none, and at the end. 0 for no more than that.
        weights_only: Leave out what only going on with the training needs.
    """

    def __init__(
        self,
        monitor: str = "val/miou",
        mode: Literal["min", "max"] = "max",
        folder: str | None = None,
        last_every: int = 1000,
        weights_only: bool = False,
    ) -> None:
        super().__init__(
            folder,
            "best",
            monitor,
            save_last=True,
            save_top_k=1,
            save_weights_only=weights_only,
            mode=mode,
            auto_insert_metric_name=False,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self.last_every = last_every
        self._last_step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the folder, and let the trainer write atomically."""
        self.dirpath = os.path.realpath(os.path.expanduser(self.dirpath or trainer.default_root_dir))
        with warnings.catch_warnings():
            # A run's own files are overwritten on purpose.
            warnings.filterwarnings("ignore", ".*exists and is not empty")
            super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicIO()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save the last one from time to time."""
        if self.last_every and trainer.global_step % self.last_every == 0:
            self._save_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the best one if this is it, and the last one."""
        candidates = self._monitor_candidates(trainer)
        if self._may_save(trainer) and self.monitor in candidates:
            self._save_topk_checkpoint(trainer, candidates)
        self._save_last(trainer, again=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last one where nothing is validated."""
        if not trainer.enable_validation or not sum(trainer.num_val_batches):
            self._save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what the training ends with."""
        self._save_last(trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on; a run whose folder was moved takes its best one along, and a run in a new folder starts its own."""
        old, new = state_dict.get("dirpath"), str(self.dirpath)
        if old is not None and os.path.realpath(old) != new:
            if not Path(new, "best.ckpt").exists():
                return
            moved = {str(Path(new, Path(path).name)): score for path, score in state_dict["best_k_models"].items()}
            state_dict = {**state_dict, "dirpath": new, "best_k_models": moved}
            for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state_dict[name] = str(Path(new, Path(state_dict[name]).name)) if state_dict[name] else ""
        super().load_state_dict(state_dict)

    def _may_save(self, trainer: pl.Trainer) -> bool:
        return not (getattr(trainer, "fast_dev_run", False) or trainer.sanity_checking or trainer.state.fn != "fit")

    def _save_last(self, trainer: pl.Trainer, again: bool = False) -> None:
        """Save it unless this step's is saved; after a validation in any case, for its numbers are part of it."""
        if self._may_save(trainer) and (again or self._last_step != trainer.global_step):
            self._last_step = trainer.global_step
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


def plain(parameters: Any) -> dict[str, Any]:
    """Hyperparameters without the values that only unpickling could bring back.

    From a recipe all are plain. Objects given to SamModule by hand have to be given again when it is loaded.
    """
    return {name: value for name, value in dict(parameters).items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return type(value) is dict and all(type(k) is str and _is_plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)
