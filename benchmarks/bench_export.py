"""Times exported video graphs in ONNX Runtime: cropped to the plan's bands, beside the dense export of the same model.

The weights come from the full-size golden cases. PyTorch's exporter makes the dense graphs (`video_peers`). Both run in
turn on the same input. The error is the largest difference of an embedding (unit norm) from the dense graph's.

    python -m benchmarks.bench_export [--presets charades ...] [--threads 2] [--repeats 5]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from benchmarks.timing import alternate, record
from benchmarks.video_peers import export_video, inputs_of, load_case
from mmn_fast.export.graphs.video import video_graph
from mmn_fast.export.to_onnx import write_graph
from mmn_fast.geometry import plan_for
from mmn_fast.geometry_crops import framed_crops


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def _bench(name: str, options: argparse.Namespace) -> None:
    case = f"{name}_full"
    model, inputs = load_case(case), inputs_of(case, 1)
    preset, plan = model.preset, plan_for(model.preset)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cropped.onnx"
        write_graph(video_graph(model), path)
        export_video(case, 1, Path(folder))
        sessions = {
            "cropped": _session(path, options.threads),
            "dense": _session(Path(folder) / f"{case}_1.onnx", options.threads),
        }
    runs = {
        f"ONNX Runtime {kind}": lambda session=session: session.run(None, {session.get_inputs()[0].name: inputs})
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
