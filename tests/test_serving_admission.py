"""Places in the queue: who finds none is refused by the head of the request, with the answer that all layers give."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

import uvicorn

from mmn_fast.serving.http.admission import Admission, admitting
from mmn_fast.serving.metrics import Metrics
from tests.served import made_app

_FULL = b"the queue is full: no more requests can wait for the engine"
_GROUND = {"type": "http", "method": "POST", "path": "/v1/ground"}


def test_places_are_counted_from_the_head_of_a_request_to_its_answer() -> None:
    waiting = 0
    admission = Admission(lambda: waiting, 3, Metrics())
    admitted = [dict(_GROUND) for _ in range(3)]
    assert [admission.refuse(scope) for scope in admitted] == [None] * 3
    assert _FULL in (admission.refuse(dict(_GROUND)) or b"")
    assert not admission.enter(dict(_GROUND))  # one that was not asked about before
    assert admission.enter(admitted[0])  # it has a place, and waits from now on
    waiting = 1
    assert admission.enter(admitted[1])  # it is refused for another reason
    assert admission.refuse(dict(_GROUND)) is None
    assert admission.refuse(dict(_GROUND)) is not None
    for other in ({"method": "GET"}, {"path": "/v1/videos"}):
        assert admission.refuse({**_GROUND, **other}) is None
        assert admission.enter({**_GROUND, **other})


def test_a_round_admits_eight_once_half_of_the_places_are_taken() -> None:
    waiting = 0
    admission = Admission(lambda: waiting, 64, Metrics())
    assert sum(admission.refuse(dict(_GROUND)) is None for _ in range(100)) == 32  # a burst before any task has started
    admission, waiting = Admission(lambda: waiting, 64, Metrics()), 40
    assert sum(admission.refuse(dict(_GROUND)) is None for _ in range(100)) == 8
    admission, waiting = Admission(lambda: waiting, 64, Metrics()), 60
    assert sum(admission.refuse(dict(_GROUND)) is None for _ in range(100)) == 4


@contextmanager
def _served(app: Any, **options: Any) -> Iterator[int]:
    """Serve an application in a thread; gives the port."""
    listening = socket.create_server(("127.0.0.1", 0))
    protocol = admitting(app.state.admission)
    config = uvicorn.Config(app, log_level="error", http=protocol, date_header=False, server_header=False, **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def _request(path: str = "/v1/ground", body: bytes = b"", head: str = "", method: str = "POST") -> bytes:
    lines = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{head}\r\n"
    return lines.encode() + body


def _answers(connection: socket.socket, count: int) -> list[tuple[bytes, bytes]]:
    """The next answers: heads and bodies."""
    found, file = [], connection.makefile("rb")
    for _ in range(count):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = file.readline()
            assert line, "the connection was closed"
            head += line
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        found.append((head, file.read(length)))
    return found


def test_a_refused_request_gets_the_answer_of_all_layers_and_keeps_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made_app(tmp_path, videos=0) as app, _served(app) as port:
        service = app.state.service
        with socket.create_connection(("127.0.0.1", port)) as connection:
            monkeypatch.setattr(type(service), "waiting", service.limits.max_waiting)
            connection.sendall(_request(body=bytes(300_000)) + _request("/v1/search", b"{}"))
            ground, search = _answers(connection, 2)
            assert ground[0].startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"\r\nretry-after: 1\r\n" in ground[0]
            assert [json.loads(body)["instance"] for _, body in (ground, search)] == ["/v1/ground", "/v1/search"]

            connection.sendall(_request(head="Expect: 100-continue\r\n"))  # takes the way through all layers
            assert _answers(connection, 1) == [ground]
            assert 'requests_total{route="/v1/ground",status="503"} 2.0' in service.metrics.text().decode()

            monkeypatch.setattr(type(service), "waiting", 0)
            connection.sendall(_request(body=b"{}"))
            ((head, body),) = _answers(connection, 1)
            assert (head[:12], b"sentences" in body) == (b"HTTP/1.1 422", True)

        monkeypatch.setattr(type(service), "waiting", service.limits.max_waiting)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(_request(head="Connection: close\r\n"))
            ((head, _),) = _answers(connection, 1)
            assert b"connection: close" in head
            assert connection.recv(1) == b""


def test_pipelined_requests_each_get_one_answer_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with made_app(tmp_path, videos=0) as app, _served(app) as port:
        monkeypatch.setattr(type(app.state.service), "waiting", app.state.service.limits.max_waiting)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(
                _request("/v1/model", method="GET") + _request() * 2000 + _request("/healthz", method="GET")
            )
            answers = _answers(connection, 2002)
        assert [head[9:12] for head, _ in answers] == [b"200", *[b"503"] * 2000, b"200"]


def test_a_connection_whose_body_stops_after_the_refusal_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made_app(tmp_path, videos=0) as app, _served(app, timeout_keep_alive=0.2) as port:
        monkeypatch.setattr(type(app.state.service), "waiting", app.state.service.limits.max_waiting)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(_request(body=bytes(100_000))[:-50_000])
            _answers(connection, 1)
            connection.sendall(bytes(1000))
            assert connection.recv(1) == b""
