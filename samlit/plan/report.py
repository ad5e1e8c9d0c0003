"""A plan as a person and as a program read it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from samlit.bars import bar
from samlit.plan import recipe
from samlit.plan.advice import Change, advise, fits, load_of
from samlit.plan.budget import SPARE, Speed, memory, most, speed
from samlit.plan.gpus import GPUS, named
from samlit.plan.meter import Work
from samlit.plan.recipe import Recipe
from samlit.plan.step import Load

__all__ = ["Plan", "plan", "show"]

GIB = 2**30


@dataclass
class Plan:
    """What a recipe costs.

    Attributes:
        name: Of the recipe.
        recipe: What it says.
        load: What a step takes.
        memory: Bytes of a device, by what they hold.
        otherwise: What the encoder keeps where `model.encoder.checkpoint` is what it is not; None without such a key.
        share: Of a GPU's peak that the step is taken to run at.
        kinds: GPUs that were asked for.
        speeds: By GPU.
        changes: What makes it fit, where one GPU was asked for and it does not.
    """

    name: str
    recipe: Recipe
    load: Load
    memory: dict[str, int]
    otherwise: int | None
    share: float
    kinds: list[str]
    speeds: dict[str, Speed] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    @property
    def needs(self) -> int:
        """The most bytes that a device has to hold."""
        return most(self.memory)

    def told(self) -> dict[str, Any]:
        """For JSON: sizes in bytes, work in FLOPs, of one device and one batch unless said otherwise."""
        run = self.recipe.run
        return {
            "recipe": self.name,
            "run": asdict(run) | {"accelerator": self.recipe.accelerator, "passes": self.load.passes},
            "parameters": {part.name: {"trained": part.trained, "frozen": part.frozen} for part in self.load.parts},
            "flops": {"encoder": asdict(self.load.encoder), "decoder": asdict(self.load.decoder)},
            "memory": self.memory | {"most": self.needs, "encoder otherwise": self.otherwise},
            "share": self.share,
            "gpus": [
                {"name": kind, "memory": round(GPUS[kind].memory * GIB), "fits": fits(self.needs, GPUS[kind])}
                | self.speeds[kind].told()
                for kind in self.kinds
            ],
            "changes": [{"words": change.words, "needs": change.needs} for change in self.changes],
            "unknown": self.recipe.unknown,
        }


def plan(words: Sequence[str], devices: int | None, kind: str | None, share: float, name: str | None) -> Plan:
    """Make a plan.

    Args:
        words: Of the command line, resolved.
        devices: In all; as the recipe says if not given.
        kind: Of GPU; "cpu" for none. This machine's, or all that are known, if not given.
        share: Of the peak.
        name: Of the recipe.
    """
    with bar() as progress:
        progress(0, 2, "a step without values")
        made = recipe.read(words, devices)
        load = load_of(made)
        progress(1, 2, "a step without values")
        otherwise = None
        if made.checkpoint is not None:
            turned = str(not made.checkpoint).lower()
            otherwise = load_of(recipe.read([*words, f"--model.encoder.checkpoint={turned}"], devices)).kept
        progress(2, 2, "a step without values")
        if kind is None:
            kind = _here() or ("cpu" if made.accelerator == "cpu" else None)
        kinds = list(GPUS) if kind is None else [] if kind == "cpu" else [kind]
        found = Plan(name or "of no name", made, load, memory(load, made.run), otherwise, share, kinds)
        found.speeds = {kind: speed(load, made.run, GPUS[kind], share) for kind in kinds}
        if len(kinds) == 1 and not fits(found.needs, GPUS[kinds[0]]):
            found.changes = advise(words, made.run.devices, made, found.needs, GPUS[kinds[0]], progress)
    return found


def _here() -> str | None:
    """This machine's kind of GPU, if it has one that is known."""
    if not torch.cuda.is_available():
        return None
    return named(torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1] / GIB)


def show(plan: Plan) -> None:
    """Print a plan for a person."""
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False, soft_wrap=False)
    run, load = plan.recipe.run, plan.load
    shared = {"single": "one device", "ddp": f"{run.devices} devices, ddp", "fsdp": f"{run.devices} devices, fsdp"}
    passes = f"{load.passes:.3g} passes" if load.passes == round(load.passes) else f"about {load.passes:.2g} passes"
    head = f"{run.images} x {run.masks} masks a device, {run.side} px, {passes}, {run.precision}, {shared[run.strategy]}"
    console.print(Text.assemble((plan.name, "bold"), f": {head}"))
    for table in (_weights(load), _work(plan), _memory(plan)):
        console.print()
        console.print(table)
    console.print()
    if plan.kinds:
        console.print(_devices(plan))
    else:
        console.print("cpu: no speed and no limit of memory is told, for nothing was measured on this processor")
    for line in _notes(plan):
        console.print(f"\n{line}" if line.startswith("It does not") else line)


