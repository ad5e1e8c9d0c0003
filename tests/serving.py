"""A server of files for tests, with the troubles that real ones have."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class Server(ThreadingHTTPServer):
    """Serves `files` by path, by ranges; `troubles` are had one a request, in order, and `asked` is what was asked.

    Troubles: a status; "cut" (half of what was promised, then nothing), "none" (nothing, not even an answer), "stall"
    (half of it, then silence), "other" (another range), and "" for none.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files = files
        self.troubles: list[Any] = []
        self.always: Any = ""
        self.ranges = self.lengths = True
        self.etag = '"1"'
        self.asked: list[tuple[str, str | None]] = []
        self.delay = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None: ...


class _Answers(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        path, wanted = urlsplit(self.path).path, self.headers.get("Range")
        server.asked.append((path, wanted))
        time.sleep(server.delay)
        trouble = server.troubles.pop(0) if server.troubles else server.always
        if isinstance(trouble, int):
            self.send_error(trouble)
            return
        if trouble == "none":
            self.close_connection = True
            return
        data = self._data(path)
        if data is None:
            self.send_error(404)
            return
        begin, end = 0, len(data)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        if match and server.ranges:
            begin, end = int(match[1]), min(end, int(match[2] or end) + 1)
            if begin >= len(data):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin + (trouble == 'other')}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        if server.lengths:
            self.send_header("Content-Length", str(end - begin))
        self.send_header("ETag", server.etag)
        self.end_headers()
        stop = (begin + end) // 2 if trouble in ("cut", "stall") else end
        self.wfile.write(data[begin:stop])
        self.wfile.flush()
        if trouble == "stall":
            time.sleep(3)
        self.close_connection = True

    def _data(self, path: str) -> bytes | None:
        if path.endswith("/"):
            names = [name.removeprefix(path) for name in self.server.files if name.startswith(path)]
            return "".join(f'<a href="{name}">{name}</a>\n' for name in names if "/" not in name).encode() or None
        return self.server.files.get(path)

    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Server]:
    server = Server(files)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
