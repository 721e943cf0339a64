"""The GPU suite's plans: order, limits, and a rehearsal of every command line."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_suite
from benchmarks.bench_moments import official_moments
from benchmarks.gpu_peers import peers
from benchmarks.gpu_suite import PLANS, START_S, Step
from benchmarks.gpu_timing import Bench
from mmn_fast.checkpoint import load_model
from mmn_fast.model import build_model
from mmn_fast.presets import PRESETS

ROOT = Path(__file__).parents[1]


PRESETS_MEASURED = {"charades", "activitynet", "tacos"}


@pytest.mark.slow
def test_the_rehearsal_runs_every_command_line_of_each_plan_and_writes_no_results() -> None:
    results = ROOT / "benchmarks" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    command = [sys.executable, "-m", "tests.suite_rehearsal", *map(str, sorted(PLANS, reverse=True))]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"BUILD": "0"}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    for step in (step for plan in PLANS.values() for step in plan):
        assert f" {step.name}: {step.answers} (" in done.stdout or not step.command
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
    ):
        assert stage in done.stdout
    assert "not measured" not in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == before


@pytest.mark.parametrize("minutes", PLANS)
def test_limits_of_a_plan_fit_its_minutes(minutes: int) -> None:
    """All limits together fit, with 15 seconds left for the start and the last copies."""
    assert sum(step.limit_s for step in PLANS[minutes]) <= 60 * minutes - 15
    assert all(0 < step.expected_s < step.limit_s for step in PLANS[minutes])
    assert all(step.limit_s >= START_S + 20 for step in PLANS[minutes])  # a benchmark measures for 20 s or more
    assert len({step.name for step in PLANS[minutes]}) == len(PLANS[minutes])


@pytest.mark.parametrize("minutes", PLANS)
def test_a_plan_builds_then_proves_then_measures(minutes: int) -> None:
    build, operators, *rest = PLANS[minutes]
    assert (build.command, build.limit_s) == ("", 180)
    assert operators.command.endswith(" tests/kernels")
    modules = [step.command.split()[1] for step in rest if step.is_benchmark]
    gathers = modules.count("benchmarks.bench_gather")
    assert modules == ["benchmarks.bench_gather"] * gathers + ["benchmarks.bench_gpu"] * (len(modules) - gathers)
    assert 0 < gathers < len(modules)
    assert all(len(_values(step, "--presets")) == 1 for step in rest if step.is_benchmark)


def test_ten_minutes_answer_the_most_important_questions() -> None:
    found = [
        (_values(step, "--presets")[0], _values(step, "--batches"), _values(step, "--steps")) for step in PLANS[10][2:]
    ]
    assert found == [
        ("tacos", ["8"], []),
        ("activitynet", ["8"], []),
        ("charades", ["1"], ["ground"]),
        ("charades", ["8"], ["encode_video"]),
        ("activitynet", ["8"], ["encode_video"]),
        ("tacos", ["8"], ["encode_video"]),
    ]


def test_twenty_five_minutes_measure_every_preset_small_batches_first_and_end_with_the_sanitizers() -> None:
    benchmarks = [step for step in PLANS[25] if step.is_benchmark]
    gather, small, large = benchmarks[:3], benchmarks[3:6], benchmarks[6:]
    for steps, batches in ((gather, ["1", "8", "48"]), (small, ["1", "8"]), (large, ["48"])):
        assert {_values(step, "--presets")[0] for step in steps} == PRESETS_MEASURED
        assert len(steps) == 3
        assert all(_values(step, "--batches") == batches for step in steps)
    for step in small:
        assert set(_values(step, "--steps")) == {"ground", "score", "encode_text", "stages", "encode_video", "engine"}
    assert [step.is_benchmark for step in PLANS[25][-3:]] == [False] * 3
    sanitizers = [step for step in PLANS[25] if step.tool]
    assert sanitizers == list(PLANS[25][-3:])
    assert [step.tool.split()[0] for step in sanitizers] == ["memcheck", "racecheck", "memcheck"]
    assert ["triton" in step.command for step in sanitizers] == [False, False, True]
    assert ["test_gpu_ops" in step.command for step in sanitizers] == [True, True, False]


def _values(step: Step, option: str) -> list[str]:
    _, found, rest = step.command.partition(f" {option} ")
    return rest.split(" --")[0].split() if found else []


def test_every_file_with_tests_for_a_device_is_run() -> None:
    """The suite names files instead of all tests, because each test process imports every file that it is given."""
    words = [word for step in PLANS[25] if not step.tool for word in step.command.split()]
    run = {path for word in words if word.startswith("tests/") for path in ROOT.glob(word)}
    marked = [p for p in (ROOT / "tests").rglob("test_*.py") if "pytest.mark." + "gpu" in p.read_text(encoding="utf-8")]
    assert len(marked) > 4
    assert [path for path in marked if run.isdisjoint({path, path.parent})] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rehearsal"], "expected --minutes, --output and --rehearse, got '--rehearsal'"),
        (["results"], "expected --minutes, --output and --rehearse, got 'results'"),
        (["--minutes", "12"], "--minutes: expected 10 or 25, got '12'"),
        (["--minutes", "ten"], "--minutes: expected 10 or 25, got 'ten'"),
        (["--minutes"], "--minutes: expected one argument"),
        (["--output"], "--output: expected one argument"),
    ],
)
def test_unknown_arguments_are_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as refused:
        gpu_suite.main(arguments)
    assert refused.value.code == 2
    assert capsys.readouterr() == ("", f"gpu_suite.sh: {message}\n")


def test_the_help_shows_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_suite.main(["--help"])
    shown = capsys.readouterr().out
    for minutes, plan in PLANS.items():
        assert f"--minutes {minutes}:" in shown
        for step in plan:
            assert f"{step.expected_s} s {step.limit_s:4} s  {step.name:18}  {step.answers}\n" in shown


def test_the_official_post_processing_makes_nothing_on_another_device_than_its_inputs() -> None:
    preset, generator = PRESETS["shapes"], torch.Generator().manual_seed(0)
    sizes = (4, preset.num_clips, preset.num_clips), (2, 4)
    maps, sentences = ([torch.randn(*size, generator=generator) for _ in range(2)] for size in sizes)
    mask = torch.ones(sizes[0][1:]).triu().bool()
    expected = official_moments(maps, sentences, mask, preset, 9.0)
    with torch.device("meta"):  # tensors without a named device go there and cause an error
        found = official_moments(maps, sentences, mask, preset, 9.0)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.slow
def test_a_peer_leaves_the_weights_of_the_others_as_they_are(golden_model: Callable[[str], Path]) -> None:
    model = load_model(golden_model("charades_small"))
    net = build_model(model.preset, model.text, model.state)
    before = {name: weight.stride() for name, weight in net.named_parameters()}
    make = peers(net, Bench("cpu", True, math.inf, "a benchmark"), [torch.empty(1)], compiled=False)
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
