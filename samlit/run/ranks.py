"""Which of a run's processes this is, and what they agree on before they are connected. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from samlit.errors import UsageError, one_line

__all__ = ["agreed", "connected", "meeting", "place"]

connected = False
"""Whether this process has been connected with other ranks."""

_stores: list[Any] = []  # the first rank's serves the others as long as the process lives


def place() -> tuple[int, int]:
    """This process's rank and how many ranks there are, as far as whoever started it says; (0, 1) if nobody does.

    The first process of a machine that starts the others itself is (0, 1) till it has.
    """
    known = os.environ
    for rank, world in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "WORLD_SIZE")):
        if rank in known:
            return int(known[rank]), int(known.get(world, "1"))
    if _by_slurm():
        return int(known.get("SLURM_PROCID", "0")), int(known["SLURM_NTASKS"])
    return 0, 1


def _by_slurm() -> bool:
    """Whether SLURM has started this process as one of a run's."""
    known = os.environ
    # In a shell on a cluster's machine SLURM's numbers are the shell's, not a run's.
    own = "SLURM_NTASKS" in known and known.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    return own and not {"RANK", "LOCAL_RANK"} & known.keys()


def agreed(name: str, choose: Callable[[], str | None]) -> str | None:
    """What the first rank chooses, on every rank: a folder's state may change between two looks at it.

    Args:
        name: Of what is chosen; an environment variable SAMLIT_name hands it to processes that this one starts. Where
            somebody else has started all of them, what stands there may be of another run.
        choose: Chooses; called on the first rank.
    """
    variable = f"SAMLIT_{name}"
    rank, world = place()
    store = meeting(rank) if world > 1 else None
    if rank == 0:
        chosen = choose()
        os.environ[variable] = chosen or ""
        if store is not None:
            store.set(name, chosen or "")
        return chosen
    if store is not None:
        return store.get(name).decode() or None
    return os.environ[variable] or None if variable in os.environ else choose()


def meeting(rank: int) -> Any:
    """The store that all ranks can write to before they are connected; None where whoever started them offers none.

    A group that `torchrun` starts again begins with an empty one.
    """
    if _stores:
        return _stores[0]
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    patience = timedelta(minutes=5)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # torchrun's is still the one of the group that was lost.
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        _stores.append(PrefixStore(f"samlit/{restart}", TCPStore(address, port, is_master=False, timeout=patience)))
    elif _by_slurm() and "SLURM_PROCID" in os.environ:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        try:
            slurm = SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:  # tasks that are not counted by node
            raise UsageError(f"SLURM: {one_line(error)}") from error
        # Lightning connects the ranks at the port itself, later.
        port = slurm.main_port + 1
        _stores.append(
            TCPStore(slurm.main_address, port, is_master=rank == 0, timeout=patience, wait_for_workers=False)
        )
    else:
        return None
    return _stores[0]
