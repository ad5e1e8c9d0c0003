"""What a plan tells, held to real steps, to torch's own counters, to the official modules and to plain arithmetic."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import samlit.model
import samlit.training.focal_dice
import samlit_decoders.mask
from samlit.cli import main
from samlit.contracts import Task
from samlit.errors import UsageError
from samlit.module import SamModule
from samlit.plan.advice import _trials
from samlit.plan.budget import SPARE, Run, memory, most, speed
from samlit.plan.hollow import FULL, FULL_RESULT, HALF, Hollow, without_weights
from samlit.plan.meter import Meter, Work
from samlit.plan.recipe import Recipe
from samlit.plan.step import Load, kept, measure, schedule, take
from samlit.run import gpus
from samlit.run.gpus import GPUS
from samlit.structures import Batch
from samlit.training.optim import Optim
from samlit_decoders import _looks
from samlit_decoders.mask import Mask
from samlit_encoders import _attention
from samlit_encoders.vit import Vit
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points
from samlit_tasks.interactive import Interactive
from samlit_tasks.interactive_sam2 import InteractiveSam2
from tests.conftest import RECIPE

SIDE = 128


def module(task: Task, hollow: bool = True, at_once: int | None = None, optim: Optim | None = None, **vit: Any) -> Any:
    """A small model whose attention has all that a large one's has."""
    encoder = functools.partial(
        Vit, dim=64, depth=2, heads=4, global_blocks=(1,), window=7, patch=8, channels=64, **vit
    )
    decoder = functools.partial(Mask, heads=4, mlp_dim=128, iou_hidden=32)

    def build() -> SamModule:
        parts = (encoder, [Points, Boxes, Masks], decoder, task)
        return SamModule(*parts, image_size=SIDE, masks_at_once=at_once, optim=optim or Optim())

    if not hollow:
        torch.manual_seed(0)
        return build()
    with without_weights():
        made = build()
    made.net.to("meta")
    return made


