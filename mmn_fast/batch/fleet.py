"""Some Ray actors that encode videos. One that dies is replaced, and its videos are tried again."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mmn_fast.batch.encoder import Encoded, Encoder, Failed, Item, Work, name_of
from mmn_fast.embeddings import VideoEmbeddings
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.features.extraction.videos import VideoFile
from mmn_fast.features.messages import first_line
from mmn_fast.types import Video

_LOG = logging.getLogger(__name__)
_AT_ONCE = 8  # videos with features per call; a call costs a millisecond or two, and a dead actor's call is repeated
_AHEAD = 8  # calls per actor that may be finished or waiting behind the oldest unfinished one
_DEATHS = 3  # a video at hand in so many deaths is left out
_QUIET_S = 30.0


@dataclass(eq=False)
class _Task:
    """One call.

    Attributes:
        items: its videos.
        deaths: how often an actor died while it had them.
        done: the results, when they are there.
    """

    items: list[Item]
    deaths: int = 0
    done: list[Encoded | Failed] | None = None


class Fleet:
    """Encodes videos with several actors; the results come in the order of the videos.

    Args:
        ray: the module, connected.
        work: what the actors do.
        count: actors, >= 1.
        num_cpus: CPUs of each.
        num_gpus: GPUs of each; a fraction shares one.
    """

    def __init__(self, ray: Any, work: Work, count: int, num_cpus: float, num_gpus: float) -> None:
        self._ray, self._count = ray, count
        self._work = ray.put(work)
        # Ray's own restarts would try a video that crashes its process for ever, so actors are replaced here.
        self._actor = ray.remote(Encoder).options(
            num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=0, max_task_retries=0
        )
        self._needs = f"{num_cpus:g} CPUs and {num_gpus:g} GPUs"
        self._busy: dict[Any, tuple[Any, _Task | None]] = {}  # result of a call -> actor, task (None: it prepares)
        self._idle: list[Any] = []
        self._waiting: deque[_Task] = deque()
        self._starts_failed = 0
        self.replaced = 0

    def run(self, items: Iterator[Item | VideoEmbeddings]) -> Generator[Encoded | Failed, None, None]:
        """Encode videos.

        Args:
            items: videos; embeddings pass through.

        Yields:
            One result per video, in order.

        Raises:
            InputError: the model or the extractor cannot be loaded on the cluster.
            BackendUnavailable: actors die before they have loaded the model.
        """
        tasks, order = _tasks(items), deque[_Task]()
        try:
            while True:
                while len(order) < _AHEAD * self._count and (task := next(tasks, None)) is not None:
                    order.append(task)
                    if task.done is None:
                        self._waiting.append(task)
                        self._give()
                if not order:
                    return
                while order and order[0].done is not None:
                    yield from order.popleft().done or ()
                if order:
                    self._give()
                    self._collect(order)
        finally:
            for actor in [*self._idle, *(actor for actor, _ in self._busy.values())]:
                self._end(actor)

    def _give(self) -> None:
        """Give the waiting tasks to idle actors; start actors that are missing."""
        while self._waiting and self._idle:
            actor, task = self._idle.pop(), self._waiting.popleft()
            self._busy[actor.encode.remote(task.items)] = actor, task
        starting = sum(task is None for _, task in self._busy.values())
        missing = self._count - len(self._busy) - len(self._idle)
        reads_files = any(isinstance(item, VideoFile) for task in self._waiting for item in task.items)
        for _ in range(min(missing, len(self._waiting) - starting)):
            actor = self._actor.remote(self._work)
            self._busy[actor.prepare.remote(reads_files)] = actor, None

    def _collect(self, order: deque[_Task]) -> None:
        """Wait for a call to end, and take all results that are there."""
        calls = list(self._busy)
        ended, _ = self._ray.wait(calls, num_returns=1, timeout=_QUIET_S)
        if ended:
            ended, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0)
        elif all(task is None for _, task in self._busy.values()):
            _LOG.warning("no machine of the cluster has had %s free for %g s", self._needs, _QUIET_S)
        for call in ended:
            actor, task = self._busy.pop(call)
            try:
                found = self._ray.get(call)
            except self._ray.exceptions.RayTaskError as error:  # such as a result that cannot be sent
                found = _all_failed(task, first_line(error.cause or error)) if task else str(error)
            except self._ray.exceptions.RayError as error:
                self._died(actor, task, error, order)
                continue
            if task is not None:
                task.done = found
            elif found is not None:
                raise InputError(f"{found} (on a machine of the cluster)")
            self._starts_failed = 0
            self._idle.append(actor)

    def _died(self, actor: Any, task: _Task | None, error: Exception, order: deque[_Task]) -> None:
        """Replace an actor; try its videos again, each alone."""
        self._end(actor)
        self.replaced += 1
        if task is None:
            self._starts_failed += 1
            if self._starts_failed > _DEATHS * self._count:
                why = str(error).strip().splitlines()[-1]  # of an error while it starts, this line names it
                raise BackendUnavailable(f"ray: processes of the cluster end while they load: {why}") from None
            return
        _LOG.warning("a process of the cluster has ended; its videos are tried again: %s", first_line(error))
        alone = [_Task([item], task.deaths + 1) for item in task.items]
        for one in alone:
            if one.deaths >= _DEATHS:
                one.done = _all_failed(one, f"the process that encoded it ended, {_DEATHS} times")
        place = order.index(task)
        order.remove(task)
        for number, one in enumerate(alone):
            order.insert(place + number, one)
        self._waiting.extendleft(one for one in reversed(alone) if one.done is None)

    def _end(self, actor: Any) -> None:
        with suppress(Exception):  # it has ended by itself
            self._ray.kill(actor, no_restart=True)


def _all_failed(task: _Task, reason: str) -> list[Encoded | Failed]:
    return [Failed(name_of(item), reason) for item in task.items]


def _tasks(items: Iterator[Item | VideoEmbeddings]) -> Iterator[_Task]:
    """Cut the videos into calls: a file alone, videos with features together; embeddings are done."""
    block: list[Item] = []
    for item in items:
        if isinstance(item, Video):
            block.append(item)
            if len(block) < _AT_ONCE:
                continue
        if block:
            yield _Task(block)
            block = []
        if isinstance(item, VideoEmbeddings):
            names = item.video_ids
            yield _Task([], done=[Encoded(item[[n]], name) for n, name in enumerate(names)])
        elif isinstance(item, VideoFile):
            yield _Task([item])
    if block:
        yield _Task(block)
