"""The commands, run like a user runs them: printed text, written files, and exit status 2 for bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmarks.golden import cases, recipe
from mmn_fast.presets import PRESETS
from tests.command import run_here

CASE = cases.load("charades_small")
Files = Callable[[str], Path]

# The golden case's sizes as a user's changes to the official configuration file.
YAML = """
MODEL:
  MMN:
    NUM_CLIPS: 16
    JOINT_SPACE_SIZE: 24
    FEATPOOL: {INPUT_SIZE: 20, HIDDEN_SIZE: 32, KERNEL_SIZE: 2}
    FEAT2D: {NAME: pool, POOLING_COUNTS: [15]}
    PREDICTOR: {HIDDEN_SIZE: 48, KERNEL_SIZE: 5, NUM_STACK_LAYERS: 8}
DATASETS: {NAME: charades}
INPUT: {NUM_PRE_CLIPS: 32}
"""


def _run(*arguments: object, status: int = 0, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in this process; with `env`, in a new process, because a process reads some variables only once."""
    if env is None:
        done = run_here(*arguments)
    else:
        command = [sys.executable, "-m", "mmn_fast", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, timeout=300)
    assert done.returncode == status, done.stderr
    if status == 2:
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
    return done


def _refusal(*arguments: object, env: dict[str, str] | None = None) -> str:
    """Run a call that must be refused; return the one sentence that it prints."""
    lines = _run(*arguments, status=2, env=env).stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def files(golden_files: Files, tmp_path: Path) -> Path:
    """A directory with the case's official checkpoint, features, tokenizer and configuration file."""
    (tmp_path / "official.yaml").write_text(YAML)
    for name in ("model.pth", "features.h5", "vocab.txt"):
        (tmp_path / name).symlink_to(golden_files(CASE.name) / name)
    return tmp_path


def _annotations(path: Path, num_videos: int = 3) -> Path:
    content = {
        video.video_id: {
            "duration": video.duration_s,
            "timestamps": [[1.0, 5.0]] * len(video.sentences),
            "sentences": video.sentences,
        }
        for video in CASE.videos[:num_videos]
    }
    path.write_text(json.dumps(content))
    return path


def test_convert_then_ground_gives_the_official_moments(files: Path) -> None:
    done = _run(
        *("convert", files / "model.pth", "--preset", files / "official.yaml"),
        *("--tokenizer", files / "vocab.txt", "-o", files / "model"),
    )
    assert str(files / "model") in done.stdout
    video = CASE.videos[2]
    ground = ["ground", "--model", files / "model", "--features", f"{files / 'features.h5'}::{video.video_id}"]
    ground += ["--duration", video.duration_s, "--top-k", 3]
    for sentence in video.sentences:
        ground += ["--query", sentence]
    text = _run(*ground).stdout
    assert text.index(video.sentences[0]) < text.index(video.sentences[1])
    assert f"{video.moments[0][0][0]:.2f} s" in text
    content = json.loads(_run(*ground, "--json").stdout)
    assert [result["query"] for result in content["results"]] == video.sentences
    for result, official in zip(content["results"], video.moments, strict=True):
        ours = [[moment["start_s"], moment["end_s"]] for moment in result["moments"]]
        np.testing.assert_array_equal(np.float32(ours), official[:3])


