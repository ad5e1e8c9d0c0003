"""Weights & Biases: numbers, checkpoints, and masks over images, round by round; offline unless one is logged in."""

from __future__ import annotations

import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from samlit.drawing import curves, pictures
from samlit.errors import one_line
from samlit.evaluation.calibration import Reliability
from samlit.module import SamModule
from samlit.run.examples import Examples, Played
from samlit.run.report import Report
from samlit.run.tables import as_image, as_images, as_table
from samlit.shell import terminal
from samlit.structures import Batch

__all__ = ["Tracking", "Wandb", "logged_in"]


class Wandb(WandbLogger):
    """W&B in the run's folder, quiet; whatever fails in it, training goes on.

    Online where one is logged in (`wandb login`, or WANDB_API_KEY), offline otherwise: `wandb sync` uploads such a run
    later. WANDB_MODE says otherwise.

    Args:
        project: The W&B project.
        name: Of the run; W&B makes one up if not given.
        save_dir: Where all of W&B's files go; the run's folder if not given.
        group: Of runs, in W&B's list.
        tags: For W&B's list.
        notes: A sentence about the run.
        log_model: Which checkpoints become artifacts: the "best" one when the training ends, "all" as they are saved,
            or none. An offline run keeps a copy of each until it is uploaded.
    """

    def __init__(
        self,
        project: str = "samlit",
        name: str | None = None,
        save_dir: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        log_model: Literal["best", "all"] | bool = False,
    ) -> None:
        if log_model is True:
            raise ValueError("log_model: best, all or false, not true")
        self._broken = False
        self._keeps: Literal["best", "all"] | bool = log_model
        self._checkpoint: ModelCheckpoint | None = None
        self._step_of: dict[str, int] = {}
        self._kept: set[tuple[str, int]] = set()
        self._scores: dict[str, float] = {}
        super().__init__(name, project=project, log_model=False, group=group, tags=list(tags) or None, notes=notes)
        self._save_dir = save_dir

    @property
    def save_dir(self) -> str:
        """Where W&B's files go."""
        return self._save_dir or "runs"

    def live_in(self, folder: str, go_on: bool = False) -> None:
        """Keep everything in a run's folder, unless another one was given; called before the training begins.

        Args:
            folder: The run's.
            go_on: Whether the training is resumed, and with it the W&B run that was last begun there.
        """
        self._save_dir = self._save_dir or folder
        if go_on and self._memo.exists():
            self._id = self._wandb_init["id"] = self._memo.read_text().strip() or None

    @property
    def _memo(self) -> Path:
        """Where the run's id is kept."""
        return Path(self.save_dir) / "wandb" / "run-id"

    @property
    def experiment(self) -> Any:
        """The W&B run; one that does nothing where none can be had."""
        if _first_rank() and self._experiment is None:
            self._start()
        return super().experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers, or whatever W&B logs."""
        if _first_rank():
            self._scores |= {k: v for k, v in metrics.items() if k.startswith("val/") and isinstance(v, float | int)}
            self._attempt(lambda: super(Wandb, self).log_metrics(metrics, step))

    def log_hyperparams(self, params: Any) -> None:
        """Log the configuration."""
        if _first_rank():
            self._attempt(lambda: super(Wandb, self).log_hyperparams(params))

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Take a checkpoint up, or note it for the end; called after each save."""
        path = str(getattr(checkpoint_callback, "_last_checkpoint_saved", ""))
        if not self._keeps or not path:
            return
        self._checkpoint = checkpoint_callback
        self._step_of[path] = int(getattr(checkpoint_callback, "_last_global_step_saved", 0))
        if self._keeps == "all":
            self._keep(path)

    def finalize(self, status: str) -> None:
        """Take the best checkpoint up, whatever ended the training; the last one where nothing was validated."""
        callback, self._checkpoint = self._checkpoint, None
        if self._keeps == "best" and callback is not None:
            self._checkpoint = callback
            self._keep(str(callback.best_model_path or callback.last_model_path))
            self._checkpoint = None

    def _keep(self, path: str) -> None:
        """Make an artifact of a checkpoint: what W&B stages is a copy, so the file may change at once."""
        callback, step = self._checkpoint, self._step_of.get(path, 0)
        if callback is None or not _first_rank() or (path, step) in self._kept or not Path(path).exists():
            return
        self._kept.add((path, step))
        best, last = (str(getattr(callback, name, "")) for name in ("best_model_path", "last_model_path"))
        newest = max(self._step_of.values(), default=step)
        both = self._keeps == "best" and step == newest
        aliases = ["best"] * (path == best) + ["last"] * (path == last or both)
        score = callback.best_model_score if path == best else None
        about = {"step": step, "file": Path(path).name, "monitor": callback.monitor, **self._scores}
        if score is not None:
            about["score"] = float(score)

        def log() -> None:
            import wandb

            run = self.experiment
            artifact = wandb.Artifact(f"model-{run.id}", "model", metadata=about)
            (artifact.add_dir if Path(path).is_dir() else artifact.add_file)(path)
            run.log_artifact(artifact, aliases=aliases)

        self._attempt(log)

    def _start(self) -> None:
        """Begin a run: online or offline, and if neither can be, one that does nothing."""
        import wandb

        mode = os.environ.get("WANDB_MODE", "")
        if mode in ("", "online") and not logged_in():
            if mode:
                self._note("WANDB_MODE is online and nobody is logged in (`wandb login`): offline")
            mode = "offline"
        folder = Path(self.save_dir).absolute()
        # W&B's own places for these are in HOME, where a few checkpoints or tables fill a quota.
        for name in ("DATA", "CACHE", "ARTIFACT"):
            os.environ.setdefault(f"WANDB_{name}_DIR", str(folder / "wandb" / name.lower()))
        self._wandb_init["dir"] = str(folder)
        self._wandb_init.pop("anonymous", None)  # without effect, and W&B warns of it
        for attempt in dict.fromkeys((mode or "online", "offline", "disabled")):
            self._wandb_init["mode"] = attempt
            self._wandb_init["settings"] = wandb.Settings(
                silent=True, quiet=True, console="off", init_timeout=30, finish_timeout=300, disable_git=True
            )
            try:
                if attempt != "disabled":
                    (folder / "wandb").mkdir(parents=True, exist_ok=True)
                run = super().experiment
                if attempt != "disabled":
                    self._memo.write_text(f"{run.id}\n")
                return
            except Exception as error:  # whatever it is: it is not worth a training
                self._note(f"W&B does not start {attempt} ({one_line(error)})")

    def _attempt(self, action: Callable[[], None]) -> None:
        """Do it; where it fails, say so once, and go on without W&B."""
        if self._broken:
            return
        try:
            action()
        except Exception as error:  # the service, the network, the disk: none is worth a training
            self._broken = True
            self._note(f"W&B stopped logging ({one_line(error)})")

    def _note(self, text: str) -> None:
        terminal.note(f"{text}; training goes on")


