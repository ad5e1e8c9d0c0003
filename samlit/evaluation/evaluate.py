"""`samlit evaluate`: a registered task with its metric, on any data, with any weights."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from samlit import __version__, atomic, plugins, recipe
from samlit.errors import UsageError, did_you_mean, one_line
from samlit.evaluation import suite
from samlit.evaluation.partial import Partial
from samlit.loading import specs
from samlit.shell import complaints, terminal
from samlit.shell.options import ArgumentParser

if TYPE_CHECKING:
    from torchmetrics import Metric

    from samlit.contracts import Task
    from samlit.model import Sam
    from samlit.source import Source
    from samlit.structures import Batch

__all__ = ["EVERYTHING", "Evaluation", "evaluate", "everything", "main"]

EPILOG = """keys of the task are given as --task.KEY VALUE, and `samlit evaluate --task NAME --help` lists them

Several data sets are judged one by one, and the mean over them is told too. With --out, what is done is kept there, and
the same command goes on where it was stopped.

examples:
  samlit evaluate --task points --weights mobile_sam --data coco:val.json
  samlit evaluate --task points --weights sam_vit_h --sets data/suite --out suite
  samlit evaluate --task points --task.clicks "[1, 2, 3]" --weights sam_vit_b --data coco:a.json folder:b --out points
