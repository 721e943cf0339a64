"""The proposal convolution's layers on a GPU: dense and cropped in cuDNN, gathered, by FFT tiles, each by its best.

Weights are those of the full-size golden cases, maps are random; all is fp16 with maps on the device, replayed from
CUDA graphs (torch.compile apart) and timed with CUDA events over rotated maps. The error is the largest difference
from dense convolutions in fp32 without TF32, of the largest value of two videos; `of_direct_error` is that error over
the one of dense convolutions in fp16. TFLOP/s are of what was executed. Beside every time stand the predicted one
(`gpu_conv_plan`) and the gate that it was given, if any.

First, per preset, what FFT tiles stand or fall with: the products and the transform of one layer of eight videos, by
the library and by our kernels, in tiles of the size that was predicted to be fastest. "fft" is each layer by its
fastest tiles, "mixed" each by the fastest of all.

    python -m benchmarks.bench_gather [--presets tacos ...] [--batches 8 1 48] [--seconds 90] [--tune] [--compiled]
        [--rehearse]

Layers' times go to the choices that come with the package (`gather_choices.json`): what "auto" takes from then on.
--tune measures block sizes first, which takes minutes, and writes them there too. --compiled adds torch.compile
(max-autotune) for one video of a preset of 16 clips, which tunes for a minute or more. --rehearse runs the rest on a
tiny map in Triton's interpreter, in fp32, and writes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench_gpu import INPUT_SETS, Bench, measure_rates
from benchmarks.gpu_stages import captured
from mmn_fast.geometry import FloatArray, ProposalPlan, cover_with_tiles, input_cells, plan_for, proposal_plan
from mmn_fast.geometry_crops import border_of, cropped_taps, padded_rows
from mmn_fast.kernels import gpu_conv_plan, gpu_device, triton_interpreter
from mmn_fast.kernels.conv_transforms import REAL_POINTS
from mmn_fast.kernels.folding import folded_layers
from mmn_fast.kernels.gather_choices import (
    SHIPPED,
    GatherConfig,
    Times,
    arch_of,
    config_key,
    keep,
    times_key,
)
from mmn_fast.kernels.gather_schedule import side_of_input
from mmn_fast.kernels.gpu_conv_plan import ALGORITHMS, TILES, chosen_ms, usable_algorithms
from mmn_fast.kernels.gpu_device import capability_of, precision_of
from mmn_fast.kernels.gpu_video import CropProposalConv
from tests.golden import cases

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
"""Of an H200, for all layers: preset, videos, algorithm."""
_COMPARED = 2  # videos whose results are held to fp32: dense maps in float32 are large
_GO_VIDEOS = 8


@dataclass
class Layers:
    """A preset's layers, and what was measured of them."""

    preset: str
    plan: ProposalPlan
    weights: list[FloatArray]
    biases: list[FloatArray]
    dtype: torch.dtype
    device: torch.device

    @property
    def arguments(self) -> tuple:
        """What the constructors of proposal convolutions take."""
        return self.weights, self.biases, self.plan, self.dtype, self.device

    @property
    def widths(self) -> list[int]:
        """Channels of the map and of every layer."""
        return [self.weights[0].shape[1], *map(len, self.biases)]

    def per_tap(self) -> float:
        """FLOP of a cell x tap product; the mean of layers of different widths."""
        return 2.0 * float(np.mean([a * b for a, b in pairwise(self.widths)]))


def _load(name: str, rehearse: bool) -> Layers:
    if rehearse:
        plan, rng = proposal_plan(3, (2,), 3, 1), np.random.default_rng(0)
        weights = [rng.standard_normal((16, 16, 3, 3), np.float32) / 3 for _ in plan.layers]
        biases = [np.zeros(16, np.float32) for _ in plan.layers]
        return Layers("tiny", plan, weights, biases, torch.float32, torch.device("cpu"))
    case = cases.load(f"{name}_full")
    weights, biases = folded_layers(case.state(), case.preset.conv_layers)
    device = torch.device("cuda", torch.cuda.current_device())
    return Layers(case.preset.name, plan_for(case.preset), list(weights), list(biases), torch.float16, device)


