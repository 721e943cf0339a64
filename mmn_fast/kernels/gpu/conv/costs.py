"""Chooses the kernels of each layer of the proposal convolution on a GPU, by measured times, else by predicted ones.

All kernels read and write the same maps (`stack.ConvStack`), so switching between layers costs nothing and each layer
is decided alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from mmn_fast.geometry import ProposalPlan, cover_with_tiles
from mmn_fast.kernels.gpu.conv.block_sizes import GatherConfig, Times, choose_splits, chosen_config
from mmn_fast.kernels.gpu.conv.gather_schedule import MAX_TAPS, schedule_layer
from mmn_fast.kernels.transforms import SPECTRAL_TILES, TileTransform, fourier

_BYTES = 2  # per operand in fp16 or bf16
TILES = {f"fft{tile}": tile for tile in SPECTRAL_TILES}
"""Spectral algorithm -> side of its tiles, in places."""
ALGORITHMS = ("gather", *TILES)
SPECTRAL_CHANNELS = 128
"""Fewest channels of every layer for spectra in fp16."""
_SMALL_TILE = 16


def usable_algorithms(kernel: int, spectra: bool = True) -> tuple[str, ...]:
    """The names in `ALGORITHMS` that take a kernel of this width; without `spectra` only the gather."""
    gather = ("gather",) if kernel**2 <= MAX_TAPS else ()
    return (*gather, *(name for name, tile in TILES.items() if spectra and tile >= kernel))


def engine_algorithms(plan: ProposalPlan, widths: Sequence[int], precision: str) -> tuple[str, ...]:
    """The names in `ALGORITHMS` that an engine may mix: they take the kernel and are accurate enough.

    The error of tiles must stay within three times the error of operands in 16 bits (benchmarks/NOTES.md). In fp16 the
    rounding of each spectral value affects every cell of a tile and averages out only over channels. Models of 48
    channels exceeded the limit, and so did tiles of 24 over a whole map of 16. bf16 is too coarse for all tiles.
    """
    usable = usable_algorithms(plan.kernel, precision != "bf16")
    if precision == "fp32":
        return usable
    most = max(_SMALL_TILE, plan.num_clips) if min(widths) >= SPECTRAL_CHANNELS else 0
    return tuple(name for name in usable if TILES.get(name, 0) <= most)


def not_timed(times: Times, kernel: int, precision: str) -> tuple[str, ...]:
    """The ways to run the layers that `times` lack; until there is none, no way can be called the fastest.

    Args:
        times: times for one number of videos; complete with "crop", all `usable_algorithms` per layer, and "mixed".
        kernel: k.
        precision: "fp16", "bf16" or "fp32".
    """
    ways = ("crop", *usable_algorithms(kernel, precision != "bf16"), "mixed")
    return tuple(name for name in ways if not times.get(name))


@dataclass(frozen=True)
class DeviceRates:
    """Predicted, not measured, rates of a device; `block_sizes.measured_times` take precedence.

    Attributes:
        programs: multiprocessors; each runs one block at a time.
        gather_tflops: executed products of the gathering kernel, 10^12 FLOP/s.
        product_tflops: products of spectra, 10^12 FLOP/s.
        memory_gbps: bytes from and to memory, 10^9 a second.
        launch_us: time from the end of a kernel to the start of the next one in a graph.
    """

    programs: int
    gather_tflops: float
    product_tflops: float
    memory_gbps: float
    launch_us: float


PREDICTED_RATES = {
    "sm_80": DeviceRates(108, 200, 190, 1500, 3),
    "sm_90": DeviceRates(132, 600, 500, 3400, 3),
}
"""Rates assumed for an A100 and an H200: nine tenths of a library's matrix product, four fifths of memory bandwidth."""


def rates_of(capability: tuple[int, int]) -> DeviceRates:
    """The rates of a device's architecture, or of the latest earlier one that is known."""
    return PREDICTED_RATES["sm_90" if capability >= (9, 0) else "sm_80"]


def predicted_on(capability: tuple[int, int], plan: ProposalPlan, widths: Sequence[int], videos: int) -> Times:
    """`predicted_times` with a device's rates and block sizes."""
    configs = {
        name: chosen_config(name, capability, plan, widths[-1], videos) for name in usable_algorithms(plan.kernel)
    }
    return predicted_times(plan, widths, videos, rates_of(capability), configs)


def predicted_times(
    plan: ProposalPlan,
    widths: Sequence[int],
    videos: int,
    rates: DeviceRates,
    configs: Mapping[str, GatherConfig],
) -> Times:
    """Predict each layer's time in 16 bits from its work, its bytes and a device's rates.

    Args:
        plan: geometry.
        widths: channels of the map and of every layer, L + 1.
        videos: B.
        rates: the device's rates.
        configs: algorithm -> block sizes; for tiles those of the products of spectra.

    Returns:
        Algorithm -> milliseconds of all videos per layer.
    """

    def layer_ms(algorithm: str, number: int) -> float:
        one = plan, number, (widths[number], widths[number + 1]), videos, rates, configs[algorithm]
        return _gather_ms(*one) if algorithm == "gather" else _fourier_ms(*one, algorithm)

    return {algorithm: [layer_ms(algorithm, number) for number in range(len(plan.layers))] for algorithm in configs}


