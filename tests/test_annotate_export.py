"""`samlit annotate` without a server: the report, COCO files, and what is typed wrong."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as official
from pycocotools.coco import COCO

from samlit import cli
from samlit.annotator import changes
from samlit.annotator.store import Store
from samlit.masks import rle
from samlit_sources.coco import Coco

SIZE = (20, 30)


def square(side):
    mask = np.zeros(SIZE, bool)
    mask[2 : 2 + side, 3 : 3 + side] = True
    return mask


@pytest.fixture
def folder(tmp_path):
    """Twelve images: the first with two masks and a deleted one, the second done without any, the third with one."""
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for n in range(12):
        Image.fromarray(np.full((*SIZE, 3), n, np.uint8)).save(photos / ("sub" if n > 9 else "") / f"{n:02}.png")
    store = Store(photos, photos / "annotations")

    def make(item, op, **given):
        about = {"name": "small", "weights": "0"}
        store.apply(store.items[item], changes.parse({"op": op, **given}, SIZE), SIZE, about)

    def add(item, id_, side, **given):
        how = {"prompts": {"points": [[5, 4, 1]] * id_}, "seconds": 2.0 * id_}
        counts = rle.encode(square(side)).counts
        make(item, "add", id=id_, size=list(SIZE), counts=counts, provenance=how, **given)

    add(0, 1, 5, phrase="cart")
    add(0, 2, 7)
    add(0, 3, 9)
    make(0, "delete", id=3, revision=1)
    make(1, "done")
    add(2, 4, 3, phrase="wheel")
    make(2, "done")
    return photos


def annotate(*words):
    return cli.main(["annotate", *map(str, words)])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools
def test_coco_is_read_by_the_official_api_and_the_source(folder, tmp_path, capsys):
    file = tmp_path / "all.json"
    assert annotate("--images", folder, "--export", "coco", file) == 0
    assert "3 images, 3 masks" in capsys.readouterr().out
    read = COCO(str(file))
    names = {row["id"]: row["name"] for row in read.cats.values()}
    found = {}
    for row in read.anns.values():
        mask = read.annToMask(row).astype(bool)
        assert row["area"] == mask.sum()
        assert row["bbox"] == list(official.toBbox(row["segmentation"]))
        found[read.imgs[row["image_id"]]["file_name"], names[row["category_id"]]] = mask
    wanted = {("00.png", "cart"): 5, ("00.png", "object"): 7, ("02.png", "wheel"): 3}
    assert found.keys() == wanted.keys()
    for key, side in wanted.items():
        assert np.array_equal(found[key], square(side))
    source = Coco(str(file), images=str(folder))
    assert [list(source[n].phrases) for n in range(len(source))] == [["cart", "object"], [], ["wheel"]]


def test_images_that_are_done_alone_and_some_set_aside(folder, tmp_path, capsys):
    file = tmp_path / "some.json"
    assert annotate("--images", folder, "--export", "coco", file, "--only-done") == 0
    assert [row["file_name"] for row in json.loads(file.read_text())["images"]] == ["01.png", "02.png"]
    parts = []
    for _ in range(2):
        assert annotate("--images", folder, "--export", "coco", file, "--hold-out", 2) == 0
        both = [json.loads(one.read_text()) for one in (file, tmp_path / "some_val.json")]
        parts.append([{row["file_name"] for row in one["images"]} for one in both])
    assert parts[0] == parts[1]
    assert parts[0][0] | parts[0][1] == {"00.png", "01.png", "02.png"}
    assert not parts[0][0] & parts[0][1]


def test_a_file_of_other_tools_beside_an_image_is_exported(folder, tmp_path):
    mask = rle.encode(square(4))
    foreign = {"annotations": [{"id": 9, "segmentation": {"size": list(mask.size), "counts": mask.counts}}]}
    (folder / "05.json").write_text(json.dumps(foreign))
    assert annotate("--images", folder, "--export", "coco", tmp_path / "all.json") == 0
    told = json.loads((tmp_path / "all.json").read_text())
    sizes = {row["file_name"]: (row["height"], row["width"]) for row in told["images"]}
    assert sizes["05.png"] == SIZE  # which the file does not say


def test_the_report_is_a_row_a_model(folder, capsys):
    assert annotate("--images", folder, "--report") == 0
    told = capsys.readouterr().out
    assert "12 images, 2 done" in told
    row = next(line for line in told.splitlines() if line.startswith("small"))
    # Three masks in 2 + 4 + 8 s: 771 an hour, a median of 4 s; 1 + 2 + 4 clicks.
    assert row.split()[1:6] == ["2", "3", "771", "4.0", "2.3"]
    assert annotate("--images", folder, "--report", "--json", "--quiet") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["done"], found["damaged"]) == (12, 2, [])
    (small,) = (model for model in found["models"] if model["model"] == "small")
    assert (small["masks"], sorted(small["seconds"])) == (3, [2.0, 4.0, 8.0])
    assert annotate("--images", folder, "--json", "--weights", "w") == 2


def test_the_report_has_a_row_for_each_model_and_says_what_it_could_not_read(tmp_path, capsys):
    for name in "abcd":
        Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(tmp_path / f"{name}.jpg")
    store = Store(tmp_path, tmp_path / "annotations")
    for number, model in enumerate(("old", "new", "new")):
        given = {"prompts": {"points": [[5, 4, 1]] * (3 - number)}, "seconds": 4.0, "person": "ada"}
        mask = {"size": list(SIZE), "counts": rle.encode(square(5)).counts, "predicted_iou": 0.8, "provenance": given}
        told = changes.parse({"op": "add", "id": 7} | mask, SIZE)
        store.apply(store.items[number], told, SIZE, {"name": model, "weights": "0123"})
    (tmp_path / "annotations" / "c.json").write_text("{")
    (tmp_path / "annotations" / "d.json").write_text("[]")
    before = (tmp_path / "annotations" / "c.json").read_bytes()
    assert annotate("--images", tmp_path, "--report") == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in told if line.startswith(("old", "new"))] == [
        ["old", "1", "1"],
        ["new", "1", "1"],
    ]
    (line,) = [line for line in told if line.startswith("not counted")]
    assert "c.json" in line
    assert line.endswith("(2 files in all)")
    assert (tmp_path / "annotations" / "c.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "give --weights"),
        (["--export", "yolo", "x"], "--export is coco, not 'yolo'"),
        (["--only-done"], "--only-done is for --export"),
        (["--hold-out", "3"], "--hold-out is for --export"),
        (["--export", "coco", "x", "--hold-out", "1"], "--hold-out is at least 2"),
        (["--weights", "w", "--propose", "nothing"], "--propose is everything, or a JSON file of boxes, not 'nothing'"),
        (["--weights", "w", "--propose", "everything", "--score", "0.3"], "--score is for --propose FILE.json"),
        (["--weights", "w", "--decoder", "gpu"], "--decoder is auto or browser or server"),
        (["--weights", "w", "--port", "70000"], "--port is 0 to 65535"),
        (["--weights", "w", "--everything.points_per_side", "8"], "is for --propose everything"),
        (["--wieghts", "w"], "did you mean '--weights'"),
        (["--weights", "none.pth"], "none.pth"),
    ],
)
def test_what_is_typed_wrong_is_one_line(folder, capsys, words, line):
    assert annotate("--images", folder, *words) != 0
    told = capsys.readouterr().err
    assert line in told
    assert told.count("\n") == 1


def test_a_folder_that_is_not_there_is_one_line(tmp_path, capsys):
    assert annotate("--images", tmp_path / "none", "--report") != 0
    assert capsys.readouterr().err.count("\n") == 1
