"""Checkpoints in pieces: whole or not there, refused when damaged, read by everything, converted without a loss."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard

from samlit import checkpoints, cli
from samlit.engine import newest_checkpoint
from samlit.errors import SamlitError
from samlit.run.checkpointing import AtomicIO, damage
from samlit.weights import pieces

STATE = {
    "global_step": 3,
    "hyper_parameters": {"names": ["a", {"b": None}]},
    "state_dict": {"net.weight": torch.arange(12.0).view(6, 2), "net.half": torch.ones(3, dtype=torch.bfloat16)},
    "optimizer_states": [
        {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.arange(12.0).view(6, 2) / 7}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0]}],
        }
    ],
    "callbacks": {"Checkpoints": {"best_model_score": torch.tensor(0.5)}},
}

FAULTS = """
import os, resource, signal, sys
from pathlib import Path
import torch
from samlit.weights import pieces
from samlit.errors import SamlitError

path = Path(sys.argv[1])
big = {"state_dict": {"weight": torch.ones(1_000_000)}}
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
try:
    pieces.save(big, path)
except SamlitError as error:
    print(error, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(sorted(os.listdir(path.parent)), flush=True)
Path.rename = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
pieces.save(big, path)
"""


def equal(a, b, at=()):
    assert type(a) is type(b), at
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), at
    elif isinstance(a, dict):
        assert list(a) == list(b), at
        for key in a:
            equal(a[key], b[key], (*at, key))
    elif isinstance(a, list):
        assert len(a) == len(b), at
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            equal(x, y, (*at, number))
    else:
        assert a == b, at


@pytest.fixture
def folder(tmp_path):
    pieces.save(STATE, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_nothing_is_lost(folder):
    equal(pieces.read(folder), STATE)
    equal(AtomicIO().load_checkpoint(folder), STATE)
    without = pieces.read(folder, moments=False)
    equal(without, {key: value for key, value in STATE.items() if key != "optimizer_states"})
    assert damage(folder) == ""
    assert len({path.stat().st_mode & 0o777 for path in folder.iterdir()}) == 1  # all are readable by the same people


def test_converted_and_back(folder, tmp_path, capsys):
    file, again = tmp_path / "one.ckpt", tmp_path / "again.ckpt"
    assert cli.main(["convert", str(folder), str(file)]) == 0
    assert cli.main(["convert", str(file), str(again)]) == 0
    equal(torch.load(file, weights_only=True), STATE)
    equal(pieces.read(again), STATE)
    capsys.readouterr()
    assert cli.main(["convert", str(file), str(again)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert cli.main(["convert", str(tmp_path), str(tmp_path / "x")]) == 2
    assert "no checkpoint in pieces" in capsys.readouterr().err
    assert cli.main(["convert", str(tmp_path / "none"), str(tmp_path / "x")]) == 2


def test_the_one_before_is_kept(folder, tmp_path):
    newer = STATE | {"global_step": 4}
    pieces.save(newer, folder, tmp_path / "previous.ckpt")
    assert pieces.read(folder)["global_step"] == 4
    assert pieces.read(tmp_path / "previous.ckpt")["global_step"] == 3
    pieces.save(STATE | {"global_step": 5}, folder, tmp_path / "previous.ckpt")
    assert pieces.read(tmp_path / "previous.ckpt")["global_step"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_a_file_in_the_place_of_pieces_and_back(folder, tmp_path):
    io = AtomicIO()
    io.save_checkpoint(STATE | {"global_step": 4}, folder)
    assert folder.is_file()
    assert pieces.read(tmp_path / "previous.ckpt")["global_step"] == 3
    io.save_checkpoint(STATE | {"global_step": 5}, folder)
    assert torch.load(tmp_path / "previous.ckpt", weights_only=True)["global_step"] == 4
    pieces.save(STATE | {"global_step": 6}, folder, tmp_path / "previous.ckpt")
    assert pieces.read(folder)["global_step"] == 6
    assert torch.load(tmp_path / "previous.ckpt", weights_only=True)["global_step"] == 5
    pieces.save(STATE, tmp_path / "best.ckpt")
    io.save_checkpoint(STATE, tmp_path / "best.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]


def cut(folder):
    part = folder / "part-00000-of-00001.safetensors"
    part.write_bytes(part.read_bytes()[:-3])
    return "part-00000"


def flip(folder):
    part = folder / "part-00000-of-00001.safetensors"
    data = bytearray(part.read_bytes())
    data[-5] ^= 4
    part.write_bytes(data)
    return "part-00000"


def lose(folder):
    (folder / "rest.pt").unlink()
    return "rest.pt"


def never_finished(folder):
    (folder / "manifest.json").unlink()
    return "its end"


def lead_elsewhere(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../x"] = manifest["files"].pop("rest.pt")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return "manifest.json"


@pytest.mark.parametrize("spoil", [cut, flip, lose, never_finished, lead_elsewhere])
def test_what_is_damaged_is_refused_and_passed_over(tmp_path, spoil):
    run = tmp_path / "run"
    last, before = run / "last.ckpt", run / "previous.ckpt"
    pieces.save(STATE, last)
    pieces.save(STATE | {"global_step": 4}, last, before)
    where = spoil(last)
    for read in (pieces.read, AtomicIO().load_checkpoint):
        with pytest.raises(SamlitError, match=rf"damaged \(at .*{where}"):
            read(last)
    with pytest.raises(SamlitError, match="damaged"):
        pieces.load(last, lambda at, shape, rest: None, AtomicIO().load_checkpoint)
    with pytest.warns(UserWarning, match="is damaged"):
        assert newest_checkpoint(run) == str(before)


def test_code_is_never_run(folder):
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    torch.save({"x": Evil()}, folder / "rest.pt")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["rest.pt"] |= pieces._facts(folder / "rest.pt")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SamlitError, match=r"rest\.pt: Weights only"):
        pieces.read(folder)


def test_a_full_disk_and_a_kill_leave_the_old_one(folder, tmp_path):
    done = subprocess.run([sys.executable, "-c", FAULTS, str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    said, listed = done.stdout.splitlines()
    assert "could not be written" in said
    assert "untouched" in said
    assert listed == "['last.ckpt']"
    equal(pieces.read(folder), STATE)
    pieces.save(STATE | {"global_step": 9}, folder)
    assert pieces.read(folder)["global_step"] == 9
    assert os.listdir(tmp_path) == ["last.ckpt"]


class Mesh(DeviceMesh):
    """One of several ranks, without the others."""

    def __init__(self, ranks, rank):
        self._ranks, self._rank = ranks, rank

    shape = property(lambda self: (self._ranks,))

    def get_coordinate(self):
        return [self._rank]


class Like:
    """What `rows` asks a shared tensor for."""

    def __init__(self, shape, ranks, rank, by=0):
        self.shape, self.placements, self.device_mesh = shape, (Shard(by),), Mesh(ranks, rank)


def test_rows_are_dealt_as_torch_deals_them():
    for n in (1, 2, 5, 6, 7, 16):
        for ranks in (1, 2, 3, 8):
            chunks = list(torch.arange(n).chunk(ranks))
            expected = [(int(c[0]), int(c[-1]) + 1) for c in chunks] + [(n, n)] * (ranks - len(chunks))
            assert [pieces.rows(Like((n, 3), ranks, rank)) for rank in range(ranks)] == expected
    with pytest.raises(ValueError, match="by rows"):
        pieces.rows(Like((4, 4), 2, 0, 1))


def test_a_model_is_read_from_pieces(checkpoint, tmp_path):
    folder = tmp_path / "tiny.ckpt"
    pieces.save(torch.load(checkpoint, weights_only=True), folder)
    (net, size), (expected, _) = checkpoints.load(folder), checkpoints.load(checkpoint)
    assert size == 32
    equal(dict(net.state_dict()), dict(expected.state_dict()))
    part = next(folder.glob("part*"))
    shutil.copy(part, tmp_path / "whole")
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged"):
        checkpoints.load(folder)