def _maps(layers: Layers, videos: int) -> list[Tensor]:
    """Rotated padded maps [side^2, B, C]: values of a max over random clips, zeros outside the plan's cells."""
    plan, side = layers.plan, layers.plan.num_clips + 2 * border_of(layers.plan)
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


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest one, of the largest expected value."""
    return float((found.float() - expected).abs().max() / expected.abs().max())


def go_or_not(bench: Bench, layers: Layers, conv: Any) -> None:
    """The products and the forward transform of the middle layer, by the library and by our kernels.

    Args:
        bench: where and how long.
        layers: a preset's.
        conv: their `FourierProposalConv` of some tiles.
    """
    plan, number = layers.plan, len(layers.plan.layers) // 2
    c_in, c_out = layers.widths[number : number + 2]
    side = side_of_input(plan, number)
    map_in = torch.rand((side**2, _GO_VIDEOS, c_in), device=layers.device).to(layers.dtype)
    conv.prepare_layers([number], _GO_VIDEOS)
    spectra_in, spectra_out = (spectra.flatten(1, 2) for spectra in conv.spectra(number, _GO_VIDEOS))
    rows, tile = spectra_in.shape[1], conv.transform_of_tiles

    cover = cover_with_tiles(plan, number, tile.m)
    at = torch.from_numpy(input_cells(plan, number) @ [side, 1]).to(layers.device)
    under = torch.from_numpy(cover.inputs).long().to(layers.device)
    windows = torch.where((under >= 0)[..., None, None], map_in[at[under.clamp(min=0)]], 0)  # [tiles, n * n, B, C]
    windows = windows.movedim(1, -1).unflatten(-1, (tile.tile, tile.tile)).float().contiguous()
    points = torch.from_numpy(tile.points(layers.weights[number])).to(map_in).mT.contiguous()  # [n * n, C_in, C_out]
    values = tile.points_per_tile
    real = slice(values - REAL_POINTS, values)

    def library_products() -> Tensor:
        return spectra_in @ points

    def library_transform() -> Tensor:
        return torch.fft.rfft2(windows, norm="forward")

    conv.transform(number, map_in)
    conv.multiply(number, _GO_VIDEOS)
    product, means = spectra_in[real].float() @ points[real].float(), windows.mean((-2, -1)).flatten(0, 1)
    errors = {
        ("transform", "library"): _difference(library_transform()[..., 0, 0].real.flatten(0, 1), means),
        ("transform", "mmn_fast"): _difference(spectra_in[values - REAL_POINTS], means),
        ("products", "library"): _difference(library_products()[real], product),
        ("products", "mmn_fast"): _difference(spectra_out[real], product),
    }
    rates = gpu_conv_plan.rates_of(capability_of(layers.device))
    unit = 2.0 * rows * c_in
    moved_in, moved_out = spectra_in.nbytes, spectra_out.nbytes
    transform_ms, per_product = 2 * moved_in / rates.memory_gbps / 1e6, rates.product_tflops * 1e9
    # The library multiplies a real matrix per spectral value, half of the complex products; its transform reads and
    # writes float32, windows that were gathered for it.
    for what, peer, flop, moved, predicted_ms, run in (
        ("transform", "library", 0.0, 2 * windows.nbytes, None, library_transform),
        ("transform", "mmn_fast", 0.0, 2 * moved_in, transform_ms, partial(conv.transform, number, map_in)),
        ("products", "library", unit * c_out * values, moved_in + moved_out + points.nbytes,
         unit * c_out * values / per_product, library_products),
        ("products", "mmn_fast", unit * c_out * tile.products, moved_in + moved_out + points.nbytes,
         unit * c_out * tile.products / per_product, partial(conv.multiply, number, _GO_VIDEOS)),
    ):  # fmt: skip
        if bench.out_of_time(f"{layers.preset}, {what}, {peer}"):
            continue
        replay = captured(run, map_in.is_cuda)
        taken = bench.time_ms(lambda _, replay=replay: replay())  # type: ignore[misc]
        median = float(np.median(taken))
        reached = {"tflops": flop / median / 1e9, "gbps": moved / median / 1e6}
        facts: dict[str, Any] = {
            "preset": layers.preset,
            "batch": _GO_VIDEOS,
            "layer": number,
            "tile": tile.tile,
            **reached,
        }
        if predicted_ms is not None:
            facts["predicted_ms"] = predicted_ms
        bench.write(f"fft {what}", peer, taken, errors[what, peer], **facts, **bench.roofline(flop, moved, taken))
        shown = "" if predicted_ms is None else f", predicted {predicted_ms:.3g} ms"
        print(f"{'':15}{reached['tflops']:.0f} TFLOP/s, {reached['gbps']:.0f} GB/s{shown}", flush=True)


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
            The median, None where it was not measured.
        """
        inputs = self.maps if inputs is None else inputs
        layers, what = self.layers, f"{self.layers.preset}, batch {self.videos}, {peer}"
        if self.bench.out_of_time(what):
            return None
        try:
            error = _difference(rows_of(conv(inputs[0]))[:, :_COMPARED], self._exact)
            runs = [captured(partial(conv, one), one.is_cuda and in_graphs) for one in inputs]
            taken = self.bench.time_ms(lambda number: runs[number]())
        except (RuntimeError, MemoryError) as problem:
            print(f"not measured: {what}: {str(problem).splitlines()[0]}", flush=True)
            return None
        median = float(np.median(taken))
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
        self.bench.write("proposal_conv", peer, taken, error, **facts)
        shown = {name: value for name, value in facts.items() if name not in ("preset", "batch")}
        print(" " * 15 + ", ".join(f"{name} {value:.3g}" for name, value in shown.items()), flush=True)
        return median

    def dense(self, compiled: bool) -> None:
        """The whole map by the library."""
        layers, run = self.layers, _dense(self.layers, self.layers.dtype)
        flop = layers.per_tap() * layers.plan.dense_taps * self.videos
        images = [_as_images(one, layers.dtype) for one in self.maps]
        ways = {"dense": run}
        if compiled:
            ways["dense, compiled"] = torch.compile(run, mode="max-autotune")
        for peer, way in ways.items():
            self.write(peer, way, flop, None, images, partial(_as_rows, layers), way is run)

    def crop(self) -> None:
        """Boxes of needed cells by the library."""
        conv = CropProposalConv(*self.layers.arguments)
        flop = self.layers.per_tap() * cropped_taps(self.layers.plan) * self.videos
        median = self.write("crop", conv, flop)
        if median is not None:
            self.times["crop"] = [median]

    def stack(self, conv: Any, predicted: Times) -> None:
        """One of our kernels for all layers, and each layer alone."""
        plan, pairs, config = self.layers.plan, enumerate(pairwise(self.layers.widths)), conv.config_for(self.videos)
        if conv.name == "gather":
            flop = sum(gpu_conv_plan.gather_flop(plan, n, *pair, self.videos, config) for n, pair in pairs)
        else:
            flop = sum(gpu_conv_plan.product_flop(plan, n, *pair, self.videos, config, conv.name) for n, pair in pairs)
        if self.write(conv.name, conv, flop, sum(predicted[conv.name])) is None:
            return
        rows = self.maps[0].new_empty((plan.num_proposals, self.videos, self.layers.widths[-1]))
        runs = [captured(run, rows.is_cuda) for run in conv.layer_runs(self.maps[0], rows)]
        self.times[conv.name] = [float(np.median(self.bench.time_ms(lambda _, one=one: one(), 5))) for one in runs]  # type: ignore[misc]


