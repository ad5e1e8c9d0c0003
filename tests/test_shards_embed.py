"""`samlit shards embed`: a training sees in cut-outs what CLIP would have seen, and nothing is done twice."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from samlit import cli
from samlit.errors import UsageError
from samlit.loading.frames import frame, pack
from samlit.masks import rle
from samlit.shards import embedding
from samlit.shards.records import Annotation, Record
from samlit.shards.writing import write
from samlit.structures import Scene
from samlit.text.clip import build
from samlit.text.crops import cut
from samlit.text.cut_outs import CutOuts
from samlit_prompts.text import Text
from samlit_sources.sa1b import Sa1b
from tests import forks
from tests.photos import encoded
from tests.test_clip import SMALL

ROOT = Path(__file__).parents[1]
SIDE = 64


def blob(seed, size=(60, 80)):
    mask = np.zeros(size, bool)
    y, x, side = np.random.default_rng(seed).integers(4, 30, 3)
    mask[y : y + side, x : x + side] = True
    return rle.encode(mask)


class Corrected(Record):
    """As the annotator leaves a record of which masks were deleted: the rows are there, and are no masks."""

    def text(self):
        told = json.loads(super().text())
        gone = {**told["annotations"][0], "id": 99, "deleted": True}
        told["annotations"] = [gone, *told["annotations"][:2], gone, *told["annotations"][2:]]
        return json.dumps(told).encode()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two shards of 20 and 3 images with up to four masks each, in one beside deleted ones; a small CLIP; a recipe."""
    folder = tmp_path_factory.mktemp("embed")
    (folder / "shards").mkdir()
    for shard, count in enumerate((20, 3)):
        records = [
            (Corrected if (shard, n) == (0, 9) else Record)(
                100 * shard + n, (60, 80), encoded(size=(60, 80)),
                tuple(Annotation(blob(9 * n + k), predicted_iou=k / 4) for k in range((n + shard) % 5)),
            )
            for n in range(count)
        ]  # fmt: skip
        write(folder / "shards" / f"sa_{shard:06d}.tar", records)
    torch.manual_seed(0)
    torch.save(build(SMALL)[0].state_dict(), folder / "clip.pt")
    prompt = {"class_path": "text", "init_args": {"channels": 16, "clip": SMALL, "weights": str(folder / "clip.pt")}}
    recipe = {"model": {"prompts": ["points", prompt]}, "data": {"image_size": SIDE}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def embed(place, out, *more):
    words = ["shards", "embed", place / "shards", "--recipe", place / "recipe.yaml", "--out", out, *more]
    return cli.main([str(word) for word in words])


def text(place, out=None, **more):
    return Text(16, SMALL, str(place / "clip.pt"), cut_outs=out and str(out), **more)


@pytest.fixture(scope="module")
def out(place):
    assert embed(place, place / "out") == 0
    return place / "out"


def test_the_folder_has_every_mask_and_nothing_else(place, out):
    assert {file.name for file in out.iterdir() if not file.name.startswith(".")} == {
        "plan.json", "sa_000000.npy", "sa_000000.rows.npy", "sa_000001.npy", "sa_000001.rows.npy",
    }  # fmt: skip
    assert not [file for file in out.iterdir() if file.is_dir()]
    values = np.load(out / "sa_000000.npy")
    assert values.shape == (sum(n % 5 for n in range(20)), 4, 8)
    assert np.allclose(np.linalg.norm(values.astype(np.float32), axis=2), 1, atol=2e-3)


def test_views_are_what_clip_sees_in_cut_outs_half_of_them_of_the_mask_alone(place, out):
    source, prompt = Sa1b(str(place / "shards")), text(place)
    sample = source[3]
    batch = pack([frame(sample, SIDE, exact=False)])
    first = dict(np.load(out / "sa_000000.rows.npy").tolist())[3]
    stored = torch.from_numpy(np.load(out / "sa_000000.npy")[first : first + 3].astype(np.float32))
    zoom = 1 + torch.rand(3, 4, generator=torch.Generator().manual_seed(3))
    for view in range(4):
        only = torch.full((3,), view < 2)
        pictures = cut(batch, batch.masks, batch.image_index, prompt.clip.image_size, zoom[:, view], only)
        torch.testing.assert_close(stored[:, view], prompt.clip.images(*pictures), atol=1e-3, rtol=0)
    assert (stored[:, 0] - stored[:, 3]).abs().max() > 1e-3


def test_a_training_looks_up_its_own_masks_and_never_runs_clip(place, out, monkeypatch):
    prompt = text(place, out)
    prompt.start()
    monkeypatch.setattr(prompt.clip, "images", lambda *_: pytest.fail("CLIP was run"))
    source = Sa1b(str(place / "shards"), min_predicted_iou=0.5)  # two of four masks
    batch = pack([frame(source[index], SIDE, [1, 0]) for index in (4, 9)])  # of 9 two rows are deleted ones
    assert batch.numbers == [3, 2, 3, 2]
    views = {}
    for seed in range(40):
        scene = Scene(batch, {"text": prompt}, seed, True)
        some = scene.of(torch.tensor([0, 3]))
        for row, given in enumerate(prompt.simulate(some.masks, None, some).values[:, 0]):
            views.setdefault(row, set()).add(tuple(given.tolist()))
    rows = dict(np.load(out / "sa_000000.rows.npy").tolist())
    stored = np.load(out / "sa_000000.npy").astype(np.float32)
    for row, (image, number) in enumerate(((4, 3), (9, 2))):
        wanted = torch.nn.functional.normalize(torch.from_numpy(stored[rows[image] + number]), dim=1)
        found = torch.tensor(sorted(views[row]))
        assert len(found) == len(wanted.unique(dim=0)) > 2, "all views come up"
        assert torch.cdist(found, wanted).min(1).values.max() < 1e-3


def test_what_does_not_belong_together_is_one_line(place, out, tmp_path):
    with pytest.raises(UsageError, match=r"was made with zoom 2\.0, and this is 3"):
        text(place, out, zoom=3.0).start()
    with pytest.raises(UsageError, match=r"is not what `samlit shards embed` makes"):
        text(place, tmp_path).start()
    with pytest.raises(UsageError, match="has nothing of mask 3 of sa_3"):
        CutOuts(str(out), {}).of(["sa_3"], [3], [0.0])
    with pytest.raises(UsageError, match="has nothing of mask 0 of sa_77"):
        CutOuts(str(out), {}).of(["sa_77"], [0], [0.0])
    other = tmp_path / "other.pt"
    torch.manual_seed(1)
    torch.save(build(SMALL)[0].state_dict(), other)
    with pytest.raises(UsageError, match="was made with clip"):
        Text(16, SMALL, str(other), cut_outs=str(out)).start()


def test_a_folder_is_for_one_clip_and_is_gone_on_with(place, out, capsys, monkeypatch):
    assert embed(place, out, "--views", 3) == 1
    assert "was begun with views 4, and this is 3" in capsys.readouterr().err
    monkeypatch.setattr(embedding, "_piece", lambda *_: pytest.fail("it was made again"))
    assert embed(place, out) == 0
    assert "2 of 2 shards" in capsys.readouterr().out
    assert embed(place, out, "--views", 0) == 2
    assert "--views is at least 1" in capsys.readouterr().err


def slowly(*words):
    """The command in a process of its own, which says what it begins."""
    own = embedding._piece

    def piece(*given):
        print("piece", given[2].start, flush=True)
        found = own(*given)
        time.sleep(0.4)
        return found

    embedding._piece = piece
    embedding.PIECE = 4
    sys.exit(cli.main(list(words)))


def test_a_killed_one_is_gone_on_with_and_two_share_the_work(place, out, tmp_path):
    words = ["shards", "embed", place / "shards", "--recipe", place / "recipe.yaml", "--out", tmp_path / "out"]

    def started(name):
        out, err = tmp_path / name, tmp_path / f"{name}.err"
        return forks.start(slowly, *map(str, words), env=os.environ, cwd=ROOT, out=out, err=err)

    one, until = started("one"), time.monotonic() + 120
    while not (tmp_path / "one").exists() or (tmp_path / "one").read_text().count("\n") < 3:
        assert one.is_alive(), (tmp_path / "one.err").read_text()
        assert time.monotonic() < until
        time.sleep(0.02)
    assert (tmp_path / "one").read_text() == "piece 0\npiece 4\npiece 8\n"
    time.sleep(0.1)
    one.kill()
    one.join()
    both = [started(name) for name in ("two", "three")]
    for one in both:
        one.join(120)
        assert one.exitcode == 0, "".join((tmp_path / f"{name}.err").read_text() for name in ("two", "three"))
    told = "".join((tmp_path / name).read_text() for name in ("two", "three"))
    # Of the first shard 8, 12 and 16 were left, of the second one there is a piece; nobody did a thing twice.
    assert sorted(line for line in told.splitlines() if "piece" in line) == [
        "piece 0",
        "piece 12",
        "piece 16",
        "piece 8",
    ]
    for name in ("sa_000000.npy", "sa_000001.npy", "sa_000000.rows.npy", "sa_000001.rows.npy"):
        assert np.array_equal(np.load(tmp_path / "out" / name), np.load(out / name)), name
    assert json.loads((tmp_path / "out" / "plan.json").read_text()) == json.loads((out / "plan.json").read_text())
