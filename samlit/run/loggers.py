"""Where numbers go besides W&B: a table in the run's folder, and TensorBoard's files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from samlit.atomic import write
from samlit.errors import one_line
from samlit.shell import terminal

__all__ = ["Csv", "Tensorboard"]


class Csv(Logger):
    """Writes every number to `metrics.csv` in the run's folder, a row a step; a resumed run goes on in it.

    Args:
        save_dir: Where the file goes; the run's folder if not given.
    """

    def __init__(self, save_dir: str | None = None) -> None:
        super().__init__()
        self._save_dir = save_dir
        self._columns: list[str] = []
        self._row: dict[str, str] = {}
        self._go_on = self._noted = False

    @property
    def name(self) -> str:
        """Of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one a folder."""
        return ""

    @property
    def save_dir(self) -> str:
        """Where the file is."""
        return self._save_dir or "runs"

    def live_in(self, folder: str, go_on: bool = False) -> None:
        """Keep the file in a run's folder, unless another one was given; called before the training begins.

        Args:
            folder: The run's.
            go_on: Whether the training is resumed: what it does again takes the place of what is there.
        """
        self._save_dir, self._go_on = self._save_dir or folder, go_on

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.save_dir) / "metrics.csv"

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add numbers to the row of their step."""
        at = str(step) if step is not None else self._row.get("step", "0")
        if self._row and self._row["step"] != at:
            self._write()
        self._row["step"] = at
        self._row |= {name: f"{float(value):.7g}" for name, value in metrics.items() if name != "step"}

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: `config.yaml` has them."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the last row."""
        self._write()

    def _write(self) -> None:
        """Append the row; a file whose columns it does not fit is written anew."""
        row, self._row = self._row, {}
        if not row:
            return
        try:
            if self._columns and row.keys() <= set(self._columns):
                with self.path.open("a", newline="", encoding="utf-8") as file:
                    self._table(file).writerow(row)
                return
            rows = self._rows(int(row["step"]))
            names = {name for one in (*rows, row) for name in one} - {"step", "epoch"}
            self._columns = ["step", "epoch", *sorted(names)]
            text = io.StringIO()
            table = self._table(text)
            table.writeheader()
            table.writerows([*rows, row])
            write(self.path, text.getvalue())
        except OSError as error:  # no table is worth a training
            if not self._noted:
                terminal.note(f"{self.path} cannot be written ({one_line(error)}); training goes on")
            self._noted = True

    def _table(self, file: IO[str]) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self._columns, restval="", lineterminator="\n")

    def _rows(self, before: int) -> list[dict[str, str]]:
        """What this run has written, or the run that it goes on from, up to a step."""
        if not (self._columns or self._go_on) or not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = [{name: value for name, value in row.items() if name and value} for row in csv.DictReader(file)]
        return [row for row in rows if row.get("step", "").isdigit() and int(row["step"]) < before]


class Tensorboard(TensorBoardLogger):
    """Writes TensorBoard's files into the run's folder: `tensorboard --logdir runs` compares runs by their folders.

    Args:
        save_dir: Where they go; the run's folder if not given.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed.
    """

    def __init__(self, save_dir: str | None = None) -> None:
        super().__init__(save_dir or "runs", "", "", default_hp_metric=False)
        self._given = save_dir

    @property
    def log_dir(self) -> str:
        """Where the files are."""
        return str(self._root_dir)

    def live_in(self, folder: str, go_on: bool = False) -> None:
        """Keep the files in a run's folder, unless another one was given; called before the training begins."""
        self._root_dir = self._given or folder

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: `config.yaml` has them."""

    @rank_zero_only
    def save(self) -> None:
        """Write what is waiting."""
        if self._experiment is not None:
            self._experiment.flush()
