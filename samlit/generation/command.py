"""`samlit generate`: masks of everything in images, as shards in SA-1B's layout."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samlit import atomic
from samlit.errors import SamlitError, UsageError, did_you_mean
from samlit.evaluation import evaluate
from samlit.loading import specs
from samlit.run import ranks
from samlit.shell import terminal
from samlit.shell.options import ArgumentParser

if TYPE_CHECKING:
    from samlit.generation.finding import Finder
    from samlit.generation.workplace import Workplace
    from samlit.source import Source

__all__ = ["PRESETS", "finish", "generate", "main"]

FORMAT = 1  # of the plan
PRESETS: dict[str, dict[str, str]] = {
    # As SA-1B was made (SAM_SPEC 3.2).
    "paper": {
        "points_per_side": "32",
        "pred_iou_thresh": "0.88",
        "stability_score_thresh": "0.95",
        "crop_n_layers": "2",
        "crop_n_points_downscale_factor": "2",
        "min_mask_region_area": "100",
        "drop_small": "true",
        "max_mask_share": "0.95",
    },
    # The defaults of the released generator.
    "released": {},
}
SAID = 30.0
"""Seconds between two lines about how far it is, where there is no terminal."""
LOOKED = 10.0
"""Seconds between two looks at how far the others are."""
PAUSE = 0.5
"""Seconds between two looks at whether the others have finished."""

EPILOG = """keys of SAM's automatic mask generator are --everything.KEY VALUE (docs/tasks.md), and change a preset:
  paper      as SA-1B was made: 32 x 32 points, 2 x 2 and 4 x 4 crops with fewer, masks under 100 pixels or over 95 % of
             the image dropped, small islands and holes removed
  released   the released generator's defaults: 32 x 32 points, no crops, nothing dropped or removed

One process or many, on one machine or several that share the folder: start the same command as often as you like, by
hand, by torchrun or as a SLURM array. Each takes images that nobody else has; of those that die the others take over
what they had. The same command goes on where all of them were stopped, image by image, with any number of processes.

At the end DIR has statistics.json for a program, the same in statistics.png and sheet.jpg for a person, and in
quarantine.jsonl a line for each image that was left out.

examples:
  samlit generate --images photos --weights sam_vit_h --out shards --device cuda --short-side 1500
  samlit generate --data coco:train.json --weights mobile_sam --out shards --preset released
  torchrun --nproc-per-node 8 -m samlit generate --images photos --weights sam_vit_h --out shards --device cuda
