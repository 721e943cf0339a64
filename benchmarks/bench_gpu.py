"""The GPU engine beside PyTorch and, where it is installed, ONNX Runtime: stages on the device, and whole requests.

Weights are those of the golden cases. Stages are timed with CUDA events over rotated inputs that lie on the device; the
error is the largest difference of an embedding (unit norm) from the reference in float32 without TF32. The floor is
the larger of the work over the measured rate of a matrix product and of the bytes over the measured bandwidth of a
copy; work is the plan's cell x tap products, bytes are weights, input and embeddings once.

    python -m benchmarks.bench_gpu [--presets charades ...] [--batches 1 8 48] [--seconds 90] [--compiled] [--rehearse]

--compiled adds torch.compile (max-autotune) for one video of a preset of 16 clips, which tunes for a minute or more.
--rehearse runs the rest at tiny sizes on the CPU, on the kernels' twins, and writes nothing.
"""

from __future__ import annotations

import argparse
import copy
import gc
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import nn

import mmn_fast
from benchmarks.bench_moments import official_moments
from benchmarks.gpu_stages import bench_stages, text_flop, video_flop
from benchmarks.timing import append, environment
from mmn_fast.backends.native_gpu import NativeGpuBackend
from mmn_fast.backends.torch_ref import TorchBackend
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.engine import Engine
from mmn_fast.geometry import cells_to_moments, plan_for
from mmn_fast.model import MMN, build_model
from mmn_fast.tokenizer import load_tokenizer
from tests.golden import cases

Run = Callable[[int], Any]
"""Takes the number of the input set."""

_PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
INPUT_SETS = 4  # larger together than the cache for all but the smallest work
_SENTENCES = ["person turn a light on.", "person flips the switch by the door.", "a man runs.", "she opens a bag."]