def _table(title: str, *columns: str) -> Table:
    table = Table(title, box=None, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _weights(load: Load) -> Table:
    table = _table("weights, millions", "trained", "frozen")
    for part in load.parts:
        table.add_row(part.name, _millions(part.trained), _millions(part.frozen))
    return table


def _work(plan: Plan) -> Table:
    run, load = plan.recipe.run, plan.load
    table = _table("TFLOP an image", "forward", "backward", "again", "all")

    def row(name: str, work: Work) -> None:
        cells = (x / run.images / 1e12 for x in (work.forward, work.backward, work.again, work.total))
        table.add_row(name, *(f"{x:.3g}" if x else "" for x in cells))

    row("encoder", load.encoder)
    row(f"prompts and decoder, {run.masks} masks", load.decoder)
    row("all", load.encoder + load.decoder)
    return table


def _memory(plan: Plan) -> Table:
    parts, load = plan.memory, plan.load
    table = Table("GiB of a device", box=None, header_style="dim", pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("")
    key = "model.encoder.checkpoint"
    without = f"{'with' if plan.recipe.checkpoint is False else 'without'} {key} {_gib(plan.otherwise or 0)}"
    told = {
        "weights": ("weights", ""),
        "gathered weights": ("", "gathered: two blocks, and what is in none"),
        "gradients": ("gradients", ""),
        "gradient buckets": ("", "DDP's copies of them"),
        "optimiser": ("optimiser", ""),
        "averages": ("averages", ""),
        "batch": ("batch", ""),
        "encoder": ("kept by the encoder", "" if plan.otherwise is None else without),
        "pass": ("one pass of the decoder", "with its loss; the others need no more"),
    }
    for name, (title, note) in told.items():
        if parts[name] or title:
            table.add_row(title or "", _gib(parts[name]), Text(note, "dim"))
    for name, size in parts.items():
        if name.startswith("during"):
            is_most = size == plan.needs
            table.add_row(name, Text(_gib(size), "bold" if is_most else ""), Text("the most" if is_most else "", "dim"))
    return table


def _devices(plan: Plan) -> Table:
    run = plan.recipe.run
    table = _table("GPU", "GiB", "needs", "fits", "images/s", *(["of all"] if run.devices > 1 else []), "hours")
    for kind in plan.kinds:
        gpu, expected = GPUS[kind], plan.speeds[kind]
        fine = fits(plan.needs, gpu)
        hours = "" if expected.hours is None else _hours(expected.hours)
        together = [f"{expected.rate * run.devices:.3g}"] if run.devices > 1 else []
        cells = [f"{gpu.memory:.0f}", _gib(plan.needs), Text("yes" if fine else "no", "green" if fine else "red")]
        table.add_row(kind, *cells, f"{expected.rate:.3g}", *together, hours)
    return table


def _notes(plan: Plan) -> list[str]:
    run, lines = plan.recipe.run, []
    if plan.kinds:
        length = f"for {run.steps * run.batch:,} images in {run.steps:,} steps" if run.steps else plan.recipe.unknown
        lines.append(
            f"At {plan.share:.0%} of the peak, which is assumed (--share), {length}. Fits: in all but {SPARE:.0%} of the "
            "memory. Not counted: validation, waiting for data, what GPUs say to each other."
        )
        old = [kind for kind in plan.kinds if not GPUS[kind].bf16]
        if run.precision.startswith("bf16") and old:
            lines.append(f"{', '.join(old)}: no bf16 in hardware, so at fp32's rate; --trainer.precision 16-mixed is not.")
    if len(plan.kinds) == 1 and not fits(plan.needs, GPUS[plan.kinds[0]]):
        kind = plan.kinds[0]
        enough = bool(plan.changes) and fits(plan.changes[-1].needs, GPUS[kind])
        lines.append(f"It does not fit on {kind}. " + ("What makes it fit:" if enough else "What brings it nearer:"))
        lines += [f"  {' '.join(change.words):60}  {_gib(change.needs)} GiB" for change in plan.changes]
        if not enough:
            lines.append("  and no key is enough: take a smaller model, or a smaller data.image_size or data.max_masks")
    return lines


def _gib(size: float) -> str:
    gib = size / GIB
    return f"{gib:.1f}" if gib >= 9.95 else f"{gib:.2f}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.3f}" if count else ""


def _hours(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 99.5 else f"{hours:.2g}"
