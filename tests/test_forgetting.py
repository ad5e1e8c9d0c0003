"""The forgetting meter: a second validation with numbers of its own, which choose nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from samlit.datamodule import SamData
from samlit.masks import rle
from samlit.metrics import mask_iou
from samlit.run.report import Report
from samlit.structures import PromptSet, Ragged
from samlit_tasks._automatic import Automatic
from samlit_tasks.boxes import Boxes
from samlit_tasks.everything import Everything
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


class Large(fitting.Discs):
    """With masks so large that a model that has learned nothing finds some of them."""

    def __getitem__(self, index):
        y, x = np.mgrid[: self.side - 8, : self.side]
        masks = np.stack([x + y >= index, x * 3 > y + 20, (x - y) % 9 < 3 + index])
        return replace(super().__getitem__(index), masks=tuple(rle.encode_many(masks)), phrases=())


def stirred(tasks):
    """A module whose masks differ from point to point."""
    torch.manual_seed(3)
    module = fitting.module(tasks)
    with torch.no_grad():
        for parameter in module.net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


@torch.no_grad()
def plainly(module, batch):
    """Of each true mask the most IoU with a mask that any point of a 4 x 4 grid is answered with, in the frame."""
    best = []
    embedding = module.net.embed(batch.image, batch.sizes)
    for image, (rows, columns) in enumerate(batch.sizes.tolist()):
        points = [[[(x + 0.5) / 4 * columns, (y + 0.5) / 4 * rows, 1.0]] for y in range(4) for x in range(4)]
        asked = PromptSet(torch.full((16,), image), {"points": Ragged.of(torch.tensor(points))}, multimask=True)
        answer = module.net.answer(embedding, asked, (32, 32))
        masks = (answer.full(answer.logits) > 0).flatten(0, 1)[:, :rows, :columns]
        for truth in batch.masks[batch.image_index == image]:
            best.append(mask_iou(masks, truth[:rows, :columns]).max())
    return torch.stack(best)


def test_everything_mode_is_a_validation_like_others_judged_in_the_frame(tmp_path):
    options = Automatic(points_per_side=4, points_per_batch=6, pred_iou_thresh=None, box_nms_thresh=1.0)
    task = Everything(Automatic(**{**vars(options), "stability_score_thresh": None}))
    module, data = stirred([Boxes(), task]), SamData(fitting.Discs(4), Large(3), 32, 2)
    data.setup("fit")
    best = torch.cat([plainly(module, batch) for batch in data.val_dataloader()])
    assert len(best) == 9
    assert (best >= 0.5).float().mean() not in (0, 1), "there is something to tell apart"
    steps = torch.arange(10) * 0.05 + 0.5
    trainer = fitting.trainer(tmp_path, [])
    trainer.validate(module, data, verbose=False)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["val/average_recall"] == pytest.approx(float((best[:, None] >= steps).double().mean()))
    assert logged["val/recall_50"] == pytest.approx(float((best >= 0.5).double().mean()))
    assert logged["val/masks"] > 10
    shares = [value for name, value in logged.items() if name not in ("val/masks", "val/miou", "val/iou_calibration")]
    assert "masks" not in module.scores
    assert logged["val/miou"] == pytest.approx(sum(shares) / len(shares), abs=1e-6), "a count is no share"


def test_a_fit_with_everything_mode_draws_and_reports(tmp_path):
    module = fitting.module([Boxes(), Everything(Automatic(points_per_side=2, pred_iou_thresh=None))])
    callbacks = [Report(examples=1, baseline=False)]
    trainer = fitting.trainer(tmp_path, callbacks, max_steps=1, val_check_interval=1)
    data = SamData(fitting.Discs(4), fitting.Discs(3), 32, 2, forgetting=fitting.Discs(5, side=26))
    trainer.fit(module, data)
    rows = [row[0] for row in json.loads((tmp_path / "report.json").read_text())["rows"]]
    assert "average recall" in rows
    assert "forgetting/average recall" in rows
    assert not any("masks" in row for row in rows)
