"""The engine's seams: embeddings are scored like in `ground`, saved, selected, and refused if they do not fit."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmn_fast
from benchmarks.golden import cases
from mmn_fast import embeddings
from mmn_fast.embeddings import TextEmbeddings, VideoEmbeddings
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from tests.golden.grounded import batch_of
from tests.tolerances import check_close

Engines = Callable[[str], Engine]
SMALL = cases.load("charades_small")


def test_seams_give_what_ground_gives(golden_engine: Engines) -> None:
    engine, batch = golden_engine("charades_small"), batch_of(SMALL)
    videos = engine.encode_video([query.video for query in batch])
    text = engine.encode_text([sentence for query in batch for sentence in query.sentences])
    assert videos.contrastive.shape == videos.iou.shape == (3, 136, 24)
    assert text.contrastive.shape == text.iou.shape == (6, 24)
    assert videos.contrastive.dtype == text.iou.dtype == np.float32
    check_close(np.linalg.norm(videos.iou, axis=-1), np.ones((3, 136)), "unit_norm")
    scored = engine.score(videos, text, top_k=7)
    grounded = engine.ground(batch, top_k=7)
    assert scored[0][:3] == grounded[0]
    assert scored[1][3:4] == grounded[1]
    assert scored[2][4:] == grounded[2]


def _score_elsewhere(model: Path, videos: Path, text: Path, queue: Any) -> None:
    engine = mmn_fast.load(model, backend="torch")
    queue.put(engine.score(VideoEmbeddings.load(videos), TextEmbeddings.load(text)))


@pytest.mark.slow
def test_saved_embeddings_are_scored_in_another_process(
    golden_engine: Engines, golden_model: Callable[[str], Path], tmp_path: Path
) -> None:
    engine, batch = golden_engine("charades_small"), batch_of(SMALL)
    videos, text = engine.encode_video([query.video for query in batch]), engine.encode_text(["a door", "a bag"])
    videos.save(tmp_path / "videos.safetensors")
    text.save(tmp_path / "text.safetensors")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = (golden_model("charades_small"), tmp_path / "videos.safetensors", tmp_path / "text.safetensors", queue)
    process = context.Process(target=_score_elsewhere, args=arguments)
    process.start()
    result = queue.get(timeout=120)
    process.join()
    assert result == engine.score(videos, text)
    again = pickle.loads(pickle.dumps(videos))
    assert (again.durations_s, again.video_ids) == ((30.96, 12.4, 63.0), ("video0", "video1", "video2"))


def test_embeddings_can_be_selected(golden_engine: Engines) -> None:
    engine, batch = golden_engine("charades_small"), batch_of(SMALL)
    videos, text = engine.encode_video([query.video for query in batch]), engine.encode_text(["a", "b", "c"])
    whole = engine.score(videos, text)
    assert engine.score(videos[1], text[[2, 0]]) == [[whole[1][2], whole[1][0]]]
    assert engine.score(videos[1:], text[-1]) == [[whole[1][2]], [whole[2][2]]]
    assert [one.video_ids for one in videos] == [("video0",), ("video1",), ("video2",)]
    with pytest.raises(IndexError):
        videos[3]


@pytest.mark.slow
def test_embeddings_of_another_model_are_refused(golden_engine: Engines) -> None:
    engine, other = golden_engine("charades_small"), golden_engine("activitynet_small")
    with pytest.raises(InputError, match="text: expected embeddings of this engine's model, [0-9a-f]{32}, got model"):
        engine.score(engine.encode_video([batch_of(SMALL)[0].video]), other.encode_text(["a"]))
    with pytest.raises(InputError, match="video: expected VideoEmbeddings, got TextEmbeddings"):
        engine.score(engine.encode_text(["a"]), engine.encode_text(["a"]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "not a readable safetensors file"),
        (lambda path: path.write_bytes(b"text"), "not a readable safetensors file"),
    ],
)
def test_damaged_embeddings_are_refused(
    spoil: Callable[[Path], object], message: str, golden_engine: Engines, tmp_path: Path
) -> None:
    path = tmp_path / "text.safetensors"
    golden_engine("charades_small").encode_text(["a"]).save(path)
    with pytest.raises(InputError, match="expected mmn_fast video embeddings written by save"):
        VideoEmbeddings.load(path)
    spoil(path)
    with pytest.raises(InputError, match=message):
        TextEmbeddings.load(path)


def _rewrite(path: Path, arrays: dict[str, np.ndarray] | None = None, **changes: str | None) -> None:
    """Rewrite a file with other arrays or metadata, and with their checksum if the file has one."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(str(path), framework="numpy") as file:
        meta = file.metadata()
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    found = {name: array for name, array in (found | (arrays or {})).items() if array is not None}
    meta = {name: value for name, value in (meta | changes).items() if value is not None}
    if meta.pop("sha256", None):
        meta["sha256"] = embeddings._checksum(found, meta)
    save_file(found, str(path), metadata=meta)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: _rewrite(p, sentences=None), "missing sentences"),
        (lambda p: _rewrite(p, fingerprint=None), "missing fingerprint"),
        (lambda p: _rewrite(p, fingerprint=""), "fingerprint: expected text of 1 to"),
        (lambda p: _rewrite(p, sentence="x"), "unknown key 'sentence'; did you mean 'sentences'"),
        (lambda p: _rewrite(p, sentences="["), "sentences: not JSON"),
        (lambda p: _rewrite(p, sentences="3"), "sentences: expected a list of 2 values, got 3"),
        (lambda p: _rewrite(p, sentences='["a"]'), r"sentences: expected a list of 2 values, got \['a'\]"),
        (lambda p: _rewrite(p, sentences='["a", 3]'), r"sentences\[1\]: expected text of 0 to .*, got 3"),
        (lambda p: _rewrite(p, sentences="[" * 100_000), "sentences: expected at most 32 levels of nesting"),
        (lambda p: _rewrite(p, {"iou": np.zeros((3, 24), np.float32)}), "iou: expected float32 of 2 axes, .*3, 24"),
        (lambda p: _rewrite(p, {"contrastive": np.zeros((2, 24))}), "contrastive: expected float32 .*, got float64"),
        (lambda p: _rewrite(p, {"iou": np.full((2, 24), np.nan, np.float32)}), "iou holds NaN or infinite values"),
        (lambda p: _rewrite(p, {"more": np.zeros(1, np.float32)}), "unknown key 'more'"),
    ],
)
def test_embeddings_of_something_else_are_refused(
    spoil: Callable[[Path], object], message: str, golden_engine: Engines, tmp_path: Path
) -> None:
    path = tmp_path / "text.safetensors"
    found = golden_engine("charades_small").encode_text(["a", "b"])
    assert found.iou.shape == (2, 24)
    found.save(path)
    spoil(path)
    with pytest.raises(InputError, match=message) as refusal:
        TextEmbeddings.load(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("duration", ["NaN", "-1", '"3"', "true", "1e400"])
def test_durations_of_embeddings_are_checked(duration: str, golden_engine: Engines, tmp_path: Path) -> None:
    path = tmp_path / "video.safetensors"
    golden_engine("charades_small").encode_video([batch_of(SMALL)[0].video]).save(path)
    _rewrite(path, durations_s=f"[{duration}]")
    with pytest.raises(InputError, match=r"durations_s\[0\]: expected a finite number > 0"):
        VideoEmbeddings.load(path)
