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
from samlit.predictor import Predictor
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
    torch.testing.assert_close(found.low_res_logits, answer.logits[0, order])
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
