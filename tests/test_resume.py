"""A run that is killed in mid-epoch and goes on is, to the bit, the run that nobody broke."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
    return subprocess.run(
        [sys.executable, "-m", "samlit", "fit", "--recipe", "recipe.yaml", *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip


def rows(folder: Path, name: str, rank: int) -> dict[Any, dict[str, Any]]:
    """What a run wrote down, by step; its weights under None."""
    lines = (folder / f"{name}-{rank}.jsonl").read_text().splitlines()
    return {row.get("step"): row for row in map(json.loads, lines)}


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path, world: int) -> None:
    whole = fit(tmp_path, world, 0, "whole")
    assert whole.returncode == 0, whole.stderr
    expected = [rows(tmp_path, "whole", rank) for rank in range(world)]
    assert list(expected[0]) == [*range(1, STEPS + 1), None]
    # Broken off with and without workers, gone on with and without, whichever rank it is that dies.
    for before, after in ((0, 2), (2, 0)):
        name = f"broken{before}"
        killed = fit(tmp_path, world, before, name, record={"kill": KILLED, "kill_rank": world - 1})
        assert killed.returncode != 0
        if world == 1:
            assert killed.returncode == -signal.SIGKILL
        assert max(step for step in rows(tmp_path, name, world - 1) if step) < KILLED
        more = fit(tmp_path, world, after, f"{name}-more", **{
            "ckpt_path": "last", "trainer.default_root_dir": str(tmp_path / "runs" / name),
        })  # fmt: skip
        assert more.returncode == 0, more.stderr
        for rank in range(world):
            found = rows(tmp_path, name, rank) | rows(tmp_path, f"{name}-more", rank)
            assert min(step for step in rows(tmp_path, f"{name}-more", rank) if step) == KILLED // SAVED * SAVED + 1
            assert found == expected[rank]


@pytest.mark.slow
def test_other_ranks_go_on_with_the_same_global_batches(tmp_path: Path) -> None:
    whole = fit(tmp_path, 1, 0, "whole")
    assert whole.returncode == 0, whole.stderr
    killed = fit(tmp_path, 2, 0, "two", record={"kill": 5})
    assert killed.returncode != 0
    more = fit(
        tmp_path, 1, 0, "one", **{"ckpt_path": "last", "trainer.default_root_dir": str(tmp_path / "runs" / "two")}
    )
    assert more.returncode == 0, more.stderr
    expected = {step: row["keys"] for step, row in rows(tmp_path, "whole", 0).items() if step}
    found = {step: row["keys"] for step, row in rows(tmp_path, "one", 0).items() if step}
    assert list(found) == list(range(5, STEPS + 1))
    for rank in range(2):
        for step, row in rows(tmp_path, "two", rank).items():
            assert row["keys"] == expected[step][rank::2]
    assert all(found[step] == expected[step] for step in found)
