"""What an index cannot use it refuses in one sentence, and nothing of it is lost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmn_fast
from mmn_fast import MomentIndex
from mmn_fast.embeddings import VideoEmbeddings
from mmn_fast.errors import InputError, WriteError
from mmn_fast.index import writing
from mmn_fast.index.library import verify
from mmn_fast.storage import locks
from mmn_fast.storage.checksums import plain_sha256
from tests.index_task import assert_exact, random_text, random_videos, tiny_engine
from tests.processes import in_fork


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> mmn_fast.Engine:
    return tiny_engine(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def index(engine: mmn_fast.Engine, tmp_path: Path) -> Iterator[MomentIndex]:
    """An index of two shards: videos a, b and c, d."""
    with MomentIndex.create(tmp_path / "it", engine) as made:
        made.add(random_videos(engine, ["a", "b"], 1, cut=(1,)))
        made.add(random_videos(engine, ["c", "d"], 2))
        yield made


@contextmanager
def refused(message: str) -> Iterator[None]:
    with pytest.raises(InputError, match=message) as caught:
        yield
    assert "\n" not in str(caught.value)


def _with(videos: VideoEmbeddings, **changes: Any) -> VideoEmbeddings:
    return dataclasses.replace(videos, **changes)


def test_videos_that_cannot_be_added(index: MomentIndex, engine: mmn_fast.Engine) -> None:
    videos = random_videos(engine, ["e", "f"], 3)
    bad = videos.iou.copy()
    bad[1, 2, 3] = np.nan
    big = videos.iou.copy()
    big[1, 2, 3] = 1e6
    cases: list[tuple[Any, str]] = [
        (
            _with(videos, fingerprint="0" * 32),
            r"^videos\[0\]: expected embeddings of this engine's model, .* got model 0",
        ),
        (_with(videos, video_ids=("e", "a")), "^videos.*video_ids: 'a' is in .*it already; .* replace=True$"),
        (_with(videos, video_ids=("e", "e")), "video_ids: 'e' stands twice among the videos to add$"),
        (_with(videos, video_ids=("e", "")), r"video_ids: expected text of 1 to 10000 characters, got ''$"),
        (_with(videos, iou=bad), r"^videos\[0\]: video 'f': iou holds NaN or infinite values$"),
        (_with(videos, iou=big), r"video 'f': iou: expected unit vectors, got values beyond float16$"),
        (_with(videos, iou=videos.iou[:, :5]), r"iou: expected float32 \[2, \d+, \d+\], got float32 \[2, 5, \d+\]$"),
        (_with(videos, durations_s=(1.0, -2.0)), r"video 'f': duration_s: expected a finite number > 0, got -2.0$"),
        ("films", "^videos: expected VideoEmbeddings or a list of Video, got str$"),
        ([3], r"^videos\[0\]: expected mmn_fast.Video or VideoEmbeddings, got int$"),
        ([mmn_fast.Video(np.ones((3, 2)), 1.0, "e")], r"^videos\[0\] \('e'\)\.features: expected"),
        ([mmn_fast.Video(np.ones((3, 2)), 1.0)], r"^videos\[0\]\.video_id: expected text"),
    ]
    for given, message in cases:
        with refused(message):
            index.add(given)
        assert [name for name in index.video_ids if name in "abcd"] == ["a", "b", "c", "d"]
        if "f" in index or "e" in index:  # what was fine before the refused value is kept
            index.remove([name for name in index.video_ids if name in "ef"])
    assert_exact(index, engine, random_text(engine, 2))
    with (
        MomentIndex.open(index.path) as bare,
        refused("^videos: expected VideoEmbeddings, because .* without an engine$"),
    ):
        bare.add([mmn_fast.Video(np.ones((3, engine.preset.input_size)), 1.0, "e")])


def test_what_is_encoded_before_a_bad_video_is_kept(index: MomentIndex, engine: mmn_fast.Engine) -> None:
    def videos() -> Iterator[VideoEmbeddings]:
        yield random_videos(engine, ["e"], 3)
        raise InputError("the next video cannot be read")

    with refused("^the next video cannot be read$"):
        index.add(videos())
    assert index.video_ids == ["a", "b", "c", "d", "e"]
    assert_exact(index, engine, random_text(engine, 2))


def test_arguments(index: MomentIndex, engine: mmn_fast.Engine, tmp_path: Path) -> None:
    text = random_text(engine, 1)
    with refused("^top_k: expected an integer >= 1, got 0$"):
        index.search(text, 0)
    with refused("^per_video: expected an integer >= 1, got True$"):
        index.search(text, per_video=True)
    with refused("^min_score: expected a finite number, got nan$"):
        index.search(text, min_score=np.nan)
    with refused("^videos: 'aa' is not in .*it; did you mean 'a'"):
        index.search(text, videos=["aa"])
    with refused("^videos: expected a list of ids, got 'a'$"):
        index.search(text, videos="a")
    with refused("^sentences: expected a list of str, got one str"):
        index.search("the dog")
    with refused("^sentences: expected embeddings of this engine's model"):
        index.search(dataclasses.replace(text, fingerprint="0"))
    with refused("^video_ids: 'zebra' is not in"):
        index.remove(["a", "zebra"])
    assert "a" in index
    with (
        MomentIndex.open(index.path) as bare,
        refused("^sentences: expected TextEmbeddings, because .* without an engine"),
    ):
        bare.search(["the dog"])
    with refused("^storage: expected fp16, fp32, int8, got 'fp8'$"):
        MomentIndex.create(tmp_path / "other", engine, "fp8")
    with refused("^path: .*it already exists; expected the name of a new directory$"):
        MomentIndex.create(index.path, engine)
    tubes = mmn_fast.load("shapes-tubes", device="cpu")
    with refused("^engine: expected a model of videos, got one of tubes, preset 'shapes-tubes'$"):
        MomentIndex.create(tmp_path / "other", tubes)
    with refused("^engine: expected the model of .*it, .* got model"):
        MomentIndex.open(index.path, tubes)
    assert not (tmp_path / "other").exists()
    index.close()
    index.close()
    for use in (lambda: index.search(text), lambda: index.add([]), index.refresh, index.info):
        with refused("^index: .*it has been closed$"):
            use()


def test_what_is_no_index(index: MomentIndex, tmp_path: Path) -> None:
    with refused("^index: .*none: no such directory; `mmn-fast index create` makes an index$"):
        MomentIndex.open(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with refused("^index: .*empty is no index: it has no manifest.json$"):
        MomentIndex.open(tmp_path / "empty")
    manifest = index.path / "manifest.json"
    record = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**record, "format_version": 3, "mmn_fast_version": "9.0"}))
    with refused("format_version: expected 2, got 3; install the mmn_fast that wrote the index \\('9.0'\\)$"):
        MomentIndex.open(index.path)
    with refused("format_version: expected 2, got 3"):
        index.add([])
    manifest.write_text(json.dumps({**record, "format_version": 1, "storage": "int8"}))
    with refused("int8 of format version 1 cannot be searched any more; create the index again$"):
        MomentIndex.open(index.path)
    first = {key: value for key, value in record.items() if key != "sha256"} | {"format_version": 1}
    manifest.write_text(json.dumps({**first, "sha256": plain_sha256(first)}))
    assert len(MomentIndex.open(index.path)) == len(index)  # fp16 was the same
    manifest.write_text(json.dumps({**record, "generation": 7}))
    with refused("manifest.json is damaged: its sha256 differs"):
        MomentIndex.open(index.path)
    del record["sha256"]
    record["shards"][0]["file"] = "../outside"
    manifest.write_text(json.dumps({**record, "sha256": plain_sha256(record)}))
    with refused("shards.*file: expected the name of a file, got '../outside'$"):
        MomentIndex.open(index.path)
    manifest.write_text('{"model": 1}')
    with refused("expected the manifest of an index, got something else$"):
        MomentIndex.open(index.path)


def test_a_directory_that_somebody_has_made_up(index: MomentIndex) -> None:
    """Checksums that fit do not make a shard fit: nothing reads beyond a map."""
    manifest = index.path / "manifest.json"
    record, file = json.loads(manifest.read_text()), _shard(index, 0)
    whole, size = file.read_bytes(), int(record["shards"][0]["head_bytes"])

    def write(head: bytes, **changes: Any) -> None:
        rest = head + whole[size:]
        file.write_bytes(rest)
        facts = {"num_bytes": len(rest), "head_sha256": hashlib.sha256(head).hexdigest(), **changes}
        shards = [record["shards"][0] | facts, *record["shards"][1:]]
        made_up = {name: value for name, value in record.items() if name != "sha256"} | {"shards": shards}
        manifest.write_text(json.dumps({**made_up, "sha256": plain_sha256(made_up)}))

    head = whole[:size]
    for made_up in (
        head.replace(b"data_offsets", b"data_offsetz"),
        head.replace(b'"contrastive": {"dtype": "F16", "shape": [', b'"contrastiv_": {"dtype": "F16", "shape": ['),
        head.replace(b'"video_ids": ["a", "b"]', b'"video_ids": ["a", "a"]'),
        head.replace(b'"video_ids": ["a", "b"]', b'"video_ids": ["a"     ]'),
        head.replace(b'"durations_s": [3.0', b'"durations_s": [-30'),
        head.replace(b'"norm": 1', b'"norm": {'),
        b"\xff" * 8 + head[8:],
        head[:8] + b"[" * 200 + head[208:],
    ):
        assert made_up != head
        write(made_up)
        with refused("is not the shard that the manifest names"):
            MomentIndex.open(index.path)
    write(head, num_windows=400)
    with refused("is not the shard that the manifest names"):
        MomentIndex.open(index.path)
    for changes, said in (
        ({"removed": [5]}, r"removed: expected rising numbers below 2, got \(5,\)$"),
        ({"removed": [1, 1]}, "removed: expected rising numbers"),
        ({"head_bytes": len(whole) + 1}, "head_bytes: expected a number from 8 to"),
    ):
        write(head, **changes)
        with refused(said):
            MomentIndex.open(index.path)
    write(head)
    assert MomentIndex.open(index.path).video_ids == ["a", "b", "c", "d"]


def _shard(index: MomentIndex, number: int) -> Path:
    records = json.loads((index.path / "manifest.json").read_text())["shards"]
    return index.path / "shards" / records[number]["file"]


def test_damaged_shards(index: MomentIndex, engine: mmn_fast.Engine) -> None:
    whole = _shard(index, 0).read_bytes()
    rows = bytearray(whole)
    rows[-1] ^= 1
    _shard(index, 0).write_bytes(rows)
    assert len(index.verify()) == 1
    assert "with 2 videos, is damaged: its checksum differs" in index.verify()[0]
    head = bytearray(whole)
    head[20] ^= 1
    _shard(index, 0).write_bytes(head)
    with refused("is damaged: the checksum of its catalogue differs; copy the index again, or let"):
        MomentIndex.open(index.path)
    _shard(index, 0).write_bytes(whole[:-1])
    with refused(f"is damaged: expected {len(whole)} bytes, got {len(whole) - 1}; "):
        MomentIndex.open(index.path)
    _shard(index, 0).unlink()
    with refused("safetensors is missing; copy the index again, or let"):
        MomentIndex.open(index.path)
    with refused("safetensors is missing"):
        index.compact()
    assert len(verify(index.path)) == 1
    assert index.video_ids == ["a", "b", "c", "d"]
    assert len(writing.drop_damaged(index.path)) == 1
    assert writing.drop_damaged(index.path) == []
    assert index.refresh()
    assert index.video_ids == ["c", "d"]
    assert index.add(random_videos(engine, ["a", "b"], 1, cut=(1,))) == 2
    assert_exact(index, engine, random_text(engine, 2))


def test_a_full_disk_leaves_the_last_state(index: MomentIndex, engine: mmn_fast.Engine) -> None:
    text, before = random_text(engine, 2), sorted(index.path.rglob("*"))
    index.remove(["a"])
    kept, limit = index.search(text, 10, 3), resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (0, 300, 5000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limit[1]))
        try:
            for change in (
                lambda: index.add(random_videos(engine, ["e"], 3)),
                lambda: index.remove(["b"]),
                index.compact,
            ):
                if most == 5000 and change is not index.compact:
                    continue
                with pytest.raises(WriteError, match="^index: cannot write .*File too large$"):
                    change()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert index.search(text, 10, 3) == kept
        assert {path.name for path in index.path.rglob("*")} == {path.name for path in before} | {"write.lock"}
    index.add(random_videos(engine, ["e"], 3))
    assert_exact(index, engine, text)


def test_one_writer_at_a_time(index: MomentIndex, engine: mmn_fast.Engine) -> None:
    lock = locks.take(index.path / "write.lock", make=True)
    assert lock is not None
    for change in (index.compact, lambda: index.remove(["a"]), lambda: index.add([])):
        with refused("^index: .*it is being written by another process or call; wait for it to end$"):
            change()
    assert in_fork(lambda: locks.take(index.path / "write.lock")) is None
    locks.release(lock)
    assert index.remove(["a"]) == 1

    def add_while_adding() -> Iterator[VideoEmbeddings]:
        yield random_videos(engine, ["e"], 3)
        with refused("is being written by another"):
            index.add(random_videos(engine, ["f"], 4))

    assert index.add(add_while_adding()) == 1
    assert index.video_ids == ["b", "c", "d", "e"]


def test_a_file_system_without_locks_is_refused(index: MomentIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(WriteError, match="^index: cannot lock .*write.lock: No locks available$"):
        index.remove(["a"])
    assert len(index.search(random_text(index._engine, 1), 9)[0]) == 4  # type: ignore[arg-type]


def test_a_directory_that_now_holds_another_models_index(
    index: MomentIndex, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = mmn_fast.load("demo", device="cpu")
    index.path.rename(tmp_path / "old")
    MomentIndex.create(index.path, other).close()
    with refused("now holds an index of another model, .*; open it again$"):
        index.refresh()
    assert index.video_ids == ["a", "b", "c", "d"]
