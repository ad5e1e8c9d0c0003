"""`samlit clip`: a small CLIP from cut-outs of a recipe's masks and their phrases."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from samlit import atomic, plugins, recipe
from samlit.errors import UsageError
from samlit.shell import terminal
from samlit.shell.options import ArgumentParser

if TYPE_CHECKING:
    from torch import Tensor

    from samlit.source import Source
    from samlit.text.clip import Tokens

__all__ = ["Kept", "main", "text_prompt", "train"]

EPILOG = """for recipes whose text prompt has a CLIP of its own: the configuration, the file to write and the scenes are
the recipe's; a training that was stopped goes on where it was

examples:
  samlit clip --recipe text_tiny
  samlit clip --recipe text_tiny --steps 100 --out quick.pt
"""


def main(argv: list[str]) -> int:
    """Run the command with the words after `samlit clip`."""
    parser = ArgumentParser(
        prog="samlit clip",
        description="Train the small CLIP of a recipe's text prompt, on cut-outs of its masks and their phrases.",
        epilog=EPILOG,
    )
    parser.reads.add_argument("--recipe", required=True, metavar="NAME|FILE", help="a recipe with a text prompt")
    parser.runs.add_argument("--steps", type=int, default=600, help="optimiser's steps (default: %(default)s)")
    parser.runs.add_argument("--batch", type=int, default=16, help="scenes a step (default: %(default)s)")
    parser.writes.add_argument(
        "--out", metavar="FILE", help="where to write it; where the recipe looks for it if not given"
    )
    options = parser.parse_args(argv)
    for name in ("steps", "batch"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} {getattr(options, name)}: one at least")
    tree = recipe.resolve(recipe.read(recipe.path(options.recipe)), options.recipe)
    given = _text_prompt(tree, options.recipe)
    model, out = given.get("clip"), Path(options.out or given.get("weights") or "")
    if not isinstance(model, Mapping) or not out.name:
        raise UsageError(f"{options.recipe}: its text prompt names a CLIP that others have trained; nothing to do")
    data = tree["data"]
    source, held_out = _source(data["source"]), _source(data.get("validation") or data["source"])

    import torch

    from samlit.shell.bars import bar
    from samlit.text.clip import build

    seed, side = int(tree.get("seed_everything") or 0), int(data.get("image_size", 1024))
    torch.manual_seed(seed)
    net, tokens = build(model)
    told = {"clip": model, "source": data["source"], "side": side, "seed": seed}
    kept = Kept(out.with_name(f"{out.name}.part"), json.dumps(told, sort_keys=True, default=str))
    with bar() as report:
        for each in (source, held_out):
            each.prepare(report)
        train(net, tokens, source, side, options.steps, options.batch, report, kept)
    found = retrieval(net, tokens, held_out, side)
    with atomic.writing(out) as stream:
        torch.save(net.state_dict(), stream)
    kept.file.unlink(missing_ok=True)
    terminal.say(
        f"held-out cut-outs: the right phrase of all of their scene's in {found[0]:.1%} of {found[1]}; "
        f"cosine {found[2]:.2f} with it"
    )
    terminal.say(f"saved to {out}")
    return 0


class Kept(NamedTuple):
    """Where an unfinished training is kept, and what tells it from another one."""

    file: Path
    told: str


def train(
    net: Any,
    tokens: Tokens,
    source: Source,
    side: int,
    steps: int,
    batch: int,
    report: Any,
    kept: Kept | None = None,
) -> None:
    """Let cut-outs and phrases that belong together come to lie together.

    A phrase that several cut-outs of a step have is one phrase, and all of them are right. The temperature stays high
    (`SCALE`), and what belongs together is drawn together beside (`ALIGN`): contrast alone leaves images and phrases
    apart as wholes, and a prompt that is trained from images is to be used with phrases.

    Args:
        net: Of open_clip, changed in place.
        tokens: Its tokenizer.
        source: Images with masks and phrases.
        side: Of the frame, pixels.
        steps: To take.
        batch: Images a step.
        report: Told (done, total, what).
        kept: Where to keep it every `OFTEN` steps and to go on from; the same weights come of it.

    Raises:
        UsageError: The source has no phrases.
    """
    import torch

    weights = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.05, betas=(0.9, 0.98))
    warmup = min(50, steps // 4)

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    parts = {"model": net, "optimizer": optimizer, "schedule": schedule}
    told = f"{kept.told if kept else ''} {steps} {batch}"
    begun = _go_on(kept.file, told, parts) if kept else 0
    net.train()
    lots = islice(_lots(source, batch), begun, None)
    for step in range(begun, steps):
        images, phrases, which = _pairs(net, tokens, source, side, next(lots), torch.Generator().manual_seed(step))
        logits = SCALE * images @ phrases.T
        belongs = torch.zeros_like(logits).scatter_(1, which[:, None], 1.0)
        by_image = torch.nn.functional.cross_entropy(logits, which)
        by_phrase = torch.nn.functional.cross_entropy(logits.T, belongs.T / belongs.sum(0)[:, None])
        apart = 1 - images.mul(phrases[which]).sum(1).mean()
        optimizer.zero_grad()
        torch.autograd.backward(by_image + by_phrase + ALIGN * apart)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if kept and (step + 1) % OFTEN == 0:
            state = {"told": told, "steps": step + 1} | {name: part.state_dict() for name, part in parts.items()}
            with atomic.writing(kept.file, alone=True) as stream:
                torch.save(state, stream)
        report(step + 1, steps, "training CLIP")
    net.eval()


def _go_on(file: Path, told: str, parts: Mapping[str, Any]) -> int:
    """Take over what an earlier run has kept, if it was of the same training: the steps that it took."""
    import torch

    state: dict[str, Any] = {}
    with suppress(Exception):  # there is none, or it is no such file: then it begins at its beginning
        state = torch.load(file, map_location="cpu", weights_only=True)
    if state.get("told") != told:
        return 0
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["steps"])


OFTEN = 50
"""Steps between two savings."""
SCALE = 12.0
ALIGN = 3.0
RATE = 1.5e-3


def retrieval(net: Any, tokens: Tokens, source: Source, side: int) -> tuple[float, int, float]:
    """How often a cut-out is nearest to its own of its image's phrases, of how many, and their mean cosine."""
    import torch

    right, total, cosine = 0, 0, 0.0
    with torch.no_grad():
        for index in range(len(source)):
            if not source[index].phrases:
                continue
            generator = torch.Generator().manual_seed(index)
            images, phrases, which = _pairs(net, tokens, source, side, [index], generator)
            near = images @ phrases.T
            right += int((near.argmax(1) == which).sum())
            cosine += float(near.gather(1, which[:, None]).sum())
            total += len(which)
    return right / max(total, 1), total, cosine / max(total, 1)


