"""How fast the model's parts are beside others that compute the same, measured in one run.

python benchmarks/model.py encoder
python benchmarks/model.py encoder --size 512 --rounds 7 --threads 2 --precision fp32
python benchmarks/model.py decoder --rounds 3

Variants take turns in a shuffled order, and a ratio is the median over the rounds of the ratio within one round: what
else the machine does hits all alike. The difference to the reference stands beside each ratio.
"""

from __future__ import annotations

import argparse
import copy
import functools
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from rich.console import Console
from rich.table import Table
from segment_anything import sam_model_registry
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn

from samlit.contracts import Encoder
from samlit.model import Sam
from samlit.structures import Embedding, PromptSet, Ragged
from samlit.weights.layouts import from_sam
from samlit_decoders.mask import Mask
from samlit_encoders.vit import Vit, VitB, VitH, VitL
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points

PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # dense bf16, as sold
ENCODERS = {"vit_b": VitB, "vit_l": VitL, "vit_h": VitH}


class Variant(NamedTuple):
    """One way to compute something.

    Attributes:
        name: What the table calls it.
        run: Computes it once; returns what is compared.
        compare: Whether its result should equal the reference's.
    """

    name: str
    run: Callable[[], Tensor]
    compare: bool = True


class Lap(NamedTuple):
    """Seconds of one run: on the clock, and of this process on all its processors."""

    wall: float
    processor: float


def lap(run: Callable[[], Tensor]) -> Lap:
    processor, wall = time.process_time(), time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Lap(time.perf_counter() - wall, time.process_time() - processor)


def difference(found: Tensor, reference: Tensor) -> float:
    """Norm of the difference over norm of the reference."""
    return float((found.float() - reference.float()).norm() / reference.float().norm())


def race(title: str, variants: list[Variant], rounds: int, references: Sequence[str] = ()) -> Table:
    """Time variants against each other.

    Args:
        title: Of the table.
        variants: The first is the reference that results are compared with.
        rounds: How often each runs, after a first time that is compared and not timed.
        references: Names of further variants whose ratio has a column; the first variant's always has.
    """
    references = [variants[0].name, *references]
    expected = variants[0].run()
    errors = {v.name: difference(v.run(), expected) if v.compare else None for v in variants[1:]}
    laps: dict[str, list[Lap]] = {variant.name: [] for variant in variants}
    order, chance = list(variants), random.Random(0)
    for _ in range(rounds):
        chance.shuffle(order)
        for variant in order:
            laps[variant.name].append(lap(variant.run))

    def ratio(name: str, reference: str, clock: int) -> float:
        return statistics.median(a[clock] / b[clock] for a, b in zip(laps[reference], laps[name], strict=True))

    table = Table(title=f"{title}, median of {rounds} rounds", title_justify="left")
    table.add_column("variant", no_wrap=True)
    for column in ("wall s", "cpu s", "difference", *(f"x {name}" for name in references), "on the clock"):
        table.add_column(column, justify="right")
    for variant in variants:
        times = laps[variant.name]
        error = errors.get(variant.name)
        table.add_row(
            variant.name,
            *(f"{statistics.median(t[clock] for t in times):.3g}" for clock in (0, 1)),
            "" if error is None else f"{error:.1e}",
            *(f"{ratio(variant.name, reference, 1):.2f}" for reference in references),
            f"{ratio(variant.name, references[0], 0):.2f}",
        )
    return table


