"""Clicks until a mask is good: whom is asked about, how often, and how it is counted."""

import pytest
import torch

from samlit.loop import drive
from samlit_tasks.clicks import Clicks, Counted
from tests.clicking import Noisy, samples, scene


def test_clicks_end_where_a_mask_is_good_and_their_numbers_are_counted():
    view = scene(samples(count=4))
    model = Noisy(view, 3.0)
    task = Clicks((0.5, 0.7), most=6)
    result = drive(task, view, model)
    ious = result["ious"]
    assert len(ious) == 8
    assert all(max(one[:-1], default=0) < 0.7 for one in ious)
    assert all(one[-1] >= 0.7 or len(one) == 6 for one in ious)
    assert {len(one) for one in ious} > {6} or len({len(one) for one in ious}) > 1, "masks of several lengths"
    assert [len(asked) for asked in model.asked] == [sum(len(one) > n for one in ious) for n in range(len(model.asked))]
    # Each mask's own answers are fed back to it, though others have left.
    for before, said, asked in zip(model.asked, model.said, model.asked[1:], strict=False):
        fed = {int(k): said.pick(said.best())[r] for r, k in enumerate(before.target)}
        for r, k in enumerate(asked.target.tolist()):
            assert torch.equal(asked.given["masks"].values[r, 0], fed[k])
            assert torch.equal(
                asked.given["points"].values[r, :-1], before.given["points"].values[list(before.target).index(k)]
            )
    assert [asked.multimask for asked in model.asked] == [True] + [False] * (len(model.asked) - 1)


def test_the_metric_of_clicks_against_counting_by_hand(tmp_path):
    metric = Counted((0.8, 0.9), 4)
    metric.update({"ious": [[0.5, 0.85, 0.95], [0.1, 0.2, 0.3, 0.4]], "seconds": 3.5})
    metric.update({"ious": [[0.9]], "seconds": 0.5})
    metric.update({"ious": [], "seconds": 9.0})
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found["noc_80"] == pytest.approx((2 + 4 + 1) / 3)
    assert found["noc_90"] == pytest.approx((3 + 4 + 1) / 3)
    assert found["failures_80"] == found["failures_90"] == 1
    curve = [found[name] for name in ("1_click", "2_clicks", "3_clicks", "4_clicks")]
    assert curve == pytest.approx([(0.5 + 0.1 + 0.9) / 3, (0.85 + 0.2 + 0.9) / 3, (0.95 + 0.3 + 0.9) / 3, 2.25 / 3])
    assert found["seconds_per_click"] == pytest.approx(4.0 / 8)
    task = Clicks((0.8, 0.9), most=4)
    task.plot(found, metric, tmp_path)
    assert (tmp_path / "clicks.png").stat().st_size > 5000
    nothing = Counted((0.8,), 2).judge([])
    assert nothing["noc_80"] == nothing["seconds_per_click"] == 0


def test_a_target_reached_by_the_last_click_is_a_failure_as_ritm_counts():
    assert Counted((0.5,), 3).judge([{"ious": [[0.1, 0.2, 0.9]], "seconds": 1}])["failures_50"] == 1


@pytest.mark.parametrize(
    "keys", [{"targets": ()}, {"targets": (0.9, 0.8)}, {"targets": (1.2,)}, {"most": 0}, {"until": 0.5}]
)
def test_clicks_refuses_what_makes_no_sense(keys):
    with pytest.raises(ValueError, match=next(iter(keys))):
        Clicks(**keys)
