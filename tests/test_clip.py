"""CLIP, frozen: what its output token looks at, what it is asked that it cannot answer, and what it is shown."""

import json

import pytest
import torch
from torch.nn import functional as F

from samlit import cli
from samlit.errors import UsageError
from samlit.structures import Batch
from samlit.text import clip, clip_training
from samlit.text.clip import Clip, build, encode_images
from samlit.text.crops import cut
from samlit.text.phrases import Phrases
from samlit_sources.shapes import Shapes

SMALL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 4, "width": 16, "layers": 2, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small CLIP with weights by chance, in a file."""
    torch.manual_seed(0)
    net, _ = build(SMALL)
    file = tmp_path_factory.mktemp("clip") / "small.pt"
    torch.save(net.state_dict(), file)
    return Clip(SMALL, str(file))


def pictures(count=3, side=16):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def corner(count=3, side=16):
    inside = torch.zeros(count, side, side, dtype=torch.bool)
    inside[:, :8, :8] = True
    return inside


def test_all_of_a_picture_is_what_open_clip_makes_of_it(small):
    net, _ = clip._load(small._key, small.weights)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (clip.MEAN, clip.STD))
    with torch.no_grad():
        official = F.normalize(net.encode_image((pictures() - mean) / std), dim=1)
    assert torch.allclose(small.images(pictures(), torch.ones(3, 16, 16, dtype=torch.bool)), official, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_output_token_looks_into_the_mask_in_the_last_layer_and_everywhere_before(layers):
    torch.manual_seed(0)
    net, _ = build({**SMALL, "vision_cfg": {**SMALL["vision_cfg"], "layers": layers}})
    net.eval()
    outside, within = pictures(), pictures()
    outside[:, :, 8:, 8:] = 0.3
    within[:, :, :8, :8] = 0.3
    with torch.no_grad():
        before, out, own = (encode_images(net, x, corner()) for x in (pictures(), outside, within))
    assert (before - own).abs().max() > 1e-3
    # With one layer nothing tells a patch of the mask what is outside; with two the first one does.
    assert ((before - out).abs().max() < 1e-6) == (layers == 1)


def test_a_mask_smaller_than_a_patch_is_looked_at():
    one = torch.zeros(1, 16, 16, dtype=torch.bool)
    one[0, 5, 6] = True
    hidden = clip._outside(one, (4, 4))
    assert (hidden == 0).nonzero().tolist() == [[0, 5]]
    assert (clip._outside(one & False, (4, 4)) == 0).all(), "no mask at all hides nothing"


def test_phrases_are_embedded_once(small, monkeypatch):
    fresh = Clip(small.model, small.weights)
    first = fresh.text(["a cat", "a dog", "a cat"])
    assert torch.equal(first[0], first[2])
    assert not torch.allclose(first[0], first[1])
    assert torch.allclose(first.norm(dim=1), torch.ones(3))
    monkeypatch.setattr(fresh, "_loaded", lambda *a: pytest.fail("asked again"))
    assert torch.equal(fresh.text(["a dog"]), first[1:2])
    assert fresh.text([]).shape == (0, 8)


def test_text_beyond_what_it_reads_is_said_and_not_cut(small):
    with pytest.raises(ValueError, match="has 12 tokens, and this CLIP reads 8 at most"):
        small.text(["one two three four five six seven eight nine ten"])
    assert len(small.text(["one two three four five six"])) == 1  # 8 with the marks of its ends
    for nothing in ("", "  \n"):
        with pytest.raises(ValueError, match="this one is empty"):
            small.text([nothing])


def test_a_misspelt_model_or_tag_is_told_the_near_one(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'ViT-L-14-336'"):
        clip.width_of("ViT-L-14-33")
    assert clip.width_of("ViT-L-14-336") == 768
    assert Clip("ViT-L-14-336", None).image_size == 336
    with pytest.raises(UsageError, match="no weights 'openaj'; did you mean 'openai'"):
        Clip("ViT-B-32", "openaj").text(["a"])
    with pytest.raises(UsageError, match="knows no word"):
        Clip("ViT-B-32", None).text(["a"])
    (tmp_path / "no.json").write_text(json.dumps({"layers": 3}))
    with pytest.raises(UsageError, match="no configuration of open_clip's"):
        clip.width_of(str(tmp_path / "no.json"))
    with pytest.raises(UsageError, match="no text_cfg"):
        clip.width_of({"embed_dim": 3, "vision_cfg": {}})
    with pytest.raises(UsageError, match="`samlit clip --recipe NAME` makes it"):
        Clip(SMALL, str(tmp_path / "none.pt")).text(["a"])
    (tmp_path / "bad.pt").write_bytes(b"no")
    with pytest.raises(UsageError, match="is no CLIP of this configuration"):
        Clip(SMALL, str(tmp_path / "bad.pt")).text(["a"])


def test_an_image_tower_without_an_output_token_is_refused():
    net, _ = build({**SMALL, "vision_cfg": {**SMALL["vision_cfg"], "pool_type": "avg"}})
    with pytest.raises(ValueError, match="no output token"):
        encode_images(net, pictures(), corner())


# What it is shown


def scene():
    """An image whose red says the column and whose green the row, and a mask of 4 x 2 pixels."""
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[0, 0], image[0, 1], image[0, 2] = torch.arange(32), torch.arange(32)[:, None], 255
    masks = torch.zeros(3, 32, 32, dtype=torch.bool)
    masks[0, 10:12, 20:24] = True
    masks[1, 0:4, 0:4] = True
    sizes = torch.tensor([[32, 32]])
    return Batch(image, sizes, sizes, masks, torch.zeros(3, dtype=torch.long))


def test_a_cut_out_is_a_square_around_the_box():
    batch = scene()
    shown, inside = cut(batch, batch.masks, batch.image_index, 4, torch.ones(3), torch.zeros(3, dtype=torch.bool))
    red, green = (255 * shown[0, :2]).round().int()
    assert red[0].tolist() == [20, 21, 22, 23]
    assert green[:, 0].tolist() == [9, 10, 11, 12]
    assert inside[0].int().tolist() == [[0] * 4, [1] * 4, [1] * 4, [0] * 4]
    assert inside[1].all()
    assert not inside[2].any()
    assert shown.isfinite().all()


def test_what_is_beyond_the_image_or_hidden_is_black():
    batch = scene()
    zoom, masked = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([True, False, True])
    shown, _ = cut(batch, batch.masks, batch.image_index, 4, zoom, masked)
    blue = shown[:, 2]
    assert blue[0].int().tolist() == [[0] * 4, [1] * 4, [1] * 4, [0] * 4]
    assert blue[1, 0, 0] < 0.1, "two pixels beyond the corner"
    assert blue[1, 2, 2] > 0.99


# A table of embeddings


def table(tmp_path, values, names):
    import numpy as np

    np.save(tmp_path / "table.npy", values)
    (tmp_path / "names.json").write_text(json.dumps(names))
    return str(tmp_path / "table.npy"), str(tmp_path / "names.json")


def test_a_table_stands_in_for_clip(tmp_path):
    values = torch.randn(3, 8).half().numpy()
    rows = [{"id": 7, "name": "brown_cow"}, {"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}]
    phrases = Phrases(Clip(SMALL, None), *table(tmp_path, values, {"categories": rows}))
    phrases.start()
    found = phrases.embed(["brown cow", "cat"])
    assert torch.allclose(found, F.normalize(torch.from_numpy(values[[2, 0]]).float(), dim=1))
    assert phrases.said(found[1]) == "cat"
    assert phrases.said(torch.ones(8)) == "text"
    with pytest.raises(ValueError, match=r"no embedding of 'cat s' .* did you mean 'cat'\?, and no CLIP"):
        phrases.embed(["cat s"])
    with pytest.raises(ValueError, match="this one is empty"):
        phrases.embed([" "])


def test_a_table_of_another_clip_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"shape \(2, 9\); the CLIP of this model has 8 numbers each"):
        Phrases(Clip(SMALL, None), *table(tmp_path, torch.zeros(2, 9).numpy(), ["a", "b"])).embed(["a"])
    with pytest.raises(UsageError, match=r"holds 2 embeddings, and .* 3 names"):
        Phrases(Clip(SMALL, None), *table(tmp_path, torch.zeros(2, 8).numpy(), ["a", "b", "c"])).embed(["a"])
    with pytest.raises(UsageError, match=r"names in .* cannot be read"):
        Phrases(Clip(SMALL, None), *table(tmp_path, torch.zeros(2, 8).numpy(), [1, 2])).embed(["a"])
    with pytest.raises(ValueError, match="go together"):
        Phrases(Clip(SMALL, None), "a.npy")


# Training one


def test_cut_outs_and_phrases_that_belong_together_come_together(tmp_path, monkeypatch, capsys):
    recipe = f"""
