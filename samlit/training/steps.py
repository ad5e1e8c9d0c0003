"""How a training step is taken: judged, taken or left out, averaged, and explained where memory is not enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from samlit.kept import forget
from samlit.model import Sam
from samlit.run.checkpointing import save_now
from samlit.training.adamw import AdamW
from samlit.training.ema import put_averages, put_weights
from samlit.training.gradients import Diverged, Gradients
from samlit.training.memory import ENCODER, OPTIMIZER, PASS, needing
from samlit.training.optim import Optim

__all__ = ["Steps"]


class Steps(pl.LightningModule):
    """What SamModule's steps have in common with nothing that it learns.

    Attributes:
        net: The model.
        optim: The optimiser's keys.
    """

    net: Sam
    optim: Optim

    def __init__(self) -> None:
        super().__init__()
        self._gradients: Gradients | None = None
        self._before: dict[str, Any] | None = None
        self._swapped_on_disk = False

    def on_train_start(self) -> None:
        """Begin to count."""
        self._gradients = Gradients(self.net, self.optim.max_skipped, self._before)
        if self._swapped_on_disk:
            self._swap()
        self._swapped_on_disk = False

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the run where nothing can be learned any more; the weights are good, and are saved."""
        if self._gradients is not None:
            try:
                self._gradients.check()
            except Diverged:
                save_now(self.trainer)
                raise

    def on_train_end(self) -> None:
        """Tell what was left out last."""
        if self._gradients is not None:
            self._gradients.finish()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Go back through the encoder."""
        with needing("going back through the encoder", ENCODER):
            super().backward(loss, *args, **kwargs)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take the step whose loss and gradients the closure computes."""

        def closure() -> Any:
            with needing("simulating the task's prompts", PASS):
                return optimizer_closure() if optimizer_closure else None

        with needing("taking the optimiser's step", OPTIMIZER):
            super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by one norm, which also says whether the step can be taken."""
        if not isinstance(optimizer, AdamW) or self._gradients is None:
            return super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        by_value = gradient_clip_algorithm is not None and str(gradient_clip_algorithm).endswith("value")
        norm = self._gradients.judge(optimizer, self.global_step + 1, gradient_clip_val, by_value)
        self.log("train/grad_norm", norm, batch_size=1)
        self.log("train/skipped", self._gradients.left_out.float(), batch_size=1)

    def on_validation_start(self) -> None:
        """Let the averages be judged, where there are any."""
        self._swap()

    def on_validation_end(self) -> None:
        """Go on with the weights."""
        self._swap()

    def _swap(self) -> None:
        optimizer = self._averaging()
        if optimizer is not None and optimizer.swap():
            for module in self.net.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()  # what was gathered is of the weights that were there before
        forget()

    def _averaging(self) -> AdamW | None:
        """The optimiser, while there is one."""
        optimizers = self.trainer.optimizers if self.trainer.state.fn == TrainerFn.FITTING else []
        return optimizers[0] if optimizers and isinstance(optimizers[0], AdamW) else None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the averages in the weights' place, and what was counted beside."""
        if self._gradients is not None:
            checkpoint["gradients"] = self._gradients.state_dict()
        optimizer = self._averaging()
        if optimizer is not None and optimizer.average:
            states = checkpoint.get("optimizer_states") or [self.trainer.strategy.optimizer_state(optimizer)]
            put_averages(checkpoint, self, optimizer, states[0])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the weights back, where a training goes on."""
        if self._trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        self._before = checkpoint.get("gradients")
        if checkpoint.get("averaged"):
            self._swapped_on_disk = not put_weights(checkpoint)
