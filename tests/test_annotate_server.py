"""The annotator's server: its answers are the Predictor's, and who has no business with it gets nothing."""

import base64
import json
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from samlit import cli
from samlit.annotator import guard, report
from samlit.annotator.boxes import Boxes
from samlit.annotator.proposals import Proposal
from samlit.annotator.server import Annotator
from samlit.annotator.store import Store
from samlit.errors import SamlitError
from samlit.loading import images
from samlit.masks import rle
from samlit.predictor import InFrame, Predictor

with warnings.catch_warnings():  # of the versions of httpx that it takes
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

HERE = "http://127.0.0.1:8188"
SIZE = (20, 50)


def picture(seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (4, 10, 3), np.uint8)
    return Image.fromarray(small.repeat(5, 0).repeat(5, 1))


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(3):
        picture(n).save(folder / f"{n}.png")
    return Store(folder, tmp_path / "out")


@pytest.fixture
def predictor(checkpoint):
    return Predictor.load(checkpoint)


@pytest.fixture
def annotator(store, predictor, tmp_path):
    made = Annotator(store, predictor, "small", tmp_path / "cache", person="ada")
    yield made
    made.close()


@pytest.fixture
def client(annotator):
    return TestClient(annotator.app(), HERE, raise_server_exceptions=False)


def first(client):
    return client.get("/api/project").json()["images"][0]["id"]


def square(side=5):
    mask = np.zeros(SIZE, bool)
    mask[2 : 2 + side, 3 : 3 + side] = True
    return rle.encode(mask)


def add(id_=7, **more):
    mask = square()
    provenance = {"prompts": {"points": [[5, 4, 1]]}, "seconds": 2.0}
    return {"op": "add", "id": id_, "size": list(mask.size), "counts": mask.counts, "provenance": provenance} | more


def test_the_page_and_the_project(client, store):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    told = client.get("/api/project").json()
    assert [row["name"] for row in told["images"]] == ["0.png", "1.png", "2.png"]
    assert (told["person"], told["decoder"], told["proposals"], told["id"]) == ("ada", "server", False, store.id)
    shown = client.get(f"/api/images/{first(client)}/picture")
    assert shown.headers["content-type"] == "image/png"
    for part in ("script", "link"):  # all that the page wants is there
        for name in re.findall(rf"<{part}[^>]*(?:src|href)=\"/?([^\"]+)\"", page.text):
            assert client.get(f"/{name}").status_code == 200, name


def test_answers_are_the_predictors(client, predictor):
    asked = [
        {"points": [[30, 4, 1]]},
        {"points": [[30, 4, 1], [2, 19, 0]], "multimask": False},
        {"box": [3, 2, 44, 17], "multimask": True},
    ]
    predictor.set_image(np.asarray(picture()))
    previous = None
    for one in asked:
        answer = client.post(f"/api/images/{first(client)}/predict", json=one)
        told = json.loads(answer.headers["x-samlit"])
        prompts = {name: one[key] for name, key in (("points", "points"),) if key in one}
        prompts |= {"boxes": [one["box"]]} if "box" in one else {}
        wanted = predictor.predict(prompts, one.get("multimask"))
        found = torch.from_numpy(np.frombuffer(answer.content, np.float32).reshape(told["shape"]).copy())
        torch.testing.assert_close(found, wanted.low_res_logits)
        torch.testing.assert_close(torch.tensor(told["scores"]), wanted.iou)
        assert (told["frame"], told["inside"]) == (32, [13, 32])
        previous = found[0]
    mask = base64.b64encode(previous.numpy().astype("<f4").tobytes()).decode()
    answer = client.post(f"/api/images/{first(client)}/predict", json={"points": [[30, 4, 1]], "mask": mask})
    wanted = predictor.predict({"points": [[30, 4, 1]], "masks": [InFrame(previous)]})
    found = np.frombuffer(answer.content, np.float32).reshape(json.loads(answer.headers["x-samlit"])["shape"])
    torch.testing.assert_close(torch.from_numpy(found.copy()), wanted.low_res_logits)


