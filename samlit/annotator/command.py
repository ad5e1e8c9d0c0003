"""`samlit annotate`: masks of a folder's images, by people in the browser."""

from __future__ import annotations

import getpass
import importlib.util
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samlit import cache
from samlit.errors import SamlitError, UsageError, did_you_mean, one_line
from samlit.evaluation import evaluate
from samlit.shell import terminal
from samlit.shell.options import ArgumentParser

if TYPE_CHECKING:
    from samlit.annotator.proposals import Proposer
    from samlit.annotator.server import Annotator
    from samlit.annotator.store import Item, Store
    from samlit.predictor import Predictor

__all__ = ["main"]

CONFIDENT = {"points_per_side": "16", "pred_iou_thresh": "0.9", "stability_score_thresh": "0.95"}
"""Of everything-mode: few masks, and those to be relied on; a person adds the others."""

EPILOG = """the page has a sheet of its keys: press ?

Each accepted mask is in DIR/annotations at once, as SA-1B's JSON. Any number of people, tabs and servers may work on
one folder. With --host the page is for whoever has the address that is printed, which has a token in it: there is no
encryption, so put it behind a tunnel or a proxy that has.

--everything.KEY VALUE changes what is proposed (docs/tasks.md).

examples:
  samlit annotate --images photos --weights mobile_sam
  samlit annotate --images photos --weights runs/finetune/best.ckpt --propose everything --person ada
  samlit annotate --images photos --weights mobile_sam --propose detected.json
  samlit annotate --images photos --report
  samlit annotate --images photos --export coco photos.json --hold-out 5
"""


def main(argv: list[str]) -> int:
    """Run the command with the words after `samlit annotate`."""
    parser = ArgumentParser(
        prog="samlit annotate",
        usage="samlit annotate --images DIR (--weights W | --report | --export coco FILE) [OPTION ...]",
        description="Masks of a folder's images, by people in the browser.",
        epilog=EPILOG,
    )
    parser.reads.add_argument("--images", required=True, metavar="DIR", help="a folder of images, with its folders")
    published = "published weights (`samlit list weights`), or a file: runs/NAME/best.ckpt"
    parser.reads.add_argument("--weights", metavar="NAME|FILE", help=published)
    parser.writes.add_argument("--out", metavar="DIR", help="the folder of the annotations (DIR/annotations)")
    told = "begin each image with masks: `everything` with confident ones, FILE.json with those of a detector's boxes"
    parser.runs.add_argument("--propose", metavar="everything|FILE", help=told)
    told = "with --propose FILE: boxes of a lower score are left out (0.5)"
    parser.runs.add_argument("--score", type=float, metavar="S", help=told)
    parser.writes.add_argument(
        "--person", default="", metavar="NAME", help="who annotates, in what is kept (the user's name)"
    )
    told = "browser, server, or auto (the default): in the browser where ONNX and onnxruntime-web are there"
    parser.runs.add_argument("--decoder", default="auto", metavar="WHERE", help=told)
    parser.runs.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda, mps (cpu)")
    parser.runs.add_argument(
        "--host", default="127.0.0.1", metavar="H", help="address to listen at (127.0.0.1: this machine)"
    )
    parser.runs.add_argument("--port", type=int, default=8188, metavar="P", help="port, 0 for any that is free (8188)")
    parser.says.add_argument("--report", action="store_true", help="print what has been done, a row a model, and end")
    told = "with --report: for a program, as one object on stdout"
    parser.says.add_argument("--json", action="store_true", help=told)
    told = "write all masks as one file, and end; coco is the one form there is"
    parser.writes.add_argument("--export", nargs=2, metavar=("FORM", "FILE"), help=told)
    told = "with --export: about every N-th image, by its name and so for ever the same, into another file, FILE_val"
    parser.writes.add_argument("--hold-out", type=int, metavar="N", help=told)
    parser.writes.add_argument(
        "--only-done", action="store_true", help="with --export: images that were called done, alone"
    )
    options, rest = parser.parse_known_args(argv)
    known = [word for action in parser._actions for word in action.option_strings]
    for word in rest:
        if word.startswith("--") and not word.startswith(evaluate.EVERYTHING):
            option = word.partition("=")[0]
            raise UsageError(f"there is no option {option!r}{did_you_mean(option, known)} (see `{parser.prog} --help`)")
    if not 0 <= options.port <= 65535:
        raise UsageError(f"--port is 0 to 65535, not {options.port}")
    for name, value, words in (
        ("--decoder", options.decoder, ("auto", "browser", "server")),
        ("--export", options.export and options.export[0], ("coco",)),
    ):
        if value is not None and value not in words:
            raise UsageError(f"{name} is {' or '.join(words)}, not {value!r}{did_you_mean(value, words)}")
    boxes = options.propose is not None and options.propose.endswith(".json")
    if options.propose not in (None, "everything") and not boxes:
        near = did_you_mean(options.propose, ("everything",))
        raise UsageError(f"--propose is everything, or a JSON file of boxes, not {options.propose!r}{near}")
    if options.score is not None and not boxes:
        raise UsageError("--score is for --propose FILE.json")
    if rest and options.propose != "everything":
        raise UsageError(f"{rest[0].partition('=')[0]} is for --propose everything")
    if (options.only_done or options.hold_out is not None) and not options.export:
        raise UsageError(f"{'--only-done' if options.only_done else '--hold-out'} is for --export")
    if options.json and not options.report:
        raise UsageError("--json is for --report")
    if options.hold_out is not None and options.hold_out < 2:
        raise UsageError(f"--hold-out is at least 2, not {options.hold_out}")

    from samlit.annotator.store import Store

    images = Path(options.images)
    store = Store(images, Path(options.out) if options.out else images / "annotations")
    if options.report or options.export:
        return _told(store, options)
    if options.weights is None:
        raise UsageError("give --weights, or --report, or --export coco FILE")
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise SamlitError(f"annotate needs {' and '.join(missing)}: pip install 'samlit[annotate]'")
    return _serve(store, options, rest)


