"""onnxruntime-web, which runs the decoder in the browser: fetched once by npm, checked, and kept in the cache."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from samlit import cache
from samlit.errors import SamlitError, one_line

__all__ = ["FILES", "PACKAGE", "runtime", "unpack"]

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA512 = (
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
    "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)
"""Of the package's tarball, as npm publishes it."""
FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
"""Of it, the runtime on the processor and the one on WebGPU."""
HERE = "SAMLIT_ORT_WEB"
"""The environment variable that names a folder with the files, for machines without npm or network."""
PATIENCE = 600
"""Seconds that npm may take."""


def runtime() -> Path:
    """The folder with `FILES`.

    Raises:
        SamlitError: They are not here and cannot be had; one line that says what to do.
    """
    if named := os.environ.get(HERE):
        folder = Path(named).expanduser()
        if missing := [name for name in FILES[:3] if not (folder / name).is_file()]:
            raise SamlitError(f"{HERE}: there is no {missing[0]} in {folder}; it is in {PACKAGE}'s folder dist")
        return folder
    folder = cache.folder() / PACKAGE / VERSION
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(prefix="samlit-") as scratch:
        unpack(_packed(Path(scratch)), folder)
    return folder


def unpack(tarball: Path, folder: Path, sha512: str = SHA512, files: Sequence[str] = FILES) -> None:
    """Put some files of a package into a folder, which is there whole or not at all.

    Names in the tarball decide nothing but which member is read: what it says of other places is not looked at.

    Args:
        tarball: Of an npm package.
        folder: To be made.
        sha512: What the tarball's must be.
        files: Of its folder `dist`.

    Raises:
        SamlitError: The tarball is another, or lacks a file.
    """
    with tarball.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha512").hexdigest()
    if found != sha512:
        raise SamlitError(f"{tarball.name} is not what was published: its sha512 begins with {found[:16]}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    beside.mkdir()
    try:
        with tarfile.open(tarball) as package:
            for name in files:
                try:
                    member = package.extractfile(f"package/dist/{name}")
                except KeyError:
                    member = None
                if member is None:
                    raise SamlitError(f"{tarball.name} has no file dist/{name}")
                with (beside / name).open("wb") as out:
                    shutil.copyfileobj(member, out)
        try:
            beside.rename(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _packed(folder: Path) -> Path:
    """The package's tarball, by npm."""
    npm = shutil.which("npm")
    if npm is None:
        told = f"without npm (of Node.js) {PACKAGE} cannot be fetched: install it, or name a folder with its files"
        raise SamlitError(f"{told} in {HERE}")
    try:
        ended = subprocess.run(
            [npm, "pack", "--silent", f"{PACKAGE}@{VERSION}"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SamlitError(f"npm cannot fetch {PACKAGE} ({one_line(error)}); name a folder with it in {HERE}") from error
    packed = sorted(folder.glob("*.tgz"))
    if ended.returncode or len(packed) != 1:
        why = (ended.stderr.strip().splitlines() or [f"npm ended with status {ended.returncode}"])[0]
        raise SamlitError(f"npm cannot fetch {PACKAGE} ({why}); name a folder with its files in {HERE}")
    return packed[0]