def batch(images: int, masks: int) -> Batch:
    """Noise, and squares on it."""
    inside = torch.zeros(images * masks, SIDE, SIDE, dtype=torch.bool)
    inside[:, 20:70, 30:90] = True
    size = torch.full((images, 2), SIDE)
    image = torch.randint(0, 256, (images, 3, SIDE, SIDE), dtype=torch.uint8)
    return Batch(image, size, size, inside, torch.arange(images).repeat_interleave(masks))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a processor does in its own way, looking at values and keeping to its cache, it does as a GPU."""
    monkeypatch.setattr(_attention, "SMALL", 0)
    monkeypatch.setattr(samlit_decoders.mask, "_at_hand", lambda x: False)
    monkeypatch.setattr(samlit_decoders.mask, "_learns", lambda cells: False)
    monkeypatch.setattr(_looks, "_by_hand", lambda cells: False)
    monkeypatch.setattr(samlit.model, "_all", lambda valid: False)
    monkeypatch.setattr(samlit.training.focal_dice, "NEAR", samlit.training.focal_dice.FAR)
    monkeypatch.setattr(samlit.training.focal_dice, "_in_one_pass", lambda *_: False)


BYTES = ("kept", "answer", "passing", "returning", "returning_with_gradients")
CASES: dict[str, tuple[Task, int, int | None, dict[str, Any]]] = {
    "one image": (Interactive(corrections=2), 1, None, {}),
    "computed again": (Interactive(corrections=0), 2, None, {"checkpoint": True}),
    "a few at once": (Interactive(corrections=0, mask_only=False), 2, 6, {}),
    "attached": (InteractiveSam2(corrections=1), 2, None, {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_step_without_values_takes_what_a_real_one_takes(case: str) -> None:
    task, images, at_once, vit = CASES[case]
    real, found = Load(), Load()
    work: dict[Any, Work] = {}
    planned: dict[Any, Work] = {}
    take(module(task, hollow=False, **vit), batch(images, 5), 0, real, work, at_once=at_once)
    empty = batch(images, 5).to("meta")
    take(module(task, **vit), empty, 0, found, planned, Hollow(), at_once)
    for name in BYTES:  # all but to the byte: a GPU's kernel keeps a sum for each query, in whole rows of 32
        assert getattr(found, name) == pytest.approx(getattr(real, name), rel=1e-3), name
    assert real.answer > 1e6
    assert found.encoder == real.encoder
    assert planned == work
    assert (found.encoder.again > 0) == (case == "computed again")
    assert (sum(w.again for w in planned.values()) > 0) == (case == "attached")


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_real_step_needs_what_was_planned_by_the_log_of_torchs_allocator() -> None:
    """Within 15 percent: the log also has what an operation needs for itself alone."""
    task = Interactive(corrections=1, mask_only=False)
    real, pictures = module(task, hollow=False), batch(2, 5)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        take(real, pictures, 0, Load(), {})
    planned = measure(made := module(task), schedule(made), 2, 5, SIDE)
    assert max(planned.passing, planned.returning_with_gradients) == pytest.approx(highest(profile), rel=0.15)


def highest(profile: Any) -> int:
    """The most bytes that were allocated at once, above what was there."""
    log = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(log, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize(
    ("task", "at_once"),
    [
        (Interactive(corrections=1, mask_only=False), None),
        (Interactive(corrections=1, mask_only=False), 3),
        (InteractiveSam2({"points": 1}, corrections=1), 3),
    ],
)
def test_a_measurement_is_that_of_the_whole_step(task: Task, at_once: int | None) -> None:
    """Work is counted from some of the rows and memory from some of the passes; nothing may get lost by that."""
    made, whole, each = module(task, at_once=at_once), Load(), dict[Any, Work]()
    asked = schedule(made)
    for seed in asked.seeds:
        take(made, batch(2, 3).to("meta"), seed, whole, each, Hollow(), at_once)
    found = measure(made, asked, 2, 3, SIDE)
    assert found.encoder == whole.encoder
    total = sum((each[question] * often for question, often in asked.often.items()), Work())
    assert found.decoder.total == pytest.approx(total.total, rel=1e-6)
    for name in BYTES:
        assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=0.02), name
    if at_once is None:
        again = measure(made, asked, 2, 3, SIDE, largest=found.largest)
        assert [getattr(again, name) for name in BYTES] == [getattr(found, name) for name in BYTES]


def test_the_meter_agrees_with_torch() -> None:
    """FLOPs with its counter, what is kept with its hooks, the most that is held with its allocator's own log."""
    task = Interactive(corrections=1)
    net = module(task, hollow=False).net
    image = batch(2, 1)
    parameters = list(net.parameters())
    with FlopCounterMode(display=False) as counter:
        net.embed(image.image, image.sizes).image.sum().backward()
    meter = Meter([*parameters, *net.buffers(), image.image, image.sizes], parameters)
    kept_by_torch: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept_by_torch[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    net.zero_grad()
    with meter.running(), saved_tensors_hooks(pack, lambda x: x):
        out = net.embed(image.image, image.sizes).image
        held = meter.held
        for parameter in parameters:
            kept_by_torch.pop(parameter.untyped_storage().data_ptr(), None)
        assert sum(kept_by_torch.values()) == pytest.approx(held, rel=0.05)
        out.sum().backward()
    assert meter.work.total == counter.get_total_flops()
    assert meter.work.again == 0
    trained = sum(p.grad.nbytes for p in parameters if p.grad is not None)
    assert meter.gradients == trained > 0

    net.zero_grad()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        net.embed(image.image, image.sizes).image.sum().backward()
    assert meter.most_with_gradients == pytest.approx(highest(profile), rel=0.15)


def test_the_meter_counts_convolutions_in_groups() -> None:
    """Either gradient of a convolution is as much work as the way forward; torch's counter says so of one group."""
    image = torch.randn(2, 8, 10, 12, requires_grad=True)
    for groups, transposed in ((1, False), (1, True), (4, False), (8, False)):
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        layer = kind(8, 8, 3, groups=groups)
        with FlopCounterMode(display=False) as counter, Meter().running() as meter:
            layer(image).sum().backward()
        assert meter.work.backward == 2 * meter.work.forward
        assert groups > 1 or meter.work.total == counter.get_total_flops()


def test_work_is_that_of_the_official_encoder_but_for_what_is_done_otherwise() -> None:
    with torch.device("meta"):
        official = ImageEncoderViT(
            embed_dim=768,
            depth=12,
            num_heads=12,
            qkv_bias=True,
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=(2, 5, 8, 11),
        )
        with FlopCounterMode(display=False) as counter:
            official(torch.zeros(1, 3, 1024, 1024))
    theirs = counter.get_total_flops()
    assert theirs == pytest.approx(972e9, rel=0.002)  # as was counted before there was a plan
    with without_weights():
        net = SamModule(Vit, [Points, Boxes, Masks], Mask, Interactive()).net.to("meta")
    meter = Meter()
    with Hollow().step(), meter.running():
        net.encoder(torch.zeros(1, 3, 1024, 1024, device="meta"))
    # Attention has h + w more dimensions of queries and keys, for its bias, and of values, for kernels that want them.
    of_windows, of_all = 25 * 196**2 * (14 + 14), 4096**2 * (64 + 64)
    wider = 2 * 2 * 12 * (8 * of_windows + 4 * of_all)
    # Official windows are padded before everything but the MLP: 4900 cells for 4096.
    padding = 8 * 2 * (4900 - 4096) * 768 * 4 * 768
    assert meter.work.forward == pytest.approx(theirs - padding + wider, rel=0.001)


def test_mixed_precision_follows_torch_for_every_function_that_it_knows() -> None:
    """The lists of what is computed in half and in full precision are those that torch has for CUDA."""
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")}
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    handled = {name.removeprefix("aten::").partition(".")[0] for name in names if has_kernel(name, "AutocastCUDA")}
    assert len(handled) > 100
    mine = HALF | FULL | FULL_RESULT
    of_python = {"__matmul__", "__rmatmul__", "__pow__", "__rpow__", "interpolate", "multi_dot"}
    assert mine - handled == of_python | {"multi_head_attention_forward"}
    promotes = "addcdiv addcmul atan2 bilinear cross dot grid_sampler index_put scatter_add tensordot vdot"
    promoted = set(promotes.split())
    elsewhere = {"scaled_dot_product_attention", "binary_cross_entropy"}  # by itself; and refused by torch
    within = ("_", "upsample_", "conv", "cudnn_", "linalg_", "native_", "frobenius_", "nuclear_", "nll_loss2d")
    assert {name for name in handled - mine - promoted - elsewhere if not name.startswith(within)} == set()


def test_mixed_precision_without_values_has_the_types_of_real_ones() -> None:
    made = module(Interactive())
    image = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8, device="meta")
    half = Hollow(torch.bfloat16)
    with half.step():
        embedding = made.net.encoder(image.float())
        assert embedding.image.dtype == torch.float32  # the neck ends with a norm made of powers and sums
        assert made.net.encoder.blocks[0].attn(torch.zeros(1, 8, 8, 64, device="meta")).dtype == torch.bfloat16
        assert nn.functional.layer_norm(embedding.image.bfloat16(), (16,)).dtype == torch.float32
        assert embedding.image.bfloat16().softmax(-1).dtype == torch.float32
        with torch.autocast("cuda", enabled=False):
            assert nn.functional.linear(torch.zeros(2, 4, device="meta"), torch.zeros(3, 4, device="meta")).dtype == (
                torch.float32
            )
    assert kept(made, 1, SIDE, torch.bfloat16) < 0.75 * kept(made, 1, SIDE)


