"""What an engine does with videos that may be cut into windows: ground sentences in them, embed them, or score them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmn_fast.backends.base import Backend, Branches
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.checks import shown
from mmn_fast.embeddings import TextEmbeddings, VideoEmbeddings, check_embeddings
from mmn_fast.errors import InputError
from mmn_fast.geometry import ProposalPlan
from mmn_fast.presets import Preset
from mmn_fast.request import check_batch, check_facts, check_top_k
from mmn_fast.types import Moment, Query, Video
from mmn_fast.windows.cuts import Window, Windows, cut_rows
from mmn_fast.windows.grounding import Collected, encoded_blocks, moments_of_pairs

Ground = Callable[[list[Query], int], list[list[list[Moment]]]]


@dataclass(eq=False)
class _Cut:
    """A video that is cut: its rows, its windows, and the queries about it."""

    rows: Any
    windows: list[Window]
    name: str
    duration_s: float
    queries: list[int] = field(default_factory=list)


class WindowGrounding:
    """The part of `Engine` for videos that may be longer than a window."""

    preset: Preset
    _model: LoadedModel
    _backend: Backend
    _plan: ProposalPlan
    _progress: bool

    def score(self, video: VideoEmbeddings, text: TextEmbeddings, top_k: int = 5) -> list[list[list[Moment]]]:
        """Ground every sentence in every video from their embeddings.

        Args:
            video: embeddings from `encode_video`, made here or in another process.
            text: embeddings from `encode_text`.
            top_k: moments per sentence, >= 1.

        Returns:
            `result[v][s]`: moments of sentence s in video v, best first.

        Raises:
            InputError: the embeddings are of another model.
        """
        top_k = check_top_k(top_k)
        self._check_pair(video, "video", text, "text")
        return moments_of_pairs(self._backend, [(video, text)], top_k)[0]

    def score_pairs(
        self, pairs: Iterable[tuple[VideoEmbeddings, TextEmbeddings]], top_k: int = 5
    ) -> list[list[list[list[Moment]]]]:
        """Ground in several videos the sentences of each: `[score(video, text, top_k) for video, text in pairs]`.

        Many small pairs take less time than as many calls of `score`, above all beside other threads of Python.

        Args:
            pairs: embeddings of videos, and of the sentences to ground in each of them, as for `score`.
            top_k: moments per sentence, >= 1.

        Returns:
            `result[pair][v][s]`: moments of sentence s in video v of the pair, best first.

        Raises:
            InputError: a pair is none, or its embeddings are of another model; the message names the pair.
        """
        top_k, given = check_top_k(top_k), list(pairs)
        for number, pair in enumerate(given):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                got = f"{type(pair).__name__} of {len(pair)}" if isinstance(pair, (tuple, list)) else shown(pair)
                raise InputError(f"pairs[{number}]: expected embeddings of videos and of their sentences, got {got}")
            self._check_pair(pair[0], f"pairs[{number}][0]", pair[1], f"pairs[{number}][1]")
        return moments_of_pairs(self._backend, given, top_k)

    def _check_pair(self, video: object, video_name: str, text: object, text_name: str) -> None:
        """Refuse what is not embeddings of this model."""
        check_embeddings(video, VideoEmbeddings, video_name, self._model.fingerprint)
        check_embeddings(text, TextEmbeddings, text_name, self._model.fingerprint)

    def _ground_windows(
        self, batch: Iterable[Query], windows: Windows, top_k: int, ground: Ground
    ) -> list[list[list[Moment]]]:
        """`Engine.ground` with windows; videos that are not cut go to `ground`, the call without windows."""
        queries = check_batch(batch)
        cuts = self._cuts([(f"batch[{n}].video", query.video) for n, query in enumerate(queries)], windows)
        whole = [n for cut in cuts if len(cut.windows) == 1 for n in cut.queries]
        results: list[list[list[Moment]]] = [[] for _ in queries]
        if whole:
            found = ground([queries[n] for n in sorted(whole)], min(top_k, self._plan.num_proposals))
            for n, moments in zip(sorted(whole), found, strict=True):
                results[n] = moments
        asked = [cut for cut in cuts if len(cut.windows) > 1 and any(queries[n].sentences for n in cut.queries)]
        if asked:
            self._ground_cuts(asked, queries, top_k, results)
        return results

    def _ground_cuts(
        self, cuts: list[_Cut], queries: list[Query], top_k: int, results: list[list[list[Moment]]]
    ) -> None:
        numbers = [n for cut in cuts for n in cut.queries]
        row_of = {text: row for row, text in enumerate(dict.fromkeys(t for n in numbers for t in queries[n].sentences))}
        text = self._backend.encode_text(self._model.tokenizer.encode(list(row_of)))

        def collected(cut: _Cut) -> list[tuple[int, Collected]]:
            rows = {n: [row_of[sentence] for sentence in queries[n].sentences] for n in cut.queries}
            return [(n, Collected(self._backend, (text[0][r], text[1][r]))) for n, r in rows.items() if r]

        open_cut: list[tuple[int, Collected]] = []
        order = [(cut, window) for cut in cuts for window in cut.windows]
        for first, video in encoded_blocks(self._backend, _pieces(order), self._progress):
            for (cut, window), contrastive, iou in zip(order[first : first + len(video[0])], *video, strict=True):
                if window is cut.windows[0]:
                    open_cut = collected(cut)
                for _, one in open_cut:
                    one.add((contrastive, iou), window.start_s, window.duration_s)
                if window is cut.windows[-1]:
                    for n, one in open_cut:
                        results[n] = one.merged(cut.duration_s, top_k)

    def _encode_windows(self, items: list[Video], windows: Windows) -> VideoEmbeddings | None:
        """`Engine.encode_video` with windows; None if no video is cut."""
        cuts = self._cuts([(f"videos[{n}]", video) for n, video in enumerate(items)], windows)
        if all(len(cut.windows) == 1 for cut in cuts):
            return None
        order = [(cut, window) for cut in cuts for window in cut.windows]
        shape = (len(order), self._plan.num_proposals, self.preset.joint_size)
        arrays: Branches = np.empty(shape, np.float32), np.empty(shape, np.float32)
        writeable = True
        for first, video in encoded_blocks(self._backend, _pieces(order), self._progress):
            for array, branch in zip(arrays, video, strict=True):
                array[first : first + len(branch)] = branch
                writeable = writeable and branch.flags.writeable
        found = VideoEmbeddings(
            contrastive=arrays[0],
            iou=arrays[1],
            fingerprint=self._model.fingerprint,
            durations_s=tuple(cut.duration_s for cut in cuts),
            video_ids=tuple(items[cut.queries[0]].video_id for cut in cuts),
            windows=tuple(tuple((w.start_s, w.duration_s) for w in cut.windows) for cut in cuts),
        )
        number_of = {n: number for number, cut in enumerate(cuts) for n in cut.queries}
        if len(cuts) < len(items):
            found = found[[number_of[n] for n in range(len(items))]]
            found = VideoEmbeddings(**(vars(found) | {"video_ids": tuple(video.video_id for video in items)}))
        for array in (found.contrastive, found.iou):
            array.flags.writeable = writeable  # a backend keeps device copies of read-only arrays alone
        return found

    def _cuts(self, videos: Sequence[tuple[str, Video]], windows: Windows) -> list[_Cut]:
        """Check and cut every video, before the first is encoded; a video that occurs several times is cut once."""
        check_facts(videos, self._model.contract)
        cuts: dict[tuple[int, float], _Cut] = {}
        for number, (name, video) in enumerate(videos):
            duration_s = float(video.duration_s)
            key = id(video.features), duration_s
            if key not in cuts:
                rows, found = cut_rows(video, self.preset, windows, name)
                cuts[key] = _Cut(rows, found, name, duration_s)
            cuts[key].queries.append(number)
        return list(cuts.values())


def _pieces(order: Sequence[tuple[_Cut, Window]]) -> list[tuple[Any, str]]:
    return [(cut.rows[window.first : window.last], cut.name) for cut, window in order]
