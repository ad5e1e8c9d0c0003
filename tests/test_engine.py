"""What the command line does around Lightning's own."""

import pytest
import torch
from jsonargparse import Namespace

from samlit import cli, engine
from samlit.errors import UsageError
from samlit.shell import arguments
from tests.conftest import RECIPE
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


def judged(capsys):
    """The rows of the table that a command has printed, and nothing else."""
    out, err = capsys.readouterr()
    assert err == ""
    head, *rows = out.splitlines()
    return head.strip(), dict(map(str.split, rows))


def test_a_quiet_run_says_nothing_and_is_then_validated_and_tested(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    text = RECIPE.replace("enable_progress_bar: false", "default_root_dir: runs\n  val_check_interval: 1").replace(
        "  enable_model_summary: false\n", ""
    )
    text = text.replace("data:", "  validation: [boxes]\ndata:\n  validation: {class_path: tests.fitting.Discs}")
    (tmp_path / "own.yaml").write_text(text)
    words = ["--recipe", "own.yaml", "--quiet"]
    assert cli.main(["fit", *words]) == 0
    assert capsys.readouterr() == ("", "")
    assert "mIoU" in (tmp_path / "runs" / "report.txt").read_text()

    words += ["--ckpt_path", "best"]
    assert cli.main(["validate", *words]) == 0
    head, validated = judged(capsys)
    assert (head, {"val/box", "val/miou", "val/iou_calibration"} <= set(validated)) == ("validate", True)

    assert cli.main(["test", *words]) == 2
    assert "test needs data.test, a source as data.validation is" in capsys.readouterr().err

    same = ["--data.test", "tests.fitting.Discs", "--data.test.count"]
    assert cli.main(["test", *words, *same, "3"]) == 0
    head, tested = judged(capsys)
    assert head == "test"
    assert tested == {name.replace("val/", "test/"): value for name, value in validated.items()}
    assert cli.main(["test", *words, *same, "1"]) == 0
    assert judged(capsys)[1] != tested, "other images, other numbers"


def test_only_the_source_of_tests_is_made_ready_for_a_test(tmp_path):
    from samlit.datamodule import SamData
    from tests.fitting import Discs

    class Noted(Discs):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def prepare(self, progress=lambda done, total, what: None):
            prepared.append(self.name)

    for testing, names in ((True, ["test"]), (False, ["train", "val"])):
        prepared = []
        SamData(Noted("train"), Noted("val"), 32, test=Noted("test")).prepare_data(testing)
        assert prepared == names
