"""`samlit plan`: what a recipe computes, needs and takes, and what to change where it does not fit."""

from __future__ import annotations

import json

from samlit import plugins, recipe
from samlit.errors import UsageError, did_you_mean
from samlit.run import gpus
from samlit.shell import arguments, terminal
from samlit.shell.options import ArgumentParser

__all__ = ["main"]

EPILOG = """any key of the recipe can be given too, as to `samlit fit`

Nothing is trained and nothing written: one step runs without values, and what it would compute and hold is added up.
Counted is what the recipe's own encoder, decoder and task do, so a plug-in's plan is as right as a built-in's.

examples:
  samlit plan --recipe tiny
  samlit plan --recipe tiny --model.encoder vit_h --data.image_size 1024 --gpu H100 --devices 8
"""
OWN = ("recipe", "devices", "gpu", "share", "json", "help")


def main(argv: list[str]) -> int:
    """Run the command with the words after `samlit plan`."""
    parser = ArgumentParser(
        prog="samlit plan",
        usage="samlit plan --recipe NAME|FILE [--devices N] [--gpu NAME] [OPTION ...] [--KEY VALUE ...]",
        description="Parameters, FLOPs, memory by part, images a second, hours; whether it fits, and what to change.",
        epilog=EPILOG,
    )
    parser.reads.add_argument("--recipe", metavar="NAME", help=f"a recipe ({', '.join(recipe.names())}) or a file")
    parser.runs.add_argument("--devices", type=int, metavar="N", help="GPUs in all; as the recipe says if not given")
    kinds = f"one of {', '.join(gpus.GPUS)}, cpu; this machine's, or all of them, if not given"
    parser.runs.add_argument("--gpu", metavar="NAME", help=kinds)
    share = "of a GPU's peak that the whole step is taken to run at, 0.4 by default: an assumption, not a measurement"
    parser.runs.add_argument("--share", type=float, default=0.4, metavar="S", help=share)
    parser.says.add_argument(
        "--json",
        action="store_true",
        help="for a program, the plan as one object on stdout; sizes in bytes, work in FLOPs",
    )
    options, rest = parser.parse_known_args(argv)
    for word in rest:
        name = word.partition("=")[0].removeprefix("--")
        known = not word.startswith("--") or not recipe.unknown_key(name, (*recipe.OPTIONS, *arguments.ONLY_TYPED))
        if not known and (near := did_you_mean(f"--{name}", [f"--{own}" for own in OWN])):
            raise UsageError(f"there is no option '--{name}'{near}")
    if options.devices is not None and options.devices < 1:
        raise UsageError(f"--devices {options.devices}: one at least")
    if not 0 < options.share <= 1:
        raise UsageError(f"--share {options.share:g}: a share of the peak, above 0 and at most 1")
    kind = None if options.gpu is None else "cpu" if options.gpu.lower() == "cpu" else gpus.find(options.gpu)
    words = [*(["--recipe", options.recipe] if options.recipe else []), *rest]
    line = arguments.read(words)
    if not line.complete:
        raise UsageError(f"plan needs a recipe: --recipe NAME or FILE (known: {', '.join(recipe.names())})")
    for where, class_path in line.plugins.items():
        plugins.load(class_path, where)

    from samlit.plan.report import plan, show

    made = plan(line.words, options.devices, kind, options.share, options.recipe)
    if options.json:
        terminal.show(json.dumps(made.told(), indent=2))
    else:
        show(made)
    return 0
