"""Loads that a service must stand: twice its capacity, and everything at once."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.serve_clients import (
    Connection,
    Request,
    Served,
    add,
    closed_loop,
    ground_by_features,
    ground_by_id,
    json_of,
    remove,
    request,
    search,
)
from mmn_fast.types import Query

_SAMPLES = 6  # of memory and handles in a run
_TICK_S = 0.001  # how often an overload sends what is due
_LAST_ANSWER_S = 30.0  # what has no answer by then is lost


@dataclass(frozen=True, eq=False)
class Overload:
    """What came of requests that arrived at twice the capacity.

    Attributes:
        before: requests per second that 32 clients got answered before the load, each waiting for its answers.
        after: the same after it.
        sent_per_s: the rate at which requests were sent.
        good_per_s: answers of status 200 per second.
        statuses: how many answers had which status.
        lost: requests without an answer.
        refused_s: seconds that each 503 took.
        wrong: answers of status 200 that differ from those of a client alone.
        memory_mib: of the service, over time.
    """

    before: float
    after: float
    sent_per_s: float
    good_per_s: float
    statuses: Counter[int]
    lost: int
    refused_s: npt.NDArray[np.float64]
    wrong: int
    memory_mib: list[float]

    @property
    def goodput(self) -> float:
        """Good answers as a share of the capacity."""
        return 2 * self.good_per_s / (self.before + self.after)

    def __str__(self) -> str:
        refused_ms = self.refused_s * 1e3
        refused = "none refused"
        if len(refused_ms):
            refused = (
                f"refused within {np.median(refused_ms):.1f} ms (median),"
                f" {np.percentile(refused_ms, 99):.1f} ms (99 %), {refused_ms.max():.1f} ms (most),"
                f" {np.mean(refused_ms > 50):.2%} later than 50 ms"
            )
        return (
            f"capacity {self.before:.0f}/s before and {self.after:.0f}/s after; sent {self.sent_per_s:.0f}/s, statuses"
            f" {dict(self.statuses)}, {self.lost} without an answer, {self.wrong} wrong; goodput"
            f" {self.good_per_s:.0f}/s, {self.goodput:.0%} of the capacity; {refused}; memory"
            f" {' '.join(f'{one:.0f}' for one in self.memory_mib)} MiB"
        )


async def overload(served: Served, requests: Sequence[Request], seconds: float) -> Overload:
    """Measure the capacity with one client per request, then let requests arrive at twice that rate.

    Requests are sent whatever is answered; each kind of answer is counted. Python's collector rests meanwhile: its full
    passes would stop the clients for up to 0.1 s, and then all that was due would be sent at once, late.
    """
    gc.collect()
    gc.disable()
    try:
        return await _overload(served, requests, seconds)
    finally:
        gc.enable()


async def _overload(served: Served, requests: Sequence[Request], seconds: float) -> Overload:
    truth = await _alone(served, requests)
    before = await _capacity(served, requests, seconds / 4)
    idle = [Connection(served.port) for _ in range(2 * len(requests) + 96)]  # more than the service works on at a time
    await asyncio.gather(*(one.ask(request("GET", "/healthz")) for one in idle))
    answers: list[tuple[int, float]] = []
    memory, wrong = [served.memory_mib()], 0

    def send(number: int, connection: Connection, started: float) -> None:
        def answered(status: int, body: bytes) -> None:
            nonlocal wrong
            answers.append((status, time.perf_counter() - started))
            wrong += status == 200 and body != truth[number]
            if connection.is_open:
                idle.append(connection)

        connection.send(requests[number], answered)

    async def send_anew(number: int) -> None:
        connection, started = Connection(served.port), time.perf_counter()
        await connection.connect()
        send(number, connection, started)

    total, sent, connecting = int(2 * before * seconds), 0, set[asyncio.Task[None]]()
    begun = time.perf_counter()
    while sent < total:
        await asyncio.sleep(_TICK_S)
        due = min(int((time.perf_counter() - begun) * 2 * before), total)
        for number in range(sent, due):
            if idle:
                send(number % len(requests), idle.pop(), time.perf_counter())
            else:
                task = asyncio.create_task(send_anew(number % len(requests)))
                connecting.add(task)
                task.add_done_callback(connecting.discard)
            if number % max(total // _SAMPLES, 1) == 0:
                memory.append(served.memory_mib())
        sent = due
    sent_s = time.perf_counter() - begun
    end = time.perf_counter() + _LAST_ANSWER_S
    while len(answers) < total and time.perf_counter() < end:
        await asyncio.sleep(_TICK_S)
    elapsed_s = time.perf_counter() - begun
    for connection in idle:
        connection.close()
    statuses = Counter(status for status, _ in answers)
    refused = np.array([took for status, took in answers if status == 503])
    after = await _capacity(served, requests, seconds / 4)
    return Overload(
        before,
        after,
        total / sent_s,
        statuses[200] / elapsed_s,
        statuses,
        total - len(answers),
        refused,
        wrong,
        [*memory, served.memory_mib()],
    )


async def _alone(served: Served, requests: Sequence[Request]) -> list[bytes]:
    """The answers that one client gets."""
    alone = Connection(served.port)
    answers = [(await alone.ask(one))[1] for one in requests]
    alone.close()
    return answers


async def _capacity(served: Served, requests: Sequence[Request], seconds: float) -> float:
    """Answers per second that one client per request gets."""
    await closed_loop(served.port, [[one] for one in requests], repeats=4)  # warms up
    started, answered = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        found = await closed_loop(served.port, [[one] for one in requests], repeats=16)
        assert set(found.statuses) == {200}, found.statuses
        answered += len(found.statuses)
    return answered / (time.perf_counter() - started)


class _Clients:
    """The kinds of clients of a mixed load; each method sends one request and names what came of it."""

    def __init__(self, served: Served, queries: Sequence[Query]) -> None:
        self._port, self._queries, self._chance = served.port, queries, random.Random(0)

    def _query(self, number: int) -> Query:
        return self._queries[number % len(self._queries)]

    async def good(self, connection: Connection, number: int) -> str:
        """Ground by features or by id, or search."""
        made = (ground_by_features, ground_by_id, search)[number % 3](self._query(number))
        return f"good {(await connection.ask(made))[0]}"

    async def change(self, connection: Connection, number: int) -> str:
        """Add a video and remove it."""
        added, _ = await connection.ask(add(self._query(number), f"mixed-{number}"))
        if added != 201:
            return f"add {added}"
        return f"remove {(await connection.ask(remove(f'mixed-{number}')))[0]}"

    async def malformed(self, connection: Connection, number: int) -> str:
        """Send bodies that are none, under several types."""
        noise = self._chance.randbytes
        bodies = (b"{", b"[]", json_of(sentences="a"), b"\x93NUMPY" + noise(300), noise(2000))
        kind = ("application/json", "application/octet-stream", "multipart/form-data; boundary=x", "text/plain")
        one = request("POST", "/v1/ground?sentence=a&duration_s=1", bodies[number % 5], kind[number // 5 % 4])
        return f"malformed {(await connection.ask(one))[0]}"

    async def aborted(self, connection: Connection, number: int) -> str:
        """Leave in the middle of an upload."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(request("POST", "/v1/ground", bytes(10**6), "video/mp4").head + bytes(200_000))
        await asyncio.sleep(0.02)
        writer.close()
        return "aborted"

    async def slow(self, connection: Connection, number: int) -> str:
        """Send a body in pieces, with pauses."""
        one = ground_by_features(self._query(number))
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        for first in range(0, len(one.body), 20_000):
            writer.write((one.head if first == 0 else b"") + one.body[first : first + 20_000])
            await asyncio.sleep(0.05)
        status = int((await reader.readuntil(b"\r\n\r\n"))[9:12])
        writer.close()
        return f"slow {status}"


