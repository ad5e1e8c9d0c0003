"""What has been annotated, by which model, and how much of what it proposed was right."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

from samlit.annotator.store import Store
from samlit.annotator.verdicts import ACCEPTED, EDITED, REJECTED, Model, provenance, verdicts
from samlit.errors import SamlitError
from samlit.shell import terminal

__all__ = ["Row", "rows", "show"]

COLUMNS = ("images", "masks", "masks/h", "median s", "clicks/mask", "as proposed", "edited", "rejected", "missed")


@dataclass
class Row:
    """What was done with one model.

    Attributes:
        model: Its name, as it was typed, and the fingerprint of its weights.
        images: With a mask of it.
        masks: That were accepted and not deleted.
        seconds: Of a person, each mask.
        clicks: Points and boxes, each mask that a person began: not the proposals that were taken as they were.
        accepted: Proposals that were taken as they were.
        edited: Proposals that were changed before they were taken, or after.
        rejected: Proposals that were refused, or taken and deleted again.
        missed: Masks that a person began in images that had proposals.
    """

    model: Model
    images: int = 0
    masks: int = 0
    seconds: list[float] = field(default_factory=list)
    clicks: list[int] = field(default_factory=list)
    accepted: int = 0
    edited: int = 0
    rejected: int = 0
    missed: int = 0

    @property
    def unedited(self) -> float | None:
        """Of the proposals that were decided on the share that was taken as it was."""
        decided = self.accepted + self.edited + self.rejected
        return self.accepted / decided if decided else None


def rows(store: Store) -> tuple[list[Row], list[str]]:
    """A row a model, in the order in which the models come up; and what is wrong with each file that is in no row."""
    damaged: list[str] = []
    found: dict[Model, Row] = {}
    seen: dict[Model, set[str]] = defaultdict(set)

    def of(model: Model) -> Row:
        return found.setdefault(model, Row(model))

    for item in store.items:
        try:
            document = store.read(item)
        except SamlitError as error:
            damaged.append(str(error))
            continue
        for model, verdict in verdicts(document):
            row = of(model)
            row.accepted += verdict == ACCEPTED
            row.edited += verdict == EDITED
            row.rejected += verdict == REJECTED
        for mask in document["annotations"]:
            told: dict[str, Any] = provenance(mask)
            if not told or mask.get("deleted"):  # it was there before, or is no more
                continue
            model = Model.of(told)
            row, proposal = of(model), told.get("proposal")
            seen[model].add(item.id)
            row.masks += 1
            row.seconds.append(float(told["seconds"]))
            if proposal is not None and not proposal["edited"]:
                continue
            row.clicks.append(len(told["prompts"]["points"]) + (told["prompts"]["box"] is not None))
            row.missed += proposal is None and model.weights in document["samlit"]["offered"]
    for model, row in found.items():
        row.images = len(seen[model])
    return list(found.values()), damaged


def show(store: Store, as_json: bool = False) -> None:
    """Print the rows, for a person or a program, with the images that are done."""
    told, damaged = rows(store)
    done = sum(store.summary(item)["done"] for item in store.items)
    if as_json:
        models = [
            asdict(row) | {"model": row.model.name, "weights": row.model.weights, "unedited": row.unedited}
            for row in told
        ]
        whole = {"images": len(store.items), "done": done, "damaged": damaged, "models": models}
        terminal.show(json.dumps(whole, indent=2))
        return
    terminal.show(f"{len(store.items)} images, {done} done")
    if damaged:
        others = f" ({len(damaged)} files in all)" if len(damaged) > 1 else ""
        terminal.show(f"not counted: {damaged[0]}{others}")
    if not told:
        terminal.show("no mask has been accepted yet")
        return
    table = terminal.table("model", *COLUMNS)
    names = Counter(row.model.name for row in told)
    for row in told:
        name, weights = row.model
        hours = sum(row.seconds) / 3600
        table.add_row(
            name if names[name] == 1 else f"{name} ({weights[:6]})",
            str(row.images),
            str(row.masks),
            f"{row.masks / hours:.0f}" if hours else "-",
            f"{statistics.median(row.seconds):.1f}" if row.seconds else "-",
            f"{statistics.mean(row.clicks):.1f}" if row.clicks else "-",
            "-" if row.unedited is None else f"{row.accepted} ({row.unedited:.0%})",
            str(row.edited),
            str(row.rejected),
            str(row.missed),
        )
    terminal.show(table)
