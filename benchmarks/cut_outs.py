"""The text prompts of a training step: CLIP looks at cut-outs in it, or `samlit shards embed` has let it look before.

python benchmarks/cut_outs.py
python benchmarks/cut_outs.py --clip ViT-L-14-336-quickgelu --device cuda

CLIP's weights are new, for time does not depend on them. Both ways take turns; medians.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from PIL import Image
from rich.console import Console
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.model import Variant, machine, race
from samlit import cli
from samlit.loading.frames import frame, pack
from samlit.loading.images import Encoded
from samlit.shards.records import Annotation, Record
from samlit.shards.writing import write
from samlit.structures import Scene
from samlit.text.clip import build
from samlit_prompts.text import Text
from samlit_sources.sa1b import Sa1b
from samlit_sources.shapes import Shapes


def shards_of_scenes(folder: Path, count: int, side: int) -> None:
    """A shard of scenes with their masks."""
    scenes = Shapes("train", count=count, size=side)
    scenes.prepare(lambda *_: None)
    records = []
    for number in range(count):
        sample = scenes[number]
        pixels = sample.image.pixels() if isinstance(sample.image, Encoded) else sample.image
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "jpeg", quality=90)
        masks = tuple(Annotation(mask) for mask in sample.masks)
        records.append(Record(number, pixels.shape[:2], stream.getvalue(), masks))
    write(folder / "sa_000000.tar", records)


def main() -> None:
    """Print seconds, their ratio, and bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", default="ViT-B-32", help="a model of open_clip's (default: %(default)s)")
    parser.add_argument("--images", type=int, default=8, help="of a step, with all of their masks")
    parser.add_argument("--size", type=int, default=512, help="of the frame, pixels")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is timed, in turns")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(machine(), highlight=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "shards").mkdir()
        shards_of_scenes(folder / "shards", given.images, given.size)
        torch.manual_seed(0)
        torch.save(build(given.clip)[0].state_dict(), folder / "clip.pt")
        told = {"clip": given.clip, "weights": str(folder / "clip.pt")}
        prompt = {"class_path": "text", "init_args": told}
        recipe = {"model": {"prompts": ["points", prompt]}, "data": {"image_size": given.size}}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        words = ["embed", folder / "shards", "--recipe", folder / "recipe.yaml", "--out", folder / "out"]
        with contextlib.redirect_stdout(sys.stderr):  # where its folder is concerns nobody
            code = cli.main(["shards", *map(str, [*words, "--device", given.device])])
        if code:
            sys.exit(code)
        source = Sa1b(str(folder / "shards"))
        source.prepare(lambda *_: None)
        batch = pack([frame(source[n], given.size) for n in range(len(source))]).to(given.device)
        ways = {"CLIP in the step": Text(**told), "made before": Text(**told, cut_outs=str(folder / "out"))}
        for text in ways.values():
            text.to(given.device).train()
        turn = itertools.count()

        def ask(text: Text) -> Tensor:
            return text.simulate(batch.masks, None, Scene(batch, {"text": text}, next(turn), training=True)).values

        variants = [Variant(way, functools.partial(ask, text), compare=False) for way, text in ways.items()]
        console.print(
            race(f"text prompts of {given.images} images, {given.clip}, {given.device}", variants, given.rounds)
        )
        kept = sum(file.stat().st_size for file in (folder / "out").glob("*.npy")) / len(batch.masks)
    console.print(f"{len(batch.masks)} masks, {kept / 1000:.1f} kB kept of each", highlight=False)


if __name__ == "__main__":
    main()