class Tracking(pl.Callback):
    """Shows W&B, after each validation, what the model answers to held-out masks, round by round.

    The first few masks as images whose masks can be shown and hidden; those, and the ones answered best and worst, as a
    table; the sheets of the run's report and the plot of the predicted IoU, which TensorBoard is shown too. Without
    either of these loggers it does nothing.

    Args:
        examples: How many masks of the first images.
        sheet: Whether the pictures of all examples, and of the extremes, are logged too.
        extremes: How many masks answered best, and as many answered worst, are in the table.
        table: Whether there is one.
    """

    def __init__(self, examples: int = 6, sheet: bool = True, extremes: int = 3, table: bool = True) -> None:
        self.examples, self.sheet, self.table = Examples(examples, extremes), sheet, table
        self._wandb: list[WandbLogger] = []
        self._boards: list[TensorBoardLogger] = []
        self._shares = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the loggers; share the examples of the run's report."""
        self._wandb = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        self._boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        report = _report(trainer)
        if report is not None and _covers(report.examples, self.examples):
            # They are played once for both.
            self.examples, self._shares = report.examples, True

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep examples, where the report does not."""
        if (self._wandb or self._boards) and not self._shares and not dataloader_idx:
            self.examples.see(batch, batch_idx, outputs)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the examples' answers."""
        if not (self._wandb or self._boards) or trainer.state.fn != "fit" or not isinstance(pl_module, SamModule):
            return
        played = self.examples.play(trainer, pl_module)  # on all ranks
        if trainer.is_global_zero:
            when = "before training" if trainer.sanity_checking else f"step {trainer.global_step}"
            drawn = self._drawn(played, pl_module.reliability, when)
            for logger in self._wandb:
                values: dict[str, Any] = {name: [as_image(picture)] for name, picture in drawn.items()}
                values |= as_images(played.first)
                if self.table and (table := as_table(played)):
                    values["examples/table"] = table
                if values:
                    logger.log_metrics(values, trainer.global_step)
            for board in self._boards:
                for name, picture in drawn.items():
                    board.experiment.add_image(name, np.asarray(picture), trainer.global_step, dataformats="HWC")

    def _drawn(self, played: Played, reliability: Reliability | None, when: str) -> dict[str, Image.Image]:
        """The pictures that need no table, by name."""
        drawn: dict[str, Image.Image] = {}
        if self.sheet and played.first:
            drawn["examples/sheet"] = pictures.contact_sheet(played.first, f"Held-out masks, {when}")
        if self.sheet and played.best:
            drawn["examples/extremes"] = pictures.extremes_sheet(played, when)
        if reliability is not None and reliability.total:
            drawn["val/reliability"] = Image.open(BytesIO(curves.reliability(reliability, when))).convert("RGB")
        return drawn

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the report's table."""
        report = _report(trainer)
        if not self._wandb or report is None or not report.best or not trainer.is_global_zero:
            return
        import wandb

        columns, rows = report.table()
        for logger in self._wandb:
            logger.log_metrics({"report": wandb.Table(columns=columns, data=rows)}, trainer.global_step)


def _covers(one: Examples, other: Examples) -> bool:
    return one.count >= other.count and one.extremes >= other.extremes


def logged_in() -> bool:
    """Whether a W&B key is at hand, in the environment or in the netrc file; nobody is asked for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if netrc.netrc(path.expanduser()).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _first_rank() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _report(trainer: pl.Trainer) -> Report | None:
    callbacks: list[pl.Callback] = getattr(trainer, "callbacks", [])
    return next((callback for callback in callbacks if isinstance(callback, Report)), None)
