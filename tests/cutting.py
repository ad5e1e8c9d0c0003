"""What is put behind a document's commands to make them cheap: small models, few points, one step."""

from __future__ import annotations

from typing import Any

from tests import desk

ALWAYS = {
    "trainer.max_steps": 1,
    "trainer.accelerator": "cpu",
    "trainer.devices": 1,  # several, and several machines: test_parallel.py, test_launch.py
    "trainer.num_nodes": 1,
}
"""Of a training, whatever its words say: what decides on minutes, and on machines."""
UNSAID = {
    "trainer.strategy": "auto",
    "trainer.logger": "false",  # the usual one is looked at in docs/tracking.md
    "trainer.precision": "32-true",
    "trainer.limit_val_batches": 1,
    "trainer.enable_progress_bar": "false",
    "data.batch_size": 1,
    "data.workers": 0,
    "data.max_masks": 2,
    "data.max_val_masks": 2,
    "model.validation": "[{class_path: points, init_args: {clicks: [1]}}]",
    "report.baseline": "false",
    "report.examples": 0,
    "report.extremes": 0,
    "speed.flops": "false",
}
"""Of a training whose words do not say it."""


def under(slot: str, keys: dict[str, Any]) -> dict[str, Any]:
    return {f"{slot}.{name}": value for name, value in keys.items()}


SAM = {"model.encoder": "vit"} | under("model.encoder", desk.VIT) | under("model.decoder", desk.DECODER)
SMALL = {
    "tiny": under("model.encoder", desk.VIT) | under("model.decoder", desk.DECODER),
    "text_tiny": under("model.encoder", desk.VIT) | under("model.decoder", desk.DECODER),
    "finetune": under("model.encoder", desk.TINY_VIT) | under("model.decoder", desk.DECODER),
    "annotated": under("model.encoder", desk.TINY_VIT) | under("model.decoder", desk.DECODER),
    "my.yaml": under("model.encoder", desk.VIT) | under("model.decoder", desk.DECODER),
    "finetune.yaml": SAM,
    "finetune_lora": SAM | {"data.image_size": desk.SIDE},
    "vit_h": SAM | {"data.image_size": desk.SIDE},
}
"""Recipes' models, as small as the weights that stand for the published ones."""

GRID = {"points_per_side": 2, "pred_iou_thresh": -99, "stability_score_thresh": 0}
"""Of everything-mode: few points, and whatever a model that has learned nothing answers with."""
OF_A_GRID = ("everything", "edges", "proposals", "panoptic", "semantic", "superpixels")


def cut(words: list[str], goes_on: int = 0) -> list[str]:
    """Words that make a command cheap, to be put behind its own; one that goes on takes a step more each time."""
    said = {word.removeprefix("--").partition("=")[0].removesuffix("+") for word in words if word.startswith("--")}
    more: dict[str, Any] = {}
    match words:
        case ["fit", *_]:
            more = {name: value for name, value in UNSAID.items() if name not in said} | ALWAYS
            more |= SMALL[recipe := words[words.index("--recipe") + 1]]
            if "model.encoder" in said:  # another one
                more = {name: value for name, value in more.items() if not name.startswith("model.encoder.")}
            if recipe == "text_tiny":  # judged by its words
                more.pop("model.validation", None)
            if recipe == "tiny" and "report.examples" not in said:  # README takes a picture of it
                more["report.examples"] = 1
            more["trainer.max_steps"] += goes_on
            if "trainer.max_steps" in said and "trainer.val_check_interval" in said:
                more["trainer.val_check_interval"] = 1
        case ["plan", *_]:
            more = SMALL[words[words.index("--recipe") + 1]] | {"model.task.corrections": 0}
        case ["clip", *_]:
            more = {"steps": 2, "batch": 2}
        case ["evaluate", *_, "--help"]:
            pass
        case ["evaluate", *_]:
            more = {"limit": 1}
            if words[words.index("--task") + 1] in OF_A_GRID:
                more |= under("task.options", GRID)
        case ["segment", *_] if "everything" in said:
            more = under("everything", GRID)
        case ["generate", *_]:
            more = under("everything", GRID | {"crop_n_layers": 0})
        case ["annotate", *_] if not {"report", "export"} & said:
            more = {"port": 0, "decoder": "server"}  # the browser's: test_annotate_browser.py
            more |= under("everything", GRID) if "everything" in words else {}
        case ["export", *_] if "onnx" in words:
            more = {"part": "encoder"}  # the quickest; the others, in every precision: test_onnx.py
        case ["shards", "make" | "check", *_]:
            more = {"jobs": 1}
        case ["benchmarks/loop.py", *_]:
            more = {"rounds": 2, "images": 1, "held": 1, "masks": 1, "steps": 1, "clicks": 2}
        case ["benchmarks/text.py", *_]:
            more = {"scenes": 1, "cells": 5}
    return [f"--{name}={value}" for name, value in more.items()]
