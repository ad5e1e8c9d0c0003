"""A head that names masks: what it sees of them, what it learns, its file, and the tasks that are given it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from samlit import cli
from samlit.evaluation.head import Head, features, fit
from samlit.loop import drive
from samlit.masks import rle
from samlit.structures import Embedding
from samlit_tasks.panoptic import Panoptic
from samlit_tasks.semantic import Semantic
from tests.clicking import samples, scene
from tests.test_segments import UNFILTERED, everywhere, written


def test_a_mask_is_seen_as_the_mean_of_the_cells_by_its_share_of_them():
    embedding = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(4, 16, 16, dtype=torch.bool)
    masks[0, :4, :4] = True  # one cell
    masks[1, :4, 2:6] = True  # half of two
    masks[2, 9, 5] = True  # a pixel of one
    found = features(embedding, masks, torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(found[0], embedding[0, :, 0, 0])
    torch.testing.assert_close(found[1], (embedding[0, :, 0, 0] + embedding[0, :, 0, 1]) / 2)
    torch.testing.assert_close(found[2], embedding[1, :, 2, 1])
    assert found[3].tolist() == [0, 0, 0]
    assert features(embedding, masks[:0], torch.zeros(0, dtype=torch.int64)).shape == (0, 3)


def test_names_that_lie_apart_are_learned_whatever_the_scale():
    chance = torch.Generator().manual_seed(1)
    kinds = torch.arange(90) % 3
    means = torch.randn(90, 5, generator=chance) * 0.3
    means[torch.arange(90), kinds] += 2
    means = means * torch.tensor([1.0, 100.0, 0.01, 1.0, 0.0]) + 7  # one channel says nothing at all
    names = [("cat", "sky", "grass")[kind] for kind in kinds.tolist()]
    head = fit(means[:60], names[:60])
    assert head.names == ("cat", "grass", "sky")
    assert [head.names[k] for k in head.scores(means[60:]).argmax(1).tolist()] == names[60:]
    again = fit(means[:60], names[:60])
    assert torch.equal(again.weight, head.weight)


def test_a_file_is_read_as_it_was_written_and_others_are_refused(tmp_path):
    head = Head(("a", "b"), torch.randn(2, 4), torch.randn(2))
    head.save(tmp_path / "new" / "head.safetensors")
    back = Head.load(str(tmp_path / "new" / "head.safetensors"))
    assert back.names == head.names
    assert torch.equal(back.weight, head.weight)
    assert torch.equal(back.bias, head.bias)
    (tmp_path / "cut.safetensors").write_bytes(b"no head")
    from safetensors.torch import save_file

    save_file({"weight": head.weight}, tmp_path / "other.safetensors")
    for name, says in (("gone", "there is no such file"), ("cut", "is no head"), ("other", "is no head")):
        with pytest.raises(ValueError, match=rf"^\S*{name}\.safetensors: {says}[^\n]*$"):
            Head.load(str(tmp_path / f"{name}.safetensors"))


def test_the_tasks_name_masks_by_a_head(tmp_path):
    made = samples(sizes=((50, 90),), count=2)
    file = written(tmp_path, made)
    view = scene(made)
    # An encoder that sees which of the two true masks a cell shows: the first is sky, the second a cat.
    cells = torch.nn.functional.interpolate(view.batch.masks[None].float(), (16, 16), mode="area")
    view.embed = lambda: Embedding(cells)
    head = Head(("dog", "sky", "cat"), torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]]), torch.zeros(3))
    head.save(tmp_path / "head.safetensors")
    for kind, name in ((Panoptic, "pq"), (Semantic, "miou")):
        numbers = {}
        for labels in (None, str(tmp_path / "head.safetensors")):
            task = kind(file, labels=labels, options=UNFILTERED)
            metric = task.metric()
            metric.update(drive(task, view, everywhere(view)))
            numbers[labels is None] = float(metric.compute()[name])
        assert numbers[False] > 0.8 * numbers[True] > 0.2, "a dog, of which the annotations know nothing, is none"
    task = Semantic(file, labels=str(tmp_path / "head.safetensors"), options=UNFILTERED)
    view.embed = None
    with pytest.raises(ValueError, match="by the images' embeddings, and there are none"):
        drive(task, view, everywhere(view))
    view.embed = lambda: Embedding(torch.zeros(1, 7, 4, 4))
    with pytest.raises(ValueError, match="embeddings of 2 channels, and the model's have 7"):
        drive(task, view, everywhere(view))
    Head(("dog",), torch.zeros(1, 2), torch.zeros(1)).save(tmp_path / "dogs.safetensors")
    with pytest.raises(ValueError, match=r"dogs\.safetensors knows dog, and \S*panoptic\.json has no such class"):
        Semantic(file, labels=str(tmp_path / "dogs.safetensors"))


def coloured(folder, count=6):
    """Red and blue halves of pictures, named so."""
    images, annotations = [], []
    folder.mkdir()
    for number in range(1, count + 1):
        red = np.zeros((30, 40), bool)
        red[:, : 10 + 3 * number] = True
        pixels = np.where(red[..., None], [220, 30, 20], [20, 40, 210]).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 30, "width": 40})
        for kind, mask in ((1, red), (2, ~red)):
            told = {"size": [30, 40], "counts": rle.encode(mask).counts}
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": kind, "segmentation": told,
                 "area": int(mask.sum()), "bbox": [0, 0, 1, 1], "iscrowd": 0}
            )  # fmt: skip
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(document))
    return f"coco:{folder / 'annotations.json'}"


def test_the_command_learns_names_and_says_how_well(checkpoint, tmp_path, capsys):
    data, out = coloured(tmp_path / "data"), tmp_path / "head.safetensors"
    words = ["head", "--weights", str(checkpoint), "--data", data, "--out", str(out)]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "of every fifth image, learned from the others: 2 of 2 masks have the right name" in said
    assert "2 names from 12 masks" in said
    assert Head.load(str(out)).names == ("blue", "red")
    for more, says in (
        (["--limit", "0"], "--limit 0: one at least"),
        (["--out", "head.pt"], "--out head.pt: a head is written as .safetensors"),
    ):
        assert cli.main([*words, *more]) == 2
        assert says in capsys.readouterr().err
    document = json.loads((tmp_path / "data" / "annotations.json").read_text())
    document["annotations"] = [one | {"category_id": 1} for one in document["annotations"]]
    (tmp_path / "data" / "annotations.json").write_text(json.dumps(document))
    assert cli.main(words) == 2
    assert "has masks of 1 names; two at least are told apart" in capsys.readouterr().err
    document["annotations"] = [one | {"category_id": 1 + one["id"] % 2} for one in document["annotations"]]
    (tmp_path / "data" / "annotations.json").write_text(json.dumps(document))
    assert cli.main(words) == 0, "names that have been mended since are looked at again"


def test_a_command_that_is_stopped_goes_on_where_it_was(checkpoint, tmp_path, monkeypatch, capsys):
    data, out = coloured(tmp_path / "data"), tmp_path / "head.safetensors"
    words = ["head", "--weights", str(checkpoint), "--data", data, "--out", str(out)]
    assert cli.main(words) == 0
    wanted = Head.load(str(out))
    out.unlink()
    asked = []

    def looked(embedding, masks, index):
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(len(masks))
        return features(embedding, masks, index)

    monkeypatch.setattr("samlit.evaluation.head.features", looked)
    assert cli.main(words) == 130
    assert not out.exists()
    monkeypatch.setattr("samlit.evaluation.head.features", lambda *given: asked.append(0) or features(*given))
    assert cli.main([*words, "--limit", "5"]) == 2
    assert "head.safetensors.seen is of another training" in capsys.readouterr().err
    assert cli.main(words) == 0
    assert len(asked) == 6
    found = Head.load(str(out))
    assert found.names == wanted.names
    assert torch.equal(found.weight, wanted.weight)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["head.safetensors"]
