"""Times the CPU engine beside its peers: in turn, on the same inputs and threads, each candidate in its own process.

Stage encode_video: the native backend beside PyTorch (eager, channels-last, bf16 autocast, torch.compile), ONNX Runtime
and OpenVINO, with the full-size golden cases' weights. Stage score: the engine's score() beside the official
post-processing (`bench_moments`). encode_text has a benchmark of its own.

ONNX Runtime and OpenVINO take part if installed (`pip install mmn_fast[bench]`). If a candidate cannot run, its row
says why. The error is the largest difference of an embedding (unit norm) from backend torch's in fp64. TFLOP/s divide
the proposal convolution's operations by the whole branch's time: once the plan's operations (all but known zeros), once
the dense operations (the peers compute these). Peak memory is that of the candidate's process: it includes Python,
libraries and the preparation of weights, but not the export.

    python -m benchmarks.bench_cpu [--presets charades ...] [--batches 1 16] [--peers "OpenVINO fp32" ...] [--quick]
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import bench_moments
from benchmarks.golden import cases
from benchmarks.timing import record
from benchmarks.video_peers import (
    OURS,
    PEERS,
    STAGE,
    export_video,
    make_exact,
    make_onnxruntime,
    make_openvino,
    make_ours,
    make_torch,
)
from mmn_fast.benchmarking.turns import Candidate, Measured, take_turns
from mmn_fast.geometry import plan_for
from mmn_fast.kernels import host
from mmn_fast.presets import Preset

PEER, EXACT = "PyTorch fp32", "PyTorch fp64"


def candidate(peer: str, case: str, batch: int, threads: int, folder: Path) -> Candidate:
    """Describe a candidate, given its name in `PEERS` or `OURS`."""
    runtime, precision, *rest = peer.rsplit(" ", 2) if peer.endswith("channels-last") else peer.rsplit(" ", 1)
    if runtime == "mmn_fast":
        return Candidate(peer, make_ours, (case, precision, batch, threads))
    if runtime == "ONNX Runtime":
        return Candidate(peer, make_onnxruntime, (case, batch, threads, folder))
    if runtime == "OpenVINO":
        return Candidate(peer, make_openvino, (case, precision, batch, threads, folder))
    way = "compile" if runtime == "torch.compile" else rest[0] if rest else "plain"
    return Candidate(peer, make_torch, (case, precision, batch, threads, way))


def conv_flop(preset: Preset) -> dict[str, int]:
    """Floating-point operations of one video's proposal convolution: by the plan, and on dense maps."""
    plan, work = plan_for(preset), {"plan": 0, "dense": 0}
    c_in = preset.hidden_size
    for layer in plan.layers:
        each = 2 * c_in * preset.conv_hidden_size
        work["plan"] += int(layer.taps.sum()) * each
        work["dense"] += layer.side**2 * plan.kernel**2 * each
        c_in = preset.conv_hidden_size
    return work


def bench_video(case: str, batch: int, peers: list[str], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure one preset's video branch; record the line and return it."""
    preset = cases.load(case).preset
    names = [*OURS, *dict.fromkeys([PEER, *peers])]
    if any(peer.startswith(("ONNX", "OpenVINO")) for peer in peers):
        # The export runs in its own process, so that its memory does not count for any candidate.
        export = multiprocessing.get_context("spawn").Process(target=export_video, args=(case, batch, folder))
        export.start()
        export.join()
    (found,) = take_turns(
        [candidate(name, case, batch, options.threads, folder) for name in names],
        [STAGE],
        options.repeats,
        truth=Candidate(EXACT, make_exact, (case,)),
        limit_s=options.limit_s,
        on_event=lambda event: print(f"{preset.name} batch {batch}: {event}", flush=True),
    ).values()
    timings = {name: m.timing for name, m in found.items() if m.timing is not None}
    errors = {name: m.max_error for name, m in found.items() if m.max_error is not None}
    flop = {kind: value * batch for kind, value in conv_flop(preset).items()}
    facts = {
        "preset": preset.name,
        "stage": STAGE,
        "batch": batch,
        "threads": options.threads,
        "ratios": {
            ours: {name: timing.median_ms / timings[ours].median_ms for name, timing in timings.items()}
            for ours in OURS
            if ours in timings
        },
        "tflops": {
            name: {kind: value / timing.median_ms / 1e9 for kind, value in flop.items()}
            for name, timing in timings.items()
        },
        "errors": errors,
        "peak_mib": {name: m.peak_mib for name, m in found.items() if m.peak_mib is not None},
        "failures": {name: m.failure for name, m in found.items() if m.failure is not None},
    }
    Console(width=150).print(video_table(preset.name, batch, found, facts))
    ours_errors = [error for name, error in errors.items() if name in OURS]
    if not ours_errors:
        print("not recorded: there is no error to record with it")
    elif not options.dry_run:
        record("bench_cpu", timings, max(ours_errors), **facts)
    return facts


def video_table(preset: str, batch: int, found: Mapping[str, Measured], facts: Mapping[str, Any]) -> Table:
    """The table of one preset and batch size: a row per candidate."""
    table = Table(title=f"{preset}, {STAGE}, batch {batch}, {facts['threads']} threads, {host.cpu_isa()}")
    ours = list(facts["ratios"])
    columns = ["candidate", "median ms", "p20", "p80", *(f"over {name}" for name in ours)]
    for name in [*columns, "TFLOP/s plan", "dense", "peak MiB", "max error"]:
        table.add_column(name, justify="left" if name == "candidate" else "right")
    for name, measured in found.items():
        if measured.timing is None:
            table.add_row(name, "-")
            continue
        t, work = measured.timing, facts["tflops"][name]
        table.add_row(
            name,
            *(f"{ms:.1f}" for ms in (t.median_ms, t.p20_ms, t.p80_ms)),
            *(f"{facts['ratios'][mine][name]:.2f}" for mine in ours),
            *(f"{work[kind]:.3f}" for kind in ("plan", "dense")),
            f"{measured.peak_mib:.0f}",
            "-" if measured.max_error is None else f"{measured.max_error:.1e}",
        )
    table.caption = "\n".join(f"{name}: {reason}" for name, reason in facts["failures"].items())
    return table


def main() -> None:
    """Run the benchmark and append its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["charades", "activitynet", "tacos"])
    parser.add_argument("--stages", nargs="+", default=["encode_video", "score"], choices=["encode_video", "score"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS, metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--limit-s", type=float, default=120.0, help="no further round of a preset after so long")
    parser.add_argument("--quick", action="store_true", help="batch 1, two rounds, the exported peers and PyTorch fp32")
    parser.add_argument("--dry-run", action="store_true", help="record nothing")
    options = parser.parse_args()
    if options.quick:
        options.batches, options.repeats = [1], 2
        options.peers = [peer for peer in options.peers if peer.startswith(("ONNX", "OpenVINO"))]
    with tempfile.TemporaryDirectory() as folder:
        for preset in options.presets:
            for batch in options.batches if "encode_video" in options.stages else []:
                bench_video(f"{preset}_full", batch, options.peers, options, Path(folder))
    if "score" in options.stages:
        bench_moments.run(
            options.presets, sentences=32, threads=options.threads, repeats=options.repeats, dry=options.dry_run
        )


if __name__ == "__main__":
    main()
