"""Masks for a person: equal to a forward pass by hand, and what is refused."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from samlit.model import PIXEL_MEAN, PIXEL_STD
from samlit.predictor import InFrame, Predictor
from samlit.structures import PromptSet, Ragged


def picture(rows=20, columns=50, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (rows // 5, columns // 5, 3), np.uint8)
    return small.repeat(5, 0).repeat(5, 1)


@pytest.fixture
def predictor(checkpoint):
    return Predictor.load(checkpoint)


GIVEN = {
    "a point": {"points": [(30.0, 4.0, 1.0)]},
    "points": {"points": [(30.0, 4.0, 1.0), (2.0, 19.0, 0.0)]},
    "a box": {"boxes": [(3.0, 2.0, 44.0, 17.0)]},
    "both": {"boxes": [(3.0, 2.0, 44.0, 17.0)], "points": [(30.0, 4.0, 0.0)]},
}


@pytest.mark.parametrize("kind", GIVEN)
@torch.inference_mode()
def test_masks_are_those_of_a_forward_pass_by_hand(predictor, kind):
    pixels = picture()
    predictor.set_image(pixels)
    found = predictor.predict(GIVEN[kind])

    net = predictor.net
    small = np.asarray(Image.fromarray(pixels).resize((32, 13), Image.Resampling.BILINEAR))  # 20 * 32 / 50 is 12.8
    x = (torch.from_numpy(small.copy()).float() - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    embedding = net.encoder(F.pad(x.permute(2, 0, 1), (0, 0, 0, 19))[None])
    scale = {"points": [32 / 50, 13 / 20, 1], "boxes": [32 / 50, 13 / 20] * 2}
    given = {n: Ragged.of(torch.tensor([v]) * torch.tensor(scale[n])) for n, v in GIVEN[kind].items()}
    single = sum(map(len, GIVEN[kind].values())) == 1
    answer = net.answer(embedding, PromptSet(torch.tensor([0]), given, multimask=single), (32, 32))
    order = answer.iou[0].argsort(descending=True)
    up = F.interpolate(answer.logits[:, order], (32, 32), mode="bilinear", align_corners=False)[:, :, :13]
    masks = F.interpolate(up, (20, 50), mode="bilinear", align_corners=False)[0] > 0

    assert found.masks.shape == ((3 if single else 1), 20, 50) == masks.shape
    assert found.masks.dtype == torch.bool
    assert torch.equal(found.masks, masks)
    assert 0 < int(masks.sum()) < masks.numel()
    torch.testing.assert_close(found.iou, answer.iou[0, order])
    # One prompt and many are added up in another order.
    torch.testing.assert_close(found.low_res_logits, answer.logits[0, order], rtol=1e-4, atol=1e-4)
    assert torch.equal(found.iou, found.iou.sort(descending=True).values)
    assert predictor.size == (20, 50)


def test_one_mask_or_three_may_be_asked_for(predictor):
    predictor.set_image(picture())
    point, points = GIVEN["a point"], GIVEN["points"]
    counts = [
        len(predictor.predict(given, multimask).masks) for given in (point, points) for multimask in (True, False)
    ]
    assert counts == [3, 1, 3, 1]
    assert predictor.predict(point).masks.equal(predictor.predict(point, True).masks)


def test_an_image_may_come_in_any_form(predictor, tmp_path):
    pixels = picture()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), pixels.copy(order="F")]
    forms += [torch.from_numpy(pixels.copy()).permute(2, 0, 1), pixels[:, ::-1][:, ::-1]]
    logits = []
    for form in forms:
        predictor.set_image(form)
        logits.append(predictor.predict(GIVEN["a box"]).low_res_logits)
    for other in logits[1:]:
        assert torch.equal(logits[0], other)
    grey = pixels[..., 0]
    predictor.set_image(grey)
    a = predictor.predict(GIVEN["a box"]).low_res_logits
    predictor.set_image(Image.fromarray(grey))
    assert torch.equal(a, predictor.predict(GIVEN["a box"]).low_res_logits)
    assert not torch.equal(a, logits[0])


def test_pillows_other_modes_are_read_as_files_are(predictor, tmp_path):
    deep = Image.fromarray(picture()[..., 0].astype(np.uint16) * 16)
    palette = Image.fromarray(picture()).quantize(7)
    palette.info["transparency"] = b"\x00\x80"
    for number, image in enumerate((deep, palette)):
        predictor.set_image(image)
        a = predictor.predict(GIVEN["a box"]).low_res_logits
        image.save(tmp_path / f"{number}.png")
        predictor.set_image(tmp_path / f"{number}.png")
        assert torch.equal(a, predictor.predict(GIVEN["a box"]).low_res_logits)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "uint8 from 0 to 255; this one is float32"),
        (np.zeros((4, 4, 4), np.uint8), r"three channels.*\(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"three channels.*\(0, 4, 3\)"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "three channels"),
        ("no/such.png", "there is no such image"),
    ],
)
def test_what_is_no_image_is_refused(predictor, image, words):
    with pytest.raises(ValueError, match=words):
        predictor.set_image(image)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"points": [(50.0, 3.0, 1.0)]}, r"the point \(50, 3\) is outside the image, which is 50 wide and 20 high"),
        ({"points": [(3.0, -1.0, 1.0)]}, "outside"),
        ({"points": [(float("nan"), 1.0, 1.0)]}, "outside"),
        ({"boxes": [(60.0, 3.0, 70.0, 9.0)]}, "the box .* is outside the image"),
        ({"boxes": [(float("nan"), 3.0, 7.0, 9.0)]}, "outside"),
        ({"boxes": [(1.0, 3.0, float("inf"), 9.0)]}, "outside"),
        ({"masks": [torch.ones(50, 20)]}, "must be equal"),
        ({"text": ["a cat"]}, "takes the prompts points, boxes, masks; 'text' is none of them"),
        ({}, "give at least one prompt: points, boxes, masks"),
        ({"points": []}, "give at least one prompt"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(predictor, given, words):
    predictor.set_image(picture())
    with pytest.raises(ValueError, match=words):
        predictor.predict(given)


def test_the_last_pixel_is_on_the_image(predictor):
    predictor.set_image(picture())
    assert predictor.predict({"points": [(49.5, 19.5, 1.0)]}).iou.isfinite().all()


def test_an_image_comes_before_a_prompt(predictor):
    with pytest.raises(RuntimeError, match="set an image"):
        predictor.predict(GIVEN["a point"])


def test_a_mask_prompt_changes_the_answer(predictor):
    predictor.set_image(picture())
    left = torch.zeros(20, 50)
    left[:, :25] = 1
    one, other = (predictor.predict({"masks": [mask]}) for mask in (left, 1 - left))
    assert len(one.masks) == 3
    assert (one.low_res_logits - other.low_res_logits).abs().max() > 1e-3


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return (open, (self.file, "w"))


def bad_checkpoints(checkpoint, folder):
    """Files that are no checkpoint of samlit's, by name; the trap would leave a file called `sprung`."""
    whole = checkpoint.read_bytes()
    saved = torch.load(checkpoint, weights_only=True)
    (folder / "truncated.ckpt").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.ckpt").write_bytes(b"")
    (folder / "text.ckpt").write_text("not a checkpoint\n")
    (folder / "picture.ckpt").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    with zipfile.ZipFile(folder / "zip.ckpt", "w") as file:
        file.writestr("a", "b")
    torch.save({"conv.weight": torch.zeros(3)}, folder / "foreign.ckpt")
    torch.save([1, 2], folder / "list.ckpt")
    torch.save({**saved, "state_dict": {"conv.weight": torch.zeros(3)}}, folder / "other_weights.ckpt")
    torch.save({**saved, "hyper_parameters": {}}, folder / "without_hyperparameters.ckpt")
    parameters = {**saved["hyper_parameters"], "encoder": {"class_path": "no.such.Encoder"}}
    torch.save({**saved, "hyper_parameters": parameters}, folder / "plugin_missing.ckpt")
    torch.save({**saved, "more": Trap(folder / "sprung")}, folder / "malicious.ckpt")
    (folder / "malicious_pickle.ckpt").write_bytes(pickle.dumps(Trap(folder / "sprung"), 2))
    stream = io.BytesIO()
    torch.save({**saved, "more": Trap(folder / "sprung")}, stream, _use_new_zipfile_serialization=False)
    (folder / "malicious_legacy.ckpt").write_bytes(stream.getvalue())
    return sorted(folder.glob("*.ckpt"))


