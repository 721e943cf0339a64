"""The proposal convolution on a GPU: dense and cropped in cuDNN, gathered, by FFT tiles, each by its best.

Weights are those of the full-size golden cases, maps are random; all is fp16 with maps on the device, replayed from
CUDA graphs (torch.compile apart) over rotated maps on a busy device, so that launches do not enter (`gpu_timing`). The
error is the largest difference from dense convolutions in fp32 without TF32, of the largest value of two videos;
`of_direct_error` is that error over the one of dense convolutions in fp16. TFLOP/s are of what was executed. Beside
every time stand the predicted one (`costs`) and the gate that it was given, if any. `over_dense` is over the
faster of the dense lines, as cuDNN comes and with cudnn.benchmark, which is left out for more than eight videos.

First, per preset, what FFT tiles stand or fall with: the products and the transform of one layer of eight videos, by
the library and by our kernels, in tiles of the size that was predicted to be fastest. "fft" is each layer by its
fastest tiles, "mixed" each by the fastest of all that are accurate enough.

    python -m benchmarks.bench_gather [--presets tacos ...] [--batches 1 8 48] [--seconds 90] [--tune] [--compiled]
        [--rehearse]

Presets and batches run in the order in which they are given. What crop, mixed and every layer took goes to the choices
that come with the package (`gather_choices.json`), which "auto" takes from then on, but only where all of them were
timed for a number of videos. A layer's time is its share of the whole stack's, so whole stacks are compared.
--tune measures block sizes first, which takes minutes, and writes them there too. --compiled adds torch.compile
(max-autotune) for one video of a preset of 16 clips, which tunes for a minute or more. --rehearse runs the rest on a
tiny map in Triton's interpreter, in fp32, and writes nothing.
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
"""From a padded map to the rows of the plan's cells."""

GATES_MS = {
    ("tacos", 8, "gather"): 12.5,
    ("activitynet-captions", 8, "gather"): 5.5,
    ("charades-sta", 1, "gather"): 0.2,
    ("charades-sta", 48, "gather"): 3.4,
    ("activitynet-captions", 8, "fft"): 1.5,
    ("tacos", 8, "fft"): 4.5,
}
"""Milliseconds for all layers that an H200 should stay within, by preset, videos and algorithm."""
_COMPARED = 2  # videos whose results are held to fp32: dense maps in float32 are large


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
    """Rotated padded maps [side^2, B, C]: values of a max over random clips, zeros outside the plan's cells."""
    plan, side = layers.plan, layers.plan.num_clips + 2 * layers.plan.border
    rows = torch.from_numpy(padded_rows(plan, plan.inputs)).long().to(layers.device)
    found = []
    for _ in range(INPUT_SETS):
        one = torch.zeros((side**2, videos, layers.widths[0]), dtype=layers.dtype, device=layers.device)
        one[rows] = torch.randn((len(rows), *one.shape[1:]), dtype=layers.dtype, device=layers.device).abs()
        found.append(one)
    return found


def _dense(layers: Layers, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Channels-last convolutions of the whole map [B, C, side, side], as the official code has them."""
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
    """The plan's cells of [B, C, N, N] as [P, B, C]."""
    rows, columns = torch.from_numpy(layers.plan.cells).long().to(images.device).unbind(1)
    return images[:, :, rows, columns].permute(2, 0, 1)


class _Measurement:
    """All ways to run a preset's layers for a number of videos."""

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
            peer: its name.
            conv: takes one of `inputs`.
            flop: what it executes; None if that is not counted.
            predicted_ms: what it was predicted to take.
            inputs: None for `maps`.
            rows_of: from its results to rows of the plan's cells; not timed.
            in_graphs: whether to replay it; torch.compile records graphs of its own.

        Returns:
            The median; None where it was not measured, or launches are in it.
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
        """The whole map by the library."""
        layers, run = self.layers, _dense(self.layers, self.layers.dtype)
        flop = layers.per_tap() * layers.plan.dense_taps * self.videos
        images = [_as_images(one, layers.dtype) for one in self.maps]
        ways = {"dense": (run, False, True)}  # how, whether cuDNN picks by the clock, whether in a graph
        if self.videos <= TUNED_VIDEOS:
            ways["dense, cudnn.benchmark"] = run, True, True
        if compiled:
            ways["dense, compiled"] = torch.compile(run, mode="max-autotune"), False, False
        for peer, (way, benchmark, in_graphs) in ways.items():
            with arithmetic(benchmark=benchmark):
                self.write(peer, way, flop, None, images, partial(_as_rows, layers), in_graphs)

    def crop(self) -> None:
        """Boxes of needed cells by the library."""
        conv = CropProposalConv(self.layers)
        flop = self.layers.per_tap() * cropped_taps(self.layers.plan) * self.videos
        median = self.write("crop", conv, flop)
        if median is not None:
            self.times["crop"] = [median]

    def stack(self, conv: Any, predicted: Times) -> None:
        """One of our kernels for all layers, and each layer alone."""
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
    """Write a line of every way to run a preset's layers.

    Returns:
        What crop, mixed and each layer took, of the ways that were timed.
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
        if not needed or not needed <= ways.times.keys():  # what was not timed is not slower
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
    """Measure block sizes, and take and ship them."""
    from mmn_fast.kernels.gpu.conv.autotune import Tuner

    tuner, precision = Tuner(layers), precision_of(layers.dtype)
    for algorithm, videos in itertools.product(usable_algorithms(layers.plan.kernel), batches):
        config = tuner.measure_config(algorithm, videos)
        print(f"{layers.preset}, batch {videos}, {algorithm}: {config}", flush=True)
        key = config_key(algorithm, layers.plan, layers.widths[-1], videos, precision)
        keep(arch_of(capability_of(layers.device)), key, config)
        _ship(layers, key, config)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, append its lines and keep what layers took."""
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

    # Interpreted, tiles of other sizes take seconds more and run the same kernels.
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
    """Keep the times of a number of videos in the package if all ways were timed; else say which were not."""
    precision = precision_of(layers.dtype)
    missing = not_timed(times, layers.plan.kernel, precision)
    if missing:
        print(f"not kept: {layers.preset}, batch {videos}: not timed: {', '.join(missing)}", flush=True)
        return
    found = {name: one for name, one in times.items() if name != "fft"}  # what "fft" takes is chosen by its layers
    _ship(layers, times_key(layers.plan, layers.widths[-1], videos, precision), found)


def _ship(layers: Layers, key: str, found: GatherConfig | Times) -> None:
    """Keep what was found at once: a run that is stopped loses nothing."""
    keep(arch_of(capability_of(layers.device)), key, found, SHIPPED)
    print(f"kept {key} in {SHIPPED.name}: what auto takes on such a device from now on", flush=True)


if __name__ == "__main__":
    main()
