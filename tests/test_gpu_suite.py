"""The GPU suite's rehearsal runs to its end on the CPU, and its command line refuses what it does not know."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _suite(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHON": sys.executable, "BUILD": "0"} | variables
    script = str(ROOT / "benchmarks" / "gpu_suite.sh")
    return subprocess.run(["sh", script, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)


def test_the_rehearsal_runs_to_its_end_and_writes_no_results() -> None:
    results = ROOT / "benchmarks" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
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
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == before


def test_what_fails_is_named_and_does_not_keep_the_rest_from_running(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$2" = pytest ] && exit 3\necho "ran $2"\n', encoding="utf-8")
    python.chmod(0o755)
    result = _suite("--rehearse", PYTHON=str(python))
    assert result.returncode == 1
    assert result.stderr == "gpu_suite.sh: failed: tests\n"
    assert "ran benchmarks.bench_gpu\n" in result.stdout
    assert "ran benchmarks.bench_gather\n" in result.stdout


def test_an_unknown_argument_is_refused() -> None:
    result = _suite("--rehearsal")
    assert result.returncode == 2
    assert result.stderr == "gpu_suite.sh: expected no argument or --rehearse, got '--rehearsal'\n"


@pytest.mark.parametrize("name", ["bench_gpu", "bench_gather"])
def test_without_a_device_a_benchmark_says_so_and_names_the_rehearsal(name: str) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a device")
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "(--rehearse runs the steps on the CPU)" in result.stderr
