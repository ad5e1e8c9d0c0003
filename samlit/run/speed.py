"""How fast a training is, what it waits for and what memory it takes; and its learning rates, layer by layer."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch

from samlit.errors import one_line
from samlit.module import SamModule
from samlit.run.flops import Cost, Skeleton, cost, peak, skeleton, without_values
from samlit.shell import terminal
from samlit.structures import Batch, Embedding, Prediction, PromptSet

__all__ = ["Speed", "rates"]


class Speed(pl.Callback):
    """Logs, as often as other numbers, how fast a training is: `speed/...`, and its learning rates: `lr/...`.

    Validation and the writing of checkpoints are no part of a step's time.

    Args:
        flops: Whether a step's floating-point operations are counted once, for `speed/tflops` and
            `speed/share_of_peak`; it takes a second or so after the first step.
    """

    def __init__(self, flops: bool = True) -> None:
        self.flops = flops
        self.numbers: dict[str, float] = {}
        self._clock: _Clock | None = None
        self._bones: Skeleton | None = None
        self._asked: list[PromptSet] = []
        self._unlisten: Callable[[], None] | None = None
        self._cost: Cost | None = None
        self._seen = (0, 0)
        self._step = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the model's outline while it is in one piece."""
        if stage == "fit" and self.flops and isinstance(pl_module, SamModule):
            try:
                self._bones = skeleton(pl_module.net)
            except Exception as error:  # a plug-in's module may be anything
                self._give_up(trainer, error)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._clock = _Clock(pl_module.device)
        self._step = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """The batch is there; of the first one, note what is asked."""
        if self._clock is not None:
            self._clock.begin()
        if self._bones is not None and self._cost is None and isinstance(pl_module, SamModule) and len(batch.masks):
            self._listen(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Stop the time; log where it is due."""
        if self._clock is None or not isinstance(pl_module, SamModule):
            return
        self._clock.end()
        if self._unlisten is not None:
            self._unlisten()
            self._unlisten = None
            self._clock.pause()
            self._count(trainer, pl_module, batch)
        step, every = trainer.global_step, max(int(getattr(trainer, "log_every_n_steps", 50)), 1)
        if step % every == 0 and step != self._step:
            self._step = step
            self.numbers = self._measure(trainer, pl_module, self._clock) | rates(trainer.optimizers, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics(self.numbers, step - 1)  # as Lightning counts: the step that ends here

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hold the clock."""
        if self._clock is not None:
            self._clock.pause()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Hold the clock."""
        if self._clock is not None:
            self._clock.pause()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the clock."""
        self._clock = None

    def _measure(self, trainer: pl.Trainer, module: SamModule, clock: _Clock) -> dict[str, float]:
        """What the steps since the last time came to; every rank comes here."""
        seconds, waited = clock.take()
        images, answers = (now - before for now, before in zip(_seen(module), self._seen, strict=True))
        self._seen = _seen(module)
        work = self._cost.image * images + self._cost.answer * answers if self._cost else 0.0
        # MPS has no float64 and needs none.
        sums = torch.tensor([images, answers, work / 1e12, seconds, waited], device=module.device)
        most = torch.tensor(_memory(module.device), device=module.device)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
            torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        images, answers, work, seconds, waited = sums.tolist()
        if seconds <= 0:
            return {}
        each = seconds / trainer.world_size
        numbers = {
            "speed/images_per_second": images / each,
            "speed/answers_per_second": answers / each,
            "speed/data_wait": waited / seconds,
            "speed/memory_gib": float(most),
        }
        if work:
            numbers["speed/tflops"] = work / seconds
            name = torch.cuda.get_device_name(module.device) if module.device.type == "cuda" else ""
            if best := peak(name, str(trainer.precision)):
                numbers["speed/share_of_peak"] = work / seconds / best
        return numbers

    def _listen(self, module: SamModule) -> None:
        """Note the shapes of one step's prompts."""
        net, own, answer = module.net, module.net.__dict__.get("answer"), module.net.answer

        def noting(embedding: Embedding, prompts: PromptSet, size: tuple[int, int]) -> Prediction:
            self._asked.append(without_values(prompts))
            return answer(embedding, prompts, size)

        def unlisten() -> None:
            if own is None:
                del net.answer  # the class's own is there again
            else:
                net.answer = own  # type: ignore[method-assign]

        net.answer = noting  # type: ignore[method-assign]
        self._unlisten = unlisten

    def _count(self, trainer: pl.Trainer, module: SamModule, batch: Batch) -> None:
        """Count what they ask for."""
        asked, self._asked = self._asked, []
        if self._bones is None or not asked:
            return
        try:
            trained = {name: p.requires_grad for name, p in module.net.named_parameters()}
            self._cost = cost(self._bones, trained, batch.image.shape[-1], len(batch.image), asked)
        except Exception as error:  # a plug-in may look at values, and there are none
            self._give_up(trainer, error)
        self._bones = None

    def _give_up(self, trainer: pl.Trainer, error: Exception) -> None:
        self._bones = None
        if trainer.is_global_zero:
            terminal.note(f"no TFLOP/s: they cannot be counted ({one_line(error)})")


class _Clock:
    """Time of steps and time between them, in which a step waits for its batch.

    A GPU works behind the host, so there the gaps are those of its own: events tell how long it had nothing to do.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        self._since = self._ended = time.monotonic()
        self._before = self._event()
        self._gaps: list[tuple[Any, Any]] = []
        self._waited = self._seconds = 0.0
        self._running = False

    def begin(self) -> None:
        """A step begins."""
        now = time.monotonic()
        if not self._running:  # after a pause, or at the start: nobody waited for this batch
            self._since, self._running = now, True
        elif self._cuda:
            self._gaps.append((self._before, self._event()))
        else:
            self._waited += now - self._ended

    def end(self) -> None:
        """It ends."""
        self._ended, self._before = time.monotonic(), self._event()

    def pause(self) -> None:
        """What comes now, till the next step begins, is no part of any."""
        if self._running:
            self._finish()
            self._running = False

    def take(self) -> tuple[float, float]:
        """Seconds since the last time, and how many of them were waited; the device finishes first."""
        running = self._running
        self.pause()
        for before, after in self._gaps:
            self._waited += max(before.elapsed_time(after), 0.0) / 1000
        found = self._seconds, min(self._waited, self._seconds)
        self._seconds, self._waited, self._gaps = 0.0, 0.0, []
        if running:
            self._since, self._running = self._ended, True
        return found

    def _finish(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self.device)
            self._ended, self._before = time.monotonic(), self._event()
        self._seconds += self._ended - self._since

    def _event(self) -> Any:
        if not self._cuda:
            return None
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event


def rates(optimizers: Sequence[torch.optim.Optimizer], module: SamModule) -> dict[str, float]:
    """Learning rates by name: "lr/encoder_00" of the encoder's first layer, "lr/decoder" of prompts and decoder, ...

    A rate that layers of the encoder share is "lr/encoder"; one that all weights have is "lr/all".
    """
    place: dict[int, int] = {}
    for name, parameter in module.net.named_parameters():
        inside = name.startswith("encoder.")
        place[id(parameter)] = module.net.encoder.layer_of(name.removeprefix("encoder."))[0] if inside else -1
    found: dict[str, float] = {}
    for optimizer in optimizers:
        # A schedule scales all rates alike: what they begin with tells them apart even where it is at 0.
        groups: dict[tuple[bool, float], tuple[float, set[int]]] = {}
        for group in optimizer.param_groups:
            kind = (bool(group.get("muon")), float(group.get("initial_lr", group["lr"])))
            _, layers = groups.setdefault(kind, (float(group["lr"]), set()))
            layers.update(place.get(id(p), -1) for p in group["params"])
        for (muon, _), (rate, layers) in groups.items():
            name = f"lr/{_part(layers, sum(other == muon for other, _ in groups))}" + "_muon" * muon
            while name in found:
                name += "_more"
            found[name] = rate
    return found


def _part(layers: set[int], rates: int) -> str:
    """What to call the weights of some layers, where there are so many rates; -1 is all that is not the encoder."""
    encoder = layers - {-1}
    if not encoder:
        return "decoder"
    if -1 in layers:
        return "all" if rates == 1 else "decoder"  # its rate is that of the encoder's last layer too
    return f"encoder_{min(encoder):02}" if len(encoder) == 1 else "encoder"


def _seen(module: SamModule) -> tuple[int, int]:
    """Images and answers of this rank that were learned from."""
    return module.tally.images, module.tally.answers


def _memory(device: torch.device) -> float:
    """GiB at most: of the device, or of the process where that is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
