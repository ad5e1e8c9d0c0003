"""Image embeddings for the annotator: made once, kept in files by the weights and the image's bytes."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from samlit.annotator.store import Store
from samlit.embeddings import Embedded, fingerprint
from samlit.loading import images
from samlit.predictor import Predictor

__all__ = ["Embedder"]


class Embedder:
    """Embeds images of a store, each once.

    Args:
        predictor: Of the model; its image is changed.
        store: Of the images.
        folder: Where embeddings are kept.
        most: How many are kept there; those that were not used for longest go first. Of a ViT each takes 4 MB.
    """

    def __init__(self, predictor: Predictor, store: Store, folder: Path, most: int = 1000) -> None:
        self._predictor, self._store, self._most = predictor, store, most
        self.folder = folder / fingerprint(predictor.net.encoder)

    def __call__(self, number: int) -> Embedded:
        """An image's embedding, by the image's number.

        Raises:
            Damaged: The image cannot be read, or is too large.
        """
        path = self._store.path(self._store.items[number])
        try:
            digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        except OSError:
            digest = ""
        file = self.folder / f"{digest}-{self._predictor.image_size}.pt"
        if digest:
            with suppress(FileNotFoundError, ValueError):  # a damaged file is made again
                found = Embedded.load(file)
                os.utime(file)
                return found
        self._predictor.set_image(images.read(str(path)))
        made = self._predictor.embedding
        if digest:
            with suppress(OSError):  # a disk that is full keeps nobody from working
                made.save(file)
                self._forget()
        return made

    def _forget(self) -> None:
        files = sorted(self.folder.glob("[!.]*.pt"), key=lambda file: file.stat().st_mtime)
        for file in files[: -self._most]:
            file.unlink(missing_ok=True)