def test_an_embedding_is_sent_and_follows_its_image(client, predictor, store):
    def sent():
        answer = client.get(f"/api/images/{first(client)}/embedding")
        shape = json.loads(answer.headers["x-samlit"])["embedding"]
        return torch.from_numpy(np.frombuffer(answer.content, np.float32).reshape(shape).copy())

    for seed in (0, 9):
        picture(seed).save(store.images / "0.png")
        predictor.set_image(np.asarray(picture(seed)))
        torch.testing.assert_close(sent(), predictor.embedding.embedding.image[0])
        answer = client.post(f"/api/images/{first(client)}/predict", json={"points": [[30, 4, 1]]})
        wanted = predictor.predict({"points": [[30, 4, 1]]}).low_res_logits
        found = np.frombuffer(answer.content, np.float32).reshape(wanted.shape)
        torch.testing.assert_close(torch.from_numpy(found.copy()), wanted)


def test_changes_are_kept_and_conflicts_told(client, store):
    url = f"/api/images/{first(client)}/change"
    told = client.post(url, json=add()).json()["document"]
    assert [row["id"] for row in told["annotations"]] == [7]
    assert told["annotations"][0]["provenance"]["model"]["name"] == "small"
    assert client.post(url, json=add(op="replace", revision=1, phrase="b")).status_code == 200
    late = client.post(url, json=add(op="replace", revision=1, phrase="c"))
    assert late.status_code == 409
    assert late.text == "mask 7 was changed by somebody else meanwhile"
    assert store.read(store.items[0])["annotations"][0]["phrase"] == "b"


class Three:
    """Proposes three masks."""

    key = "three"

    def __call__(self, path):
        return [Proposal.of(square(side), 0.9) for side in (4, 9, 14)]


def test_proposals_are_decided_on_and_counted(store, predictor, tmp_path, capsys):
    from samlit.annotator.proposals import Proposals

    annotator = Annotator(store, predictor, "small", tmp_path / "cache", Proposals(Three(), store, tmp_path / "three"))
    client = TestClient(annotator.app(), HERE)
    one = f"/api/images/{first(client)}"
    annotator.proposals.ask(0, 10)
    rows = client.get(f"{one}/proposals").json()
    assert (rows["ready"], rows["offered"], len(rows["proposals"])) == (True, 3, 3)
    for id_, row, edited in zip((1, 2), rows["proposals"], (False, True), strict=False):
        how = {"seconds": 1.0, "proposal": {"id": row["id"], "edited": edited}}
        client.post(f"{one}/change", json=add(id_, counts=row["counts"], provenance=how))
    client.post(f"{one}/change", json={"op": "reject", "proposal": rows["proposals"][2]["id"]})
    client.post(f"{one}/change", json=add(3))
    assert client.get(f"{one}/proposals").json()["proposals"] == []
    annotator.close()
    (row,), _ = report.rows(store)
    assert (row.accepted, row.edited, row.rejected, row.missed, row.masks) == (1, 1, 1, 1, 3)
    assert row.unedited == pytest.approx(1 / 3)
    report.show(store)
    assert "1 (33%)" in capsys.readouterr().out


def test_a_model_is_its_weights_and_not_its_files_name(store, predictor, tmp_path, capsys):
    """A training is written to where the one before it was."""
    from samlit.annotator.proposals import Proposals

    def decide(number, edited):
        cache = tmp_path / "cache"
        own = Annotator(store, predictor, "run/best.ckpt", cache, Proposals(Three(), store, cache))
        client = TestClient(own.app(), HERE)
        one = client.get("/api/project").json()["images"][number]
        assert one["decided"] == [0, 0, 0]
        own.proposals.ask(number, 10)
        rows = client.get(f"/api/images/{one['id']}/proposals").json()["proposals"]
        how = {"seconds": 1.0, "proposal": {"id": rows[0]["id"], "edited": edited}}
        change = f"/api/images/{one['id']}/change"
        told = client.post(change, json=add(1, counts=rows[0]["counts"], provenance=how)).json()
        assert told["decided"] == ([0, 1, 0] if edited else [1, 0, 0])
        told = client.post(change, json={"op": "reject", "proposal": rows[1]["id"]}).json()
        assert told["decided"][2] == 1
        assert client.get(f"/api/images/{one['id']}").json()["decided"] == told["decided"]
        assert [row["decided"] for row in client.get("/api/project").json()["images"]].count([0, 0, 0]) == 2
        own.close()
        return own.about["weights"][:6]

    before = decide(0, True)
    with torch.no_grad():
        next(predictor.net.decoder.parameters()).add_(0.1)
    after = decide(1, False)
    found, _ = report.rows(store)
    assert [(row.model.name, row.accepted, row.edited, row.rejected) for row in found] == [
        ("run/best.ckpt", 0, 1, 1),
        ("run/best.ckpt", 1, 0, 1),
    ]
    report.show(store)
    said = capsys.readouterr().out
    assert f"run/best.ckpt ({before})" in said
    assert f"run/best.ckpt ({after})" in said


