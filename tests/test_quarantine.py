"""What is damaged is left out, counted, listed, and nothing takes its place."""

import json
import pickle

import numpy as np
import pytest
import torch

from samlit.datamodule import SamData
from samlit.errors import SamlitError
from samlit.faults import CAUSES, Damaged, blaming
from samlit.loading.images import Encoded
from samlit.loading.loader import Loader
from samlit.loading.quarantine import Quarantine
from samlit.masks import rle
from samlit.source import Sample, Source
from tests.fitting import lightning_warnings, module, trainer

SIDE = 16
pytestmark = lightning_warnings


class Partly(Source):
    """Images that show their number, some of them damaged in one way or another."""

    def __init__(self, count=20, bad=(3, 7, 8), known=()):
        self.count, self.bad, self.known = (
            count,
            dict.fromkeys(bad, "raised") if not isinstance(bad, dict) else bad,
            known,
        )

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        how = self.bad.get(index)
        image = np.full((8, 16, 3), index, np.uint8)
        mask = rle.encode(np.ones((8, 8)) if how == "size" else np.eye(8, 16))
        match how:
            case "raised":
                raise ValueError(f"image {index}\nis a picture of nothing")
            case "cause":
                raise Damaged("json", "not JSON", "mine", "sa_000001.tar")
            case "file":
                raise FileNotFoundError("it was here a moment ago")
            case "image":
                image = Encoded(b"\xff\xd8 no more", (8, 16))
            case "rle":
                mask = rle.Rle((8, 16), "~~~")
        return Sample(f"sample {index}", image, (mask,), shard="sa_000002.tar")

    def faults(self):
        return self.known


def quarantine(folder, **others):
    return Quarantine(folder / "run" / "quarantine.jsonl", **({"most": 1.0, "told": False} | others))


def listed(folder):
    file = folder / "run" / "quarantine.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize("workers", [0, 2])
def test_every_way_of_being_damaged_is_left_out_and_listed(tmp_path, workers):
    bad = {2: "raised", 5: "cause", 6: "file", 9: "image", 11: "rle"}
    held = quarantine(tmp_path)
    loader = Loader(Partly(bad=bad), SIDE, 3, workers=workers, training=False, max_area=1.0, quarantine=held)
    seen = [key for batch in loader for key in batch.keys]
    assert seen == [f"sample {i}" for i in range(20) if i not in bad]
    assert held.seen == 20
    assert dict(held.counts) == {"other": 1, "json": 1, "unreadable": 1, "image": 1, "rle": 1}
    rows = {row["cause"]: row for row in listed(tmp_path)}
    assert rows["json"] == {"shard": "sa_000001.tar", "key": "mine", "cause": "json", "message": "not JSON"}
    assert rows["other"]["key"] == "number 2"
    assert "\n" not in rows["other"]["message"]
    assert rows["unreadable"]["message"] == "it was here a moment ago"
    for cause, key in (("image", "sample 9"), ("rle", "sample 11")):
        assert (rows[cause]["shard"], rows[cause]["key"]) == ("sa_000002.tar", key)


def test_nothing_takes_the_place_of_what_is_left_out(tmp_path):
    whole = list(Loader(Partly(bad=()), SIDE, 4, seed=5))
    partly = list(Loader(Partly(), SIDE, 4, seed=5, quarantine=quarantine(tmp_path)))
    assert len(whole) == len(partly) == 5
    for a, b in zip(whole, partly, strict=True):
        kept = [i for i, key in enumerate(a.keys) if key not in ("sample 3", "sample 7", "sample 8")]
        assert b.keys == [a.keys[i] for i in kept]
        assert torch.equal(b.image, a.image[kept])


def test_a_batch_of_which_nothing_is_left_is_a_blank_image(tmp_path):
    held = quarantine(tmp_path)
    batches = list(Loader(Partly(4, bad=(0, 1)), SIDE, 2, training=False, quarantine=held))
    assert [batch.keys for batch in batches] == [[""], ["sample 2", "sample 3"]]
    assert batches[0].image.shape == (1, 3, SIDE, SIDE)
    assert not batches[0].image.any()
    assert len(batches[0].masks) == 0
    assert (held.seen, held.counts.total()) == (4, 2)


def test_without_a_list_the_first_one_is_an_error():
    with pytest.raises(Damaged, match=r"^number 3: image 3 is a picture of nothing$"):
        list(Loader(Partly(), SIDE, 1, training=False))


def test_it_is_listed_once_in_all_epochs_and_runs(tmp_path):
    for _ in range(2):
        loader = Loader(Partly(), SIDE, 4, quarantine=quarantine(tmp_path))
        for _ in range(2):
            list(loader)
    assert sorted(row["key"] for row in listed(tmp_path)) == ["number 3", "number 7", "number 8"]


def test_ranks_list_it_once_between_them(tmp_path):
    ranks = [quarantine(tmp_path) for _ in range(3)]
    for held in (*ranks, *ranks):
        held.add([Damaged("rle", "one", "a"), Damaged("json", "one", "a")], 2)
    assert [row["cause"] for row in listed(tmp_path)] == ["rle", "json"]


