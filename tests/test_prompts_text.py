"""Text prompts: what they are learned from, what a person says, and what a model makes of it."""

import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from samlit import cli
from samlit.contracts import Frame, Sparse
from samlit.errors import UsageError
from samlit.layers import PositionCode
from samlit.loop import drive
from samlit.model import Sam
from samlit.structures import Batch, Embedding, Prediction, PromptSet, Ragged, Scene
from samlit.text.clip import build
from samlit_decoders.mask import Mask
from samlit_encoders.vit import Vit
from samlit_prompts.points import Points
from samlit_prompts.text import Text
from samlit_tasks.interactive import Interactive
from samlit_tasks.text_to_mask import TextToMask
from tests.test_clip import SMALL


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("clip") / "small.pt"
    torch.save(build(SMALL)[0].state_dict(), file)
    return str(file)


@pytest.fixture
def text(file):
    torch.manual_seed(0)
    return Text(16, SMALL, file)


def scene(prompts, phrases=("a cat", "a dog", "a cat"), training=True, seed=0):
    """Two images of coloured squares, two masks and one."""
    image = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(3, 32, 32, dtype=torch.bool)
    masks[0, 2:12, 2:12] = masks[1, 14:30, 10:20] = masks[2, 5:25, 5:25] = True
    sizes = torch.tensor([[32, 32]] * 2)
    batch = Batch(image, sizes, sizes, masks, torch.tensor([0, 0, 1]), ["a", "b"], list(phrases))
    return Scene(batch, {prompt.name: prompt for prompt in prompts}, seed, training)


def test_clip_is_no_part_of_the_model(text):
    text.start()
    assert sorted(text.state_dict()) == ["project.bias", "project.weight", "text.weight"]
    assert sum(p.numel() for p in text.parameters()) == 8 * 16 + 16 + 16
    assert len(list(text.modules())) == 3


def test_a_phrase_is_one_token_and_anything_where_there_is_none(text):
    frame = Frame((32, 32), (4, 4), PositionCode(16))
    given = Ragged(text.told(["a cat", "a dog"], torch.device("cpu")).values, torch.tensor([[True], [False]]))
    encoded = text.encode(given, frame)
    assert isinstance(encoded, Sparse)
    assert encoded.tokens.shape == (2, 1, 16)
    assert encoded.valid.tolist() == [[True], [False]]
    longer = text.encode(Ragged(3 * given.values, given.valid), frame)
    assert torch.allclose(longer.tokens, encoded.tokens, atol=1e-5), "an embedding counts by its direction"


def test_training_shows_and_validation_says(text):
    shown = text.simulate(scene([text]).masks, None, scene([text]))
    said = text.simulate(scene([text]).masks, None, scene([text], training=False))
    assert torch.equal(said.values[0], said.values[2])
    assert torch.allclose(said.values[:2, 0], text.words.embed(["a cat", "a dog"]))
    assert not torch.allclose(shown.values[0], shown.values[2], atol=1e-3)
    assert (shown.values * said.values).sum(-1).max() < 0.99
    assert shown.valid.all()
    again = text.simulate(scene([text]).masks, None, scene([text]))
    assert torch.equal(shown.values, again.values), "chance is the scene's"
    assert not text.simulate(scene([text]).masks, scene([text]).masks, scene([text])).valid.any()


def test_phrases_where_there_are_some_and_cut_outs_where_not(file):
    text = Text(16, SMALL, file, phrases=1.0)
    one = scene([text], phrases=("a cat", "", "a dog"))
    given = text.simulate(one.masks, None, one)
    assert torch.allclose(given.values[[0, 2], 0], text.words.embed(["a cat", "a dog"]))
    assert given.valid.all()
    silent = scene([text], phrases=("a cat", "", "a dog"), training=False)
    assert text.simulate(silent.masks, None, silent).valid[:, 0].tolist() == [True, False, True]
    mixed = Text(16, SMALL, file, phrases=0.5)
    shares = []
    for seed in range(30):
        some = scene([mixed], seed=seed)
        said = mixed.words.embed(some.batch.phrases)
        near = (mixed.simulate(some.masks, None, some).values[:, 0] * said).sum(1) > 0.9999
        shares.append(near.float().mean())
    assert 0.3 < torch.stack(shares).mean() < 0.7


