"""W&B: an offline run is read back; without W&B, and with a broken one, training goes on."""

import os

import pytest

from samlit.report import Report
from samlit.tracking import Tracking, Wandb, logged_in
from tests import fitting, wandb_reader

pytestmark = fitting.lightning_warnings

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    """Nobody is logged in, whoever runs this, and HOME is no place to write to."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, "")  # so that what a run sets is taken back
        del os.environ[name]
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    yield home
    wandb.finish()


def fit(folder, logger, callbacks=None, **others):
    callbacks = [Report(examples=2, baseline=False), Tracking(2)] if callbacks is None else callbacks
    trainer = fitting.trainer(folder, callbacks, logger, **others)
    trainer.fit(fitting.module(), fitting.data())
    return trainer


def test_an_offline_run_holds_numbers_configuration_and_masks(tmp_path, nobody, capfd):
    logger = Wandb(name="try")
    logger.live_in(str(tmp_path / "run"))
    fit(tmp_path / "run", logger)
    run = logger.version
    wandb.finish()
    config, rows, folder = wandb_reader.read(tmp_path / "run")
    said = capfd.readouterr()
    assert "wandb" not in (said.out + said.err).replace(str(tmp_path), "")
    assert config["image_size"] == 32
    steps = {row["trainer/global_step"]: row for row in rows if "train/loss" in row}
    assert all(0 < row["train/loss"] < 100 for row in steps.values())
    assert any("val/miou" in row for row in rows)
    shown = [row for row in rows if "examples/1 point/_type" in row]
    assert [row["trainer/global_step"] for row in shown] == [0, 2]
    keys = set(shown[-1])
    assert {"examples/2 points/_type", "examples/1 box/_type", "examples/sheet/_type"} <= keys
    media = folder / "files"
    assert shown[-1]["examples/1 point/count"] == 2
    for name in shown[-1]["examples/1 point/filenames"] + shown[-1]["examples/sheet/filenames"]:
        assert (media / name).stat().st_size > 100
    masks = shown[-1]["examples/1 point/all_masks"]
    assert [set(each) for each in masks] == [{"prediction", "truth"}] * 2
    assert (media / masks[0]["truth"]["path"]).exists()
    assert any("report/path" in row or "report/_type" in row for row in rows)
    assert list(nobody.rglob("*")) == []

    again = Wandb()
    again.live_in(str(tmp_path / "run"), go_on=True)
    assert again.version == run


def test_without_a_logger_it_is_quiet(tmp_path, capsys):
    fit(tmp_path, False, [Tracking()])
    assert capsys.readouterr().err == ""
    assert [file.name for file in tmp_path.iterdir()] == ["home"]


def test_a_wandb_that_does_not_start_stops_nothing(tmp_path, monkeypatch, capsys):
    start = wandb.init

    def broken(**arguments):
        if arguments["mode"] == "disabled":
            return start(**arguments)
        raise OSError("no space left on device")

    monkeypatch.setattr(wandb, "init", broken)
    trainer = fit(tmp_path, Wandb(save_dir=str(tmp_path)))
    assert trainer.global_step == 2
    assert capsys.readouterr().err.count("W&B does not start") == 1


def test_a_wandb_that_breaks_is_noted_once(tmp_path, monkeypatch, capsys):
    logger = Wandb(save_dir=str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def broken(*_, **__):
        raise BrokenPipeError("the service is gone")

    monkeypatch.setattr(logger.experiment, "log", broken)
    assert fit(tmp_path, logger).global_step == 2
    assert capsys.readouterr().err.count("W&B stopped logging") == 1


def test_who_is_logged_in(tmp_path, nobody, monkeypatch):
    assert not logged_in()
    (nobody / ".netrc").write_text("machine elsewhere.org login user password " + "a" * 40 + "\n")
    assert not logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://elsewhere.org")
    assert logged_in()
    (nobody / ".netrc").write_text("what is this\n")
    assert not logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert logged_in()