def test_what_others_wrote_of_a_mask_is_nobodys_verdict(client, store):
    row = {"id": 1, "segmentation": {"size": list(SIZE), "counts": square().counts}}
    for told in ("by hand", {"model": "m", "proposal": 3}, {"model": {}, "proposal": 3}):
        (store.images / "0.json").write_text(json.dumps({"annotations": [row | {"provenance": told}]}))
        assert client.get("/api/project").json()["images"][0]["decided"] == [0, 0, 0]


def boxes(store, predictor, told, score=0.5):
    file = store.images.parent / "boxes.json"
    file.write_text(told if isinstance(told, str) else json.dumps(told))
    return Boxes(Predictor(predictor.net, predictor.image_size), store, file, score)


BOX, OTHER = [3, 2, 20, 12], [30, 1, 15, 17]


def test_a_detectors_boxes_become_the_models_masks(store, predictor, monkeypatch):
    results = [
        {"image_id": 1, "category_id": 1, "bbox": BOX, "score": 0.9},
        {"image_id": 1, "category_id": 1, "bbox": OTHER, "score": 0.51},
        {"image_id": 1, "category_id": 2, "bbox": BOX, "score": 0.6},  # found twice
        {"image_id": 1, "category_id": 1, "bbox": OTHER, "score": 0.49},
        {"image_id": 1, "category_id": 1, "bbox": [5, 5, 0, 4], "score": 0.9},
        {"image_id": 77, "category_id": 1, "bbox": BOX, "score": 0.9},
    ]
    monkeypatch.setattr("samlit.annotator.boxes.SURE", -9.0)  # of a model that has learned nothing
    proposer = boxes(store, predictor, results)
    path = {item.name: str(store.path(item)) for item in store.items}
    assert proposer(path["0.png"]) == proposer(path["2.png"]) == []
    found = proposer(path["1.png"])
    predictor.set_image(np.asarray(picture(1)))
    wanted = {}
    for x, y, wide, high in (BOX, OTHER):
        answer = predictor.predict({"boxes": [(x, y, x + wide, y + high)]}, False)
        wanted[rle.encode(answer.masks[0].numpy()).counts] = float(answer.iou[0])
    assert len(found) == len(wanted) == 2
    assert {one.mask.counts: pytest.approx(one.predicted_iou, abs=1e-5) for one in found} == wanted
    assert found[0].predicted_iou >= found[1].predicted_iou
    monkeypatch.setattr("samlit.annotator.boxes.SURE", float(np.mean(list(wanted.values()))))
    assert proposer(path["1.png"]) == found[:1]
    keys = {boxes(store, predictor, given, score).key for given in (results, results[:2]) for score in (0.3, 0.5)}
    assert len(keys) == 4, "what was kept of other boxes is not taken for these"


def test_an_image_goes_by_its_name_or_number_or_by_the_files_own_list(store, predictor, tmp_path):
    (store.images / "sub").mkdir()
    for name in ("sub/1.png", "sub/007.png"):
        picture().save(store.images / name)
    store = Store(store.images, tmp_path / "out")

    def names(told):
        return sorted(path.removeprefix(f"{store.images.resolve()}/") for path in boxes(store, predictor, told)._boxes)

    assert names([{"image_id": one, "bbox": BOX} for one in ("0.png", "sub/1", 7, "2")]) == [
        "0.png", "2.png", "sub/007.png", "sub/1.png"
    ]  # fmt: skip
    assert names([{"image_id": "1.png", "bbox": BOX}]) == ["1.png"]
    images = [{"id": 0, "file_name": "2.png"}, {"id": 2, "file_name": "sub/007.png"}]
    assert names({"images": images, "annotations": [{"image_id": 2, "bbox": BOX}]}) == ["sub/007.png"]
    with pytest.raises(SamlitError, match="1 may be any of 2 images: name it with its folder"):
        names([{"image_id": 1, "bbox": BOX}])


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ("{", "has no boxes as COCO's results do: Expecting"),
        (3, "has no boxes as COCO's results do"),
        ([{"image_id": 1}], "has no boxes as COCO's results do: bbox"),
        ([{"image_id": 1, "bbox": [1, 2, 3]}], "bbox is x, y, width, height"),
        ({"images": [], "annotations": [{"image_id": 1, "bbox": BOX}]}, "has no boxes"),
        ([{"image_id": 44, "bbox": BOX}], r"has no box of score 0\.5 or more of any image in"),
        ([{"image_id": 1, "bbox": BOX, "score": 0.1}], r"has no box of score 0\.5 or more"),
    ],
)
def test_a_file_without_boxes_is_one_line(store, predictor, told, line):
    with pytest.raises(SamlitError, match=line) as error:
        boxes(store, predictor, told)
    assert "\n" not in str(error.value)


