"""Checkpoints that a crash or a full disk cannot spoil: best, last and the one before, in the run's folder."""

from __future__ import annotations

import os
import shutil
import warnings
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from samlit.atomic import replacing
from samlit.errors import SamlitError, one_line
from samlit.weights import pieces

__all__ = ["LAST", "PREVIOUS", "AtomicIO", "Checkpoints", "damage", "plain", "save_now"]

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
"""Files, or folders of pieces, of the last checkpoint and of the one before it."""

TRIES = 3
"""Steps in a row whose checkpoint may fail before the run ends."""


class AtomicIO(TorchCheckpointIO):
    """Saves checkpoints whole or not at all, keeps the one before the last, and refuses damaged ones.

    Attributes:
        patient: Whether a checkpoint that cannot be written is kept as `fault` and not raised, for other ranks wait.
        fault: What was wrong with the last one; None where it was written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patient = False
        self.fault: SamlitError | None = None
        self._step: Any = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save beside the file, then take its place.

        Raises:
            SamlitError: It could not be written; what was there is untouched.
        """
        checkpoint = {**checkpoint, "hyper_parameters": plain(checkpoint.get("hyper_parameters", {}))}
        file, step, self.fault = Path(path), checkpoint.get("global_step"), None

        def save(beside: Path) -> None:
            torch.save(checkpoint, beside)
            # After a validation a step is saved once more: what is kept is of an earlier one.
            if file.name == LAST and step != self._step:
                _keep(file)
            if file.is_dir():  # of a run that saved in pieces
                shutil.rmtree(file)

        try:
            replacing(file, save)
        except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError where the disk is full
            before = "; the one that was there is untouched" if file.exists() else ""
            self.fault = SamlitError(f"the checkpoint {path} could not be written ({one_line(error)}){before}")
            if not self.patient:
                raise self.fault from error
        else:
            self._step = step if file.name == LAST else self._step

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, location: storage,
        weights_only: bool | None = None,
        mapped: bool = False,
    ) -> dict[str, Any]:
        """Load a checkpoint, a file or a folder of pieces, after reading it through once.

        Args:
            path: The checkpoint.
            map_location: Where tensors go.
            weights_only: Whether tensors and plain values alone are unpickled; so they are unless told otherwise.
            mapped: Leave the tensors of a file on the disk until somebody looks at them.

        Raises:
            FileNotFoundError: There is none.
            SamlitError: It is damaged.
        """
        if damaged := damage(path):
            before = Path(path).with_name(PREVIOUS)
            other = before if before.exists() and before != Path(path) and not damage(before) else "another one"
            raise SamlitError(f"the checkpoint {path} is damaged (at {damaged}): go on from {other}")
        if pieces.is_folder(path):
            return pieces.read(Path(path), checked=True)
        if mapped:
            found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return found
        loaded: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
        return loaded


