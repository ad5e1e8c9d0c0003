"""Progress of long work: bars in a terminal, a line now and then where output is kept."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar as Base
from rich.progress import Progress, TaskID

from samlit.shell import terminal
from samlit.shell.bars import bar, clock, drawn

__all__ = ["ProgressBar", "bar"]


class ProgressBar(Base):
    """Shows step, loss, mIoU, images a second on all devices, and the time that is left.

    A bar in a terminal. Elsewhere a plain line now and then, so that a log stays one that can be read.

    Args:
        seconds: Between two plain lines.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._enabled = True
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._recent: deque[tuple[float, int]] = deque(maxlen=100)
        self._clock = self._said = self._drawn = 0.0

    def disable(self) -> None:
        """Show nothing: called on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show it again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._progress is not None:
            self._progress.console.print(*args)
        elif self._enabled and not terminal.is_quiet():
            print(*args, file=sys.stderr)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        self._open()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar, start the clock."""
        self._open()
        self._clock = self._said = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the time of a step; show it where it is due."""
        if not self._enabled:
            return
        now = time.monotonic()
        # From the end of the step before to the end of this one, so that waiting for data counts.
        self._recent.append((now - self._clock, len(batch.image) * trainer.world_size))
        self._clock = now
        total = trainer.estimated_stepping_batches
        last = trainer.global_step >= total
        if self._progress is not None:
            if last or now - self._drawn > 0.25:  # reading a number makes the device finish
                self._drawn = now
                text = self._words(trainer, self._left(trainer, total))
                self._show("training", trainer.global_step, total, text)
        elif last or now - self._said > self.seconds:
            self._said = now
            of = "" if math.isinf(total) else f"/{int(total)}"
            terminal.tell(f"step {trainer.global_step}{of}  {self._words(trainer, self._left(trainer, total))}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show a second bar, or the only one."""
        self._open()
        self._show(self._what(trainer), 0, self._validation_batches(trainer), "")

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move it."""
        self._show(self._what(trainer), batch_idx + 1, self._validation_batches(trainer), "")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        self._open()
        self._show("testing", 0, float(sum(trainer.num_test_batches)), "")

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move it."""
        self._show("testing", batch_idx + 1, float(sum(trainer.num_test_batches)), "")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take it away again; the time was not training's."""
        task = self._tasks.pop(self._what(trainer), None)
        if self._progress is not None and task is not None:
            self._progress.remove_task(task)
        scores: dict[str, float] = getattr(pl_module, "scores", {})
        if self._enabled and self._progress is None and scores and trainer.state.fn == "fit":
            words = "  ".join(f"{name} {value:.3f}" for name, value in scores.items() if not name.endswith("_best"))
            when = "before training" if trainer.sanity_checking else f"at step {trainer.global_step}"
            terminal.tell(f"held-out {when}: {words}")
        self._clock = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close it."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close it, so that the message stands below."""
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close it."""
        self._close()

    def _open(self) -> None:
        if self._enabled and self._progress is None and terminal.alive(sys.stderr) and not terminal.is_quiet():
            self._progress = drawn()
            self._progress.start()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._tasks = None, {}

    def _show(self, what: str, done: int, total: float, text: str) -> None:
        if self._progress is None:
            return
        known = None if math.isinf(total) else total
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=known, text=text)
        self._progress.update(self._tasks[what], completed=done, total=known, text=text)

    def _words(self, trainer: pl.Trainer, left: float) -> str:
        """Loss, mIoU, images a second, time left."""
        metrics = trainer.callback_metrics
        words = [
            f"{word} {float(metrics[name]):.3f}"
            for word, name in (("loss", "train/loss"), ("mIoU", "train/miou"))
            if name in metrics
        ]
        spent = sum(seconds for seconds, _ in self._recent)
        if spent:
            rate = sum(images for _, images in self._recent) / spent
            words.append(f"{1 / rate:.0f} s/image" if rate < 0.1 else f"{rate:.{int(rate < 100)}f} images/s")
        if math.isfinite(left):
            words.append(f"{clock(left)} left")
        return "  ".join(words)

    def _left(self, trainer: pl.Trainer, total: float) -> float:
        """Seconds of training that are left, validation not counted."""
        done, batches = trainer.global_step, trainer.accumulate_grad_batches
        recent = sum(seconds for seconds, _ in self._recent) / max(len(self._recent), 1)
        return (total - done) * batches * recent

    @staticmethod
    def _what(trainer: pl.Trainer) -> str:
        return "before training" if trainer.sanity_checking else "validation"

    @staticmethod
    def _validation_batches(trainer: pl.Trainer) -> float:
        return float(sum(trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches))
