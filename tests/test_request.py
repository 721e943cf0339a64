"""Queries become one checked request without repetitions, and every backend grounds it in the same way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mmn_fast
from mmn_fast.backends.base import Selection, Settings
from mmn_fast.backends.native_cpu import NativeBackend
from mmn_fast.checkpoint import load_model
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.request import Request, make_request


def _rows(features: Any, name: str) -> Any:
    assert features.ndim == 2, name
    return np.ascontiguousarray(features, np.float32)


def _ids(sentences: Any) -> Any:
    return [np.array([len(sentence)], np.int64) for sentence in sentences]


def _videos(count: int) -> list[mmn_fast.Video]:
    return [mmn_fast.Video(np.full((2, 3), n, np.float32), 10.0 + n) for n in range(count)]


def test_a_request_holds_every_distinct_video_and_sentence_once() -> None:
    a, silent, b = _videos(3)
    again = mmn_fast.Video(a.features.copy(), 60.0)
    batch = [mmn_fast.Query(video, said) for video, said in ((a, ["x", "yy", "x"]), (silent, []), (b, ["yy"]))]
    request = make_request([*batch, mmn_fast.Query(again, ("zzz",))], _rows, _ids)
    assert [video[0, 0] for video in request.videos] == [0, 2]
    assert [ids.tolist() for ids in request.token_ids] == [[1], [2], [3]]
    assert request.pairs.videos.tolist() == [0, 0, 0, 1, 0]
    assert request.pairs.sentences.tolist() == [0, 1, 0, 1, 2]
    assert request.pairs.durations.tolist() == [10, 10, 10, 12, 60]
    assert request.spans == [slice(0, 3), slice(3, 3), slice(3, 4), slice(4, 5)]


def test_blocks_hold_a_bounded_number_of_videos_and_every_query_that_has_sentences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mmn_fast.request.VIDEOS_AT_ONCE", 2)
    videos = _videos(5)
    batch = [mmn_fast.Query(video, ["a"] * (number % 3)) for number, video in enumerate([*videos, videos[1]])]
    blocks = list(make_request(batch, _rows, _ids).blocks())
    assert [[video[0, 0] for video in block.videos] for block in blocks] == [[1, 2], [4]]
    assert [block.queries for block in blocks] == [[(0, 1), (1, 2), (0, 5)], [(0, 4)]]
    assert list(make_request([], _rows, _ids).blocks()) == []


def test_every_video_is_checked_before_a_sentence_is_tokenized() -> None:
    def never(sentences: Any) -> Any:
        raise AssertionError(sentences)

    good = mmn_fast.Query(_videos(1)[0], ["a"])
    bad = mmn_fast.Query(mmn_fast.Video(np.ones((2, 3)), -1.0), [])
    with pytest.raises(InputError, match=r"^batch\[1\].video.duration_s: expected a positive"):
        make_request([good, bad], _rows, never)


def test_the_engine_hands_every_backend_the_same_request() -> None:
    seen: list[tuple[Request, int]] = []

    class Own(NativeBackend):
        """A backend with its own `ground`: the last proposal is always the best."""

        def video_input(self, features: Any, name: str) -> Any:
            return _rows(features, name)

        def ground(self, request: Request, top_k: int) -> Selection:
            seen.append((request, top_k))
            chosen = np.full((len(request.pairs.videos), top_k), -1, np.int32)
            chosen[:, 0] = self._plan.num_proposals - 1
            return chosen, np.zeros(chosen.shape, np.float32)

    model = load_model("demo")
    engine = Engine(model, Own(model, Settings("cpu", threads=1)))
    video = mmn_fast.Video(np.ones((7, engine.preset.input_size)), 30.0)
    result = engine.ground([mmn_fast.Query(video, ["a", "b"]), mmn_fast.Query(video, [])], top_k=2)
    ((request, top_k),) = seen
    assert (top_k, [rows.shape for rows in request.videos]) == (2, [(7, engine.preset.input_size)])
    assert [[[moment.end_s for moment in row] for row in rows] for rows in result] == [[[30.0], [30.0]], []]
