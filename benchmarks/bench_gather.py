"""Times the proposal convolution on a GPU: dense and cropped in cuDNN, gathered, by FFT tiles, and mixtures of these.

The weights come from the full-size golden cases, the maps are random. All maps are fp16 on the device. Work is replayed
from CUDA graphs (except torch.compile's) over rotated maps on a busy device, so times do not include launches
(`gpu_timing`). The error is the largest difference from dense convolutions in fp32 without TF32, divided by the largest
value, over two videos; `of_direct_error` divides this error by that of dense convolutions in fp16. TFLOP/s count
executed operations. Each line also has the predicted time (`costs`) and its gate, if it has one. `over_dense` divides
the time of the fastest dense line by the line's time; the dense lines are cuDNN with its default choice of algorithms,
and with cudnn.benchmark for up to eight videos.

Each preset begins with the products and the transform of one layer of eight videos, by the library and by our kernels,
in tiles of the size that is predicted to be fastest: these two decide whether FFT tiles pay. "fft" runs each layer by
its fastest tiles, "mixed" each layer by the fastest of all algorithms that are accurate enough.

    python -m benchmarks.bench_gather [--presets tacos ...] [--batches 1 8 48] [--seconds 90] [--tune] [--compiled]
        [--rehearse]

Presets and batches run in the given order. The times of crop, mixed and every layer go to the package's choices
(`gather_choices.json`), and "auto" chooses by them from then on; a number of videos is written only if all ways were
timed for it. A layer's time is its share of the whole stack's time, so whole stacks are compared.
--tune first measures block sizes, which takes minutes, and writes them to the same file. --compiled adds torch.compile
(max-autotune) for one video of a preset of 16 clips; its tuning takes a minute or more. --rehearse runs all other steps
on a tiny map in Triton's interpreter, in fp32, and writes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.conv_layers import Layers, difference
from benchmarks.fft_products import GO_VIDEOS, bench_products
from benchmarks.golden import cases
from benchmarks.gpu_peers import TUNED_VIDEOS, arithmetic
from benchmarks.gpu_timing import INPUT_SETS, Bench, add_options, start
from mmn_fast.geometry import plan_for, proposal_plan
from mmn_fast.geometry_crops import cropped_taps, padded_rows
from mmn_fast.kernels.folding import folded_layers
from mmn_fast.kernels.gpu import device as gpu_device
from mmn_fast.kernels.gpu import interpreter
from mmn_fast.kernels.gpu.conv import costs
from mmn_fast.kernels.gpu.conv.block_sizes import SHIPPED, GatherConfig, Times, arch_of, config_key, keep, times_key
from mmn_fast.kernels.gpu.conv.costs import TILES, engine_algorithms, not_timed, usable_algorithms
from mmn_fast.kernels.gpu.conv.crop import CropProposalConv
from mmn_fast.kernels.gpu.device import capability_of
from mmn_fast.precisions import precision_of

Conv = Callable[[Tensor], Tensor]
"""Maps a padded map to the rows of the plan's cells."""

GATES_MS = {
    ("tacos", 8, "gather"): 12.5,
    ("activitynet-captions", 8, "gather"): 5.5,
    ("charades-sta", 1, "gather"): 0.2,
    ("charades-sta", 48, "gather"): 3.4,
    ("activitynet-captions", 8, "fft"): 1.5,
    ("tacos", 8, "fft"): 4.5,
}
"""Upper limit of the time of all layers on an H200, ms: (preset, videos, algorithm) -> limit."""
_COMPARED = 2  # videos that are compared with fp32; not more, because dense maps in float32 are large


def _load(name: str, rehearse: bool) -> Layers:
    if rehearse:
        plan, rng = proposal_plan(3, (2,), 3, 1), np.random.default_rng(0)
        weights = [rng.standard_normal((16, 16, 3, 3), np.float32) / 3 for _ in plan.layers]
        biases = [np.zeros(16, np.float32) for _ in plan.layers]
        return Layers(weights, biases, plan, torch.float32, torch.device("cpu"), "tiny")
    case = cases.load(f"{name}_full")
    weights, biases = folded_layers(case.state(), case.preset.conv_layers)
    device = torch.device("cuda", torch.cuda.current_device())
    return Layers(weights, biases, plan_for(case.preset), torch.float16, device, case.preset.name)


