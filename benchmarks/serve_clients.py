"""Clients of the service for benchmarks: plain HTTP/1.1 in a protocol of asyncio, which takes little of the machine."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import quote, urlencode

import numpy as np

from mmn_fast.types import Query


@dataclass(frozen=True)
class Request:
    """A request in bytes.

    Attributes:
        head: request line and headers.
        body: the body.
        whole: both.
    """

    head: bytes
    body: bytes = b""
    whole: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "whole", self.head + self.body)


def request(method: str, path: str, body: bytes = b"", kind: str = "application/json") -> Request:
    """Make a request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return Request(head.encode(), body)


def ground_by_features(query: Query) -> Request:
    """A query whose features are the body, as .npy."""
    file = io.BytesIO()
    np.save(file, np.asarray(query.video.features, np.float32))
    fields = {"sentence": list(query.sentences), "duration_s": repr(float(query.video.duration_s))}
    return request("POST", f"/v1/ground?{urlencode(fields, doseq=True)}", file.getvalue(), "application/x-npy")


def ground_by_id(query: Query) -> Request:
    """A query about a video of the index."""
    return request("POST", "/v1/ground", json_of(video=query.video.video_id, sentences=list(query.sentences)))


def search(query: Query) -> Request:
    """A search."""
    return request("POST", "/v1/search", json_of(sentences=list(query.sentences), top_k=5))


def add(query: Query, video_id: str) -> Request:
    """Add the query's video under another id."""
    made = ground_by_features(query)
    fields = urlencode({"video_id": video_id, "duration_s": repr(float(query.video.duration_s))})
    return request("POST", f"/v1/videos?{fields}", made.body, "application/x-npy")


def remove(video_id: str) -> Request:
    """Remove a video."""
    return request("DELETE", f"/v1/videos/{quote(video_id)}")


def json_of(**values: object) -> bytes:
    """A body of JSON."""
    return json.dumps(values).encode()


@dataclass(frozen=True)
class Served:
    """A service that runs.

    Attributes:
        port: its port.
        process: its process id.
        folder: its temporary folder.
    """

    port: int
    process: int
    folder: Path

    def memory_mib(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self.process}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def cpu_s(self) -> float:
        """Processor seconds that it has taken; a loaded machine changes them little."""
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def handles(self) -> int:
        """Open descriptors."""
        return len(os.listdir(f"/proc/{self.process}/fd"))

    def files(self) -> int:
        """Files in the temporary folder, with those inside its folders."""
        return sum(1 for _ in self.folder.rglob("*"))


@contextmanager
def serving(index: Path, model: str, threads: int, *options: str) -> Iterator[Served]:
    """Run the service for a while."""
    folder = index.with_name(f"{index.name}-uploads")
    command = [sys.executable, "-m", "mmn_fast", "serve", "--model", model, "--index", str(index), "--port", "0"]
    command += ["--threads", str(threads), "--temporary", str(folder), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        while True:
            try:
                urllib.request.urlopen(f"{address}readyz").close()
                break
            except OSError:  # 503 while it warms up
                time.sleep(0.05)
        yield Served(int(address.rstrip("/").rpartition(":")[2]), process.pid, folder)
    finally:
        process.terminate()
        process.wait(60)


class Connection(asyncio.Protocol):
    """One connection, kept alive: a protocol of asyncio, because its streams take twice as much of the machine."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._received = b""  # the part of an answer that has come
        self._wanted = 0  # bytes of the answer; 0 while its head comes
        self._body, self._closes = 0, False  # where the body begins; whether the service ends the connection after it
        self._answered: Callable[[int, bytes], object] | None = None
        self._lost: asyncio.Future[tuple[int, bytes]] | None = None

    async def connect(self) -> None:
        """Open the connection, if it is not open."""
        if self._transport is None:
            await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._port)

    async def ask(self, one: Request) -> tuple[int, bytes]:
        """Send a request; return status and body."""
        await self.connect()
        answer = self._lost = asyncio.get_running_loop().create_future()

        def answered(status: int, body: bytes) -> None:
            if not answer.done():
                answer.set_result((status, body))

        self.send(one, answered)
        return await answer

    def send(self, one: Request, answered: Callable[[int, bytes], object]) -> None:
        """Send a request on the open connection; `answered` gets status and body. A task would cost as much again."""
        assert self._transport is not None
        self._answered = answered
        self._transport.write(one.whole)

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()
        self._transport = None

    @property
    def is_open(self) -> bool:
        """Whether `send` may be called."""
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._answered is not None and self._lost is not None and not self._lost.done():
            self._lost.set_exception(ConnectionError("the service closed the connection"))
        self._answered = None

    def data_received(self, data: bytes) -> None:
        self._received = data = self._received + data if self._received else data
        if not self._wanted:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                return
            head = data[:end].lower()
            length = head.find(b"content-length:")
            self._body = end + 4
            self._wanted = self._body + (0 if length < 0 else int(head[length + 15 :].partition(b"\r")[0]))
            if b"connection: close" in head:
                self._closes = True
        if len(data) < self._wanted:
            return
        self._received, self._wanted = b"", 0
        if self._closes:
            self.close()
        answered, self._answered = self._answered, None
        if answered is not None:
            answered(int(data[9:12]), data[self._body :])


@dataclass
class Loop:
    """What a closed loop found: seconds, statuses, and each client's last answer."""

    elapsed_s: float = 0.0
    statuses: list[int] = field(default_factory=list)
    last: list[bytes] = field(default_factory=list)


async def closed_loop(port: int, clients: Sequence[Sequence[Request]], repeats: int) -> Loop:
    """Every client sends its requests one after another, `repeats` times; they start together, connected."""
    found, connections = Loop(last=[b""] * len(clients)), [Connection(port) for _ in clients]

    async def run(number: int) -> None:
        for _ in range(repeats):
            for one in clients[number]:
                status, found.last[number] = await connections[number].ask(one)
                found.statuses.append(status)

    ready = request("GET", "/healthz")
    await asyncio.gather(*(connection.ask(ready) for connection in connections))
    started = time.perf_counter()
    await asyncio.gather(*(run(number) for number in range(len(clients))))
    found.elapsed_s = time.perf_counter() - started
    for connection in connections:
        connection.close()
    return found
