"""The commands `index ...` and `search`, as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import mmn_fast
from mmn_fast import MomentIndex
from tests.command import run_here
from tests.index_task import tiny_engine
from tests.videos import write_video

SENTENCES = ["the dog", "a dog"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> mmn_fast.Engine:
    return tiny_engine(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(engine: mmn_fast.Engine) -> Path:
    return Path(engine.info()["model"])


def _features(path: Path, engine: mmn_fast.Engine, names: list[str], durations: bool = True) -> list[mmn_fast.Video]:
    """Write features of some videos; the videos themselves are returned."""
    rng, videos = np.random.default_rng(len(names)), []
    with h5py.File(path, "w") as file:
        for number, name in enumerate(names):
            rows = rng.standard_normal((4 + number, engine.preset.input_size), np.float32)
            file[name] = rows
            if durations:
                file[name].attrs["duration_s"] = 5.0 + number
            videos.append(mmn_fast.Video(rows, 5.0 + number, name))
    return videos


def _created(path: Path, model: Path | str, *more: str) -> Path:
    done = run_here("index", "create", path, "--model", model, *more)
    assert (done.returncode, done.stderr) == (0, "")
    return path


def test_from_features_to_moments(engine: mmn_fast.Engine, model: Path, tmp_path: Path) -> None:
    videos = _features(tmp_path / "f.h5", engine, ["a", "b", "c"])
    path = _created(tmp_path / "it", model, "--storage", "fp32")
    done = run_here("index", "add", path, tmp_path / "f.h5")
    assert done.returncode == 0
    assert done.stdout.startswith(f"{path}: 3 videos added; 3 videos, ")
    found = run_here("search", path, "-q", SENTENCES[0], "-q", SENTENCES[1], "-k", "4", "--per-video", "2", "--json")
    with MomentIndex.open(path, engine) as index:
        wanted = index.search(SENTENCES, 4, 2)
        scores = engine.score(engine.encode_video(videos), engine.encode_text(SENTENCES), 1)
        best = max((scores[v][0][0].score, -v) for v in range(3))
    assert wanted[0][0].score == best[0]
    answer = json.loads(found.stdout)
    assert [one["moments"] for one in answer["results"]] == [[m.to_dict() for m in of] for of in wanted]
    assert (answer["videos"], answer["cut"]) == (3, [])
    table = run_here("search", path, "-q", SENTENCES[0], "--video", "b", "--video", "c", "-k", "1").stdout.splitlines()
    assert table[0] == SENTENCES[0]
    assert table[1].split()[0] == "1"
    assert table[1].split()[1] in "bc"
    assert run_here("search", path, "-q", "the dog", "--min-score", "1.5").stdout.endswith("nothing found\n")


def test_what_is_in_is_skipped_and_counted(engine: mmn_fast.Engine, model: Path, tmp_path: Path) -> None:
    videos = _features(tmp_path / "f.h5", engine, ["a", "b"])
    engine.encode_video([*videos, mmn_fast.Video(videos[0].features, 3.0, "c")]).save(tmp_path / "e.safetensors")
    path = _created(tmp_path / "it", model)
    assert run_here("index", "add", path, tmp_path / "f.h5").returncode == 0
    done = run_here("index", "add", path, tmp_path / "e.safetensors", "--json")
    report = json.loads(done.stdout)
    assert (report["added"], report["kept"], report["videos"], report["skipped"]) == (1, 2, 3, {})
    done = run_here("index", "add", path, tmp_path / "f.h5", "--replace")
    assert done.stdout.startswith(f"{path}: 2 videos added; 3 videos, ")
    with MomentIndex.open(path) as index:
        assert index.video_ids == ["c", "a", "b"]
    assert "2 were there" in run_here("index", "add", path, tmp_path / "f.h5").stdout
    done = run_here("index", "remove", path, "a", "c")
    assert done.stdout == f"{path}: 2 videos removed; 1 videos\n"
    assert "became free; 1 files" in run_here("index", "compact", path).stdout
    facts = json.loads(run_here("index", "info", path, "--json").stdout)
    assert (facts["videos"], facts["removed"], facts["shards"], facts["model"]) == (1, 0, 1, str(model))
    assert "storage: fp16" in run_here("index", "info", path).stdout
    assert run_here("index", "verify", path).stdout == f"{path}: all checksums are right\n"


def test_damaged_files_are_named_and_taken_out(engine: mmn_fast.Engine, model: Path, tmp_path: Path) -> None:
    path = _created(tmp_path / "it", model)
    for name in ("a", "b"):
        _features(tmp_path / "f.h5", engine, [name])
        run_here("index", "add", path, tmp_path / "f.h5")
    shard = sorted((path / "shards").iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    done = run_here("index", "verify", path)
    assert done.returncode == 1
    assert "with 1 video, is damaged: its checksum differs" in done.stdout
    assert json.loads(run_here("index", "verify", path, "--drop-damaged", "--json").stdout)["dropped"] is True
    assert run_here("index", "verify", path).returncode == 0
    with MomentIndex.open(path) as index:
        assert index.video_ids == ["b"]


def test_lengths_of_videos_from_another_file(engine: mmn_fast.Engine, model: Path, tmp_path: Path) -> None:
    _features(tmp_path / "f.h5", engine, ["a", "b"], durations=False)
    path = _created(tmp_path / "it", model)
    done = run_here("index", "add", path, tmp_path / "f.h5")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--durations: none given, and " in done.stderr
    (tmp_path / "some.json").write_text('{"a": 7}')
    done = run_here("index", "add", path, tmp_path / "f.h5", "--durations", tmp_path / "some.json")
    assert done.returncode == 2
    assert "some.json lacks the lengths of 1 of the 2 videos of" in done.stderr
    (tmp_path / "all.json").write_text('{"a": 7, "b": {"duration": 8.5, "timestamps": [], "sentences": []}}')
    done = run_here("index", "add", path, tmp_path / "f.h5", "--durations", tmp_path / "all.json", "--window", "4")
    assert done.returncode == 0
    with MomentIndex.open(path) as index:
        assert (index.duration_s("a"), index.duration_s("b")) == (7.0, 8.5)
        assert index.info()["windows"] > 2


def test_bad_input_is_one_sentence(engine: mmn_fast.Engine, model: Path, tmp_path: Path) -> None:
    path = _created(tmp_path / "it", model)
    _features(tmp_path / "f.h5", engine, ["a"])
    _features(tmp_path / "g.h5", engine, ["a", "b"])
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    cases = [
        (("index", "create", path, "-m", model), "INDEX: "),
        (
            ("index", "create", tmp_path / "new", "-m", model, "--storage", "fp8"),
            "--storage: expected fp16, fp32, int8",
        ),
        (("index", "info", tmp_path / "new"), "INDEX: "),
        (("index", "add", path, tmp_path / "none.h5"), "SOURCES: "),
        (("index", "add", path, tmp_path / "bad.safetensors"), "SOURCES: "),
        (("index", "add", path, tmp_path / "f.h5", tmp_path / "g.h5"), "SOURCES: expected every video once, got 'a'"),
        (("index", "add", path, tmp_path / "f.h5", "-m", "demo"), "sources: ", "engine: "),
        (("index", "remove", path, "zebra"), "VIDEO_IDS: 'zebra' is not in"),
        (("search", path, "-q", "the dog", "--video", "zebra"), "--video: 'zebra' is not in"),
        (("search", path, "-q", "the dog", "-k", "0"), "--top-k: expected an integer >= 1, got 0"),
        (("search", path, "-q", ""), ""),
        (("search", tmp_path, "-q", "the dog"), "INDEX: "),
    ]
    for arguments, *starts in cases:
        done = run_here(*arguments)
        if arguments[-1] != "":
            assert done.returncode == 2, arguments
            assert done.stderr.startswith(tuple(f"mmn-fast: {start}" for start in starts)), done.stderr
            assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "new").exists()


def test_videos_go_in_through_the_extractor_of_the_models_contract(tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    for name in ("a", "b"):
        write_video(folder / f"{name}.mp4", 20)
    (folder / "c.mp4").write_bytes(b"no video")
    path = _created(tmp_path / "it", "demo")
    done = run_here("index", "add", path, folder, "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert (report["added"], list(report["skipped"])) == (2, [str(folder / "c.mp4")])
    assert done.stderr.startswith("mmn-fast: warning: skipped: ")
    done = run_here("index", "add", path, folder / "a.mp4", folder / "b.mp4")
    assert done.returncode == 0
    assert "0 videos added, 2 were there" in done.stdout
    engine = mmn_fast.load("demo", device="cpu")
    with MomentIndex.open(path, engine) as index:
        assert index.model == "demo"
        video = mmn_fast.Video.open(folder / "a.mp4", engine.extractor())
        encoded = engine.encode_video([video])
        assert np.array_equal(index.embeddings(["a"]).iou, encoded.iou.astype(np.float16).astype(np.float32))


@pytest.mark.slow
def test_a_killed_add_goes_on(engine: mmn_fast.Engine, model: Path, tmp_path: Path) -> None:
    _features(tmp_path / "f.h5", engine, [f"{number:03d}" for number in range(400)])
    path = _created(tmp_path / "it", model)
    code = (
        "import sys; from mmn_fast.index import writing; writing.COMMIT_S = 0.0;"
        f"sys.argv = ['mmn-fast', 'index', 'add', {str(path)!r}, {str(tmp_path / 'f.h5')!r}];"
        "from mmn_fast.cli import main; main()"
    )
    for signal_number in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(os.listdir(path / "shards"))
        while len(os.listdir(path / "shards")) < before + 5:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal_number)
        process.wait()
    with MomentIndex.open(path) as index:
        kept = len(index)
    assert 5 <= kept < 400
    report = json.loads(run_here("index", "add", path, tmp_path / "f.h5", "--json").stdout)
    assert (report["kept"], report["added"], report["videos"]) == (kept, 400 - kept, 400)
    assert run_here("index", "verify", path).returncode == 0
