"""One model on many devices: a copy on each (DDP), or a part on each (FSDP2), on any kind of device."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from samlit.errors import SamlitError
from samlit.model import Sam
from samlit.run import ranks
from samlit.run.checkpointing import LAST, PREVIOUS, AtomicIO, plain
from samlit.run.launch import Launcher
from samlit.structures import Embedding
from samlit.weights import pieces

__all__ = ["Replicated", "Sharded", "closing", "is_sharded", "named", "shard"]


class Replicated(DDPStrategy):
    """A copy of the model on every device, `ddp`: for models whose weights and moments fit on one.

    Args:
        timeout: Minutes that a rank waits for the others before it gives up.
        backend: How ranks talk, "nccl" or "gloo"; what is usual on the device if not given.
    """

    def __init__(self, timeout: float = 30.0, backend: str | None = None) -> None:
        # Every weight always gets a gradient, so there is nothing to look for; gradients are kept once, not twice.
        super().__init__(
            process_group_backend=backend, timeout=timedelta(minutes=timeout), gradient_as_bucket_view=True
        )

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_environment(self) -> None:
        """Connect all ranks."""
        _connect_again(self)
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load the checkpoint that the first rank has chosen."""
        return super().load_checkpoint(self.broadcast(checkpoint_path), weights_only)


class Sharded(ModelParallelStrategy):
    """A part of every weight, its gradient and its moments on each device, `fsdp`: the model is put together as needed.

    PyTorch's FSDP2. The blocks of the encoder are gathered one after the other, forward and backward; prompts, decoder
    and the rest of the encoder as one, for as long as a step lasts, so that ranks may be asked different prompts.

    Args:
        timeout: Minutes that a rank waits for the others before it gives up.
        backend: How ranks talk, "nccl" or "gloo"; what is usual on the device if not given.
        pieces: Save checkpoints as folders into which every rank writes its part, at the same time; otherwise as one
            file, like `ddp`. Both are read everywhere.
    """

    # Weights and moments are loaded as those of any other model, each rank its part.
    lightning_restore_optimizer = True

    def __init__(self, timeout: float = 30.0, backend: str | None = None, pieces: bool = False) -> None:
        super().__init__(tensor_parallel_size=1, process_group_backend=backend, timeout=timedelta(minutes=timeout))
        self.pieces = pieces
        self._saved: Any = None  # the step of the last checkpoint

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_environment(self) -> None:
        """Connect all ranks, which share every weight."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        _connect_again(self)
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights, of each this rank's part."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimiser's state, of each tensor this rank's part."""
        return Strategy.optimizer_state(self, optimizer)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save as a folder of pieces, or put together as one file; every rank calls it.

        Raises:
            SamlitError: It could not be written; what was there is untouched. On every rank alike.
        """
        path = Path(self.broadcast(filepath))
        if not self.pieces:
            whole = pieces.whole(checkpoint, keep=self.is_global_zero)
            if self.is_global_zero:
                self.checkpoint_io.save_checkpoint(whole, path, storage_options)
            return
        step, io = checkpoint.get("global_step"), self.checkpoint_io
        keep = path.with_name(PREVIOUS) if path.name == LAST and step != self._saved else None
        try:
            pieces.save({**checkpoint, "hyper_parameters": plain(checkpoint.get("hyper_parameters", {}))}, path, keep)
        except SamlitError as error:
            if not isinstance(io, AtomicIO) or not io.patient:
                raise
            io.fault = error
        else:
            self._saved = step if path.name == LAST else self._saved

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """Remove a checkpoint, a file or a folder."""
        Strategy.remove_checkpoint(self, filepath)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load this rank's part of a checkpoint, of a file or a folder.

        Raises:
            FileNotFoundError: There is none.
            SamlitError: It is damaged.
        """
        io = self.checkpoint_io
        # Of a file with everything each rank wants little.
        file = partial(io.load_checkpoint, mapped=True) if isinstance(io, AtomicIO) else io.load_checkpoint
        return pieces.load(Path(self.broadcast(checkpoint_path)), self._place, file)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give the model its weights."""
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give the optimisers their states."""
        Strategy.load_optimizer_state_dict(self, checkpoint)

    def on_validation_start(self) -> None:
        """Judge one model: running statistics, of which every rank has its own, are the first one's, as in DDP."""
        net = getattr(self.lightning_module, "net", None)
        for buffer in net.buffers() if isinstance(net, Sam) else ():
            dist.broadcast(buffer, 0)

    def on_validation_end(self) -> None:
        """Let go of what the validation has gathered; called after all callbacks."""
        net = getattr(self.lightning_module, "net", None)
        if isinstance(net, FSDPModule):
            net.reshard()

    def _place(self, at: tuple[Any, ...], shape: Sequence[int], checkpoint: dict[str, Any]) -> DTensor | None:
        """The weight that a tensor of a checkpoint is, or is about, if that is shared."""
        assert self.lightning_module is not None
        like: Any = None
        match at:
            case ("state_dict", name):
                like = dict(self.lightning_module.named_parameters()).get(name)
            case ("optimizer_states", int(number), "state", known_as, _) if number < len(self.optimizers):
                # By place: numbers are counted in the order of the groups, which are the same in every strategy.
                saved = checkpoint["optimizer_states"][number]["param_groups"]
                order = [name for group in saved for name in group["params"]]
                own = [p for group in self.optimizers[number].param_groups for p in group["params"]]
                like = own[order.index(known_as)] if len(order) == len(own) else None
        return like if isinstance(like, DTensor) and tuple(shape) == tuple(like.shape) else None


