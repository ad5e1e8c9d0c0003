"""The annotator's server: images, embeddings, proposals and answers out, changes in."""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from samlit.annotator import changes
from samlit.annotator.ahead import Ahead
from samlit.annotator.embedder import Embedder
from samlit.annotator.guard import App, Guard
from samlit.annotator.proposals import Proposal, Proposals, open_ones
from samlit.annotator.store import ORIENTATION, Conflict, Item, Store
from samlit.annotator.verdicts import ACCEPTED, EDITED, REJECTED, Model, verdicts
from samlit.embeddings import Embedded, fingerprint
from samlit.errors import SamlitError, one_line
from samlit.faults import Damaged
from samlit.loading import images
from samlit.predictor import InFrame, Predictor

__all__ = ["PAGE", "Annotator", "serve"]

PAGE = Path(__file__).parent / "page"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
SHOWN = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
STATUS = {Conflict: 409, Damaged: 422, SamlitError: 500, ValueError: 400, RuntimeError: 400, OSError: 507}
"""An answer's status for what is raised, the first that fits. An OSError is a disk that is full or protected."""
WAIT = 25.0
"""Seconds that a request waits for an embedding before the page has to ask again."""


class Annotator:
    """What the server knows: a store, a model, and what is made ahead.

    Args:
        store: Of the images and annotations.
        predictor: Of the model.
        name: The model's, as it was typed.
        cache: Where embeddings and proposals are kept.
        proposals: Masks to begin with; none if not given.
        person: Who annotates, where the page is not told otherwise.
        decoder: Folder as `graphs.folder` makes it, for a decoder that runs in the browser; without one
            the server answers.
    """

    def __init__(
        self,
        store: Store,
        predictor: Predictor,
        name: str,
        cache: Path,
        proposals: Proposals | None = None,
        person: str = "",
        decoder: Path | None = None,
    ) -> None:
        self.store, self.predictor, self.person, self.decoder = store, predictor, person, decoder
        self.embedder = Embedder(Predictor(predictor.net, predictor.image_size), store, cache / "embeddings")
        self.about = {"name": name, "weights": fingerprint(predictor.net)}
        self.embeddings: Ahead[Embedded] = Ahead(self.embedder, len(store.items), self.store.stamp)
        self.proposals: Ahead[list[Proposal]] | None = None
        if proposals is not None:
            self.proposals = Ahead(proposals, len(store.items), self.store.stamp, kept=32)
        self._answering = threading.Lock()
        self._set: Embedded | None = None

    def close(self) -> None:
        """End what works in the background."""
        self.embeddings.close()
        if self.proposals is not None:
            self.proposals.close()

    def project(self) -> dict[str, Any]:
        """All images with how far they are, and what the page needs to know of the model."""
        told = [(item, self.store.summary(item)) for item in self.store.items]
        return {
            "id": self.store.id,
            "images": [
                {
                    "id": item.id,
                    "name": item.name,
                    "decided": self._decided(row["verdicts"]),
                    **{key: row[key] for key in ("masks", "done", "damaged") if key in row},
                }
                for item, row in told
            ],
            "names": sorted({name for _, row in told for name in row["names"]}),
            "model": self.about,
            "person": self.person,
            "proposals": self.proposals is not None,
            "decoder": "browser" if self.decoder is not None else "server",
        }

    def document(self, item: Item) -> dict[str, Any]:
        """An image's size and annotations; its neighbours are made ready from now on."""
        self.look(item)
        return self._told(self.store.size(item), self.store.read(item))

    def look(self, item: Item) -> None:
        """Somebody looks at this image."""
        number = self.store.place(item.id)
        self.embeddings.look(number)
        if self.proposals is not None:
            self.proposals.look(number)

    def picture(self, item: Item) -> Response:
        """An image as a browser shows it: the file itself where that is the same to everybody."""
        path = self.store.path(item)
        self.store.size(item)
        with Image.open(path) as image:
            plain = image.mode in ("RGB", "L") and image.getexif().get(ORIENTATION, 1) in (0, 1)
            kind = SHOWN.get(image.format or "")
        if plain and kind:
            return FileResponse(path, media_type=kind)
        stream = io.BytesIO()
        Image.fromarray(images.read(str(path))).save(stream, "PNG", compress_level=1)
        return Response(stream.getvalue(), media_type="image/png")

    def embedding(self, item: Item) -> Response:
        """An image's embedding, float32 (C, h, w), what belongs to it in the header `x-samlit`; 202 where it waits.

        Decoders that look at finer maps of the encoder, too, are answered by the server.
        """
        embedded = self.embeddings.ask(self.store.place(item.id), WAIT)
        if embedded is None:
            return Response(status_code=202)
        values = embedded.embedding.image[0].float().cpu().contiguous().numpy()
        told = {
            "embedding": list(values.shape),
            "size": list(embedded.originals[0]),
            "inside": list(embedded.sizes[0]),
            "frame": embedded.image_size,
        }
        return Response(values.tobytes(), headers={"x-samlit": json.dumps(told)}, media_type="application/octet-stream")

    def proposed(self, item: Item) -> dict[str, Any]:
        """The proposals that are not decided on, and whether they are ready."""
        if self.proposals is None:
            return {"ready": True, "proposals": [], "offered": None}
        found = self.proposals.ask(self.store.place(item.id), 0.01)
        if found is None:
            return {"ready": False, "proposals": [], "offered": None}
        rows = [
            {"id": one.id, "size": list(one.mask.size), "counts": one.mask.counts, "predicted_iou": one.predicted_iou}
            for one in open_ones(found, self.store.read(item))
        ]
        return {"ready": True, "proposals": rows, "offered": len(found)}

    def predict(self, item: Item, asked: dict[str, Any]) -> Response:
        """Answer a prompt by the server: float32 (M, 4h, 4w) low-res logits, the surest first, scores in `x-samlit`.

        Raises:
            ValueError: The prompt makes no sense.
        """
        prompts: dict[str, list[Any]] = {}
        for name, key, count in (("points", "points", 3), ("boxes", "box", 4)):
            given = asked.get(key) or []
            rows = [given] if key == "box" and given else given
            if not isinstance(rows, list) or len(rows) > changes.LISTED:
                raise ValueError(f"{key} is a list")
            prompts[name] = [changes.numbers(row, count, key) for row in rows]
        if any(point[2] not in (0, 1) for point in prompts["points"]):
            raise ValueError("a point is x, y and 1 inside or 0 outside")
        if (mask := asked.get("mask")) is not None:
            prompts["masks"] = [InFrame(_logits(mask))]
        multimask = asked.get("multimask")
        if multimask is not None and not isinstance(multimask, bool):
            raise ValueError("multimask is true or false")
        embedded = self.embeddings.ask(self.store.place(item.id), WAIT)
        if embedded is None:
            return Response(status_code=202)
        with self._answering:
            if self._set is not embedded:
                self.predictor.set_embedding(embedded)
                self._set = embedded
            answer = self.predictor.predict(prompts, multimask)
        logits = answer.low_res_logits.float().cpu().contiguous().numpy()
        told = {
            "scores": [float(one) for one in answer.iou],
            "shape": list(logits.shape),
            "inside": list(embedded.sizes[0]),
            "frame": embedded.image_size,
        }
        return Response(logits.tobytes(), headers={"x-samlit": json.dumps(told)}, media_type="application/octet-stream")

    def change(self, item: Item, given: dict[str, Any]) -> dict[str, Any]:
        """Make a change, on the disk when this returns.

        Raises:
            ValueError: It makes no sense.
            Conflict: Somebody else was faster.
        """
        size = self.store.size(item)
        change = changes.parse(given, size)
        offered = None
        if self.proposals is not None and (found := self.proposals.ask(self.store.place(item.id), 0.01)) is not None:
            offered = len(found)
        return self._told(size, self.store.apply(item, change, size, self.about, offered))

    def _told(self, size: tuple[int, int], document: dict[str, Any]) -> dict[str, Any]:
        return {"size": size, "document": document, "decided": self._decided(Counter(verdicts(document)))}

    def _decided(self, found: Counter[tuple[Model, str]]) -> list[int]:
        """Of an image's proposals by this model, how many were taken as they were, edited, rejected."""
        return [found[Model(**self.about), verdict] for verdict in (ACCEPTED, EDITED, REJECTED)]

    def app(self, token: str | None = None) -> App:
        """The application, guarded.

        Args:
            token: What has to be known by who asks; None where only this machine reaches it.
        """
        files = {file.name: file for file in PAGE.iterdir() if file.suffix in KINDS}
        graphs: dict[str, Path] = {}
        if self.decoder is not None:
            found = [*self.decoder.glob("[!.]*.*"), *(self.decoder / "ort").iterdir()]
            graphs = {file.relative_to(self.decoder).as_posix(): file for file in found if file.suffix in KINDS}

        async def page(request: Request) -> Response:
            return _file(files, request.path_params.get("name", "index.html"))

        async def graph(request: Request) -> Response:
            return _file(graphs, request.path_params["name"])

        async def project(request: Request) -> Response:
            return JSONResponse(await run_in_threadpool(self.project))

        def about(what: Callable[[Item], Any]) -> Callable[[Request], Any]:
            async def answer(request: Request) -> Response:
                return await _answered(self.store, request, what)

            return answer

        def posted(what: Callable[[Item, dict[str, Any]], Any]) -> Callable[[Request], Any]:
            async def answer(request: Request) -> Response:
                body = await request.body()
                return await _answered(self.store, request, lambda item: what(item, changes.read(body)))

            return answer

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            yield
            await run_in_threadpool(self.close)

        one = "/api/images/{id}"
        return Guard(
            Starlette(
                routes=[
                    Route("/", page),
                    Route("/api/project", project),
                    Route(one, about(self.document)),
                    Route(f"{one}/picture", about(self.picture)),
                    Route(f"{one}/embedding", about(self.embedding)),
                    Route(f"{one}/proposals", about(self.proposed)),
                    Route(f"{one}/predict", posted(self.predict), methods=["POST"]),
                    Route(f"{one}/change", posted(self.change), methods=["POST"]),
                    Route("/decoder/{name:path}", graph),
                    Route("/{name}", page),
                ],
                lifespan=lifespan,
            ),
            token,
        )


