"""The GPU suite's rehearsal runs to its end on the CPU, and its command line refuses what it does not know."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.bench_moments import official_moments
from benchmarks.gpu_peers import peers
from benchmarks.gpu_timing import Bench
from mmn_fast.model import build_model
from mmn_fast.presets import PRESETS
from tests.golden import cases

ROOT = Path(__file__).parents[1]


def _suite(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHON": sys.executable, "BUILD": "0"} | variables
    script = str(ROOT / "benchmarks" / "gpu_suite.sh")
    return subprocess.run(["sh", script, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_the_rehearsal_runs_to_its_end_and_writes_no_results() -> None:
    results = ROOT / "benchmarks" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    result = _suite("--rehearse")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    for stage in (
        "ground",
        "cached video",
        "score",
        "encode_text",
        "encode_video",
        "mmn_fast fp16",
        "PyTorch fp32",
        "fft products",
        "proposal_conv",
        "mixed",
        "== ",
    ):
        assert stage in result.stdout
    assert result.stdout.rstrip().endswith("done")
    assert "not measured" not in result.stdout
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == before


def test_what_fails_is_named_and_does_not_keep_the_rest_from_running(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$2" = pytest ] && exit 3\necho "ran $2"\n', encoding="utf-8")
    python.chmod(0o755)
    result = _suite("--rehearse", PYTHON=str(python))
    assert result.returncode == 1
    assert result.stderr == "gpu_suite.sh: failed: tests\n"
    assert "ran benchmarks.bench_gpu\n" in result.stdout
    assert "ran benchmarks.bench_gather\n" in result.stdout


def test_every_file_with_tests_for_a_device_is_run() -> None:
    """Not all of tests: each of its processes would import what they need."""
    script = (ROOT / "benchmarks" / "gpu_suite.sh").read_text(encoding="utf-8")
    line = next(line for line in script.splitlines() if "tests/kernels" in line and "faulthandler" in line)
    run = {path for pattern in line.split() if pattern.startswith("tests/") for path in ROOT.glob(pattern)}
    marked = [p for p in (ROOT / "tests").rglob("test_*.py") if "pytest.mark." + "gpu" in p.read_text(encoding="utf-8")]
    assert len(marked) > 5
    assert [path for path in marked if run.isdisjoint({path, path.parent})] == []


def test_an_unknown_argument_is_refused() -> None:
    result = _suite("--rehearsal")
    assert result.returncode == 2
    assert result.stderr == "gpu_suite.sh: expected no argument or --rehearse, got '--rehearsal'\n"


def test_the_official_post_processing_makes_nothing_on_another_device_than_its_inputs() -> None:
    preset, generator = PRESETS["shapes"], torch.Generator().manual_seed(0)
    sizes = (4, preset.num_clips, preset.num_clips), (2, 4)
    maps, sentences = ([torch.randn(*size, generator=generator) for _ in range(2)] for size in sizes)
    mask = torch.ones(sizes[0][1:]).triu().bool()
    expected = official_moments(maps, sentences, mask, preset, 9.0)
    with torch.device("meta"):  # what names no device goes there
        found = official_moments(maps, sentences, mask, preset, 9.0)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_a_peer_leaves_the_weights_of_the_others_as_they_are() -> None:
    case = cases.load("charades_small")
    net = build_model(case.preset, case.text, case.state())
    before = {name: weight.stride() for name, weight in net.named_parameters()}
    make = peers(net, Bench("cpu", True, math.inf), [torch.empty(1)], compiled=False)
    make["PyTorch fp16 channels-last"]()
    assert {name: weight.stride() for name, weight in net.named_parameters()} == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bench_gpu", "bench_gather"])
def test_without_a_device_a_benchmark_says_so_and_names_the_rehearsal(name: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "(--rehearse runs the steps on the CPU)" in result.stderr
