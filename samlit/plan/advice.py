"""Which keys make a training fit, each tried by computing the plan again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from samlit.plan import recipe
from samlit.plan.budget import SPARE, memory, most
from samlit.plan.recipe import Recipe
from samlit.plan.step import Load, Schedule, measure, schedule
from samlit.run.gpus import Gpu

__all__ = ["Change", "advise", "fits", "load_of"]

FEW = (32, 16, 8, 4)
"""What `model.masks_at_once` is tried with."""


class Change(NamedTuple):
    """Keys to give besides those before, and the bytes that are then needed."""

    words: list[str]
    needs: int


def load_of(made: Recipe, before: tuple[Schedule, Load] | None = None) -> tuple[Schedule, Load]:
    """What a step of a recipe takes, and what its task asks; of memory alone where both are known of a like recipe."""
    run = made.run
    asked = before[0] if before else schedule(made.module)
    largest = before[1].largest if before else None
    return asked, measure(made.module, asked, run.images, run.masks, run.side, made.half, made.embedded, largest)


def fits(needs: int, gpu: Gpu) -> bool:
    """Whether a GPU has so much memory to give."""
    return needs <= (1 - SPARE) * gpu.memory * 2**30


def advise(
    words: Sequence[str],
    devices: int,
    made: Recipe,
    known: tuple[Schedule, Load],
    gpu: Gpu,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[Change]:
    """Keys that bring a recipe onto a GPU, in the order in which one would give them; none that does not help.

    Args:
        words: Of the command line, resolved.
        devices: GPUs in all.
        made: What the words say.
        known: What its task asks, and what a step of it takes.
        gpu: Which does not have them.
        progress: Told (done, total, what is being done), for a progress bar.
    """
    found: list[Change] = []
    given, trials = list(words), _trials(made, gpu, devices)
    needs = most(memory(known[1], made.run))
    for number, trial in enumerate(trials):
        best: Change | None = None
        for keys in trial:
            if fits(best.needs if best else needs, gpu):
                break
            progress(number, len(trials), keys[0].removeprefix("--"))
            new = recipe.read([*given, *keys], devices)
            after = most(memory(load_of(new, known)[1], new.run))
            if after < 0.99 * (best.needs if best else needs):
                best = Change(keys, after)
        if best:
            found.append(best)
            given, needs = [*given, *best.words], best.needs
    progress(len(trials), len(trials), "done")
    return found


def _trials(made: Recipe, gpu: Gpu, devices: int) -> list[list[list[str]]]:
    """What to try one after the other; of each the gentlest first, and the next in its place."""
    run, rows = made.run, made.run.images * made.run.masks
    trials: list[list[list[str]]] = []
    if made.checkpoint is False:
        trials.append([["--model.encoder.checkpoint=true"]])
    if not run.half:
        trials.append([[f"--trainer.precision={'bf16' if gpu.bf16 else '16'}-mixed"]])
    trials.append(
        [[f"--model.masks_at_once={few}"] for few in FEW if few < min(made.module.masks_at_once or rows, rows)]
    )
    fewer = [images for images in range(run.images - 1, 0, -1) if run.images % images == 0]
    trials.append(  # the same images a step, in more turns
        [
            [f"--data.batch_size={few}", f"--trainer.accumulate_grad_batches={run.accumulate * run.images // few}"]
            for few in fewer
        ]
    )
    if devices > 1 and run.strategy != "fsdp":
        trials.append([["--trainer.strategy=fsdp"]])
    return [trial for trial in trials if trial]