def test_model_may_come_from_the_environment(golden_model: Files, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["ground", "--features", f"{files / 'features.h5'}::video0", "--duration", 9, "-q", "a", "--json"]
    with_option = _run(*arguments, "--model", golden_model(CASE.name)).stdout
    monkeypatch.setenv("MMN_FAST_MODEL", str(golden_model(CASE.name)))
    assert _run(*arguments).stdout == with_option


def test_eval_prints_the_official_table_and_writes_predictions(golden_model: Files, files: Path) -> None:
    annotations = _annotations(files / "test.json")
    arguments = ["eval", "--model", golden_model(CASE.name), "--annotations", annotations]
    arguments += ["--features", files / "features.h5"]
    done = _run(*arguments, "--predictions", files / "out.jsonl")
    for word in ("R@1,IoU@0.5", "R@5,IoU@0.7", "mIoU", "mmn"):
        assert word in done.stdout
    lines = [json.loads(line) for line in (files / "out.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert set(lines[0]) == {"qid", "query", "vid", "pred_relevant_windows"}
    np.testing.assert_allclose(lines[0]["pred_relevant_windows"][0][:2], CASE.videos[0].moments[0][0])
    report = json.loads(_run(*arguments, "--json", "--protocol", "2dtan", "--limit", 1).stdout)
    assert report["protocol"] == "2dtan"
    assert report["num_videos"] == 1
    assert "out.jsonl" in _refusal(*arguments, "--predictions", files / "out.jsonl")


def test_eval_names_videos_without_features(golden_model: Files, files: Path) -> None:
    content = json.loads(_annotations(files / "test.json").read_text())
    content["nowhere"] = {"duration": 10.0, "timestamps": [[1, 2]], "sentences": ["a"]}
    (files / "test.json").write_text(json.dumps(content))
    arguments = ["eval", "--model", golden_model(CASE.name), "--annotations", files / "test.json"]
    arguments += ["--features", files / "features.h5"]
    assert "nowhere" in _refusal(*arguments)
    report = json.loads(_run(*arguments, "--skip-missing", "--json").stdout)
    assert (report["num_videos"], report["num_skipped"]) == (3, 1)


def test_info_says_what_can_run(golden_model: Files) -> None:
    facts = json.loads(_run("info", "--json").stdout)
    assert facts["backends"]["torch"] == "available"
    assert facts["presets"] == list(PRESETS)
    text = _run("info", "--model", golden_model(CASE.name)).stdout
    assert "preset: charades_small" in text
    assert "cpu_isa:" in text


def test_info_says_why_a_device_cannot_be_used() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    facts = json.loads(_run("info", "--device", "cuda", "--json").stdout)
    assert "sees no CUDA device" in facts["backends"]["torch"]


def _bad_row(path: Path) -> Path:
    features = np.ones((30, 20), np.float32)
    features[17, 2] = np.nan
    np.save(path, features)
    return path


@pytest.mark.slow
def test_ground_refuses_bad_input_in_one_sentence(golden_model: Files, files: Path) -> None:
    np.save(files / "wide.npy", np.ones((5, 21), np.float32))
    np.save(files / "none.npy", np.ones((0, 20), np.float32))
    good = ["--model", golden_model(CASE.name), "--query", "a"]
    h5 = f"{files / 'features.h5'}::video0"
    for arguments, message in [
        ([*good, "--features", files / "wide.npy", "--duration", 3], "expected"),
        ([*good, "--features", files / "none.npy", "--duration", 3], "with n_src >= 1, got float32 [0, 20]"),
        ([*good, "--features", _bad_row(files / "nan.npy"), "--duration", 3], "row 17"),
        ([*good, "--features", files / "absent.npy", "--duration", 3], "no such file"),
        ([*good, "--features", f"{files / 'features.h5'}::video9", "--duration", 3], "video9"),
        ([*good, "--features", h5, "--duration", 0], "duration"),
        ([*good, "--features", h5, "--duration", "nan"], "duration"),
        (
            [*good, "--features", h5, "--duration", 3, "--top-k", 0],
            "mmn-fast: --top-k: expected an integer >= 1, got 0",
        ),
        ([*good, "--features", h5, "--duration", 3, "--backend", "jax"], "mmn-fast: --backend: expected one of auto"),
        ([*good, "--features", h5, "--duration", 3, "--device", "cuda:77"], "device 'cuda:77'"),
        ([*good, "--features", h5, "--duration", 3, "--backend-option", "a"], "--backend-option: expected NAME=VALUE"),
        ([*good, "--features", h5, "--duration", 3, "--backend-option", "a=1"], "mmn-fast: --backend-option: backend"),
        (["--query", "a", "--features", h5, "--duration", 3], "--model: give a converted directory"),
        (["--model", files, "--query", "a", "--features", h5, "--duration", 3], "is not a converted directory"),
        (
            ["--model", files / "model.pth", "--query", "a", "--features", h5, "--duration", 3],
            "needs --preset and --tokenizer; --preset is missing",
        ),
    ]:
        assert message in _refusal("ground", *arguments)


def test_convert_refuses_bad_input_and_writes_nothing(files: Path) -> None:
    (files / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    (files / "short.pth").write_bytes((files / "model.pth").read_bytes()[:5000])
    (files / "there").mkdir()
    before = sorted(files.iterdir())
    tokenizer, preset, output = (
        ["--tokenizer", files / "vocab.txt"],
        ["--preset", files / "official.yaml"],
        ["-o", files / "new"],
    )
    for arguments, message in [
        ([files / "pointer.pth", *preset, *tokenizer, *output], "is a Git-LFS pointer"),
        ([files / "short.pth", *preset, *tokenizer, *output], "truncated or damaged"),
        ([files / "absent.pth", *preset, *tokenizer, *output], "no such file"),
        ([files / "model.pth", "--preset", "charades-sta", *tokenizer, *output], "preset 'charades-sta' expects"),
        ([files / "model.pth", "--preset", "didemo", *tokenizer, *output], "preset: expected one of"),
        ([files / "model.pth", *preset, "--tokenizer", files / "absent", *output], "tokenizer: "),
        ([files / "model.pth", *preset, *tokenizer, "-o", files / "there"], "there exists"),
    ]:
        assert message in _refusal("convert", *arguments)
        assert sorted(files.iterdir()) == before


def test_a_missing_option_is_status_2(files: Path) -> None:
    done = _run("ground", "--features", files / "features.h5", status=2)
    assert "--query" in done.stderr
    done = _run("ground", "--features", files / "features.h5", "-q", "a", status=2)
    assert "--duration" in done.stderr


def test_eval_reads_the_published_layouts(golden_model: Files, tmp_path: Path) -> None:
    """Charades-STA's and TACoS's files hold a dataset per video, ActivityNet's a group; all open."""
    _annotations(tmp_path / "test.json", num_videos=1)
    features = recipe.clip_features(11, 41, 20)
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file["video0/c3d_features"] = features
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["video0"] = features
    reports = []
    for name in ("group.h5", "plain.h5"):
        arguments = ["--model", golden_model(CASE.name), "--annotations", tmp_path / "test.json"]
        report = json.loads(_run("eval", *arguments, "--features", tmp_path / name, "--json").stdout)
        report.pop("seconds")
        reports.append(report)
    assert reports[0] == reports[1]


@pytest.mark.slow
def test_bad_options_are_refused_in_one_sentence(tmp_path: Path) -> None:
    np.save(tmp_path / "clips.npy", np.ones((3, 357), np.float32))
    ground = ("ground", "--model", "demo", "--duration", "3", "-q", "red", "--features", tmp_path / "clips.npy")
    assert "--backend-option: exact: expected a number" in _refusal(*ground, "--backend-option", "exact=[1")
    isa = "mmn-fast: MMN_FAST_CPU_ISA: expected generic, avx2, avx512, avx512_bf16 or amx, got 'sse9'"
    assert _refusal(*ground, env={"MMN_FAST_CPU_ISA": "sse9"}) == isa
    assert _refusal("info", env={"MMN_FAST_CPU_ISA": "sse9"}) == isa
    assert "--device: expected auto, cpu, cuda or cuda:N, got 'tpu'" in _refusal("info", "--device", "tpu")
    assert "mmn-fast: --query number 2: expected text, got" in _refusal(*ground, "-q", os.fsdecode(b"\xff"))
    assert "File name too long" in _refusal("convert", "x", "--preset", "p", "--tokenizer", "t", "-o", "x" * 300)
    shapes = ("data", "shapes", "-o", tmp_path / "shapes")
    assert "--workers: expected a number of processes >= 1, got 0" in _refusal(*shapes, "--workers", "0")
    assert [path.name for path in tmp_path.iterdir()] == ["clips.npy"]


@pytest.mark.slow
def test_a_terminated_command_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmn_fast", "data", "shapes", "-o", str(tmp_path / "shapes"), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any(tmp_path.iterdir()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["Swallows()", "type('Changes', (), {'field': Changes()})"])
def test_sigterm_ends_a_command_whatever_code_it_interrupts(broken: str) -> None:
    code = f"""
import os, signal, time
from mmn_fast.cli.app import removing_what_is_half_written
def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
class Swallows:
    def __del__(self):
        terminate()
class Changes:
    def __set_name__(self, owner, name):
        try:
            terminate()
        except SystemExit as error:
            raise RuntimeError from error
@removing_what_is_half_written()
def work():
    try:
        {broken}
        time.sleep(60)
    finally:
        time.sleep(0.5)
        print("removed", flush=True)
work()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "removed\n"), done.stderr