def _told(store: Store, options: Any) -> int:
    """`--report` and `--export`, which need no model."""
    from samlit.annotator import coco, report

    if options.export:
        file, share = Path(options.export[1]), options.hold_out

        def held(item: Item) -> bool:
            return share is not None and item.held(share)

        if share is None or (any(map(held, store.items)) and not all(map(held, store.items))):
            parts = [(file, lambda item: not held(item)), (file.with_stem(f"{file.stem}_val"), held)]
        else:
            raise UsageError(
                f"--hold-out {share} divides {len(store.items)} images into all and none: take another one"
            )
        for path, keep in parts[: 1 if share is None else 2]:
            count, masks = coco.write(store, path, options.only_done, keep)
            terminal.say(f"{count} images, {masks} masks, saved to {path}")
    if options.report:
        report.show(store, options.json)
    return 0


def _serve(store: Store, options: Any, rest: list[str]) -> int:
    from samlit.annotator.proposals import Proposals
    from samlit.annotator.server import Annotator, serve
    from samlit.predictor import Predictor

    everything = options.propose == "everything"
    proposing = evaluate.everything(CONFIDENT, rest, "--propose everything") if everything else None
    predictor = Predictor.load(options.weights, options.device)
    if not {"points", "boxes"} <= predictor.net.prompt_types.keys():
        raise UsageError(f"{options.weights} takes no points and boxes: it cannot be annotated with")
    folder = cache.folder() / "annotate"
    proposals = None
    if options.propose:
        proposals = Proposals(_proposer(predictor, store, options, proposing), store, folder / "proposals")
    from samlit.annotator.guard import loopback

    token = None if loopback(options.host) else secrets.token_urlsafe(24)
    person = options.person or _user()
    name = _called(str(options.weights))
    decoder = _decoder(predictor, folder, options.decoder)
    annotator: Annotator = Annotator(store, predictor, name, folder, proposals, person, decoder)

    def ready(port: int) -> None:
        host = {"0.0.0.0": "HOST", "::": "HOST"}.get(options.host, options.host)
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        if token is not None:
            address += f"?token={token}"
        terminal.say(f"{len(store.items)} images, annotations in {store.out}")
        terminal.show(f"open {address}   (Ctrl-C ends it; all that was accepted is saved)")

    serve(annotator, options.host, options.port, token, ready)
    return 0


def _called(weights: str) -> str:
    """What a model is called in reports: a published name, or the last two parts of a path."""
    return "/".join(Path(weights).parts[-2:]) if Path(weights).suffix else weights


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return ""


def _proposer(predictor: Predictor, store: Store, options: Any, everything: Any) -> Proposer:
    if everything is not None:
        from samlit.annotator.proposals import Everything

        return Everything(predictor.net, predictor.image_size, *everything)
    from samlit.annotator.boxes import Boxes
    from samlit.predictor import Predictor

    own = Predictor(predictor.net, predictor.image_size)  # its image is the proposals' alone
    return Boxes(own, store, Path(options.propose), 0.5 if options.score is None else options.score)


def _decoder(predictor: Predictor, folder: Path, where: str) -> Path | None:
    """The folder with what a browser needs to decode, or None where the server does."""
    if where == "server":
        return None
    from samlit.annotator import graphs

    try:
        return graphs.folder(predictor.net, predictor.image_size, folder / "decoders")
    except (SamlitError, ValueError) as error:
        if where == "browser":
            raise SamlitError(f"--decoder browser: {one_line(error)}") from error
        terminal.note(f"the server decodes, not the browser: {one_line(error)}")
        return None
