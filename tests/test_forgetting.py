"""The forgetting meter: a second validation with numbers of its own, which choose nothing."""

import json

import pytest
import torch

from samlit.datamodule import SamData
from samlit.report import Report
from tests import fitting

pytestmark = fitting.lightning_warnings


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a meter: its folder, its module, and what was logged last."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    module = fitting.module()
    data = SamData(fitting.Discs(4), fitting.Discs(3), 32, 2, forgetting=fitting.Discs(5, side=26))
    trainer = fitting.trainer(folder, [Report(examples=1, baseline=False)], max_steps=2, val_check_interval=2)
    trainer.fit(module, data)
    return folder, module, {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_its_numbers_are_those_of_a_validation_on_it_alone(run):
    _, module, logged = run
    names = {"1_click", "2_clicks", "1_click_best", "2_clicks_best", "box", "box_best"}
    assert {f"forgetting/{name}" for name in [*names, "miou"]} <= logged.keys()
    assert module.forgetting_scores.keys() == names
    alone = fitting.module()
    alone.load_state_dict(module.state_dict())
    data = SamData(fitting.Discs(1), fitting.Discs(5, side=26), 32, 2)
    fitting.trainer(run[0], []).validate(alone, data, verbose=False)
    assert alone.scores == pytest.approx(module.forgetting_scores)
    assert not alone.forgetting_scores, "without a meter there are no numbers"
    assert module.scores != pytest.approx(module.forgetting_scores)


def test_it_neither_chooses_nor_counts_and_stands_in_the_table(run):
    folder, module, logged = run
    report = json.loads((folder / "report.json").read_text())
    assert logged["val/miou"] == pytest.approx(sum(module.scores.values()) / len(module.scores))
    assert report["best"]["miou"] == pytest.approx(logged["val/miou"])
    assert (report["best"]["masks"], report["best"]["images"]) == (6, 3), "its images are not held-out ones"
    assert [row[0] for row in report["rows"]][-1] == "forgetting/box"
    box = dict(zip(report["columns"][1:], report["rows"][-1][1:], strict=True))
    assert box["samlit"] == pytest.approx(module.forgetting_scores["box"])
    assert box["before training"] == pytest.approx(report["before"]["forgetting/box"])
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert sum("forgetting/box" in row for row in history) == 2


def test_it_goes_with_a_validation():
    with pytest.raises(ValueError, match="forgetting: goes with a validation"):
        SamData(fitting.Discs(), forgetting=fitting.Discs())
