"""One training step of the paper, eleven passes over all masks, beside a plain implementation of the same.

python benchmarks/train.py time
python benchmarks/train.py memory
python benchmarks/train.py time --model base --images 1 2 --rounds 3 --threads 2
python benchmarks/train.py gpu --model vit_b vit_l vit_h --images 1 2 4

The plain one is the released modules, asked image by image, with one graph over all passes and losses written out. Both
start from the same weights and are asked the same prompts, so that their losses are equal (the column "difference").
`time` lets them take turns in one process; `memory` measures each in a process of its own: the most that is resident
in it, above what is once the model is built, with a heap that gives large blocks back when they are freed: its holes
are not measured too. `gpu` says how many images a second a GPU trains on, how much of what its matrix units did in a
plain product that is, and how much memory it takes.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling import Sam as OfficialSam
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.model import Variant, machine, race
from samlit.loop import Round, drive
from samlit.losses import Losses
from samlit.metrics import mask_iou
from samlit.model import PIXEL_MEAN, PIXEL_STD, Sam
from samlit.structures import Batch, Prediction, PromptSet, Scene
from samlit.training.passes import Passes
from samlit.weights.layouts import from_sam
from samlit_decoders.mask import Mask
from samlit_encoders.vit import Vit
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points
from samlit_tasks.interactive import Interactive

WIDTHS: dict[str, tuple[int, int, int, tuple[int, ...]]] = {  # dim, depth, heads, global blocks
    "tiny": (192, 6, 3, (2, 5)),
    "base": (768, 12, 12, (2, 5, 8, 11)),
    "vit_b": (768, 12, 12, (2, 5, 8, 11)),
    "vit_l": (1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": (1280, 32, 16, (7, 15, 23, 31)),
}


def build(model: str, side: int, checkpoint: bool = False) -> Sam:
    """samlit's, new."""
    torch.manual_seed(0)
    dim, depth, heads, everywhere = WIDTHS[model]
    return Sam(Vit(side, dim, depth, heads, everywhere, checkpoint=checkpoint), [Points, Boxes, Masks], Mask).train()


