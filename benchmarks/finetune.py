"""Fine-tuning with and without kept embeddings: images a second, and their ratio, in one run.

    python benchmarks/finetune.py --annotations train.json --weights mobile_sam

The same steps are taken twice, on the same images and masks with the same seeds: once the frozen encoder embeds every
image, once its embeddings are read from files. What it costs to write them is told beside it.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from types import SimpleNamespace

import torch

from samlit import checkpoints
from samlit.datamodule import SamData
from samlit.module import SamModule
from samlit.source import Sample, Source
from samlit_decoders.mask import Mask
from samlit_encoders.tiny_vit import TinyVit
from samlit_encoders.vit import VitB
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points
from samlit_sources.coco import Coco
from samlit_tasks.interactive import Interactive


class _First(Source):
    """So many images of a source."""

    def __init__(self, source: Source, count: int) -> None:
        self.source, self.count = source, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return self.source[index]


def main() -> None:
    """Take the time of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", required=True, help="COCO JSON")
    parser.add_argument("--weights", help="of MobileSAM; what takes how long does not depend on them")
    parser.add_argument("--encoder", choices=("tiny_vit", "vit_b"), default="tiny_vit")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--masks", type=int, default=8, help="most masks of an image")
    parser.add_argument("--side", type=int, default=1024)
    options = parser.parse_args()

    torch.manual_seed(0)
    task = Interactive(stop=0.33)
    encoder = {"tiny_vit": TinyVit, "vit_b": VitB}[options.encoder]
    module = SamModule(encoder, [Points, Boxes, Masks], Mask, task, (), options.side, freeze=["encoder"])
    if options.weights:
        checkpoints.start_from(module.net, options.weights)
    trainer = SimpleNamespace(world_size=1, global_step=0, global_rank=0, accumulate_grad_batches=1)
    module._trainer = trainer  # type: ignore[assignment]
    module.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    weights = [weight for weight in module.parameters() if weight.requires_grad]

    with tempfile.TemporaryDirectory() as folder:
        rates: dict[str, float] = {}
        for name in ("embedded at every step", "read from files"):
            source = _First(Coco(options.annotations), options.steps)
            data = SamData(source, image_size=options.side, max_masks=options.masks, embeddings=folder)
            if name == "read from files":
                start = time.perf_counter()
                data.keep_embeddings(module.net)
                print(f"written: {(time.perf_counter() - start) / options.steps:.2f} s an image")
            spent, losses = 0.0, []
            batches = iter(data.train_dataloader())
            for step in itertools.count():
                trainer.global_step = step
                start = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    break
                loss = module.training_step(batch, 0)
                torch.autograd.grad(loss, weights)
                spent += time.perf_counter() - start
                losses.append(float(loss))
            rates[name] = len(losses) / spent
            print(f"{name}: {rates[name]:.3f} images/s, mean loss {sum(losses) / len(losses):.4f}", flush=True)
        print(f"ratio: {rates['read from files'] / rates['embedded at every step']:.2f}")


if __name__ == "__main__":
    main()