model:
  encoder: vit
  prompts:
    - class_path: text
      init_args: {{weights: {tmp_path}/made/clip.pt, clip: {json.dumps(SMALL)}}}
  decoder: mask
  task: interactive
data:
  source: {{class_path: shapes, init_args: {{count: 12, size: 64, style: worded}}}}
  image_size: 64
trainer: {{max_steps: 1}}
"""
    monkeypatch.setenv("SAMLIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own.yaml").write_text(recipe.replace('"context_length": 8', '"context_length": 16'))
    assert cli.main(["clip", "--recipe", str(tmp_path / "own.yaml"), "--steps", "80", "--batch", "12"]) == 0
    told = capsys.readouterr().out
    share = float(told.partition("in ")[2].partition("%")[0])
    assert share > 50, "67 to 71 with four seeds; 15 to 23 before any step, as by chance among five phrases"
    assert (tmp_path / "made" / "clip.pt").exists()
    assert cli.main(["clip", "--recipe", "tiny"]) == 2
    assert "has no text prompt" in capsys.readouterr().err
    assert cli.main(["clip", "--recipe", "text_tiny", "--steps", "0"]) == 2


def test_a_training_that_was_stopped_goes_on_to_the_same_clip(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_training, "OFTEN", 2)
    source = Shapes("train", count=12, size=64, style="worded", root=str(tmp_path / "scenes"))
    source.prepare(lambda *_: None)
    made = []

    def run(kept, told="", stop=99):
        def report(done, total, what):
            made.append(done)
            if done == stop:
                raise KeyboardInterrupt

        torch.manual_seed(0)
        net, tokens = build({**SMALL, "text_cfg": {**SMALL["text_cfg"], "context_length": 16}})
        clip_training.train(net, tokens, source, 64, 6, 3, report, kept and clip_training.Kept(kept, told))
        return net.state_dict()

    whole, kept = run(None), tmp_path / "clip.pt.part"
    with pytest.raises(KeyboardInterrupt):
        run(kept, stop=5)
    made.clear()
    gone_on = run(kept)
    assert made == [5, 6], "what was kept are four steps"
    assert all(torch.equal(whole[name], gone_on[name]) for name in whole)
    made.clear()
    run(kept, "another training")
    assert made == [1, 2, 3, 4, 5, 6]
    kept.write_bytes(b"not a file of torch's")
    run(kept)