@pytest.mark.parametrize(
    ("task", "passes"),
    [
        (Interactive(), 11.0),
        (Interactive(corrections=0, mask_only=False), 1.0),
        (InteractiveSam2(), 8.0),
        (Interactive(stop=1.0), 1.0),
    ],
)
def test_passes_are_counted_by_asking_the_task(task: Task, passes: float) -> None:
    assert schedule(module(task)).passes == passes


def test_chains_that_end_by_chance_count_as_often_as_they_are_long() -> None:
    stop = 0.33
    asked = schedule(module(Interactive(stop=stop)))
    assert asked.passes == pytest.approx(sum((1 - stop) ** i for i in range(11)), rel=0.1)
    assert len(asked.seeds) < 4


class Peeking(Interactive):
    """Looks at what it was answered."""

    def rounds(self, scene: Any) -> Any:
        result = yield from super().rounds(scene)
        return result if float(result["iou"].sum()) else {}


def test_what_cannot_be_planned_is_said_in_a_line() -> None:
    made = module(Peeking(corrections=1))
    with pytest.raises(UsageError, match="step of the task Peeking cannot be run without values"):
        measure(made, schedule(made), 1, 2, SIDE)
    made = module(Interactive(corrections=1))
    made.net.requires_grad_(False)
    with pytest.raises(UsageError, match="nothing of the model is trained"):
        measure(made, schedule(made), 1, 2, SIDE)


