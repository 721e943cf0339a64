"""Benchmark candidates take turns and fail alone; `mmn-fast bench`; the pages that report.py makes."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import report, speed, timing
from mmn_fast.artifact.manifest import read_manifest
from mmn_fast.benchmarking.stages import BenchOptions, _choose, table
from mmn_fast.benchmarking.timing import Timing, alternate
from mmn_fast.benchmarking.turns import Candidate, take_turns
from mmn_fast.errors import BackendUnavailable, InputError
from tests.benchmark_toys import make_broken, make_dying, make_toy, make_unavailable
from tests.command import run_here
from tests.tolerances import TOLERANCES


def test_timing_is_the_median_and_the_percentiles_in_milliseconds():
    assert Timing.of([0.003, 0.001, 0.002]) == Timing(2.0, pytest.approx(1.4), pytest.approx(2.6), 3)


def test_alternate_calls_in_turn_and_times_calls_after_the_warm_up():
    calls: list[str] = []
    timings = alternate({"A": lambda: calls.append("A"), "B": lambda: calls.append("B")}, repeats=3, warmup=2)
    assert "".join(calls) == "ABABABABAB"
    assert {timing.repeats for timing in timings.values()} == {3}


@pytest.mark.slow
def test_candidates_take_turns_and_one_that_cannot_run_leaves_the_others_alone(tmp_path: Path):
    log = tmp_path / "log"
    candidates = [
        Candidate("A", make_toy, (log, "A", 1.0)),
        Candidate("absent", make_unavailable, ()),
        Candidate("broken", make_broken, ()),
        Candidate("dying", make_dying, ()),
        Candidate("B", make_toy, (log, "B", 1.5)),
    ]
    found = take_turns(candidates, ["one", "two"], repeats=2, warmup=1)
    assert log.read_text() == "AB" * 8  # twice: one call for the result, one warm-up, two timed calls
    for measured in found.values():
        assert measured["absent"].failure == "there is no such thing here"
        assert measured["broken"].failure == "ZeroDivisionError: divided"
        assert measured["dying"].failure == "its process ended with exit code 7"
        assert all(measured[name].timing is None for name in ("absent", "broken", "dying"))
        assert [measured[name].max_error for name in "AB"] == [0.0, 0.5]
        assert all(measured[name].timing.repeats == 2 and measured[name].peak_mib > 5 for name in "AB")


@pytest.mark.slow
def test_errors_are_measured_from_a_truth_that_is_never_timed(tmp_path: Path):
    candidates = [Candidate(name, make_toy, (tmp_path / "log", name, 1.5)) for name in "AB"]
    truth = Candidate("T", make_toy, (tmp_path / "log", "T", 1.0))
    found = take_turns(candidates, ["one"], repeats=2, warmup=0, truth=truth)
    assert (tmp_path / "log").read_text() == "T" + "AB" * 3
    assert {name: measured.max_error for name, measured in found["one"].items()} == {"A": 0.5, "B": 0.5}
    broken = take_turns(candidates, ["one"], repeats=1, warmup=0, truth=Candidate("T", make_broken, ()))
    assert all(measured.max_error is None and measured.timing for measured in broken["one"].values())


@pytest.mark.slow
def test_no_round_begins_after_the_limit_but_every_candidate_is_timed_once(tmp_path: Path):
    found = take_turns(
        [Candidate("A", make_toy, (tmp_path / "log", "A", 1.0))], ["one"], repeats=50, warmup=5, limit_s=0.0
    )
    assert found["one"]["A"].timing.repeats == 1
    assert (tmp_path / "log").read_text() == "AA"


def _bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmn_fast", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_bench_command_measures_every_stage_beside_the_reference(golden_model: Callable[[str], Path]):
    done = _bench(
        "--model", golden_model("charades_small"), "--precision", "fp32", "--quick", "--sentences", 3, "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = {(row["stage"], row["batch"], row["backend"]): row for row in found["rows"]}
    stages = [("encode_video", 1), ("encode_text", 3), ("score", 3)]
    assert list(rows) == [(*stage, backend) for stage in stages for backend in ("torch", "native")]
    assert (found["peer"], found["exact"]) == ("torch fp32", "torch fp64")
    assert found["unavailable"]["onnx fp32"].startswith("it runs exports only, ")
    for (_, _, backend), row in rows.items():
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["peak_mib"] > 50
        op = "golden_maps" if backend == "native" else "torch_maps"
        assert 0 < row["max_error"] <= TOLERANCES[op, "fp32"].atol
    assert rows["score", 3, "torch"]["ratio"] == 1
    assert found["model"]["preset"] == "charades_small"
    assert found["machine"]["cpu_isa"]


def test_bench_command_measures_an_export_on_the_backends_that_run_it(demo_export: Path):
    named = [word for name in ("torch", "onnx", "tensorrt") for word in ("--backend", name)]
    done = _bench("--model", demo_export, *named, "--device", "cpu", "--quick", "--sentences", 3, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = {(row["stage"], row["batch"], row["backend"], row["precision"]): row for row in found["rows"]}
    assert list(rows) == [(*stage, "onnx", "fp32") for stage in (("encode_video", 1), ("encode_text", 3), ("score", 3))]
    assert all(row["median_ms"] > 0 for row in rows.values())
    assert (found["peer"], found["exact"]) == ("onnx fp32", "onnx fp32")
    assert found["model"]["model"] == str(demo_export)
    assert set(found["unavailable"]) == {"torch fp32", "tensorrt fp32"}
    assert f"{demo_export} is an export, which backend 'torch' cannot run" in found["unavailable"]["torch fp32"]
    assert found["unavailable"]["tensorrt fp32"] == "device 'cpu': it runs on CUDA devices only"


def test_an_export_is_measured_in_its_own_precision(demo_export: Path, tmp_path: Path):
    export = Path(shutil.copytree(demo_export, tmp_path / "exported"))
    dataclasses.replace(read_manifest(export), precision="fp16").write(export)
    assert _choose(BenchOptions({"model": export}, ["onnx"]), "auto") == ([("onnx", "fp16")], {})
    chosen, unavailable = _choose(BenchOptions({"model": export}, ["onnx"], ["fp32", "fp16"]), "auto")
    assert chosen == [("onnx", "fp16")]
    assert "was exported as fp16" in unavailable["onnx fp32"]
    with pytest.raises(BackendUnavailable, match="backend onnx fp32: .* was exported as fp16"):
        _choose(BenchOptions({"model": export}, ["onnx"], ["fp32"]), "auto")
    (export / "text.onnx").write_bytes(b"other")
    with pytest.raises(InputError, match="^export: .*text.onnx is not the file that was verified"):
        _choose(BenchOptions({"model": export}), "auto")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "onnx"), "mmn-fast: backend onnx fp32: it runs exports only, and the reference backend 'torch'"),
        (("--precision", "fp17"), "mmn-fast: --precision: expected one of fp64, fp32, bf16, fp16, fp8, int8, got"),
        (("--backend", "abacus"), "mmn-fast: --backend: expected one of "),
        (("--backend", "native", "--precision", "int8"), "mmn-fast: backend native int8: precision 'int8' is not"),
        (("--batch", 0), "mmn-fast: --batch: expected at least 1, got 0"),
        (("--repeats", -1), "mmn-fast: --repeats: expected at least 1, got -1"),
        (("--model", "nowhere"), "mmn-fast: --model: nowhere: no such file or directory"),
    ],
)
def test_bench_command_refuses_bad_input_with_a_sentence(arguments: tuple[object, ...], message: str):
    done = run_here("bench", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert len(done.stderr.strip().splitlines()) == 1


def line(**changes: Any) -> dict[str, Any]:
    timing = {"p20_ms": 9.0, "p80_ms": 12.0, "repeats": 3}
    return {
        "benchmark": "bench_cpu",
        "time": "2026-01-01T00:00:00Z",
        "commit": "0123456789",
        "dirty": False,
        "cpu": "Some CPU",
        "cpu_isa": "avx2",
        "preset": "tacos",
        "stage": "encode_video",
        "batch": 1,
        "threads": 2,
        "max_error": 1e-5,
        "errors": {"mmn_fast fp32": 2e-6, "peer": 0.5},
        "timings": {"mmn_fast fp32": {"median_ms": 10.0, **timing}, "peer": {"median_ms": 45.0, **timing}},
        **changes,
    }


def test_without_git_a_figure_names_no_commit_and_is_not_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = timing.environment()
    assert (found["commit"], found["dirty"]) == ("", True)


def test_report_takes_the_latest_clean_line_of_each_measurement_and_processor():
    newer = line(time="2026-01-03T00:00:00Z", commit="fedcba9876")
    lines = [
        newer,
        line(),
        line(time="2026-01-04T00:00:00Z", dirty=True),
        line(batch=16),
        line(cpu="Another"),
        line(timings={"torch fp32": line()["timings"]["peer"]}, stage="other"),
    ]
    assert report.latest(lines) == [lines[4], newer, lines[3]]
    assert report.rows(newer) == [
        "| Some CPU, avx2 | tacos | encode_video | mmn_fast fp32, batch 1 | 2 | 10 (9-12) | peer 4.5x | 2.0e-06"
        " | `fedcba98`, 2026-01-03 |"
    ]


def test_report_names_the_preset_and_precision_of_earlier_lines():
    timings = {"mmn_fast": line()["timings"]["mmn_fast fp32"]}
    (row,) = report.rows(line(preset="charades_full", precision="bf16", timings=timings, errors={}))
    assert "| charades-sta | encode_video | mmn_fast bf16, batch 1 |" in row
    assert "| - | 1.0e-05 |" in row


def test_report_replaces_what_is_between_the_markers_and_refuses_a_page_without_them():
    page, body = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", report.table([line()])
    once = report.section(page, body)
    assert once.startswith(f"before\n{report.BEGIN}\n\n| processor |")
    assert once.endswith(f"\n{report.END}\nafter\n")
    assert "old" not in once
    assert report.section(once, body) == once
    assert "No clean line" in report.table([line(dirty=True)])
    for broken in ("no markers", page + report.END, report.END + report.BEGIN):
        with pytest.raises(ValueError, match=r"^README.md: expected"):
            report.section(broken, "", "README.md")


def test_the_short_table_and_the_chart_take_one_video_and_compare_equal_precisions():
    timing = line()["timings"]["mmn_fast fp32"]
    times = {
        "mmn_fast fp32": 100,
        "mmn_fast bf16": 50,
        "PyTorch fp32": 400,
        "ONNX Runtime fp32": 300,
        "OpenVINO bf16": 75,
    }
    timings = {name: {**timing, "median_ms": ms} for name, ms in times.items()}
    lines = [line(timings=timings), line(batch=16), line(dirty=True, time="2027"), line(benchmark="bench_text")]
    assert speed.speed_table(lines).splitlines()[2].endswith("| fp32 100 ms (3.0x)<br>bf16 50 ms (1.5x) |")
    chart = str(speed.speed_chart(lines))
    drawn = [(chart.index(f">{name}<"), ms) for name, ms in times.items()]
    assert [ms for _, ms in sorted(drawn)] == sorted(times.values()), "the fastest is on top"
    assert "2 threads" in chart
    assert "No clean line" in speed.speed_table([line(dirty=True)])
    with pytest.raises(ValueError, match=r"^lines: expected a clean line"):
        speed.speed_chart([line(dirty=True)])


def test_a_run_changes_nothing_that_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """If a run changed them, every benchmark would outdate the tables on the pages, and their test would fail."""
    results = timing.RESULTS
    before = {path: path.read_bytes() for path in results.glob("*.jsonl")}
    ignored = subprocess.run(["git", "check-ignore", "--quiet", timing.LOCAL / "x.jsonl"], cwd=timing.ROOT, check=False)
    assert ignored.returncode in (0, 128)  # 128: the tree is not a repository
    assert timing.LOCAL.is_relative_to(results)
    monkeypatch.setattr(timing, "LOCAL", tmp_path / "local")
    timing.record("bench_cpu", {"mmn_fast": Timing(1.0, 1.0, 1.0, 3)}, 0.0, preset="tacos")
    (written,) = report.read_lines(tmp_path / "local")
    assert written["timings"]["mmn_fast"]["median_ms"] == 1.0
    assert {path: path.read_bytes() for path in results.glob("*.jsonl")} == before


def test_report_records_clean_lines_and_leaves_the_others_where_they_are(tmp_path: Path):
    local, folder = tmp_path / "local", tmp_path / "results"
    for path in (local, folder):
        path.mkdir()
    first, second, changed = line(), line(batch=2), line(dirty=True)
    (folder / "a.jsonl").write_text(json.dumps(first) + "\n")
    (local / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (second, changed)))
    (local / "b.jsonl").write_text(json.dumps(second) + "\n")
    (local / "c.jsonl").write_text(json.dumps(changed) + "\n")
    for _ in range(2):  # the second time there is nothing to record
        report.record_local(local, folder)
        assert report.read_lines(folder) == [first, second, second]
        assert report.read_lines(local) == [changed, changed]


def test_bench_table_shows_what_to_install_as_it_is_written():
    machine = {"cpu": "a processor", "cores": 2, "cpu_isa": "generic"}
    reason = "TensorRT is not installed (pip install mmn_fast[tensorrt])"
    shown = table(
        {
            "machine": machine,
            "model": {"model": "demo", "preset": "shapes"},
            "peer": "torch fp32",
            "exact": "torch fp64",
            "unavailable": {"tensorrt fp32": reason},
            "rows": [],
        }
    )
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(shown)
    shown_text = " ".join(console.export_text().split())
    assert f"tensorrt fp32: {reason}" in shown_text
    assert "ratio: torch fp32's median over this one" in shown_text
