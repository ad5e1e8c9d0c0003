"""Who works on what: claims on parts of the work by locks on files, which end with the process that holds them."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["claimed"]


@contextmanager
def claimed(file: Path, patient: bool = False) -> Iterator[bool]:
    """Hold a claim while the block runs; nobody else on any machine that shares the folder holds it meanwhile.

    The system takes a lock back when its process ends, however it ends: a claim cannot outlive a dead worker, and
    nothing has to be told that it died. What was claimed may be done by now, so look again inside the block.

    Args:
        file: Whose lock it is; made where it is not there.
        patient: Whether to wait for whoever holds it.

    Yields:
        Whether it is held; always, where it was waited for.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
