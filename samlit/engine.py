"""Lightning's own command line, taught samlit's names, one-line errors and quiet."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from samlit import parallel, plugins
from samlit.datamodule import SamData
from samlit.errors import SamlitError, UsageError, one_line
from samlit.module import SamModule
from samlit.run import launch, ranks
from samlit.run.checkpointing import PREVIOUS, AtomicIO, Checkpoints, damage
from samlit.run.loggers import Csv, Tensorboard
from samlit.run.progress import ProgressBar
from samlit.run.report import Report
from samlit.run.signals import Ended, Signals
from samlit.run.speed import Speed
from samlit.shell import arguments, terminal
from samlit.shell.parser import Parser, page
from samlit.tracking import Tracking, Wandb

__all__ = ["SamCLI", "run"]


def seed(everything: bool | int | None) -> int:
    """The seed of prompts and data: the one of everything, 0 where that is no number."""
    return 0 if everything is None or isinstance(everything, bool) else everything


LARGE = 50_000_000
"""Weights of an encoder that learns little from masks alone if it knows nothing at all."""


class SamCLI(LightningCLI):
    """SamModule and SamData, with what they share said once, and the callbacks that every run has."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what is one number to a person; let each callback have its section."""
        parser.link_arguments("data.image_size", "model.image_size")
        for section in ("model", "data"):
            parser.link_arguments("seed_everything", f"{section}.seed", compute_fn=seed)
        for kind, section in CALLBACKS.items():
            parser.add_lightning_class_args(kind, section)
        parser.set_defaults(
            {
                # Lightning's default is the working directory, where it would leave its config.yaml.
                "trainer.default_root_dir": "runs",
                "trainer.logger": {"class_path": "samlit.tracking.Wandb"},
                # All of the validation before training: the report shows what was there before.
                "trainer.num_sanity_val_steps": -1,
                # The loader gives each rank its share itself.
                "trainer.use_distributed_sampler": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and choose the folder of the run."""
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        folder = Path(config.trainer.default_root_dir)
        every, steps = config.trainer.get("val_check_interval"), config.trainer.get("max_steps", -1)
        if isinstance(every, int) and steps > 0:  # at even intervals, the last one at the end: a quick look too
            config.trainer.val_check_interval = steps // math.ceil(steps / every)
        which = config.get("ckpt_path")
        if which == "last" or (which == "best" and self.config.subcommand != "fit"):
            names = NEWEST if which == "last" else BEST
            config.ckpt_path = ranks.agreed("CHECKPOINT", lambda: newest_checkpoint(folder, names))
            if config.ckpt_path is None and self.config.subcommand != "fit":
                raise UsageError(f"--ckpt_path {which}: there is no checkpoint in {str(folder)!r}")
            if config.ckpt_path is None:
                warnings.warn(f"no checkpoint in {str(folder)!r} yet: from the start", stacklevel=1)
            elif self.config.subcommand == "fit":
                config.trainer.default_root_dir = str(Path(config.ckpt_path).parent)
        elif self.config.subcommand == "fit" and config.get("ckpt_path") is None:
            config.trainer.default_root_dir = ranks.agreed("RUN_FOLDER", lambda: free_folder(folder))

    def before_fit(self) -> None:
        """Called by Lightning before its launcher."""
        resumes = bool(self.config[self.config.subcommand].get("ckpt_path"))
        if resumes:
            self.model.weights = None  # the checkpoint has its own, and the file may be gone by now
        self.model.start()  # here already, so that what is wrong with the weights is said once
        _prepare(self)
        large = sum(p.numel() for p in self.model.net.encoder.parameters()) > LARGE
        own = getattr(self.model.net.encoder, "pretrained", False)  # as timm's bring along
        if large and not (self.model.weights or own or resumes) and ranks.place()[0] == 0:
            terminal.note(
                "the encoder starts from new weights, where SAM's started from masked autoencoders': "
                "--model.weights NAME, with a name of `samlit list weights`"
            )

    def before_validate(self) -> None:
        """Called by Lightning before its launcher."""
        self._start_judging()
        _prepare(self)

    def before_test(self) -> None:
        """Called by Lightning before its launcher.

        Raises:
            UsageError: There is nothing to test on, or by.
        """
        if self.datamodule.test is None:
            raise UsageError("test needs data.test, a source as data.validation is: --data.test coco and its keys")
        if not self.model.validation:
            raise UsageError("test needs model.validation, the tasks to judge by: --model.validation [points, boxes]")
        self._start_judging()
        _prepare(self, testing=True)

    def _start_judging(self) -> None:
        """Take the weights that the recipe starts from, where no checkpoint is named that has its own."""
        if not self.config[self.config.subcommand].get("ckpt_path"):
            self.model.start()
            if not self.model.weights and ranks.place()[0] == 0:
                terminal.note("these weights have learned nothing: --ckpt_path best, last or FILE names those of a run")

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it and show its table; where another process is lost, that is why, and not what this one makes of it.

        Raises:
            SamlitError: Another process of the run is lost.
        """
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            if why := launch.reason(self.trainer.strategy.launcher, error):
                raise SamlitError(why) from error
            raise
        if self._shows and self.trainer.is_global_zero:
            table = terminal.table("", subcommand)
            for name, value in self.trainer.callback_metrics.items():
                table.add_row(name, terminal.number(float(value)))
            terminal.show(table)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """What the trainer's method is called with; its table would be another one than all others here."""
        keys = super()._prepare_subcommand_kwargs(subcommand)
        self._shows = keys.get("verbose", False)
        return keys | ({"verbose": False} if "verbose" in keys else {})

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Build the trainer; what it refuses was asked for by the person.

        Raises:
            UsageError: This machine, or Lightning, has not got what the `trainer` section says.
        """
        unwanted: list[type[Callback]] = []
        if self.subcommand != "fit":
            unwanted = [Speed, Report, Tracking, Checkpoints, Signals]
            loggers = config.get("logger")
            loggers = loggers if isinstance(loggers, list) else [loggers]
            if any(isinstance(logger, AT_HOME) for logger in loggers):
                config["logger"] = [logger for logger in loggers if not isinstance(logger, AT_HOME)]
        if terminal.is_quiet():
            config |= {"enable_progress_bar": False, "enable_model_summary": False}
        if config.get("enable_progress_bar") is False:
            unwanted.append(ProgressBar)
        if config.get("enable_checkpointing") is False:
            unwanted.append(Checkpoints)
        callbacks = [callback for callback in callbacks if not isinstance(callback, tuple(unwanted))]
        config["strategy"] = parallel.named(config.get("strategy"))
        try:
            trainer: Trainer = super()._instantiate_trainer(config, callbacks)
        except (MisconfigurationException, ValueError) as error:
            raise UsageError(f"trainer: {one_line(error)}") from error
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicIO()
        for logger in trainer.loggers:
            if isinstance(logger, AT_HOME):
                resumes = bool(self.config[self.config.subcommand].get("ckpt_path"))
                logger.live_in(trainer.default_root_dir, go_on=resumes)
        return trainer


def _prepare(cli: LightningCLI, testing: bool = False) -> None:
    """Make the data ready before other ranks are started, so that what is wrong with it is said once."""
    if ranks.place() == (0, 1):
        cli.datamodule.prepare_data(testing)


AT_HOME = (Wandb, Csv, Tensorboard)
"""The loggers that live in the run's folder."""

CALLBACKS: dict[type[Callback], str] = {
    Speed: "speed",  # first, so that what the others do between two steps is not the steps' time
    Report: "report",
    Tracking: "tracking",
    Checkpoints: "checkpoints",
    Signals: "signals",
    ProgressBar: "progress",
}


def free_folder(folder: Path) -> str:
    """A run's folder: the one that is wanted, or with a number behind it where a run has left its checkpoints."""
    free, number = folder, 2
    while any(free.glob("*.ckpt")):
        free, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return str(free)


NEWEST = ("last*.ckpt", PREVIOUS, "*.ckpt")
BEST = ("best*.ckpt",)
"""What `--ckpt_path` last and best look for, the first that is there."""


def newest_checkpoint(folder: Path, names: Sequence[str] = NEWEST) -> str | None:
    """The checkpoint that was written last in a run's folder or its numbered successors; `last.ckpt` before others.

    A damaged one is told of, and the one before it is taken.

    Args:
        folder: Of the run.
        names: Patterns, the first that is there.

    Raises:
        SamlitError: All are damaged.
    """
    successor = re.compile(re.escape(folder.name) + r"(-\d+)?")
    runs = [folder, *(f for f in folder.parent.glob(f"{folder.name}-*") if successor.fullmatch(f.name))]
    damaged: list[str] = []
    for pattern in names:
        found = {c for run in runs for c in run.rglob(pattern)}
        for file in sorted(found, key=lambda file: file.stat().st_mtime, reverse=True):
            if str(file) in damaged:
                continue
            before = file.with_name(PREVIOUS)
            for one in (file, before) if before.exists() else (file,):
                if place := damage(one):
                    damaged += [str(one)]
                    warnings.warn(f"the checkpoint {one} is damaged (at {place}): going on from another", stacklevel=1)
                    continue
                return str(one)
    if damaged:
        raise SamlitError(f"--ckpt_path: every checkpoint is damaged ({', '.join(damaged)})")
    return None


def run(command: str, line: arguments.CommandLine) -> int:
    """Run one of Lightning's subcommands: fit, validate or test, with its resolved command line."""
    # What decays towards zero in a long run, such as the momentum of a unit that went silent, must not end among the
    # denormal numbers, with which a CPU computes many times more slowly.
    torch.set_flush_denormal(True)
    for where, class_path in line.plugins.items():
        # Inside a list jsonargparse tells the reason of a failed import second and a guess first.
        plugins.load(class_path, where)
    try:
        # sys.argv stays as it is: Lightning starts the other ranks of a machine with it.
        cli = SamCLI(
            SamModule,
            SamData,
            args=[command, *line.words],
            parser_class=Parser,
            # A second command in the same folder must neither stop at the first one's config nor replace it.
            save_config_kwargs={
                "overwrite": True,
                "config_filename": "config.yaml" if command == "fit" else f"{command}.yaml",
            },
            parser_kwargs=page(command),
            auto_configure_optimizers=False,
            seed_everything_default=0,
        )
    except MisconfigurationException as error:
        raise UsageError(one_line(error)) from error
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning has shut down in order, and then exits with 1
            raise KeyboardInterrupt from None
        if not error.code:
            _part()
        return int(error.code or 0)
    except Ended:
        _part()
        raise
    folder = cli.trainer.log_dir  # asked on every rank: the answer is broadcast
    if command == "fit" and folder and cli.trainer.is_global_zero:
        terminal.tell(f"the run is in {folder}")
    _part()
    return 0


def _part() -> None:
    """Part from the other ranks, where all have come to their end."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        ranks.connected = True  # what is left of its threads ends with the process: cli.run
        torch.distributed.destroy_process_group()
