"""`encode_dataset` on a Ray cluster of two nodes gives the index of one process, whatever dies meanwhile.

The tests with a cluster take minutes and need the extra `ray`: `pytest -m long tests/test_batch.py`.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmn_fast
from mmn_fast import MomentIndex, Video
from mmn_fast.batch import Fleet, encode_dataset
from mmn_fast.batch.cluster import host_and_port, init_options
from mmn_fast.batch.encode import absolute_spec, actors_for
from mmn_fast.batch.encoder import Encoder, Failed, Work
from mmn_fast.errors import InputError
from mmn_fast.features.extraction.videos import VideoFile
from tests.command import run_here
from tests.index_task import tiny_engine
from tests.ray_cluster import Cluster, cluster
from tests.videos import write_video


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> mmn_fast.Engine:
    return tiny_engine(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray")
    with cluster() as made:
        yield made


def _videos(engine: mmn_fast.Engine, count: int) -> list[Video]:
    rng = np.random.default_rng(count)
    rows = [rng.standard_normal((3 + n % 5, engine.preset.input_size), np.float32) for n in range(count)]
    return [Video(one, 4.0 + n % 3, f"video {n}") for n, one in enumerate(rows)]


def _assert_equal(path: Path, other: Path) -> None:
    """Two indexes hold the same videos in the same order, bit for bit."""
    with MomentIndex.open(path) as mine, MomentIndex.open(other) as theirs:
        assert mine.video_ids == theirs.video_ids
        ours, others = mine.embeddings(), theirs.embeddings()
        assert ours.contrastive.tobytes() == others.contrastive.tobytes()
        assert ours.iou.tobytes() == others.iou.tobytes()
        assert (ours.durations_s, ours.spans) == (others.durations_s, others.spans)


def _of_one_process(path: Path, engine: mmn_fast.Engine, videos: list[Video]) -> Path:
    with MomentIndex.create(path, engine) as index:
        index.add(videos)
    return path


def test_a_faulty_video_fails_alone(engine: mmn_fast.Engine, tmp_path: Path) -> None:
    videos = _videos(engine, 3)
    bad = Video(np.full_like(videos[1].features, np.nan), 4.0, "bad")
    (tmp_path / "no video.mp4").write_bytes(b"text")
    encoder = Encoder(Work(pickle.dumps(engine), mmn_fast.Engine.extractor))
    assert encoder.prepare(False) is None
    found = encoder.encode([videos[0], bad, videos[2]])
    assert isinstance(found[1], Failed)
    assert found[1].name == "bad"
    assert found[1].reason.startswith("video 'bad'.features: expected")
    for number in (0, 2):
        alone = engine.encode_video([videos[number]])
        assert found[number].embeddings.contrastive.tobytes() == alone.contrastive.tobytes()
    (failed,) = encoder.encode([VideoFile("no video", tmp_path / "no video.mp4")])
    assert isinstance(failed, Failed)
    assert failed.name == str(tmp_path / "no video.mp4")


def test_a_model_that_is_not_there_is_one_sentence(engine: mmn_fast.Engine) -> None:
    encoder = Encoder(Work(pickle.dumps(engine), mmn_fast.Engine.extractor))
    assert "does not say how its features are made" in str(encoder.prepare(True))


@pytest.mark.parametrize(
    ("address", "place"),
    [("127.0.0.1:6379", ("127.0.0.1", 6379)), ("auto", None), ("local", None), ("ray://host:10001", None)],
)
def test_addresses(address: str, place: Any) -> None:
    assert host_and_port(address) == place
    own = address in ("127.0.0.1:6379", "local")
    assert init_options(address).get("_node_ip_address") == ("127.0.0.1" if own else None)


def test_how_many_processes() -> None:
    assert actors_for(16, 2, None, 1, 0) == 16
    assert actors_for(16, 2, None, 1, 0.5) == 4
    assert actors_for(16, 2, 3, 1, 0) == 3
    assert actors_for(2, 0, 3, 1, 0) == 2
    with pytest.raises(InputError, match="needs 1 CPUs and 1 GPUs, but the whole cluster has 16 and 0"):
        actors_for(16, 0, None, 1, 1)


def test_names_of_extractors_do_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_spec("onnx:net.onnx") == f"onnx:{tmp_path}/net.onnx"
    assert absolute_spec("hf:openai/clip") == "hf:openai/clip"
    assert (absolute_spec("pixels"), absolute_spec(None)) == ("pixels", None)


def test_without_ray_a_sentence_says_what_to_install(
    engine: mmn_fast.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"ray: needs Ray \(pip install mmn_fast\[ray\]\)"):
        encode_dataset([], engine, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_arguments_are_refused_before_anything_starts(engine: mmn_fast.Engine, tmp_path: Path) -> None:
    for given, match in [
        ({"actors": 0}, "actors: expected an integer"),
        ({"num_cpus": -1}, "num_cpus: expected"),
        ({"replace": 1}, "replace: expected"),
        ({"window_s": -1.0}, "window_s: expected"),
    ]:
        with pytest.raises(InputError, match=match):
            encode_dataset([], engine, tmp_path / "index", **given)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="videos: expected files or a list of Video, got int"):
        encode_dataset(3, engine, tmp_path / "index")  # type: ignore[call-overload]


@pytest.mark.long
def test_no_cluster_is_one_sentence(engine: mmn_fast.Engine, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match="address: no Ray cluster answers at '127.0.0.1:1'"):
        encode_dataset([], engine, tmp_path / "index", address="127.0.0.1:1")


@pytest.mark.long
def test_a_cluster_makes_the_index_of_one_process(
    engine: mmn_fast.Engine, ray_cluster: Cluster, tmp_path: Path
) -> None:
    videos = _videos(engine, 40)
    bad = Video(np.full_like(videos[1].features, np.nan), 4.0, "bad")
    given = [*videos[:5], bad, *videos[5:20], engine.encode_video(videos[20:30]), *videos[30:]]
    report = encode_dataset(iter(given), engine, tmp_path / "it", address=ray_cluster.address)
    assert (report.added, report.kept, list(report.failed), report.replaced) == (40, 0, ["bad"], 0)
    _assert_equal(tmp_path / "it", _of_one_process(tmp_path / "one", engine, videos))
    again = encode_dataset([*videos, *_more(engine)], engine, tmp_path / "it", address=ray_cluster.address)
    assert (again.added, again.kept) == (2, 40)


def _more(engine: mmn_fast.Engine) -> list[Video]:
    return [Video(one.features, 5.0, f"more {n}") for n, one in enumerate(_videos(engine, 2))]


@pytest.mark.long
def test_a_worker_that_is_killed_is_replaced(engine: mmn_fast.Engine, ray_cluster: Cluster, tmp_path: Path) -> None:
    videos, killed = _videos(engine, 300), list[int]()

    def slowly() -> Iterator[Video]:
        for number, video in enumerate(videos):
            if number == 200:  # far beyond what is read ahead, so the actors are at work
                killed.append(ray_cluster.kill_worker("Encoder"))
            yield video

    report = encode_dataset(slowly(), engine, tmp_path / "it", address=ray_cluster.address, actors=2)
    assert (len(killed), report.replaced) == (1, 1)
    assert (report.added, report.failed) == (300, {})
    _assert_equal(tmp_path / "it", _of_one_process(tmp_path / "one", engine, videos))


class _Crashing:
    """An extractor whose process is killed by one video, as by a fault in a decoder."""

    contract = None

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def read(self, path: Path) -> Any:
        from types import SimpleNamespace

        if path.name == "crash.mp4":
            os.kill(os.getpid(), signal.SIGSEGV)
        return SimpleNamespace(rows=self._rows, duration_s=4.0, lost=None)


class _MakeCrashing:
    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def __call__(self, engine: mmn_fast.Engine) -> Any:
        return _Crashing(self._rows)


@pytest.mark.long
def test_a_video_that_crashes_its_process_is_left_out(
    engine: mmn_fast.Engine, ray_cluster: Cluster, tmp_path: Path
) -> None:
    files = [VideoFile(name, tmp_path / f"{name}.mp4") for name in ("a", "crash", "b", "c", "d")]
    make = _MakeCrashing(_videos(engine, 1)[0].features)
    report = encode_dataset(files, engine, tmp_path / "it", address=ray_cluster.address, extractor=make)
    assert list(report.failed) == [str(tmp_path / "crash.mp4")]
    assert report.failed[str(tmp_path / "crash.mp4")] == "the process that encoded it ended, 3 times"
    assert (report.added, report.replaced) == (4, 3)
    with MomentIndex.open(tmp_path / "it") as index:
        assert index.video_ids == ["a", "b", "c", "d"]


@pytest.mark.long
def test_a_closed_run_leaves_no_actor(engine: mmn_fast.Engine, ray_cluster: Cluster) -> None:
    import ray

    ray.init(**init_options(ray_cluster.address))
    try:
        fleet = Fleet(ray, Work(pickle.dumps(engine), mmn_fast.Engine.extractor), 2, 1.0, 0.0)
        results = fleet.run(iter(_videos(engine, 60)))
        next(results)
        assert any(node.workers("Encoder") for node in ray_cluster.nodes)
        results.close()
        end = time.monotonic() + 20
        while any(node.workers("Encoder") for node in ray_cluster.nodes):
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        ray.shutdown()


@pytest.mark.long
def test_index_add_with_ray(ray_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("films").mkdir()
    for number in range(4):
        write_video(Path("films") / f"{number}.mp4")
    (Path("films") / "bad.mp4").write_bytes(b"text")
    for name in ("it", "one"):
        assert run_here("index", "create", name, "--model", "demo").returncode == 0
    done = run_here("index", "add", "it", "films", "--ray", ray_cluster.address, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["added"], report["videos"]) == (1, 4, 4)
    assert list(report["skipped"]) == [str(tmp_path / "films" / "bad.mp4")]
    assert run_here("index", "add", "one", "films").returncode == 1
    _assert_equal(Path("it"), Path("one"))


@pytest.mark.long
def test_a_node_that_goes_away_is_done_without(engine: mmn_fast.Engine, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    videos = _videos(engine, 300)
    with cluster() as made:

        def slowly() -> Iterator[Video]:
            for number, video in enumerate(videos):
                if number == 200:
                    made.nodes[1].kill()
                yield video

        report = encode_dataset(slowly(), engine, tmp_path / "it", address=made.address, actors=2)
    assert (report.added, report.failed) == (300, {})
    _assert_equal(tmp_path / "it", _of_one_process(tmp_path / "one", engine, videos))