def build_plain(model: str, side: int, own: Sam | None = None) -> OfficialSam:
    """The released modules, new; their weights are given to samlit's model."""
    torch.manual_seed(0)
    dim, depth, heads, everywhere = WIDTHS[model]
    norm = functools.partial(nn.LayerNorm, eps=1e-6)
    shape = {"img_size": side, "embed_dim": dim, "depth": depth, "num_heads": heads, "norm_layer": norm}
    encoder = ImageEncoderViT(
        **shape, qkv_bias=True, use_rel_pos=True, window_size=14, global_attn_indexes=everywhere, out_chans=256
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    decoder = MaskDecoder(transformer_dim=256, transformer=transformer)
    prompts = PromptEncoder(256, (side // 16, side // 16), (side, side), 16)
    official = OfficialSam(encoder, prompts, decoder, PIXEL_MEAN, PIXEL_STD).train()
    if own is not None:
        own.load_state_dict(from_sam(official.state_dict(), "samlit"))
    return official


def pictures(images: int, masks: int, side: int, device: str = "cpu") -> Batch:
    """Noise with ellipses on it."""
    chance = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8, generator=chance)
    k = images * masks
    middle, radius = torch.rand(2, k, 1, 1, generator=chance), 0.05 + 0.2 * torch.rand(2, k, 1, 1, generator=chance)
    at = (torch.arange(side) + 0.5) / side
    inside = ((at[:, None] - middle[1]) / radius[1]) ** 2 + ((at - middle[0]) / radius[0]) ** 2 <= 1
    size = torch.full((images, 2), side)
    return Batch(image, size, size, inside, torch.arange(images).repeat_interleave(masks)).to(device)


def task_of(passes: int) -> Interactive:
    """The paper's task, or its first passes."""
    return Interactive() if passes == 11 else Interactive(corrections=passes - 1, mask_only=False)


def scene_of(net: Sam, batch: Batch) -> Scene:
    return Scene(batch, net.prompt_types, 2, True, 3)


def own_step(net: Sam, batch: Batch, passes: int, at_once: int | None = None) -> Tensor:
    """The loss of one step, after its gradients."""
    net.zero_grad(set_to_none=True)
    embedding = net.embed(batch.image, batch.sizes)
    masks = torch.tensor(float(len(batch.masks)), device=batch.masks.device)
    learning = Passes(net, Losses(), batch, embedding, masks, at_once=at_once)
    drive(task_of(passes), scene_of(net, batch), learning.answer)
    loss = learning.loss()
    loss.backward()
    return loss.detach()


def plain_step(official: OfficialSam, net: Sam, batch: Batch, passes: int) -> Tensor:
    """The same loss, after its gradients, as one would write it first; `net` only simulates prompts."""
    official.zero_grad(set_to_none=True)
    embedding = official.image_encoder(official.preprocess(batch.image.float()))
    totals: list[Tensor] = []

    def learn(turn: Round) -> None:
        totals.append(plain_loss(turn.prediction, batch.masks))

    drive(task_of(passes), scene_of(net, batch), lambda asked: plain_answer(official, embedding, asked), learn)
    loss = torch.stack(totals).mean(0).sum() / len(batch.masks)
    loss.backward()
    return loss.detach()


def plain_answer(official: OfficialSam, embedding: Tensor, asked: PromptSet) -> Prediction:
    """Image by image, and in an image those with a box and those without, which the released modules keep apart."""
    side = official.image_encoder.img_size
    points, boxes, masks = (asked.given.get(name) for name in ("points", "boxes", "masks"))
    ambiguous = asked.multimask is None
    logits = torch.empty(0)
    iou = torch.empty(0)
    for image in range(len(embedding)):
        mine = asked.image_index == image
        boxed = torch.zeros_like(mine) if boxes is None else boxes.valid[:, 0]
        for rows in ((mine & boxed).nonzero()[:, 0], (mine & ~boxed).nonzero()[:, 0]):
            if not len(rows):
                continue
            clicks = None
            if points is not None and points.valid[rows].any():
                given = points.values[rows][points.valid[rows]].view(len(rows), -1, 3)
                clicks = given[..., :2], given[..., 2]
            corners = boxes.values[rows, 0] if boxes is not None and bool(boxed[rows[0]]) else None
            rough = None if masks is None else masks.values[rows]
            sparse, dense = official.prompt_encoder(clicks, corners, rough)
            found, sure = official.mask_decoder(
                embedding[image : image + 1], official.prompt_encoder.get_dense_pe(), sparse, dense, ambiguous
            )
            if not len(logits):
                logits = found.new_zeros(len(mine), *found.shape[1:])
                iou = sure.new_zeros(len(mine), sure.shape[1])
            logits, iou = logits.index_copy(0, rows, found), iou.index_copy(0, rows, sure)
    return Prediction(logits, iou, torch.ones_like(iou, dtype=torch.bool), (side, side))


def plain_loss(prediction: Prediction, truth: Tensor) -> Tensor:
    """20 focal + dice of the best mask + the squared error of all predicted IoUs, (K,)."""
    full = F.interpolate(prediction.logits.float(), prediction.frame, mode="bilinear", align_corners=False)
    wanted = truth[:, None].expand_as(full).float()
    p = full.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(full, wanted, reduction="none")
    right = p * wanted + (1 - p) * (1 - wanted)
    focal = ((0.25 * wanted + 0.75 * (1 - wanted)) * (1 - right) ** 2 * entropy).flatten(2).mean(2)
    both, sizes = (p * wanted).flatten(2).sum(2), p.flatten(2).sum(2) + wanted.flatten(2).sum(2)
    masks = (20 * focal + 1 - (2 * both + 1) / (sizes + 1)).min(1).values
    actual = mask_iou(full > 0, truth[:, None])
    return masks + ((prediction.iou.float() - actual) ** 2).mean(1)


def measure_time(given: argparse.Namespace, console: Console) -> None:
    """Seconds of a step, both in turns."""
    for model in given.model:
        for images in given.images:
            net = build(model, given.size)
            official = build_plain(model, given.size, net)
            batch = pictures(images, given.masks, given.size)
            variants = [
                Variant("plain", functools.partial(plain_step, official, net, batch, given.passes[-1])),
                Variant("samlit", functools.partial(own_step, net, batch, given.passes[-1])),
                Variant(
                    f"samlit, {given.at_once} masks at once",
                    functools.partial(own_step, net, batch, given.passes[-1], given.at_once),
                ),
            ]
            what = f"{model}, {given.size} px, {images} x {given.masks} masks, {given.passes[-1]} passes"
            console.print(race(what, variants, given.rounds))


def measure_memory(given: argparse.Namespace, console: Console) -> None:
    """Most resident memory of a step, each in a process of its own."""
    heap = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    for model in given.model:
        title = f"{model}, {given.size} px, {given.masks} masks an image: GiB above the model's own"
        table = Table(title=title, title_justify="left")
        table.add_column("variant", no_wrap=True)
        table.add_column("images", justify="right")
        for passes in given.passes:
            table.add_column(f"{passes} pass{'es' if passes > 1 else ''}", justify="right")
        table.add_column("grows", justify="right")
        table.add_column("x plain", justify="right")
        for images in given.images:
            plain: list[float] = []
            for name in ("plain", "samlit", f"samlit, {given.at_once} masks at once"):
                words = [*sys.argv[1:1], "alone", "--variant", name.split(",")[0], "--model", model]
                words += ["--size", given.size, "--images", images, "--masks", given.masks, "--threads", given.threads]
                words += ["--at-once", given.at_once if "at once" in name else 0]
                found = []
                for passes in given.passes:
                    command = [sys.executable, __file__, *map(str, words), "--passes", str(passes)]
                    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=heap)
                    if ended.returncode:  # killed by the system, most of the time
                        found.append(float("nan"))
                        continue
                    found.append(json.loads(ended.stdout)["bytes"] / 2**30)
                plain = plain or found
                ratio = plain[-1] / found[-1]
                cells = [f"{x:.2f}" for x in found] + [f"{found[-1] / found[0]:.2f}", f"{ratio:.1f}"]
                table.add_row(name, str(images), *("did not fit" if c == "nan" else c for c in cells))
        console.print(table)


def measure_alone(given: argparse.Namespace, console: Console) -> None:
    """For `memory`: one step, and what it took."""
    model, images, passes = given.model[0], given.images[0], given.passes[0]
    net, batch = build(model, given.size), pictures(images, given.masks, given.size)
    official = build_plain(model, given.size) if given.variant == "plain" else None
    for module in (net, official):
        if module is not None:  # its gradients stay, and are the model's own
            for parameter in module.parameters():
                parameter.grad = torch.zeros_like(parameter)
    before = _resident()
    if official is not None:
        plain_step(official, net, batch, passes)
    else:
        own_step(net, batch, passes, given.at_once or None)
    print(json.dumps({"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before}))


def _resident() -> int:
    words = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(words["VmRSS"].split()[0]) * 1024


def measure_gpu(given: argparse.Namespace, console: Console) -> None:
    """Images a second, share of the measured peak, and memory, in bf16."""
    device = given.device
    peak = matrix_peak(device)
    console.print(f"a product of two matrices: {peak / 1e12:.1f} TFLOP/s in bf16", highlight=False)
    table = Table(title=f"{given.size} px, {given.masks} masks, {given.passes[-1]} passes, bf16", title_justify="left")
    for column in ("model", "images", "masks at once", "images/s", "TFLOP an image", "share of peak", "GiB"):
        table.add_column(column, justify="right")
    for model in given.model:
        for images in given.images:
            for at_once in dict.fromkeys((None, given.at_once)):
                words = [model, str(images), str(at_once or "all")]
                try:
                    rate, flops, memory = on_device(given, model, images, at_once, device)
                    share = rate * flops / peak
                    words += [f"{rate:.2f}", f"{flops / 1e12:.2f}", f"{share:.0%}", f"{memory / 2**30:.1f}"]
                except torch.OutOfMemoryError:
                    words += ["does not fit", "", "", ""]
                table.add_row(*words)
    console.print(table)


def on_device(
    given: argparse.Namespace, model: str, images: int, at_once: int | None, device: str
) -> tuple[float, float, float]:
    """Images a second, FLOPs an image, and the most memory of one training step with AdamW."""
    net = build(model, given.size, given.checkpoint).to(device)
    batch = pictures(images, given.masks, given.size, device)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-5, fused=device == "cuda")

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            own_step(net, batch, given.passes[-1], at_once)
        optimizer.step()

    step()
    with FlopCounterMode(display=False) as counted:
        step()
    wait: Callable[[], Any] = torch.cuda.synchronize if device == "cuda" else lambda: None
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    laps = []
    for _ in range(given.rounds):
        wait()
        begun = time.perf_counter()
        step()
        wait()
        laps.append(time.perf_counter() - begun)
    memory = float(torch.cuda.max_memory_allocated()) if device == "cuda" else float("nan")
    return images / median(laps), counted.get_total_flops() / images, memory


def matrix_peak(device: str, side: int = 8192) -> float:
    """FLOP/s of a plain product in bf16."""
    side = side if device == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    laps = []
    for _ in range(12):
        begun = time.perf_counter()
        a @ b
        torch.cuda.synchronize() if device == "cuda" else nullcontext()
        laps.append(time.perf_counter() - begun)
    return 2 * side**3 / median(laps[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    runs = {"time": measure_time, "memory": measure_memory, "gpu": measure_gpu, "alone": measure_alone}
    for name, run in runs.items():
        part = parts.add_parser(name, help=run.__doc__)
        part.set_defaults(run=run)
        gpu = name == "gpu"
        part.add_argument("--model", nargs="+", choices=WIDTHS, default=["vit_b", "vit_l"] if gpu else ["tiny", "base"])
        part.add_argument("--size", type=int, default=1024 if gpu else 256, help="side of the frame in pixels")
        part.add_argument("--images", nargs="+", type=int, default=[1, 2, 4])
        part.add_argument("--masks", type=int, default=64, help="of an image")
        part.add_argument("--passes", nargs="+", type=int, default=[1, 11])
        part.add_argument("--at-once", type=int, default=16, help="masks that are learned from together")
        part.add_argument("--rounds", type=int, default=5, help="how often each variant is timed")
        part.add_argument("--threads", type=int, default=1, help="of the processor")
        part.add_argument("--variant", default="samlit", help=argparse.SUPPRESS)
        part.add_argument("--device", default="cuda", help="of `gpu`; cpu to try it")
        part.add_argument("--checkpoint", action="store_true", help="compute the encoder's blocks again, on a GPU")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    console = Console(width=None if sys.stdout.isatty() else 140)
    if given.part != "alone":
        console.print(machine(), highlight=False)
    given.run(given, console)


if __name__ == "__main__":
    main()