async def mixed_load(served: Served, queries: Sequence[Query], seconds: float) -> None:
    """Everything at once: good requests, malformed ones, clients that abort and clients that are slow."""
    until, statuses, samples = time.monotonic() + seconds, Counter[str](), list[str]()

    async def client(kind: Callable[[Connection, int], Awaitable[str]], number: int, pause_s: float) -> None:
        connection = Connection(served.port)
        while time.monotonic() < until:
            statuses[await kind(connection, number)] += 1
            number += 101
            await asyncio.sleep(pause_s)
        connection.close()

    async def watch() -> None:
        while time.monotonic() < until:
            samples.append(f"{served.memory_mib():.0f} MiB/{served.handles()}/{served.files()}")
            await asyncio.sleep(seconds / _SAMPLES)

    kinds = _Clients(served, queries)
    clients = [client(kinds.good, number, 0.0) for number in range(8)]
    others = (kinds.change, kinds.malformed, kinds.aborted, kinds.slow, kinds.malformed)
    clients += [client(kind, number, 0.01) for number, kind in enumerate(others)]
    await asyncio.gather(*clients, watch())
    await asyncio.sleep(1)
    samples.append(f"{served.memory_mib():.0f} MiB/{served.handles()}/{served.files()}")
    bad = {name: count for name, count in statuses.items() if name.split()[-1].startswith("5") and "503" not in name}
    print(
        f"mixed, {seconds:g} s: {dict(sorted(statuses.items()))}; memory/handles/temporary files {', '.join(samples)};"
        f" answers with 5xx but 503: {bad or 'none'}"
    )
