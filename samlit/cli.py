"""The `samlit` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import atexit
import faulthandler
import importlib
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from typing import Any, NamedTuple, NoReturn

from samlit import __version__
from samlit.errors import SamlitError, UsageError, did_you_mean, one_line
from samlit.run import ranks
from samlit.shell import terminal
from samlit.shell.options import EVERYWHERE, ArgumentParser

__all__ = ["COMMANDS", "main"]


class Command(NamedTuple):
    """Where a command lives, and what it does.

    Attributes:
        target: "module:function", called with the words after the command; returns the exit status.
        summary: For `samlit --help`.
    """

    target: str
    summary: str


# A new command is one line here.
COMMANDS = {
    "fit": Command("samlit.cli:run_recipe", "train a recipe, or fine-tune with it"),
    "validate": Command("samlit.cli:run_recipe", "run a recipe's validation tasks"),
    "test": Command("samlit.cli:run_recipe", "run the same tasks on data that no training has looked at"),
    "list": Command(
        "samlit.cli:list_registered", "what is there: plug-ins, recipes, published weights, the paper's data sets"
    ),
    "plan": Command("samlit.plan.command:main", "what a recipe needs and takes: memory, FLOPs, hours, before it runs"),
    "shards": Command("samlit.shards.command:main", "make, check, index and fetch shards in SA-1B's layout"),
    "evaluate": Command("samlit.evaluation.evaluate:main", "a task with its published metric, on any data"),
    "segment": Command("samlit.segment.command:main", "masks of pictures, from the shell"),
    "generate": Command("samlit.generation.command:main", "masks of everything in many images, as SA-1B's shards"),
    "annotate": Command("samlit.annotator.command:main", "masks of a folder's images, by people in the browser"),
    "clip": Command("samlit.text.clip_training:main", "train the small CLIP of a recipe with text prompts"),
    "head": Command(
        "samlit.evaluation.head_training:main", "train a head that names masks, for semantic and panoptic segmentation"
    ),
    "convert": Command("samlit.weights.convert:main", "a checkpoint in pieces to one file, or one file to pieces"),
    "export": Command("samlit.export.command:main", "take weights elsewhere: to SAM's own code, transformers, ONNX"),
}

QUIET = """
With --quiet there are no bars, no lines about how far it is, no notes, no remarks such as `saved to FILE`, and no
table at the end of a training. What stays are errors and what a command is for: the tables, or with --json the objects,
of list, plan, validate, test, evaluate, `shards check`, `shards audit` and `annotate --report`; annotate's address."""
EXAMPLES = """
examples:
  samlit fit --recipe tiny                                                a first run, minutes without a GPU
  samlit fit --recipe tiny --model.encoder vit_b --trainer.max_steps 10   any key of a recipe is an option
  samlit segment photo.jpg --weights mobile_sam --everything --out masks.png
"""
LISTS = """examples:
  samlit list
  samlit list encoders
  samlit list weights --json
"""


def run() -> NoReturn:
    """The `samlit` of a shell: `main`, and the end of the process."""
    status = 1
    with suppress(OSError, ValueError, AttributeError):  # a stream that is no file
        faulthandler.enable()  # a crash inside C++ says where Python was

    @atexit.register  # before all others, and so called after them
    def leave() -> None:
        # While the interpreter takes itself down, threads of the library that connects ranks may meet their end inside
        # C++, which aborts the process after all went well; and its rank would count as lost.
        if ranks.connected:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(status)

    status = main()
    raise SystemExit(status)


def main(argv: list[str] | None = None) -> int:
    """Run one command and say in one line what went wrong, if something did.

    Args:
        argv: The words after `samlit`; those of the shell by default.

    Returns:
        0 on success, 2 on a usage error, 130 after Ctrl-C, 1 otherwise.
    """
    if argv is None and "_ARGCOMPLETE" in os.environ:  # the shell asks what may come next
        from samlit.shell import completion

        completion.complete({name: command.target for name, command in COMMANDS.items()})
    words = list(sys.argv[1:] if argv is None else argv)
    debug, quiet = ("--debug" in words), ("--quiet" in words)
    words = [word for word in words if word not in EVERYWHERE]
    # A class path may name a file in the working directory. `python -m` puts that on the path by itself; the installed
    # script does not. At the end, so that a person's `random.py` does not replace Python's.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    try:
        with terminal.silenced(quiet), nullcontext() if debug else _libraries_hushed():
            return _run(words)
    except KeyboardInterrupt as error:
        return _fail("interrupted", 130, error, debug)
    except BrokenPipeError:
        # `samlit list | head` closed our output: nothing is wrong, and nothing is left to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SamlitError as error:
        return _fail(one_line(error), error.status, error, debug)
    except (ValueError, LookupError, OSError) as error:
        return _fail(one_line(error), 1, error, debug)
    except Exception as error:
        hint = "" if debug else " (run again with --debug for the traceback)"
        return _fail(f"{type(error).__name__}: {one_line(error)}{hint}", 1, error, debug)


