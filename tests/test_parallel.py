"""Two ranks, with copies of the model or with parts of it, are one process with the same global batch."""

import os
import socket
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from samlit import parallel
from samlit.datamodule import SamData
from samlit.errors import UsageError
from samlit.parallel import Replicated, Sharded
from samlit.run.checkpointing import AtomicIO
from tests import conftest, fitting, forks, sharing

pytestmark = fitting.lightning_warnings


def two_ranks(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    return [
        forks.start(
            sharing.one_of_two, folder, rank,
            env=os.environ | there | {"LOCAL_RANK": str(rank)}, cwd=conftest.ROOT, out=folder / f"{rank}.txt",
        )
        for rank in range(2)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What one process comes to, and what two ranks do."""
    folder = tmp_path_factory.mktemp("ranks")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = {"single": sharing.adam("auto", 1, folder, max_steps=2, save="single.ckpt")}
    ranks = two_ranks(folder)
    one |= {name: sharing.case(name, "auto", 1, folder) for name in sharing.CASES}
    one["muon"] = sharing.adam("auto", 1, folder, "muon", max_steps=2)
    one["whole"] = sharing.adam("auto", 1, folder)
    for number, rank in enumerate(ranks):
        rank.join(400)
        assert rank.exitcode == 0, (folder / f"{number}.txt").read_text()
    torch.set_num_threads(threads)
    return folder, one, torch.load(folder / "found.pt")


def close(a, b, within):
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] - b[name]).abs().max() <= within, name


def same(found, expected, within=1e-5):
    assert found["losses"] == pytest.approx(expected["losses"][-len(found["losses"]) :], abs=1e-5)
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-5)
    close(found["state"], expected["state"], within)


def test_the_ranks_of_the_comparison_do_different_things():
    batches = list(sharing.pictures(2).train_dataloader())
    masks = [batch.image_index.bincount(minlength=2).tolist() for batch in batches[:3]]
    assert [0, 2] in masks  # one rank has none
    asked = [sharing.pointed(batch.image).tolist() for batch in batches[:3]]
    assert any(both == [2, 2] and a != b for both, (a, b) in zip(masks, asked, strict=True))


@pytest.mark.parametrize("strategy", ["Replicated", "Sharded"])
@pytest.mark.parametrize("name", list(sharing.CASES))
def test_two_ranks_are_one_process(runs, name, strategy):
    _, one, found = runs
    same(found[f"{name}, {strategy}"], one[name])
    moved = max(
        (after - before).abs().max()
        for (key, before), after in zip(one[name]["loaded"].items(), one[name]["state"].values(), strict=False)
        if "/" not in key
    )
    assert moved > 1e-3


def test_a_sharded_model_is_in_parts_between_steps(runs):
    _, one, found = runs
    for name in sharing.CASES:
        whole = one[name]["rows"]
        assert found[f"{name}, Replicated"]["rows"] == whole
        assert found[f"{name}, Sharded"]["rows"] == [-(-rows // 2) for rows in whole]


def test_muon_orthogonalises_whole_matrices(runs):
    _, one, found = runs
    same(found["muon"], one["muon"], 1e-4)


def test_both_forms_hold_the_same(runs):
    folder, _, found = runs
    pieces, file = (AtomicIO().load_checkpoint(folder / f"{name}.ckpt") for name in ("pieces", "file"))
    assert (folder / "pieces.ckpt").is_dir()
    assert (folder / "file.ckpt").is_file()
    assert pieces["state_dict"].keys() == file["state_dict"].keys()
    for name, value in file["state_dict"].items():
        assert torch.equal(pieces["state_dict"][name], value), name
    (a,), (b,) = pieces["optimizer_states"], file["optimizer_states"]
    assert a["param_groups"] == b["param_groups"]
    for number, moments in b["state"].items():
        assert a["state"][number].keys() == moments.keys()
        for key, value in moments.items():
            assert torch.equal(a["state"][number][key], value), (number, key)
    close(found["pieces"]["state"], found["file"]["state"], 0)


@pytest.mark.parametrize("source", ["pieces", "single"])
@pytest.mark.parametrize("strategy", [Sharded, None])
def test_one_process_goes_on_with_what_any_number_has_saved(runs, source, strategy):
    folder, one, found = runs
    with mock.patch.dict(os.environ):
        went_on = sharing.adam(strategy() if strategy else "auto", 1, folder, checkpoint=folder / f"{source}.ckpt")
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    close(went_on["loaded"], (found if source in found else one)[source]["state"], 0)
    same(went_on, one["whole"], 1e-4)  # Adam makes steps of differences that are only rounding


def test_two_ranks_go_on_with_what_any_strategy_has_saved(runs):
    _, one, found = runs
    ways = [name for name in found if " to " in name]
    assert len(ways) == 4
    for name in ways:
        source = name.split()[0]
        close(found[name]["loaded"], (found if source in found else one)[source]["state"], 0)
        same(found[name], one["whole"], 1e-4)


def test_a_recipes_word_for_a_strategy():
    assert type(parallel.named("ddp")) is Replicated
    assert type(parallel.named("fsdp")) is Sharded
    assert parallel.named("auto") == "auto"
    own = Sharded(timeout=3, pieces=True)
    assert parallel.named(own) is own


def test_kept_embeddings_need_a_copy_of_the_encoder(monkeypatch, tmp_path):
    module = fitting.module(freeze=["encoder"])
    data = SamData(fitting.Discs(3), None, 32, embeddings=str(tmp_path / "kept"))
    module._trainer = SimpleNamespace(datamodule=data)
    monkeypatch.setattr("samlit.module.is_sharded", lambda net: True)
    with pytest.raises(UsageError, match=r"data\.embeddings.*ddp"):
        module.on_fit_start()
