"""Which kernels run each layer of the proposal convolution on a GPU: by times that were measured, else predicted.

Both kinds of kernels read and write the same maps (`triton_stack.ConvStack`), so a change between layers costs nothing
and each layer is decided alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmn_fast.geometry import ProposalPlan, cover_with_tiles
from mmn_fast.kernels.conv_transforms import REAL_POINTS, SPECTRAL_POINTS, fourier
from mmn_fast.kernels.gather_choices import GatherConfig, Times, choose_splits, chosen_config
from mmn_fast.kernels.gather_schedule import schedule_layer

_BYTES = 2  # of an operand in fp16 or bf16
SPECTRAL_PLANES = 3 * (SPECTRAL_POINTS - REAL_POINTS) // 2 + REAL_POINTS


@dataclass(frozen=True)
class DeviceRates:
    """What a device is predicted to reach. Nothing of it was measured: `gather_choices.measured_times` goes first.

    Attributes:
        programs: multiprocessors, each of which runs one block at a time.
        gather_tflops: executed products of the gathering kernel, 10^12 FLOP/s.
        product_tflops: products of spectra.
        memory_gbps: bytes from and to memory, 10^9 a second.
        launch_us: from the end of a kernel to the start of the next one in a graph.
    """

    programs: int
    gather_tflops: float
    product_tflops: float
    memory_gbps: float
    launch_us: float


PREDICTED_RATES = {
    "sm_80": DeviceRates(108, 200, 190, 1500, 3),
    "sm_90": DeviceRates(132, 600, 550, 3400, 3),
}
"""Of an A100 and an H200: some nine tenths of a library's matrix product, and four fifths of the memory's rate."""


def rates_of(capability: tuple[int, int]) -> DeviceRates:
    """The rates of the latest known architecture that is not later than a device's."""
    return PREDICTED_RATES["sm_90" if capability >= (9, 0) else "sm_80"]


def predicted_on(capability: tuple[int, int], plan: ProposalPlan, widths: Sequence[int], videos: int) -> Times:
    """`predicted_times` at the rates and with the block sizes of a device."""
    gather, product = (chosen_config(name, capability, plan, widths[-1], videos) for name in ("gather", "fft"))
    return predicted_times(plan, widths, videos, rates_of(capability), gather, product)


def predicted_times(
    plan: ProposalPlan,
    widths: Sequence[int],
    videos: int,
    rates: DeviceRates,
    gather: GatherConfig,
    product: GatherConfig,
) -> Times:
    """What each layer takes by its work, its bytes and a device's rates, in 16 bits.

    Args:
        plan: geometry.
        widths: channels of the map and of every layer, L + 1.
        videos: B.
        rates: of the device.
        gather: block sizes of the gathering kernel.
        product: block sizes of the products of spectra.

    Returns:
        Milliseconds of all videos per layer, of "gather" and "fft".
    """
    numbers = range(len(plan.layers))
    return {
        "gather": [_gather_ms(plan, n, (widths[n], widths[n + 1]), videos, rates, gather) for n in numbers],
        "fft": [_fourier_ms(plan, n, (widths[n], widths[n + 1]), videos, rates, product) for n in numbers],
    }


def choose_layers(times: Times, spectra: bool = True) -> tuple[str, ...]:
    """The fastest algorithm of every layer among those that have times; "gather" where they are equal.

    Args:
        times: milliseconds of every layer.
        spectra: whether "fft" may be chosen.
    """
    known = [name for name in ("gather", "fft") if name in times and (spectra or name == "gather")]
    return tuple(min(known, key=lambda name: times[name][n]) for n in range(len(times["gather"])))


def chosen_ms(times: Times, chosen: Sequence[str]) -> float:
    """Milliseconds of all layers, each by the algorithm chosen for it."""
    return sum(times[name][number] for number, name in enumerate(chosen))


def gather_flop(plan: ProposalPlan, number: int, c_in: int, c_out: int, videos: int, config: GatherConfig) -> float:
    """What the gathering kernel executes for a layer, rows that fill the last tile included."""
    return 2.0 * c_in * c_out * schedule_layer(plan, number, videos, config.block_rows).executed_taps


def product_flop(plan: ProposalPlan, number: int, c_in: int, c_out: int, videos: int, config: GatherConfig) -> float:
    """What the products of a layer's spectra execute, rows that fill the last block included."""
    rows = _round_up(_tiles(plan, number) * videos, config.block_rows)
    return 2.0 * c_in * c_out * rows * fourier(plan.kernel).products


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
    # Shares are float32, written and read once.
    shares = 2 * 4 * splits * rows * c_out / (rates.memory_gbps * 1e6) if splits > 1 else 0.0
    return max(multiplied, weights) + shares + (1 + (splits > 1)) * rates.launch_us / 1e3


def _fourier_ms(
    plan: ProposalPlan, number: int, widths: tuple[int, int], videos: int, rates: DeviceRates, config: GatherConfig
) -> float:
    c_in, c_out = widths
    per_ms = rates.memory_gbps * 1e6
    spectra = SPECTRAL_POINTS * _tiles(plan, number) * videos * (c_in + c_out) * _BYTES
    weights = SPECTRAL_PLANES * c_in * c_out * _BYTES
    multiplied = product_flop(plan, number, c_in, c_out, videos, config) / (rates.product_tflops * 1e9)
    # The transforms move bytes, the products multiply.
    return max(multiplied, (weights + spectra) / per_ms) + spectra / per_ms + 3 * rates.launch_us / 1e3


def _tiles(plan: ProposalPlan, number: int) -> int:
    return len(cover_with_tiles(plan, number, fourier(plan.kernel).m).outputs)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