async def _answered(store: Store, request: Request, what: Callable[[Item], Any]) -> Response:
    """Answer about an image, outside of the loop that other requests wait for; what is wrong is one line."""
    try:
        item = store.items[store.place(request.path_params["id"])]
    except KeyError as error:
        return PlainTextResponse(str(error.args[0]), 404)
    try:
        told = await run_in_threadpool(what, item)
    except FileNotFoundError:
        return PlainTextResponse(f"{item.name} is not there any more", 404)
    except (SamlitError, ValueError, RuntimeError, OSError) as error:
        status = next(status for kind, status in STATUS.items() if isinstance(error, kind))
        line = one_line(error)
        for folder in (store.images, store.out):  # where they lie is not the page's business
            line = line.replace(f"{folder}/", "").replace(f"{folder.resolve()}/", "")
        return PlainTextResponse(line, status)
    return told if isinstance(told, Response) else JSONResponse(told, headers={"cache-control": "no-store"})


def _file(known: dict[str, Path], name: str) -> Response:
    """One of some files, by its name alone."""
    if name not in known:
        return PlainTextResponse("there is no such page", 404)
    # Asked again each time, so that a newer version of samlit never meets an older one's page.
    return FileResponse(known[name], media_type=KINDS[known[name].suffix], headers={"cache-control": "no-cache"})