def _keep(file: Path) -> None:
    """Let a file that is about to be replaced stay as the one before; there is always one under its own name."""
    if not file.exists():
        return
    if file.with_name(PREVIOUS).is_dir():
        shutil.rmtree(file.with_name(PREVIOUS))
    link = file.with_name(f".{PREVIOUS}.part.tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(file, link)
    except OSError:  # a file system without links, or a folder
        if file.is_dir():
            file.with_name(PREVIOUS).unlink(missing_ok=True)
        os.replace(file, file.with_name(PREVIOUS))
        return
    os.replace(link, file.with_name(PREVIOUS))
    link.unlink(missing_ok=True)  # to rename a file to another name of itself does nothing


def damage(path: str | Path) -> str:
    """Where a checkpoint is damaged, found by reading it through; empty where it is not, or is no file."""
    file = Path(path)
    if pieces.is_folder(file):
        return pieces.damage(file)
    if not file.is_file():
        return ""
    state = file.stat()
    return _damage(str(file), state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _damage(path: str, changed: int, size: int) -> str:
    """Read once, for whoever chooses a checkpoint and whoever loads it."""
    # torch.load sees no flipped bit, though every part of the file is stored with its check sum.
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() or ""
    except zipfile.BadZipFile:
        return "its end"


class Checkpoints(ModelCheckpoint):
    """Keeps the best checkpoint, as `best.ckpt`, the last one, as `last.ckpt`, and the one before, as `previous.ckpt`.

    One that cannot be written is told, and the training goes on; the next one may have room. After three in a row, or
    where it is the one that the training ends with, the run ends with an error, and those before are as they were.

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
        self._fault = ""
        self._failed: set[int] = set()  # steps, since one was written

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
            known = {name: getattr(self, name) for name in BEST} | {"best_k_models": dict(self.best_k_models)}
            self._save_topk_checkpoint(trainer, candidates)
            if self._fault:  # the best one is the one that is on the disk
                vars(self).update(known)
        self._save_last(trainer, again=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last one where nothing is validated."""
        if not trainer.enable_validation or not sum(trainer.num_val_batches):
            self._save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what the training ends with.

        Raises:
            SamlitError: It cannot be written.
        """
        if self._may_save(trainer):
            self.save_now(trainer)

    def save_now(self, trainer: pl.Trainer, again: bool = False) -> Path:
        """Save the last one unless this step's is saved, or even then; its file.

        Raises:
            SamlitError: It cannot be written.
        """
        self._fault = ""
        self._save_last(trainer, again)
        if self._fault:
            raise SamlitError(f"{self._fault}: what was learned since then is lost; make room, then --ckpt_path last")
        return Path(str(self.dirpath), LAST)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say what a run's last digits depend on."""
        checkpoint["threads"] = torch.get_num_threads()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Tell where a run that goes on cannot be an unbroken one to the last digit."""
        before, now = checkpoint.get("threads"), torch.get_num_threads()
        if before not in (None, now) and trainer.strategy.root_device.type == "cpu":
            same = f"OMP_NUM_THREADS={before} would make it the same"
            told = f"a process had {before} threads and has {now} now: the run goes on, with other last digits ({same})"
            warnings.warn(told, stacklevel=1)

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

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        """Save one; where it cannot be written, all ranks know, and go on a few times."""
        io = trainer.strategy.checkpoint_io
        if not isinstance(io, AtomicIO):
            return super()._save_checkpoint(trainer, filepath)
        io.patient, io.fault = True, None
        try:
            super()._save_checkpoint(trainer, filepath)
        finally:
            io.patient = False
        self._fault = trainer.strategy.broadcast(str(io.fault or ""))
        self._failed = self._failed | {trainer.global_step} if self._fault else set()
        if len(self._failed) >= TRIES:
            raise SamlitError(f"{self._fault}; {TRIES} times in a row: make room, then go on with --ckpt_path last")
        if self._fault:
            told = f"step {trainer.global_step}: {self._fault}; training goes on, the next save may find room"
            warnings.warn(told, stacklevel=1)

    def _may_save(self, trainer: pl.Trainer) -> bool:
        return not (getattr(trainer, "fast_dev_run", False) or trainer.sanity_checking or trainer.state.fn != "fit")

    def _save_last(self, trainer: pl.Trainer, again: bool = False) -> None:
        """Save it unless this step's is saved; after a validation in any case, for its numbers are part of it."""
        if self._may_save(trainer) and (again or self._last_step != trainer.global_step):
            self._last_step = trainer.global_step
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            if self._fault:
                self._last_step = -1  # what comes next tries again


BEST = ("kth_best_model_path", "kth_value", "best_model_score", "best_model_path", "current_score")
"""What Lightning remembers of the best checkpoint."""


def save_now(trainer: pl.Trainer, again: bool = False) -> Path | None:
    """Save a run's last checkpoint, for it is about to end: its file, or None where a run keeps none.

    Args:
        trainer: Of the run.
        again: Also where this step's is saved.

    Raises:
        SamlitError: It cannot be written.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoints):
            return callback.save_now(trainer, again)
    return None


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