# Each line is an attack: the request, and the status that it meets.
@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/api/project", {"host": "evil.example"}, 403),  # DNS rebinding
        ("GET", "/api/project", {"host": "127.0.0.1.evil.example"}, 403),
        ("GET", "/api/project", {"host": ""}, 403),
        ("GET", "/api/project", {"origin": "http://evil.example"}, 403),
        ("GET", "/api/project", {"origin": "null"}, 403),
        ("GET", "/api/project", {"sec-fetch-site": "cross-site"}, 403),
        ("POST", "ONE/change", {"origin": "http://127.0.0.1:9999"}, 403),  # another server of this machine
        ("POST", "ONE/change", {"content-type": "text/plain"}, 415),  # a form that is sent without asking
        ("POST", "ONE/change", {"content-type": "application/x-www-form-urlencoded"}, 415),
        ("DELETE", "ONE", {}, 405),
        ("OPTIONS", "ONE/change", {}, 405),
        ("GET", "/../../etc/passwd", {}, 404),
        ("GET", "/..%2f..%2fetc%2fpasswd", {}, 404),
        ("GET", "/%2e%2e/server.py", {}, 404),
        ("GET", "/decoder/../server.py", {}, 404),
        ("GET", "/decoder/..%2f..%2fserver.py", {}, 404),
        ("GET", "/api/images/..%2f..%2fetc%2fpasswd", {}, 404),
        ("GET", "/api/images/0.png/picture", {}, 404),
    ],
)
def test_an_attack_meets_a_closed_door(client, store, method, path, headers, status):
    one = f"/api/images/{first(client)}"
    body = {"content": json.dumps(add())} if method == "POST" else {}
    sent = {"content-type": "application/json"} | headers if method == "POST" else headers
    answer = client.request(method, path.replace("ONE", one), headers=sent, **body)
    assert answer.status_code == status
    assert "root:" not in answer.text
    assert store.read(store.items[0])["annotations"] == []
    assert not store.out.exists()


def test_every_answer_says_what_a_browser_may_do_with_it(client):
    for path in ("/", "/api/project", "/nothing"):
        told = client.get(path).headers
        assert "default-src 'none'" in told["content-security-policy"]
        assert "unsafe-inline" not in told["content-security-policy"]
        assert told["x-content-type-options"] == "nosniff"
        assert told["cross-origin-opener-policy"] == "same-origin"
        assert told["cross-origin-embedder-policy"] == "require-corp"  # both are wanted for threads
        assert told["cross-origin-resource-policy"] == "same-origin"
        assert "frame-ancestors 'none'" in told["content-security-policy"]
        assert "access-control-allow-origin" not in told


