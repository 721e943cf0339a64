"""Concurrent requests go into one call; the queue is bounded, and who has gone takes no place in it.

What holds for the queue of a Ray replica as well is asked of both; outside a replica, a double stands for its context.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi")

from mmn_fast.serving.batching import Batcher, JobQueue
from mmn_fast.serving.http.problems import Problem
from mmn_fast.serving.ray_app.batches import ServeBatches

Make = Callable[..., JobQueue[Any]]


class Held:
    """A function of jobs that waits until it may go on; keeps the batches that it saw."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.alone: list[bool] = []
        self.go_on = threading.Event()

    def __call__(self, jobs: list[Any], alone: bool) -> list[Any]:
        self.batches.append(jobs)
        self.alone.append(alone)
        self.go_on.wait(10)
        return [ValueError(job) if job == "bad" else f"answer to {job}" for job in jobs]


@pytest.fixture
def ray_queue(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes the queue of a Ray replica."""
    serve = pytest.importorskip("ray.serve")
    context = SimpleNamespace(_deployment_config=SimpleNamespace(max_ongoing_requests=128))
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    return ServeBatches


@pytest.fixture(params=["Batcher", "ServeBatches"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes either queue."""
    made: Make = Batcher if request.param == "Batcher" else request.getfixturevalue("ray_queue")
    return made


def _run(test: Callable[[Any, Held], Awaitable[None]], make: Make = Batcher, **options: Any) -> None:
    async def whole() -> None:
        held = Held()
        options.setdefault("max_batch", 4)
        batcher = make(held, **{"wait_s": 0.0, "max_waiting": 8, **options})
        try:
            await test(batcher, held)
        finally:
            held.go_on.set()
            await batcher.close()

    asyncio.run(asyncio.wait_for(whole(), 20))


async def _until(true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("waited too long")


async def _started(batcher: JobQueue[Any], held: Held, jobs: list[Any]) -> list[asyncio.Future[Any]]:
    """One job in a call that is held, others in the queue."""
    tasks = [asyncio.ensure_future(batcher.submit("first", 10))]
    await _until(lambda: len(held.batches) == 1)
    tasks += [asyncio.ensure_future(batcher.submit(job, 10)) for job in jobs]
    await _until(lambda: len(batcher) == len(jobs))
    return tasks


def test_what_arrives_during_a_call_goes_together_in_order_and_in_bounded_batches() -> None:
    async def test(batcher: Batcher[Any], held: Held) -> None:
        tasks = await _started(batcher, held, list("abcdef"))
        held.go_on.set()
        assert await asyncio.gather(*tasks) == [f"answer to {job}" for job in ["first", *"abcdef"]]
        assert held.batches == [["first"], list("abcd"), list("ef")]

    _run(test)


def test_a_job_alone_does_not_wait_for_company(make: Make) -> None:
    async def test(batcher: JobQueue[Any], held: Held) -> None:
        held.go_on.set()
        started = time.monotonic()
        for job in range(5):
            await batcher.submit(job, 10)
        assert time.monotonic() - started < 0.9  # one wait takes a second

    _run(test, make, wait_s=1.0)


def test_after_company_a_job_waits_for_more_but_not_longer_than_it_may() -> None:
    async def test(batcher: Batcher[Any], held: Held) -> None:
        tasks = await _started(batcher, held, list("ab"))
        held.go_on.set()
        await _until(lambda: len(held.batches) == 1 and len(batcher) == 2)
        tasks.append(asyncio.ensure_future(batcher.submit("late", 10)))
        await asyncio.gather(*tasks)
        assert held.batches[1:] == [["a", "b", "late"]]
        assert await batcher.submit("alone", 10) == "answer to alone"

    _run(test, wait_s=0.05)


def test_a_full_queue_refuses_at_once(make: Make) -> None:
    async def test(batcher: JobQueue[Any], held: Held) -> None:
        await _started(batcher, held, list("ab"))
        started = time.monotonic()
        with pytest.raises(Problem, match="the queue is full: 2 requests wait already") as refused:
            await batcher.submit("c", 10)
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
        assert time.monotonic() - started < 0.05

    _run(test, make, max_waiting=2)


def test_a_deadline_and_a_client_that_goes_free_their_places(make: Make) -> None:
    async def test(batcher: JobQueue[Any], held: Held) -> None:
        (first, gone) = await _started(batcher, held, ["gone"])
        with pytest.raises(Problem, match="not answered within 0.01 s"):
            await batcher.submit("late", 0.01)
        gone.cancel()
        await _until(lambda: len(batcher) == 0)
        held.go_on.set()
        assert await first == "answer to first"
        assert await batcher.submit("next", 10) == "answer to next"
        assert held.batches == [["first"], ["next"]]

    _run(test, make)


def test_two_calls_run_at_a_time_and_know_of_each_other() -> None:
    async def test(batcher: Batcher[Any], held: Held) -> None:
        tasks = [asyncio.ensure_future(batcher.submit(job, 10)) for job in ("first", "second")]
        await _until(lambda: len(held.batches) == 2)
        tasks += [asyncio.ensure_future(batcher.submit(job, 10)) for job in "abcdef"]
        assert len(batcher) == 6  # both calls are held
        held.go_on.set()
        assert await asyncio.gather(*tasks) == [f"answer to {job}" for job in ["first", "second", *"abcdef"]]
        assert sorted(held.batches[2:], key=str) == [list("abcd"), list("ef")]
        assert held.alone[:2] == [True, False]
        assert await batcher.submit("alone", 10) == "answer to alone"
        assert held.alone[-1]

    _run(test, calls=2)


def test_an_error_belongs_to_its_job_alone(make: Make) -> None:
    async def test(batcher: JobQueue[Any], held: Held) -> None:
        tasks = await _started(batcher, held, ["a", "bad", "b"])
        held.go_on.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(one) for one in found] == ["answer to first", "answer to a", "bad", "answer to b"]
        assert isinstance(found[2], ValueError)

    _run(test, make)


def test_a_call_that_fails_answers_all_of_its_jobs_and_the_next_call_runs(make: Make) -> None:
    async def test() -> None:
        calls = iter([OSError("broken"), ["whole"]])

        def run(jobs: list[Any], alone: bool) -> list[Any]:
            given = next(calls)
            if isinstance(given, Exception):
                raise given
            return given

        batcher = make(run, max_batch=4, wait_s=0, max_waiting=8)
        with pytest.raises(OSError, match="broken"):
            await batcher.submit(1, 10)
        assert await batcher.submit(2, 10) == "whole"
        await batcher.close()

    asyncio.run(test())


def test_in_a_replica_what_arrives_while_all_calls_run_goes_together(ray_queue: Make) -> None:
    waits: list[list[float]] = []

    async def test(batcher: JobQueue[Any], held: Held) -> None:
        tasks = await _started(batcher, held, [])
        tasks.append(asyncio.ensure_future(batcher.submit("second", 10)))
        await _until(lambda: len(held.batches) == 2)
        assert held.alone == [True, False]
        for job in "abcdef":
            tasks.append(asyncio.ensure_future(batcher.submit(job, 10)))
            await asyncio.sleep(0.01)  # longer than Ray Serve waits for company
        assert len(batcher) == 6
        held.go_on.set()
        assert await asyncio.gather(*tasks) == [f"answer to {job}" for job in ["first", "second", *"abcdef"]]
        assert sorted(held.batches[2:], key=str) == [list("abcd"), list("ef")]
        assert sorted(len(one) for one in waits) == [1, 1, 2, 4]
        assert await batcher.submit("alone", 10) == "answer to alone"
        assert held.alone[-1]

    _run(test, ray_queue, wait_s=0.008, calls=2, observe=waits.append)


def test_in_a_replica_a_job_waits_for_company_while_another_call_runs(ray_queue: Make) -> None:
    async def test(batcher: JobQueue[Any], held: Held) -> None:
        await _started(batcher, held, [])
        tasks = [asyncio.ensure_future(batcher.submit("a", 10))]
        await asyncio.sleep(0.02)
        tasks.append(asyncio.ensure_future(batcher.submit("b", 10)))
        await _until(lambda: len(held.batches) == 2)
        held.go_on.set()
        await asyncio.gather(*tasks)
        assert held.batches == [["first"], ["a", "b"]]

    _run(test, ray_queue, wait_s=1.0, calls=2)


def test_the_end_cancels_what_waits(make: Make) -> None:
    async def test(batcher: JobQueue[Any], held: Held) -> None:
        first, waiting = await _started(batcher, held, ["waiting"])
        held.go_on.set()
        await batcher.close()
        assert await first == "answer to first"
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(Problem, match="the queue is full"):
            batcher.submit("late", 10)
        assert held.batches == [["first"]]

    _run(test, make)


def test_a_job_that_has_left_takes_no_memory(make: Make) -> None:
    async def test(batcher: JobQueue[Any], held: Held) -> None:
        first, gone = await _started(batcher, held, [large := Held()])
        left = weakref.ref(large)
        del large
        gone.cancel()
        await _until(lambda: left() is None)
        held.go_on.set()
        assert await first == "answer to first"

    _run(test, make)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own only on Linux")
def test_calls_give_way_to_the_event_loop(make: Make) -> None:
    async def test() -> None:
        def run(jobs: list[Any], alone: bool) -> list[Any]:
            thread = threading.Thread(target=lambda: found.append(os.nice(0)))  # as a kernel starts its workers
            thread.start()
            thread.join()
            return [os.nice(0)] * len(jobs)

        found: list[int] = []
        batcher = make(run, max_batch=4, wait_s=0, max_waiting=8)
        before = os.nice(0)
        assert await batcher.submit(1, 10) == found[0] == min(before + 3, 19)
        assert os.nice(0) == before
        await batcher.close()

    asyncio.run(test())
