"""The paper's 23 data sets: the catalogue, which are found on disk, and `samlit evaluate --sets`."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from samlit import cli
from samlit.errors import UsageError
from samlit.evaluation import suite
from samlit.loading import specs
from samlit.loading.sampled import Sampled
from samlit.masks import rle
from tests.documents import ROOT
from tests.unpacked import UNPACKED


def test_the_catalogue_has_the_papers_numbers():
    assert len(suite.SUITE) == 23
    assert sum(listed.images for listed in suite.SUITE.values()) == 40_188
    assert sum(listed.masks for listed in suite.SUITE.values()) == 172_653
    for name, listed in suite.SUITE.items():
        assert name == name.lower()
        assert listed.address.startswith(("http://", "https://"))
        assert len(listed.summary) <= 100
        assert f"{listed.masks:,} masks" in listed.facts


def test_list_sets_tells_them(capsys):
    assert cli.main(["list", "sets", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(suite.SUITE)
    assert rows[1]["licence"] == "CC0"
    assert cli.main(["list", "sets"]) == 0
    assert "licence: see there" in capsys.readouterr().out


def discs(folder, count=2):
    """A folder of images and label maps."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    y, x = np.mgrid[:40, :60]
    for number in range(count):
        labels = np.zeros((40, 60), np.uint8)
        labels[(x - 15) ** 2 + (y - 20) ** 2 < 80] = 1
        labels[10:25, 35 + number : 50] = 2
        Image.fromarray(np.repeat((labels * 90)[..., None], 3, 2)).save(folder / "images" / f"{number}.png")
        Image.fromarray(labels).save(folder / "masks" / f"{number}.png")


def read(found):
    source, _ = specs.build(specs.read(found.specs, found.settings))
    source.prepare()
    return [source[index] for index in range(len(source))]


@pytest.mark.parametrize("name", UNPACKED)
def test_a_data_set_is_read_as_it_is_unpacked(tmp_path, name):
    make, masks = UNPACKED[name]
    make(tmp_path / name)
    (found,) = suite.on_disk(tmp_path)
    assert found.name == name
    samples = read(found)
    assert [len(sample.masks) for sample in samples] == masks
    for sample in samples:
        assert sample.pixels().shape[:2] == sample.size
        assert all(mask.size == sample.size for mask in sample.masks)
        assert all(0 < rle.area(mask) < np.prod(mask.size) for mask in sample.masks)


def test_two_are_not_read_as_they_are_unpacked():
    assert [name for name, listed in suite.SUITE.items() if not listed.parts] == ["gtea", "ibd"]
    assert {name for name, listed in suite.SUITE.items() if listed.parts} == UNPACKED.keys()


def test_the_documents_tell_what_is_looked_for():
    text = (ROOT / "docs/tasks.md").read_text()
    for name, listed in suite.SUITE.items():
        needs = ", ".join(f"`{need}`" for need in dict.fromkeys(need for part in listed.parts for need in part.needs))
        row = f"| `{name}` | {needs} | {'yes' if listed.drawn else ''} |"
        assert (row in text) == bool(listed.parts), row


def test_what_is_hidden_or_a_hole_or_no_class_is_no_mask(tmp_path):
    for name in ("ade20k", "visor", "cityscapes", "woodscape"):
        UNPACKED[name][0](tmp_path / name)
    found = {one.name: read(one) for one in suite.on_disk(tmp_path)}
    assert [rle.area(mask) for mask in found["ade20k"][0].masks] == [32 * 4] * 2
    hand, pan = found["visor"][0].masks
    assert rle.area(hand) == pytest.approx(800 * 600 - 200 * 200, rel=0.01)
    assert rle.area(pan) == pytest.approx(200 * 200, rel=0.02)
    assert found["visor"][0].phrases == ("left hand", "pan")
    assert found["visor"][1].masks == found["visor"][0].masks  # unpacked, and in an archive
    assert sorted(rle.box(mask)[0] for mask in found["cityscapes"][0].masks) == [9, 21, 27, 33]
    assert found["woodscape"][0].phrases == ("car", "road surface")