def test_who_does_not_know_the_token_gets_nothing(annotator):
    client = TestClient(annotator.app("open sesame"), "http://192.168.0.7:8188", follow_redirects=False)
    for headers in ({}, {"authorization": "Bearer open"}, {"cookie": "samlit=open"}, {"cookie": "samlit"}):
        for path in ("/", "/app.js", "/api/project"):
            assert client.get(path, headers=headers).status_code == 401
    assert client.get("/?token=wrong").status_code == 401
    opened = client.get("/?token=open%20sesame")
    assert (opened.status_code, opened.headers["location"]) == (303, "/")  # out of the address
    assert {"HttpOnly", "SameSite=Strict"} <= set(opened.headers["set-cookie"].split("; "))
    known = {"authorization": "Bearer open sesame"}
    assert client.get("/api/project", headers=known).status_code == 200
    assert client.get("/api/project", headers=known | {"origin": "http://evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("host", "opened"),
    [
        (None, r"open http://127\.0\.0\.1:8188/ "),
        ("localhost", r"open http://localhost:8188/ "),
        ("::1", r"open http://\[::1\]:8188/ "),
        ("0.0.0.0", r"open http://HOST:8188/\?token=[\w-]{32} "),
        ("192.168.0.7", r"open http://192\.168\.0\.7:8188/\?token=[\w-]{32} "),
        ("127.0.0.1.evil.example", r"\?token="),
    ],
)
def test_it_is_for_this_machine_alone_or_for_who_has_the_token(store, checkpoint, monkeypatch, capsys, host, opened):
    asked = []

    def listen(annotator, host, port, token, ready):
        asked.append((host, port, token, annotator.proposals is not None))
        ready(port)
        annotator.close()

    monkeypatch.setattr("samlit.annotator.server.serve", listen)
    words = ["annotate", "--images", str(store.images), "--weights", str(checkpoint), "--decoder", "server"]
    (store.images.parent / "boxes.json").write_text(json.dumps([{"image_id": 1, "bbox": BOX, "score": 0.3}]))
    propose = ["--propose", str(store.images.parent / "boxes.json"), "--score", "0.2"]
    assert cli.main(words + (propose if host is None else ["--host", host])) == 0
    ((listened, port, token, proposing),) = asked
    assert (listened, port, proposing) == (host or "127.0.0.1", 8188, host is None)
    assert (token is None) == (host in (None, "localhost", "::1"))
    said = capsys.readouterr().out
    assert re.search(opened, said)
    assert token is None or token in said


def test_a_request_that_is_too_large_is_not_read(client, store):
    url = f"/api/images/{first(client)}/change"
    headers = {"content-type": "application/json"}
    assert client.post(url, content=b" " * (guard.LARGEST_BODY + 1), headers=headers).status_code == 413

    def endless():
        for _ in range(40):
            yield b" " * 2**20

    assert client.post(url, content=endless(), headers=headers).status_code == 413  # no length was stated
    assert client.post(url, content=b"", headers=headers | {"content-length": "-1"}).status_code == 413


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"{", "not JSON"),
        (b"3", "a JSON object is wanted"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"op": "add"}', "id is a whole number"),
        (b'{"op": "add", "id": 1, "size": [9, 9], "counts": "1"}', "the image 20x50"),
    ],
)
def test_a_body_that_makes_no_sense_is_one_line(client, body, line):
    answer = client.post(
        f"/api/images/{first(client)}/change", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert line in answer.text
    assert "\n" not in answer.text


@pytest.mark.parametrize(
    "asked",
    [{"points": 3}, {"points": [[1, 2]]}, {"points": [["a", 1, 1]]}, {"box": [1, 2]}, {"mask": "%%"}, {"multimask": 3},
     {"mask": base64.b64encode(b"1234567").decode()}, {}, {"points": [[1, 2, 7]]}],
)  # fmt: skip
def test_a_prompt_that_makes_no_sense_is_one_line(client, asked):
    answer = client.post(f"/api/images/{first(client)}/predict", json=asked)
    assert answer.status_code == 400, answer.text
    assert answer.text
    assert "\n" not in answer.text


def test_an_image_that_is_damaged_or_a_bomb_harms_nobody_else(client, store, monkeypatch):
    (store.images / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    monkeypatch.setattr(images, "MAX_PIXELS", 900)
    ids = [row["id"] for row in client.get("/api/project").json()["images"]]
    for id_, line in ((ids[0], "more than 900 pixels"), (ids[1], "read")):
        for path in ("", "/picture", "/embedding"):
            answer = client.get(f"/api/images/{id_}{path}")
            assert (answer.status_code, answer.text.count("\n")) == (422, 0), path
            assert line in answer.text
            assert str(store.images) not in answer.text  # where it lies is nobody's business
    (store.images / "2.png").unlink()
    assert client.get(f"/api/images/{ids[2]}").status_code in (404, 422)
    monkeypatch.undo()
    assert client.get(f"/api/images/{ids[0]}").status_code == 200