def test_a_frozen_encoder_keeps_nothing_and_has_no_gradient() -> None:
    made = module(Interactive(corrections=1))
    made.net.encoder.requires_grad_(False)
    load = measure(made, schedule(made), 1, 2, SIDE)
    assert load.encoder.backward == 0 < load.encoder.forward
    assert load.kept < 0.1 * kept(module(Interactive()), 1, SIDE)
    assert load.gradients == sum(p.nbytes for n, p in made.net.named_parameters() if not n.startswith("encoder."))
    assert load.parts[0].trained == 0 < load.parts[0].frozen


def test_images_that_come_embedded_cost_no_encoder() -> None:
    made = module(Interactive(corrections=1))
    made.net.encoder.requires_grad_(False)
    asked = schedule(made)
    load, other = measure(made, asked, 2, 2, SIDE, embedded=True), measure(made, asked, 2, 2, SIDE)
    assert load.encoder.total == 0 < other.encoder.total
    assert load.decoder == other.decoder
    assert load.batch == other.batch + 2 * 2 * 64 * 16 * 16  # half precision


def test_the_optimiser_keeps_two_moments_or_one_and_an_average() -> None:
    choices = [Optim(), Optim(algorithm="muon"), Optim(ema=0.9)]
    made = [module(Interactive(corrections=0, mask_only=False), optim=optim) for optim in choices]
    adam, muon, averaged = (measure(m, schedule(m), 1, 2, SIDE) for m in made)
    assert adam.moments == averaged.moments == 2 * adam.gradients
    assert adam.gradients < muon.moments < 1.2 * adam.gradients
    assert (adam.averages, averaged.averages) == (0, adam.gradients)
    assert 0 <= adam.stepping < 0.2 * adam.gradients < muon.stepping


LOAD = Load(
    encoder=Work(6e12, 12e12, 2e12),
    decoder=Work(2e12, 4e12),
    weights=1000,
    blocks=[200, 300],
    gradients=800,
    moments=1600,
    averages=800,
    batch=10,
    kept=5000,
    answer=2000,
    passing=7100,
    returning=5500,
    returning_with_gradients=5900,
    stepping=700,
)
RUN = Run(2, 64, 1024, "bf16-mixed", "single", 1, 1, 3600)


