"""What was left out, and why: counted by cause, listed in a file, and too much of it ends the run."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from samlit.errors import SamlitError
from samlit.faults import Damaged

__all__ = ["Quarantine", "by_cause"]


class Quarantine:
    """The list of what could not be used.

    Args:
        file: JSON lines {"shard", "key", "cause", "message"}, one a sample or piece of a shard; none is written where
            nothing is left out.
        most: Share of the samples beyond which damage ends the run.
        judged_from: Samples to have seen before that share is judged.
        told: Whether a person is told of it: by one process of a run.
    """

    def __init__(self, file: Path, most: float = 0.01, judged_from: int = 1000, told: bool = True) -> None:
        if not 0 <= most <= 1:
            raise ValueError(f"max_damaged: a share from 0 to 1, not {most}")
        self.file, self.most, self.judged_from, self.told = file, most, judged_from, told
        self.seen = 0
        self.counts: Counter[str] = Counter()
        self._listed: set[tuple[str, str, str]] = set()
        self._read = self._reported = 0

    def known(self, faults: Sequence[Damaged], total: int) -> None:
        """List what a source knows to be unusable before it is read.

        Args:
            faults: One a sample or piece of a shard.
            total: Samples that there are, without those.

        Raises:
            SamlitError: It is too much.
        """
        for fault in faults if self.told else ():  # every rank knows them
            self._list(fault)
        counts = Counter(fault.cause for fault in faults)
        self._judge(counts, total + len(faults))
        if faults and self.told:
            words = f"beside {total} samples there is what cannot be used ({by_cause(counts)}), see {self.file}"
            warnings.warn(words, stacklevel=2)

    def add(self, faults: Iterable[Damaged], seen: int) -> None:
        """Count and list what was left out.

        Args:
            faults: One a sample.
            seen: Samples that were asked for, those that were left out among them.

        Raises:
            SamlitError: It has become too much.
        """
        self.seen += seen
        for fault in faults:
            self.counts[fault.cause] += 1
            self._list(fault)
        if self.seen >= self.judged_from:
            self._judge(self.counts, self.seen)
        if self.counts.total() >= 2 * max(self._reported, 0.5):  # at the first one, and whenever it has doubled
            self.report()

    def _judge(self, counts: Counter[str], total: int) -> None:
        # An image without a mask is no damage.
        damaged = counts.total() - counts["empty"]
        if damaged > self.most * total:
            raise SamlitError(
                f"{damaged} of {total} samples cannot be used ({by_cause(counts)}), more than max_damaged: "
                f"{self.most:g} allows; they are listed in {self.file}"
            )

    def report(self) -> None:
        """Tell the person of what was left out since the last time."""
        total = self.counts.total()
        if self.told and total > self._reported:
            warnings.warn(
                f"{total} of {self.seen} samples were left out so far ({by_cause(self.counts)}), see {self.file}",
                stacklevel=2,
            )
        self._reported = total

    def _list(self, fault: Damaged) -> None:
        """Write a fault down, once a run folder: another epoch, rank, or a run that goes on, meets it again."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a+b", buffering=0) as stream:
            cut = self._catch_up(stream)
            if (fault.shard, fault.key, fault.cause) in self._listed:
                return
            row = {"shard": fault.shard, "key": fault.key, "cause": fault.cause, "message": fault.message}
            # One write to the end of the file: the lines of several ranks do not mix.
            stream.write(("\n" * cut + json.dumps(row) + "\n").encode())
            os.fsync(stream.fileno())

    def _catch_up(self, stream: IO[bytes]) -> bool:
        """Read what was listed since the last time, by any process; whether a crash has cut the last line."""
        stream.seek(self._read)
        data = stream.read()
        whole = data.rfind(b"\n") + 1
        for line in data[:whole].splitlines():
            try:
                row = json.loads(line)
                self._listed.add((str(row["shard"]), str(row["key"]), str(row["cause"])))
            except (ValueError, KeyError, TypeError):
                continue
        self._read += whole
        return whole < len(data)


def by_cause(counts: Counter[str]) -> str:
    """In words, how often each cause came, the most frequent first."""
    return ", ".join(f"{cause}: {count}" for cause, count in counts.most_common())
