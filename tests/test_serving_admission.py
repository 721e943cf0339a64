"""Places in the queue: who finds none is refused by the head of the request, with the answer that all layers give."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
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


def test_a_round_begins_eight_requests_in_their_order() -> None:
    async def test() -> tuple[list[int], list[int]]:
        admission = Admission(lambda: 0, 64, Metrics())
        begun: list[int] = []
        counts = []
        for number in range(20):
            admission.begin(partial(begun.append, number))
        for number in range(20, 24):  # one more in each round
            counts.append(len(begun))
            await asyncio.sleep(0)
            admission.begin(partial(begun.append, number))
        return counts, begun

    counts, begun = asyncio.run(test())
    assert counts == [8, 16, 22, 23]  # the third round begins the last four and 20, and 21 as it comes
    assert begun == list(range(24))


def test_a_plain_request_is_refused_by_its_bytes() -> None:
    waiting = 3
    admission = Admission(lambda: waiting, 3, Metrics())
    plain = _request(body=b"{}")
    answer, to_come = admission.refuse_bytes(plain) or (b"", -1)
    assert (_FULL in answer, to_come) == (True, 0)
    assert admission.refuse_bytes(plain[:-1]) == (answer, 1)  # the rest of the body is still to come
    for alike in (
        _request("/v1/ground?top_k=3&sentence=a%20b", b"{}"),
        _request(body=b"{}", head="Connection: keep-alive\r\nX-Odd_name!: caf\xe9\r\n"),
        plain.replace(b"Content-Length", b"content-LENGTH"),
    ):
        assert admission.refuse_bytes(alike) == (answer, 0), alike
    for other in (
        plain[:40],  # its head is not whole
        plain + b"P",  # the next request follows
        _request(head="Connection: close\r\n"),
        _request(head="Expect: 100-continue\r\n"),
        _request(head="Transfer-Encoding: chunked\r\n"),
        _request(head="Upgrade: websocket\r\n"),
        _request(head="Content-Length: 0\r\n"),  # twice
        _request(head="Content-Length : 0\r\n"),
        _request(head=" folded: 1\r\n"),
        _request(head="a: 1\n"),
        plain.replace(b"Content-Length: 2", b"Content-Length: +2"),
        plain.replace(b"Content-Length: 2\r\n", b""),
        plain.replace(b"HTTP/1.1", b"HTTP/1.0"),
        plain.replace(b"POST", b"post"),
        _request("/V1/ground"),
        _request("/v1/videos"),
        _request(method="GET"),
        b"",
        bytes(100),
    ):
        assert admission.refuse_bytes(other) is None, other
    waiting = 2
    assert admission.refuse_bytes(plain) is None


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


def test_a_connection_of_refusals_is_closed_when_none_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with made_app(tmp_path, videos=0) as app, _served(app, timeout_keep_alive=1) as port:
        monkeypatch.setattr(type(app.state.service), "waiting", app.state.service.limits.max_waiting)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            started = time.monotonic()
            while time.monotonic() - started < 2.5:  # each refusal begins the wait anew
                connection.sendall(_request(body=b"{}"))
                _answers(connection, 1)
                time.sleep(0.2)
            assert connection.recv(1) == b""
            assert time.monotonic() - started > 3


def test_a_head_in_pieces_after_a_refusal_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with made_app(tmp_path, videos=0) as app, _served(app) as port:
        monkeypatch.setattr(type(app.state.service), "waiting", app.state.service.limits.max_waiting)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in (_request(body=b"{}"), b"GET /hea", b"lthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):
                connection.sendall(piece)
                time.sleep(0.1)
            whole = _request(body=b"{}" * 9)
            for piece in (whole[:30], whole[30:-4], whole[-4:]):  # this one needs the parser
                connection.sendall(piece)
                time.sleep(0.1)
            connection.sendall(_request("/v1/model", method="GET"))
            assert [head[9:12] for head, _ in _answers(connection, 4)] == [b"503", b"200", b"503", b"200"]