"""
EVERYTHING = "--everything."
"""How options of everything-mode begin, in other commands that use it."""
STDOUT = "-"
"""What `--json` without a file is."""


@dataclass(frozen=True)
class Evaluation:
    """What came out on one data set.

    Attributes:
        data: The data set, as it was typed.
        images: How many were judged,
        masks: and how many masks they have.
        seconds: It took, where it was not interrupted.
        numbers: By name.
    """

    data: str
    images: int
    masks: int
    seconds: float
    numbers: dict[str, float]


def main(argv: list[str]) -> int:
    """Run the command with the words after `samlit evaluate`."""
    parser = ArgumentParser(
        prog="samlit evaluate",
        usage="samlit evaluate --task NAME --weights W --data SOURCE:PATH ... [--task.KEY VALUE ...] [OPTION ...]",
        description="A task with its published metric, on any data, with any weights.",
        epilog=EPILOG,
        add_help=False,
    )
    tasks = ", ".join(plugin.name for plugin in plugins.catalogue("tasks"))
    parser.runs.add_argument("--task", metavar="NAME", help=f"one of {tasks}, or a class path")
    published = "published weights (`samlit list weights`), or a file: runs/NAME/best.ckpt"
    parser.reads.add_argument("--weights", metavar="NAME|FILE", help=published)
    sources = "one data set or several, as in coco:val.json (`samlit list sources`)"
    parser.reads.add_argument("--data", nargs="+", metavar="SOURCE:PATH", help=sources)
    sets = "the paper's data sets (`samlit list sets`) that are in folders of their names there"
    parser.reads.add_argument("--sets", metavar="DIR", help=sets)
    setting = "what else a source takes, as in --set crowd=true"
    parser.reads.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=setting)
    parser.reads.add_argument("--limit", type=int, metavar="N", help="only the first N images of each data set")
    parser.runs.add_argument("--batch", type=int, default=1, metavar="B", help="images at a time (default: 1)")
    parser.runs.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda, mps (default: cpu)")
    told = "for a program, the numbers as one object on stdout instead of the table; with FILE there, beside the table"
    parser.says.add_argument("--json", nargs="?", const=STDOUT, metavar="FILE", help=told)
    parser.writes.add_argument(
        "--out", metavar="DIR", help="write numbers, pictures and plots there, and go on from there"
    )
    parser.writes.add_argument(
        "--pictures", type=int, default=4, metavar="N", help="images that --out shows (default: 4)"
    )
    parser.says.add_argument("-h", "--help", action="store_true", help="show this, and with --task its keys")
    options, rest = parser.parse_known_args(argv)
    if options.help and not options.task:
        parser.print_help()
        return 0
    if not options.task:
        raise UsageError(f"evaluate needs a task: --task NAME (known: {tasks})")
    class_path = recipe.resolve_slot("model.task", options.task, "--task")
    if options.help:
        parser.print_help()
        built(class_path, options.task, ["--help"])
        return 0
    known = [word for action in parser._actions for word in action.option_strings]
    for word in rest:
        if word.startswith("--") and not word.startswith("--task."):
            option = word.partition("=")[0]
            raise UsageError(f"there is no option {option!r}{did_you_mean(option, known)}")
    if not options.weights:
        raise UsageError("evaluate needs --weights (see `samlit evaluate --help`)")
    if not options.data and not options.sets:
        raise UsageError("evaluate needs --data, or --sets (see `samlit evaluate --help`)")
    for name in ("limit", "batch"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UsageError(f"--{name} {getattr(options, name)}: one at least")
    if options.set and not options.data:
        raise UsageError("--set is for the sources of --data, and there are none")
    typed = specs.read(options.data, options.set) if options.data else []
    from samlit.loading.sampled import Sampled

    judged = [(spec.text, *specs.build([spec])) for spec in typed]
    for found in suite.on_disk(Path(options.sets)) if options.sets else []:
        source, arguments = specs.build(specs.read(found.specs, found.settings))
        judged.append((found.name, Sampled(source, found.images) if found.images else source, arguments))
    task, keys = built(class_path, options.task, rest)

    from samlit import checkpoints

    net, image_size = checkpoints.load(options.weights)
    net.eval().to(options.device)
    if wanted := [name for name in task.prompts if name not in net.prompt_types]:
        raise UsageError(
            f"--task {options.task} asks with {', '.join(wanted)}, and {options.weights} takes "
            f"{', '.join(net.prompt_types)} only"
        )
    done: list[Evaluation] = []
    out = None if options.out is None else Path(options.out)
    for text, source, arguments in judged:
        folder = out / _slug(text) if out is not None and len(judged) > 1 else out
        about = {"task": class_path, "keys": keys, "data": [text, arguments], "limit": options.limit}
        done.append(
            evaluate(net, image_size, task, source, text, options.batch, options.limit, folder, options.pictures, about)
        )
        if len(judged) > 1 and options.json != STDOUT:
            terminal.say(f"{text}: " + ", ".join(f"{name} {value:.3f}" for name, value in done[-1].numbers.items()))
    whole = {
        "samlit": __version__,
        "task": options.task,
        "keys": keys,
        "weights": options.weights,
        "data": [{**vars(one), "numbers": _written(one.numbers)} for one in done],
        "mean": _written(mean(done)),
    }
    numbers = json.dumps(whole, indent=2)
    say: Callable[[str], None] = terminal.say
    if options.json == STDOUT:
        say = terminal.tell
        terminal.show(numbers)
    else:
        show(done)
        if options.sets:
            _tell_suite(done[len(typed) :], options.limit)
    for file in [options.json not in (None, STDOUT) and Path(options.json), out and out / "results.json"]:
        if file:
            atomic.write(file, numbers + "\n")
            say(f"saved to {file}")
    return 0


def evaluate(
    net: Sam,
    image_size: int,
    task: Task,
    source: Source,
    name: str = "",
    batch_size: int = 1,
    limit: int | None = None,
    folder: Path | None = None,
    pictures: int = 0,
    about: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Judge a model by a task on a source's images.

    Args:
        net: The model, on its device.
        image_size: Side of the frame, pixels.
        task: With a metric.
        source: Of images and true masks.
        name: Of the source, as a person calls it.
        batch_size: Images at a time.
        limit: Only the first so many images.
        folder: Where pictures and plots go, and what is done is kept, so that the same call goes on there.
        pictures: Images that are shown there.
        about: What else the result depends on; what was kept about something else is not gone on from.

    Raises:
        UsageError: The task has no metric, or the source no image.
        ValueError: An image or a mask is damaged.
    """
    import torch

    from samlit.evaluation.answers import Answers
    from samlit.loading import frames
    from samlit.loop import drive
    from samlit.shell.bars import bar
    from samlit.structures import Scene

    metric = task.metric()
    if metric is None:
        raise UsageError(f"the task {type(task).__name__} has no metric: it asks, and judges nothing")
    with bar() as progress:
        source.prepare(progress)
    count = len(source) if limit is None else min(limit, len(source))
    if not count:
        raise UsageError(f"{name or type(source).__name__}: there are no images in it")
    device = net.pixel_mean.device
    metric.to(device)
    kept = _Kept(folder, metric, {**(about or {}), "weights": _mark(net), "images": count, "size": image_size})
    began = time.monotonic()
    with bar() as progress, kept:
        while kept.done < count:
            numbers = range(kept.done, min(kept.done + batch_size, count))
            samples = [source[number] for number in numbers]
            batch = frames.pack([frames.frame(sample, image_size) for sample in samples]).to(device)
            batch.samples = samples
            answers = Answers(net, batch)
            scene = Scene(batch, net.prompt_types, seed=numbers[0], common=numbers[0], embed=answers.whole)
            with torch.no_grad():
                result = drive(task, scene, answers)
                metric.update(result)
                if folder is not None and kept.done < pictures:
                    _draw(folder / "pictures", net, task, scene, result, numbers[0])
            kept.advance(len(samples), len(batch.masks))
            progress(kept.done, count, name or "evaluating")
            if kept.partial.due:
                kept.save()
    found = {key: float(value) for key, value in metric.compute().items()}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        task.plot(found, metric, folder)
    return Evaluation(name, count, kept.masks, round(time.monotonic() - began, 1), found)


