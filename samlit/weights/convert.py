"""`samlit convert`: a checkpoint in pieces to one file and back. Nothing of it is lost."""

from __future__ import annotations

from pathlib import Path

from samlit.errors import UsageError
from samlit.shell import terminal
from samlit.shell.options import ArgumentParser

__all__ = ["main"]

EPILOG = """examples:
  samlit convert runs/vit_h/last.ckpt vit_h.ckpt
  samlit convert vit_h.ckpt runs/again/last.ckpt
"""


def main(argv: list[str]) -> int:
    """`samlit convert CHECKPOINT OUT`: the form that the checkpoint has not, whole or not at all."""
    parser = ArgumentParser(
        prog="samlit convert",
        description="A checkpoint of `--trainer.strategy fsdp` that is a folder of pieces to one file, or one file to "
        "such a folder. Whatever reads checkpoints reads both; one file is for taking along.",
        epilog=EPILOG,
    )
    parser.reads.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a folder of pieces, or a .ckpt file")
    parser.writes.add_argument("out", type=Path, metavar="OUT", help="where to write it in the other form")
    options = parser.parse_args(argv)
    source, out = options.checkpoint, options.out
    if not source.exists():
        raise UsageError(f"there is no checkpoint {str(source)!r}")
    if out.exists():
        raise UsageError(f"{str(out)!r} exists: nothing is overwritten, give another name")
    from samlit.run.checkpointing import AtomicIO
    from samlit.weights import pieces

    if source.is_dir() and not pieces.is_folder(source):
        raise UsageError(f"{str(source)!r} is a folder, and no checkpoint in pieces: it has no {pieces.MANIFEST}")
    to_pieces = source.is_file()
    checkpoint = AtomicIO().load_checkpoint(source)
    if to_pieces:
        pieces.save(checkpoint, out)
    else:
        AtomicIO().save_checkpoint(checkpoint, out)
    terminal.say(f"saved to {out}, {'in pieces' if to_pieces else 'one file'}")
    return 0
