"""Embeddings as values: their repr is one line, `+` joins them, embeddings of two models are never joined."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmn_fast.embeddings import TextEmbeddings, VideoEmbeddings
from mmn_fast.errors import InputError
from mmn_fast.types import Query, ScoreMaps, Video


def videos(*names: str, fingerprint: str = "f1", joint: int = 4) -> VideoEmbeddings:
    rng = np.random.default_rng(len(names))
    contrastive, iou = rng.standard_normal((2, len(names), 6, joint)).astype(np.float32)
    return VideoEmbeddings(contrastive, iou, fingerprint, tuple(map(float, range(len(names)))), names)


def sentences(*words: str) -> TextEmbeddings:
    contrastive, iou = np.random.default_rng(0).standard_normal((2, len(words), 4)).astype(np.float32)
    return TextEmbeddings(contrastive, iou, "f1", words)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (videos("a", "b"), "VideoEmbeddings(float32 [2, 6, 4], model f1, ['a', 'b'])"),
        (videos(*"abcdefghi"), "VideoEmbeddings(float32 [9, 6, 4], model f1, ['a', 'b', 'c', 'd', 'e', 'f', ...])"),
        (sentences("a dog"), "TextEmbeddings(float32 [1, 4], model f1, ['a dog'])"),
        (Video(np.zeros((9, 4), np.float16), 3.5, "v"), "Video(float16 [9, 4], duration_s=3.5, video_id='v')"),
        (Video(torch.zeros(9, 4), 3.5), "Video(float32 [9, 4], duration_s=3.5, video_id='')"),
        (Video([[1.0]], 3.5), "Video(list, duration_s=3.5, video_id='')"),
        (
            Query(Video(np.zeros((9, 4)), 3.5, "v"), ["a dog"]),
            "Query(video=Video(float64 [9, 4], duration_s=3.5, video_id='v'), sentences=['a dog'])",
        ),
        (
            ScoreMaps(*np.zeros((3, 2, 6), np.float32), cells=np.zeros((6, 2), np.int32)),
            "ScoreMaps(contrastive=float32 [2, 6], iou=float32 [2, 6], fused=float32 [2, 6], cells=int32 [6, 2])",
        ),
    ],
)
def test_values_are_shown_in_one_line(value: object, expected: str) -> None:
    assert repr(value) == expected


def test_long_texts_do_not_lengthen_the_line() -> None:
    assert len(repr(sentences(*["word " * 1000] * 50))) < 400


def test_embeddings_are_joined_item_after_item() -> None:
    one, two, three = videos("a", "b"), videos("c"), videos("d", "e", "f")
    joined = VideoEmbeddings.concatenate([one, two, three])
    assert joined.video_ids == tuple("abcdef")
    assert joined.durations_s == (0.0, 1.0, 0.0, 0.0, 1.0, 2.0)
    assert joined.fingerprint == "f1"
    for name in ("contrastive", "iou"):
        assert np.array_equal(getattr(joined, name), np.concatenate([getattr(e, name) for e in (one, two, three)]))
        assert np.array_equal(getattr(joined[2:3], name), getattr(two, name))
    assert (one + two + three).video_ids == joined.video_ids
    assert (sentences("a") + sentences("b", "c")).sentences == ("a", "b", "c")
    assert len(VideoEmbeddings.concatenate(iter([one]))) == 2


def test_joined_embeddings_can_be_written_only_if_a_part_can() -> None:
    fixed = [videos("a"), videos("b")]
    for part in fixed:
        part.contrastive.flags.writeable = part.iou.flags.writeable = False
    assert not (fixed[0] + fixed[1]).contrastive.flags.writeable
    assert (fixed[0] + videos("c")).contrastive.flags.writeable


def test_embeddings_of_two_models_or_kinds_are_not_joined() -> None:
    cases = [
        ([], r"parts: expected at least one VideoEmbeddings, got none"),
        (
            [videos("a"), videos("b", fingerprint="f2")],
            r"parts\[1\]: expected embeddings of model f1, as in the parts before, got model f2",
        ),
        ([videos("a"), sentences("b")], r"parts\[1\]: expected VideoEmbeddings, got TextEmbeddings"),
        (
            [videos("a"), videos("b", joint=8)],
            r"parts\[1\]: expected float32 \[1, 6, 4\], as in the parts before, got float32 \[1, 6, 8\]",
        ),
    ]
    for parts, message in cases:
        with pytest.raises(InputError, match=message):
            VideoEmbeddings.concatenate(parts)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="model f2"):
        videos("a") + videos("b", fingerprint="f2")
    with pytest.raises(TypeError, match="unsupported operand"):
        videos("a") + sentences("b")  # type: ignore[operator]
