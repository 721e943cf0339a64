"""The web service answers as the engine does, and refuses with the library's sentences."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi")

from safetensors.numpy import save
from starlette.testclient import TestClient

from mmn_fast.media.writing import write_video
from mmn_fast.serving.http.guard import LOOPBACK
from mmn_fast.serving.http.outgoing import POLICY
from mmn_fast.serving.http.problems import ClientGoneError
from mmn_fast.serving.settings import Limits
from mmn_fast.types import Query, Video
from tests.served import SENTENCES, client_of, made_app, shapes
from tests.tolerances import check_close

KEY = "a-key-of-sixteen-characters"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = np.random.default_rng(0).integers(0, 255, (24, 48, 64, 3)).astype(np.uint8)
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", frames, 8)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("served")
    import mmn_fast

    extractor = mmn_fast.load("demo", threads=1).extractor()
    limits = Limits(max_rows=200, max_sentences=8, max_top_k=20, max_body_bytes=2**20, max_upload_bytes=2**22)
    files = {shapes(0).video_id: clip}
    with client_of(folder, extractor=extractor, limits=limits, files=files) as made:
        yield made


def _service(client: TestClient) -> Any:
    return client.app.state.service  # type: ignore[attr-defined]


def _direct(client: TestClient, video: Video, top_k: int = 5) -> list[Any]:
    (found,) = _service(client).engine.ground([Query(video, SENTENCES)], top_k)
    return [[moment.to_dict() for moment in moments] for moments in found]


def _moments(answer: httpx.Response) -> list[Any]:
    assert answer.status_code == 200, answer.text
    return [result["moments"] for result in answer.json()["results"]]


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def test_every_form_of_features_gives_what_the_engine_gives(client: TestClient) -> None:
    video = shapes(5)
    wanted, rows = _direct(client, video), np.asarray(video.features)
    fields: dict[str, Any] = {"sentences": SENTENCES, "duration_s": video.duration_s}
    assert _moments(client.post("/v1/ground", json={**fields, "features": rows.tolist()})) == wanted
    query = {"sentence": SENTENCES, "duration_s": video.duration_s}
    bodies = {
        "application/x-npy": _npy(rows),
        "application/x-npz": _npz(features=rows),
        "application/x-safetensors": save({"features": rows}),
        "application/octet-stream": _npy(np.asfortranarray(rows)),
    }
    for kind, body in bodies.items():
        answer = client.post("/v1/ground", params=query, content=body, headers={"Content-Type": kind})
        assert _moments(answer) == wanted, kind
        form = client.post("/v1/ground", data=query, files={"features": ("f", body)})
        assert _moments(form) == wanted, kind
    assert not list(Path(_service(client).reader._folder).iterdir())  # what was sent is gone


def test_a_video_of_the_index_gives_what_its_embeddings_give(client: TestClient) -> None:
    service, video_id = _service(client), shapes(0).video_id
    answer = client.post("/v1/ground", json={"video": video_id, "sentences": SENTENCES, "top_k": 2, "maps": True})
    embeddings = service.library.index.embeddings([video_id])
    (wanted,) = service.engine.score(embeddings, service.engine.encode_text(SENTENCES), 2)
    assert _moments(answer) == [[moment.to_dict() for moment in moments] for moments in wanted]
    found = answer.json()
    (maps,) = service.engine.score_maps([Query(shapes(0), SENTENCES)])
    assert found["map"]["cells"] == maps.cells.tolist()
    scores = [result["scores"] for result in found["results"]]
    check_close(scores, maps.fused, "scores_of_halves")  # the index holds float16
    lone = client.post("/v1/ground", json={"video": "absent", "sentences": ["a"]})
    assert lone.status_code == 404
    assert lone.json()["detail"] == "video: there is no 'absent' in the index"


def test_a_search_gives_what_the_index_gives(client: TestClient) -> None:
    answer = client.post("/v1/search", json={"sentences": SENTENCES, "top_k": 3, "per_video": 2})
    wanted = _service(client).library.index.search(SENTENCES, 3, 2)
    assert _moments(answer) == [[match.to_dict() for match in matches] for matches in wanted]


def test_an_uploaded_video_gives_what_its_file_gives(client: TestClient, clip: Path) -> None:
    service = _service(client)
    wanted = _direct(client, Video.open(clip, service.extractor))
    content = clip.read_bytes()
    form = client.post("/v1/ground", data={"sentence": SENTENCES}, files={"video": ("my clip.mp4", content)})
    assert _moments(form) == wanted
    assert form.json()["video_id"] == "my clip"
    raw = client.post(
        "/v1/ground", params={"sentence": SENTENCES}, content=content, headers={"Content-Type": "video/mp4"}
    )
    assert _moments(raw) == wanted
    bad = client.post("/v1/ground", data={"sentence": SENTENCES}, files={"video": ("my.mp4", b"no video" * 100)})
    assert bad.status_code == 422
    assert bad.json()["detail"].startswith("video: expected a video file"), bad.json()
    assert not list(Path(service.reader._folder).iterdir())


def test_videos_are_added_listed_replaced_and_removed(client: TestClient, clip: Path) -> None:
    video = shapes(7)
    body = {"video_id": "new one", "duration_s": video.duration_s, "features": np.asarray(video.features).tolist()}
    made = client.post("/v1/videos", json=body)
    assert (made.status_code, made.json()["duration_s"]) == (201, pytest.approx(video.duration_s))
    twice = client.post("/v1/videos", json=body)
    assert (twice.status_code, twice.json()["title"]) == (409, "Conflict")
    assert client.post("/v1/videos", json={**body, "replace": True}).status_code == 201
    listed = client.get("/v1/videos", params={"offset": 2, "limit": 5}).json()
    assert (listed["total"], [one["video_id"] for one in listed["videos"]]) == (3, ["new one"])
    assert client.get("/v1/videos/new one").json()["playable"] is False
    assert client.delete("/v1/videos/new one").status_code == 204
    assert client.delete("/v1/videos/new one").status_code == 404
    sent = client.post("/v1/videos", files={"video": ("clip.mp4", clip.read_bytes())})
    assert (sent.status_code, sent.json()["video_id"]) == (201, "clip")
    assert client.delete("/v1/videos/clip").status_code == 204


def test_the_index_stays_compact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmn_fast.serving.library._CHANGES", 4)
    with client_of(tmp_path, videos=0) as client:
        library = _service(client).library
        for number in range(4):
            library.add(Video(shapes(number).features, 9.0, str(number)), False, None, None)
        assert (len(library), library.index.info()["shards"]) == (4, 1)


def test_extraction_stops_when_its_client_has_gone(client: TestClient, clip: Path) -> None:
    gone = threading.Event()
    gone.set()
    with pytest.raises(ClientGoneError):
        _service(client)._extract(clip, "a", gone)


def test_files_and_thumbnails_are_given_where_they_are_at_hand(client: TestClient, clip: Path) -> None:
    playable, other = shapes(0).video_id, shapes(1).video_id
    image = client.get(f"/v1/thumbnails/{playable}", params={"at_s": 1.2})
    assert (image.status_code, image.content[:4]) == (200, b"\x89PNG")
    part = client.get(f"/v1/files/{playable}", headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    assert part.headers["content-type"] == "video/mp4"
    for path in (f"/v1/thumbnails/{other}", f"/v1/files/{other}", f"/v1/thumbnails/{playable}?at_s=999"):
        assert client.get(path).status_code == 404, path


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "body"),
        (b"\xff", 400, "body: expected UTF-8 text, got other bytes"),
        (b"[1]", 422, "body: expected an object with"),
        (b'{"sentences": ["a"], "vidoe": "b"}', 422, "body: unknown key 'vidoe'; did you mean 'video'?"),
        (b'{"video": "b"}', 422, "sentences: expected a list of texts, got none"),
        (b'{"video": "b", "sentences": "a"}', 422, "sentences: expected a list of 1 to 8 values, got 'a'"),
        (b'{"video": "b", "sentences": []}', 422, "sentences: expected a list of 1 to 8 values, got []"),
        (b'{"sentences": ["a"]}', 422, "body: expected one of video (an id of the index), features, or an uploaded"),
        (b'{"video": "b", "sentences": ["a"], "top_k": 21}', 422, "top_k: expected an integer from 1 to 20, got 21"),
        (
            b'{"features": [[1, 2]], "sentences": ["a"], "duration_s": 1}',
            422,
            "features: expected a float array [n_src,",
        ),
        (b'{"features": [[1], [2, 3]], "sentences": ["a"]}', 422, "features: expected rows of 357 numbers each"),
        (b'{"features": [["a"]], "sentences": ["a"]}', 422, "features: expected rows of 357 numbers each"),
    ],
)
def test_bad_bodies_are_refused_with_a_sentence(client: TestClient, body: bytes, status: int, said: str) -> None:
    answer = client.post("/v1/ground", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = answer.json()
    assert problem["detail"].startswith(said), problem
    assert (problem["status"], problem["instance"], problem["type"]) == (status, "/v1/ground", "about:blank")


def test_bad_features_are_refused_with_a_sentence(client: TestClient) -> None:
    rows = np.ones((4, 357), np.float32)
    query: dict[str, Any] = {"sentence": "a", "duration_s": 9}
    whole = _npy(rows)
    cases = [
        (b"nothing", 422, "features: expected an .npy, .npz or safetensors file, got other bytes"),
        (whole[:-1], 422, "features: truncated, damaged or no .npy file"),
        (whole[:20], 422, "features: truncated, damaged or no .npy file"),
        (_npy(np.array([{}], object)), 422, "features: expected numbers, got object"),
        (_npz(a=rows, b=rows), 422, "features: "),
        (_npy(np.full_like(rows, np.nan)), 422, "features: "),
        (_npy(np.ones((201, 357), np.float32)), 413, "features: expected at most 200 rows, got 201"),
        (b"\x93NUMPY" + bytes(2**20), 413, "body: expected at most 1.05 MB, got 1.05 MB"),
    ]
    for body, status, said in cases:
        answer = client.post(
            "/v1/ground", params=query, content=body, headers={"Content-Type": "application/octet-stream"}
        )
        assert answer.status_code == status, answer.text
        assert answer.json()["detail"].startswith(said), answer.text
    chunks = iter([b"\x93NUMPY" + bytes(2**19)] * 3)  # without a Content-Length
    long = client.post("/v1/ground", params=query, content=chunks, headers={"Content-Type": "application/x-npy"})
    assert (long.status_code, long.json()["detail"]) == (413, "body: expected at most 1.05 MB, got more")
    for kind in ("text/plain", "video", "application/x-www-form-urlencoded"):
        assert client.post("/v1/ground", content=b"a", headers={"Content-Type": kind}).status_code == 415
    form = client.post("/v1/ground", data=query, files={"film": b"abc"})
    assert form.json()["detail"] == "body: expected a file named features or video, got one named 'film'"
    lost = client.post("/v1/ground", content=b"--x", headers={"Content-Type": "multipart/form-data; boundary=y"})
    assert lost.status_code in (400, 422), lost.text


def test_a_faulty_request_does_not_change_the_answers_of_its_batch(tmp_path: Path) -> None:
    """Ten requests at once, one of them with features that only the engine refuses."""
    videos = [shapes(number) for number in (2, 3, 4)]

    async def ask(client: httpx.AsyncClient, number: int) -> httpx.Response:
        video = videos[number % 3]
        rows = np.asarray(video.features).copy()
        if number == 5:
            rows[0, 0] = np.nan
        query: dict[str, Any] = {"sentence": SENTENCES, "duration_s": video.duration_s, "top_k": 1 + number % 3}
        headers = {"Content-Type": "application/x-npy"}
        return await client.post("/v1/ground", params=query, content=_npy(rows), headers=headers)

    async def test(app: Any) -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://a") as one:
            return await asyncio.gather(*(ask(one, number) for number in range(10)))

    with made_app(tmp_path, videos=0) as app:
        answers = asyncio.run(test(app))
        engine, text = app.state.service.engine, app.state.service.metrics.text().decode()
    for number, answer in enumerate(answers):
        if number == 5:
            assert answer.status_code == 422
            assert answer.json()["detail"].startswith("features: "), answer.text
            continue
        (wanted,) = engine.ground([Query(videos[number % 3], SENTENCES)], 1 + number % 3)
        assert _moments(answer) == [[moment.to_dict() for moment in moments] for moments in wanted]
    batches = float(text.split("mmn_fast_batch_size_count ")[1].split()[0])
    assert batches < 11  # with the one that warms up there are eleven requests


def test_the_examples_of_the_openapi_document_are_answered(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) >= {"/v1/ground", "/v1/search", "/v1/videos", "/v1/model", "/healthz", "/metrics"}
    count = 0
    for path, methods in document["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        for example in content.get("application/json", {}).get("examples", {}).values():
            answer = client.post(path, json=example["value"])
            assert answer.status_code in (200, 201), answer.text
            count += 1
    assert count == 4
    client.delete("/v1/videos/example")


def test_state_model_and_metrics_are_told(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").status_code == 200  # the requests above have warmed it up
    info = client.get("/v1/model").json()
    assert (info["preset"], info["uploads"], info["limits"]["max_rows"]) == ("shapes", True, 200)
    assert "/" not in info["model"]
    text = client.get("/metrics").text
    for name in ("requests_total", "errors_total", "queue_seconds_count", "batch_size_count", "index_videos 2.0"):
        assert f"mmn_fast_{name}" in text, name
    assert 'stage="ground"' in text
    assert client.get("/nowhere").json()["detail"] == "there is nothing at this path"
    assert client.put("/v1/search").json()["status"] == 405
    assert client.get("/v1/videos", params={"limit": "many"}).json()["detail"].startswith("limit: ")


def test_the_key_is_asked_for_and_never_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with client_of(tmp_path, key=KEY, videos=1) as client:
        body = {"sentences": ["a"]}
        for headers in ({}, {"Authorization": "Bearer no"}, {"X-API-Key": KEY[:-1]}, {"Authorization": f"Basic {KEY}"}):
            refused = client.post("/v1/search", json=body, headers=headers)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert KEY[:-1] not in refused.text
        for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}):
            assert client.post("/v1/search", json=body, headers=headers).status_code == 200
        assert client.get("/metrics").status_code == client.get("/openapi.json").status_code == 401
        assert client.get("/healthz").status_code == client.get("/").status_code == 200
    assert KEY not in caplog.text


def test_other_sites_and_other_names_are_refused(tmp_path: Path) -> None:
    with client_of(tmp_path, hosts=LOOPBACK, videos=0) as client:
        for host, status in (
            ("localhost:8000", 200),
            ("[::1]:8000", 200),
            ("evil.example", 403),
            ("", 403),
            ("[", 403),
        ):
            assert client.get("/healthz", headers={"Host": host}).status_code == status, host
        headers = {"Host": "localhost:8000", "Origin": "http://localhost:8000"}
        assert client.post("/v1/search", json={"sentences": ["a"]}, headers=headers).status_code == 200
        for origin in ("http://evil.example", "null", "http://localhost:9000", "http://["):
            answer = client.post("/v1/search", json={"sentences": ["a"]}, headers={**headers, "Origin": origin})
            assert answer.status_code == 403, origin
        assert client.get("/healthz", headers=headers).headers["content-security-policy"] == POLICY


def test_a_fault_is_status_500_and_a_problem_document_on_every_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with client_of(tmp_path, videos=0) as client:
        service = _service(client)

        def fail(*_: Any, **__: Any) -> Any:
            raise ZeroDivisionError("secret")

        monkeypatch.setattr(service, "answer", fail)
        monkeypatch.setattr(service.library, "page", fail)
        for answer in (client.post("/v1/search", json={"sentences": ["a"]}), client.get("/v1/videos")):
            assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
            assert answer.json()["detail"] == "the service failed; its log says why"
            assert answer.headers["content-security-policy"] == POLICY
            assert "secret" not in answer.text
        assert caplog.text.count("ZeroDivisionError: secret") == 2
        assert 'mmn_fast_errors_total{status="500"} 2.0' in service.metrics.text().decode()


def test_a_sentence_with_half_of_a_surrogate_pair_is_answered_or_refused(client: TestClient) -> None:
    answer = client.post(
        "/v1/search", content=b'{"sentences": ["a \\ud800 b"]}', headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (200, 422), answer.text


def test_a_body_that_does_not_arrive_is_refused(tmp_path: Path) -> None:
    async def test(app: Any) -> dict[str, Any]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/ground", "query_string": b"", "headers": []}
        async with app.router.lifespan_context(app):
            await app(scope, receive, send)
        return sent[0]

    with made_app(tmp_path, videos=0, limits=Limits(body_s=0.05)) as app:
        assert asyncio.run(test(app))["status"] == 408


def test_a_service_that_is_full_or_ends_refuses_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(tmp_path, videos=0, limits=Limits(max_uploads=1)) as client:
        service = _service(client)
        service._uploads = 1
        answer = client.delete("/v1/videos/any")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        service._uploads = 0
        monkeypatch.setattr(type(service), "waiting", service.limits.max_waiting)
        answer = client.post("/v1/search", content=b"{")  # refused unread
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["detail"].startswith("the queue is full")
        monkeypatch.undo()
        service.draining = True
        answer = client.post("/v1/search", json={"sentences": ["a"]})
        assert (answer.status_code, answer.json()["detail"]) == (503, "the service is about to end")
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200


def test_a_model_without_a_contract_takes_no_videos(tmp_path: Path, clip: Path) -> None:
    with client_of(tmp_path, videos=0) as client:
        answer = client.post("/v1/ground", content=clip.read_bytes(), headers={"Content-Type": "video/mp4"})
        assert answer.status_code == 415
        assert "the model does not say how its features are made" in answer.json()["detail"]
        assert "video/*" not in json.dumps(client.get("/openapi.json").json())