def _tell_suite(done: Sequence[Evaluation], limit: int | None) -> None:
    """Say which of the paper's data sets these are not, in number or in size."""
    for one in done:
        if limit is None and (told := suite.differences(one.data, one.images, one.masks)):
            terminal.say(f"{one.data}: {told}")
    missing = [name for name in suite.SUITE if name not in {one.data for one in done}]
    if missing:
        terminal.say(f"{len(done)} of the paper's {len(suite.SUITE)} data sets; not there: {', '.join(missing)}")


def mean(done: Sequence[Evaluation]) -> dict[str, float]:
    """Of every number its mean over the data sets that have it, each of which counts as one, as in the paper."""
    names = dict.fromkeys(name for one in done for name in one.numbers)
    values = {
        name: [one.numbers[name] for one in done if not math.isnan(one.numbers.get(name, math.nan))] for name in names
    }
    return {name: sum(some) / len(some) if some else math.nan for name, some in values.items()}


def _written(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers as JSON has them, which knows no nan."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def show(done: Sequence[Evaluation]) -> None:
    """Print a table: a row a number, a column a data set, and their mean where there are several."""
    columns = [(f"{one.data}\n{one.images} images, {one.masks} masks", one.numbers) for one in done]
    if len(done) > 1:
        columns.append(("mean", mean(done)))
    table = terminal.table("", *(title for title, _ in columns))
    for name in dict.fromkeys(name for _, numbers in columns for name in numbers):
        table.add_row(name, *(terminal.number(numbers.get(name)) for _, numbers in columns))
    terminal.show(table)


class _Kept:
    """What has been evaluated so far.

    Args:
        folder: Of its file; nothing is kept if not given.
        metric: Whose state is kept.
        about: What the state is of.
    """

    def __init__(self, folder: Path | None, metric: Metric, about: Mapping[str, Any]) -> None:
        metric.persistent(True)
        self.metric = metric
        self.partial = Partial(None if folder is None else folder / "done.pt", about, "evaluation")
        found = self.partial.found
        self.done, self.masks = found.get("done", 0), found.get("masks", 0)
        if found:
            metric.load_state_dict(found["metric"])
            metric.to(metric.device)  # what was kept was read to the processor
            metric._update_count = 1  # or it warns that it has seen nothing

    def advance(self, images: int, masks: int) -> None:
        """Count what has been done."""
        self.done, self.masks = self.done + images, self.masks + masks

    def save(self) -> None:
        """Write it down."""
        self.partial.save(done=self.done, masks=self.masks, metric=self.metric.state_dict())

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *error: object) -> None:
        self.save()