def test_as_many_images_are_drawn_as_the_paper_drew(tmp_path):
    for name in ("bbbc038v1", "ppdls"):
        UNPACKED[name][0](tmp_path / name)
    assert [(one.name, one.images) for one in suite.on_disk(tmp_path)] == [("bbbc038v1", 227), ("ppdls", None)]
    source, _ = specs.build(specs.read(["shapes"], ["count=9", "size=32"]))
    drawn = Sampled(source, 4)
    assert len(drawn) == 4
    keys = [drawn[index].key for index in range(4)]
    every = [source[index].key for index in range(9)]
    assert keys == sorted(keys, key=every.index)
    assert len(set(keys)) == 4
    assert keys == [sample.key for sample in Sampled(source, 4)]
    assert keys != every[:4]
    assert len(Sampled(source, 20)) == 9
    with pytest.raises(IndexError):
        drawn[4]


def test_data_sets_are_found_in_a_layout_of_ours(tmp_path):
    discs(tmp_path / "doors")
    UNPACKED["lvis"][0](tmp_path / "lvis")
    for name in ("bbbc038v1", "lvis"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "annotations.json").write_text("{}")
    (tmp_path / "ovis").mkdir()
    (tmp_path / "ovis" / "sa_000000.tar").write_bytes(b"")
    (tmp_path / "gtea").mkdir()
    (tmp_path / "else").mkdir()
    found = {one.name: one.specs for one in suite.on_disk(tmp_path)}
    assert found == {
        "bbbc038v1": (f"coco:{tmp_path}/bbbc038v1/annotations.json",),
        "doors": (f"folder:{tmp_path}/doors",),
        "lvis": (f"coco:{tmp_path}/lvis/lvis_v0.5_val.json",),
        "ovis": (f"sa1b:{tmp_path}/ovis",),
    }


def test_what_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(UsageError, match="there is no such folder"):
        suite.on_disk(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"none of the paper's data sets is there.*bbbc038v1/annotations\.json"):
        suite.on_disk(tmp_path)
    with pytest.raises(UsageError, match="--set is for the sources of --data"):
        cli._run(["evaluate", "--task", "boxes", "--weights", "w", "--sets", str(tmp_path), "--set", "empty=true"])


def test_sizes_that_differ_from_the_papers_are_told():
    assert suite.differences("gtea", 652, 1_208) == ""
    assert suite.differences("gtea", 2, 4) == "2 images and 4 masks, the paper's part has 652 and 1,208"


def test_no_more_images_are_judged_than_the_paper_drew(tmp_path, checkpoint, capsys, monkeypatch):
    discs(tmp_path / "sets" / "doors", 5)
    monkeypatch.setitem(suite.SUITE, "doors", replace(suite.SUITE["doors"], images=3, masks=6))
    words = ["--task", "boxes", "--weights", str(checkpoint), "--sets", str(tmp_path / "sets"), "--json"]
    assert cli.main(["evaluate", *words]) == 0
    (found,) = json.loads(capsys.readouterr().out)["data"]
    assert (found["data"], found["images"], found["masks"]) == ("doors", 3, 6)


def test_the_sets_on_disk_are_evaluated_and_averaged(tmp_path, checkpoint, capsys):
    discs(tmp_path / "sets" / "doors")
    discs(tmp_path / "sets" / "streets", 1)
    words = ["--task", "boxes", "--weights", str(checkpoint), "--sets", str(tmp_path / "sets")]
    assert cli.main(["evaluate", *words, "--json", str(tmp_path / "found.json")]) == 0
    out = capsys.readouterr().out
    assert "doors: 2 images and 4 masks, the paper's part has 10,000 and 10,000" in out
    assert "2 of the paper's 23 data sets; not there: ade20k, " in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert [one["data"] for one in found["data"]] == ["doors", "streets"]
    boxes = [one["numbers"]["box"] for one in found["data"]]
    assert found["mean"]["box"] == pytest.approx(sum(boxes) / 2)
    # The same through a source of one's own naming, beside them.
    words += ["--data", f"folder:{tmp_path / 'sets' / 'doors'}", "--limit", "1"]
    assert cli.main(["evaluate", *words]) == 0
    assert "the paper's part has" not in capsys.readouterr().out
    # On stdout a program finds the numbers and nothing else.
    assert cli.main(["evaluate", *words, "--json", "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads((tmp_path / "out" / "results.json").read_text())
    assert f"samlit: saved to {tmp_path}/out/results.json" in err
