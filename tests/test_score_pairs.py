"""`Engine.score_pairs` gives what `Engine.score` gives pair by pair, and the service's batches what single jobs get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mmn_fast
from mmn_fast.embeddings import TextEmbeddings, VideoEmbeddings
from mmn_fast.errors import InputError
from tests.served import SENTENCES, shapes

_MORE = [*SENTENCES, "a circle", "the green square grows"]


def _pairs(engine: mmn_fast.Engine) -> list[tuple[VideoEmbeddings, TextEmbeddings]]:
    """More pairs than go through one selection; videos that are cut, none and several of them, and no sentences."""
    text = engine.encode_text(_MORE)
    whole = engine.encode_video([shapes(0), shapes(1)])
    cut = engine.encode_video([shapes(0), shapes(2)], window_s=shapes(0).duration_s / 3)
    assert any(len(spans) > 1 for spans in cut.spans)
    pairs = [(whole, text), (cut, text[1:3]), (whole[:0], text), (whole, text[:0]), (cut[1], text[3])]
    return [*pairs, *((whole[number % 2], text[number % 4]) for number in range(70))]


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_pairs_are_scored_as_one_by_one(backend: str) -> None:
    engine = mmn_fast.load("demo", backend=backend, device="cpu", threads=2)
    pairs = _pairs(engine)
    for top_k in (1, 9, 10_000):
        found = engine.score_pairs(pairs, top_k)
        assert found == [engine.score(video, text, top_k) for video, text in pairs]
    assert engine.score_pairs([]) == []


def test_pairs_of_another_model_are_refused() -> None:
    engine = mmn_fast.load("demo", threads=1)
    video, text = engine.encode_video([shapes(0)]), engine.encode_text(["a"])
    other = TextEmbeddings(contrastive=text.contrastive, iou=text.iou, fingerprint="other", sentences=("a",))
    wrong: list[tuple[Any, str]] = [
        ((video, other), r"pairs\[1\]\[1\]: expected embeddings of this engine's model, .*, got model other"),
        ((text, text), r"pairs\[1\]\[0\]: expected VideoEmbeddings, got TextEmbeddings"),
        ((video,), r"pairs\[1\]: expected embeddings of videos and of their sentences, got tuple of 1"),
        (video, r"pairs\[1\]: expected embeddings of videos and of their sentences, got"),
    ]
    for pair, message in wrong:
        with pytest.raises(InputError, match=message):
            engine.score_pairs([(video, text), pair])
    with pytest.raises(InputError, match="^text: .*other"):
        engine.score(video, other)
    assert engine.score_pairs(iter([(video, text)])) == [engine.score(video, text)]


def test_a_batch_of_the_service_gives_what_each_job_gets_alone(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    from mmn_fast.serving.library import Library
    from mmn_fast.serving.metrics import Metrics
    from mmn_fast.serving.work import Answers, Ground, Search

    engine = mmn_fast.load("demo", threads=2)
    for storage in ("fp32", "fp16", "int8"):
        with mmn_fast.MomentIndex.create(tmp_path / storage, engine, storage=storage) as index:
            index.add([shapes(0)], window_s=shapes(0).duration_s / 3)
            index.add(shapes(number) for number in range(1, 4))
            answers, ids = Answers(engine, Library(index, engine), Metrics()), index.video_ids
            jobs: list[Any] = [
                Ground(ids[1], (SENTENCES[0],), top_k=1),
                Ground("unknown", ("a",)),
                Search(tuple(SENTENCES), top_k=3),
                Ground(ids[2], (SENTENCES[1], "a circle", SENTENCES[0]), top_k=7, maps=True),
                Ground(ids[0], (SENTENCES[0],), top_k=4),
                Ground(shapes(5), (SENTENCES[0],)),
                Search(("a",), videos=("unknown",)),
                Ground(ids[3], (SENTENCES[0],)),
            ]
            together = answers(jobs, False)
            alone = [answers([job], True)[0] for job in jobs]
            assert [str(one) for one in together] == [str(one) for one in alone]
            assert [isinstance(one, Exception) for one in together] == [n in (1, 6) for n in range(8)]
            assert [len(result["moments"]) for result in together[3]["results"]] == [7, 7, 7]
            expected = engine.score(index.embeddings([ids[3]]), engine.encode_text([SENTENCES[0]]))[0][0]
            assert together[7]["results"][0]["moments"] == [moment.to_dict() for moment in expected]
