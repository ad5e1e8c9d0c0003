"""All benchmarks one after the other, and docs/benchmarks.md from what they print.

python benchmarks --weights mobile_sam.pt --image photo.jpg --threads 2
python benchmarks --only losses train

What has run is kept in --folder as it was printed, with its command, machine and date: a run that is stopped goes on
where it was, `--only` runs its own again, and the page is made of all that is there. What lacks weights, a photograph
or a GPU says so and is left out.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from samlit import atomic

HERE = Path(__file__).parent
PACKAGES = ("torch", "torchvision", "timm", "segment-anything", "numpy", "numba")


@dataclass(frozen=True)
class Benchmark:
    """A part of the page: what it shows, and the words of its commands; {weights} and {image} are filled in."""

    title: str
    says: str
    commands: tuple[str, ...]
    gpu: bool = False


ALL = {
    "model": Benchmark(
        "The model",
        "Encoder and decoder beside segment-anything's and timm's, with equal weights.",
        ("model.py encoder --precision fp32 --threads {threads}", "model.py decoder --precision fp32 --rounds 3"),
    ),
    "data": Benchmark(
        "Data",
        "From SA-1B's tars to tensors of an image and 64 masks, beside other loaders, one thread.",
        ("data.py",),
    ),
    "losses": Benchmark(
        "Losses",
        "Focal, dice, IoU and their slopes at the masks' resolution, beside torchvision's parts and autograd.",
        ("losses.py --threads {threads}",),
    ),
    "train": Benchmark(
        "The training step",
        "Eleven passes over 64 masks an image, beside the released modules with one graph over all passes.",
        (
            "train.py time --model tiny base --images 1 2 --rounds 3 --threads {threads}",
            "train.py memory --images 1 --threads {threads}",
        ),
    ),
    "train-gpu": Benchmark(
        "The training step on a GPU",
        "Images a second in bf16, and the share of what its matrix units do in a plain product.",
        ("train.py gpu --model vit_b vit_l vit_h --images 1 2 4",),
        gpu=True,
    ),
    "cut_outs": Benchmark(
        "Cut-outs for text",
        "What a step's text prompts take, with CLIP in the step and with what `samlit shards embed` made before.",
        ("cut_outs.py --images 4 --threads {threads}",),
    ),
    "everything": Benchmark(
        "Everything-mode",
        "All after the encoder, beside SamAutomaticMaskGenerator with equal weights, which finds the same masks.",
        (
            "everything.py time --weights {weights} --image {image} --points 8",
            "everything.py memory --weights {weights} --image {image} --points 8",
        ),
    ),
    "browser": Benchmark(
        "The decoder in a browser",
        "A click's answer in headless Chromium, WebAssembly, beside SAM's own ONNX export.",
        ("browser.py --weights {weights}",),
    ),
    "predictor": Benchmark(
        "The predictor", "Boxes about one image, in turns and at once.", ("predictor.py --weights {weights}",)
    ),
}


def main() -> int:
    """Run what is asked for, and write the page."""
    parser = argparse.ArgumentParser(
        "python benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=ALL, help="these, though they were run before")
    parser.add_argument("--weights", help="MobileSAM's, for the benchmarks that compare masks")
    parser.add_argument("--image", help="a photograph, for everything-mode")
    parser.add_argument("--threads", type=int, default=1, help="of the processor, where a benchmark takes that")
    parser.add_argument("--busy", action="store_true", help="say on the page that the machine had other work")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"), help="what was printed is kept here")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "benchmarks.md")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in given.only or ALL:
        kept = given.folder / f"{name}.json"
        if kept.exists() and not given.only:
            print(f"{name}: was run; `--only {name}` runs it again")
        elif lacks := _lacks(ALL[name], given):
            print(f"{name}: left out, for want of {lacks}")
        else:
            found = _run(ALL[name], given)
            failed |= found is None
            if found is not None:
                atomic.write(kept, json.dumps(found, indent=1))
    done = {name: json.loads(file.read_text()) for name in ALL if (file := given.folder / f"{name}.json").exists()}
    atomic.write(given.page, _page(done))
    print(f"{given.page}: {len(done)} of {len(ALL)}")
    return int(failed)


def _lacks(benchmark: Benchmark, given: argparse.Namespace) -> str | None:
    words = " ".join(benchmark.commands)
    if benchmark.gpu and not torch.cuda.is_available():
        return "a GPU"
    return next((f"--{key}" for key in ("weights", "image") if f"{{{key}}}" in words and not vars(given)[key]), None)


def _run(benchmark: Benchmark, given: argparse.Namespace) -> dict[str, Any] | None:
    """What its commands print, with where and when; nothing if one fails."""
    runs = []
    for command in benchmark.commands:
        # Names of files are their own part of the page's command, folders are nobody's business.
        shown = command.format(
            weights=Path(given.weights or "").name, image=Path(given.image or "").name, threads=given.threads
        )
        words = [
            part.format(weights=given.weights, image=given.image, threads=given.threads)
            for part in shlex.split(command)
        ]
        print(f"$ python benchmarks/{shown}", flush=True)
        ended = subprocess.run(
            [sys.executable, HERE / words[0], *words[1:]],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "COLUMNS": "118", "OMP_NUM_THREADS": str(given.threads)},
        )
        print(ended.stdout, flush=True)
        if ended.returncode:
            print(f"it failed with status {ended.returncode}: nothing is kept of {benchmark.title.lower()!r}")
            return None
        runs.append({"command": f"python benchmarks/{shown}", "printed": ended.stdout.strip("\n")})
    machine = _machine() + (", with other work beside it" if given.busy else "")
    return {"date": datetime.date.today().isoformat(), "machine": machine, "runs": runs}


def _machine() -> str:
    """Processor, cores, memory, GPU and versions, in words."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), name
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    parts.append(f"Python {platform.python_version()}")
    parts += [f"{package} {importlib.metadata.version(package)}" for package in PACKAGES]
    return ", ".join(parts)


def _page(done: dict[str, dict[str, Any]]) -> str:
    """The page, of what each benchmark printed."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `python benchmarks`, which runs them and copies what they print; nobody writes here by hand. The ways",
        "that are compared take turns in one process on the same machine: read the ratios, seconds are the machine's.",
    ]
    for name, found in done.items():
        lines += ["", f"## {ALL[name].title}", "", ALL[name].says, "", f"{found['date']}: {found['machine']}."]
        for run in found["runs"]:
            lines += [
                "",
                "```text",
                f"$ {run['command']}",
                *(line.rstrip() for line in run["printed"].splitlines()),
                "```",
            ]
    missing = [ALL[name].title for name in ALL if name not in done]
    if missing:
        lines += ["", "## Not run here", "", ", ".join(missing) + "."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