def measure(bench: Bench, layers: Layers, stacks: dict[str, Any], videos: int, compiled: bool) -> Times:
    """Write a line of every way to run a preset's layers; returns what each layer took."""
    from mmn_fast.kernels.triton_mixed import MixedProposalConv

    ways = _Measurement(bench, layers, videos)
    predicted = gpu_conv_plan.predicted_on(capability_of(layers.device), layers.plan, layers.widths, videos)
    ways.dense(compiled)
    ways.crop()
    for stack in stacks.values():
        ways.stack(stack, predicted)
        stack.release()
    for name, among in (("fft", TILES), ("mixed", ALGORITHMS)):
        if not ways.times.keys() & set(among):
            continue
        chosen, expected = (gpu_conv_plan.choose_layers(times, among) for times in (ways.times, predicted))
        print(f"{'':15}{name}: {' '.join(chosen)}; predicted {' '.join(expected)}")
        mixed = MixedProposalConv(*layers.arguments, {videos: chosen}, stacks, name=name)
        ways.write(name, mixed, None, chosen_ms(predicted, chosen))
        mixed.release()
    return ways.times


def _tune(layers: Layers, batches: list[int]) -> None:
    """Measure block sizes, and take and ship them."""
    from mmn_fast.kernels.triton_tuning import Tuner

    tuner, precision = Tuner(*layers.arguments), precision_of(layers.dtype)
    for algorithm, videos in itertools.product(usable_algorithms(layers.plan.kernel), batches):
        config = tuner.measure_config(algorithm, videos)
        print(f"{layers.preset}, batch {videos}, {algorithm}: {config}", flush=True)
        key = config_key(algorithm, layers.plan, layers.widths[-1], videos, precision)
        keep(arch_of(capability_of(layers.device)), key, config)
        _ship(layers, key, config)


