"""Times `encode_video` from pre-clips on a GPU: ours in each precision, and the peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.gpu_peers import PeerRun, largest_error, peers, waits
from benchmarks.gpu_stages import video_flop
from benchmarks.gpu_timing import INPUT_SETS, Bench
from mmn_fast.backends.base import Settings
from mmn_fast.backends.native_gpu import NativeGpuBackend
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.geometry import plan_for
from mmn_fast.kernels.gpu.device import strict_arithmetic
from mmn_fast.model import MMN
from mmn_fast.precisions import ON_CUDA, torch_dtype

_COMPARED = 8  # videos; the reference runs one at a time, because 48 dense maps in float32 need too much memory


class Videos:
    """Random sets of pre-clips, and the reference's embeddings of the first set.

    Args:
        bench: says which device is measured.
        model: gives the sizes.
        net: the reference in float32, on the device.
        count: videos per set.
    """

    def __init__(self, bench: Bench, model: LoadedModel, net: MMN, count: int) -> None:
        preset, plan = model.preset, plan_for(model.preset)
        self.preset, self.count = preset, count
        shape = (count, preset.num_pre_clips, preset.input_size)
        self.sets = [torch.randn(shape, device=bench.device) for _ in range(INPUT_SETS)]
        with strict_arithmetic():
            parts = [net.encode_video(self.sets[0][n : n + 1]) for n in range(min(count, _COMPARED))]
        self.expected = [torch.cat(branch) for branch in zip(*parts, strict=True)]
        size = preset.num_pre_clips * preset.input_size + 2 * plan.num_proposals * preset.joint_size
        weights = sum(array.size for name, array in model.state.items() if not name.startswith("text_encoder."))
        self.work = count * video_flop(model), 2.0 * (weights + count * size)


def bench_videos(bench: Bench, model: LoadedModel, net: MMN, batches: Sequence[int], compiled: bool) -> None:
    """Time `encode_video` for each number of videos: ours in every precision, then the peers.

    Args:
        bench: device, time limit and results.
        model: the model of all candidates.
        net: the reference in float32, on the device.
        batches: numbers of videos.
        compiled: include torch.compile as a peer for one video.
    """
    backends = {p: NativeGpuBackend(model, Settings(bench.device, p)) for p in ON_CUDA}
    for count in batches:
        if bench.out_of_time(f"{model.preset.name}, batch {count}, encode_video"):
            continue
        videos = Videos(bench, model, net, count)
        for precision, backend in backends.items():
            bench_ours(bench, videos, backend, f"mmn_fast {precision}")
        for peer, make in peers(net, bench, videos.sets, compiled and count == 1).items():
            _bench(bench, videos, peer, make, waits(peer))


def bench_ours(bench: Bench, videos: Videos, backend: NativeGpuBackend, peer: str, **facts: Any) -> None:
    """Time `encode_video` of one of our backends."""

    def make() -> PeerRun:
        inputs = [one.to(torch_dtype(backend.precision)) for one in videos.sets]
        return lambda number: backend.run("video", [inputs[number]])

    _bench(bench, videos, peer, make, False, **facts)


def _bench(bench: Bench, videos: Videos, peer: str, make: Callable[[], PeerRun], by_host: bool, **facts: Any) -> None:
    what = f"{videos.preset.name}, batch {videos.count}, {peer}"
    if bench.out_of_time(what):
        return
    held = 0 if bench.device == "cpu" else torch.cuda.memory_allocated()
    if bench.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    try:
        run = make()
        error = largest_error(run(0), videos.expected)
        timing = bench.time_on_host(run, 30, 0.5) if by_host else bench.time(run)
    except (RuntimeError, MemoryError) as problem:
        print(f"not measured: {what}: {str(problem).splitlines()[0]}", flush=True)
        return
    peak = 0 if bench.device == "cpu" else torch.cuda.max_memory_allocated()
    memory = {"held_mib": round(held / 2**20, 1), "peak_mib": round(peak / 2**20, 1)}  # before `make`, most since then
    facts |= {"preset": videos.preset.name, "batch": videos.count, **memory}
    bench.write("encode_video", peer, timing, error, videos.work, **facts)