def test_clip_is_asked_about_drawn_masks_only_and_about_the_right_ones(text, monkeypatch):
    asked = []
    own = text.clip.images
    monkeypatch.setattr(text.clip, "images", lambda *a: asked.append(len(a[0])) or own(*a))
    points = Points(16)
    counts = 0
    for seed in range(8):
        one = scene([text, points], seed=seed)
        prompts = next(Interactive(first={"text": 0.5, "points": 0.5}).rounds(one))
        rows = prompts.given["text"].valid[:, 0]
        counts += int(rows.sum())
        assert (rows ^ prompts.given["points"].valid[:, 0]).all()
    assert sum(asked) == counts
    assert 0 < counts < 24


def test_a_drawn_mask_gets_its_own_phrase(file):
    text, points = Text(16, SMALL, file, phrases=1.0), Points(16)
    said = text.words.embed(["a cat", "a dog", "a cow"])
    seen = set()
    for seed in range(8):
        one = scene([text, points], phrases=("a cat", "a dog", "a cow"), seed=seed)
        given = next(Interactive(first={"text": 0.5, "points": 0.5}).rounds(one)).given["text"]
        rows = given.valid[:, 0]
        assert torch.allclose(given.values[rows, 0], said[rows])
        seen.add(tuple(rows.tolist()))
    assert len(seen) > 3


def test_a_narrowed_scene_keeps_rows_together(text):
    one = scene([text])
    some = one.of(torch.tensor([2, 1]))
    assert torch.equal(some.masks, one.masks[[2, 1]])
    assert some.image_index.tolist() == [1, 0]
    assert some.batch.phrases == ["a cat", "a dog"]
    assert some.generator is one.generator


def test_embedded_images_cannot_be_cut(text):
    one = scene([text])
    one.batch.embedding = Embedding(torch.zeros(2, 16, 4, 4))
    with pytest.raises(UsageError, match=r"data\.embeddings replaces"):
        text.simulate(one.masks, None, one)


def test_what_a_person_types(text):
    value = text.parse("a striped wheel")
    text.check(value.double(), (20, 30))
    assert torch.equal(text.rescale(value.double(), (0.5, 0.5), (32, 32)).float(), value)
    with pytest.raises(ValueError, match=r"8 numbers here, not in the shape \(3,\)"):
        text.check(torch.zeros(3), (20, 30))
    with pytest.raises(ValueError, match="this one is empty"):
        text.parse("")
    picture = Image.new("RGB", (200, 100), "grey")
    text.draw(picture, value.double())
    assert np.asarray(picture).max() > 200
    assert text.words.said(value) == "a striped wheel"


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"zoom": 0.5}, "zoom: one at least"),
        ({"masked": 2}, "masked: a share"),
        ({"phrases": -1}, "phrases: a share"),
        ({"noise": -1}, "noise: no less"),
    ],
)
def test_settings_that_make_no_sense_are_refused(file, keys, line):
    with pytest.raises(ValueError, match=line):
        Text(16, SMALL, file, **keys)


def net(file, **keys):
    torch.manual_seed(0)
    encoder = Vit(32, dim=16, depth=1, heads=2, global_blocks=[0], window=4, patch=8, channels=16)
    prompts = [Points, functools.partial(Text, clip=SMALL, weights=file, **keys)]
    return Sam(encoder, prompts, functools.partial(Mask, depth=1, heads=1, mlp_dim=16, iou_hidden=16)).eval()


@pytest.mark.parametrize("ambiguous", [True, False])
def test_text_alone_is_one_prompt_and_with_a_click_more(file, ambiguous):
    model = net(file, ambiguous=ambiguous)
    text = model.prompt_types["text"]
    image, sizes = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.tensor([[32, 32]])
    embedding = model.embed(image, sizes)
    said, index = text.told(["a cat"], torch.device("cpu")), torch.zeros(1, dtype=torch.long)
    alone = model.answer(embedding, PromptSet(index, {"text": said}), (32, 32))
    assert alone.allowed.tolist() == [[False, True, True, True] if ambiguous else [True, False, False, False]]
    click = Ragged.of(torch.tensor([[[9.0, 9.0, 1.0]]]))
    both = model.answer(embedding, PromptSet(index, {"text": said, "points": click}), (32, 32))
    assert both.allowed.tolist() == [[True, False, False, False]]
    assert not torch.allclose(both.logits[:, 0], alone.logits[:, 0])