def main() -> None:
    """Run the benchmark, append its lines and keep what layers took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["activitynet", "tacos", "charades"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 1, 48])
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    if options.rehearse:
        triton_interpreter.enable()
    else:
        reason = gpu_device.unavailable_reason("cuda")
        if reason:
            parser.error(f"{reason} (--rehearse runs the steps on the CPU)")
    device = "cpu" if options.rehearse else "cuda"
    deadline = math.inf if options.rehearse else time.monotonic() + options.seconds
    bench = Bench(device, options.rehearse, deadline, "bench_gather")
    from mmn_fast.kernels.triton_mixed import make_stack

    measure_rates(bench)
    with gpu_device.strict_arithmetic():
        for name in ["tiny"] if options.rehearse else options.presets:
            if bench.out_of_time(name):
                continue
            layers = _load(name, options.rehearse)
            # Interpreted, tiles of other sizes take seconds more and run the same kernels.
            algorithms = usable_algorithms(layers.plan.kernel)[: 2 if options.rehearse else None]
            stacks: dict[str, Any] = {algorithm: make_stack(algorithm, layers.arguments) for algorithm in algorithms}
            predicted = gpu_conv_plan.predicted_on(capability_of(layers.device), layers.plan, layers.widths, _GO_VIDEOS)
            tiles = min(TILES.keys() & stacks.keys(), key=lambda tiles: sum(predicted[tiles]))
            go_or_not(bench, layers, stacks[tiles])
            if options.tune and not options.rehearse:
                _tune(layers, options.batches)
            for videos in [2] if options.rehearse else options.batches:
                compiled = options.compiled and layers.plan.num_clips <= 16 and videos == 1
                times = measure(bench, layers, stacks, videos, compiled)
                if {"crop", "gather"} <= times.keys() and not options.rehearse:
                    precision = precision_of(layers.dtype)
                    _ship(layers, times_key(layers.plan, layers.widths[-1], videos, precision), times)


def _ship(layers: Layers, key: str, found: GatherConfig | Times) -> None:
    """Keep what was found at once: a run that is stopped loses nothing."""
    keep(arch_of(capability_of(layers.device)), key, found, SHIPPED)
    print(f"kept {key} in {SHIPPED.name}: what auto takes on such a device from now on", flush=True)


if __name__ == "__main__":
    main()
