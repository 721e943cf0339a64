"""An index finds what `Engine.score` over every video finds, whatever has happened to it."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import mmn_fast
from mmn_fast import Match, MomentIndex
from mmn_fast.demo.split import draw_split
from mmn_fast.embeddings import TextEmbeddings, VideoEmbeddings
from mmn_fast.index import snapshot, writing
from mmn_fast.index.manifest import Manifest, ShardRecord
from mmn_fast.index.shards import Shard, open_shard
from tests.index_task import STORAGES, assert_exact, brute_force, random_text, random_videos, tiny_engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> mmn_fast.Engine:
    return tiny_engine(tmp_path_factory.mktemp("tiny"))


def _names(count: int, first: int = 0) -> list[str]:
    return [f"video {n}" for n in range(first, first + count)]


@pytest.mark.parametrize("storage", STORAGES)
def test_search_is_exact_before_and_after_every_change(engine: mmn_fast.Engine, tmp_path: Path, storage: str) -> None:
    text = random_text(engine, 5)
    with MomentIndex.create(tmp_path / "it", engine, storage) as index, MomentIndex.open(tmp_path / "it") as reader:
        assert index.add(random_videos(engine, _names(9), 1, cut=(2, 7))) == 9
        assert index.add(random_videos(engine, _names(4, 9), 2)) == 4
        assert_exact(index, engine, text)
        assert len(reader) == 0
        assert reader.search(text) == [[]] * 5
        assert reader.refresh()
        assert not reader.refresh()
        assert_exact(reader, engine, text)
        before = reader.search(text, 20, 2)
        assert index.remove(["video 7", "video 0", "video 12"]) == 3
        assert reader.search(text, 20, 2) == before
        assert index.video_ids == [name for name in _names(13) if name not in ("video 7", "video 0", "video 12")]
        assert_exact(index, engine, text)
        kept = index.search(text, 20, 2)
        assert index.compact() > 0
        assert index.search(text, 20, 2) == kept
        assert_exact(index, engine, text)
        assert reader.search(text, 20, 2) == before  # its maps outlive the files
        reader.refresh()
        assert reader.search(text, 20, 2) == kept
        assert index.add(random_videos(engine, ["video 0", "video 5"], 3), replace=True) == 2
        assert index.video_ids[-2:] == ["video 0", "video 5"]
        assert_exact(index, engine, text)
        assert index.info()["removed"] == 1
        assert index.verify() == []


def test_stored_precision(engine: mmn_fast.Engine, tmp_path: Path) -> None:
    videos = random_videos(engine, _names(6), 4, cut=(1,))
    kept = {}
    for storage in STORAGES:
        with MomentIndex.create(tmp_path / storage, engine, storage) as index:
            index.add(videos)
            kept[storage] = index.embeddings()
    assert np.array_equal(kept["fp32"].iou, videos.iou)
    assert np.array_equal(kept["fp32"].contrastive, videos.contrastive)
    assert np.array_equal(kept["fp16"].iou, videos.iou.astype(np.float16).astype(np.float32))
    for name in ("contrastive", "iou"):
        assert np.array_equal(getattr(kept["int8"], name), getattr(kept["fp16"], name))
    for found in kept.values():
        assert (found.windows, found.video_ids, found.durations_s) == (
            videos.spans,
            videos.video_ids,
            videos.durations_s,
        )


@pytest.mark.parametrize("storage", STORAGES)
def test_shards_are_safetensors_files_and_mapped(engine: mmn_fast.Engine, tmp_path: Path, storage: str) -> None:
    with MomentIndex.create(tmp_path / "it", engine, storage) as index:
        index.add(random_videos(engine, _names(3), 4, cut=(1,)))
        (file,) = (tmp_path / "it" / "shards").iterdir()
        arrays = load_file(file)
        rows = index._snapshot.shards[0].rows
        for name in arrays.keys() - {"catalogue"}:
            branch, _, part = name.partition(".")
            mapped = getattr(getattr(rows, f"{branch}_codes"), part) if part else getattr(rows, branch)
            assert np.array_equal(mapped, arrays[name])
            assert not mapped.flags.owndata
            assert not mapped.flags.writeable
            assert mapped.ctypes.data % mapped.itemsize == 0
        assert rows.contrastive.ctypes.data % 64 == 0
        catalogue = json.loads(arrays["catalogue"].tobytes())
        assert catalogue["video_ids"] == _names(3)
        assert 1 <= catalogue["norm"] < 1.001


def test_limits_of_a_search(engine: mmn_fast.Engine, tmp_path: Path) -> None:
    text, videos = random_text(engine, 3), random_videos(engine, _names(8), 5, cut=(3,))
    with MomentIndex.create(tmp_path / "it", engine, "fp32") as index:
        index.add(videos)
        everything = brute_force(engine, videos, text, 10_000, 1000)
        assert index.search(text, 10_000, 1000) == everything
        assert index.search(text, 100) == brute_force(engine, videos, text, 100)
        chosen = ["video 3", "video 6", "video 3"]
        of_chosen = brute_force(engine, videos[[3, 6]], text, 5, 2)
        assert index.search(text, 5, 2, videos=chosen) == of_chosen
        assert index.search(text, videos=[]) == [[]] * 3
        least = everything[0][len(everything[0]) // 3].score
        for per_video in (1, 1000):
            wanted = brute_force(engine, videos, text, 10_000, per_video, min_score=least)
            assert index.search(text, 10_000, per_video, min_score=least) == wanted
        assert index.search(text, min_score=1.5) == [[]] * 3
        ranked = index.rank_videos(text, 4)
        assert [[(match.video_id, match.score) for match in one] for one in index.search(text, 4)] == ranked
        assert index.search(random_text(engine, 0)) == []
        assert index.search(text)[0][0].to_dict().keys() == {"video_id", "start_s", "end_s", "score"}


def test_ties_go_to_the_video_that_was_added_first(engine: mmn_fast.Engine, tmp_path: Path) -> None:
    text, one = random_text(engine, 2), random_videos(engine, ["a"], 6)
    with MomentIndex.create(tmp_path / "it", engine) as index:
        for name in ("c", "a", "d", "b"):
            index.add(dataclasses.replace(one, video_ids=(name,)))
        assert [match.video_id for match in index.search(text, 3)[0]] == ["c", "a", "d"]
        assert_exact(index, engine, text, 6)
        index.compact()
        assert index.info()["shards"] == 1
        assert [match.video_id for match in index.search(text, 3)[1]] == ["c", "a", "d"]
        assert_exact(index, engine, text, 6)


def test_a_reader_that_loses_a_race_with_compact_opens_the_next_state(
    engine: mmn_fast.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MomentIndex.create(tmp_path / "it", engine) as writer:
        for number in range(3):
            writer.add(random_videos(engine, [f"video {number}"], number))
        opened: list[str] = []

        def open_late(path: Path, manifest: Manifest, record: ShardRecord) -> Shard:
            opened.append(record.file)
            if len(opened) == 2:  # the manifest is read, and one of its three shards
                writer.compact()
            return open_shard(path, manifest, record)

        monkeypatch.setattr(snapshot, "open_shard", open_late)
        with MomentIndex.open(tmp_path / "it") as reader:
            assert reader.video_ids == _names(3)
            assert reader.info()["generation"] == 4


def test_a_library_of_one_and_an_empty_one(engine: mmn_fast.Engine, tmp_path: Path) -> None:
    text = random_text(engine, 2)
    with MomentIndex.create(tmp_path / "it", engine) as index:
        assert index.search(text) == index.rank_videos(text) == [[], []]
        assert index.compact() == 0
        assert index.add([]) == 0
        assert len(index.embeddings()) == 0
        index.add(random_videos(engine, ["only"], 7))
        assert_exact(index, engine, text)
        index.remove(["only"])
        assert index.search(text) == [[], []]
        index.compact()
        assert index.info()["bytes"] == 0
        assert list((tmp_path / "it" / "shards").iterdir()) == []


def test_many_sentences_in_one_call(engine: mmn_fast.Engine, tmp_path: Path) -> None:
    text = random_text(engine, 2000)
    with MomentIndex.create(tmp_path / "it", engine) as index:
        index.add(random_videos(engine, _names(5), 8))
        found = index.search(text, 3, 2)
        assert found[1700:1703] == index.search(text[1700:1703], 3, 2)
        assert index.search(text, 3)[1999] == brute_force(engine, index.embeddings(), text[1999], 3)[0]


def test_big_additions_become_several_shards(
    engine: mmn_fast.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = random_text(engine, 2)
    with MomentIndex.create(tmp_path / "it", engine) as index:
        videos = random_videos(engine, _names(10), 9, cut=(4,))
        index.add(videos)
        info = index.info()
        of_a_window = info["bytes_per_proposal"] * info["proposals"] // info["windows"]
        monkeypatch.setattr(writing, "SHARD_BYTES", 3 * of_a_window)
        index.add(dataclasses.replace(videos, video_ids=tuple(_names(10, 10))))
        assert index.info()["shards"] == 1 + 4  # 3 + 4 (one is cut) + 3 + 2 windows
        assert_exact(index, engine, text)
        index.remove(["video 12"])
        whole = {path.name for path in (tmp_path / "it" / "shards").iterdir()}
        index.compact()
        assert whole & {path.name for path in (tmp_path / "it" / "shards").iterdir()}  # full shards stay
        assert_exact(index, engine, text)
        monkeypatch.setattr(writing, "COMMIT_S", 0.0)
        index.add(random_videos(engine, _names(3, 50), 10))
        assert_exact(index, engine, text)


def test_videos_are_encoded_on_the_way(engine: mmn_fast.Engine, tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    width = engine.preset.input_size
    videos = [mmn_fast.Video(rng.standard_normal((5 + n, width), np.float32), 4.0 + n, f"video {n}") for n in range(19)]
    sentences = ["the dog", "a dog"]
    with MomentIndex.create(tmp_path / "it", engine, "fp32") as index:
        assert index.add(iter([*videos[:17], engine.encode_video(videos[17:18]), videos[18]])) == 19
        assert index.video_ids == _names(19)
        text = engine.encode_text(sentences)
        assert index.search(sentences) == brute_force(engine, engine.encode_video(videos), text)
    with MomentIndex.create(tmp_path / "cut", engine, "fp32") as index:
        index.add(videos, window_s=6.0)
        cut = engine.encode_video(videos, window_s=6.0)
        assert index.search(sentences, 30, 3) == brute_force(engine, cut, text, 30, 3)


@pytest.fixture(scope="module")
def demo_world() -> tuple[VideoEmbeddings, TextEmbeddings]:
    """2,000 videos of the demo's world and 500 of their sentences, drawn in minutes."""
    engine = mmn_fast.load("demo", device="cpu", threads=2)
    batch = draw_split(2000, seed=5001, workers=2).batch
    videos = [dataclasses.replace(query.video, video_id=f"video {n}") for n, query in enumerate(batch)]
    sentences = [sentence for query in batch for sentence in query.sentences]
    return engine.encode_video(videos), engine.encode_text(sentences[:: len(sentences) // 500][:500])


def _random_world(engine: mmn_fast.Engine) -> tuple[VideoEmbeddings, TextEmbeddings]:
    """Random embeddings, every fiftieth video with three windows."""
    return random_videos(engine, _names(2000), 1, cut=range(0, 2000, 50)), random_text(engine, 500)


@pytest.mark.long
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("world", ["random", "demo"])
def test_two_thousand_videos_and_five_hundred_sentences(
    tmp_path: Path, storage: str, world: str, request: pytest.FixtureRequest
) -> None:
    engine = mmn_fast.load("demo", device="cpu", threads=2)
    videos, text = request.getfixturevalue("demo_world") if world == "demo" else _random_world(engine)
    with MomentIndex.create(tmp_path / "it", engine, storage) as index, MomentIndex.open(tmp_path / "it") as reader:
        for first in range(0, 2000, 400):
            index.add(videos[first : first + 400])
        for change in (lambda: 0, lambda: index.remove(_names(150, 700)), index.compact):
            change()
            reader.refresh()
            wanted = brute_force(engine, index.embeddings(), text, 10)
            for threads in (1, 2):
                assert index.search(text, threads=threads) == wanted
                assert reader.search(text[:3], threads=threads) == wanted[:3]
        chosen = text[:20]
        assert index.search(chosen, 50, 5) == brute_force(engine, index.embeddings(), chosen, 50, 5)


@pytest.mark.slow  # draws the demo's split, if no other test has
def test_recall_of_the_storages_on_the_demo_world(demo_split: object, tmp_path: Path) -> None:
    """Storages with fewer bits find nearly the same moments; int8 finds exactly what fp16 finds."""
    engine = mmn_fast.load("demo", device="cpu", threads=1)
    split, _ = demo_split(24)  # type: ignore[operator]
    videos = [dataclasses.replace(query.video, video_id=f"v{n}") for n, query in enumerate(split.batch)]
    embeddings = engine.encode_video(videos)
    text = engine.encode_text([sentence for query in split.batch for sentence in query.sentences])
    found = {}
    for storage in STORAGES:
        with MomentIndex.create(tmp_path / storage, engine, storage) as index:
            index.add(embeddings)
            found[storage] = index.search(text, 10)
    assert found["fp32"] == brute_force(engine, embeddings, text, 10)
    assert found["int8"] == found["fp16"]
    overlap = [len(_spans(a) & _spans(b)) / 10 for a, b in zip(found["fp32"], found["fp16"], strict=True)]
    assert np.mean(overlap) >= 0.98
    first = [a[0].video_id == b[0].video_id for a, b in zip(found["fp32"], found["fp16"], strict=True)]
    assert np.mean(first) >= 0.99


def _spans(matches: list[Match]) -> set[tuple[str, float, float]]:
    return {(match.video_id, match.start_s, match.end_s) for match in matches}


def test_another_engine_may_search_the_embeddings_of_the_same_model(engine: mmn_fast.Engine, tmp_path: Path) -> None:
    text = random_text(engine, 1)
    assert isinstance(text, TextEmbeddings)
    with MomentIndex.create(tmp_path / "it", engine, model="somewhere") as index:
        index.add(random_videos(engine, _names(2), 12))
        with MomentIndex.open(tmp_path / "it") as other:
            assert (other.model, other.preset, other.contract) == ("somewhere", engine.preset, engine.contract)
            assert other.search(text) == index.search(text)
            assert isinstance(other.embeddings(["video 1"]), VideoEmbeddings)
            assert other.duration_s("video 1") == 4.0
            assert "video 1" in other
            assert "video 2" not in other
            assert pickle.loads(pickle.dumps(other)).search(text) == index.search(text)