def test_what_is_no_checkpoint_is_refused_and_never_run(checkpoint, tmp_path):
    files = bad_checkpoints(checkpoint, tmp_path)
    assert len(files) == 13
    for file in files:
        with pytest.raises(ValueError, match=file.name) as caught:
            Predictor.load(file)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
    assert not (tmp_path / "sprung").exists()
    for missing in (tmp_path / "none.ckpt", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no"):
            Predictor.load(missing)


def several(count=5):
    """Prompts of different types, numbers and shapes."""
    left = torch.zeros(20, 50)
    left[:, :25] = 1
    given = [*GIVEN.values(), {"masks": [left]}, {"masks": [1 - left], "points": [(9.0, 9.0, 1.0)]}]
    return (given * count)[:count]


def assert_same(a, b):
    assert torch.equal(a.masks, b.masks)
    torch.testing.assert_close(a.iou, b.iou, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(a.low_res_logits, b.low_res_logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("at_once", [1, 2, 16])
def test_prompts_asked_together_are_answered_as_if_alone(predictor, at_once):
    pixels = [picture(20, 50, 1), picture(50, 20, 2), picture(20, 50, 3)]
    predictor.set_images(pixels, at_once=2)
    prompts, which = several(9), [0, 2, 2, 0, 2, 0, 0, 2, 0]
    prompts.insert(2, {"boxes": [(2.0, 3.0, 15.0, 40.0)]})
    which.insert(2, 1)
    found = list(predictor.predict_each(prompts, image=which, at_once=at_once))
    assert [tuple(one.masks.shape[1:]) for one in found] == [pixels[i].shape[:2] for i in which]
    for one, given, i in zip(found, prompts, which, strict=True):
        assert_same(one, predictor.predict(given, image=i))
    predictor.set_image(pixels[2])
    alone = predictor.predict(prompts[1])
    assert_same(found[1], alone)
    assert not torch.equal(found[1].low_res_logits, found[9].low_res_logits)


def test_answers_come_one_after_the_other(predictor, monkeypatch):
    predictor.set_image(picture())
    asked = []
    answer = predictor.net.answer
    monkeypatch.setattr(predictor.net, "answer", lambda *args: asked.append(len(args[1])) or answer(*args))
    found = predictor.predict_each([GIVEN["a box"]] * 5, at_once=2)
    assert asked == []
    next(found)
    assert asked == [2]
    assert len(list(found)) == 4
    assert asked == [2, 2, 1]


def test_an_answer_given_back_is_a_mask_prompt_as_it_is(predictor):
    predictor.set_image(picture())
    first = predictor.predict(GIVEN["a point"])
    seen = []
    first_layer = predictor.net.prompts["masks"].mask_downscaling[0]
    handle = first_layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    predictor.predict(GIVEN["a point"] | {"masks": [first.prompt(1)]})
    handle.remove()
    assert torch.equal(seen[0][0, 0], first.low_res_logits[1])


def test_prompts_that_make_no_sense_together_are_refused_before_any_answer(predictor):
    predictor.set_images([picture(), picture()])
    point = GIVEN["a point"]
    for prompts, image, words in (
        ([point], 2, "there is no image 2: 2 are set, numbered from 0"),
        ([point], -1, "there is no image -1"),
        ([point, point], [0], "2 prompts and 1 numbers of images"),
        ([point, {"points": [(70.0, 1.0, 1.0)]}], 0, "outside the image"),
        ([{"masks": [torch.ones(20, 50), InFrame(torch.ones(8, 8))]}], 0, r"of one shape, not \(32, 32\), \(8, 8\)"),
    ):
        with pytest.raises(ValueError, match=words):
            predictor.predict_each(prompts, image=image)
    with pytest.raises(ValueError, match="at least one image"):
        predictor.set_images([])


def test_an_embedding_is_kept_and_given_back(predictor, checkpoint, tmp_path):
    predictor.set_images([picture(20, 50, 1), picture(50, 20, 2)])
    embedded = predictor.embedding
    assert len(embedded) == 2
    expected = [predictor.predict({"points": [(3.0, 4.0, 1.0)]}, image=i) for i in range(2)]
    embedded.save(tmp_path / "kept" / "two.pt")
    embedded[1:].save(tmp_path / "one.pt")
    assert (tmp_path / "one.pt").stat().st_size < (tmp_path / "kept" / "two.pt").stat().st_size
    assert sorted(f.name for f in tmp_path.iterdir()) == ["kept", "one.pt"]
    for form in (embedded, tmp_path / "kept" / "two.pt"):
        other = Predictor.load(checkpoint)
        other.set_embedding(form)
        assert other.size == (20, 50)
        for i in range(2):
            assert_same(other.predict({"points": [(3.0, 4.0, 1.0)]}, image=i), expected[i])
    other.set_embedding(tmp_path / "one.pt")
    assert other.size == (50, 20)
    assert_same(other.predict({"points": [(3.0, 4.0, 1.0)]}), expected[1])
    embedded.embedding.image.clone().requires_grad_().sum().backward()  # it can be learned from


def test_an_embedding_is_refused_where_it_does_not_belong(predictor, checkpoint, tmp_path):
    with pytest.raises(RuntimeError, match="set an image"):
        _ = predictor.embedding
    predictor.set_image(picture())
    embedded = predictor.embedding
    embedded.save(tmp_path / "kept.pt")
    other = Predictor.load(checkpoint)
    other.net.decoder.iou_token.weight.data.add_(1)
    other.set_embedding(embedded)  # another decoder may read it
    weight = other.net.encoder.neck[0].weight
    with torch.no_grad():
        weight.view(-1)[:2] = weight.view(-1)[:2].flip(0)  # the same numbers in another order
    for form in (embedded, tmp_path / "kept.pt"):
        with pytest.raises(ValueError, match="embedded with other weights of an encoder"):
            other.set_embedding(form)
    with pytest.raises(ValueError, match="image size of 32, and this model has 64"):
        Predictor(predictor.net, 64).set_embedding(embedded)


def test_what_is_no_embedding_is_refused_and_never_run(predictor, tmp_path):
    predictor.set_image(picture())
    predictor.embedding.save(tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    saved = torch.load(tmp_path / "whole.pt", weights_only=True)
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pt").write_text("no embedding\n")
    torch.save({**saved, "format": "another"}, tmp_path / "format.pt")
    torch.save({**saved, "sizes": torch.zeros(3, 2)}, tmp_path / "counts.pt")
    torch.save({**saved, "more": Trap(tmp_path / "sprung")}, tmp_path / "trap.pt")
    for name in ("cut", "text", "format", "counts", "trap"):
        with pytest.raises(ValueError, match="is no embedding that samlit wrote, or is damaged") as caught:
            predictor.set_embedding(tmp_path / f"{name}.pt")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        predictor.set_embedding(tmp_path / "none.pt")
