"""The video branch on the CPU: the native backend beside PyTorch, ONNX Runtime and OpenVINO, in turn, same input.

ONNX Runtime and OpenVINO take part where they are installed (`pip install mmn_fast[bench]`); the model they run is the
reference exported as it is. Weights are those of the full-size golden cases. The error is the largest difference of
an embedding (unit norm) from PyTorch's in fp32.

    python -m benchmarks.bench_cpu [--presets charades ...] [--precisions fp32 bf16] [--batch 1] [--threads 2]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from benchmarks.timing import alternate, record
from mmn_fast.backends.native_cpu import NativeBackend
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.features import pre_clips
from mmn_fast.model import MMN, build_model
from tests.golden import cases

Run = Callable[[], tuple[np.ndarray, np.ndarray]]


class _VideoBranch(nn.Module):
    def __init__(self, net: MMN) -> None:
        super().__init__()
        self.net = net

    def forward(self, pre_clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.net.encode_video(pre_clips)


def _torch_runs(net: MMN, inputs: np.ndarray, precision: str) -> dict[str, Run]:
    tensor = torch.from_numpy(inputs)

    def plain() -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            contrastive, iou = net.encode_video(tensor)
        return contrastive.numpy(), iou.numpy()

    def bf16() -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            contrastive, iou = net.encode_video(tensor)
        return contrastive.float().numpy(), iou.float().numpy()

    return {"PyTorch fp32": plain} if precision == "fp32" else {"PyTorch bf16": bf16}


def _exported_runs(net: MMN, inputs: np.ndarray, precision: str, threads: int, folder: Path) -> dict[str, Run]:
    runs: dict[str, Run] = {}
    path = folder / "video.onnx"
    if not path.exists():
        torch.onnx.export(_VideoBranch(net), (torch.from_numpy(inputs),), str(path), verbose=False)
    try:
        import onnxruntime
    except ImportError:
        print("ONNX Runtime is not installed")
    else:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        if precision == "fp32":
            runs["ONNX Runtime fp32"] = lambda: tuple(session.run(None, {name: inputs}))
    try:
        import openvino
    except ImportError:
        print("OpenVINO is not installed")
    else:
        hint = {"fp32": "f32", "bf16": "bf16"}[precision]
        options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
        request = openvino.Core().compile_model(str(path), "CPU", options).create_infer_request()

        def openvino_run() -> tuple[np.ndarray, np.ndarray]:
            found = request.infer([inputs])
            return cast(tuple[np.ndarray, np.ndarray], tuple(found[n] for n in range(2)))

        runs[f"OpenVINO {precision}"] = openvino_run
    return runs


def _bench(name: str, precisions: list[str], options: argparse.Namespace) -> None:
    case = cases.load(f"{name}_full")
    preset = case.preset
    model = LoadedModel(preset, case.text, case.state(), cast(Any, None), "", name)
    net = build_model(preset, case.text, case.state()).requires_grad_(False)
    one = pre_clips(case.videos[0].features, preset, "features").reshape(1, preset.num_pre_clips, -1)
    inputs = np.ascontiguousarray(np.repeat(one, options.batch, 0))
    expected = _torch_runs(net, inputs, "fp32")["PyTorch fp32"]()
    with tempfile.TemporaryDirectory() as folder:
        for precision in precisions:
            reason = NativeBackend.unavailable_reason("cpu", precision)
            if reason:
                print(f"{preset.name}: {reason}")
                continue
            backend = NativeBackend(model, "cpu", precision, options.threads)
            runs: dict[str, Run] = {"mmn_fast": lambda backend=backend: backend.encode_video(inputs)}
            runs |= _torch_runs(net, inputs, precision)
            runs |= _exported_runs(net, inputs, precision, options.threads, Path(folder))
            errors = {
                peer: max(float(np.abs(a - b).max()) for a, b in zip(run(), expected, strict=True))
                for peer, run in runs.items()
            }
            timings = alternate(runs, options.repeats, warmup=1)
            mine = timings["mmn_fast"].median_ms
            for peer, timing in timings.items():
                print(
                    f"{preset.name:18} {precision} B={options.batch:<3} {peer:18} median {timing.median_ms:8.1f} ms"
                    f"  p20 {timing.p20_ms:8.1f}  p80 {timing.p80_ms:8.1f}  ratio {timing.median_ms / mine:5.1f}"
                    f"  error {errors[peer]:.1e}",
                    flush=True,
                )
            record(
                "bench_cpu",
                timings,
                errors["mmn_fast"],
                preset=preset.name,
                stage="encode_video",
                batch=options.batch,
                threads=options.threads,
                precision=precision,
                ratios={peer: timing.median_ms / mine for peer, timing in timings.items()},
                errors=errors,
                algorithms=backend.info()["algorithms"],
                packed_weights_mib=backend.info()["packed_weights_mib"],
            )


def main() -> None:
    """Run the benchmark and append its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["charades", "activitynet", "tacos"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.presets:
        _bench(name, options.precisions, options)


if __name__ == "__main__":
    main()
