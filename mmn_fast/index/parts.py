"""A library searched in parts, each by another process: every part gives its best moments, and their merge is exact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from mmn_fast.embeddings import TextEmbeddings
from mmn_fast.index.search import Match, Wanted, find_moments
from mmn_fast.index.snapshot import open_snapshot

Numbered = tuple[int, Match]
"""A moment and the number of its video in the library, which decides between equal scores."""


class IndexPart:
    """One of several equal parts of an index: a run of neighbouring videos.

    Args:
        path: the index.
        part: number of the part, from 0.
        parts: how many there are.

    Raises:
        InputError: there is no index, or it is damaged.
    """

    def __init__(self, path: Path, part: int, parts: int) -> None:
        self._snapshot = open_snapshot(path)
        self._part, self._parts = part, parts

    def search(
        self, state: str, text: TextEmbeddings, wanted: Wanted, videos: Iterable[str] | None
    ) -> list[list[Numbered]] | None:
        """The best moments of this part.

        Args:
            state: the index's state to search, `MomentIndex.state`.
            text: S sentences.
            wanted: how many moments.
            videos: ids to search; None searches all.

        Returns:
            Per sentence the moments of this part, best first. None if the index has another state.

        Raises:
            InputError: an id is not in the index.
        """
        if self._snapshot.manifest.sha256 != state:
            self._snapshot = open_snapshot(self._snapshot.path, self._snapshot)
        snapshot = self._snapshot
        if snapshot.manifest.sha256 != state:
            return None
        chosen = snapshot.wanted(videos)
        numbers = np.arange(len(chosen))
        first, end = (len(chosen) * part // self._parts for part in (self._part, self._part + 1))
        found = find_moments(snapshot, text, chosen & (numbers >= first) & (numbers < end), wanted)
        number_of = snapshot.number_of
        return [[(number_of[match.video_id], match) for match in matches] for matches in found]


def merged(parts: Sequence[list[list[Numbered]]], top_k: int) -> list[list[Match]]:
    """The best moments of a library from those of all its parts.

    Args:
        parts: what `IndexPart.search` gives for every part, with at least this `top_k`.
        top_k: moments per sentence.

    Returns:
        As `MomentIndex.search` of the whole: a part's moments keep their order, so equal scores of one video do too.
    """
    return [
        [match for _, match in sorted(chain(*sentence), key=lambda one: (-one[1].score, one[0]))[:top_k]]
        for sentence in zip(*parts, strict=True)
    ]
