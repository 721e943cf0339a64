"""Times exported video graphs in ONNX Runtime: cropped to the plan's bands, beside the dense export of the same model.

The weights come from the full-size golden cases. The same exporter makes both graphs; they run in turn on the same
input. The error is the largest difference of an embedding (unit norm) from the dense graph's.

    python -m benchmarks.bench_export [--presets charades ...] [--threads 2] [--repeats 5]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import torch

from benchmarks.golden import cases
from benchmarks.timing import alternate, record
from benchmarks.video_peers import VideoBranch
from mmn_fast.artifact.manifest import signature
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.export.graphs import VideoGraph
from mmn_fast.export.to_onnx import write_graph
from mmn_fast.features import pre_clips
from mmn_fast.geometry import plan_for
from mmn_fast.geometry_crops import framed_crops
from mmn_fast.model import build_model


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def _bench(name: str, options: argparse.Namespace) -> None:
    case = cases.load(f"{name}_full")
    preset, plan = case.preset, plan_for(case.preset)
    model = LoadedModel(preset, case.text, case.state(), cast(Any, None), name)
    modules = {
        "cropped": lambda: VideoGraph(model),
        "dense": lambda: VideoBranch(build_model(preset, case.text, model.state)),
    }
    inputs = pre_clips(case.videos[0].features, preset).reshape(1, preset.num_pre_clips, -1)
    sessions = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, module in modules.items():
            path = Path(folder) / f"{kind}.onnx"
            write_graph(module(), signature("video", preset), path)
            sessions[kind] = _session(path, options.threads)
    runs = {
        f"ONNX Runtime {kind}": lambda session=session: session.run(None, {"pre_clips": inputs})
        for kind, session in sessions.items()
    }
    outputs = [run() for run in runs.values()]
    error = max(float(np.abs(a - b).max()) for a, b in zip(*outputs, strict=True))
    timings = alternate(runs, options.repeats, warmup=1)
    ratio = timings["ONNX Runtime dense"].median_ms / timings["ONNX Runtime cropped"].median_ms
    for kind, timing in timings.items():
        print(
            f"{preset.name:18} {kind:22} median {timing.median_ms:8.1f} ms  p20 {timing.p20_ms:8.1f}"
            f"  p80 {timing.p80_ms:8.1f}",
            flush=True,
        )
    work = framed_crops(plan).work(plan)
    print(f"{preset.name:18} ratio {ratio:.2f}, work {work:.3f} of dense, error {error:.1e}", flush=True)
    record(
        "bench_export",
        timings,
        error,
        preset=preset.name,
        stage="encode_video",
        batch=1,
        threads=options.threads,
        precision="fp32",
        ratio=ratio,
        work=work,
        onnxruntime=onnxruntime.__version__,
    )


def main() -> None:
    """Run the benchmark and append its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["charades", "activitynet", "tacos"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.presets:
        _bench(name, options)


if __name__ == "__main__":
    main()
