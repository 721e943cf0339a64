"""A library whose search is spread over other processes, which each hold a part of the index."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmn_fast.embeddings import TextEmbeddings
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.index import Match, MomentIndex
from mmn_fast.index.parts import merged
from mmn_fast.index.search import Wanted
from mmn_fast.serving.http.problems import busy
from mmn_fast.serving.library import Library

_PAUSE_S = 0.1


class SpreadLibrary(Library):
    """A library that asks all parts of the index and merges their answers, or refuses. No answer lacks a part.

    Args:
        index: opened with `engine`; it is changed here.
        engine: encodes what is added.
        files: as for `Library`.
        parts: a handle per part: `handle.search.remote(state, text, wanted, videos).result(timeout_s=...)` gives what
            `IndexPart.search` gives, or a sentence that says why the question cannot be answered.
        deadline_s: seconds in which all parts must have answered, those that died and were restarted too.
        lost: the exceptions of a part that has died.
    """

    def __init__(
        self,
        index: MomentIndex,
        engine: Engine,
        files: Mapping[str, Path],
        parts: Sequence[Any],
        deadline_s: float,
        lost: tuple[type[Exception], ...],
    ) -> None:
        super().__init__(index, engine, files)
        self._parts, self._deadline_s, self._lost = parts, deadline_s, lost

    def search(self, text: TextEmbeddings, wanted: Wanted, videos: Sequence[str] | None) -> list[list[Match]]:
        """As `MomentIndex.search` of the whole index.

        Raises:
            InputError: an id is not in the index.
            Problem: 503, a part has not answered in time, or the index changes too fast.
        """
        end = time.monotonic() + self._deadline_s
        self.fresh()
        while (left := end - time.monotonic()) > 0:
            state = self.index.state
            with suppress(*self._lost, TimeoutError):
                calls = [part.search.remote(state, text, wanted, videos) for part in self._parts]
                found = [call.result(timeout_s=max(left, 0.001)) for call in calls]
                for answer in found:
                    if isinstance(answer, str):
                        raise InputError(answer)
                if all(answer is not None for answer in found):
                    return merged(found, wanted.top_k)
            time.sleep(_PAUSE_S)
            self.index.refresh()  # a part may have seen a later state than this process
        raise busy(f"a part of the index has not answered within {self._deadline_s:g} s")
