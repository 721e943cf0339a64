"""What Ray Data keeps in every actor of its pool: a child process that encodes.

A decoder that crashes ends the child, not the actor, so that Ray has nothing to repeat. When an actor or its machine
goes away after all, Ray Data gives its videos to another actor without end; `Deaths` says how often it did.
"""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import Hashable
from contextlib import suppress
from typing import Any

import pyarrow
import ray

from mmn_fast.batch.encoder import Encoded, Failed, Item, name_of, serve
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.process.child import GONE, Child

_LOG = logging.getLogger(__name__)
_DEATHS = 3  # a video at hand in so many deaths is left out


class Deaths:
    """Knows which videos were at hand when processes ended; a Ray actor of the run."""

    def __init__(self) -> None:
        self._begun: Counter[Hashable] = Counter()
        self._replaced = 0

    def begin(self, what: Hashable) -> int:
        """Note that a process begins with something; return how many ended while they had it."""
        self._begun[what] += 1
        return self._begun[what] - 1

    def end(self, what: Hashable) -> None:
        """Note that something is done."""
        del self._begun[what]

    def replace(self) -> None:
        """Note that a process was replaced."""
        self._replaced += 1

    def replaced(self) -> int:
        """How many processes were replaced."""
        return self._replaced


class EncodeVideos:
    """Encodes blocks of videos in a child process; a callable class for `ray.data.Dataset.map_batches`.

    Args:
        work: a pickled `Work`.
        reads_files: whether there are files among the videos.
        deaths: a handle of `Deaths`.
    """

    def __init__(self, work: bytes, reads_files: bool, deaths: Any) -> None:
        self._work, self._reads_files, self._deaths = work, reads_files, deaths
        self._child: Child | None = None
        self._error: Exception | None = None
        if ray.get_runtime_context().was_current_actor_reconstructed:
            deaths.replace.remote()
        self._start()

    def __call__(self, block: pyarrow.Table) -> pyarrow.Table:
        """Encode one block.

        Args:
            block: of one row: `place` is its number, `videos` a pickled list of them.

        Returns:
            One row: `place`; `results`, a pickled list, one per video; `error`, None or what the run must end with,
            pickled.
        """
        place = block["place"][0].as_py()
        results = self._results(place, block["videos"][0].as_buffer())
        error = None if self._error is None else pickle.dumps(self._error)
        return pyarrow.table({"place": [place], "results": binary(results), "error": binary(error)})

    def _results(self, place: int, videos: Any) -> bytes:
        if self._begin(place) == 0 and (answer := self._ask(videos)) is not None:
            self._deaths.end.remote(place)
            return answer
        # A process has ended with these videos at hand: each is tried alone.
        return pickle.dumps([self._alone((place, n), video) for n, video in enumerate(pickle.loads(videos))])

    def _alone(self, what: tuple[int, int], video: Item) -> Encoded | Failed:
        for _ in range(_DEATHS - 1):  # bounded here as well: once the run has ended, nobody counts
            if self._child is None or self._begin(what) >= _DEATHS - 1:
                break
            if (answer := self._ask(pickle.dumps([video]))) is not None:
                self._deaths.end.remote(what)
                (result,) = pickle.loads(answer)
                return result
        return Failed(name_of(video), f"{name_of(video)}: the process that encoded it ended, {_DEATHS} times")

    def _begin(self, what: Hashable) -> int:
        with suppress(ray.exceptions.RayError):  # `Deaths` itself has ended, and is started again
            return ray.get(self._deaths.begin.remote(what))
        return 0

    def _ask(self, videos: Any) -> bytes | None:
        """The child's answer; None if it ended, or if there is none."""
        if self._child is None:
            return None
        try:
            self._child.connection.send_bytes(videos)
            return self._child.connection.recv_bytes()
        except GONE:
            _LOG.warning("a process has ended with %s; its videos are tried again", self._child.end())
            self._deaths.replace.remote()
            self._start()
            return None

    def _start(self) -> None:
        """Start a child and let it load the model; it may end as often as with a video."""
        for _ in range(_DEATHS):
            self._child = Child(serve)
            try:
                self._child.connection.send_bytes(self._work)
                self._child.connection.send(self._reads_files)
                refused = self._child.connection.recv()
            except GONE:
                how = self._child.end()
                continue
            if refused is not None:
                self._error = InputError(f"{refused} (on a machine of the cluster)")
            return
        self._child = None
        self._error = BackendUnavailable(f"ray: processes of the cluster end while they load the model: {how}")


def binary(value: bytes | None) -> pyarrow.Array:
    """A column of one row, which may be longer than 2 GiB."""
    return pyarrow.array([value], pyarrow.large_binary())
