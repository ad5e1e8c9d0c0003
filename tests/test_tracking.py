"""W&B: an offline run is read back; without W&B, and with a broken one, training goes on."""

import json
import math
import os
from csv import DictReader
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from samlit.run.checkpointing import Checkpoints
from samlit.run.loggers import Csv, Tensorboard
from samlit.run.report import Report
from samlit.run.speed import Speed
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


def numbers(row):
    return {name: value for name, value in row.items() if isinstance(value, int | float) and "/" in name}


def test_an_offline_run_holds_numbers_masks_tables_and_checkpoints(tmp_path, nobody, capfd):
    logger, csv = Wandb(name="try", log_model="best"), Csv()
    for one in (logger, csv):
        one.live_in(str(tmp_path / "run"))
    callbacks = [Speed(), Report(examples=2, baseline=False, extremes=1), Tracking(2, extremes=1), Checkpoints()]
    fit(tmp_path / "run", [logger, csv], callbacks, log_every_n_steps=2)
    run = logger.version
    wandb.finish()
    config, rows, folder = wandb_reader.read(tmp_path / "run")
    said = capfd.readouterr()
    assert "wandb" not in (said.out + said.err).replace(str(tmp_path), "")
    assert config["image_size"] == 32

    # Numbers: every name, finite, and the same in the table.
    told = {name: value for row in rows for name, value in numbers(row).items()}
    told = {name: value for name, value in told.items() if name.startswith(("train/", "val/", "speed/", "lr/"))}
    passes = [f"train/pass_0{n}/{name}" for n in range(1, 5) for name in ("loss", "miou")]
    speed = ["images_per_second", "answers_per_second", "tflops", "data_wait", "memory_gib"]
    scores = ["1_click", "2_clicks", "box", "1_click_best", "2_clicks_best", "box_best"]
    expected = {*passes, *(f"train/{name}" for name in ("loss", "focal", "dice", "iou", "miou"))}
    expected |= {
        "train/miou_first",
        "train/miou_last",
        "train/grad_norm",
        "train/skipped",
        "lr/all",
        *(f"speed/{name}" for name in speed),
    }
    expected |= {"val/miou", "val/iou_calibration", *(f"val/{name}" for name in scores)}
    assert {name for name in told if not name.startswith("val/reliability")} == expected
    assert all(math.isfinite(value) for value in told.values())
    assert {row["trainer/global_step"] for row in rows if "train/loss" in row or "lr/all" in row} == {1}
    with (tmp_path / "run" / "metrics.csv").open() as file:
        table = {name: float(value) for row in DictReader(file) for name, value in row.items() if value}
    assert {name: table[name] for name in expected} == pytest.approx({name: told[name] for name in expected}, rel=1e-5)
    assert told["train/pass_01/miou"] == told["train/miou_first"]
    assert 0 <= told["val/iou_calibration"] <= 1

    # Pictures, before training and after it.
    shown = [row for row in rows if "examples/1 point/_type" in row]
    assert [row["trainer/global_step"] for row in shown] == [0, 2]
    keys = set(shown[-1])
    pictures = {f"examples/{name}" for name in ("2 points", "1 box", "sheet", "extremes")} | {"val/reliability"}
    assert {f"{name}/_type" for name in pictures} <= keys
    media = folder / "files"
    assert shown[-1]["examples/1 point/count"] == 2
    for name in ("examples/1 point", *pictures):
        for file in shown[-1][f"{name}/filenames"]:
            assert (media / file).stat().st_size > 100
    masks = shown[-1]["examples/1 point/all_masks"]
    assert [set(each) for each in masks] == [{"prediction", "truth"}] * 2
    assert (media / masks[0]["truth"]["path"]).exists()

    # Tables: a row an answer.
    assert any("report/path" in row or "report/_type" in row for row in rows)
    artifacts = wandb_reader.artifacts(tmp_path / "run")
    ((kind, _, _, files),) = (one for name, one in artifacts.items() if "examplestable" in name)
    assert kind == "run_table"
    table = json.loads(Path(files["examples/table.table.json"]).read_text())
    assert table["columns"] == [
        "which", "image", "phrase", "asked", "prompt", "prediction", "truth", "error", "IoU", "predicted IoU",
    ]  # fmt: skip
    assert [row[0] for row in table["data"]] == ["worst"] * 3 + ["best"] * 3 + ["first"] * 6
    assert [row[3] for row in table["data"]] == ["1 point", "2 points", "1 box"] * 4
    for row in table["data"]:
        assert row[1].startswith("disc ")
        assert row[2] in ("the round one", "the bar")
        assert all(Path(files[picture["path"]]).stat().st_size > 100 for picture in row[4:8])
        assert 0 <= row[8] <= 1
        assert math.isfinite(row[9])
    worst, best = (sum(row[8] for row in table["data"] if row[0] == which) for which in ("worst", "best"))
    assert worst <= best

    # The checkpoint.
    kind, aliases, about, files = artifacts[f"model-{run}"]
    assert (kind, set(aliases) & {"best", "last"}, about["step"]) == ("model", {"best", "last"}, 2)
    assert about["score"] == pytest.approx(about["val/miou"]) == told["val/miou"]
    (kept,) = files.values()
    assert Path(kept).read_bytes() == (tmp_path / "run" / "best.ckpt").read_bytes()
    assert Path(kept).is_relative_to(tmp_path / "run")
    assert list(nobody.rglob("*")) == []

    again = Wandb()
    again.live_in(str(tmp_path / "run"), go_on=True)
    assert again.version == run