def _logits(given: Any) -> torch.Tensor:
    """Low-res logits, base64 of float32, as a square map."""
    try:
        values = np.frombuffer(base64.b64decode(given, validate=True), "<f4")
        side = int(len(values) ** 0.5)
        if not side or side * side != len(values) or side > 1024 or not np.isfinite(values).all():
            raise ValueError
    except (TypeError, ValueError, binascii.Error):
        raise ValueError("mask is base64 of a square map of float32") from None
    return torch.from_numpy(values.reshape(side, side).copy())


def serve(annotator: Annotator, host: str, port: int, token: str | None, ready: Callable[[int], None]) -> None:
    """Answer until Ctrl-C.

    Args:
        annotator: What is served.
        host: Address that is listened at.
        port: Of it; 0 for any that is free.
        token: What has to be known by who asks; None where only this machine reaches it.
        ready: Called with the port when it is listened at.

    Raises:
        SamlitError: The port is in use, or the address is not this machine's.
    """
    import socket

    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise SamlitError(
            f"cannot listen at {host}, port {port}: {one_line(error)}; name another with --port"
        ) from error
    with listening:
        listening.listen(128)
        ready(listening.getsockname()[1])
        options = uvicorn.Config(annotator.app(token), log_level="error", access_log=False, timeout_graceful_shutdown=3)
        uvicorn.Server(options).run(sockets=[listening])
