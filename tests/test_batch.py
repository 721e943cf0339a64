"""`encode_dataset` on a Ray cluster of two nodes gives the index of one process, whatever dies meanwhile.

The tests with a cluster take minutes and need the extra `ray`: `pytest -m long tests/test_batch.py`.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import mmn_fast
from mmn_fast import MomentIndex, Video
from mmn_fast.batch import EncodingReport, dataset, encode_dataset
from mmn_fast.batch.cluster import check_answers, host_and_port, init_options
from mmn_fast.batch.dataset import Pipeline, Pool, _blocks, _portions
from mmn_fast.batch.encode import absolute_spec, actors_for
from mmn_fast.batch.encoder import Encoder, Failed, Work, serve
from mmn_fast.embeddings import VideoEmbeddings
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.features.extraction.videos import VideoFile
from mmn_fast.process.child import GONE, Child
from tests.batch_task import Extractor, Holder, ending, files_of, its_actor, own_process, raising
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


def test_an_extractor_that_cannot_be_made_is_one_sentence(engine: mmn_fast.Engine) -> None:
    encoder = Encoder(Work(pickle.dumps(engine), mmn_fast.Engine.extractor))
    assert "does not say how its features are made" in str(encoder.prepare(True))
    encoder = Encoder(Work(pickle.dumps(engine), raising))
    assert encoder.prepare(True) == "extractor: ValueError: no such network"


@pytest.mark.parametrize(
    ("error", "why"),
    [(RuntimeError("odd frame\nand more"), "RuntimeError: odd frame"), (MemoryError(), "not enough memory")],
)
def test_an_error_of_an_extractor_names_the_file(engine: mmn_fast.Engine, error: Exception, why: str) -> None:
    def read(path: Path) -> Any:
        raise error

    encoder = Encoder(Work(pickle.dumps(engine), lambda engine: SimpleNamespace(contract=None, read=read)))
    assert encoder.prepare(True) is None
    assert encoder.encode([VideoFile("a", Path("/a.mp4"))]) == [Failed("/a.mp4", f"/a.mp4: {why}")]


def test_a_process_encodes_until_it_is_killed(engine: mmn_fast.Engine) -> None:
    child, videos = Child(serve), _videos(engine, 2)
    child.connection.send_bytes(pickle.dumps(Work(pickle.dumps(engine), mmn_fast.Engine.extractor)))
    child.connection.send(False)
    assert child.connection.recv() is None
    child.connection.send_bytes(pickle.dumps(videos))
    found = pickle.loads(child.connection.recv_bytes())
    assert [one.name for one in found] == ["video 0", "video 1"]
    for result, video in zip(found, videos, strict=True):
        assert result.embeddings.contrastive.tobytes() == engine.encode_video([video]).contrastive.tobytes()
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(GONE):
        child.connection.recv_bytes()
    assert child.end() == "signal 9 (SIGKILL)"


def test_a_process_without_the_callers_modules_says_so() -> None:
    child = Child(serve)
    child.connection.send_bytes(b"cno_such_module\nfunction\n.")
    assert child.connection.recv() == (
        "extractor: cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert child.end() == "exit status 0"


@pytest.mark.parametrize("dies", [False, True], ids=["no process", "processes that die"])
def test_an_actor_comes_to_an_end_when_nobody_counts_deaths(
    engine: mmn_fast.Engine, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    ray = pytest.importorskip("ray")
    from mmn_fast.batch.actor import EncodeVideos

    def gone(what: Any = None) -> Any:
        raise ray.exceptions.RayActorError

    actor = object.__new__(EncodeVideos)
    actor._deaths = SimpleNamespace(begin=SimpleNamespace(remote=gone))
    actor._child, actor._error = (object() if dies else None), None  # type: ignore[assignment]
    monkeypatch.setattr(actor, "_ask", lambda videos: None)
    (failed,) = pickle.loads(actor._results(1, pickle.dumps(_videos(engine, 1))))
    assert failed == Failed("video 0", "video 0: the process that encoded it ended, 3 times")


def _names(block: Any) -> list[str]:
    return list(block.video_ids) if isinstance(block, VideoEmbeddings) else [item.video_id for item in block]


def test_blocks_keep_the_order(engine: mmn_fast.Engine) -> None:
    videos, file = _videos(engine, 7), VideoFile("file", Path("/file.mp4"))
    items = [*videos[:3], file, file, engine.encode_video(videos[3:5]), *videos[5:]]
    blocks = list(_blocks(deque(items), 2))
    wanted = [["video 0", "video 1"], ["video 2"], ["file"], ["file"], ["video 3", "video 4"], ["video 5", "video 6"]]
    assert [_names(block) for block in blocks] == wanted
    assert [isinstance(block, VideoEmbeddings) for block in blocks].index(True) == 4


def test_portions_are_bounded(engine: mmn_fast.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = _videos(engine, 5)
    assert [len(one) for one in _portions(iter(videos))] == [5]
    assert list(_portions(iter([]))) == []
    monkeypatch.setattr(dataset, "_ITEMS", 2)
    taken = list[str]()

    def read() -> Iterator[Video]:
        for video in videos:
            taken.append(video.video_id)
            yield video

    portions = _portions(read())
    assert (len(next(portions)), len(taken)) == (2, 2)  # no more is read than what is encoded next
    assert [len(one) for one in portions] == [2, 1]
    monkeypatch.setattr(dataset, "_ITEMS", 100)
    monkeypatch.setattr(dataset, "_BYTES", videos[0].features.nbytes + 1)
    assert [len(one) for one in _portions(iter(videos))] == [2, 1, 1, 1]
    monkeypatch.setattr(dataset, "_BYTES", 1 << 30)
    monkeypatch.setattr(dataset, "_GATHER_S", -1.0)
    assert [len(one) for one in _portions(iter(videos))] == [1] * 5


@pytest.mark.parametrize(
    ("address", "place"),
    [("127.0.0.1:6379", ("127.0.0.1", 6379)), ("auto", None), ("local", None)],
)
def test_addresses(address: str, place: Any) -> None:
    assert host_and_port(address) == place
    own = address in ("127.0.0.1:6379", "local")
    assert init_options(address).get("_node_ip_address") == ("127.0.0.1" if own else None)


def test_ray_client_is_refused() -> None:
    with pytest.raises(InputError, match="expected HOST:PORT, auto or local, on a machine of the cluster, got 'ray://"):
        check_answers("ray://127.0.0.1:10001")


def test_how_many_processes(caplog: pytest.LogCaptureFixture) -> None:
    machines = [(8.0, 1.0), (8.0, 1.0)]
    assert actors_for(machines, None, 1, 0) == 16
    assert actors_for(machines, None, 1, 0.5) == 4
    assert actors_for(machines, 3, 1, 0) == 3
    assert not caplog.text
    assert actors_for(machines, 3, 5, 0) == 2
    assert "actors: the cluster has room for 2 of 3 processes" in caplog.text
    assert (actors_for(machines, 3, 0, 0), actors_for(machines, None, 0, 0)) == (3, 1)
    with pytest.raises(InputError, match="needs 9 CPUs and 1 GPUs, but no machine of the cluster has as many: 8 and 1"):
        actors_for(machines, 16, 9, 1)


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
@pytest.mark.parametrize("at_most", [10_000, 15])
def test_a_cluster_makes_the_index_of_one_process(
    engine: mmn_fast.Engine, ray_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_most: int
) -> None:
    monkeypatch.setattr(dataset, "_ITEMS", at_most)
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


def _of_files(path: Path, engine: mmn_fast.Engine, videos: list[Video]) -> Path:
    """The index that the files of `Extractor` must give."""
    return _of_one_process(path, engine, [Video(one.features, 4.0, f"video {n}") for n, one in enumerate(videos)])


def _encode_files(
    videos: list[Video], engine: mmn_fast.Engine, root: Path, cluster: Cluster, progress: Callable[[int], object]
) -> EncodingReport:
    """Encode the files of `Extractor` on two actors; check that the index is that of one process."""
    report = encode_dataset(
        files_of(videos),
        engine,
        root / "it",
        address=cluster.address,
        actors=2,
        extractor=Extractor(videos),
        progress=progress,
    )
    assert (report.added, report.failed) == (len(videos), {})
    _assert_equal(root / "it", _of_files(root / "one", engine, videos))
    return report


@pytest.mark.long
@pytest.mark.parametrize("name", ["EncodeVideos", "batch.encoder"], ids=["actor", "its process"])
def test_a_process_that_is_killed_is_replaced(
    engine: mmn_fast.Engine, ray_cluster: Cluster, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    videos, killed = _videos(engine, 60), list[int]()

    def kill(done: int) -> None:
        if done == 10:
            killed.append(ray_cluster.kill_worker(name))

    report = _encode_files(videos, engine, tmp_path, ray_cluster, kill)
    assert (len(killed), report.replaced) == (1, 1)
    assert "1 processes of the cluster ended and were replaced" in caplog.text


@pytest.mark.long
@pytest.mark.parametrize("ends", [own_process, its_actor], ids=["its process", "the actor"])
def test_a_video_that_crashes_its_process_is_left_out(
    engine: mmn_fast.Engine, ray_cluster: Cluster, tmp_path: Path, ends: Callable[[], tuple[int, int]]
) -> None:
    videos = _videos(engine, 4)
    files = files_of(videos)
    files.insert(1, VideoFile("crash", Path("/crash.mp4")))
    report = encode_dataset(
        files,
        engine,
        tmp_path / "it",
        address=ray_cluster.address,
        extractor=Extractor(videos, 0.0, ends),
    )
    assert report.failed == {"/crash.mp4": "/crash.mp4: the process that encoded it ended, 3 times"}
    assert (report.added, report.replaced) == (4, 3)
    _assert_equal(tmp_path / "it", _of_files(tmp_path / "one", engine, videos))


@pytest.mark.long
def test_processes_that_end_while_they_load_end_the_run(
    engine: mmn_fast.Engine, ray_cluster: Cluster, tmp_path: Path
) -> None:
    match = r"processes of the cluster end while they load the model: signal 9 \(SIGKILL\)"
    for extractor, error in [
        (ending, BackendUnavailable(match)),
        (raising, InputError("ValueError: no such network")),
    ]:
        with pytest.raises(type(error), match=str(error)):
            encode_dataset(
                files_of(_videos(engine, 9)), engine, tmp_path / "it", address=ray_cluster.address, extractor=extractor
            )


@pytest.mark.long
def test_a_busy_cluster_is_waited_for_and_said(
    engine: mmn_fast.Engine, ray_cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    ray.init(**init_options(ray_cluster.address))
    try:
        holders = [ray.remote(Holder).options(num_cpus=1).remote() for _ in range(2)]
        ray.get([holder.begin.remote() for holder in holders])
        end = threading.Timer(5.0, lambda: [ray.kill(holder) for holder in holders])
        end.start()
        report = encode_dataset(_videos(engine, 2), engine, tmp_path / "it")
        end.join()
    finally:
        ray.shutdown()
    assert report.added == 2
    assert "the cluster is busy, and the run waits: 0 of 1 CPUs that a process needs are free" in caplog.text


@pytest.mark.long
def test_a_closed_run_leaves_no_process_and_no_thread(engine: mmn_fast.Engine, ray_cluster: Cluster) -> None:
    import ray

    def running() -> list[str]:
        names = "EncodeVideos", "batch.encoder", "Deaths"
        return [f"{name} {pid}" for node in ray_cluster.nodes for name in names for pid in node.workers(name)]

    ray.init(**init_options(ray_cluster.address))
    try:
        pipeline = Pipeline(
            ray, Work(pickle.dumps(engine), mmn_fast.Engine.extractor), Pool(2, 1.0, 0.0), engine.preset
        )
        before = {thread.name for thread in threading.enumerate()}
        results = pipeline.run(iter(_videos(engine, 60)))
        next(results)
        assert len(running()) >= 2
        results.close()
        end = time.monotonic() + 20
        while running():
            assert time.monotonic() < end, running()
            time.sleep(0.1)
        assert {thread.name for thread in threading.enumerate()} <= before
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
    assert done.stderr.count("bad.mp4") == 1
    assert run_here("index", "add", "one", "films").returncode == 1
    _assert_equal(Path("it"), Path("one"))


@pytest.mark.long
def test_a_node_that_goes_away_is_done_without(engine: mmn_fast.Engine, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    videos = _videos(engine, 60)
    with cluster() as made:

        def kill(done: int) -> None:
            if done == 10:
                made.nodes[1].kill()

        _encode_files(videos, engine, tmp_path, made, kill)
