"""A recipe as `samlit fit` would run it, read by the same parser, with nothing begun and no memory taken."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from samlit.datamodule import SamData
from samlit.engine import SamCLI
from samlit.errors import SamlitError, UsageError, did_you_mean, one_line
from samlit.module import SamModule
from samlit.parallel import Replicated, Sharded
from samlit.plan.budget import Run, Strategy
from samlit.plan.hollow import without_weights
from samlit.shell.parser import Parser

__all__ = ["HALF", "Recipe", "read"]

HALF = {
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
}
SHORT = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "None": "32-true"}


@dataclass(frozen=True)
class Recipe:
    """What a command line says.

    Attributes:
        module: The model, the task and the optimiser, without weights.
        run: The size of the training.
        accelerator: As the recipe calls it.
        checkpoint: Whether the encoder computes again what it could keep; None where it has no such key.
        embedded: Whether images come embedded.
        unknown: Why the length of the training is not known; empty where it is.
    """

    module: SamModule
    run: Run
    accelerator: str
    checkpoint: bool | None
    embedded: bool = False
    unknown: str = ""

    @property
    def half(self) -> torch.dtype | None:
        """What a mixed precision computes products in; None where there is none."""
        return HALF[self.run.precision] if self.run.precision.endswith("-mixed") else None


class _Cli(SamCLI):
    """Parses and builds the model and the data, and nothing else."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and choose no folder."""
        LightningCLI.parse_arguments(self, parser, args)

    def instantiate_classes(self) -> None:
        """Build model and data; loggers, callbacks and strategies do things when they are built."""
        whole = self.config.clone()
        for name in ("logger", "callbacks", "plugins", "profiler"):
            whole[self.subcommand].trainer[name] = None
        whole[self.subcommand].trainer.strategy = "auto"
        with without_weights():
            self.config_init = self.parser.instantiate_classes(whole)
        self.model, self.datamodule = self._get(self.config_init, "model"), self._get(self.config_init, "data")

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def read(words: Sequence[str], devices: int | None = None) -> Recipe:
    """Read a command line whose names are resolved.

    Args:
        words: As `samlit.shell.arguments.read` gives them.
        devices: How many there are, where the recipe is not to say it.

    Raises:
        UsageError: It is none that can be run, or one that no plan is known for.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cli = _Cli(
                SamModule,
                SamData,
                args=["fit", *words],
                parser_class=Parser,
                save_config_callback=None,
                auto_configure_optimizers=False,
                seed_everything_default=0,
            )
    except MisconfigurationException as error:
        raise UsageError(one_line(error)) from error
    config, module, data = cli.config["fit"], cli.model, cli.datamodule
    trainer = config.trainer
    precision = SHORT.get(str(trainer.precision), str(trainer.precision))
    if precision not in HALF:
        near = did_you_mean(precision, HALF)
        raise UsageError(f"trainer.precision: no plan for {precision!r}{near} (known: {', '.join(HALF)})")
    module.net.to("meta", HALF[precision] if precision.endswith("-true") else None)
    count = devices or _count(trainer.devices) * trainer.num_nodes
    steps, unknown = _steps(trainer, data, count)
    strategy, bucket_view = _strategy(trainer.strategy, count)
    encoder = config.model.encoder
    return Recipe(
        module,
        Run(
            data.batch_size,
            data.max_masks,
            data.image_size,
            precision,
            strategy,
            count,
            trainer.accumulate_grad_batches,
            steps,
            bucket_view,
        ),
        str(trainer.accelerator),
        None if data.embeddings else (encoder.get("init_args") or {}).get("checkpoint"),
        data.embeddings is not None,
        unknown,
    )


def _count(devices: Any) -> int:
    """How many devices `trainer.devices` names; one where the machine is to tell."""
    if isinstance(devices, str) and "," in devices:
        devices = [word for word in devices.split(",") if word.strip()]
    if isinstance(devices, (list, tuple)):
        return len(devices)
    text = str(devices)
    return int(text) if text.isdecimal() and int(text) else 1


def _strategy(given: Any, devices: int) -> tuple[Strategy, bool]:
    """How devices share the work, and whether DDP's buckets are its gradients."""
    name = str(given if isinstance(given, str) else given.class_path)
    options = {} if isinstance(given, str) else given.get("init_args") or {}
    if name in ("fsdp", f"{Sharded.__module__}.Sharded") or "ModelParallel" in name:
        return "fsdp", False
    if name in ("ddp", f"{Replicated.__module__}.Replicated") or (name == "auto" and devices > 1):
        return "ddp", True
    if "ddp" in name.lower():
        return "ddp", bool(options.get("gradient_as_bucket_view"))
    if name == "auto" or "single" in name.lower():
        return "single", False
    raise UsageError(f"trainer.strategy: no plan for {name!r} (known: auto, ddp, fsdp)")


def _steps(trainer: Any, data: SamData, devices: int) -> tuple[int | None, str]:
    """Steps of the training, or why they are not known."""
    most = trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
    if epochs is None:
        return most, "" if most else "neither trainer.max_steps nor trainer.max_epochs is given"
    try:
        images = data.epoch_size or len(data.source)
    except (SamlitError, OSError, ValueError, LookupError) as error:
        return most, "" if most else f"an epoch's images are not known before the data is there ({one_line(error)})"
    steps = epochs * -(-images // (data.batch_size * devices) // trainer.accumulate_grad_batches)
    return min(steps, most) if most else steps, ""
