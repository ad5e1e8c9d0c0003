"""Lightning's own command line, taught samlit's names, one-line errors and quiet."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from samlit import complaints, plugins, recipe
from samlit.datamodule import SamData
from samlit.errors import UsageError, one_line
from samlit.module import SamModule

__all__ = ["Parser", "SamCLI", "run"]

DESCRIPTION = """samlit {command} --recipe NAME|FILE [any of these options]. --recipe is --config that knows the shipped
recipes (`samlit list recipes`); where a class is wanted, a registered name will do (`samlit list`)."""


class Parser(LightningArgumentParser):
    """Reads registered names in every config file, and complains in one line."""

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Parse a config file's text; called by jsonargparse for every file."""
        tree = yaml.safe_load(content)
        if isinstance(tree, dict):
            content = yaml.safe_dump(recipe.resolve(tree), sort_keys=False)
        return super().parse_string(content, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse what was typed."""
        if not self.exit_on_error:  # a parser inside a parser: the outer one adds where it stands
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise UsageError(complaints.reword(message, [action.dest for action in parser._actions])) from ex


class SamCLI(LightningCLI):
    """SamModule and SamData, with what they share said once."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what is one number to a person."""
        parser.link_arguments("data.image_size", "model.image_size")
        # Lightning's default is the working directory, where it would leave its config.yaml.
        parser.set_defaults({"trainer.default_root_dir": "runs"})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and find the checkpoint that `--ckpt_path last` means.

        Lightning looks for it in the folder of the new run only, where it cannot be yet.
        """
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        if config.get("ckpt_path") == "last":
            config.ckpt_path = newest_checkpoint(Path(config.trainer.default_root_dir))
            if config.ckpt_path is None and self.config.subcommand == "fit":
                warnings.warn(f"no checkpoint in {config.trainer.default_root_dir!r} yet: from the start", stacklevel=1)
            elif config.ckpt_path is None:
                raise UsageError(f"--ckpt_path last: there is no checkpoint in {config.trainer.default_root_dir!r}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; what it refuses was asked for by the person.

        Raises:
            UsageError: This machine, or Lightning, has not got what the `trainer` section says.
        """
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError) as error:
            raise UsageError(f"trainer: {one_line(error)}") from error


def newest_checkpoint(folder: Path) -> str | None:
    """The checkpoint that was written last in a folder of runs; one called `last` before all others."""
    for pattern in ("last*.ckpt", "*.ckpt"):
        if found := sorted(folder.rglob(pattern), key=lambda file: file.stat().st_mtime):
            return str(found[-1])
    return None


def run(command: str, line: recipe.CommandLine) -> int:
    """Run one of Lightning's subcommands: fit, validate, test or predict, with its resolved command line."""
    for class_path, where in line.plugins.items():
        # Inside a list jsonargparse tells the reason of a failed import second and a guess first.
        plugins.load(class_path, where)
    try:
        # sys.argv stays as it is: Lightning starts the other ranks of a machine with it.
        cli = SamCLI(
            SamModule,
            SamData,
            args=[command, *line.arguments],
            parser_class=Parser,
            # A second command in the same folder must neither stop at the first one's config nor replace it.
            save_config_kwargs={
                "overwrite": True,
                "config_filename": "config.yaml" if command == "fit" else f"{command}.yaml",
            },
            parser_kwargs={command: {"description": DESCRIPTION.format(command=command)}},
            auto_configure_optimizers=False,
            seed_everything_default=0,
        )
    except MisconfigurationException as error:
        raise UsageError(one_line(error)) from error
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning has shut down in order, and then exits with 1
            raise KeyboardInterrupt from None
        return int(error.code or 0)
    folder = cli.trainer.log_dir  # asked on every rank: the answer is broadcast
    if command == "fit" and folder and cli.trainer.is_global_zero:
        print(f"samlit: the run is in {folder}", file=sys.stderr)
    return 0
