"""Published weights into the cache: whole, checked, gone on with after a break, or one line why not."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from samlit import checkpoints, cli
from samlit.errors import SamlitError, UsageError
from samlit.weights import catalogue, download
from samlit.weights.catalogue import Published

BODY = bytes(range(256)) * 20_000  # five pieces


class Server(ThreadingHTTPServer):
    """Serves BODY; breaks off after `breaks` bytes while there are any, and counts what it was asked."""

    daemon_threads = True

    def __init__(self, breaks=(), ranges=True, status=200):
        super().__init__(("127.0.0.1", 0), Answers)
        self.breaks, self.ranges, self.status, self.asked = list(breaks), ranges, status, []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        self.running.append(self)

    running: ClassVar[list["Server"]] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/some_weights.pth"


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start >= len(BODY):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        stop = start + server.breaks.pop(0) if server.breaks else len(BODY)
        self.wfile.write(BODY[start:stop])

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMLIT_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "weights"
    while Server.running:
        server = Server.running.pop()
        server.shutdown()
        server.server_close()


def published(url, **facts):
    sums = {"size": len(BODY), "checksum": f"sha256:{hashlib.sha256(BODY).hexdigest()}"}
    return Published("some weights", url, "MIT", **(sums | facts))


def left(cache):
    """What is in the cache, but for the lock."""
    return sorted(file.name for file in cache.iterdir() if not file.name.endswith(".lock"))


def test_a_file_is_downloaded_once_and_told_about(cache):
    server, told = Server(), []
    path = download.fetch(published(server.url), lambda *report: told.append(report))
    assert path == cache / "some_weights.pth"
    assert path.read_bytes() == BODY
    assert told[-1] == (4, 4, "downloading some_weights.pth")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert download.fetch(published(server.url)) == path
    assert server.asked == [None]
    assert left(cache) == ["some_weights.pth"]


def test_a_broken_connection_is_gone_on_with(cache):
    server = Server(breaks=[3_000_000, 1_000_000])
    assert download.fetch(published(server.url), pause=0).read_bytes() == BODY
    assert server.asked == [None, "bytes=3000000-", "bytes=4000000-"]


def test_a_server_without_ranges_begins_anew(cache):
    server = Server(breaks=[3_000_000], ranges=False)
    assert download.fetch(published(server.url), pause=0).read_bytes() == BODY


def test_the_next_call_goes_on_where_this_one_gave_up(cache):
    server = Server(breaks=[1_000_000, 0, 0, 0])
    with pytest.raises(SamlitError, match=r"cannot be downloaded from .*the connection broke after") as error:
        download.fetch(published(server.url), pause=0)
    assert "\n" not in str(error.value)
    assert left(cache) == [".some_weights.pth.part"]
    assert download.fetch(published(server.url), pause=0).read_bytes() == BODY
    assert server.asked[-1] == "bytes=1000000-"


def test_what_was_complete_but_not_yet_named_is_not_downloaded_again(cache):
    cache.mkdir(parents=True)
    (cache / ".some_weights.pth.part").write_bytes(BODY)
    server = Server()
    assert download.fetch(published(server.url)).read_bytes() == BODY
    assert server.asked == [f"bytes={len(BODY)}-"]


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"checksum": "sha256:" + "0" * 64}, "its sha256 is .* and should be 0000"),
        ({"checksum": "md5:000000"}, "its md5 is [0-9a-f]{6} and should be 000000"),
        ({"size": 5}, "it has 5,120,000 bytes and should have 5"),
    ],
)
def test_what_is_not_what_was_published_is_thrown_away(cache, facts, says):
    with pytest.raises(SamlitError, match=says) as error:
        download.fetch(published(Server().url, **facts))
    assert "\n" not in str(error.value)
    assert left(cache) == []


def test_some_digits_are_a_checksum_too(cache):
    facts = {"size": 0, "checksum": f"md5:{hashlib.md5(BODY).hexdigest()[:6]}"}
    assert download.fetch(published(Server().url, **facts)).is_file()


def test_a_page_that_is_gone_is_not_asked_for_again(cache):
    server = Server(status=404)
    with pytest.raises(SamlitError, match="404"):
        download.fetch(published(server.url), pause=60)
    assert server.asked == [None]


def test_a_server_in_trouble_is_asked_again(cache):
    server = Server(status=503)
    with pytest.raises(SamlitError, match="503"):
        download.fetch(published(server.url), pause=0)
    assert len(server.asked) == download.TRIES


def test_offline_is_one_line_that_says_what_to_do(cache, monkeypatch, capsys):
    monkeypatch.setattr(download, "TRIES", 1)
    monkeypatch.setitem(catalogue.PUBLISHED, "sam_vit_b", published("http://127.0.0.1:9/some_weights.pth"))
    words = ["segment", "a.png", "--weights", "sam_vit_b", "--point", "1,2", "--out", "o.png"]
    assert cli.main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "some_weights.pth cannot be downloaded" in line
    assert "refused" in line
    assert "bring the file from elsewhere and give its path" in line


def test_a_full_disk_is_told_and_left_empty(cache, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_copy", full)
    with pytest.raises(SamlitError, match=r"there is no room for some_weights.pth .* SAMLIT_CACHE"):
        download.fetch(published(Server().url), pause=60)
    assert left(cache) == []


def test_a_file_address_will_do(cache, tmp_path):
    (tmp_path / "some_weights.pth").write_bytes(BODY)
    assert download.fetch(published((tmp_path / "some_weights.pth").as_uri())).read_bytes() == BODY


def test_two_at_once_download_it_once(cache):
    server, found = Server(), []
    threads = [
        threading.Thread(target=lambda: found.append(download.fetch(published(server.url)).read_bytes()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [BODY] * 4
    assert server.asked == [None]


def test_a_published_name_is_looked_up_and_a_file_of_that_name_goes_first(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(catalogue.PUBLISHED, "sam_vit_b", published(Server().url))
    assert checkpoints.locate("sam_vit_b") == cache / "some_weights.pth"
    (tmp_path / "sam_vit_b").write_bytes(b"mine")
    assert checkpoints.locate("sam_vit_b").read_bytes() == b"mine"
    with pytest.raises(FileNotFoundError, match="did you mean 'sam_vit_h'"):
        checkpoints.locate("sam_vit_hh")
    with pytest.raises(UsageError, match="no weights are called 'sam'"):
        catalogue.find("sam")


def test_the_list_tells_licence_and_how_a_file_is_checked(capsys):
    assert cli.main(["list", "weights", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"sam_vit_b", "sam_vit_l", "sam_vit_h", "mobile_sam", "sam_hq_vit_b", "mae_vit_h"} <= set(rows)
    for row in rows.values():
        kind, _, digits = row["checksum"].partition(":")
        assert kind in {"sha256", "md5"}
        assert set(digits) <= set("0123456789abcdef")
        assert row["url"].startswith("https://")
    assert all("not for commercial use" in row["facts"] for name, row in rows.items() if name.startswith("mae"))
    assert cli.main(["list", "weights"]) == 0
    assert "CC BY-NC 4.0" in capsys.readouterr().out
