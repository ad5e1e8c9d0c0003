"""A run that is told to end by a signal: one checkpoint is written, and all ranks end together."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch

from samlit.errors import SamlitError
from samlit.run.checkpointing import save_now
from samlit.training.later import Later

__all__ = ["Ended", "Signals"]

SIGNALS = (signal.SIGTERM, *((signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()))
"""What clusters send before they take a machine away; SIGUSR1 is what SLURM sends with `--signal=USR1@120`."""


class Ended(SamlitError):
    """A signal has ended the run, in order."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.status = 128 + number


class Signals(pl.Callback):
    """Ends a run in order when SIGTERM or SIGUSR1 comes, to one of its processes or to all.

    The last checkpoint is saved, and the exit status is that of a process which the signal has ended, 143 for SIGTERM.
    Further ones change nothing, for often a process is told by several.

    Args:
        every: Steps, and batches of a validation, between two times that the ranks ask each other whether one of them
            was told to end.
    """

    def __init__(self, every: int = 5) -> None:
        if every < 1:
            raise ValueError(f"signals.every: one step at least, not {every}")
        self.every = every
        self._number = self._turns = self._step = 0
        self._learning = False
        self._before: dict[int, Any] = {}
        self._later = Later()
        self._unvalidated: dict[str, Any] | None = None

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen."""
        self._listen(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen, and from now on end in order."""
        self._listen(trainer)
        self._learning = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End between two steps."""
        if trainer.global_step != self._step:  # not while gradients are accumulated, which no checkpoint holds
            self._step = trainer.global_step
            self._end_if_told(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember that nothing of it is done."""
        if self._learning:
            progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            # One that is done again, see below, was counted as begun.
            total: Any = progress.total
            total.ready = total.started = total.processed = total.completed
            self._unvalidated = progress.state_dict()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """End within a validation, which is done again when one goes on."""
        if self._learning:
            self._end_if_told(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """It is done."""
        self._unvalidated = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a validation that is broken off count as begun: Lightning goes on with it, from its first batch."""
        if self._unvalidated is not None:
            begun = {**self._unvalidated}
            for key in ("total", "current"):
                done = begun[key]["completed"] if key == "total" else 0
                begun[key] = {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = begun

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Listen no more."""
        self._learning = False
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Listen no more."""
        self.teardown(trainer, pl_module, "fit")

    def _listen(self, trainer: pl.Trainer) -> None:
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        # Lightning listens from just before. Its handler begins to speak to the other ranks in the middle of whatever
        # they are saying to each other, and every step waits for the device to hear it.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        known = trainer._signal_connector._original_handlers
        for number in SIGNALS:
            self._before[number] = known.get(number) or signal.SIG_DFL
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self._learning:  # nothing would be lost
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._number = number

    def _end_if_told(self, trainer: pl.Trainer) -> None:
        self._turns += 1
        number = self._agreed(trainer) if self._turns % self.every == 0 else 0
        if not number:
            return
        name = signal.Signals(number).name
        file = save_now(trainer, again=self._unvalidated is not None)
        trainer.strategy.barrier("samlit.run.signals")
        if trainer.local_rank > 0:
            # Whoever has started the processes of a machine kills the others when one fails: the first one fails.
            raise SystemExit(0)
        kept = f"{file} is written: go on with --ckpt_path last" if file else "the run keeps no checkpoints"
        raise Ended(f"{name} has ended the run at step {trainer.global_step}; {kept}", number)

    def _agreed(self, trainer: pl.Trainer) -> int:
        """The signal that any rank has heard, 0 for none; the same on all ranks."""
        heard = torch.tensor([self._number], device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(heard, torch.distributed.ReduceOp.MAX)
        found = self._later.hand_over(heard)
        return int(found[0]) if found else 0
