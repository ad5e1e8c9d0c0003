"""`samlit evaluate`: numbers, tables and files of a task on any data, gone on with after a break."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from samlit import checkpoints, cli
from samlit.errors import UsageError
from samlit.evaluation import evaluate
from samlit.evaluation.answers import Answers
from samlit.loading import frames
from samlit.loop import drive
from samlit.source import Sample
from samlit.structures import Scene
from samlit_tasks.boxes import Boxes
from tests.clicking import samples
from tests.test_suite import discs


class Pictures:
    """Samples in memory; counts how often each was asked for, and breaks off where it is told to."""

    def __init__(self, made: list[Sample], breaks: int | None = None) -> None:
        self.made, self.breaks, self.asked = made, breaks, list[int]()

    def prepare(self, progress: Any) -> None:
        """Nothing."""

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: int) -> Sample:
        if index == self.breaks:
            raise KeyboardInterrupt
        self.asked.append(index)
        return self.made[index]


def many() -> list[Sample]:
    return samples(sizes=((50, 90), (130, 61), (64, 64), (40, 47), (33, 90)), count=2)


def test_numbers_are_those_of_the_task_image_by_image(checkpoint: Path) -> None:
    net, side = checkpoints.load(str(checkpoint))
    net.eval()
    made, ious = many(), []
    for sample in made:
        batch = frames.pack([frames.frame(sample, side)])
        batch.samples = [sample]
        with torch.no_grad():
            ious.append(drive(Boxes(), Scene(batch, net.prompt_types), Answers(net, batch))["box_best"])
    expected = float(torch.cat(ious).mean())
    for batch_size in (1, 3):
        found = evaluate.evaluate(net, side, Boxes(), Pictures(made), "here", batch_size)
        assert found.numbers["box_best"] == pytest.approx(expected, abs=1e-5)
        assert (found.data, found.images, found.masks) == ("here", 5, 10)
    assert evaluate.evaluate(net, side, Boxes(), Pictures(made), limit=2).numbers["box_best"] == pytest.approx(
        float(torch.cat(ious[:2]).mean()), abs=1e-5
    )


def test_what_is_broken_off_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    net, side = checkpoints.load(str(checkpoint))
    net.eval()
    whole = evaluate.evaluate(net, side, Boxes(), Pictures(many()))
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(net, side, Boxes(), Pictures(many(), breaks=3), folder=tmp_path)
    more = Pictures(many())
    found = evaluate.evaluate(net, side, Boxes(), more, folder=tmp_path)
    assert more.asked == [3, 4]
    assert found.numbers == pytest.approx(whole.numbers, abs=1e-6)
    assert (found.images, found.masks) == (5, 10)
    again = Pictures(many())
    assert evaluate.evaluate(net, side, Boxes(), again, folder=tmp_path).numbers == pytest.approx(found.numbers)
    assert again.asked == []
    with pytest.raises(UsageError, match=r"done\.pt is of another evaluation: give another --out, or remove it"):
        evaluate.evaluate(net, side, Boxes(), Pictures(many()), limit=2, folder=tmp_path)
    net.decoder.requires_grad_(False)
    next(iter(net.decoder.parameters())).add_(1e-3)
    with pytest.raises(UsageError, match="of another evaluation"):
        evaluate.evaluate(net, side, Boxes(), Pictures(many()), folder=tmp_path)
    (tmp_path / "done.pt").write_bytes(b"not one")
    with pytest.raises(UsageError, match=r"done\.pt is damaged \(.*\): remove it to begin anew"):
        evaluate.evaluate(net, side, Boxes(), Pictures(many()), folder=tmp_path)


def test_no_images_is_said(checkpoint: Path) -> None:
    net, side = checkpoints.load(str(checkpoint))
    with pytest.raises(UsageError, match="nowhere: there are no images in it"):
        evaluate.evaluate(net, side, Boxes(), Pictures([]), "nowhere")


def test_the_command_leaves_numbers_and_pictures(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    discs(tmp_path / "one")
    discs(tmp_path / "two", 1)
    data = ["--data", f"folder:{tmp_path / 'one'}", f"folder:{tmp_path / 'two'}"]
    words = ["evaluate", "--task", "points", "--task.clicks", "[1, 3]", "--weights", str(checkpoint), *data]
    assert cli.main([*words, "--out", str(tmp_path / "out"), "--pictures", "1"]) == 0
    said = capsys.readouterr().out
    assert "1_click" in said
    assert "2 images, 4 masks" in said
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["task"] == "points"
    assert found["keys"]["clicks"] == [1, 3]
    assert [one["masks"] for one in found["data"]] == [4, 2]
    numbers = [one["numbers"]["3_clicks"] for one in found["data"]]
    assert found["mean"]["3_clicks"] == pytest.approx(sum(numbers) / 2)
    assert "mean" in said
    assert f"{sum(numbers) / 2:.3f}" in said
    assert len(list((tmp_path / "out").glob("*/pictures/00000.png"))) == 2
    # The same again costs nothing, and another key is another evaluation.
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    words[4] = "[1]"
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "is of another evaluation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "evaluate needs a task: --task NAME (known: "),
        ("--task point", "did you mean 'points'?"),
        ("--task points", "evaluate needs --weights"),
        ("--task points --weights CHECKPOINT", "evaluate needs --data"),
        ("--task points --weights CHECKPOINT --data folder:X --limit 0", "--limit 0: one at least"),
        ("--task points --weights CHECKPOINT --data folder:X --lmit 3", "there is no option '--lmit'; did you mean"),
        ("--task points --weights CHECKPOINT --data X", "X"),
        ("--task points --weights CHECKPOINT --data folder:nowhere", "nowhere"),
        ("--task points --weights CHECKPOINT --data DATA --task.click 3", "did you mean '--task.clicks'?"),
        ("--task points --weights CHECKPOINT --data DATA --task.clicks three", "clicks"),
        ("--task points --weights CHECKPOINT --data DATA --task.clicks [0]", "clicks"),
        ("--task points --weights gone.ckpt --data DATA", "gone.ckpt"),
        ("--task interactive --weights CHECKPOINT --data DATA", "has no metric: it asks, and judges nothing"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: str, says: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    discs(tmp_path / "one", 1)
    typed = words.replace("CHECKPOINT", str(checkpoint)).replace("DATA", f"folder:{tmp_path / 'one'}").split()
    assert cli.main(["evaluate", *typed]) in (1, 2)
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("listing")]
    assert len(error) == 1, error
    assert error[0].startswith("samlit: ")
    assert says in error[0]


def test_help_has_the_tasks_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "--task", "clicks", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--task.most" in out
    assert "--weights NAME|FILE" in out


def test_a_number_that_nothing_is_known_of_is_told_as_none(capsys: pytest.CaptureFixture[str]) -> None:
    nan = float("nan")
    done = [
        evaluate.Evaluation("a", 1, 1, 1.0, {"ap": 0.5, "ap_large": nan, "ap_rare": nan}),
        evaluate.Evaluation("b", 1, 1, 1.0, {"ap": 0.3, "ap_large": 0.25, "ap_rare": nan}),
    ]
    mean = evaluate.mean(done)
    assert (mean["ap"], mean["ap_large"]) == (pytest.approx(0.4), 0.25), "no data set of those that have it not"
    assert mean["ap_rare"] != mean["ap_rare"]
    evaluate.show(done)
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.split()}
    assert rows["ap_large"] == ["-", "0.250", "0.250"]
    assert rows["ap_rare"] == ["-", "-", "-"]
    assert json.loads(json.dumps(evaluate._written(mean), allow_nan=False)) == {
        "ap": pytest.approx(0.4), "ap_large": 0.25, "ap_rare": None,
    }  # fmt: skip