def test_memory_by_strategy_is_plain_arithmetic() -> None:
    def needs(**changes: Any) -> list[int]:
        parts = memory(LOAD, Run(**(vars(RUN) | changes)))
        assert most(parts) == max(list(parts.values())[-3:])
        return list(parts.values())[-3:]

    state = 1000 + 1600 + 800
    alone = [state + 10 + 7100, state + 10 + 5900, state + 800 + 700]
    assert needs() == alone
    assert needs(accumulate=4) == [alone[0] + 800, state + 10 + 5500 + 800, alone[2]]
    assert needs(strategy="ddp", devices=4) == [size + 800 for size in alone]
    view = [alone[0] + 800, state + 10 + 5500 + 800, alone[2]]
    assert needs(strategy="ddp", devices=4, bucket_view=True) == view
    gathered = 500 + 2 * 300
    sharded = [state // 4 + gathered + 10 + 7100, state // 4 + 2 * gathered + 10 + 5500 + 200, state // 4 + 200 + 175]
    assert needs(strategy="fsdp", devices=4) == sharded
    assert needs(strategy="fsdp", devices=1) == alone


def test_speed_is_a_share_of_the_peak_and_of_the_bandwidth() -> None:
    gpu = gpus.Gpu(100.0, 50.0, 10.0, 80.0, 1e-3)
    expected = speed(LOAD, RUN, gpu, 0.5)
    step = 26e12 / 50e12 + (2 * (800 + 1600 + 800) + 800) / 1e6
    assert expected.rate == pytest.approx(2 / step)
    assert expected.hours == pytest.approx(step)
    full = speed(LOAD, Run(**(vars(RUN) | {"precision": "32-true", "steps": None})), gpu, 0.5)
    assert full.hours is None
    assert full.rate < expected.rate / 5
    old = gpu._replace(bf16=False)
    assert speed(LOAD, RUN, old, 0.5).rate == full.rate
    assert speed(LOAD, Run(**(vars(RUN) | {"precision": "16-mixed"})), old, 0.5) == expected


def test_gpus_by_name() -> None:
    assert [gpus.find(name) for name in ("h100", "NVIDIA RTX 4090", "4090", "a100_80")] == [
        "H100",
        "RTX 4090",
        "RTX 4090",
        "A100-80",
    ]
    with pytest.raises(UsageError, match="which one, A100-40 or A100-80"):
        gpus.find("A100")
    with pytest.raises(UsageError, match="no GPU is called 'H10'; did you mean 'H100'"):
        gpus.find("H10")
    assert gpus.named("NVIDIA A100-SXM4-40GB", 39.5) == "A100-40"
    assert gpus.named("Tesla V100-SXM2-32GB", 31.7) == "V100-32"
    assert gpus.named("NVIDIA GeForce RTX 3090", 23.6) == "RTX 3090"
    assert gpus.named("NVIDIA H100 PCIe", 79.1) == "H100 PCIe"
    assert gpus.named("NVIDIA H100 80GB HBM3", 79.1) == "H100"
    assert gpus.named("NVIDIA A10", 22.0) == "A10"
    assert gpus.named("Quadro P400", 2.0) is gpus.named("NVIDIA A10G", 22.0) is None, "an A10G does half as much"


Command = Callable[..., Any]


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`samlit plan --json` of a small recipe, in an empty folder that stays empty."""
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*words: str) -> Any:
        assert main(["plan", "--recipe", str(recipe), "--json", *words]) == 0
        assert not list((tmp_path / "here").iterdir())
        return json.loads(capsys.readouterr().out)

    return run


def test_the_command_tells_everything_as_json(planned: Command) -> None:
    told = planned("--gpu", "h200", "--devices", "3", "--trainer.accumulate_grad_batches", "2", "--share", "0.5")
    real = Vit(dim=16, depth=1, heads=2, global_blocks=(0,), window=4, patch=8, channels=16, image_size=32)
    assert told["parameters"]["encoder"] == {"trained": sum(p.numel() for p in real.parameters()), "frozen": 0}
    assert told["run"]["strategy"] == "ddp"
    assert told["run"] | {"devices": 3, "accumulate": 2, "steps": 1, "passes": 4.0, "images": 1} == told["run"]
    assert told["flops"]["decoder"]["backward"] > told["flops"]["decoder"]["forward"] > 0
    assert told["memory"]["most"] == max(told["memory"][n] for n in told["memory"] if n.startswith("during"))
    assert told["memory"]["encoder otherwise"] < told["memory"]["encoder"]
    (gpu,) = told["gpus"]
    assert gpu["fits"] is True
    assert told["changes"] == []
    assert planned("--trainer.strategy", "auto")["run"]["strategy"] == "single"


@pytest.mark.parametrize("encoder", ["tiny_vit", "timm", "vit_b"])
def test_any_encoder_can_be_planned(planned: Command, encoder: str) -> None:
    told = planned("--model.encoder", encoder, "--data.image_size", "64", "--gpu", "cpu", "--data.batch_size", "2")
    assert told["gpus"] == []
    assert told["flops"]["encoder"]["backward"] == pytest.approx(2 * told["flops"]["encoder"]["forward"], rel=0.15)
    assert (told["memory"]["encoder otherwise"] is None) == (encoder != "vit_b")


def test_keys_that_make_it_fit_do(planned: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--data.batch_size", "2", "--data.max_masks", "4", "--data.image_size", "64", "--gpu", "T4"]
    before = planned(*words)
    assert before["changes"] == []
    room = 0.75 * before["memory"]["most"] / 2**30
    monkeypatch.setitem(GPUS, "T4", GPUS["T4"]._replace(memory=room / (1 - SPARE)))
    told = planned(*words)
    assert told["gpus"][0]["fits"] is False
    needs = [told["memory"]["most"], *(change["needs"] for change in told["changes"])]
    assert needs == sorted(needs, reverse=True)
    after = planned(*words, *(word for change in told["changes"] for word in change["words"]))
    assert after["gpus"][0]["fits"] is True
    assert after["memory"]["most"] == needs[-1]
    assert after["run"]["images"] * after["run"]["accumulate"] == 2


def test_keys_are_tried_in_order_and_never_change_what_is_learned() -> None:
    made = Recipe(
        module(Interactive(), at_once=20), Run(**(vars(RUN) | {"images": 6, "precision": "32-true"})), "", False
    )
    trials = _trials(made, GPUS["V100-16"], 2)
    assert [[" ".join(words) for words in trial] for trial in trials] == [
        ["--model.encoder.checkpoint=true"],
        ["--trainer.precision=16-mixed"],
        ["--model.masks_at_once=16", "--model.masks_at_once=8", "--model.masks_at_once=4"],
        [f"--data.batch_size={n} --trainer.accumulate_grad_batches={6 // n}" for n in (3, 2, 1)],
        ["--trainer.strategy=fsdp"],
    ]
    small = Recipe(made.module, Run(**(vars(RUN) | {"images": 1, "masks": 4, "strategy": "fsdp"})), "", None)
    assert _trials(small, GPUS["H100"], 2) == []


def test_typos_are_told_in_a_line_before_anything_heavy(shell: Any) -> None:
    code = "import sys; from samlit.cli import main; status = main(sys.argv[1:]); "
    code += "sys.exit(9 if 'torch' in sys.modules else status)"
    for words, said in {
        "plan --recipe tiny --gpu H10": "no GPU is called 'H10'; did you mean 'H100'?",
        "plan --recipe tiny --device 2": "there is no option '--device'; did you mean '--devices'?",
        "plan --recipe tiny --devices 0": "--devices 0: one at least",
        "plan --recipe tiny --share 40": "--share 40: a share of the peak, above 0 and at most 1",
        "plan --recipe tinny": "no recipe is called 'tinny'; did you mean 'tiny'?",
        "plan --recipe tiny --model.encoder vitt": "no encoder is called 'vitt'",
        "plan --devices 2": "plan needs a recipe",
    }.items():
        done = shell("-c", code, *words.split())
        assert done.returncode == 2, words
        assert re.fullmatch(r"samlit: [^\n]+\n", done.stderr), words
        assert said in done.stderr
    helped = shell("-c", code, "plan", "--help")
    assert helped.returncode == 0
    assert "--gpu NAME" in helped.stdout
