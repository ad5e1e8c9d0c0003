"""Tensors that ranks share by their rows: which are this rank's, and how they are put in their place."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

__all__ = ["placed", "rows"]


def rows(like: DTensor) -> tuple[int, int]:
    """The first of the rows of a tensor that are this rank's, and the one after the last.

    Raises:
        ValueError: It is shared in another way.
    """
    n, first, last = like.shape[0], 0, like.shape[0]
    coordinate = like.device_mesh.get_coordinate()
    if coordinate is None:
        raise ValueError("this rank has no part in the tensor")
    for place, rank, ranks in zip(like.placements, coordinate, like.device_mesh.shape, strict=True):
        if isinstance(place, Replicate) or ranks == 1:
            continue
        if not isinstance(place, Shard) or place.dim != 0 or (first, last) != (0, n):
            raise ValueError(f"tensors are shared by rows here, not as {like.placements}")
        each = -(-n // ranks)
        first, last = min(rank * each, n), min((rank + 1) * each, n)
    return first, last


def placed(part: Tensor, like: DTensor) -> DTensor:
    """This rank's rows of a tensor that is shared as another one is."""
    part = part.to(like.to_local().device)
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