def _pairs(
    net: Any, tokens: Tokens, source: Source, side: int, lot: list[int], generator: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Some images' cut-outs (n, D) and distinct phrases (m, D), embedded, and each cut-out's phrase, (n,)."""
    import torch
    from torch.nn import functional as F

    from samlit.loading.frames import frame, pack
    from samlit.text.clip import encode_images
    from samlit.text.crops import cut

    batch = pack([frame(source[index], side) for index in lot])
    some = [k for k, phrase in enumerate(batch.phrases) if phrase]
    if not some:
        raise UsageError("clip: the recipe's data.source has no phrases")
    masks, index = batch.masks[some], batch.image_index[some]
    zoom = 1 + torch.rand(len(some), generator=generator)
    masked = torch.rand(len(some), generator=generator) < 0.5
    pictures, inside = cut(batch, masks, index, net.visual.image_size[0], zoom, masked)
    said = [batch.phrases[k] for k in some]
    distinct = list(dict.fromkeys(said))
    images = F.normalize(encode_images(net, pictures, inside), dim=1)
    phrases = F.normalize(net.encode_text(tokens(distinct)), dim=1)
    return images, phrases, torch.tensor([distinct.index(phrase) for phrase in said])


def _lots(source: Source, batch: int) -> Iterator[list[int]]:
    """Numbers of samples, all of them once a pass, shuffled."""
    chance, pool = Random(0), list[int]()
    while True:
        while len(pool) < batch:
            more = list(range(len(source)))
            chance.shuffle(more)
            pool += more
        yield pool[:batch]
        pool = pool[batch:]


def text_prompt(tree: dict[str, Any], name: str) -> Any:
    """The text prompt of a resolved recipe, built.

    Raises:
        UsageError: It has none.
    """
    return plugins.load(plugins.find("prompts", "text").class_path, "text")(**_text_prompt(tree, name))


def _text_prompt(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """What a resolved recipe says of its text prompt."""
    text = plugins.find("prompts", "text").class_path
    for prompt in tree.get("model", {}).get("prompts", []):
        told = prompt if isinstance(prompt, dict) else {"class_path": prompt}
        if told.get("class_path") == text:
            return dict(told.get("init_args", {}))
    raise UsageError(f"{name}: has no text prompt")


def _source(said: Any) -> Source:
    class_path, arguments = (said, {}) if isinstance(said, str) else (said["class_path"], said.get("init_args", {}))
    made: Source = plugins.load(class_path, class_path)(**arguments)
    return made
