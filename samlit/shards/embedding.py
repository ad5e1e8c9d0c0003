"""`samlit shards embed`: what CLIP sees in the cut-outs of all masks, for trainings of text prompts (SAM_SPEC 1.10)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samlit import atomic
from samlit.errors import SamlitError, UsageError
from samlit.shell import terminal
from samlit.shell.options import ArgumentParser

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from samlit.shards.store import Store

__all__ = ["embed", "main"]

FORMAT = 1
PIECE = 16
"""Images between two savings."""
AT_ONCE = 32
"""Masks of an image that are drawn and looked at together: of 1024 x 1024 pixels they are 32 MB."""

EPILOG = """the CLIP, the cut-outs' zoom and how many show the mask alone are the recipe's; a training looks
them up where the text prompt of its recipe has `cut_outs: DIR`

One process or many, on machines that share the folder: each takes shards that nobody else has. The same command goes
on where it was stopped, sixteen images back at most.

examples:
  samlit shards embed sa1b --recipe text --out cut_outs --device cuda
"""


def main(argv: list[str]) -> int:
    """Run the command with the words after `samlit shards embed`."""
    parser = ArgumentParser(
        prog="samlit shards embed",
        description="What CLIP sees in cut-outs of masks, once for all trainings of a text prompt.",
        epilog=EPILOG,
    )
    parser.reads.add_argument("root", metavar="SHARDS", help="a folder of shards, or one")
    parser.reads.add_argument("--recipe", required=True, metavar="NAME|FILE", help="a recipe with a text prompt")
    parser.writes.add_argument("--out", required=True, metavar="DIR", help="the folder of the embeddings")
    parser.runs.add_argument("--views", type=int, default=4, help="cut-outs of each mask (default: %(default)s)")
    parser.runs.add_argument("--device", default="cpu", help="where CLIP runs: cpu, cuda, mps (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.views < 1:
        raise UsageError(f"--views is at least 1, not {options.views}")

    from samlit import recipe
    from samlit.shards.store import Store
    from samlit.shell.bars import bar
    from samlit.text.clip_training import text_prompt

    tree = recipe.resolve(recipe.read(recipe.path(options.recipe)), options.recipe)
    prompt = text_prompt(tree, options.recipe)
    store = Store(options.root)
    with bar() as report:
        store.open(report)
        side = int(tree.get("data", {}).get("image_size", 1024))
        whole = embed(store, prompt, side, Path(options.out), options.views, options.device, report)
    terminal.say(f"{whole} of {len(store.rows)} shards are in {options.out}")
    return 0


def embed(
    store: Store, prompt: Any, side: int, folder: Path, views: int, device: str = "cpu", report: Any = lambda *_: None
) -> int:
    """Embed the cut-outs of all masks of some shards, beside others who do.

    Args:
        store: Of the shards, opened.
        prompt: The text prompt, whose CLIP looks at them.
        side: Of the frame that they are cut out of, pixels.
        folder: Where they are kept; made if it is not there.
        views: V, cut-outs of each mask.
        device: Where CLIP runs.
        report: Told (images done, images, what is being done).

    Returns:
        How many shards are whole.

    Raises:
        SamlitError: The folder was begun with something else.
    """
    from samlit.generation.claims import claimed
    from samlit.text.cut_outs import PLAN

    plan = json.loads(json.dumps({"format": FORMAT, **prompt.about(), "side": side, "views": views}))
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder / ".lock", patient=True):
        if (folder / PLAN).exists():
            begun = json.loads((folder / PLAN).read_text())
            for key in plan:
                if begun.get(key) != plan[key]:
                    told = f"{folder} was begun with {key} {begun.get(key)}, and this is {plan[key]}"
                    raise SamlitError(f"{told}: name another folder")
        else:
            atomic.write(folder / PLAN, json.dumps(plan, indent=1) + "\n")
    total = sum(row.records for row in store.rows)
    done = 0
    for which, row in enumerate(store.rows):
        name = Path(row.name).name.removesuffix(".tar")
        if not (folder / f"{name}.npy").exists():
            with claimed(folder / f".{name}.lock") as mine:
                if mine and not (folder / f"{name}.npy").exists():
                    _shard(
                        store, which, prompt, plan, folder, name, device, lambda n, d=done: report(d + n, total, WHAT)
                    )
        done += row.records
        report(done, total, WHAT)
    return sum((folder / f"{Path(row.name).name.removesuffix('.tar')}.npy").exists() for row in store.rows)


WHAT = "looking at cut-outs"


def _shard(
    store: Store, which: int, prompt: Any, plan: dict[str, Any], folder: Path, name: str, device: str, told: Any
) -> None:
    """One shard, by pieces that are kept, and then whole."""
    import shutil

    import numpy as np

    pieces = folder / f".{name}"
    pieces.mkdir(exist_ok=True)
    count = store.rows[which].records
    parts = [pieces / f"{first:06d}.npz" for first in range(0, count, PIECE)]
    for part, first in zip(parts, range(0, count, PIECE), strict=True):
        if not part.exists():
            rows, values = _piece(store, which, range(first, min(first + PIECE, count)), prompt, plan, device)
            with atomic.writing(part) as stream:
                np.savez(stream, rows=rows, values=values)
        told(min(first + PIECE, count))
    read = [np.load(part) for part in parts]
    sizes = [one["values"].shape[0] for one in read]
    starts = np.cumsum([0, *sizes])
    moved = [one["rows"] + np.array([0, start]) for one, start in zip(read, starts, strict=False)]
    with atomic.writing(folder / f"{name}.rows.npy") as stream:
        np.save(stream, np.concatenate(moved) if moved else np.zeros((0, 2), np.int64))
    width = (int(starts[-1]), plan["views"], prompt.width)

    def write(beside: Path) -> None:
        whole = np.lib.format.open_memmap(beside, "w+", np.float16, width)
        for one, start, size in zip(read, starts, sizes, strict=False):
            whole[start : start + size] = one["values"]
        whole.flush()

    atomic.replacing(folder / f"{name}.npy", write)  # last: it says that the shard is whole
    for one in read:
        one.close()
    shutil.rmtree(pieces)


def _piece(
    store: Store, which: int, numbers: range, prompt: Any, plan: dict[str, Any], device: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]:
    """Some records' numbers with their first masks, (R, 2), and the views of all of their masks, (M, V, D).

    A record that is damaged has no row: a training does not see it either.
    """
    import numpy as np
    import torch

    from samlit.faults import Damaged
    from samlit.loading.frames import frame, pack
    from samlit.source import Sample

    rows, values, at = [], [np.zeros((0, plan["views"], prompt.width), np.float16)], 0
    for number in numbers:
        found = []
        try:
            record = store.record(which, number)
            sample = Sample(record.key, record.image, tuple(a.mask for a in record.annotations))
            chance = torch.Generator().manual_seed(record.image_id)
            for first in range(0, len(sample.masks), AT_ONCE):
                some = range(first, min(first + AT_ONCE, len(sample.masks)))
                batch = pack([frame(sample, plan["side"], some, exact=False)]).to(device)
                found.append(_views(prompt, batch, plan, chance))
        except Damaged:
            continue
        rows.append((record.image_id, at))
        values += found
        at += sum(map(len, found))
    return np.array(rows, np.int64).reshape(-1, 2), np.concatenate(values)


def _views(prompt: Any, batch: Any, plan: dict[str, Any], chance: Any) -> npt.NDArray[np.float16]:
    """(K, V, D): as many show the mask alone as the recipe's share of them, and each has a zoom of its own."""
    import torch

    count, views = len(batch.masks), plan["views"]
    zoom = 1 + (plan["zoom"] - 1) * torch.rand(count, views, generator=chance)
    # Shares that no number of views can have are had over many masks.
    masked = torch.arange(views) + torch.rand(count, 1, generator=chance) < plan["masked"] * views
    device = batch.masks.device
    found = [
        prompt.shown(batch, batch.masks, batch.image_index, zoom[:, view].to(device), masked[:, view].to(device))
        for view in range(views)
    ]
    return torch.stack(found, 1).half().cpu().numpy()
