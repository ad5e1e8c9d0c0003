"""Scribbles: a new prompt type, and nothing but a file and a line: read, simulated, encoded, drawn, trained."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image

from samlit import cli
from samlit.contracts import Dense, Frame, Sparse
from samlit.layers import PositionCode
from samlit.model import Sam
from samlit.predictor import Predictor
from samlit.structures import Batch, PromptSet, Ragged, Scene
from samlit_decoders.mask import Mask
from samlit_encoders.vit import Vit
from samlit_prompts.points import Points
from samlit_prompts.scribbles import Scribbles
from tests.conftest import RECIPE


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def scene(masks, seed=0, training=True):
    image = torch.zeros(1, 3, *masks.shape[1:], dtype=torch.uint8)
    return Scene(
        Batch(image, torch.tensor([[8, 8]]), torch.tensor([[8, 8]]), masks, torch.zeros(len(masks))), {}, seed, training
    )


def shapes(side=64):
    """A disc, a ring, a thin diagonal, two pieces apart, one pixel, and nothing."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    far = (x - 30).square() + (y - 34).square()
    apart = (x < 12) | (x > 52)
    one = (x == 5) & (y == 60)
    return torch.stack([far < 400, (far < 600) & (far > 250), (x - y).abs() < 3, apart, one, one & ~one])


def on_the_way(value, count=200):
    """Pixels along a stroke, (count, 2) int64 (x, y)."""
    dense = Scribbles(8, points=count + 1).rescale(value, (1.0, 1.0), (0, 0))
    return dense[:, :2].round().long()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_stroke_stays_inside_its_mask_and_goes_along_it(training, seed):
    masks = shapes()
    given = Scribbles(8).simulate(masks, None, scene(masks, seed, training))
    assert given.values.shape == (6, 1, 9, 3)
    assert given.valid[:, 0].tolist() == [True] * 5 + ([True] if training else [False])
    lengths = []
    for mask, value in zip(masks[:5], given.values[:5, 0], strict=True):
        xy = on_the_way(value)
        assert mask[xy[:, 1], xy[:, 0]].float().mean() > 0.9  # a corner may be cut between two looks
        assert (value[:, 2] == 1).all()
        at = value[:, :2].round().long()
        assert mask[at[:, 1], at[:, 0]].all()
        lengths.append(float((value[1:, :2] - value[:-1, :2]).norm(dim=1).sum()))
    # As long as is said where there is room, for a walk turns before it meets the edge; a narrow strip may end it.
    share = torch.tensor(lengths[:4]) / masks[:4].sum((1, 2)).sqrt()
    assert (share > (0.25 if training else torch.tensor([1.1, 1.1, 0.5, 0.5]))).all()
    assert (share < 1.25).all()
    assert lengths[4] == 0


@pytest.mark.parametrize("training", [True, False])
def test_a_stroke_does_not_jump_over_a_gap(training):
    """Which is narrower than its steps."""
    mask = torch.ones(1, 64, 64, dtype=torch.bool)
    mask[:, :, 30:33] = mask[:, 15:18] = mask[:, 45:48] = False
    masks = mask.expand(32, -1, -1)
    at = Scribbles(8).simulate(masks, None, scene(masks, training=training)).values[:, 0, :, :2]
    sides = torch.stack([at[..., 0] < 31, at[..., 1] < 16, at[..., 1] < 46], 2)
    assert torch.equal(sides.any(1), sides.all(1))


def test_a_walk_seldom_stands_still_in_a_narrow_ring():
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    far = (x - 32).square() + (y - 32).square()
    masks = ((far < 28**2) & (far > 25**2)).expand(64, -1, -1)
    at = Scribbles(8).simulate(masks, None, scene(masks)).values[:, 0, :, :2]
    assert ((at[:, 1:] == at[:, :-1]).all(2)).float().mean() < 0.05


def test_training_strokes_differ_and_come_from_the_scenes_seed():
    masks = shapes()[:3]
    first, again, other = (Scribbles(8).simulate(masks, None, scene(masks, seed)) for seed in (1, 1, 2))
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, other.values)
    calm = [Scribbles(8).simulate(masks, None, scene(masks, seed, training=False)).values for seed in (1, 2)]
    assert torch.equal(*calm)


def test_strokes_start_everywhere_in_a_mask():
    mask = shapes()[3:4].expand(64, -1, -1)
    middle = Scribbles(8).simulate(mask, None, scene(mask)).values[:, 0, 4, 0]
    assert 10 < int((middle < 12).sum()) < 54