def test_what_a_model_takes_is_planned_without_its_clip(capsys):
    assert cli.main(["plan", "--recipe", "text"]) == 0, capsys.readouterr().err
    assert "prompts" in capsys.readouterr().out


# The task


class Knowing:
    """Answers words with the mask that they mean, a little smaller each time, and clicks with all."""

    def __init__(self, scene, text):
        self.scene, self.asked = scene, []
        self.meant = {
            phrase: [k for k, other in enumerate(scene.batch.phrases) if other == phrase]
            for phrase in scene.batch.phrases
        }
        self.known = {text.words.embed([phrase])[0].numpy().tobytes(): phrase for phrase in [*self.meant]}

    def __call__(self, prompts):
        self.asked.append(prompts)
        frame, rows = self.scene.frame, []
        for row, image in enumerate(prompts.image_index.tolist()):
            mask = torch.zeros(frame, dtype=torch.bool)
            if "text" in prompts.given:
                phrase = self.known[prompts.given["text"].values[row, 0].numpy().tobytes()]
                for k in self.meant[phrase]:
                    if self.scene.image_index[k] == image:
                        mask = mask | self.scene.masks[k]
            rows.append(mask)
        masks = torch.stack(rows)[:, None].float()
        logits = F.interpolate(20 * masks - 10, scale_factor=0.5, mode="area")
        num = 3 if prompts.multimask else 1
        iou = torch.ones(len(rows), num)
        return Prediction(logits.expand(-1, num, -1, -1), iou, iou > 0, frame)


def test_the_task_asks_for_the_right_thing_and_for_another(text):
    one = scene([text, Points(16)], phrases=("a cat", "a dog", "a cow"), training=False)
    task = TextToMask(find=False)
    model = Knowing(one, text)
    result = drive(task, one, model)
    assert result["text"].tolist() == pytest.approx([1, 1, 1], abs=0.1)
    assert result["other"].tolist() == pytest.approx([0, 0], abs=0.01), "the third image has no other phrase"
    assert result["click"].max() < 0.01
    assert result["text_click"].tolist() == pytest.approx([1, 1, 1], abs=0.1)
    assert [p.target.tolist() for p in model.asked] == [[0, 1, 2], [3, 3, 3], [0, 1, 2], [0, 1, 2]]
    metric = task.metric()
    metric.update(result)
    assert sorted(metric.compute()) == ["click", "other", "text", "text_click"]
    assert drive(task, scene([text], phrases=("", "", ""), training=False), model) == {}


def test_phrases_of_several_are_found_and_of_none_are_not(text, monkeypatch):
    one = scene([text], phrases=("a cat", "a dog", "a cow"), training=False)
    # A CLIP that sees what is there: the embedding of the phrase of the mask.
    said = text.words.embed(one.batch.phrases)

    def likeness(masks, scene, image_index):
        return torch.stack([said[(m & one.masks).flatten(1).sum(1).argmax()] for m in masks])

    monkeypatch.setattr(text, "likeness", likeness)
    task = TextToMask(threshold=0.99)
    result = drive(task, one, Knowing(one, text))
    assert [row[:2] for row in result["found"]] == [["a", 1], ["a", 1], ["a", 0], ["b", 1], ["b", 0], ["b", 0]]
    metric = task.metric()
    metric.update(result)
    numbers = {name: float(value) for name, value in metric.compute().items()}
    assert (numbers["precision"], numbers["recall"], numbers["presence_mcc"]) == (1, 1, 1)
    assert json.dumps(result["found"])


def test_what_masks_show_is_of_length_one(text):
    one = scene([text], training=False)
    shown = text.likeness(one.masks, one, one.image_index)
    assert shown.shape == (3, 8)
    assert torch.allclose(shown.norm(dim=1), torch.ones(3))
    assert text.likeness(one.masks[:0], one, one.image_index[:0]).shape == (0, 8)
