"""Lightning's parser, taught samlit's names, one-line errors and help pages like those of all other commands."""

from __future__ import annotations

from argparse import SUPPRESS
from typing import Any, NoReturn

import yaml
from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from samlit import recipe
from samlit.errors import UsageError
from samlit.shell import complaints
from samlit.shell.options import Page

__all__ = ["Parser", "page"]

USAGE = "samlit {command} --recipe NAME|FILE [--KEY VALUE ...]"
DESCRIPTION = """{about}

--recipe is --config that knows the shipped recipes (`samlit list recipes`). Any key of a recipe is an option too; they
are all below. Where a class is wanted, a registered name will do (`samlit list encoders`), and its own keys are told by
--model.encoder.help vit, --data.source.help coco, --model.task.help interactive and so on.

anywhere:
  --quiet   no bars, notes, remarks and tables{table}; only what went wrong
  --debug   tracebacks and the messages of libraries

examples:
{examples}"""
ABOUT = {
    "fit": (
        "Train a recipe, or fine-tune with it.",
        """  samlit fit --recipe tiny
  samlit fit --recipe tiny --model.encoder vit_b --data.batch_size 8 --trainer.max_steps 10
  samlit fit --recipe finetune --data.source.annotations train.json --data.validation.annotations val.json
  samlit fit --recipe tiny --ckpt_path last""",
    ),
    "validate": (
        "Run a recipe's validation tasks on its data.validation.",
        """  samlit validate --recipe tiny --ckpt_path best
  samlit validate --recipe runs/tiny/config.yaml --ckpt_path runs/tiny/best.ckpt""",
    ),
    "test": (
        "Run a recipe's validation tasks on its data.test, which no training has looked at.",
        """  samlit test --recipe tiny --data.test shapes --data.test.seed 7 --data.test.style clear --ckpt_path best
  samlit test --recipe finetune --data.test coco --data.test.annotations test.json --ckpt_path runs/own/best.ckpt""",
    ),
}
"""What each subcommand does, and how it is called."""


class _Page(Page, DefaultHelpFormatter):
    """Lightning's many options, with examples that keep their lines."""


def page(command: str) -> dict[str, Any]:
    """How a subcommand's help looks and begins, as Lightning takes it."""
    about, examples = ABOUT[command]
    table = "" if command == "fit" else " but the one that it is for"
    told = DESCRIPTION.format(about=about, examples=examples, table=table)
    # The subcommand's formatter is its parent's.
    return {"formatter_class": _Page, command: {"usage": USAGE.format(command=command), "description": told}}


class Parser(LightningArgumentParser):
    """Reads registered names in every config file, and complains in one line."""

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Parse a config file's text; called by jsonargparse for every file."""
        tree = yaml.safe_load(content)
        if isinstance(tree, dict):
            content = yaml.safe_dump(recipe.resolve(tree), sort_keys=False)
        return super().parse_string(content, *args, **kwargs)

    def format_help(self, *args: Any, **keys: Any) -> str:
        """The help page, by what it reads, the model, what is kept and shown of it, and how it works."""
        self.usage = self.usage or SUPPRESS  # of a plug-in's help, which would be all of its keys
        self._action_groups.sort(key=_place)  # type: ignore[attr-defined]  # it is a list
        for group in self._action_groups:
            section = next((action.dest for action in group._group_actions if action.metavar == "CONFIG"), "")
            if section in SECTIONS and not str(group.title).startswith(section):
                group.title = f"{section}: {group.title}"
        page: str = super().format_help(*args, **keys)
        return page

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse what was typed."""
        if not self.exit_on_error:  # a parser inside a parser: the outer one adds where it stands
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise UsageError(complaints.reword(message, [action.dest for action in parser._actions])) from ex


SECTIONS = ("data", "data.augment", "model", "model.loss", "model.optim", *recipe.SECTIONS)


def _place(group: Any) -> int:
    """Of a group of options on a help page."""
    callbacks = [name for name in recipe.SECTIONS if name not in ("data", "model", "trainer")]
    order = ["data", "model", *callbacks, "trainer"]
    sections = {action.dest.partition(".")[0] for action in group._group_actions}
    return next((at for at, section in enumerate(order) if section in sections), len(order))