@dataclass
class Bench:
    """Where and how long, and the lines so far."""

    device: str
    rehearse: bool
    deadline: float
    benchmark: str = "bench_gpu"
    rates: dict[str, float] = field(default_factory=dict)

    def time_ms(self, run: Run, most: int = 30) -> list[float]:
        """Milliseconds of up to `most` runs after two that do not count; as many as half a second holds."""
        taken: list[float] = []
        started = time.perf_counter()
        for number in range(2 + most):
            if number >= 3 and (self.rehearse or time.perf_counter() - started > 0.5):
                break
            if self.device == "cpu":
                start = time.perf_counter()
                run(number % INPUT_SETS)
                milliseconds = (time.perf_counter() - start) * 1e3
            else:
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                first.record()
                run(number % INPUT_SETS)
                last.record()
                last.synchronize()
                milliseconds = first.elapsed_time(last)
            if number >= 2:
                taken.append(milliseconds)
        return taken

    def roofline(self, flop: float, moved: float, taken: list[float]) -> dict[str, float]:
        """The columns of a stage: its work and bytes, the time that they take at least, and that time's share."""
        floor_ms = max(flop / self.rates["matmul_tflops"] / 1e9, moved / self.rates["copy_gbps"] / 1e6)
        of_floor = round(floor_ms / float(np.median(taken)), 3)
        return {"flop": flop, "bytes": moved, "floor_ms": floor_ms, "of_floor": of_floor}

    def out_of_time(self, what: str) -> bool:
        """Whether the time is spent; says what was therefore not measured."""
        if time.monotonic() < self.deadline:
            return False
        print(f"not measured, out of time: {what}", flush=True)
        return True

    def write(self, stage: str, peer: str, taken: list[float], error: float, **facts: Any) -> None:
        """Print a line and append it to the results."""
        p20, p50, p80, p99 = (float(ms) for ms in np.percentile(taken, (20, 50, 80, 99)))
        shown = "  ".join(f"{name} {value}" for name, value in facts.items() if name in ("preset", "batch", "of_floor"))
        print(f"{stage:14} {shown}  {peer:28} p50 {p50:9.3f} ms  p99 {p99:9.3f}  error {error:.1e}", flush=True)
        if self.rehearse:
            return
        name = torch.cuda.get_device_name()
        line = {
            "benchmark": self.benchmark,
            **environment(),
            "gpu": name,
            **self.rates,
            "stage": stage,
            "peer": peer,
            **facts,
        }
        line |= {"p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "p99_ms": p99, "repeats": len(taken), "max_error": error}
        append(line, name)


class _VideoBranch(nn.Module):
    def __init__(self, net: MMN) -> None:
        super().__init__()
        self.net = net

    def forward(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.net.encode_video(clips)


def measure_rates(bench: Bench) -> None:
    """Measure what a library's matrix product and a copy reach."""
    side, size = (64, 2**16) if bench.rehearse else (8192, 2**28)
    dtype = torch.float32 if bench.device == "cpu" else torch.float16
    a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
    source = torch.randn(size, device=bench.device)
    target = torch.empty_like(source)
    matmul = float(np.median(bench.time_ms(lambda _: a @ b)))
    copy = float(np.median(bench.time_ms(lambda _: target.copy_(source))))
    bench.rates = {"matmul_tflops": 2 * side**3 / matmul / 1e9, "copy_gbps": 2 * source.nbytes / copy / 1e6}
    print(f"matrix product {bench.rates['matmul_tflops']:.1f} TFLOP/s, copy {bench.rates['copy_gbps']:.0f} GB/s")


def _peers(net: MMN, bench: Bench, sets: list[torch.Tensor], compiled: bool) -> dict[str, Callable[[], Run]]:
    """Makers of the peers' runs: what they need is made when their turn comes."""

    def eager(tf32: bool) -> Run:
        def run(number: int) -> Any:
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
                torch.set_float32_matmul_precision("high" if tf32 else "highest")
                return net.encode_video(sets[number])

        return run

    def half(dtype: torch.dtype, compile_it: bool = False) -> Run:
        # A copy: `to` changes a module in place, and the peers in float32 run the weights as they are.
        branch: Any = _VideoBranch(copy.deepcopy(net)).to(memory_format=torch.channels_last)
        if compile_it:
            branch = torch.compile(branch, mode="max-autotune")

        def run(number: int) -> Any:
            with torch.inference_mode(), torch.autocast(bench.device, dtype):
                return branch(sets[number])

        return run

    peers: dict[str, Callable[[], Run]] = {
        "PyTorch fp32": lambda: eager(False),
        "PyTorch TF32": lambda: eager(True),
        "PyTorch fp16 channels-last": lambda: half(torch.float16),
        "PyTorch bf16 channels-last": lambda: half(torch.bfloat16),
    }
    if compiled:
        peers["torch.compile fp16"] = lambda: half(torch.float16, compile_it=True)
    try:
        import onnxruntime
    except ImportError:
        return peers
    for provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        if bench.device != "cpu" and provider in onnxruntime.get_available_providers():
            peers[f"ONNX Runtime {provider}"] = lambda provider=provider: _exported(net, sets, provider)  # type: ignore
    return peers


def _exported(net: MMN, sets: list[torch.Tensor], provider: str) -> Run:
    import io

    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(_VideoBranch(net), (sets[0],), file, verbose=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=[provider])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"ONNX Runtime took {session.get_providers()[0]} instead of {provider}")
    binding, name = session.io_binding(), session.get_inputs()[0].name
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda")

    def run(number: int) -> Any:
        binding.bind_input(name, "cuda", 0, np.float32, list(sets[number].shape), sets[number].data_ptr())
        session.run_with_iobinding(binding)
        return lambda: [torch.from_numpy(value.numpy()).to(sets[0].device) for value in binding.get_outputs()]

    return run


def _error(found: Any, expected: Any) -> float:
    found = [branch[: len(expected[0])] for branch in (found() if callable(found) else found)]
    return max(float((a.float() - b).abs().max()) for a, b in zip(found, expected, strict=True))


def _encode_video(bench: Bench, case: cases.GoldenCase, model: LoadedModel, batches: list[int], compiled: bool) -> None:
    preset, plan = case.preset, plan_for(case.preset)
    net = build_model(preset, case.text, case.state()).requires_grad_(False).to(bench.device)
    work = video_flop(model)
    size = preset.num_pre_clips * preset.input_size + 2 * plan.num_proposals * preset.joint_size
    weights = sum(array.size for name, array in model.state.items() if not name.startswith("text_encoder."))
    backends = {p: NativeGpuBackend(model, bench.device, p, None) for p in _PRECISIONS}
    for batch in batches:
        shape = (batch, preset.num_pre_clips, preset.input_size)
        sets = [torch.randn(shape, device=bench.device) for _ in range(INPUT_SETS)]
        flop, moved = batch * work, 2 * (weights + batch * size)
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            # One video at a time: 48 dense maps in float32 need more memory than what is compared.
            parts = [net.encode_video(sets[0][n : n + 1]) for n in range(min(batch, 8))]
        expected = [torch.cat(branch) for branch in zip(*parts, strict=True)]
        runs = {f"mmn_fast {p}": _ours(backend, sets) for p, backend in backends.items()}
        runs |= _peers(net, bench, sets, compiled=compiled and batch == 1)
        for peer, make in runs.items():
            if bench.out_of_time(f"{preset.name}, batch {batch}, {peer}"):
                continue
            if bench.device != "cpu":
                torch.cuda.reset_peak_memory_stats()
            try:
                run = make()
                error = _error(run(0), expected)
                taken = bench.time_ms(run)
            except (RuntimeError, MemoryError) as problem:
                print(f"not measured: {preset.name}, batch {batch}, {peer}: {str(problem).splitlines()[0]}", flush=True)
                continue
            peak = 0.0 if bench.device == "cpu" else torch.cuda.max_memory_allocated() / 2**20
            facts = {"preset": preset.name, "batch": batch, "peak_mib": round(peak, 1)}
            bench.write("encode_video", peer, taken, error, **facts, **bench.roofline(flop, moved, taken))


def _encode_text(bench: Bench, case: cases.GoldenCase, model: LoadedModel, batches: list[int]) -> None:
    """Sentences of 16 word pieces on the device."""
    text, length = case.text, min(16, case.text.max_tokens)
    net = build_model(case.preset, text, case.state()).requires_grad_(False).to(bench.device)
    backend = NativeGpuBackend(model, bench.device, "fp16", None)
    weights = sum(array.size for name, array in model.state.items() if ".layer." in name)
    for batch in batches:
        ids = [torch.randint(text.vocab_size, (batch, length), device=bench.device) for _ in range(INPUT_SETS)]
        lengths = torch.full((batch,), length, device=bench.device)

        def reference(number: int, ids: list[torch.Tensor] = ids, lengths: torch.Tensor = lengths) -> Any:
            with torch.inference_mode():
                return [nn.functional.normalize(branch, dim=-1) for branch in net.text_encoder(ids[number], lengths)]

        def half(number: int, run: Run = reference) -> Any:
            with torch.autocast(bench.device, torch.float16):
                return run(number)

        def ours(number: int, ids: list[torch.Tensor] = ids, lengths: torch.Tensor = lengths) -> Any:
            return backend.run("text", [ids[number], lengths])

        torch.set_float32_matmul_precision("highest")
        expected = reference(0)
        flop, moved = batch * length * text_flop(model), 2.0 * weights
        for peer, run in (("mmn_fast fp16", ours), ("PyTorch fp32", reference), ("PyTorch fp16", half)):
            if bench.out_of_time(f"encode_text, batch {batch}, {peer}"):
                continue
            error, taken = _error(run(0), expected), bench.time_ms(run)
            facts = {"preset": case.preset.name, "batch": batch, "tokens": length}
            bench.write("encode_text", peer, taken, error, **facts, **bench.roofline(flop, moved, taken))


def _ours(backend: NativeGpuBackend, sets: list[torch.Tensor]) -> Callable[[], Run]:
    def make() -> Run:
        inputs = [one.to(_PRECISIONS[backend.precision]) for one in sets]
        return lambda number: backend.run("video", [inputs[number]])

    return make


def _score(bench: Bench, case: cases.GoldenCase, engine: Engine) -> None:
    """Moments of sentences from embeddings on the host, beside the official post-processing on the device."""
    preset, plan = case.preset, plan_for(case.preset)
    rng = np.random.default_rng(0)
    video = [rng.standard_normal((plan.num_proposals, preset.joint_size)).astype(np.float32) for _ in range(2)]
    text = [rng.standard_normal((len(_SENTENCES), preset.joint_size)).astype(np.float32) for _ in range(2)]
    video, text = ([a / np.linalg.norm(a, axis=1, keepdims=True) for a in side] for side in (video, text))
    moments = cells_to_moments(plan.cells, 30.0, preset.num_clips)
    maps = [torch.zeros(preset.joint_size, preset.num_clips, preset.num_clips, device=bench.device) for _ in range(2)]
    rows, columns = torch.from_numpy(plan.cells).long().unbind(1)
    for map2d, packed in zip(maps, video, strict=True):
        map2d[:, rows, columns] = torch.from_numpy(packed).T.to(bench.device)
    mask, sentences = torch.from_numpy(plan.mask).to(bench.device), [torch.from_numpy(a).to(bench.device) for a in text]
    backend = engine._backend

    def ours(_: int) -> Any:
        return backend.score_moments((video[0], video[1]), (text[0], text[1]), moments, 5)

    def official(_: int) -> Any:
        with torch.inference_mode():
            return official_moments(maps, sentences, mask, preset, 30.0)

    theirs, chosen = official(0), ours(0)[0]
    best = np.stack([found[0].cpu().numpy() for found in theirs])
    error = float(np.abs(moments[chosen[:, 0]] - best).max())
    # Both branches' cosines of every sentence and proposal, from embeddings that are read once.
    flop = 4.0 * len(_SENTENCES) * plan.num_proposals * preset.joint_size
    moved = sum(array.nbytes for side in (video, text) for array in side)
    for peer, run in (("mmn_fast", ours), ("official", official)):
        taken = bench.time_ms(run, 5)
        facts = {"preset": preset.name, "batch": len(_SENTENCES)}
        bench.write("score", peer, taken, error, **facts, **bench.roofline(flop, moved, taken))


def _whole(
    bench: Bench,
    case: cases.GoldenCase,
    model: LoadedModel,
    engines: dict[str, Engine],
    batches: list[tuple[int, int]],
) -> None:
    """`ground` from features on the host to moments on the host, by the clock."""
    rng = np.random.default_rng(0)
    for count, queries in batches:
        batch = [
            mmn_fast.Query(
                mmn_fast.Video(rng.standard_normal((40, case.preset.input_size)).astype(np.float32), 30.0 + number),
                [f"{sentence} {number}" for sentence in _SENTENCES[:queries]],
            )
            for number in range(count)
        ]
        expected = engines["PyTorch fp32"].ground(batch)
        # Products of videos and of sentences of some 8 word pieces; features over the bus are not in the floor.
        flop = count * video_flop(model) + count * queries * 8 * text_flop(model)
        moved = 2.0 * sum(array.size for array in model.state.values())
        for peer, engine in engines.items():
            if bench.out_of_time(f"ground, {count} videos, {peer}"):
                continue
            found = engine.ground(batch)
            error = max(
                abs(ours[0].score - exact[0].score)
                for mine, theirs in zip(found, expected, strict=True)
                for ours, exact in zip(mine, theirs, strict=True)
            )
            taken: list[float] = []
            started = time.perf_counter()
            while len(taken) < (2 if bench.rehearse else 200) and time.perf_counter() - started < 3:
                start = time.perf_counter()
                engine.ground(batch)
                taken.append((time.perf_counter() - start) * 1e3)
            facts = {"preset": case.preset.name, "batch": count, "queries": queries}
            bench.write("ground", peer, taken, error, **facts, **bench.roofline(flop, moved, taken))
    engine, query = engines["mmn_fast fp16"], batch[0]
    embedded = engine.encode_video([query.video])
    again = engine.score(embedded, engine.encode_text(query.sentences))[0]
    error = max(abs(m[0].score - e[0].score) for m, e in zip(again, expected[0], strict=True))
    taken = []
    for number in range(2 if bench.rehearse else 100):
        start = time.perf_counter()
        engine.score(embedded, engine.encode_text([f"{_SENTENCES[0]} {number}"]))
        taken.append((time.perf_counter() - start) * 1e3)
    bench.write("cached video", "mmn_fast fp16", taken, error, preset=case.preset.name, batch=1, queries=1)


def main() -> None:
    """Run the benchmark and append its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["charades", "activitynet", "tacos"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 48])
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    device = "cpu" if options.rehearse else "cuda"
    if not options.rehearse:
        reason = NativeGpuBackend.unavailable_reason("cuda", "auto")
        if reason:
            parser.error(f"{reason} (--rehearse runs the steps on the CPU)")
    deadline = math.inf if options.rehearse else time.monotonic() + options.seconds
    bench = Bench(device, options.rehearse, deadline)
    measure_rates(bench)
    failed: list[str] = []
    for name in ["charades"] if options.rehearse else options.presets:
        if bench.out_of_time(name):
            continue
        case = cases.load(f"{name}_{'small' if options.rehearse else 'full'}")
        tokenizer = load_tokenizer(cases.VOCAB, case.text.max_tokens)
        model = LoadedModel(case.preset, case.text, case.state(), tokenizer, name)
        engines = {
            "mmn_fast fp16": Engine(model, NativeGpuBackend(model, device, "fp16", None)),
            "PyTorch fp32": Engine(model, cast(Any, TorchBackend(model, device, "fp32", None))),
        }
        batches = [2] if options.rehearse else options.batches
        requests = [(1, 1), (2, 2)] if options.rehearse else [(1, 1), (48, 4)]
        compiled = options.compiled and not options.rehearse and case.preset.num_clips <= 16
        for what, step in (
            ("ground", partial(_whole, bench, case, model, engines, requests)),
            ("score", partial(_score, bench, case, engines["mmn_fast fp16"])),
            ("encode_text", partial(_encode_text, bench, case, model, batches)),
            ("stages", partial(bench_stages, bench, model, batches, INPUT_SETS)),
            ("encode_video", partial(_encode_video, bench, case, model, batches, compiled)),
        ):
            if bench.out_of_time(f"{name}, {what}"):
                continue
            try:
                step()
            except Exception:  # what the other steps measure is worth having
                traceback.print_exc()
                failed.append(f"{name}, {what}")
            gc.collect()  # an engine is in reference cycles, and its graphs hold gigabytes
    if failed:
        parser.exit(1, f"bench_gpu: failed: {'; '.join(failed)}\n")


if __name__ == "__main__":
    main()
