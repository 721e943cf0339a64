"""What an application holds: engine, library, queue, uploads; and the work that routes ask for."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request

from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.features.extractors.base import Extractor
from mmn_fast.process.priority import give_way
from mmn_fast.serving.batching import Batcher, JobQueue
from mmn_fast.serving.http.admission import CLIENT, Client
from mmn_fast.serving.http.incoming import Incoming, Reader
from mmn_fast.serving.http.problems import ClientGoneError, Problem, busy
from mmn_fast.serving.library import Library
from mmn_fast.serving.metrics import Metrics
from mmn_fast.serving.settings import Limits
from mmn_fast.serving.work import Answers, Ground, Job
from mmn_fast.types import Video

_LOG = logging.getLogger(__name__)
T = TypeVar("T")


class Service:
    """The parts behind the routes.

    Args:
        engine: the model.
        library: its index.
        folder: private folder for uploads.
        limits: sizes and times.
        extractor: makes features of uploaded videos; None refuses them.
        queue: makes the queue before the engine, as `Batcher` does.
    """

    def __init__(
        self,
        engine: Engine,
        library: Library,
        folder: Path,
        limits: Limits,
        extractor: Extractor | None,
        queue: Callable[..., JobQueue[Job]] = Batcher,
    ) -> None:
        self.engine, self.library, self.limits, self.extractor = engine, library, limits, extractor
        self.metrics = Metrics()
        self.reader = Reader(limits, engine.preset.input_size, folder)
        self.ready = self.draining = False
        self._make_queue = queue
        self._queue: JobQueue[Job] | None = None
        self._answers = Answers(engine, library, self.metrics)
        self._uploading = ThreadPoolExecutor(1, "mmn-fast-uploads", give_way)
        self._looking = ThreadPoolExecutor(1, "mmn-fast-thumbnails", give_way)
        self._ending = threading.Event()
        self._uploads = self._reading = 0
        self.metrics.gauge("index_videos", "Videos in the index.", lambda: len(library))
        self.metrics.gauge("index_bytes", "Bytes of the index.", lambda: library.num_bytes)
        self.metrics.gauge("queue_length", "Requests that wait.", lambda: len(self._queue or ()))

    @property
    def calls(self) -> int:
        """Most calls of the engine that run at a time."""
        return self._answers.calls

    async def start(self) -> None:
        """Make the queue, and warm the engine up in the background."""
        limits = self.limits
        self._queue = self._make_queue(
            self._answers,
            max_batch=limits.max_batch,
            wait_s=limits.batch_wait_s,
            max_waiting=limits.max_waiting,
            calls=self._answers.calls,
            observe=self.metrics.batch,
        )
        self._warming = asyncio.get_running_loop().create_task(self._warm_up())

    async def _warm_up(self) -> None:
        rows = np.ones((4, self.engine.preset.input_size), np.float32)
        try:
            await self.answer(Ground(Video(rows, 1.0), ("warm up",)), self.limits.upload_deadline_s)
        except Exception:
            _LOG.exception("the engine could not be warmed up")
            return
        self.ready = True

    async def stop(self) -> None:
        """Abandon what still runs, and end all threads."""
        self.ready = False
        self._ending.set()
        self._warming.cancel()
        for pool in (self._uploading, self._looking):
            pool.shutdown(wait=False, cancel_futures=True)
        if self._queue is not None:
            await self._queue.close()

    @property
    def waiting(self) -> int:
        """Requests that have a place in the queue: they wait for the engine, or their body arrives just now."""
        return len(self._queue or ()) + self._reading

    async def read(self, request: Request, known: tuple[str, ...], stack: ExitStack, videos: bool) -> Incoming:
        """Read a request that the engine is to answer, as `Reader.read` does."""
        self._reading += 1
        try:
            return await self.reader.read(request, known, stack, videos)
        finally:
            self._reading -= 1

    def answer(self, job: Job, deadline_s: float | None = None) -> asyncio.Future[Any]:
        """A job's answer, from the queue."""
        assert self._queue is not None, "the application has started"
        return self._queue.submit(job, self.limits.deadline_s if deadline_s is None else deadline_s)

    async def uploaded(self, path: Path, video_id: str) -> Video:
        """The features of an uploaded video.

        Raises:
            InputError: it is no readable video, or too long.
        """
        given_up = threading.Event()
        try:
            return await self.changing(functools.partial(self._extract, path, video_id, given_up))
        finally:
            given_up.set()

    def _extract(self, path: Path, video_id: str, given_up: threading.Event) -> Video:
        assert self.extractor is not None

        def check(done_s: float) -> None:
            if given_up.is_set() or self._ending.is_set():
                raise ClientGoneError

        try:
            with self.metrics.stage("extract"):
                found = self.extractor.read(path, max_duration_s=self.limits.max_video_s, progress=check)
        except InputError as error:
            raise InputError(str(error).replace(f"path: {path}", "video").replace(str(path), "video")) from None
        if found.lost is not None:
            _LOG.warning("an uploaded video: %s", found.lost.replace(str(path), "video"))
        return Video(found.rows, found.duration_s, video_id, self.extractor.contract)

    async def changing(self, work: Callable[[], T], bounded: bool = True) -> T:
        """Run slow work (uploads, changes of the index) in its own thread, one at a time.

        Args:
            work: the work.
            bounded: refuse if `max_uploads` are under way already.

        Raises:
            Problem: 503, too many wait, or the deadline has passed.
        """
        if bounded and self._uploads >= self.limits.max_uploads:
            raise busy(f"{self.limits.max_uploads} uploads or changes of the index are under way already")
        self._uploads += 1
        running = asyncio.get_running_loop().run_in_executor(self._uploading, work)
        running.add_done_callback(self._one_less)
        deadline_s = self.limits.upload_deadline_s
        try:
            return await asyncio.wait_for(running, deadline_s)
        except asyncio.TimeoutError:
            raise busy(f"the request was not answered within {deadline_s:g} s") from None

    def _one_less(self, done: asyncio.Future[Any]) -> None:
        self._uploads -= 1
        if not done.cancelled():
            done.exception()  # whoever waited may have gone

    async def looking(self, work: Callable[[], T]) -> T:
        """Run short reading work (thumbnails) in its own thread."""
        return await asyncio.get_running_loop().run_in_executor(self._looking, work)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for work; cancel it when the client goes away. The request's body must have been read.

    Raises:
        ClientGoneError: the client has gone.
    """
    future = asyncio.ensure_future(work)
    client, watch = request.scope.get(CLIENT), None
    if client is None:
        client = Client()
        watch = asyncio.get_running_loop().create_task(_watch(request, client))
    client.work = future
    if client.has_gone:  # while its body was read
        future.cancel()
    try:
        return await future
    except asyncio.CancelledError:
        if client.has_gone:
            raise ClientGoneError from None
        future.cancel()
        raise
    finally:
        client.work = None
        if watch is not None:
            watch.cancel()


async def _watch(request: Request, client: Client) -> None:
    """Tell when the client goes away, by way of ASGI."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    client.leave()


def check_id(video_id: str | None) -> str:
    """Refuse a video to add that has no id."""
    if not video_id:
        raise Problem(422, "video_id: expected the id of the new video, got none")
    return video_id
