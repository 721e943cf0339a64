"""Times the two parts that decide whether FFT tiles pay on a GPU: products and transform of one layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.conv_layers import Layers, difference
from benchmarks.gpu_timing import Bench
from mmn_fast.geometry import cover_with_tiles, input_cells
from mmn_fast.kernels.gpu.conv import costs
from mmn_fast.kernels.gpu.conv.gather_schedule import side_of_input
from mmn_fast.kernels.gpu.device import capability_of
from mmn_fast.kernels.transforms import REAL_POINTS

GO_VIDEOS = 8


def bench_products(bench: Bench, layers: Layers, conv: Any) -> None:
    """Time the products and the forward transform of the middle layer, by the library and by our kernels.

    Args:
        bench: device, time limit and results.
        layers: a preset's layers.
        conv: the `FourierProposalConv` of these layers, with tiles of one size.
    """
    plan, number = layers.plan, _middle(layers)
    c_in, c_out = layers.widths[number : number + 2]
    side = side_of_input(plan, number)
    map_in = torch.rand((side**2, GO_VIDEOS, c_in), device=layers.device).to(layers.dtype)
    conv.prepare_layers([number], GO_VIDEOS)
    spectra_in, spectra_out = (spectra.flatten(1, 2) for spectra in conv.spectra(number, GO_VIDEOS))
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
    conv.multiply(number, GO_VIDEOS)
    product, means = spectra_in[real].float() @ points[real].float(), windows.mean((-2, -1)).flatten(0, 1)
    errors = {
        ("transform", "library"): difference(library_transform()[..., 0, 0].real.flatten(0, 1), means),
        ("transform", "mmn_fast"): difference(spectra_in[values - REAL_POINTS], means),
        ("products", "library"): difference(library_products()[real], product),
        ("products", "mmn_fast"): difference(spectra_out[real], product),
    }
    rates = costs.rates_of(capability_of(layers.device))
    unit = 2.0 * rows * c_in
    moved_in, moved_out = spectra_in.nbytes, spectra_out.nbytes
    transform_ms, per_product = 2 * moved_in / rates.memory_gbps / 1e6, rates.product_tflops * 1e9
    # The library multiplies one real matrix per spectral value: half of the work of complex products. Its transform
    # reads windows that were gathered beforehand, and reads and writes float32.
    for what, peer, flop, moved, predicted_ms, run in (
        ("transform", "library", 0.0, 2 * windows.nbytes, None, library_transform),
        ("transform", "mmn_fast", 0.0, 2 * moved_in, transform_ms, partial(conv.transform, number, map_in)),
        ("products", "library", unit * c_out * values, moved_in + moved_out + points.nbytes,
         unit * c_out * values / per_product, library_products),
        ("products", "mmn_fast", unit * c_out * tile.products, moved_in + moved_out + points.nbytes,
         unit * c_out * tile.products / per_product, partial(conv.multiply, number, GO_VIDEOS)),
    ):  # fmt: skip
        work = flop, moved
        _write_line(bench, layers, what, peer, work, predicted_ms, errors[what, peer], run, tile.tile)


def _write_line(
    bench: Bench,
    layers: Layers,
    what: str,
    peer: str,
    work: tuple[float, float],
    predicted_ms: float | None,
    error: float,
    run: Callable[[], Any],
    tile: int,
) -> None:
    if bench.out_of_time(f"{layers.preset}, {what}, {peer}"):
        return
    timing = bench.time_captured([run])
    facts: dict[str, Any] = {"preset": layers.preset, "batch": GO_VIDEOS, "layer": _middle(layers), "tile": tile}
    facts |= {"tflops": work[0] / timing.median_ms / 1e9, "gbps": work[1] / timing.median_ms / 1e6}
    if predicted_ms is not None:
        facts["predicted_ms"] = predicted_ms
    bench.write(f"fft {what}", peer, timing, error, work, **facts)
    shown = "" if predicted_ms is None else f", predicted {predicted_ms:.3g} ms"
    print(f"{'':15}{facts['tflops']:.0f} TFLOP/s, {facts['gbps']:.0f} GB/s{shown}", flush=True)


def _middle(layers: Layers) -> int:
    return len(layers.plan.layers) // 2