def _maps(layers: Layers, videos: int) -> list[Tensor]:
    """Make padded maps [side^2, B, C] to rotate: absolute random values at the plan's cells, zeros elsewhere."""
    plan, side = layers.plan, layers.plan.num_clips + 2 * layers.plan.border
    rows = torch.from_numpy(padded_rows(plan, plan.inputs)).long().to(layers.device)
    found = []
    for _ in range(INPUT_SETS):
        one = torch.zeros((side**2, videos, layers.widths[0]), dtype=layers.dtype, device=layers.device)
        one[rows] = torch.randn((len(rows), *one.shape[1:]), dtype=layers.dtype, device=layers.device).abs()
        found.append(one)
    return found


def _dense(layers: Layers, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Make the official code's convolutions of the whole map [B, C, side, side], channels last."""
    device = layers.device
    weights = [torch.from_numpy(w).to(device, dtype).to(memory_format=torch.channels_last) for w in layers.weights]
    biases = [torch.from_numpy(b).to(device, dtype) for b in layers.biases]
    masks = [torch.from_numpy(layer.weights).to(device, dtype) for layer in layers.plan.layers]

    def run(x: Tensor) -> Tensor:
        for weight, bias, mask in zip(weights, biases, masks, strict=True):
            x = F.conv2d(x, weight, bias).relu_() * mask
        return x

    return run


def _as_images(map_padded: Tensor, dtype: torch.dtype) -> Tensor:
    cells, videos, channels = map_padded.shape
    side = round(cells**0.5)
    images = map_padded.to(dtype).transpose(0, 1).reshape(videos, side, side, channels)
    return images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _as_rows(layers: Layers, images: Tensor) -> Tensor:
    """Pick the plan's cells of maps [B, C, N, N]: [P, B, C]."""
    rows, columns = torch.from_numpy(layers.plan.cells).long().to(images.device).unbind(1)
    return images[:, :, rows, columns].permute(2, 0, 1)


class _Measurement:
    """Times each way to run a preset's layers for one number of videos."""

    def __init__(self, bench: Bench, layers: Layers, videos: int) -> None:
        self.bench, self.layers, self.videos = bench, layers, videos
        self.maps = _maps(layers, videos)
        compared = _as_images(self.maps[0][:, :_COMPARED], torch.float32)
        self._exact = _as_rows(layers, _dense(layers, torch.float32)(compared))
        self._direct_error, self._dense_ms = 0.0, math.inf
        self.times: Times = {}

    def write(
        self,
        peer: str,
        conv: Conv,
        flop: float | None,
        predicted_ms: float | None = None,
        inputs: list[Tensor] | None = None,
        rows_of: Conv = lambda found: found,
        in_graphs: bool = True,
    ) -> float | None:
        """Time one way and write its line.

        Args:
            peer: name of the way.
            conv: runs the layers on one of `inputs`.
            flop: operations that `conv` executes; None if they are not counted.
            predicted_ms: predicted time; None if there is none.
            inputs: maps in the form that `conv` takes; None means `self.maps`.
            rows_of: turns a result of `conv` into rows of the plan's cells; not timed.
            in_graphs: replay `conv` from a CUDA graph; False for torch.compile, which records its own graphs.

        Returns:
            The median in ms; None if it was not measured, or if it includes launches.
        """
        inputs = self.maps if inputs is None else inputs
        layers, what = self.layers, f"{self.layers.preset}, batch {self.videos}, {peer}"
        if self.bench.out_of_time(what):
            return None
        try:
            error = difference(rows_of(conv(inputs[0]))[:, :_COMPARED], self._exact)
            runs = [partial(conv, one) for one in inputs]
            timing = self.bench.time_captured(runs) if in_graphs else self.bench.clock.times(runs)
        except (RuntimeError, MemoryError) as problem:
            print(f"not measured: {what}: {str(problem).splitlines()[0]}", flush=True)
            return None
        median = timing.median_ms
        facts: dict[str, Any] = {"preset": layers.preset, "batch": self.videos}
        if flop is not None:
            facts["tflops"] = flop / median / 1e9
        if peer.startswith("dense"):
            self._dense_ms = min(self._dense_ms, median)
            self._direct_error = self._direct_error or error
        else:
            facts["over_dense"] = self._dense_ms / median
            if self._direct_error:
                facts["of_direct_error"] = error / self._direct_error
        if predicted_ms is not None:
            facts["predicted_ms"] = predicted_ms
        gate = GATES_MS.get((layers.preset, self.videos, peer))
        if gate is not None:
            facts |= {"gate_ms": gate, "of_gate": median / gate}
        self.bench.write("proposal_conv", peer, timing, error, **facts)
        shown = {name: value for name, value in facts.items() if name not in ("preset", "batch")}
        print(" " * 15 + ", ".join(f"{name} {value:.3g}" for name, value in shown.items()), flush=True)
        return median if timing.clock == "device" else None

    def dense(self, compiled: bool) -> None:
        """Time the library's convolutions of the whole map."""
        layers, run = self.layers, _dense(self.layers, self.layers.dtype)
        flop = layers.per_tap() * layers.plan.dense_taps * self.videos
        images = [_as_images(one, layers.dtype) for one in self.maps]
        ways = {"dense": (run, False, True)}  # function, cudnn.benchmark, in a CUDA graph
        if self.videos <= TUNED_VIDEOS:
            ways["dense, cudnn.benchmark"] = run, True, True
        if compiled:
            ways["dense, compiled"] = torch.compile(run, mode="max-autotune"), False, False
        for peer, (way, benchmark, in_graphs) in ways.items():
            with arithmetic(benchmark=benchmark):
                self.write(peer, way, flop, None, images, partial(_as_rows, layers), in_graphs)

    def crop(self) -> None:
        """Time the library's convolutions of boxes of needed cells."""
        conv = CropProposalConv(self.layers)
        flop = self.layers.per_tap() * cropped_taps(self.layers.plan) * self.videos
        median = self.write("crop", conv, flop)
        if median is not None:
            self.times["crop"] = [median]

    def stack(self, conv: Any, predicted: Times) -> None:
        """Time one of our kernels on all layers, then on each layer alone."""
        plan, pairs, config = self.layers.plan, enumerate(pairwise(self.layers.widths)), conv.config_for(self.videos)
        if conv.name == "gather":
            flop = sum(costs.gather_flop(plan, n, *pair, self.videos, config) for n, pair in pairs)
        else:
            flop = sum(costs.product_flop(plan, n, *pair, self.videos, config, conv.name) for n, pair in pairs)
        whole_ms = self.write(conv.name, conv, flop, sum(predicted[conv.name]))
        if whole_ms is None or self.bench.out_of_time(
            f"{self.layers.preset}, batch {self.videos}, {conv.name} by layer"
        ):
            return
        rows = self.maps[0].new_empty((plan.num_proposals, self.videos, self.layers.widths[-1]))
        self.times[conv.name] = self.bench.clock.layers_ms(conv.layer_runs(self.maps[0], rows), whole_ms)


def measure(bench: Bench, layers: Layers, stacks: dict[str, Any], videos: int, compiled: bool) -> Times:
    """Time every way to run a preset's layers and write its line.

    Returns:
        Times of crop, of mixed, and of each layer by each kernel; ways that were not timed are absent.
    """
    from mmn_fast.kernels.gpu.conv.mixed import MixedProposalConv

    ways = _Measurement(bench, layers, videos)
    predicted = costs.predicted_on(capability_of(layers.device), layers.plan, layers.widths, videos)
    ways.dense(compiled)
    ways.crop()
    for stack in stacks.values():
        ways.stack(stack, predicted)
        stack.release()
    engines = engine_algorithms(layers.plan, layers.widths, precision_of(layers.dtype))
    for name, among in (("fft", TILES), ("mixed", engines)):
        needed = stacks.keys() & set(among)
        if not needed or not needed <= ways.times.keys():  # a part that was not timed might be the fastest
            print(f"not measured: {layers.preset}, batch {videos}, {name}: not all of its parts were timed", flush=True)
            continue
        chosen, expected = (costs.choose_layers(times, needed) for times in (ways.times, predicted))
        print(f"{'':15}{name}: {' '.join(chosen)}; predicted {' '.join(expected)}")
        mixed = MixedProposalConv(layers, {videos: chosen}, stacks, name=name)
        whole_ms = ways.write(name, mixed, None, costs.chosen_ms(predicted, chosen))
        if whole_ms is not None:
            ways.times[name] = [whole_ms]
        mixed.release()
    return ways.times


def _tune(layers: Layers, batches: list[int]) -> None:
    """Measure block sizes, use them in this run, and write them to the package's choices."""
    from mmn_fast.kernels.gpu.conv.autotune import Tuner

    tuner, precision = Tuner(layers), precision_of(layers.dtype)
    for algorithm, videos in itertools.product(usable_algorithms(layers.plan.kernel), batches):
        config = tuner.measure_config(algorithm, videos)
        print(f"{layers.preset}, batch {videos}, {algorithm}: {config}", flush=True)
        key = config_key(algorithm, layers.plan, layers.widths[-1], videos, precision)
        keep(arch_of(capability_of(layers.device)), key, config)
        _ship(layers, key, config)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, append its lines and keep the layers' times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, ["activitynet", "tacos", "charades"], [1, 8, 48])
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args(arguments)
    if options.rehearse:
        interpreter.enable()
    else:
        reason = gpu_device.unavailable_reason("cuda")
        if reason:
            parser.error(f"{reason} (--rehearse runs the steps on the CPU)")
    bench = start(options, "bench_gather")
    with gpu_device.strict_arithmetic():
        for name in ["tiny"] if options.rehearse else options.presets:
            if not bench.out_of_time(name):
                _bench_preset(bench, options, _load(name, options.rehearse))


def _bench_preset(bench: Bench, options: argparse.Namespace, layers: Layers) -> None:
    from mmn_fast.kernels.gpu.conv.mixed import make_stack

    # A rehearsal leaves out further tile sizes: they run the same kernels and take seconds in the interpreter.
    algorithms = usable_algorithms(layers.plan.kernel)[: 2 if options.rehearse else None]
    stacks: dict[str, Any] = {algorithm: make_stack(algorithm, layers) for algorithm in algorithms}
    predicted = costs.predicted_on(capability_of(layers.device), layers.plan, layers.widths, GO_VIDEOS)
    tiles = min(TILES.keys() & stacks.keys(), key=lambda tiles: sum(predicted[tiles]))
    bench_products(bench, layers, stacks[tiles])
    if options.tune and not options.rehearse:
        _tune(layers, options.batches)
    for videos in [2] if options.rehearse else options.batches:
        if bench.out_of_time(f"{layers.preset}, batch {videos}"):
            continue
        compiled = options.compiled and layers.plan.num_clips <= 16 and videos == 1
        times = measure(bench, layers, stacks, videos, compiled)
        if not options.rehearse:
            ship_times(layers, videos, times)


def ship_times(layers: Layers, videos: int, times: Times) -> None:
    """Write the times of a number of videos to the package's choices if all ways were timed; else name the missing."""
    precision = precision_of(layers.dtype)
    missing = not_timed(times, layers.plan.kernel, precision)
    if missing:
        print(f"not kept: {layers.preset}, batch {videos}: not timed: {', '.join(missing)}", flush=True)
        return
    found = {name: one for name, one in times.items() if name != "fft"}  # "fft" is chosen by its layers' times
    _ship(layers, times_key(layers.plan, layers.widths[-1], videos, precision), found)


def _ship(layers: Layers, key: str, found: GatherConfig | Times) -> None:
    """Write a finding to the package's choices at once, so that a run that is stopped loses nothing."""
    keep(arch_of(capability_of(layers.device)), key, found, SHIPPED)
    print(f"kept {key} in {SHIPPED.name}: auto chooses by it on such a device from now on", flush=True)


if __name__ == "__main__":
    main()