@pytest.mark.parametrize("training", [True, False])
def test_a_correction_lies_in_the_error_and_says_which(training):
    truth, predicted = torch.zeros(4, 40, 40, dtype=torch.bool), torch.zeros(4, 40, 40, dtype=torch.bool)
    truth[0, 5:35, 5:20] = True  # all of it missed
    predicted[1, 5:35, 25:38] = True  # all of it too much
    truth[2, 5:35, 5:20] = predicted[2, 5:35, 5:20] = True  # nothing wrong
    truth[3, 2:38, 10:20] = predicted[3, 2:38, 20:30] = True  # missed and too much, side by side
    given = Scribbles(8).simulate(truth, predicted, scene(truth, training=training))
    assert given.valid[:, 0].tolist() == [True, True, training, True]
    assert given.values[0, 0, :, 2].tolist() == [1] * 9
    assert given.values[1, 0, :, 2].tolist() == [0] * 9
    for row in (0, 1, 2, 3) if training else (0, 1, 3):
        at = given.values[row, 0, :, :2].round().long()
        place = ~truth[row] if row == 2 else (truth[row] ^ predicted[row]) & (truth[row] == given.values[row, 0, 0, 2])
        assert place[at[:, 1], at[:, 0]].all()


def test_one_mask_is_simulated_as_among_others():
    masks = shapes()[:4]
    together = Scribbles(8).simulate(masks, None, scene(masks, training=False))
    for i in range(4):
        alone = Scribbles(8).simulate(masks[i : i + 1], None, scene(masks[i : i + 1], training=False))
        assert torch.equal(alone.values[0], together.values[i])


