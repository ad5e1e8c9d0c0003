"""A run that is killed in mid-epoch and goes on is, to the bit, the run that nobody broke."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import forks

STEPS, SAVED, KILLED = 9, 2, 7  # an epoch is six steps: it is killed in the second, and goes on from the sixth step on

RECORD = '''
import hashlib, json, os, signal
from pathlib import Path
import lightning.pytorch as pl
import torch


class Record(pl.Callback):
    """Writes down every batch and loss, and the weights in the end; dies where it is told to."""

    def __init__(self, name: str, kill: int = -1, kill_rank: int = 0):
        self.name, self.kill, self.kill_rank = name, kill, kill_rank

    def write(self, rank, row):
        with Path(f"{self.name}-{rank}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\\\\n")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.kill and trainer.global_rank == self.kill_rank:
            os.kill(os.getpid(), signal.SIGKILL)
        pixels = hashlib.sha256(batch.image.numpy().tobytes() + batch.masks.numpy().tobytes()).hexdigest()
        row = {"step": trainer.global_step, "keys": batch.keys, "batch": pixels, "loss": float(outputs["loss"]).hex()}
        self.write(trainer.global_rank, row)

    def on_fit_end(self, trainer, module):
        weights = b"".join(p.detach().numpy().tobytes() for p in module.net.parameters())
        moments = b"".join(v.numpy().tobytes() for s in trainer.optimizers[0].state.values() for v in s.values()
                           if isinstance(v, torch.Tensor))
        self.write(trainer.global_rank, {"weights": hashlib.sha256(weights + moments).hexdigest()})
'''

RECIPE = """
model:
  encoder:
    class_path: vit
    init_args: {dim: 16, depth: 2, heads: 2, global_blocks: [1], window: 2, patch: 16, channels: 16, drop_path: 0.5}
  prompts: [points, boxes, masks]
  decoder: {class_path: mask, init_args: {heads: 2, mlp_dim: 16, iou_hidden: 16}}
  task: {class_path: interactive, init_args: {corrections: 2}}
  optim: {lr: 1e-3, warmup: 2, schedule: cosine}
data:
  source: {class_path: shapes, init_args: {split: train, count: 23, size: 64, style: clear}}
  image_size: 64
  max_masks: 3
  shuffle_buffer: 9
  augment: {flip: 0.5, zoom: [0.8, 1.5], color: 0.3}
trainer: {accelerator: cpu, max_steps: 9, deterministic: true, enable_model_summary: false, log_every_n_steps: 1}
checkpoints: {last_every: 2}
speed: {flops: false}
"""


def fit(folder: Path, world: int, workers: int, name: str, **changes: Any) -> subprocess.CompletedProcess[str]:
    """One command of a person's, in a folder."""
    (folder / "record.py").write_text(RECORD.replace("\\\\", "\\"))
    (folder / "recipe.yaml").write_text(RECIPE)
    callback = {"class_path": "record.Record", "init_args": {"name": name} | changes.pop("record", {})}
    options = {
        "trainer.devices": world,
        "trainer.strategy": "ddp" if world > 1 else "auto",
        "trainer.callbacks": json.dumps([callback]),
        "trainer.logger": "false",
        "trainer.default_root_dir": str(folder / "runs" / name),
        "data.batch_size": 4 // world,
        "data.workers": workers,
    } | changes
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SAMLIT_CACHE": str(folder / "cache")}
    command = ["-m", "samlit", "fit", "--recipe", "recipe.yaml", *words]
    return forks.command(command, cwd=folder, env=environment, timeout=400)


def rows(folder: Path, name: str, rank: int) -> dict[Any, dict[str, Any]]:
    """What a run wrote down, by step; its weights under None."""
    lines = (folder / f"{name}-{rank}.jsonl").read_text().splitlines()
    return {row.get("step"): row for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all runs."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[Any, dict[str, Any]]:
    """What an unbroken run of one rank writes down."""
    whole = fit(folder, 1, 0, "whole1")
    assert whole.returncode == 0, whole.stderr
    return rows(folder, "whole1", 0)


def breaks(folder: Path, world: int, workers: int) -> str:
    """Kill a run's last rank in mid-epoch; its name."""
    name = f"broken{world}{workers}"
    killed = fit(folder, world, workers, name, record={"kill": KILLED, "kill_rank": world - 1})
    assert killed.returncode != 0
    if world == 1:
        assert killed.returncode == -signal.SIGKILL
    assert max(step for step in rows(folder, name, world - 1) if step) < KILLED
    return name


def goes_on(folder: Path, name: str, world: int, workers: int, end: str = "more") -> list[dict[Any, dict[str, Any]]]:
    """Go on with a run that was broken off, with any number of ranks: what each of them writes down from there."""
    # What is gone on with stays as it is, for others who go on with it.
    shutil.copytree(folder / "runs" / name, folder / "runs" / f"{name}-{end}")
    there = {"ckpt_path": "last", "trainer.default_root_dir": str(folder / "runs" / f"{name}-{end}")}
    more = fit(folder, world, workers, f"{name}-{end}", **there)
    assert more.returncode == 0, more.stderr
    found = [rows(folder, f"{name}-{end}", rank) for rank in range(world)]
    assert [min(step for step in rank if step) for rank in found] == [KILLED // SAVED * SAVED + 1] * world
    return found


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_been(folder: Path, alone: dict[Any, dict[str, Any]]) -> None:
    assert list(alone) == [*range(1, STEPS + 1), None]

    name = breaks(folder, 1, 2)  # with workers; and without them the other way about, below
    assert rows(folder, name, 0) | goes_on(folder, name, 1, 0)[0] == alone


@pytest.mark.slow
def test_killed_ranks_go_on_alike_or_as_another_number_of_them(folder: Path, alone: dict[Any, dict[str, Any]]) -> None:
    whole = fit(folder, 2, 0, "whole2")
    assert whole.returncode == 0, whole.stderr
    assert whole.stderr.count("the run is in") == 1
    name = breaks(folder, 2, 0)
    more = goes_on(folder, name, 2, 2)
    for rank in range(2):
        assert rows(folder, name, rank) | more[rank] == rows(folder, "whole2", rank)
    # The global batches are those of one rank, and one rank alone goes on with them.
    expected = {step: row["keys"] for step, row in alone.items() if step}
    for rank in range(2):
        for step, row in rows(folder, "whole2", rank).items():
            assert step is None or row["keys"] == expected[step][rank::2]
    (one,) = goes_on(folder, name, 1, 0, "one")
    first = KILLED // SAVED * SAVED + 1
    assert {step: row["keys"] for step, row in one.items() if step} == {
        step: keys for step, keys in expected.items() if step >= first
    }
