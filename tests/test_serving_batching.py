"""Concurrent requests go into one call; the queue is bounded, and who has gone takes no place in it."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("fastapi")

from mmn_fast.serving.batching import Batcher
from mmn_fast.serving.http.problems import Problem


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


def _run(test: Callable[[Batcher[Any], Held], Awaitable[None]], **options: Any) -> None:
    async def whole() -> None:
        held = Held()
        options.setdefault("max_batch", 4)
        batcher: Batcher[Any] = Batcher(held, **{"wait_s": 0.0, "max_waiting": 8, **options})
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


async def _started(batcher: Batcher[Any], held: Held, jobs: list[Any]) -> list[asyncio.Future[Any]]:
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


def test_a_job_alone_does_not_wait_for_company() -> None:
    async def test(batcher: Batcher[Any], held: Held) -> None:
        held.go_on.set()
        started = time.monotonic()
        for job in range(5):
            await batcher.submit(job, 10)
        assert time.monotonic() - started < 0.9  # one wait takes a second

    _run(test, wait_s=1.0)


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


def test_a_full_queue_refuses_at_once() -> None:
    async def test(batcher: Batcher[Any], held: Held) -> None:
        await _started(batcher, held, list("ab"))
        started = time.monotonic()
        with pytest.raises(Problem, match="the queue is full: 2 requests wait already") as refused:
            await batcher.submit("c", 10)
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
        assert time.monotonic() - started < 0.05

    _run(test, max_waiting=2)


def test_a_deadline_and_a_client_that_goes_free_their_places() -> None:
    async def test(batcher: Batcher[Any], held: Held) -> None:
        (first, gone) = await _started(batcher, held, ["gone"])
        with pytest.raises(Problem, match="not answered within 0.01 s"):
            await batcher.submit("late", 0.01)
        gone.cancel()
        await _until(lambda: len(batcher) == 0)
        held.go_on.set()
        assert await first == "answer to first"
        assert await batcher.submit("next", 10) == "answer to next"
        assert held.batches == [["first"], ["next"]]

    _run(test)


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


def test_an_error_belongs_to_its_job_alone() -> None:
    async def test(batcher: Batcher[Any], held: Held) -> None:
        tasks = await _started(batcher, held, ["a", "bad", "b"])
        held.go_on.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(one) for one in found] == ["answer to first", "answer to a", "bad", "answer to b"]
        assert isinstance(found[2], ValueError)

    _run(test)


def test_a_call_that_fails_answers_all_of_its_jobs_and_the_next_call_runs() -> None:
    async def test() -> None:
        calls = iter([OSError("broken"), ["whole"]])

        def run(jobs: list[Any], alone: bool) -> list[Any]:
            given = next(calls)
            if isinstance(given, Exception):
                raise given
            return given

        batcher: Batcher[Any] = Batcher(run, max_batch=4, wait_s=0, max_waiting=8)
        with pytest.raises(OSError, match="broken"):
            await batcher.submit(1, 10)
        assert await batcher.submit(2, 10) == "whole"
        await batcher.close()

    asyncio.run(test())


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own only on Linux")
def test_calls_give_way_to_the_event_loop() -> None:
    async def test() -> None:
        def run(jobs: list[Any], alone: bool) -> list[Any]:
            thread = threading.Thread(target=lambda: found.append(os.nice(0)))  # as a kernel starts its workers
            thread.start()
            thread.join()
            return [os.nice(0)] * len(jobs)

        found: list[int] = []
        batcher: Batcher[Any] = Batcher(run, max_batch=4, wait_s=0, max_waiting=8)
        before = os.nice(0)
        assert await batcher.submit(1, 10) == found[0] == min(before + 3, 19)
        assert os.nice(0) == before
        await batcher.close()

    asyncio.run(test())
