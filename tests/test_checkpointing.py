"""Checkpoints: best and last, whole or not there, plain, and refused when damaged."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from samlit.engine import newest_checkpoint
from samlit.errors import SamlitError
from samlit.run.checkpointing import AtomicIO, Checkpoints
from tests import fitting

pytestmark = fitting.lightning_warnings

FAULTS = """
import os, resource, signal, sys
from pathlib import Path
import torch
from samlit.run.checkpointing import AtomicIO
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
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3
    assert callback.best_model_path == str(tmp_path / "best.ckpt")
    # Into the same folder, then after the folder was moved.
    again = Checkpoints()
    fitting.trainer(tmp_path, [again], max_steps=4).fit(
        fitting.module(), fitting.data(), ckpt_path=tmp_path / "last.ckpt"
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
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


def step_of(file):
    return torch.load(file, weights_only=True)["global_step"]


def spoil(file):
    file.write_bytes(file.read_bytes()[:-100])


def test_the_one_before_the_last_is_kept(tmp_path):
    io, last, before = AtomicIO(), tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for step in (1, 2, 2, 3, 3):  # after a validation a step is saved once more
        io.save_checkpoint({"global_step": step}, last)
        assert step_of(last) == step
        assert not before.exists() if step == 1 else step_of(before) == step - 1
    io.save_checkpoint({"global_step": 9}, tmp_path / "best.ckpt")
    assert (step_of(last), step_of(before)) == (3, 2)
    os.link(last, tmp_path / "a")
    before.unlink()
    os.link(last, before)  # as a crash between the two renames leaves it
    AtomicIO().save_checkpoint({"global_step": 4}, last)
    assert (step_of(last), step_of(before)) == (4, 3)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "best.ckpt", "last.ckpt", "previous.ckpt"]


def test_file_systems_without_links_keep_it_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    for step in (1, 2):
        AtomicIO().save_checkpoint({"global_step": step}, tmp_path / "last.ckpt")
    assert [step_of(tmp_path / name) for name in ("last.ckpt", "previous.ckpt")] == [2, 1]


def test_one_goes_on_from_the_one_before_where_the_last_is_damaged(tmp_path):
    assert newest_checkpoint(tmp_path / "run") is None
    for name in ("run", "run-2"):
        for step in (1, 2):
            AtomicIO().save_checkpoint({"global_step": step, "of": name}, tmp_path / name / "last.ckpt")
    os.utime(tmp_path / "run" / "last.ckpt", (0, 0))
    second = tmp_path / "run-2"
    assert newest_checkpoint(tmp_path / "run") == str(second / "last.ckpt")
    spoil(second / "last.ckpt")
    with pytest.warns(UserWarning, match=r"run-2/last\.ckpt is damaged \(at its end\)"):
        assert newest_checkpoint(tmp_path / "run") == str(second / "previous.ckpt")
    with pytest.raises(SamlitError, match=r"last\.ckpt is damaged .*: go on from .*run-2/previous\.ckpt"):
        AtomicIO().load_checkpoint(second / "last.ckpt")
    (second / "last.ckpt").unlink()
    (tmp_path / "run" / "last.ckpt").unlink()
    os.utime(tmp_path / "run" / "previous.ckpt", (0, 0))
    assert newest_checkpoint(tmp_path / "run") == str(second / "previous.ckpt")
    spoil(second / "previous.ckpt")
    spoil(tmp_path / "run" / "previous.ckpt")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(SamlitError, match="every checkpoint is damaged"):
        newest_checkpoint(tmp_path / "run")


class Disk:
    """Is full at some of the saves."""

    def __init__(self, monkeypatch, full):
        self.full, self.tried, self.save = full, [], torch.save
        monkeypatch.setattr(torch, "save", self)

    def __call__(self, checkpoint, file):
        self.tried.append((checkpoint["global_step"], file.name.split(".")[1]))
        if self.tried[-1] in self.full:
            raise OSError(28, "No space left on device")
        self.save(checkpoint, file)


def test_a_full_disk_is_told_and_the_training_goes_on(tmp_path, monkeypatch):
    disk = Disk(monkeypatch, {(2, "last"), (2, "best"), (3, "last")})
    callback = Checkpoints(last_every=1)
    trainer = fitting.trainer(tmp_path, [callback], max_steps=4, val_check_interval=2, check_val_every_n_epoch=None)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        trainer.fit(fitting.module(), fitting.data(count=8))
    told = [str(warning.message) for warning in told if "could not be written" in str(warning.message)]
    assert [text[:6] for text in told] == ["step 2"] * 3 + ["step 3"]
    assert disk.tried[:5] == [(1, "last"), (2, "last"), (2, "best"), (2, "last"), (3, "last")]
    # Whatever the scores: the first one was not written, so it is not the best one.
    assert [step_of(tmp_path / f"{name}.ckpt") for name in ("last", "previous", "best")] == [4, 1, 4]
    assert callback.best_model_path == str(tmp_path / "best.ckpt")


def test_a_disk_that_stays_full_ends_the_training(tmp_path, monkeypatch):
    Disk(monkeypatch, {(step, "last") for step in (2, 3, 4)})
    trainer = fitting.trainer(tmp_path, [Checkpoints(last_every=1)], max_steps=6)
    with pytest.warns(UserWarning, match="training goes on"), pytest.raises(SamlitError, match="3 times in a row"):
        trainer.fit(fitting.module(), fitting.data(validation=False, count=16))
    assert trainer.global_step == 4
    assert step_of(tmp_path / "last.ckpt") == 1


def test_what_a_training_ends_with_must_be_written(tmp_path, monkeypatch):
    Disk(monkeypatch, {(2, "last")})
    trainer = fitting.trainer(tmp_path, [Checkpoints(last_every=0)], max_steps=2)
    with pytest.warns(UserWarning, match="could not"), pytest.raises(SamlitError, match=r"No space left.*make room"):
        trainer.fit(fitting.module(), fitting.data(validation=False, count=16))


def test_another_number_of_threads_is_told(tmp_path):
    fitting.trainer(tmp_path, [Checkpoints()], max_steps=1).fit(fitting.module(), fitting.data(validation=False))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["threads"] == torch.get_num_threads()
    torch.save({**saved, "threads": 77}, tmp_path / "last.ckpt")
    trainer = fitting.trainer(tmp_path, [Checkpoints()], max_steps=2)
    with pytest.warns(UserWarning, match="had 77 threads .*OMP_NUM_THREADS=77"):
        trainer.fit(fitting.module(), fitting.data(validation=False), ckpt_path=tmp_path / "last.ckpt")