"""


def main(argv: list[str]) -> int:
    """Run the command with the words after `samlit generate`."""
    parser = ArgumentParser(
        prog="samlit generate",
        usage="samlit generate (--images DIR | --data SOURCE:PATH ...) --weights W --out DIR [OPTION ...]",
        description="Masks of everything in images, as shards in SA-1B's layout.",
        epilog=EPILOG,
    )
    what = parser.reads.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", metavar="DIR", help="a folder of images, with its folders")
    told = "the images of any source, as in sa1b:shards (`samlit list sources`); its masks are not looked at"
    what.add_argument("--data", nargs="+", metavar="SOURCE:PATH", help=told)
    told = "what else a source takes, as in --set images=photos"
    parser.reads.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=told)
    published = "published weights (`samlit list weights`), or a file: runs/NAME/best.ckpt"
    parser.reads.add_argument("--weights", required=True, metavar="NAME|FILE", help=published)
    parser.writes.add_argument("--out", required=True, metavar="DIR", help="the folder of the shards")
    parser.runs.add_argument("--preset", default="paper", metavar="NAME", help="paper (the default) or released")
    told = "make larger images smaller, so that their short side has N pixels, 1500 in SA-1B; masks are found before"
    parser.writes.add_argument("--short-side", type=int, metavar="N", help=told)
    parser.writes.add_argument("--per-shard", type=int, default=1000, metavar="N", help="images a shard (1000)")
    told = "of a JPEG that has to be encoded, 1 to 100 (95); a JPEG that keeps its size keeps its bytes"
    parser.writes.add_argument("--quality", type=int, default=95, metavar="Q", help=told)
    parser.runs.add_argument("--device", default="cpu", help="cpu, cuda (by torchrun or srun each its own), mps (cpu)")
    options, rest = parser.parse_known_args(argv)
    for name, value in (("--per-shard", options.per_shard), ("--short-side", options.short_side)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is at least 1, not {value}")
    if not 1 <= options.quality <= 100:
        raise UsageError(f"--quality is 1 to 100, not {options.quality}")
    if options.preset not in PRESETS:
        near = did_you_mean(options.preset, PRESETS)
        raise UsageError(f"there is no preset {options.preset!r}{near} (known: {', '.join(PRESETS)})")
    if options.set and not options.data:
        raise UsageError("--set is for the sources of --data, and there are none")
    known = [word for action in parser._actions for word in action.option_strings]
    for word in rest:
        if word.startswith("--") and not word.startswith(evaluate.EVERYTHING):
            option = word.partition("=")[0]
            raise UsageError(f"there is no option {option!r}{did_you_mean(option, known)} (see `{parser.prog} --help`)")
    task, keys = evaluate.everything(PRESETS[options.preset], rest, "--everything")
    read = specs.read(options.data, options.set) if options.data else []

    from samlit import checkpoints
    from samlit.embeddings import fingerprint
    from samlit.generation.finding import Finder

    source, about = _source(options.images, read)
    net, side = checkpoints.load(options.weights)
    if "points" not in net.prompt_types:
        raise UsageError(f"{options.weights} takes no points: it cannot be asked about everything")
    plan = {"format": FORMAT, "source": about, "weights": fingerprint(net), "everything": keys}
    net.eval().to(_device(options.device))
    finder = Finder(net, side, task, options.short_side, options.quality)
    generate(source, finder, Path(options.out), plan, options.per_shard)
    return 0


def generate(source: Source, finder: Finder, folder: Path, plan: dict[str, Any], per_shard: int = 1000) -> None:
    """Work on a folder of shards until it is whole, beside others who do.

    Args:
        source: Of images.
        finder: Finds the masks of an image.
        folder: Of the shards; made if it is not there.
        plan: What the masks depend on, in plain values: the folder is for this and nothing else.
        per_shard: Images a shard.

    Raises:
        SamlitError: The folder was begun with another plan.
        ValueError: There is no image, or the source is not usable.
    """
    from samlit.generation.workplace import Workplace

    rank, _ = ranks.place()
    with _telling(rank == 0) as tell:
        source.prepare(lambda *_: None)
        work = Workplace(folder, source, per_shard)
        total = len(source)
        if not total:
            raise SamlitError("there are no images")
        storing = {"per_shard": per_shard, "short_side": finder.short_side, "quality": finder.quality}
        work.begin({**plan, "samples": total, **storing})
        before = done = work.done()
        tell(done, total, 0)
        looked = time.monotonic()

        def step() -> None:
            nonlocal done, looked
            done += 1
            if time.monotonic() - looked > LOOKED:
                done, looked = work.done(), time.monotonic()
            tell(done, total, done - before)

        for count in work.work(finder, _first(len(work.shards)), step):
            if not count:
                time.sleep(PAUSE)
                tell(work.done(), total, 0)
    if rank == 0:
        finish(work)


def finish(work: Workplace) -> None:
    """Statistics, pictures, the manifest and the list of what was left out, of a folder that is whole; and tell."""
    import random

    from samlit.generation import statistics
    from samlit.generation.claims import claimed
    from samlit.shards import manifest
    from samlit.shards.store import Store

    folder, rows = work.folder, work.rows()
    with claimed(folder / ".work" / "finish.lock", patient=True):
        left_out = [one for row in rows for one in row["left_out"]]
        if left_out:
            atomic.write(folder / "quarantine.jsonl", "".join(json.dumps(one) + "\n" for one in left_out))
        told = statistics.summary(rows)
        told["left_out"] = dict(Counter(one["cause"] for one in left_out))
        manifest.update(folder, {row["name"]: row["sha256"] for row in rows if row["images"]})
        atomic.write(folder / "statistics.json", json.dumps(told, indent=1) + "\n")
        figure = statistics.plot(told, rows)
        atomic.replacing(folder / "statistics.png", lambda file: figure.savefig(file, format="png", dpi=120))
        if told["images"]:
            store = Store(str(folder))
            store.open()
            all_ = [(which, n) for which, row in enumerate(store.rows) for n in range(row.records)]
            some = sorted(random.Random(0).sample(all_, min(12, len(all_))))
            picture = statistics.sheet([store.record(*at) for at in some])
            with atomic.writing(folder / "sheet.jpg") as stream:
                picture.save(stream, format="JPEG", quality=90)
    each = told["masks"] / max(told["images"], 1)
    terminal.say(f"{told['images']} images, {told['masks']} masks, {each:.1f} an image, in {folder}")
    if told["masks"]:
        terminal.say(
            f"mean predicted IoU {told['predicted_iou']['mean']:.3f}, stability {told['stability_score']['mean']:.3f}"
        )
    if left_out:
        causes = ", ".join(f"{cause} {count}" for cause, count in told["left_out"].items())
        terminal.say(f"{len(left_out)} images left out ({causes}): {folder / 'quarantine.jsonl'}")
    terminal.say(f"saved statistics.json, statistics.png and sheet.jpg to {folder}")


def _source(images: str | None, read: list[specs.Spec]) -> tuple[Source, dict[str, Any]]:
    """The images, and what they are in plain values, wherever the command is run."""
    if images is not None:
        from samlit.generation.folder import Images

        folder = Images(images)
        folder.prepare()
        return folder, {"images": str(Path(images).expanduser().resolve()), "files": folder.digest()}
    source, arguments = specs.build(read)
    return source, {
        f"{number}": {"source": one.class_path, **{name: _rooted(value) for name, value in given.items()}}
        for number, (one, given) in enumerate(zip(read, arguments, strict=True), 1)
    }


def _rooted(value: Any) -> Any:
    """A path as it is from everywhere."""
    there = isinstance(value, str) and value and Path(value).expanduser().exists()
    return str(Path(value).expanduser().resolve()) if there else value


def _first(shards: int) -> int:
    """The shard that this worker begins with, far from where others do that were started with it; a matter of speed."""
    place, count = ranks.place()
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        of_array = int(os.environ.get("SLURM_ARRAY_TASK_COUNT", str(shards)))
        place += count * int(os.environ["SLURM_ARRAY_TASK_ID"])
        count *= of_array
    return place * max(shards // count, 1) % shards


def _device(name: str) -> str:
    """The worker's own of a machine's GPUs."""
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", ""))
    if name != "cuda" or not local:
        return name
    import torch

    return f"cuda:{int(local) % max(torch.cuda.device_count(), 1)}"


@contextmanager
def _telling(aloud: bool) -> Iterator[Callable[[int, int, int], None]]:
    """How far it is: a bar in a terminal, a line now and then elsewhere; call (done, images, of them just now)."""
    from samlit.shell.bars import bar, clock

    began, said = time.monotonic(), time.monotonic()
    with bar() if aloud and terminal.alive(sys.stderr) else nullcontext() as shown:

        def tell(done: int, total: int, new: int) -> None:
            nonlocal said
            if shown is not None:
                shown(done, total, "generating")
            elif aloud and (time.monotonic() - said > SAID or done == total) and new:
                said = time.monotonic()
                rate = new / max(said - began, 1e-6)
                left = clock((total - done) / rate) if rate else "?"
                told = f"{done}/{total} images  {rate:.{2 if rate < 10 else 0}f} images/s  {left} left"
                terminal.tell(told)

        yield tell