class Kept:
    """What a run is told, without one."""

    id = "abc"

    def __init__(self):
        self.logged = []

    def log_artifact(self, artifact, aliases):
        self.logged.append((artifact.metadata["file"], artifact.metadata["step"], aliases))


@pytest.mark.parametrize(
    ("log_model", "expected"),
    [
        (False, []),
        ("best", [("best.ckpt", 1, ["best"])]),
        ("all", [("best.ckpt", 1, ["best"]), ("last.ckpt", 1, ["last"]), ("last.ckpt", 2, ["last"])]),
    ],
)
def test_which_checkpoints_become_artifacts(tmp_path, monkeypatch, log_model, expected):
    run = Kept()
    logger = Wandb(log_model=log_model)
    monkeypatch.setattr(Wandb, "experiment", run)
    saver = SimpleNamespace(best_model_path=str(tmp_path / "best.ckpt"), last_model_path=str(tmp_path / "last.ckpt"))
    saver.best_model_score, saver.monitor = torch.tensor(0.5), "val/miou"
    for name, step in (("best", 1), ("last", 1), ("last", 2)):
        (tmp_path / f"{name}.ckpt").write_text(f"{step}")
        saver._last_checkpoint_saved, saver._last_global_step_saved = str(tmp_path / f"{name}.ckpt"), step
        logger.after_save_checkpoint(saver)
    logger.finalize("failed")
    logger.finalize("success")
    assert run.logged == expected
    with pytest.raises(ValueError, match="log_model: best, all or false, not true"):
        Wandb(log_model=True)


def test_tensorboard_is_shown_the_sheets(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = Tensorboard(str(tmp_path / "board"))
    fit(tmp_path / "run", logger, [Tracking(1, extremes=1)])
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert set(events.Tags()["images"]) == {"examples/sheet", "examples/extremes", "val/reliability"}
    assert {"train/loss", "train/pass_04/miou", "val/1_click"} <= set(events.Tags()["scalars"])


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
    trainer = fit(tmp_path, Wandb(save_dir=str(tmp_path)), [Tracking(1, sheet=False)])
    assert trainer.global_step == 2
    assert capsys.readouterr().err.count("W&B does not start") == 1


def test_a_wandb_that_breaks_is_noted_once(tmp_path, monkeypatch, capsys):
    logger = Wandb(save_dir=str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def broken(*_, **__):
        raise BrokenPipeError("the service is gone")

    monkeypatch.setattr(logger.experiment, "log", broken)
    assert fit(tmp_path, logger, [Tracking(1, sheet=False)]).global_step == 2
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