def choose_layers(times: Times, among: Collection[str] = ALGORITHMS) -> tuple[str, ...]:
    """The fastest algorithm of every layer among those with times; equal times take the first in `ALGORITHMS`.

    Args:
        times: algorithm -> milliseconds of every layer.
        among: algorithms that may be chosen.
    """
    known = [name for name in ALGORITHMS if name in times and name in among]
    return tuple(min(known, key=lambda name: times[name][n]) for n in range(len(times[known[0]])))


def fastest_stack(times: Times, among: Collection[str]) -> tuple[tuple[str, ...], float]:
    """The fastest whole stack: all layers by one algorithm, or each by its fastest.

    Args:
        times: algorithm -> milliseconds of every layer, which sum to the whole stack's; and "mixed", the time of the
            stack of `choose_layers(times, among)`.
        among: algorithms that may be chosen.

    Returns:
        The algorithm of every layer, and the stack's milliseconds.
    """
    mixed = choose_layers(times, among)
    stacks = {(name,) * len(mixed): sum(times[name]) for name in ALGORITHMS if name in times and name in among}
    if mixed not in stacks:
        stacks[mixed] = sum(times["mixed"])
    fastest = min(stacks, key=lambda stack: stacks[stack])
    return fastest, stacks[fastest]


def chosen_ms(times: Times, chosen: Sequence[str]) -> float:
    """Milliseconds of all layers, each with its chosen algorithm."""
    return sum(times[name][number] for number, name in enumerate(chosen))


def gather_flop(plan: ProposalPlan, number: int, c_in: int, c_out: int, videos: int, config: GatherConfig) -> float:
    """FLOP that the gathering kernel executes for a layer, filler rows of the last tile included."""
    return 2.0 * c_in * c_out * schedule_layer(plan, number, videos, config.block_rows).executed_taps


def product_flop(
    plan: ProposalPlan, number: int, c_in: int, c_out: int, videos: int, config: GatherConfig, algorithm: str
) -> float:
    """FLOP that the products of a layer's spectra execute, filler rows of the last block included."""
    transform = _transform(plan, algorithm)
    rows = _round_up(_tiles(plan, number, transform) * videos, config.block_rows)
    return 2.0 * c_in * c_out * rows * transform.products


def _gather_ms(
    plan: ProposalPlan, number: int, widths: tuple[int, int], videos: int, rates: DeviceRates, config: GatherConfig
) -> float:
    c_in, c_out = widths
    rows = len(plan.layers[number].cells) * videos
    work = -(-rows // config.block_rows) * -(-c_out // config.block_cols)
    splits = choose_splits(work, rates.programs, config.max_splits)
    work *= splits
    busy = work / _round_up(work, rates.programs)
    multiplied = gather_flop(plan, number, c_in, c_out, videos, config) / (rates.gather_tflops * busy * 1e9)
    weights = plan.kernel**2 * c_in * c_out * _BYTES / (rates.memory_gbps * 1e6)
    # Shares of sums are float32; each is written and read once.
    shares = 2 * 4 * splits * rows * c_out / (rates.memory_gbps * 1e6) if splits > 1 else 0.0
    return max(multiplied, weights) + shares + (1 + (splits > 1)) * rates.launch_us / 1e3


def _fourier_ms(
    plan: ProposalPlan,
    number: int,
    widths: tuple[int, int],
    videos: int,
    rates: DeviceRates,
    config: GatherConfig,
    algorithm: str,
) -> float:
    c_in, c_out = widths
    transform = _transform(plan, algorithm)
    per_ms = rates.memory_gbps * 1e6
    rows = _tiles(plan, number, transform) * videos
    spectra = transform.points_per_tile * rows * (c_in + c_out) * _BYTES
    weights = transform.points_per_tile * c_in * c_out * _BYTES
    multiplied = product_flop(plan, number, c_in, c_out, videos, config, algorithm) / (rates.product_tflops * 1e9)
    # The transforms are bound by bytes, the products by multiplications or bytes.
    return max(multiplied, (weights + spectra) / per_ms) + spectra / per_ms + 3 * rates.launch_us / 1e3


def _transform(plan: ProposalPlan, algorithm: str) -> TileTransform:
    return fourier(plan.kernel, TILES[algorithm])


@cache
def _tiles(plan: ProposalPlan, number: int, transform: TileTransform) -> int:
    return len(cover_with_tiles(plan, number, transform.m).outputs)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
