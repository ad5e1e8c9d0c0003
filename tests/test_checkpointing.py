"""Checkpoints: best and last, whole or not there, plain, and refused when damaged."""

import subprocess
import sys

import pytest
import torch

from samlit.checkpointing import AtomicIO, Checkpoints
from samlit.errors import SamlitError
from tests import fitting

pytestmark = fitting.lightning_warnings

FAULTS = """
import os, resource, signal, sys
from pathlib import Path
import torch
from samlit.checkpointing import AtomicIO
from samlit.errors import SamlitError

io, path = AtomicIO(), sys.argv[1]
big = {"state_dict": {"weight": torch.ones(1_000_000)}}
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
try:
    io.save_checkpoint(big, path)
except SamlitError as error:
    print(error, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(sorted(os.listdir(Path(path).parent)), flush=True)
os.replace = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
io.save_checkpoint(big, path)
"""


def test_a_full_disk_and_a_kill_leave_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicIO().save_checkpoint({"state_dict": {"weight": torch.zeros(3)}}, path)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FAULTS, str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == -9, done.stderr
    said, listed = done.stdout.splitlines()
    assert "could not be written" in said
    assert "untouched" in said
    assert listed == "['last.ckpt']"
    assert path.read_bytes() == before
    AtomicIO().save_checkpoint({"state_dict": {"weight": torch.ones(3)}}, path)
    assert AtomicIO().load_checkpoint(path)["state_dict"]["weight"].tolist() == [1, 1, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:-100], lambda data: data.replace(b"\x00\x00\x80\x3f", b"\x00\x00\x80\x3e", 1)]
)
def test_a_damaged_checkpoint_is_refused(tmp_path, spoil):
    path = tmp_path / "a.ckpt"
    AtomicIO().save_checkpoint({"state_dict": {"weight": torch.ones(100)}}, path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(SamlitError, match="damaged"):
        AtomicIO().load_checkpoint(path)


def test_only_plain_hyperparameters_are_saved(tmp_path):
    parameters = {"size": 3, "names": ["a", {"b": None}], "task": object(), "call": len}
    AtomicIO().save_checkpoint({"hyper_parameters": parameters}, tmp_path / "a.ckpt")
    loaded = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert loaded["hyper_parameters"] == {"size": 3, "names": ["a", {"b": None}]}


def test_a_run_keeps_its_best_and_its_last_and_goes_on(tmp_path):
    callback = Checkpoints(last_every=1)
    fitting.trainer(tmp_path, [callback], max_steps=3).fit(fitting.module(), fitting.data())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3
    assert callback.best_model_path == str(tmp_path / "best.ckpt")
    # Into the same folder, then after the folder was moved.
    again = Checkpoints()
    fitting.trainer(tmp_path, [again], max_steps=4).fit(
        fitting.module(), fitting.data(), ckpt_path=tmp_path / "last.ckpt"
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    elsewhere = Checkpoints()
    elsewhere.dirpath = str(moved)
    elsewhere.load_state_dict(again.state_dict())
    assert elsewhere.best_model_path == str(moved / "best.ckpt")
    assert elsewhere.best_model_score == again.best_model_score


def test_without_validation_there_is_a_last_one(tmp_path):
    fitting.trainer(tmp_path, [Checkpoints()]).fit(fitting.module(), fitting.data(validation=False))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
