"""Numbers in a table and in TensorBoard's files, and loggers by their short names."""

import csv

import pytest

from samlit import recipe
from samlit.errors import UsageError
from samlit.run.loggers import Csv
from samlit.shell import arguments


def table(folder):
    with (folder / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def logger_in(folder, **others):
    logger = Csv()
    logger.live_in(str(folder), **others)
    return logger


def test_a_row_a_step_whoever_logs_what(tmp_path):
    logger = logger_in(tmp_path)
    logger.log_metrics({"train/loss": 1.5}, 0)
    logger.log_metrics({"speed": 2, "epoch": 0}, 0)
    logger.log_metrics({"train/loss": 1.25}, 1)
    assert table(tmp_path) == [{"step": 0, "epoch": 0, "train/loss": 1.5, "speed": 2}]
    logger.log_metrics({"val/miou": 0.5}, 2)  # a new column
    logger.log_metrics({"train/loss": 1 / 3}, 2)
    logger.log_metrics({"train/loss": float("nan")}, 3)
    logger.finalize("success")
    logger.finalize("success")
    *rows, last = table(tmp_path)
    assert rows[1:] == [{"step": 1, "train/loss": 1.25}, {"step": 2, "val/miou": 0.5, "train/loss": 0.3333333}]
    assert last["train/loss"] != last["train/loss"]
    assert (tmp_path / "metrics.csv").read_text().startswith("step,epoch,speed,train/loss,val/miou\n")


def test_a_resumed_run_goes_on_in_its_table_and_a_new_one_begins_its_own(tmp_path):
    logger = logger_in(tmp_path)
    for step in range(5):
        logger.log_metrics({"a": step}, step)
    logger.finalize("failed")
    again = logger_in(tmp_path, go_on=True)
    again.log_metrics({"b": 30}, 3)  # the checkpoint was of step 3
    again.log_metrics({"b": 40}, 4)
    again.finalize("success")
    assert [(row["step"], row.get("a"), row.get("b")) for row in table(tmp_path)] == [
        (0, 0, None), (1, 1, None), (2, 2, None), (3, None, 30), (4, None, 40),
    ]  # fmt: skip
    new = logger_in(tmp_path)
    new.log_metrics({"c": 1}, 0)
    new.finalize("success")
    assert table(tmp_path) == [{"step": 0, "c": 1}]


def test_a_table_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    logger = logger_in(tmp_path / "file" / "folder")
    for step in range(4):
        logger.log_metrics({"a": step}, step)
    logger.finalize("success")
    assert capsys.readouterr().err.count("training goes on") == 1


def test_tensorboard_writes_into_the_runs_folder(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from samlit.run.loggers import Tensorboard

    logger = Tensorboard()
    logger.live_in(str(tmp_path / "run"))
    assert logger.log_dir == str(tmp_path / "run")
    logger.log_metrics({"train/pass_01/loss": 0.5}, 7)
    logger.log_hyperparams({"a": object()})
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    ((step, value),) = [(e.step, e.value) for e in events.Scalars("train/pass_01/loss")]
    assert (step, value) == (7, 0.5)
    assert [file.name.startswith("events") for file in (tmp_path / "run").iterdir()] == [True]


@pytest.mark.parametrize(
    ("typed", "class_paths"),
    [
        ("csv", ["samlit.run.loggers.Csv"]),
        ("wandb", ["samlit.tracking.Wandb"]),
        ("[wandb, csv]", ["samlit.tracking.Wandb", "samlit.run.loggers.Csv"]),
        ("lightning.pytorch.loggers.CSVLogger", ["lightning.pytorch.loggers.CSVLogger"]),
        ("{class_path: wandb, init_args: {project: cells}}", ["samlit.tracking.Wandb"]),
    ],
)
def test_loggers_have_short_names(typed, class_paths):
    (word,) = arguments.read(["--trainer.logger", typed]).words
    in_recipe = recipe.resolve({"trainer": {"logger": recipe.yaml.safe_load(typed)}})["trainer"]["logger"]
    assert recipe.yaml.safe_load(word.removeprefix("--trainer.logger=")) == in_recipe
    found = in_recipe if isinstance(in_recipe, list) else [in_recipe]
    assert [item["class_path"] for item in found] == class_paths
    assert "project" not in typed or found[0]["init_args"] == {"project": "cells"}


@pytest.mark.parametrize("typed", ["false", "true", "null"])
def test_no_logger_is_no_name(typed):
    assert arguments.read(["--trainer.logger", typed]).words == [f"--trainer.logger={typed}"]


def test_what_is_wrong_with_a_loggers_name_is_one_line(monkeypatch):
    with pytest.raises(UsageError, match=r"--trainer\.logger: no logger is called 'tensorbord'; did you mean 'tensor"):
        arguments.read(["--trainer.logger", "tensorbord"])
    with pytest.raises(UsageError, match=r"trainer\.logger\[1\]: no logger is called 'cvs'; did you mean 'csv'"):
        recipe.resolve({"trainer": {"logger": ["wandb", "cvs"]}})
    monkeypatch.setattr(recipe, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="'tensorboard', which is not installed: pip install tensorboard"):
        recipe.resolve({"trainer": {"logger": "tensorboard"}})