def built(class_path: str, name: str, words: Sequence[str]) -> tuple[Task, dict[str, Any]]:
    """A task with keys that were typed, and all of its keys.

    Args:
        class_path: Of the task.
        name: As it was typed.
        words: `--task.KEY` and values.

    Raises:
        UsageError: A key is unknown, or its value is none that it takes.
    """
    from jsonargparse import ArgumentParser as Parser

    from samlit.contracts import Task

    target = plugins.load(class_path, "--task")

    class Own(Parser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            keys = [word[2:] for action in self._actions for word in action.option_strings if word.startswith("--")]
            raise UsageError(f"--task {name}: {complaints.reword(message, keys)}") from ex

    told = f"keys of the task {name}:"
    parser = Own(prog="samlit evaluate", usage=argparse.SUPPRESS, description=told, allow_abbrev=False)
    parser.add_class_arguments(target, "task", fail_untyped=False)
    try:
        typed = parser.parse_args(list(words))
    except SystemExit:
        if "--help" in words:
            return None, {}  # type: ignore[return-value]
        raise
    keys = typed.as_dict().get("task", {})
    try:
        task = parser.instantiate(typed).task
    except (TypeError, ValueError) as error:
        raise UsageError(f"--task {name}: {one_line(error)}") from error
    if not isinstance(task, Task):
        raise UsageError(f"--task {name}: {class_path} is no Task")
    return task, keys


def _draw(folder: Path, net: Sam, task: Task, scene: Any, result: Any, number: int) -> None:
    """Pictures of what was asked and answered about a batch."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = list(task.show(scene, result))
    if not shown:
        shown = list(_sheets(net, task, scene.batch))
    for at, picture in enumerate(shown):
        with atomic.writing(folder / f"{number + at:05}.png") as stream:
            picture.save(stream, format="PNG")


def _sheets(net: Sam, task: Task, batch: Batch) -> Iterator[Any]:
    """A few masks of a batch with the answers round by round; asked again, of those few alone."""
    from samlit.drawing import pictures
    from samlit.evaluation.answers import Answers
    from samlit.loop import Round, drive
    from samlit.run import examples
    from samlit.structures import Scene

    some = examples.chosen(batch, 4)
    turns: list[Round] = []
    if len(some.masks):
        drive(task, Scene(some, net.prompt_types), Answers(net, some), turns.append)
    if turns and (told := examples.told(some, net.prompt_types, [(task, turns)])):
        yield pictures.contact_sheet(told)


def _mark(net: Sam) -> str:
    from samlit.embeddings import fingerprint

    return fingerprint(net)


def _slug(text: str) -> str:
    """A folder's name for a data set."""
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text)[-60:].strip("-.")
    return f"{kept}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def everything(preset: Mapping[str, str], words: Sequence[str], option: str) -> tuple[Task, dict[str, Any]]:
    """The task that finds everything, with all of its options, for a command that takes them as `--everything.KEY`.

    Args:
        preset: Options that differ from the task's defaults.
        words: `--everything.KEY` and values, which go before the preset's.
        option: The command's option that asks for it, for complaints.

    Raises:
        UsageError: A key is unknown, or its value is none that it takes.
    """
    given = [f"--task.options.{key}={value}" for key, value in preset.items()]
    given += [re.sub(f"^{re.escape(EVERYTHING)}", "--task.options.", word) for word in words]
    class_path = recipe.resolve_slot("model.task", "everything", option)
    try:
        task, keys = built(class_path, "everything", given)
    except UsageError as error:
        message = str(error).replace("--task.options.", EVERYTHING).replace("--task everything", option)
        raise UsageError(message) from error
    return task, keys["options"]
