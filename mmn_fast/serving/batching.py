"""Puts concurrent requests into one call: while the engine works, requests gather; then they go together."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Any, Generic, TypeVar

from mmn_fast.process.priority import give_way
from mmn_fast.serving.http.problems import busy

_LOG = logging.getLogger(__name__)
Job = TypeVar("Job")
# Calls of a few jobs cost more per job; calls of all jobs leave none for HTTP to bring meanwhile. With 32 clients
# and the demo's model sixteen gave 84 % of the throughput of direct calls, all jobs 77 %.
_ENOUGH = 16
# Answers of a call that one round of the event loop hands out: what arrives meanwhile waits for the round's end. At
# twice the capacity by id, the latest refusals took 37 to 55 ms with eight and 37 to 71 ms with all at once.
_HANDED_OUT = 8


class Entry(Generic[Job]):
    """A job that waits, and its answer."""

    __slots__ = ("answer", "job", "since", "timer", "waiting")

    def __init__(self, job: Job, waiting: deque[Entry[Job]], deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.job, self.since, self.answer = job, time.perf_counter(), loop.create_future()
        self.waiting: deque[Entry[Job]] | None = waiting
        self.timer = loop.call_later(deadline_s, self._too_late, deadline_s)
        self.answer.add_done_callback(self._ended)

    def end(self, answer: Any) -> None:
        """Give the job its answer or exception, unless its client has gone or its deadline has passed."""
        if self.answer.done():
            return
        if isinstance(answer, Exception):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)

    def leave(self) -> None:
        """Take no more place."""
        if self.waiting is not None:
            with suppress(ValueError):
                self.waiting.remove(self)
            self.waiting = None

    def _too_late(self, deadline_s: float) -> None:
        """Refuse the job, unless it has its answer."""
        self.end(busy(f"the request was not answered within {deadline_s:g} s"))

    def _ended(self, answer: asyncio.Future[Any]) -> None:
        """Take no more place once there is an answer, or nobody wants one."""
        self.timer.cancel()
        self.leave()


class JobQueue(ABC, Generic[Job]):
    """A bounded queue before a function that answers many jobs at once; kinds of it differ in what goes together.

    A job that is cancelled, or whose deadline passes, leaves the queue.

    Args:
        run: called in threads, at most `calls` at a time, with jobs and whether no other call runs and no job waits;
            gives an answer or an exception per job. The threads give way to that of the event loop.
        max_batch: most jobs of a call.
        wait_s: longest wait for company while a call could start, seconds.
        max_waiting: most waiting jobs; further ones are refused.
        calls: most calls that run at a time.
        observe: called with the seconds that each job of a batch waited.
    """

    def __init__(
        self,
        run: Callable[[list[Job], bool], Sequence[Any]],
        *,
        max_batch: int,
        wait_s: float,
        max_waiting: int,
        calls: int = 1,
        observe: Callable[[list[float]], object] = lambda waits_s: None,
    ) -> None:
        self._run, self._observe, self._calls = run, observe, calls
        self._max_batch, self._wait_s, self._max_waiting = max_batch, wait_s, max_waiting
        self._waiting: deque[Entry[Job]] = deque()
        self._threads = ThreadPoolExecutor(calls, "mmn-fast-engine", give_way)
        self._idle = calls

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    def submit(self, job: Job, deadline_s: float) -> asyncio.Future[Any]:
        """Put a job into the queue.

        Args:
            job: the job.
            deadline_s: most seconds to wait.

        Returns:
            What `run` gives for this job; 503 (`Problem`) once the deadline has passed. Cancel it to leave the queue.

        Raises:
            Problem: 503, the queue is full.
        """
        if len(self._waiting) >= self._max_waiting:
            raise busy(f"the queue is full: {self._max_waiting} requests wait already")
        entry = Entry(job, self._waiting, deadline_s)
        self._waiting.append(entry)
        self._entered(entry)
        return entry.answer

    async def close(self) -> None:
        """End the threads; jobs that wait are cancelled."""
        self._max_waiting = 0
        for entry in tuple(self._waiting):
            entry.answer.cancel()
        self._waiting.clear()
        await asyncio.to_thread(self._threads.shutdown)

    @abstractmethod
    def _entered(self, entry: Entry[Job]) -> None:
        """See to the answer of a job that waits now."""

    def _begin(self, batch: list[Entry[Job]]) -> bool:
        """Count a call that starts now, with jobs that no longer wait; say whether it is alone."""
        alone = self._idle == self._calls and not self._waiting
        self._idle -= 1
        now = time.perf_counter()
        self._observe([now - entry.since for entry in batch])
        return alone

    def _answers(self, batch: list[Entry[Job]], alone: bool) -> Sequence[Any]:
        """An answer or an exception per job; runs in a thread."""
        try:
            return self._run([entry.job for entry in batch], alone)
        except Exception as error:
            _LOG.exception("a call for %d requests failed", len(batch))
            return [error] * len(batch)


class Batcher(JobQueue[Job]):
    """A call starts once as many jobs wait as the latest calls had, or the first of them has waited long enough.

    More than sixteen jobs are not waited for. So a job alone goes at once. The arguments are those of `JobQueue`.
    """

    def __init__(self, run: Callable[[list[Job], bool], Sequence[Any]], **options: Any) -> None:
        super().__init__(run, **options)
        self._sizes = deque([1], self._calls)  # of the latest calls
        self._gathering: asyncio.TimerHandle | None = None

    async def close(self) -> None:
        self._stop_gathering()
        await super().close()

    def _entered(self, entry: Entry[Job]) -> None:
        if self._idle:
            self._start()

    def _start(self) -> None:
        """Start a call, or gather company for it first."""
        if len(self._waiting) >= min(self._max_batch, _ENOUGH, max(self._sizes)) or not self._wait_s:
            self._go()
        elif self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(self._wait_s, self._go)

    def _stop_gathering(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None

    def _go(self) -> None:
        """Start a call with the jobs that wait."""
        self._stop_gathering()
        batch: list[Entry[Job]] = []
        while self._waiting and len(batch) < self._max_batch:
            entry = self._waiting.popleft()
            entry.waiting = None
            if not entry.answer.done():
                batch.append(entry)
        if not batch:
            return
        self._sizes.append(len(batch))
        self._threads.submit(self._call, batch, self._begin(batch), asyncio.get_running_loop())
        if self._idle and self._waiting:
            self._start()

    def _call(self, batch: list[Entry[Job]], alone: bool, loop: asyncio.AbstractEventLoop) -> None:
        """Answer a batch; runs in a thread."""
        answers = self._answers(batch, alone)
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(self._finish, batch, answers)

    def _finish(self, batch: list[Entry[Job]], answers: Sequence[Any]) -> None:
        """Hand out answers, and start the next call."""
        self._idle += 1
        if self._waiting:
            self._start()
        self._hand_out(zip(batch, answers, strict=True))

    def _hand_out(self, answered: Iterator[tuple[Entry[Job], Any]]) -> None:
        """Hand out some answers in this round of the event loop, and the others in the next ones."""
        entry = None
        for entry, answer in islice(answered, _HANDED_OUT):
            entry.end(answer)
        if entry is not None:
            asyncio.get_running_loop().call_soon(self._hand_out, answered)