def machine() -> str:
    """What the figures were measured on, one line."""
    names = [platform.processor() or platform.machine()]
    if sys.platform == "linux":
        words = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        known = {key.strip(): value.split() for key, value in words.items()}
        units = [flag for flag in known.get("flags", ()) if flag in ("amx_bf16", "avx512_bf16", "amx_fp16")]
        names = [" ".join(known.get("model name", names)), f"bf16 units: {', '.join(units) or 'none'}"]
    if torch.cuda.is_available():
        names.append(torch.cuda.get_device_name())
    threads = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    return f"{', '.join(names)}, {threads}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def stirred(module: nn.Module) -> nn.Module:
    """The module with positions that are not zero, as they are when it is new: zeros hide errors, and denormals."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "pos" in name.rpartition(".")[2]:
                parameter.normal_(std=0.05)
    return module.eval()


def cast(run: Callable[[Tensor], Tensor], image: Tensor) -> Callable[[], Tensor]:
    """The same under bf16 autocast."""

    def under() -> Tensor:
        with torch.autocast(image.device.type, torch.bfloat16):
            return run(image)

    return under


@torch.no_grad()
def encoder(given: argparse.Namespace, console: Console) -> None:
    """ViT-B, one image, against segment-anything and timm; on a GPU B, L and H in bf16 as well."""
    torch.manual_seed(0)
    official = sam_model_registry["vit_b"]().image_encoder
    if given.size != 1024:
        official = type(official)(
            img_size=given.size,
            out_chans=256,
            norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=(2, 5, 8, 11),
        )
    stirred(official)
    peer = stirred(timm.create_model("samvit_base_patch16", pretrained=False, img_size=given.size))
    own = VitB(given.size).eval()
    own.load_state_dict(official.state_dict())
    image = torch.randn(1, 3, given.size, given.size)
    variants = [Variant("segment-anything fp32", lambda: official(image))]
    if "fp32" in given.precision:
        variants += [
            Variant("timm fp32", lambda: peer.forward_features(image), compare=False),
            Variant("samlit fp32", lambda: own(image).image),
        ]
    if "bf16" in given.precision:
        half = copy.deepcopy(own).bfloat16()
        variants += [
            Variant("segment-anything autocast bf16", cast(official, image)),
            Variant("timm autocast bf16", cast(peer.forward_features, image), compare=False),
            Variant("samlit autocast bf16", cast(lambda x: own(x).image, image)),
            Variant("samlit bf16 weights", lambda: half(image.bfloat16()).image),
        ]
    peers = [variant.name for variant in variants[1:] if "samlit" not in variant.name]
    console.print(race(f"ViT-B encoder, {given.size} px, one image", variants, given.rounds, peers))
    if torch.cuda.is_available():
        console.print(throughput(given))


def throughput(given: argparse.Namespace) -> Table:
    """Images a second of B, L and H on a GPU, with bf16 weights."""
    peak = next((p for name, p in PEAK.items() if name in torch.cuda.get_device_name()), None)
    table = Table(title=f"encoders, {given.size} px, batch {given.batch}, bf16 weights", title_justify="left")
    for column in ("encoder", "images/s", "TFLOP/s", "share of peak"):
        table.add_column(column, justify="right" if len(table.columns) else "left")
    image = torch.randn(given.batch, 3, given.size, given.size, device="cuda", dtype=torch.bfloat16)
    for name, build in ENCODERS.items():
        with torch.device("cuda"):
            plain = build(given.size).bfloat16().eval()
        work = flops(plain, given.size)
        for label, run in ((name, plain), (f"{name}, compiled", torch.compile(plain))):
            laps = [lap(lambda run=run: run(image).image).wall for _ in range(given.rounds + 2)]
            rate = given.batch / statistics.median(laps[2:])  # the first two compile and choose kernels
            share = f"{rate * work / peak:.0%}" if peak else ""
            table.add_row(label, f"{rate:.1f}", f"{rate * work / 1e12:.3g}", share)
    return table


def flops(vit: Vit, size: int) -> float:
    """Of one image, 2 a multiply-add: the linear maps and the attention without its positions, no window padding."""
    cells = (size // vit.stride) ** 2
    maps = [p for name, p in vit.named_parameters() if p.ndim in (2, 4) and "pos" not in name]
    total = 2.0 * cells * sum(p.numel() for p in maps)
    for block in vit.blocks:
        width = block.norm1.weight.numel()
        total += 4.0 * cells * (block.window**2 if block.window else cells) * width
    return total


class Given(Encoder):
    """No encoder: embeddings are given."""

    channels, stride = 256, 16

    def forward(self, image: Tensor) -> Embedding:
        """Never asked."""
        raise NotImplementedError


def answerers() -> tuple[nn.Module, nn.Module, Sam]:
    """The released prompt encoder and mask decoder, and samlit's with the same weights."""
    prompts = PromptEncoder(256, (64, 64), (1024, 1024), 16).eval()
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    masks = MaskDecoder(transformer_dim=256, transformer=transformer).eval()
    with torch.no_grad():  # new weights look at nothing in particular
        for parameter in masks.parameters():
            parameter.mul_(1.7 if parameter.ndim > 1 else 1)
    parts = {"prompt_encoder": prompts, "mask_decoder": masks}
    state = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    net = Sam(Given(), [Points, Boxes, Masks], Mask).eval()
    net.load_state_dict(from_sam(state, "samlit"))
    return prompts, masks, net


@torch.inference_mode()
def decoder(given: argparse.Namespace, console: Console) -> None:
    """Prompts and mask decoder, 1 and 64 points on one image and 1 point with a mask, against segment-anything."""
    torch.manual_seed(0)
    prompts, masks, net = answerers()
    image = torch.randn(1, 256, 64, 64)
    for count, rough in ((1, False), (64, False), (1, True)):
        xy, label = torch.rand(count, 1, 2) * 1024, torch.ones(count, 1)
        logits = 5 * torch.randn(count, 1, 256, 256) if rough else None

        def official(xy: Tensor = xy, label: Tensor = label, logits: Tensor | None = logits) -> Tensor:
            sparse, dense = prompts(points=(xy, label), boxes=None, masks=logits)
            found: Tensor = masks(image, prompts.get_dense_pe(), sparse, dense, True)[0]
            return found

        values = {"points": Ragged.of(torch.cat([xy, label[..., None]], -1))}
        if logits is not None:
            values["masks"] = Ragged.of(logits)
        asked, embedding = PromptSet(torch.zeros(count, dtype=torch.int64), values, True), Embedding(image)

        def kept(asked: PromptSet = asked, embedding: Embedding = embedding) -> Tensor:
            return net.answer(embedding, asked, (1024, 1024)).logits

        def scratch(asked: PromptSet = asked) -> Tensor:
            return net.answer(Embedding(image), asked, (1024, 1024)).logits

        variants = [Variant("segment-anything fp32", official)]
        if "fp32" in given.precision:
            variants += [Variant("samlit fp32", scratch), Variant("samlit fp32, image kept", kept)]
        if "bf16" in given.precision:
            variants += [
                Variant("segment-anything autocast bf16", cast(lambda _, run=official: run(), image)),
                Variant("samlit autocast bf16", cast(lambda _, run=scratch: run(), image)),
            ]
        what = f"{count} point{'s' if count > 1 else ''}{' with a mask' if rough else ''}"
        console.print(race(f"decoder, {what}, one image", variants, given.rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for run in (encoder, decoder):
        part = parts.add_parser(run.__name__, help=run.__doc__)
        part.set_defaults(run=run)
        part.add_argument("--size", type=int, default=1024, help="side of the frame in pixels")
        part.add_argument("--rounds", type=int, default=5, help="how often each variant is timed")
        part.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
        part.add_argument("--threads", type=int, default=1, help="of the processor")
        part.add_argument("--batch", type=int, default=8, help="images at once, on a GPU")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(machine(), highlight=False)
    given.run(given, console)


if __name__ == "__main__":
    main()
