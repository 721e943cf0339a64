"""The service on a Ray cluster of this machine: one replica and two, and where the processor time goes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.serve_clients import Loop, Request, closed_loop, request
from mmn_fast.batch.cluster import connected
from mmn_fast.serving.ray_app import app

_PARTS_OF_RAY = ("ray::ServeReplica", "ray::ProxyActor", "ray::ServeController", "raylet", "gcs_server", "haproxy")


@contextmanager
def ray_serving(index: Path, replicas: int, port: int) -> Iterator[None]:
    """Serve an index from so many replicas of one core each, on a cluster that this process has joined."""
    serve: Any = import_module("ray.serve")
    layout = {"index": str(index), "replicas": replicas, "part_cpus": 0.0}  # this machine has two cores
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(app(layout), name="mmn_fast")
    try:
        good, end = 0, time.monotonic() + 60
        while good < 8 * replicas:  # every replica is warm
            assert time.monotonic() < end
            (status,) = uvloop.run(closed_loop(port, [[request("GET", "/readyz")]], 1)).statuses
            good = good + 1 if status == 200 else 0
        yield
    finally:
        serve.shutdown()


def processor_seconds() -> dict[str, float]:
    """Processor seconds so far, of this process and of Ray's processes by their kind."""
    found = {"clients": time.process_time()}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            first = title.partition(" ")[0]
            kind = next((one for one in _PARTS_OF_RAY if one in first), None)
            if kind is not None:
                spent = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                found[kind] = found.get(kind, 0.0) + spent
    return found


def measure(port: int, requests: Sequence[Request], repeats: int) -> tuple[Loop, dict[str, float]]:
    """Send the requests, one client each, `repeats` times.

    Returns:
        What came, and processor milliseconds per request by kind of process.
    """
    uvloop.run(closed_loop(port, [[one] for one in requests], 1))
    before = processor_seconds()
    found = uvloop.run(closed_loop(port, [[one] for one in requests], repeats))
    after = processor_seconds()
    count = len(found.statuses)
    return found, {kind: (after[kind] - before.get(kind, 0.0)) * 1e3 / count for kind in after}


@contextmanager
def ray_cluster(haproxy: bool) -> Iterator[int]:
    """Start Ray on this machine, and give a free port; bodies come through HAProxy or Ray's own proxy."""
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = str(int(haproxy))
    os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "1"  # replicas start and end four times here
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    with connected("local"):
        yield port
