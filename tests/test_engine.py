"""What the command line does around Lightning's own."""

import pytest
import torch
from jsonargparse import Namespace

from samlit import arguments, engine
from samlit.errors import UsageError
from tests.fitting import module


def test_numbers_too_small_to_matter_cost_no_time(monkeypatch):
    seen = []

    def training(*_, **__):
        seen.append(float(torch.tensor([1e-39]) * 1.0))  # a denormal number
        raise SystemExit(0)

    monkeypatch.setattr(engine, "SamCLI", training)
    torch.set_flush_denormal(False)
    try:
        assert float(torch.tensor([1e-39]) * 1.0) > 0
        assert engine.run("fit", arguments.CommandLine([], {})) == 0
        assert seen == [0.0]
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("resumes", [True, False])
def test_weights_are_looked_for_before_anything_is_prepared(monkeypatch, resumes):
    """And not at all by a run that goes on from a checkpoint, which has its own."""

    class Cli(engine.SamCLI):
        def __init__(self):
            self.subcommand, self.model = "fit", module(weights="gone.ckpt")
            ckpt_path = "last.ckpt" if resumes else None
            self.config = Namespace(subcommand="fit", fit=Namespace(ckpt_path=ckpt_path))

    prepared = []
    monkeypatch.setattr(engine, "_prepare", prepared.append)
    if resumes:
        Cli().before_fit()
        assert prepared
    else:
        with pytest.raises(UsageError, match=r"weights: gone\.ckpt: there is no such file"):
            Cli().before_fit()
        assert not prepared


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")  # Lightning's own calls
@pytest.mark.parametrize(("typed", "seed"), [("7", 7), ("false", 0)])
def test_one_seed_is_everythings(monkeypatch, tmp_path, typed, seed):
    seen = []

    def before_fit(cli):
        seen.append((cli.model.seed, cli.datamodule.seed))
        raise SystemExit(0)

    monkeypatch.setattr(engine.SamCLI, "before_fit", before_fit)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["samlit"])  # Lightning warns of two command lines
    words = ["--recipe", "tiny", "--seed_everything", typed, "--trainer.strategy", "auto", "--trainer.devices", "1"]
    assert engine.run("fit", arguments.read([*words, "--trainer.logger", "false"])) == 0
    assert seen == [(seed, seed)]
