"""Schedules, layer-wise rates, what decays, and Muon."""

import copy
import functools

import pytest
import torch
from torch import distributed as dist
from torch import nn

from samlit.model import Sam
from samlit.training.muon import Muon, _deal, orthogonal
from samlit.training.optim import Optim
from samlit_decoders.mask import Mask
from samlit_encoders.vit import Vit
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def model(depth=3, **others):
    encoder = Vit(16, dim=8, depth=depth, heads=2, global_blocks=(0,), window=2, patch=8, channels=8, **others)
    return Sam(encoder, [Points, Boxes, Masks], functools.partial(Mask, heads=1, mlp_dim=8, iou_hidden=8))


def by_name(optim, net):
    """Each parameter's group."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {names[id(p)]: group for group in optim.groups(net) for p in group["params"]}


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 1 / 251),
        (249, 250 / 251),
        (250, 1),
        (59_999, 1),
        (60_000, 0.1),
        (86_665, 0.1),
        (86_666, 0.01),
        (10**6, 0.01),
    ],
)
def test_the_papers_schedule(step, factor):
    assert Optim().factor(step, 90_000) == pytest.approx(factor, rel=1e-9)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 1 / 11), (10, 1), (60, 0.5), (35, 0.5 + 0.5 * 0.5**0.5), (110, 0), (200, 0)]
)
def test_cosine(step, factor):
    assert Optim(schedule="cosine", warmup=10).factor(step, 110) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 1 / 1001),
        (999, 1000 / 1001),
        (1000, 1),
        (2000, 0.5**0.5),
        (4000, 0.5),
        (85_000, (1000 / 85_000) ** 0.5),
        (87_500, 0.5 * (1000 / 87_500) ** 0.5),
        (89_999, (1 / 5000) * (1000 / 89_999) ** 0.5),
        (90_000, 0),
        (99_999, 0),
    ],
)
def test_the_schedule_of_sam_2(step, factor):
    sam2 = Optim(schedule="rsqrt", warmup=1000, timescale=1000, cooldown=5000)
    assert sam2.factor(step, 90_000) == pytest.approx(factor, rel=1e-9)


def test_what_a_schedule_starts_and_ends_with():
    # ViTDet's warm-up, from a thousandth.
    assert [Optim(warmup=10, warmup_from=1e-3).factor(step, 90) for step in (0, 5, 10)] == [1e-3, 0.5005, 1]
    cosine = Optim(schedule="cosine", warmup=0, final=0.1)
    assert [cosine.factor(step, 100) for step in (0, 50, 100, 200)] == pytest.approx([1, 0.55, 0.1, 0.1])
    constant = Optim(schedule="constant", warmup=0, cooldown=4)
    assert [constant.factor(step, 10) for step in (5, 6, 7, 9, 10)] == [1, 1, 0.75, 0.25, 0]


@pytest.mark.parametrize("wrong", [{"timescale": 0}, {"max_skipped": 0}, {"final": 1.5}, {"warmup_from": -0.1}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=f"optim.{next(iter(wrong))}: "):
        Optim(**wrong)


def test_a_constant_rate_and_none_to_warm_up():
    assert [Optim(schedule="constant", warmup=0).factor(step, 5) for step in (0, 4, 99)] == [1, 1, 1]
    assert Optim(schedule="cosine", warmup=5).factor(5, 5) == 1  # no step is left: nothing to divide by


def test_the_built_schedule_moves_every_group():
    net = model()
    optimizer, schedule = Optim(lr=1e-2, warmup=3, layer_decay=0.5, milestones=(0.5,)).build(net, 10)
    start = [group["initial_lr"] for group in optimizer.param_groups]
    assert len(set(start)) > 2
    seen = []
    for _ in range(7):
        seen.append([group["lr"] / initial for group, initial in zip(optimizer.param_groups, start, strict=True)])
        optimizer.step()
        schedule.step()
    assert seen == [pytest.approx([factor] * len(start)) for factor in (0.25, 0.5, 0.75, 1, 1, 0.1, 0.1)]


def test_layer_decay_by_hand():
    groups = by_name(Optim(lr=1.0, layer_decay=0.5), model())
    expected = {
        "encoder.patch_embed": 1 / 16,
        "encoder.pos_embed": 1 / 16,
        "encoder.neck": 1,
        "encoder.blocks.0": 1 / 8,
    }
    expected |= {"encoder.blocks.1": 1 / 4, "encoder.blocks.2": 1 / 2, "prompts": 1, "decoder": 1}
    found = set()
    for name, group in groups.items():
        (start,) = (start for start in expected if name.startswith(f"{start}."[: len(name)]))
        found.add(start)
        assert group["lr"] == expected[start], name
    assert found == set(expected)
    stem = by_name(Optim(lr=1.0, layer_decay=0.5), model(stem="conv"))
    assert {group["lr"] for name, group in stem.items() if "patch_embed" in name} == {1 / 16}


def test_relative_positions_can_have_the_full_rate():
    for name, group in by_name(Optim(lr=1.0, layer_decay=0.5, rel_pos_decay=False), model()).items():
        if name.startswith("encoder.blocks.0."):
            assert group["lr"] == (1.0 if "rel_pos" in name else 1 / 8), name


def test_every_weight_is_in_one_group():
    net = model()
    net.encoder.neck.requires_grad_(False)
    for algorithm in ("adamw", "muon"):
        held = [id(p) for group in Optim(algorithm=algorithm).groups(net) for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in net.parameters() if p.requires_grad)


def test_only_matrices_and_kernels_decay():
    decays = {name for name, group in by_name(Optim(weight_decay=0.3), model()).items() if group["weight_decay"]}
    for name, group in by_name(Optim(weight_decay=0.3), model()).items():
        assert group["weight_decay"] in (0.0, 0.3), name
    parameters = dict(model().named_parameters())
    expected = {
        name
        for name, parameter in parameters.items()
        if name.endswith(".weight")
        and parameter.ndim >= 2
        and not name.startswith(("prompts.points", "prompts.boxes", "prompts.masks.no_mask"))
        and not name.startswith(("decoder.iou_token", "decoder.mask_tokens"))
    }
    assert decays == expected
    assert "encoder.blocks.0.attn.qkv.weight" in decays
    assert "decoder.output_upscaling.0.weight" in decays
    assert not {"encoder.pos_embed", "encoder.blocks.0.attn.rel_pos_h", "encoder.blocks.0.norm1.weight"} & decays


def test_muon_moves_the_matrices_that_decay_and_adamw_the_rest():
    net = model()
    groups = by_name(Optim(lr=1e-3, muon_lr=2e-2, algorithm="muon", layer_decay=0.5), net)
    for name, parameter in net.named_parameters():
        group = groups[name]
        vector = min(len(parameter), parameter[0].numel()) == 1  # a matrix of one row or column has no directions
        assert group["muon"] == (group["weight_decay"] > 0 and not vector), name
    assert groups["decoder.iou_prediction_head.layers.0.weight"]["lr"] == 2e-2
    assert groups["encoder.blocks.2.mlp.lin1.weight"]["lr"] == 1e-2
    assert groups["encoder.blocks.2.mlp.lin1.bias"]["lr"] == 5e-4
    assert not by_name(Optim(), net)["encoder.blocks.2.mlp.lin1.weight"]["muon"]
    with pytest.raises(ValueError, match="Muon moves matrices and kernels"):
        Muon([{"params": [nn.Parameter(torch.zeros(3))], "muon": True}], 0.1)


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (5, 24), (24, 5), (1, 7), (48, 16)])
def test_orthogonal_matrices_have_singular_values_near_one(rows, columns):
    # Condition number 30, at any scale.
    u, _, v = torch.linalg.svd(torch.randn(4, rows, columns), full_matrices=False)
    spread = torch.logspace(0, -1.5, min(rows, columns))
    scale = torch.tensor([1e-3, 1.0, 50.0, 1e4])[:, None, None]
    found = orthogonal(scale * (u * spread) @ v)
    values = torch.linalg.svdvals(found)
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    # Along the given ones: the same singular vectors.
    inside = u.mT @ found @ v.mT
    assert (inside - torch.diag_embed(inside.diagonal(dim1=1, dim2=2))).abs().max() < 1e-2
    assert inside.diagonal(dim1=1, dim2=2).min() > 0.6


def test_orthogonal_leaves_zero_and_precision_alone():
    assert orthogonal(torch.zeros(1, 3, 4)).abs().max() == 0
    assert orthogonal(torch.randn(1, 3, 4).bfloat16()).dtype == torch.bfloat16


def with_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_a_muon_step_by_hand():
    start = torch.randn(6, 4)
    weight = nn.Parameter(start.clone())
    optimizer = Muon([{"params": [weight], "muon": True, "weight_decay": 0.1}], lr=0.02)
    momentum, expected = torch.zeros(6, 4), start
    for seed in range(3):
        with_gradients([weight], seed)
        gradient = weight.grad.clone()
        optimizer.step()
        assert torch.equal(weight.grad, gradient)
        momentum = 0.95 * momentum + 0.05 * gradient
        update = orthogonal((0.05 * gradient + 0.95 * momentum)[None])[0]
        expected = expected * (1 - 0.02 * 0.1) - 0.02 * 1.5**0.5 * update
        torch.testing.assert_close(weight.detach(), expected)


def test_matrices_of_one_shape_move_together_as_they_would_one_by_one():
    shapes = [(6, 4), (4, 6), (6, 4), (3, 3), (6, 4)]
    together = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    alone = copy.deepcopy(together)
    one = Muon([{"params": together, "muon": True, "weight_decay": 0.1}], lr=0.02)
    many = [Muon([{"params": [p], "muon": True, "weight_decay": 0.1}], lr=0.02) for p in alone]
    for seed in range(3):
        with_gradients(together, seed)
        with_gradients(alone, seed)
        one.step()
        for optimizer in many:
            optimizer.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_kernels_move_as_the_matrix_of_a_patch():
    kernel = nn.Parameter(torch.randn(6, 2, 3, 3))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    optimizers = [Muon([{"params": [p], "muon": True, "weight_decay": 0.1}], lr=0.02) for p in (kernel, matrix)]
    for seed in range(3):
        with_gradients([kernel], seed)
        matrix.grad = kernel.grad.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach())


def test_groups_without_muon_are_torchs_adamw_to_the_bit():
    ours = [nn.Parameter(torch.randn(shape)) for shape in [(4, 5), (7,), (2, 3, 2, 2)]]
    theirs = copy.deepcopy(ours)
    matrix = nn.Parameter(torch.randn(4, 4))

    def groups(parameters):
        return [
            {"params": parameters[:2], "lr": 1e-2, "weight_decay": 0.2},
            {"params": parameters[2:], "weight_decay": 0.0},
        ]

    one = Muon([*groups(ours), {"params": [matrix], "muon": True, "weight_decay": 0.0}], 1e-3, (0.8, 0.99))
    other = torch.optim.AdamW(groups(theirs), 1e-3, (0.8, 0.99), fused=True)
    for seed in range(4):
        with_gradients([*ours, matrix], seed)
        with_gradients(theirs, seed)
        one.step()
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_a_restored_optimiser_goes_on_to_the_bit(algorithm, tmp_path):
    optim = Optim(lr=1e-2, algorithm=algorithm, warmup=2, schedule="cosine", layer_decay=0.9)
    net = model(depth=1)
    optimizer, schedule = optim.build(net, 10)

    def steps(net, optimizer, schedule, seeds):
        for seed in seeds:
            with_gradients(net.parameters(), seed)
            optimizer.step()
            schedule.step()

    steps(net, optimizer, schedule, range(3))
    saved = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    torch.save(saved, tmp_path / "state")
    steps(net, optimizer, schedule, range(3, 6))

    saved = torch.load(tmp_path / "state", weights_only=True)
    again = model(depth=1)
    again.load_state_dict(saved["net"])
    optimizer, schedule = optim.build(again, 10)
    optimizer.load_state_dict(saved["optimizer"])
    schedule.load_state_dict(saved["schedule"])
    steps(again, optimizer, schedule, range(3, 6))
    for (name, a), b in zip(net.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_weights_without_a_gradient_stay():
    moved, still = (nn.Parameter(torch.randn(3, 3)) for _ in range(2))
    before = still.detach().clone()
    optimizer = Muon([{"params": [moved, still], "muon": True, "weight_decay": 0.5}], lr=0.1)
    with_gradients([moved], 0)
    loss = optimizer.step(lambda: torch.tensor(4.0))
    assert loss == 4
    assert torch.equal(still, before)
    assert still.grad is None


def share_steps(rank, ranks, folder):
    """One rank of the test below: the same gradients everywhere, the work shared, and the result written down."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    shapes = [(6, 4), (4, 6), (6, 4), (3, 3), (8, 2, 3, 3)]
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = Muon([{"params": parameters, "muon": True, "weight_decay": 0.1}], lr=0.02, shared=True)
    for seed in range(3):
        with_gradients(parameters[1:] if seed == 0 else parameters, seed)
        optimizer.step()
    torch.save([p.detach() for p in parameters], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_share_the_work_and_end_with_the_same_weights(tmp_path):
    ranks = 3
    torch.multiprocessing.spawn(share_steps, (ranks, str(tmp_path)), ranks)
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in [(6, 4), (4, 6), (6, 4), (3, 3), (8, 2, 3, 3)]]
    alone = Muon([{"params": parameters, "muon": True, "weight_decay": 0.1}], lr=0.02)
    for seed in range(3):
        with_gradients(parameters[1:] if seed == 0 else parameters, seed)
        alone.step()
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    for i, parameter in enumerate(parameters):
        assert all(torch.equal(found[0][i], other[i]) for other in found)
        torch.testing.assert_close(found[0][i], parameter.detach(), atol=1e-6, rtol=1e-5)


def test_work_is_dealt_evenly_and_all_of_it():
    costs = [1, 9, 4, 4, 2, 7, 3]
    whose = _deal(costs, 3)
    loads = [sum(c for c, owner in zip(costs, whose, strict=True) if owner == r) for r in range(3)]
    assert sum(loads) == sum(costs)
    assert max(loads) <= 11
    assert _deal([5, 5], 1) == [0, 0]
    assert sorted(_deal([1], 4)) == [0]
