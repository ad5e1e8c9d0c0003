"""A plan as a person and as a program read it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from samlit.plan import recipe
from samlit.plan.advice import Change, advise, fits, load_of
from samlit.plan.budget import SPARE, Speed, memory, most, speed
from samlit.plan.recipe import Recipe
from samlit.plan.step import Load, kept
from samlit.run.gpus import GPUS, named
from samlit.shell import terminal
from samlit.shell.bars import bar

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
            "run": asdict(run)
            | {"accelerator": self.recipe.accelerator, "passes": self.load.passes, "embedded": self.recipe.embedded},
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
        known = load_of(made)
        load = known[1]
        progress(1, 2, "a step without values")
        otherwise = None
        if made.checkpoint is not None:
            turned = str(not made.checkpoint).lower()
            other = recipe.read([*words, f"--model.encoder.checkpoint={turned}"], devices)
            otherwise = kept(other.module, other.run.images, other.run.side, other.half)
        progress(2, 2, "a step without values")
        if kind is None:
            kind = _here() or ("cpu" if made.accelerator == "cpu" else None)
        kinds = list(GPUS) if kind is None else [] if kind == "cpu" else [kind]
        found = Plan(name or "of no name", made, load, memory(load, made.run), otherwise, share, kinds)
        found.speeds = {kind: speed(load, made.run, GPUS[kind], share) for kind in kinds}
        if len(kinds) == 1 and not fits(found.needs, GPUS[kinds[0]]):
            found.changes = advise(words, made.run.devices, made, known, GPUS[kinds[0]], progress)
    return found


def _here() -> str | None:
    """This machine's kind of GPU, if it has one that is known."""
    if not torch.cuda.is_available():
        return None
    return named(torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1] / GIB)


def show(plan: Plan) -> None:
    """Print a plan for a person."""
    terminal.show(Text.assemble((plan.name, "bold"), f": {_head(plan)}"))
    for table in (_weights(plan.load), _work(plan), _memory(plan)):
        terminal.show("", table)
    terminal.show("")
    if plan.kinds:
        terminal.show(_devices(plan))
    else:
        terminal.show("cpu: nothing is measured on this processor, so neither speed nor hours are told")
    terminal.show(*(Constrain(line, 100) for line in _notes(plan)), *_changes(plan))


def _head(plan: Plan) -> str:
    run, passes = plan.recipe.run, plan.load.passes
    words = [
        f"{run.images} image{'s' if run.images > 1 else ''} of {run.masks} masks a device",
        f"{run.side} px",
        f"{passes:.0f} passes" if passes == round(passes) else f"about {passes:.2g} passes",
        run.precision,
        "1 device" if run.strategy == "single" else f"{run.devices} devices ({run.strategy})",
    ]
    return ", ".join([*words, *([f"{run.accumulate} batches a step"] if run.accumulate > 1 else [])])


def _weights(load: Load) -> Table:
    table = terminal.table("weights, millions", "trained", "frozen")
    for part in load.parts:
        table.add_row(part.name, f"{part.trained / 1e6:.3f}", f"{part.frozen / 1e6:.3f}")
    return table


def _work(plan: Plan) -> Table:
    run, load = plan.recipe.run, plan.load
    whole = load.encoder + load.decoder
    unit, name = (1e12, "TFLOP") if whole.total / run.images >= 1e11 else (1e9, "GFLOP")
    table = terminal.table(f"{name} an image", "forward", "backward", "again", "all")
    rows = {"encoder": load.encoder, "prompts and decoder, all passes": load.decoder, "all": whole}
    for title, work in rows.items():
        cells = (x / run.images / unit for x in (work.forward, work.backward, work.again, work.total))
        table.add_row(title, *(_three(x) for x in cells))
    return table


def _memory(plan: Plan) -> Table:
    parts, checkpoint = plan.memory, plan.recipe.checkpoint
    unit, name = (GIB, "GiB") if plan.needs >= GIB else (GIB / 1024, "MiB")
    table = terminal.table(f"{name} of a device", "", "note", left=["note"])
    table.columns[-1].header = ""
    other = "" if plan.otherwise is None else f"{_three(plan.otherwise / unit)} with{'out' if checkpoint else ''}"
    told = {
        "weights": ("weights", ""),
        "gathered weights": ("weights, gathered", "two blocks of the encoder, and what is in none"),
        "gradients": ("gradients", ""),
        "gradient buckets": ("gradients, in buckets", "DDP's copies"),
        "optimiser": ("optimiser", ""),
        "averages": ("averages of the weights", ""),
        "batch": ("batch", ""),
        "encoder": ("kept by the encoder", other and f"{other} model.encoder.checkpoint"),
        "pass": ("the largest pass", "prompts, decoder, loss; gone before the next"),
    }
    for key, (title, note) in told.items():
        if parts[key]:
            table.add_row(title, _three(parts[key] / unit), Text(note, "dim"))
    for key, size in parts.items():
        if key.startswith("during"):
            style, note = ("bold", "the most") if size == plan.needs else ("", "")
            table.add_row(key, Text(_three(size / unit), style), Text(note, "dim"))
    return table


def _devices(plan: Plan) -> Table:
    run = plan.recipe.run
    table = terminal.table("GPU", "GiB", "needs", "fits", "images/s", *(["of all"] if run.devices > 1 else []), "hours")
    for kind in plan.kinds:
        gpu, expected = GPUS[kind], plan.speeds[kind]
        fine = Text("yes", "green") if fits(plan.needs, gpu) else Text("no", "red")
        together = [_three(expected.rate * run.devices)] if run.devices > 1 else []
        hours = "" if expected.hours is None else _three(expected.hours)
        table.add_row(
            kind, f"{gpu.memory:.0f}", _three(plan.needs / GIB), fine, _three(expected.rate), *together, hours
        )
    return table


def _notes(plan: Plan) -> list[str]:
    if not plan.kinds:
        return []
    run = plan.recipe.run
    length = f"{run.steps:,} steps are {run.steps * run.batch:,} images" if run.steps else plan.recipe.unknown
    lines = [
        f"The speed is that of {plan.share:.0%} of the peak, which is assumed (--share); {length}. Validation, waiting "
        f"for data and what devices say to each other come on top. {SPARE:.0%} of the memory are left free."
    ]
    old = [kind for kind in plan.kinds if not GPUS[kind].bf16]
    if run.precision.startswith("bf16") and old:
        lines.append(
            f"{', '.join(old)}: at fp32's rate, having no bf16; --trainer.precision 16-mixed is what they have."
        )
    return lines


def _changes(plan: Plan) -> list[str]:
    if len(plan.kinds) != 1 or fits(plan.needs, GPUS[plan.kinds[0]]):
        return []
    kind = plan.kinds[0]
    enough = bool(plan.changes) and fits(plan.changes[-1].needs, GPUS[kind])
    lines = ["", f"It does not fit on {kind}. " + ("This makes it fit:" if enough else "This brings it nearer:")]
    lines += [f"  {' '.join(change.words)}   {_three(change.needs / GIB)} GiB" for change in plan.changes]
    if not enough:
        lines.append("  and then: a smaller model, a smaller data.image_size, or fewer data.max_masks")
    return lines


def _three(x: float) -> str:
    """A number in three digits."""
    if not x:
        return "0"
    digits = max(2 - math.floor(math.log10(x)), 0)
    return f"{x:.{min(digits, 4)}f}"