def test_a_training_goes_on_without_it(tmp_path):
    source = Partly(8, bad=(2, 5))
    data = SamData(source, None, 32, 2, max_damaged=0.5)
    fit = trainer(tmp_path / "run", [], max_steps=6, num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match="samples were left out so far"):
        fit.fit(module(), data)
    assert fit.global_step == 6
    assert sorted(row["key"] for row in listed(tmp_path)) == ["number 2", "number 5"]


def test_a_training_ends_with_the_list_where_it_is_too_much(tmp_path):
    fit = trainer(tmp_path / "run", [], max_steps=60, num_sanity_val_steps=0)
    data = SamData(Partly(8, bad=(2, 5)), None, 32, 2, max_damaged=0.1)
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(SamlitError, match=r"^2 of 8 samples cannot be used"),
    ):
        fit.fit(module(), data)
    assert fit.global_step < 5
    assert sorted(row["key"] for row in listed(tmp_path)) == ["number 2", "number 5"]


def test_a_line_that_a_crash_has_cut_spoils_no_other(tmp_path):
    held = quarantine(tmp_path)
    held.add([Damaged("rle", "one", "a"), Damaged("rle", "two", "b")], 2)
    file = tmp_path / "run" / "quarantine.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    again = quarantine(tmp_path)
    again.add([Damaged("rle", "two", "b"), Damaged("json", "three", "c")], 2)
    good = []
    for line in file.read_text().splitlines():
        try:
            good.append(json.loads(line)["key"])
        except ValueError:
            continue
    assert good == ["a", "b", "c"]


def test_too_much_of_it_ends_the_run_with_the_list(tmp_path):
    held = quarantine(tmp_path, most=0.1, judged_from=10)
    held.add([Damaged("rle", "x", "a")], 1)  # one of one, too early to judge
    held.add([Damaged("empty", "x", f"empty {i}") for i in range(5)], 9)
    words = (
        r"^2 of 11 samples cannot be used \(empty: 5, rle: 1, image: 1\), more than max_damaged: 0\.1 allows; they are"
    )
    with pytest.raises(SamlitError, match=words + r" listed in \S+quarantine\.jsonl$"):
        held.add([Damaged("image", "y", "b")], 1)
    assert [row["key"] for row in listed(tmp_path)] == ["a", *(f"empty {i}" for i in range(5)), "b"]


def test_a_person_is_told_at_once_and_then_when_it_has_doubled(tmp_path):
    held = quarantine(tmp_path, told=True)
    held.report()
    held.add([], 9)
    one, two = Damaged("rle", "x", "a"), Damaged("json", "x", "b")
    with pytest.warns(UserWarning, match=r"^1 of 10 samples were left out so far \(rle: 1\), see \S+$"):
        held.add([one], 1)
    held.report()
    with pytest.warns(UserWarning, match=r"^2 of 11 "):
        held.add([two], 1)
    held.add([one], 1)
    with pytest.warns(UserWarning, match=r"^3 of 12 .* \(rle: 2, json: 1\)"):
        held.report()  # at the end of an epoch, whatever there is
    other = quarantine(tmp_path)
    other.add([one], 10)
    other.report()


def test_what_a_source_knows_is_judged_before_anything_is_read(tmp_path):
    known = [Damaged("cut", "the end is missing", shard="sa_000003.tar")]
    data = SamData(Partly(20, known=known), image_size=SIDE, max_damaged=0.04)
    held = quarantine(tmp_path, most=0.04, told=True)
    with pytest.raises(SamlitError, match=r"^1 of 21 samples cannot be used \(cut: 1\)"):
        held.known(data.source.faults(), 20)
    roomy = quarantine(tmp_path, most=0.05, told=True)
    with pytest.warns(UserWarning, match=r"^beside 20 samples there is what cannot be used \(cut: 1\), see"):
        roomy.known(data.source.faults(), 20)
    roomy.add([], 1000)  # what is known is no part of what is seen
    other = quarantine(tmp_path, most=0.05)
    other.known(data.source.faults(), 20)  # another rank: nothing is listed or told twice
    assert [row["shard"] for row in listed(tmp_path)] == ["sa_000003.tar"]


def test_a_fault_comes_through_pickle_with_its_names():
    fault = pickle.loads(pickle.dumps(Damaged("rle", "bad", "a", "b.tar")))
    assert (fault.cause, fault.message, fault.key, fault.shard, str(fault)) == (
        "rle",
        "bad",
        "a",
        "b.tar",
        "b.tar: a: bad",
    )
    with pytest.raises(KeyError):
        Damaged("nonsense", "bad")
    assert all(CAUSES.values())


def test_names_are_given_where_there_are_none():
    with pytest.raises(Damaged) as caught, blaming("outer", "outer.tar"), blaming("inner"):
        raise Damaged("size", "too small")
    assert (caught.value.key, caught.value.shard) == ("inner", "outer.tar")
    with pytest.raises(Damaged) as caught, blaming("k", "s.tar"):
        raise ValueError("anything")
    assert (caught.value.cause, str(caught.value)) == ("other", "s.tar: k: anything")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_damaged": 2.0}, "max_damaged: a share from 0 to 1, not 2.0"),
        ({"epoch_size": 0}, "epoch_size: one image at least, not 0"),
        ({"shuffle_buffer": 0}, "shuffle_buffer: one image at least, not 0"),
    ],
)
def test_keys_that_make_no_sense(given, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SamData(Partly(), **given)
