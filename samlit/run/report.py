"""What a run has come to: its history, its pictures, and at the end a table beside the baselines."""

from __future__ import annotations

import json
import math
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from PIL import Image
from rich.table import Table
from torch import Tensor

from samlit.atomic import replacing
from samlit.drawing import curves, pictures
from samlit.evaluation.grabcut import iou_from_boxes
from samlit.module import SamModule
from samlit.run.examples import Example, Examples
from samlit.shell import terminal
from samlit.structures import Batch

__all__ = ["Report", "Rows"]

Rows = list[dict[str, float]]

PICTURES = ("learning_curve.png", "passes.png", "examples.png", "extremes.png", "calibration.png")

NEXT = (
    ("segment an image with it", "samlit segment {image} --weights {checkpoint} --point {point} --out out.png"),
    ("validate it again", "samlit validate --recipe {recipe} --ckpt_path {checkpoint}"),
    (
        "go on with your own masks",
        "samlit fit --recipe {recipe} --model.weights {checkpoint} --data.source coco "
        "--data.source.annotations train.json --data.validation coco --data.validation.annotations val.json",
    ),
)


class Report(pl.Callback):
    """Keeps a run's history and pictures, and ends it with a table.

    In the run's folder: `history.jsonl`, `learning_curve.png`, `passes.png`, `examples.png`, `extremes.png`,
    `calibration.png`, and at the end `report.txt` and `report.json`.

    Args:
        examples: Held-out masks on the picture of examples; 0 for no picture.
        baseline: Whether GrabCut from the true box is computed once, to compare with; it takes seconds to minutes.
        baseline_masks: Most masks that it is computed on, the first ones.
        extremes: Held-out masks answered best, and as many answered worst, on the picture of extremes; 0 for none.
    """

    def __init__(self, examples: int = 6, baseline: bool = True, baseline_masks: int = 500, extremes: int = 3) -> None:
        self.examples = Examples(examples, extremes)
        self.baseline, self.baseline_masks = baseline, baseline_masks
        self.history: Rows = []
        self.before: dict[str, float] = {}
        self.compared: dict[str, float] = {}
        self.best: dict[str, Any] = {}
        self.held_out = {"masks": 0, "images": 0}
        self.seconds = 0.0
        self._since: float | None = None
        self._sums: dict[str, Tensor] = {}
        self._count = self._written = self._drawn = 0
        self._compared: Tensor = torch.zeros(3, dtype=torch.float64)
        self._noted = False

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run goes on with, in plain types."""
        return {
            "history": self.history,
            "before": self.before,
            "compared": self.compared,
            "best": self.best,
            "seconds": self._elapsed(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.history, self.before = list(state_dict["history"]), state_dict["before"]
        self.compared, self.best = state_dict["compared"], state_dict["best"]
        self.seconds = state_dict["seconds"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let `history.jsonl` say what the checkpoint says, and no more: what came after it will come again."""
        if trainer.is_global_zero and not _trial(trainer):
            text = "".join(map(_line, self.history))
            self._write(trainer, "history.jsonl", _text(text))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._since = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up the training numbers; write their mean down as often as loggers do."""
        for name, value in trainer.callback_metrics.items():
            if name in ("train/loss", "train/miou"):  # added on their device, so that no step waits for it
                self._sums[name] = self._sums[name] + value.detach() if name in self._sums else value.detach().clone()
        self._count += 1
        step, every = trainer.global_step, max(int(getattr(trainer, "log_every_n_steps", 50)), 1)
        # Several batches may add up to a step; the first of them that is past it writes.
        if step % every == 0 and step != self._written:
            self._written = step
            means = {name: float(total) / self._count for name, total in self._sums.items()}
            passes: dict[str, float] = getattr(pl_module, "numbers", {})
            means |= {name: value for name, value in passes.items() if name in means or "/pass_" in name}
            self._write_down(trainer, means)
            self._sums, self._count = {}, 0

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count, keep examples, and compute the baseline if nobody has; not of what the forgetting meter sees."""
        if dataloader_idx:
            return
        if batch_idx == 0:
            self.held_out = {"masks": 0, "images": 0}
            self._compared.zero_()
        self.held_out["masks"] += len(batch.masks)
        self.held_out["images"] += len(batch.image)
        self.examples.see(batch, batch_idx, outputs)
        done = int(self._compared[2])
        if (
            self.baseline
            and not self.compared
            and _complete(trainer)
            and done * trainer.world_size < self.baseline_masks
        ):
            self._compared += _compare(batch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write down the numbers, draw the pictures."""
        if trainer.state.fn != "fit" or not isinstance(pl_module, SamModule):
            return
        if _complete(trainer):
            self._take(trainer, pl_module)
        played = self.examples.play(trainer, pl_module)
        if trainer.is_global_zero and not _trial(trainer):
            when = "before training" if trainer.sanity_checking else f"step {trainer.global_step}"
            if played.first:
                sheet = pictures.contact_sheet(played.first, f"Held-out masks, {when}")
                self._write(trainer, "examples.png", _png(sheet))
            if played.best:
                self._write(trainer, "extremes.png", _png(pictures.extremes_sheet(played, when)))
            if pl_module.reliability and pl_module.reliability.total:
                plot = curves.reliability(pl_module.reliability, f"Can the predicted IoU be believed? {when}")
                self._write(trainer, "calibration.png", _bytes(plot))
            self._draw_curve(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the table, and where everything is."""
        if trainer.is_global_zero and not _trial(trainer):
            self._draw_curve(trainer)
            self._finish(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """A run that is stopped by hand has a result too."""
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero and self.best:
            self._finish(trainer)

    def table(self) -> tuple[list[str], list[list[str | float | None]]]:
        """The best validation's numbers: the names of the columns, and rows that begin with a name."""
        scores: dict[str, float] = self.best.get("scores", {})
        names = [name for name in scores if not (name.endswith("_best") and name.removesuffix("_best") in scores)]
        both = [f"{name}_best" for name in names]
        columns: dict[str, list[float | None]] = {
            "samlit": [scores.get(name) for name in names],
            "best of three": [scores.get(name) for name in both],
            "before training": [self.before.get(name) for name in names],
            "before, best of three": [self.before.get(name) for name in both],
            "GrabCut": [self.compared.get("grabcut") if name == "box" else None for name in names],
            "the box itself": [self.compared.get("box") if name == "box" else None for name in names],
        }
        kept = {name: values for name, values in columns.items() if any(value is not None for value in values)}
        rows: list[list[str | float | None]] = [
            [name.replace("_", " "), *(values[i] for values in kept.values())] for i, name in enumerate(names)
        ]
        return ["mIoU", *kept], rows

    def _take(self, trainer: pl.Trainer, module: SamModule) -> None:
        """The numbers of a complete validation; every rank comes here."""
        counts = torch.tensor([*self.held_out.values(), *self._compared.tolist()], dtype=torch.float64)
        if trainer.world_size > 1:
            # MPS has no float64 and needs none.
            counts = trainer.strategy.reduce(counts.to(module.device), reduce_op="sum").cpu()
        masks, images, grabcut, by_box, compared = counts.tolist()
        self.held_out = {"masks": int(masks), "images": int(images)}
        if compared:
            self.compared = {"grabcut": grabcut / compared, "box": by_box / compared, "masks": compared}
        scores = {name: float(value) for name, value in module.scores.items()}
        if not scores:
            return
        forgetting = {f"forgetting/{name}": value for name, value in module.forgetting_scores.items()}
        if trainer.sanity_checking:
            self.before = self.before or scores | forgetting
        logged = trainer.callback_metrics.get("val/miou")
        miou = sum(scores.values()) / len(scores) if logged is None else float(logged)
        if not trainer.sanity_checking and math.isfinite(miou) and miou > self.best.get("miou", -math.inf):
            self.best = {"miou": miou, "step": trainer.global_step, "scores": scores | forgetting, **self.held_out}
        named = {f"val/{name}": value for name, value in scores.items()} | {"val/miou": miou}
        self._write_down(trainer, named | forgetting)

    def _write_down(self, trainer: pl.Trainer, numbers: dict[str, float]) -> None:
        """One more row of the history."""
        row = {"step": trainer.global_step, "epoch": trainer.current_epoch, "seconds": round(self._elapsed(), 1)}
        row |= {name: round(value, 6) for name, value in numbers.items()}
        self.history.append(row)
        if trainer.is_global_zero and not _trial(trainer):
            try:
                with (Path(trainer.default_root_dir) / "history.jsonl").open("a") as file:
                    file.write(_line(row))
            except OSError as error:
                self._note(f"history.jsonl could not be written ({error})")

    def _draw_curve(self, trainer: pl.Trainer) -> None:
        if len({row["step"] for row in self.history}) < 2 or self._drawn == len(self.history):
            return
        self._drawn = len(self.history)
        levels = {"GrabCut, box": self.compared["grabcut"]} if self.compared else {}
        curve = pictures.learning_curve(self.history, levels)
        self._write(trainer, "learning_curve.png", _bytes(curve))
        if curves.passes(self.history):
            self._write(trainer, "passes.png", _bytes(curves.by_pass(self.history, "What each pass comes to")))

    def _finish(self, trainer: pl.Trainer) -> None:
        """Write the report, and say it."""
        callback = trainer.checkpoint_callback
        found = [str(getattr(callback, name, "")) for name in ("best_model_path", "last_model_path")]
        checkpoint = next((_near(path) for path in found if path), "")
        columns, rows = self.table()
        folder = Path(trainer.default_root_dir)
        if self.best:
            about = f"held-out {self.best['masks']} masks on {self.best['images']} images, step {self.best['step']}"
        else:
            about = "nothing was validated"
        few = self.compared.get("masks", 0)
        if self.best and 0 < few < self.best["masks"]:
            about += f"; GrabCut and the box on {few:.0f} of them"
        after = [f"checkpoint: {checkpoint}"] if checkpoint else []
        if there := [name for name in PICTURES if (folder / name).exists()]:
            after.append(f"pictures:   {_near(folder)}{os.sep} ({', '.join(there)})")
        if checkpoint:
            after += ["", "next, try:"]
            for what, command in self._next(trainer, checkpoint):
                after += [f"  # {what}", f"  {command}"]
        lines = ([*_markdown(columns, rows), ""] if rows else []) + [about, *after]
        report = {
            "best": self.best,
            "before": self.before,
            "compared": self.compared,
            "checkpoint": checkpoint,
            "steps": trainer.global_step,
            "seconds": round(self._elapsed(), 1),
            "columns": columns,
            "rows": rows,
        }
        self._write(trainer, "report.txt", _text("\n".join(lines) + "\n"))
        self._write(trainer, "report.json", _text(json.dumps(report, indent=1) + "\n"))
        if terminal.is_quiet():
            return
        if rows:
            terminal.show("", _drawn(columns, rows), "")
        terminal.show(about, *after)

    def _next(self, trainer: pl.Trainer, checkpoint: str) -> list[tuple[str, str]]:
        """What to do with the checkpoint: commands that work as they stand, as far as that can be."""
        folder = Path(trainer.default_root_dir)
        image, point = "IMAGE", "X,Y"
        last = self.examples.last
        if last and (click := _click(last[0])):
            picture = Image.fromarray(last[0].image)
            if self._write(trainer, "example.png", _png(picture)):
                image, point = shlex.quote(_near(folder / "example.png")), click
        config = folder / "config.yaml"
        recipe = shlex.quote(_near(config)) if config.exists() else "RECIPE"
        values = {"image": image, "point": point, "recipe": recipe, "checkpoint": shlex.quote(checkpoint)}
        return [(what, command.format(**values)) for what, command in NEXT]

    def _write(self, trainer: pl.Trainer, name: str, write: Callable[[Path], object]) -> bool:
        """A file in the run's folder; no picture is worth a run."""
        try:
            replacing(Path(trainer.default_root_dir) / name, write)
        except OSError as error:
            self._note(f"{name} could not be written ({error})")
            return False
        return True

    def _note(self, text: str) -> None:
        if not self._noted:
            terminal.note(f"{text}; training goes on")
        self._noted = True

    def _elapsed(self) -> float:
        """Seconds of training, those before an interruption too."""
        return self.seconds + (0.0 if self._since is None else time.monotonic() - self._since)


def _trial(trainer: pl.Trainer) -> bool:
    """Whether this is Lightning's trial of a few batches, which leaves nothing behind."""
    return bool(getattr(trainer, "fast_dev_run", False))


def _complete(trainer: pl.Trainer) -> bool:
    """Whether this validation sees all that there is to see, or is Lightning's check of a few batches."""
    return not trainer.sanity_checking or trainer.num_sanity_val_batches == trainer.num_val_batches


def _compare(batch: Batch) -> Tensor:
    """IoU of GrabCut and of the box itself, summed over the masks, and how many they are."""
    iou = iou_from_boxes(batch, around=1.0).double()
    # The tight box's own IoU is the share of it that the mask fills.
    masks = batch.masks.cpu()
    sides = [
        (where.int().argmax(1), where.flip(1).int().argmax(1), where.shape[1]) for where in (masks.any(1), masks.any(2))
    ]
    area = torch.stack([n - last - first for first, last, n in sides]).prod(0)
    share = masks.flatten(1).sum(1).double() / area
    some = ~iou.isnan()
    return torch.stack([iou[some].sum(), share[some].sum(), some.sum().double()])


def _cells(rows: list[list[str | float | None]]) -> list[list[str]]:
    """A table's rows as they are shown."""
    return [[str(name), *("" if value is None else f"{value:.3f}" for value in values)] for name, *values in rows]


def _drawn(columns: list[str], rows: list[list[str | float | None]]) -> Table:
    """The table for a person; samlit's own column stands out."""
    table = terminal.table(*columns)
    table.columns[1].style = "bold"
    for cells in _cells(rows):
        table.add_row(*cells)
    return table


def _markdown(columns: list[str], rows: list[list[str | float | None]]) -> list[str]:
    """The table for a document, a line a row."""
    cells = [columns, *_cells(rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = "<" + ">" * (len(columns) - 1)

    def line(cells: list[str]) -> str:
        padded = (f"{cell:{side}{n}}" for cell, side, n in zip(cells, sides, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    head, *others = map(line, cells)
    rule = "|".join("-" * (n + 1) + ("-" if side == "<" else ":") for side, n in zip(sides, widths, strict=True))
    return [head, f"|{rule}|", *others]


def _click(example: Example) -> str:
    """The first point that was given, as `samlit segment --point` takes it."""
    for answer in example.answers.values():
        for prompt, value in answer.prompts:
            if prompt.option == "point":
                return ",".join(f"{v:g}" for v in value[:2].tolist())
    return ""


def _near(path: str | Path) -> str:
    """A path as a person would type it here."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def _line(row: dict[str, float]) -> str:
    """A row as strict JSON, which knows no NaN."""
    return json.dumps({name: value if math.isfinite(value) else None for name, value in row.items()}) + "\n"


def _text(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def _bytes(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def _png(picture: Image.Image) -> Callable[[Path], object]:
    return lambda path: picture.save(path, "PNG", compress_level=3)