def test_nothing_in_a_training_stroke_waits_for_the_device():
    """On tensors that hold no numbers, whatever asked for one would fail."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    with FakeTensorMode() as mode:
        masks = torch.zeros(4, 64, 64, dtype=torch.bool)
        made = scene(masks)
        made.__dict__["generator"] = None
        assert Scribbles(8).simulate(masks, None, made).values.shape == (4, 1, 9, 3)
        made.training = False
        with pytest.raises((DataDependentOutputException, RuntimeError)):  # the exact centre is found on the host
            Scribbles(8).simulate(masks, None, made)
    assert mode is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2;3,4", [[1, 2, 1], [3, 4, 1]]),
        ("1,2; 3.5,4 ;5,6,0", [[1, 2, 0], [3.5, 4, 0], [5, 6, 0]]),
        ("7,8,1;", [[7, 8, 1]]),
    ],
)
def test_a_person_writes_a_line(text, expected):
    assert Scribbles(8).parse(text).tolist() == expected


@pytest.mark.parametrize("text", ["", "1", "1,2;3", "1,2,0;3,4", "1,2;3,4,2", "a,b", "1,2,3,4", "1,2;;3,4"])
def test_what_is_no_line_is_refused(text):
    with pytest.raises(ValueError, match="a scribble is X,Y;X,Y") as caught:
        Scribbles(8).parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            torch.tensor([[1.0, 1, 1], [51, 3, 1]]),
            r"point \(51, 3\) is outside the image, which is 50 wide and 20 high",
        ),
        (torch.tensor([[1.0, torch.nan, 1]]), "outside"),
        (torch.tensor([[1.0, 1, 1], [2, 2, 0]]), "one label"),
        (torch.tensor([[1.0, 1, 3]]), "one label"),
        (torch.zeros(0, 3), r"\(points, 3\)"),
        (torch.zeros(3), r"\(points, 3\)"),
    ],
)
def test_what_makes_no_sense_on_an_image_is_refused(value, words):
    Scribbles(8).check(torch.tensor([[0.0, 0, 1], [49.9, 19.9, 1]]), (20, 50))
    with pytest.raises(ValueError, match=words):
        Scribbles(8).check(value, (20, 50))


def test_any_line_becomes_points_at_equal_distances():
    prompt = Scribbles(8, points=5)
    line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [4, 0, 0], [4, 4, 0]])
    expected = [[0, 0, 0], [4, 0, 0], [8, 0, 0], [8, 6, 0], [8, 12, 0]]
    moved = prompt.rescale(line, (2.0, 3.0), (64, 64))  # 8 to the right, 12 down
    torch.testing.assert_close(moved[[0, -1]], torch.tensor(expected)[[0, -1]].float())
    gaps = (moved[1:, :2] - moved[:-1, :2]).abs().sum(1)
    torch.testing.assert_close(gaps, torch.full((4,), 5.0))
    assert prompt.rescale(line[:1], (2.0, 3.0), (64, 64)).tolist() == [[0, 0, 0]] * 5
    assert prompt.rescale(line[[0, 0, 1, 1]], (1.0, 1.0), (64, 64)).isfinite().all()


def frame():
    return Frame((32, 32), (4, 4), PositionCode(16))


def test_points_of_a_stroke_are_tokens():
    prompt, at = Scribbles(16, points=3), frame()
    values = torch.rand(2, 2, 3, 3) * 30
    values[..., 2] = torch.tensor([1.0, 0.0])[:, None]
    encoded = prompt.encode(Ragged(values, torch.tensor([[True, True], [True, False]])), at)
    assert isinstance(encoded, Sparse)
    assert encoded.tokens.shape == (2, 6, 16)
    assert encoded.valid.tolist() == [[True] * 6, [True] * 3 + [False] * 3]
    expected = at.position(values[0, 1, 2, :2] + 0.5, (32, 32)) + prompt.background.weight[0]
    torch.testing.assert_close(encoded.tokens[0, 5], expected)
    torch.testing.assert_close(
        encoded.tokens[0, 0], at.position(values[0, 0, 0, :2] + 0.5, (32, 32)) + prompt.foreground.weight[0]
    )


def test_strokes_are_drawn_into_a_map():
    prompt, at = Scribbles(16, points=3, dense=True), frame()
    seen = []
    prompt.drawing.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    line = torch.tensor([[3.5, 3.5], [15.5, 3.5], [27.5, 3.5]])
    values = torch.stack([torch.cat([line, torch.full((3, 1), v)], 1) for v in (1.0, 0.0)])[None]
    encoded = prompt.encode(Ragged(values, torch.tensor([[True, False]])), at)
    assert isinstance(encoded, Dense)
    assert encoded.map.shape == (1, 16, 4, 4)
    assert encoded.valid.tolist() == [True]
    assert not encoded.map.any()  # before it is trained it changes nothing
    drawn = seen[0][0]  # (2, 16, 16), two pixels of the frame in one of the map
    assert drawn[0, 1:3, 3:13].min() == 1
    assert not drawn[0, 5:].any()
    assert not drawn[1].any()  # what is not given is not drawn
    prompt.encode(Ragged.of(values), at)
    assert torch.equal(seen[1][0, 0], drawn[0])
    assert torch.equal(seen[1][0, 1], drawn[0])


@pytest.mark.parametrize("dense", [False, True])
def test_every_weight_learns_from_strokes(dense):
    encoder = Vit(32, 16, 1, 2, (0,), 4, 8, 16)
    net = Sam(encoder, [Points, functools.partial(Scribbles, dense=dense)], lambda c: Mask(c, heads=2, mlp_dim=16))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    masks = shapes(32)[:2]
    stroke = net.prompt_types["scribbles"].simulate(masks, None, scene(masks))
    negative = Ragged(stroke.values * torch.tensor([1.0, 1, 0]), stroke.valid)
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    prompts = PromptSet(torch.zeros(2, dtype=torch.int64), {"scribbles": stroke.append(negative)})
    answer = net(image, torch.tensor([[32, 32]]), prompts)
    assert answer.allowed.tolist() == [[True, False, False, False]] * 2  # two strokes are two prompts
    (answer.logits.square().mean() + answer.iou.sum()).backward()
    for name, parameter in net.prompt_types["scribbles"].named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_a_stroke_is_drawn():
    picture = Image.new("RGB", (60, 40))
    Scribbles(8).draw(picture, torch.tensor([[10.0, 20, 0], [50, 20, 0]]))
    assert picture.getpixel((30, 20)) == (230, 50, 50)
    assert picture.getpixel((30, 36)) == (0, 0, 0)
    Scribbles(8).draw(picture, torch.tensor([[30.0, 20, 1]]))
    assert picture.getpixel((30, 20)) == (40, 200, 90)


@pytest.mark.parametrize("points", [2, 1, 8])
def test_a_stroke_has_a_middle(points):
    with pytest.raises(ValueError, match="an odd number from 3"):
        Scribbles(8, points=points)


@pytest.mark.parametrize("dense", ["false", "true"])
def test_it_is_trained_and_used_by_its_name(tmp_path, dense, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    prompts = f"[points, masks, {{class_path: scribbles, init_args: {{points: 5, dense: {dense}}}}}]"
    words = ["--model.prompts", prompts, "--model.task.first", "{points: 1, scribbles: 3}"]
    words += ["--model.task.correct_with", "scribbles", "--trainer.default_root_dir", str(tmp_path / "runs")]
    assert cli.main(["fit", "--recipe", str(recipe), *words]) == 0
    (file,) = tmp_path.rglob("last.ckpt")
    predictor = Predictor.load(file)
    assert predictor.net.prompt_types["scribbles"].points == 5
    pixels = np.random.default_rng(0).integers(0, 256, (20, 50, 3), np.uint8)
    predictor.set_image(pixels)
    line = [(3.0, 4.0, 1.0), (40.0, 8.0, 1.0), (45.0, 15.0, 1.0)]
    answers = predictor.predict_each([{"scribbles": [line]}, {"scribbles": [line, line[:1]], "points": [line[0]]}])
    assert [len(answer.masks) for answer in answers] == [3, 1]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    scribble = ["--scribble", "3,4;40,8;45,15", "--scribble", "20,15;30,16,0"]
    out = ["--weights", str(file), "--out", str(tmp_path / "out.png")]
    assert cli.main(["segment", str(tmp_path / "a.png"), *scribble, *out]) == 0
    assert (tmp_path / "out.png").is_file()
    assert "predicted IoU" in capsys.readouterr().out
