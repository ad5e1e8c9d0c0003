"""Weights & Biases: numbers, and masks over images, round by round; offline unless one is logged in."""

from __future__ import annotations

import netrc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from samlit import pictures
from samlit.errors import one_line
from samlit.examples import Answer, Example, Examples
from samlit.module import SamModule
from samlit.report import Report
from samlit.structures import Batch

__all__ = ["Tracking", "Wandb", "logged_in"]

LARGE = 512
"""Images with a longer side are logged as JPEG."""


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
    """

    def __init__(
        self,
        project: str = "samlit",
        name: str | None = None,
        save_dir: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
    ) -> None:
        self._broken = False
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
            self._attempt(lambda: super(Wandb, self).log_metrics(metrics, step))

    def log_hyperparams(self, params: Any) -> None:
        """Log the configuration."""
        if _first_rank():
            self._attempt(lambda: super(Wandb, self).log_hyperparams(params))

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
        print(f"samlit: {text}; training goes on", file=sys.stderr)


class Tracking(pl.Callback):
    """Shows W&B the answers to a few held-out masks, round by round, after each validation.

    Without a W&B logger it does nothing.

    Args:
        examples: How many masks.
        sheet: Whether the picture of all examples is logged too.
    """

    def __init__(self, examples: int = 6, sheet: bool = True) -> None:
        self.examples, self.sheet = Examples(examples), sheet
        self._logger: WandbLogger | None = None
        self._shares = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the logger; share the examples of the run's report."""
        self._logger = next((logger for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)
        report = _report(trainer)
        if report is not None and report.examples.count >= self.examples.count:
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
        if self._logger is not None and not self._shares and not dataloader_idx:
            self.examples.see(batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the examples' answers as images with masks."""
        if self._logger is None or trainer.state.fn != "fit" or not isinstance(pl_module, SamModule):
            return
        played = self.examples.play(trainer, pl_module)  # on all ranks
        if played and trainer.is_global_zero:
            images: dict[str, Any] = {}
            for name in dict.fromkeys(name for example in played for name in example.answers):
                have = [(example, example.answers[name]) for example in played if name in example.answers]
                images[f"examples/{name}"] = [_image(example, answer) for example, answer in have]
            if self.sheet:
                images["examples/sheet"] = [_picture(pictures.contact_sheet(played, f"step {trainer.global_step}"))]
            self._log(images, trainer.global_step)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the report's table."""
        report = _report(trainer)
        if self._logger is None or report is None or not report.best or not trainer.is_global_zero:
            return
        import wandb

        columns, rows = report.table()
        self._log({"report": wandb.Table(columns=columns, data=rows)}, trainer.global_step)

    def _log(self, values: dict[str, Any], step: int) -> None:
        if self._logger is not None:
            self._logger.log_metrics(values, step)


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


def _image(example: Example, answer: Answer) -> Any:
    """An image with its prompts drawn, and masks that W&B can show and hide."""
    scale = max(1, -(-256 // max(example.truth.shape)))  # so that a prompt's mark leaves something to see
    rows, columns = example.truth.shape
    picture = Image.fromarray(example.image).resize((columns * scale, rows * scale), Image.Resampling.BICUBIC)
    pictures.prompted(picture, example, answer)
    masks = {
        name: {
            "mask_data": mask.repeat(scale, 0).repeat(scale, 1).astype(np.uint8),
            "class_labels": {0: "background", 1: name},
        }
        for name, mask in (("prediction", answer.mask), ("truth", example.truth))
    }
    words = f"IoU {answer.iou:.2f}, predicted {answer.predicted_iou:.2f}"
    return _picture(picture, f"{words}: {example.phrase}" if example.phrase else words, masks)


def _picture(picture: Image.Image, caption: str | None = None, masks: dict[str, Any] | None = None) -> Any:
    import wandb

    large = max(picture.size) > LARGE
    return wandb.Image(picture, caption=caption, masks=masks, file_type="jpg" if large else "png")