@contextmanager
def _libraries_hushed() -> Iterator[None]:
    """Keep what libraries say to developers from the person who types: tips, deprecations, advice on loader workers."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module="samlit")
        if _rank() == "0":  # what is to be noted is the same on all ranks
            warnings.showwarning = lambda message, *_: terminal.note(str(message))
        else:
            warnings.showwarning = lambda *_: None
        # Not a level: libraries set the level of their loggers when they are imported, which is later.
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


def _rank() -> str:
    """This process's number among those of a run."""
    return str(ranks.place()[0])


def _fail(line: str, status: int, error: BaseException, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    # Of many processes, the first to fail knows why, and the others only that it is gone.
    terminal.fail(line, _rank())
    return status


def _run(words: list[str]) -> int:
    match words:
        case [] | ["-h" | "--help" | "help", *_]:
            print(_usage(), end="")
            return 0
        case ["--version" | "-V", *_]:
            print(f"samlit {__version__}")
            return 0
        case [command, *rest] if command in COMMANDS:
            module, _, name = COMMANDS[command].target.partition(":")
            function: Callable[[list[str]], int] = getattr(importlib.import_module(module), name)
            return function([command, *rest] if function is run_recipe else rest)
    what = "option" if words[0].startswith("-") else "command"
    known = ["--help", "--version", *EVERYWHERE] if what == "option" else list(COMMANDS)
    raise UsageError(f"there is no {what} {words[0]!r}{did_you_mean(words[0], known)} (known: {', '.join(known)})")


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: samlit COMMAND [OPTION ...]",
            "",
            "The open training framework for promptable segmentation.",
            "",
            *lines,
            "",
            "  samlit COMMAND --help   the options of a command, with examples",
            "  samlit --version        the version",
            *(f"  {option:22}  {told}" for option, told in EVERYWHERE.items()),
            QUIET,
            EXAMPLES,
        ]
    )


def list_registered(argv: list[str]) -> int:
    """`samlit list [KIND] [--json]`: names, what they are, and the package that each came from."""
    from samlit import plugins, recipe
    from samlit.evaluation import suite
    from samlit.weights import catalogue

    what = (
        "What is there: plug-ins, recipes, published weights, and the data sets that the paper judges single points on."
    )
    parser = ArgumentParser(prog="samlit list", description=what, epilog=LISTS)
    kinds = [*plugins.KINDS, "recipes", "weights", "sets"]
    parser.reads.add_argument("kind", nargs="?", metavar="KIND", help=f"one of {', '.join(kinds)}; all by default")
    told = "for a program, a list of objects on stdout: kind, name, summary, package; of weights and sets all there is"
    parser.says.add_argument("--json", action="store_true", help=told)
    options = parser.parse_args(argv)
    if options.kind and options.kind not in kinds:
        near = did_you_mean(options.kind, kinds)
        raise UsageError(f"there is no kind {options.kind!r}{near} (kinds: {', '.join(kinds)})")

    rows: list[dict[str, Any]] = []
    for kind in [options.kind] if options.kind else kinds:
        if kind == "recipes":
            for name in recipe.names():
                rows.append({"kind": kind, "name": name, "summary": recipe.summary(name), "package": "samlit"})
            continue
        if kind == "weights":
            for name, published in catalogue.PUBLISHED.items():
                row = {"kind": kind, "name": name, "summary": published.summary, "package": "samlit"}
                rows.append(row | vars(published) | {"facts": published.facts})
            continue
        if kind == "sets":
            for name, listed in suite.SUITE.items():
                row = {"kind": kind, "name": name, "summary": listed.summary, "package": "samlit"}
                rows.append(row | asdict(listed) | {"facts": listed.facts})
            continue
        for plugin in plugins.catalogue(kind):
            row = {"kind": kind, "name": plugin.name, "summary": plugin.summary(), "package": plugin.package}
            problem = plugin.problem()
            rows.append(row | {"problem": problem} if problem else row)
    if options.json:
        terminal.show(json.dumps(rows, indent=2))
    else:
        _print_table(rows)
    return 0


def _print_table(rows: list[dict[str, Any]]) -> None:
    """For a person: a table where there is a terminal, tab-separated lines where there is a pipe."""
    cells = [(r["kind"], r["name"], _told(r), r["package"]) for r in rows]
    if not sys.stdout.isatty():
        print(*("\t".join(row) for row in cells), sep="\n")
        return
    from rich.text import Text

    table = terminal.table("kind", "name", "", "package", left=["name", "", "package"])
    last = ""
    for kind, *row in cells:
        table.add_row("" if kind == last else kind, Text(row[0], "bold"), Text(row[1]), Text(row[2], "dim"))
        last = kind
    terminal.show(table)


def _told(row: dict[str, Any]) -> str:
    summary = str(row["summary"])
    if "facts" in row:
        return f"{summary} ({row['facts']})"
    return f"{summary} [cannot be used: {row['problem']}]".lstrip() if "problem" in row else summary


def run_recipe(argv: list[str]) -> int:
    """`samlit fit|validate|test`: every name is resolved first, and only then torch is imported."""
    from samlit import recipe
    from samlit.shell import arguments

    command, *rest = argv
    line = arguments.read(rest)
    if not line.complete:
        raise UsageError(f"{command} needs a recipe: --recipe NAME or FILE (known: {', '.join(recipe.names())})")
    from samlit import engine

    return engine.run(command, line)