def _connect_again(strategy: Replicated | Sharded) -> None:
    """Connect the ranks of a group that `torchrun` has started again, before Lightning would.

    Lightning takes torchrun's store as it is, and there the lost processes still stand with their addresses: a rank
    that reads one of those waits for nobody.
    """
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or dist.is_initialized():
        return
    environment = strategy.cluster_environment
    assert environment is not None
    rank = environment.global_rank()
    if (store := ranks.meeting(rank)) is None:
        return
    device, backend = strategy.root_device, strategy._get_process_group_backend()
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("connect", store),  # type: ignore[attr-defined]
        rank=rank,
        world_size=environment.world_size(),
        timeout=strategy._timeout,
        device_id=None if device.type == "cpu" else device,
    )
    if backend == "nccl":
        atexit.register(dist.destroy_process_group)  # else it warns, as Lightning knows


def named(strategy: Any) -> Any:
    """The strategy that a recipe's word stands for; what is no such word is what it was."""
    # What Lightning takes by itself where there are several devices.
    StrategyRegistry.register("ddp", Replicated, "a copy of the model on every device", override=True)
    return {"ddp": Replicated, "fsdp": Sharded}[strategy]() if strategy in ("ddp", "fsdp") else strategy


def shard(net: Sam, mesh: DeviceMesh) -> None:
    """Let every rank of a mesh keep its part of every weight; all start from the first one's.

    The modules that the encoder names are gathered one by one, when they are called; all other weights when images are
    embedded, and they stay till the step has gone backward. So prompts may be answered as often as a rank likes.

    Args:
        net: The model, with its weights.
        mesh: One-dimensional, of all ranks.
    """
    if isinstance(net, FSDPModule):
        return
    for tensor in (*net.parameters(), *net.buffers()):
        moved = tensor.detach().to(mesh.device_type).contiguous()
        dist.broadcast(moved, 0)
        tensor.data.copy_(moved)
    for module in net.encoder.shards():
        fully_shard(module, mesh=mesh)
    fully_shard(net, mesh=mesh)
    embeds = net.embed

    # What goes in and out is hidden in functions: of tensors FSDP believes that the backward pass begins or ends there.
    def gather(image: Tensor, sizes: Tensor) -> Callable[[], Embedding]:
        embedding = embeds(image, sizes)
        return lambda: embedding

    def close(loss: Callable[[], Tensor]) -> Tensor:
        return loss()

    root: Any = net
    root.gather, root.close = gather, close
    register_fsdp_forward_method(root, "gather")
    register_fsdp_forward_method(root, "close")

    def embed(image: Tensor, sizes: Tensor) -> Embedding:
        root.reshard()  # what a validation has gathered knows nothing of a change of the weights since
        embedding: Embedding = root.gather(image, sizes)()
        return embedding

    root.embed = embed


def is_sharded(net: Sam) -> bool:
    """Whether every rank keeps its part of it only."""
    return isinstance(net, FSDPModule)


def closing(net: Sam, loss: Tensor) -> None:
    """Let a sharded model hear of the backward pass of a step's loss, whatever the loss is made of.

    Nothing else would tell it where the encoder is frozen, and its gradients would stay where they are.
    """
    if isinstance(net, FSDPModule):
        root: Any = net
        root.close(lambda: loss)
