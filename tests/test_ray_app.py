"""The service on a Ray cluster of two nodes answers as one process does, whatever dies meanwhile.

These tests take a minute and need the extra `ray`: `pytest -m long tests/test_ray_app.py`. With
RAY_SERVE_ENABLE_HA_PROXY=1 in the environment they ask through HAProxy instead of Ray's own proxy.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest

import mmn_fast
from mmn_fast import MomentIndex
from mmn_fast.batch.cluster import init_options
from mmn_fast.serving.ray_app import app
from tests.ray_cluster import Cluster, cluster
from tests.served import SENTENCES, client_of, shapes

pytestmark = pytest.mark.long

_HAPROXY = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
_QUESTION = {"sentences": SENTENCES, "top_k": 8, "per_video": 2}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, httpx.Client, Path]]:
    """A cluster that serves an index of twelve videos in two parts, with two replicas."""
    ray = pytest.importorskip("ray")
    serve: Any = import_module("ray.serve")
    path = tmp_path_factory.mktemp("served") / "index"
    engine = mmn_fast.load("demo", threads=1)
    with MomentIndex.create(path, engine, model="demo") as index:
        for first in range(0, 12, 3):  # four files
            index.add(shapes(number) for number in range(first, first + 3))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with cluster() as made:
        ray.init(**init_options(made.address))
        try:
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            layout = {"index": str(path), "parts": 2, "replicas": 2, "num_cpus": 0.4, "part_cpus": 0.3}
            serve.run(app(layout), name="mmn_fast")
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                _wait_until_ready(client)
                yield made, client, path
            serve.shutdown()
        finally:
            ray.shutdown()


def _wait_until_ready(client: httpx.Client) -> None:
    end, good = time.monotonic() + 60, 0
    while good < 6:  # both replicas
        assert time.monotonic() < end
        good = good + 1 if client.get("/readyz").status_code == 200 else 0
        time.sleep(0.05)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answer of one process."""
    with client_of(tmp_path_factory.mktemp("one"), videos=12) as client:
        answer: dict[str, Any] = client.post("/v1/search", json=_QUESTION).json()
    return answer


def test_the_answers_are_those_of_one_process(served: Any, expected: dict[str, Any]) -> None:
    _, client, _ = served
    for _ in range(10):
        answer = client.post("/v1/search", json=_QUESTION)
        assert (answer.status_code, answer.json()) == (200, expected)
    problem = client.post("/v1/search", json={"sentences": "no list"})
    assert (problem.status_code, problem.headers["content-type"]) == (422, "application/problem+json")
    unknown = client.post("/v1/search", json={**_QUESTION, "videos": ["unknown"]})
    assert unknown.status_code == 422
    assert "'unknown' is not in" in unknown.json()["detail"]


def test_requests_of_several_clients_go_into_one_call_and_get_the_answers_of_one_process(
    served: Any, expected: dict[str, Any]
) -> None:
    _, client, _ = served

    def ask(_: int) -> None:
        with httpx.Client(base_url=client.base_url, timeout=60) as mine:
            for number in range(20):
                bad = mine.post("/v1/search", json={**_QUESTION, "videos": [f"unknown {number}"]})
                assert (bad.status_code, f"'unknown {number}'" in bad.text) == (422, True)
                assert mine.post("/v1/search", json=_QUESTION).json() == expected

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(ask, range(8)))
    of_replicas = [_values(client) for _ in range(8)]
    assert any(one["batch_size_sum"] > one["batch_size_count"] for one in of_replicas)
    for one in of_replicas:
        assert one["queue_seconds_count"] == one["batch_size_sum"]
        assert one["queue_length"] == 0


def _values(client: httpx.Client) -> dict[str, float]:
    """The metrics of one replica that have no labels."""
    lines = client.get("/metrics").text.splitlines()
    found = [line.removeprefix("mmn_fast_").split() for line in lines if not line.startswith("#") and "{" not in line]
    return {name: float(value) for name, value in found}


def _status(client: httpx.Client, expected: dict[str, Any]) -> int:
    """Search; there is one answer, which is whole or a refusal.

    Returns:
        Its status; 0 where HAProxy ended a connection whose replica died, so that the client sends again.
    """
    try:
        answer = client.post("/v1/search", json=_QUESTION)
    except httpx.RemoteProtocolError:
        assert _HAPROXY
        return 0
    if answer.status_code == 200:
        assert answer.json() == expected
    else:
        assert answer.status_code in (500, 503)
        assert answer.text
    return answer.status_code


@pytest.mark.parametrize("name", ["ServeReplica:mmn_fast:part-", "ServeReplica:mmn_fast:service"])
def test_what_is_killed_is_restarted_and_no_answer_lacks_a_part(
    served: Any, expected: dict[str, Any], name: str
) -> None:
    made, client, _ = served
    made.kill_worker(name)
    codes = []
    for _ in range(60):
        codes.append(_status(client, expected))
        time.sleep(0.05)
    assert codes[-10:] == [200] * 10
    if "part-" in name:
        assert set(codes) <= {200, 503}


def test_a_node_that_dies_under_load_costs_no_request_its_one_whole_answer(
    served: Any, expected: dict[str, Any]
) -> None:
    """Four clients search while a node is killed and another takes its place."""
    made, client, _ = served
    ended = threading.Event()

    def ask(_: int) -> list[int]:
        codes = []
        with httpx.Client(base_url=client.base_url, timeout=60) as mine:
            while not ended.is_set():
                codes.append(_status(mine, expected))
        return codes

    with ThreadPoolExecutor(4) as clients:
        asked = [clients.submit(ask, number) for number in range(4)]
        try:
            time.sleep(1)
            lost = made.nodes.pop()
            assert lost.workers("ServeReplica:mmn_fast:")
            lost.kill()
            made.add()
            _wait_until_answered(client)
        finally:
            ended.set()
        codes = [code for one in asked for code in one.result(90)]
    assert codes.count(200) > 20
    _wait_until_answered(client)


def _wait_until_answered(client: httpx.Client) -> None:
    """Wait until twenty searches in a row have answers."""
    end, good = time.monotonic() + 120, 0
    while good < 20:
        assert time.monotonic() < end
        good = good + 1 if client.post("/v1/search", json=_QUESTION).status_code == 200 else 0
        time.sleep(0.05)


def test_a_change_is_seen_by_every_replica(served: Any) -> None:
    _, client, path = served
    with MomentIndex.open(path, mmn_fast.load("demo", threads=1)) as index:
        index.remove([index.video_ids[0]])
        time.sleep(1.5)  # replicas look for changes once a second
        found = index.search(SENTENCES, 8, 2)
    wanted = [[match.to_dict() for match in matches] for matches in found]
    for _ in range(10):
        results = client.post("/v1/search", json=_QUESTION).json()["results"]
        assert [result["moments"] for result in results] == wanted
