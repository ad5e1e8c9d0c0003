"""A run that is told to end: one checkpoint, all ranks, and it goes on as if nothing had been."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from samlit.run.checkpointing import Checkpoints
from samlit.run.signals import Ended, Signals
from tests import fitting, forks

pytestmark = fitting.lightning_warnings


class Tell(fitting.pl.Callback):
    """Sends a signal to this process at a step or in a validation; writes down losses and scores."""

    def __init__(self, number=None, step=None, validation=None):
        self.number, self.step, self.validation = number, step, validation
        self.losses, self.scores = {}, {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses[trainer.global_step] = outputs["loss"].item()
        if self.number and trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)
            os.kill(os.getpid(), self.number)  # by torchrun and by the cluster

    def on_validation_batch_end(self, trainer, *_):
        if self.number and trainer.global_step == self.validation and not trainer.sanity_checking:
            os.kill(os.getpid(), self.number)

    def on_validation_end(self, trainer, module):
        self.scores[trainer.global_step] = dict(module.scores)


def fitted(folder, tell, steps=6, every=2, **others):
    torch.manual_seed(3)
    module = fitting.module()
    callbacks = [tell, Checkpoints(last_every=0), Signals(every)]
    options = {"val_check_interval": 3, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    trainer = fitting.trainer(folder, callbacks, max_steps=steps, **options)
    trainer.fit(module, fitting.data(count=40), **others)
    return module


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An unbroken run's weights, losses and scores."""
    tell = Tell()
    return fitted(tmp_path_factory.mktemp("whole"), tell).state_dict(), tell


@pytest.mark.parametrize(
    ("number", "where", "ends"),
    [(signal.SIGTERM, {"step": 1}, 2), (signal.SIGUSR1, {"step": 4}, 4), (signal.SIGTERM, {"validation": 3}, 3)],
)
def test_a_run_that_is_told_to_end_goes_on_as_an_unbroken_one(number, where, ends, whole, tmp_path):
    before = signal.getsignal(number)
    told = Tell(number, **where)
    with pytest.raises(Ended, match=f"{number.name} has ended the run at step {ends}; .*last.ckpt is written") as found:
        fitted(tmp_path, told)
    assert found.value.status == 128 + number
    assert signal.getsignal(number) == before
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == ends
    assert 3 not in told.scores or ends > 3
    again = Tell()
    weights = fitted(tmp_path, again, ckpt_path=tmp_path / "last.ckpt", weights_only=False).state_dict()
    state, tell = whole
    assert told.losses | again.losses == tell.losses
    assert min(again.losses) == ends + 1
    assert told.scores | again.scores == tell.scores  # a validation that was broken off is made again, all of it
    for name, value in state.items():
        assert torch.equal(value, weights[name]), name
    # What was made again is counted once: a run that goes on from here makes it no third time.
    third = Tell()
    fitted(tmp_path, third, 7, ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert list(third.scores) == []


def test_before_anything_is_learned_a_signal_does_what_it_always_does(tmp_path):
    program = f"""
import os, signal
from tests import fitting
from samlit.run.signals import Signals
class Tell(fitting.pl.Callback):
    def on_validation_batch_end(self, *_):
        os.kill(os.getpid(), signal.SIGTERM)
fitting.trainer({str(tmp_path)!r}, [Tell(), Signals()]).fit(fitting.module(), fitting.data())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=200)
    assert done.returncode == -signal.SIGTERM, done.stderr


RANKS = '''
import json, math, os, signal
from pathlib import Path
import lightning.pytorch as pl


class Trouble(pl.Callback):
    """Ruins a gradient of the second rank alone, and tells that rank alone to end."""

    def on_before_backward(self, trainer, module, loss):
        if trainer.global_rank == 1 and trainer.global_step + 1 == 2:
            weight = next(iter(module.net.decoder.parameters()))
            hook = weight.register_hook(lambda gradient: (hook.remove(), gradient * math.nan)[1])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        logged = {name: float(trainer.callback_metrics[name]) for name in ("train/grad_norm", "train/skipped")}
        logged["weights"] = [float(p.detach().double().sum()) for p in module.net.parameters()]
        with Path(f"{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(logged) + chr(10))
        if trainer.global_rank == 1 and trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
'''


def test_what_one_rank_meets_all_ranks_answer(tmp_path):
    """A gradient that is not finite, then a signal."""
    from tests.conftest import RECIPE

    (tmp_path / "trouble.py").write_text(RANKS)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("max_steps: 1", "max_steps: 50"))
    words = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--signals.every", "2"]
    words += ["--trainer.callbacks", json.dumps([{"class_path": "trouble.Trouble"}]), "--report.examples", "0"]
    root = os.path.dirname(os.path.dirname(__file__))
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "PYTHONWARNINGS": ""}
    command = ["-m", "samlit", "fit", "--recipe", "recipe.yaml", *words]
    done = forks.command(command, cwd=tmp_path, env={**os.environ, **quiet}, timeout=300)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "samlit: SIGTERM has ended the run at step 4; " in done.stderr
    assert "go on with --ckpt_path last" in done.stderr
    assert "step 2 is left out" in done.stderr
    assert "Traceback" not in done.stderr
    one, other = ([json.loads(row) for row in (tmp_path / f"{rank}.jsonl").read_text().splitlines()] for rank in (0, 1))
    assert str(one) == str(other)  # NaN is not equal to itself
    assert [row["train/skipped"] for row in one] == [0, 1, 1, 1]
    assert one[0]["weights"] == one[1]["weights"] != one[2]["weights"]
    (last,) = tmp_path.rglob("last.ckpt")
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == 4
    assert all(value.isfinite().all() for value in saved["state_dict"].values())
