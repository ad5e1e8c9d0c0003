"""`samlit head`: a head that names masks, from any data that does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from samlit.errors import UsageError
from samlit.evaluation.partial import Partial
from samlit.loading import specs
from samlit.shell import terminal
from samlit.shell.options import ArgumentParser

if TYPE_CHECKING:
    from torch import Tensor

    from samlit.model import Sam
    from samlit.source import Source

__all__ = ["main", "seen"]

EPILOG = """names are those that the data gives its masks: classes of coco and panoptic, phrases of shards

examples:
  samlit head --weights mobile_sam --data panoptic:panoptic_train.json --set images=train --out head.safetensors
  samlit evaluate --task semantic --task.labels head.safetensors --task.annotations val.json ...
"""
APART = 5
"""Every fifth image is kept apart, to say how well the others are learned from."""


def main(argv: list[str]) -> int:
    """Run the command with the words after `samlit head`."""
    parser = ArgumentParser(
        prog="samlit head",
        description="Train a head that names masks by the image embedding, for the tasks semantic and panoptic.",
        epilog=EPILOG,
    )
    published = "published weights (`samlit list weights`), or a file; the head is for these"
    parser.reads.add_argument("--weights", required=True, metavar="NAME|FILE", help=published)
    sources = "named masks, as in panoptic:train.json (`samlit list sources`)"
    parser.reads.add_argument("--data", required=True, nargs="+", metavar="SOURCE:PATH", help=sources)
    setting = "what else a source takes, as in --set images=train"
    parser.reads.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=setting)
    parser.reads.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.runs.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda, mps (cpu)")
    parser.writes.add_argument("--out", required=True, metavar="FILE", help="where to write it: head.safetensors")
    options = parser.parse_args(argv)
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit {options.limit}: one at least")
    if not options.out.endswith(".safetensors"):
        raise UsageError(f"--out {options.out}: a head is written as .safetensors")
    source, arguments = specs.build(specs.read(options.data, options.set))

    from samlit import checkpoints
    from samlit.embeddings import fingerprint
    from samlit.evaluation.head import fit

    net, image_size = checkpoints.load(options.weights)
    net.eval().to(options.device)
    about = {"data": options.data, "arguments": arguments, "limit": options.limit, "weights": fingerprint(net)}
    partial = Partial(Path(f"{options.out}.seen"), about, "training")
    means, names, images = seen(net, image_size, source, options.limit, partial)
    if len(set(names)) < 2:
        partial.forget()  # the data will be mended
        raise UsageError(f"{' '.join(options.data)}: has masks of {len(set(names))} names; two at least are told apart")
    apart = images % APART == APART - 1
    if apart.any():
        some = fit(means[~apart], [name for name, out in zip(names, apart.tolist(), strict=True) if not out])
        called = [some.names[k] for k in some.scores(means[apart]).argmax(1).tolist()]
        true = [name for name, out in zip(names, apart.tolist(), strict=True) if out]
        right = sum(one == other for one, other in zip(called, true, strict=True))
        terminal.show(
            f"of every fifth image, learned from the others: {right} of {len(true)} masks have the right name"
        )
    head = fit(means, names)
    head.save(Path(options.out))
    partial.forget()
    terminal.say(f"{len(head.names)} names from {len(names)} masks; saved to {options.out}")
    return 0


def seen(
    net: Sam, image_size: int, source: Source, limit: int | None = None, partial: Partial | None = None
) -> tuple[Tensor, list[str], Tensor]:
    """What a model sees in all named masks of a source: (K, C), K names, and (K,) numbers of images.

    Args:
        net: The model, on its device.
        image_size: Side of the frame, pixels.
        source: Of images and named masks.
        limit: Only the first so many images.
        partial: Where what has been seen is kept.

    Raises:
        UsageError: There are no images.
        ValueError: An image or a mask is damaged.
    """
    import torch

    from samlit.evaluation.head import features
    from samlit.loading import frames
    from samlit.shell.bars import bar

    partial = partial or Partial(None, {}, "training")
    rows: list[tuple[Tensor, list[str]]] = partial.found.get("rows", [])  # one an image
    with bar() as progress, torch.no_grad():
        source.prepare(progress)
        count = len(source) if limit is None else min(limit, len(source))
        if not count:
            raise UsageError(f"{type(source).__name__}: there are no images in it")
        try:
            for number in range(len(rows), count):
                progress(number, count, "looking at masks")
                sample = source[number]
                means, names = torch.zeros(0, net.encoder.channels), list[str]()
                if sample.masks and sample.phrases:
                    batch = frames.pack([frames.frame(sample, image_size)]).to(net.pixel_mean.device)
                    named = _named(batch.phrases, batch.masks)
                    image = net.embed(batch.image, batch.sizes).image
                    means = features(image, batch.masks[named], batch.image_index[named]).cpu()
                    names = [batch.phrases[k] for k in named]
                rows.append((means, names))
                if partial.due:
                    partial.save(rows=rows)
        finally:
            partial.save(rows=rows)
        progress(count, count, "looking at masks")
    images = torch.arange(count).repeat_interleave(torch.tensor([len(names) for _, names in rows]))
    return torch.cat([means for means, _ in rows]), [name for _, names in rows for name in names], images


def _named(phrases: Iterable[str], masks: Tensor) -> list[int]:
    """Masks that have a name, and a pixel in the frame."""
    there = masks.flatten(1).any(1).tolist()
    return [k for k, phrase in enumerate(phrases) if phrase and there[k]]
