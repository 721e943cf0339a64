"""Puts concurrent requests into one call: while the engine works, requests gather; then they go together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from mmn_fast.serving.http.problems import busy

_LOG = logging.getLogger(__name__)
Job = TypeVar("Job")


@dataclass(eq=False, repr=False)
class _Entry(Generic[Job]):
    """A job that waits."""

    job: Job
    answer: asyncio.Future[Any]
    since: float = field(default_factory=time.perf_counter)

    def too_late(self, deadline_s: float) -> None:
        """Refuse the job, unless it has its answer."""
        if not self.answer.done():
            self.answer.set_exception(busy(f"the request was not answered within {deadline_s:g} s"))


class Batcher(Generic[Job]):
    """A bounded queue before a function that answers many jobs at once, in one thread.

    A job goes at once if the function is idle and the job before it was alone. Otherwise it waits at most `wait_s` for
    company. A job that is cancelled, or whose deadline passes, leaves the queue.

    Args:
        run: jobs -> an answer or an exception per job; called in one thread, one call at a time.
        max_batch: most jobs of a call.
        wait_s: longest wait for company, seconds.
        max_waiting: most waiting jobs; `answer` refuses further ones.
        observe: called with the size of each batch and the seconds that each of its jobs waited.
    """

    def __init__(
        self,
        run: Callable[[list[Job]], Sequence[Any]],
        *,
        max_batch: int,
        wait_s: float,
        max_waiting: int,
        observe: Callable[[list[float]], object] = lambda waits_s: None,
    ) -> None:
        self._run, self._observe = run, observe
        self._max_batch, self._wait_s, self._max_waiting = max_batch, wait_s, max_waiting
        self._waiting: deque[_Entry[Job]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "mmn-fast-engine")
        self._worker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    async def answer(self, job: Job, deadline_s: float) -> Any:
        """Wait for a job's answer.

        Args:
            job: the job.
            deadline_s: most seconds to wait.

        Raises:
            Problem: 503, the queue is full or the deadline has passed.
            Exception: what `run` gives for this job.
        """
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work())
        if len(self._waiting) >= self._max_waiting:
            raise busy(f"the queue is full: {self._max_waiting} requests wait already")
        loop = asyncio.get_running_loop()
        entry: _Entry[Job] = _Entry(job, loop.create_future())
        self._waiting.append(entry)
        self._arrived.set()
        timer = loop.call_later(deadline_s, entry.too_late, deadline_s)
        try:
            return await entry.answer
        finally:
            timer.cancel()
            with suppress(ValueError):  # it is in a call already
                self._waiting.remove(entry)

    async def close(self) -> None:
        """End the worker and its thread; jobs that wait are cancelled."""
        if self._worker is not None:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker
        for entry in self._waiting:
            entry.answer.cancel()
        self._thread.shutdown(wait=True)

    async def _work(self) -> None:
        loop, company = asyncio.get_running_loop(), False
        while True:
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            if company and self._wait_s:
                await self._gather(loop.time() + self._wait_s)
            batch: list[_Entry[Job]] = []
            while self._waiting and len(batch) < self._max_batch:
                entry = self._waiting.popleft()
                if not entry.answer.done():
                    batch.append(entry)
            if not batch:
                continue
            company = len(batch) > 1 or bool(self._waiting)
            now = time.perf_counter()
            self._observe([now - entry.since for entry in batch])
            for entry, answer in zip(batch, await self._answers(batch), strict=True):
                if entry.answer.done():  # its client has gone, or its deadline has passed
                    continue
                if isinstance(answer, Exception):
                    entry.answer.set_exception(answer)
                else:
                    entry.answer.set_result(answer)

    async def _gather(self, until: float) -> None:
        """Wait until a whole batch is there, or until a time."""
        loop = asyncio.get_running_loop()
        while len(self._waiting) < self._max_batch and (left := until - loop.time()) > 0:
            self._arrived.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)

    async def _answers(self, batch: list[_Entry[Job]]) -> Sequence[Any]:
        try:
            jobs = [entry.job for entry in batch]
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, jobs)
        except Exception as error:
            _LOG.exception("a call for %d requests failed", len(batch))
            return [error] * len(batch)
