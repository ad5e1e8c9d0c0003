"""The report: history, pictures, baselines and the table, over an interruption too."""

import json

from PIL import Image

from samlit.run import report as module_of_report
from samlit.run.checkpointing import Checkpoints
from samlit.run.progress import ProgressBar
from samlit.run.report import Report
from tests import fitting

pytestmark = fitting.lightning_warnings


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_a_run_ends_with_a_table_and_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    first = Report(examples=2)
    callbacks = [first, Checkpoints(), ProgressBar(0)]
    fitting.trainer(tmp_path, callbacks, enable_progress_bar=True).fit(fitting.module(), fitting.data())
    out, err = capsys.readouterr()

    rows = history(tmp_path)
    assert rows == first.history
    assert [(row["step"], "val/miou" in row) for row in rows] == [(0, True), (1, False), (2, False), (2, True)]
    passes = {f"train/pass_0{n}/{name}" for n in range(1, 5) for name in ("loss", "miou")}
    assert set(rows[1]) == {"step", "epoch", "seconds", "train/loss", "train/miou", *passes}
    for name in ("examples", "extremes", "calibration", "learning_curve", "passes", "example"):
        Image.open(tmp_path / f"{name}.png").verify()

    report = json.loads((tmp_path / "report.json").read_text())
    assert report["columns"] == [
        "mIoU", "samlit", "best of three", "before training", "before, best of three", "GrabCut", "the box itself",
    ]  # fmt: skip
    assert [row[0] for row in report["rows"]] == ["1 click", "2 clicks", "box"]
    assert [row[5] is None for row in report["rows"]] == [True, True, False]
    assert report["rows"][2][5] > 0.7
    # A full bar is its box; a disc fills about three quarters.
    assert 0.7 < report["rows"][2][6] < 1
    assert (report["best"]["masks"], report["best"]["images"]) == (6, 3)
    kept = (tmp_path / "report.txt").read_text()
    table = [line.replace("|", " ").split() for line in kept.splitlines() if line.startswith("|")]
    assert table.pop(1)[0].startswith("--")
    assert [row[:2] for row in table][1:3] == [["1", "click"], ["2", "clicks"]]
    # The same, in the look that all tables have.
    assert [line.split() for line in out.splitlines()[1 : len(table) + 1]] == table
    assert out.partition("held-out")[2] == kept.partition("held-out")[2]
    assert f"--weights {tmp_path}/best.ckpt --point " in out
    assert "samlit: step 2/2  loss" in err
    assert "samlit: held-out before training: 1_click" in err

    def never(*_, **__):
        raise AssertionError("the baseline is computed again")

    monkeypatch.setattr(module_of_report, "iou_from_boxes", never)
    # The run had gone on for a while before it was killed.
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 3}\n')
    second = Report(examples=2)
    fitting.trainer(tmp_path, [second, Checkpoints()], max_steps=4).fit(
        fitting.module(), fitting.data(), ckpt_path=tmp_path / "last.ckpt"
    )
    assert (second.before, second.compared) == (first.before, first.compared)
    again = history(tmp_path)
    assert again[: len(rows)] == rows
    assert again == second.history
    assert [row["step"] for row in again[len(rows) :]] == [3, 4, 4]


def test_without_validation_it_says_so(tmp_path, capsys):
    fitting.trainer(tmp_path, [Report(), Checkpoints()]).fit(fitting.module(), fitting.data(validation=False))
    out = capsys.readouterr().out
    assert "nothing was validated" in out
    assert f"{tmp_path}/last.ckpt" in out


def test_any_names_make_a_table():
    report = Report()
    report.best = {"scores": {"edges": 0.5, "recall_at_10": 0.25, "text": 0.6, "text_best": 0.75}}
    assert report.table() == (
        ["mIoU", "samlit", "best of three"],
        [["edges", 0.5, None], ["recall at 10", 0.25, None], ["text", 0.6, 0.75]],
    )


def test_a_picture_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    report = Report()
    (tmp_path / "file").write_text("")
    trainer = fitting.trainer(tmp_path / "file" / "folder", [])
    for _ in range(2):
        assert not report._write(trainer, "a.png", lambda path: path.write_text("a"))
    assert capsys.readouterr().err.count("training goes on") == 1
