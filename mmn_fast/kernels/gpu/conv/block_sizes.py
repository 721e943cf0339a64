"""Block sizes and measured times of the convolutions in Triton: shipped with the package, or tuned and kept on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mmn_fast.buckets import VIDEO_BUCKETS
from mmn_fast.checks import Integer, MapOf, Number
from mmn_fast.geometry import ProposalPlan
from mmn_fast.process.environment import tuning_dir
from mmn_fast.storage.documents import read_json
from mmn_fast.storage.files import write_whole

SHIPPED = Path(__file__).with_name("gather_choices.json")
_CACHE_NAME = "gather_choices.json"
_ABOUT = (
    "choices: few, many and products are untuned defaults, from work counts and resource reports; other keys were"
    " measured. times: milliseconds of whole stacks, measured; of each layer its share."
)

Times = dict[str, list[float]]
"""Way to run the layers -> milliseconds: of the whole stack for "crop" and "mixed", else per layer as shares of it."""


@dataclass(frozen=True)
class GatherConfig:
    """Block sizes of one launch.

    Attributes:
        block_rows: rows (cells x videos) of a tile.
        block_cols: output channels of a tile.
        block_k: input channels of a step.
        warps: warps of a block.
        stages: copies in flight.
        max_splits: most shares of a tile's taps, cut to fill the device, see `choose_splits`.
    """

    block_rows: int
    block_cols: int
    block_k: int
    warps: int
    stages: int
    max_splits: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not whole or (name != "stages" and value & (value - 1)):
                raise ValueError(f"{name}: expected a power of two (stages: any count), at least 1, got {value!r}")

    def shared_bytes(self, element_size: int = 2) -> int:
        """Shared memory for the operands of all stages; products of spectra take twice as much."""
        return self.stages * self.block_k * (self.block_rows + self.block_cols) * element_size


# Block sizes for float32 operands, without tensor cores: larger blocks spill or do not fit a block's shared memory.
_SINGLE = {"gather": GatherConfig(64, 64, 16, 4, 3, 4), "products": GatherConfig(32, 64, 16, 4, 3, 1)}
_INTERPRETED = {"gather": GatherConfig(1024, 64, 64, 4, 2, 1), "products": GatherConfig(64, 64, 64, 4, 2, 1)}


def choose_splits(work: int, programs: int, max_splits: int) -> int:
    """Shares of each tile's taps: the smallest power of two that fills the device once.

    Args:
        work: tiles of a layer, rows x output channels.
        programs: blocks that run at once.
        max_splits: most shares.
    """
    splits = 1
    while splits < max_splits and work * splits < programs:
        splits *= 2
    return splits


def video_bucket(videos: int) -> int:
    """The number of videos in keys of choices: the largest of `VIDEO_BUCKETS` that is not larger than `videos`."""
    return max(bucket for bucket in VIDEO_BUCKETS if bucket <= videos)


def choice_key(plan: ProposalPlan, width: int, videos: int) -> str:
    """The key of a choice: the geometry, the width and the bucket of videos."""
    return (
        f"n{plan.num_clips}-k{plan.kernel}-l{len(plan.layers)}-p{plan.num_proposals}-c{width}-b{video_bucket(videos)}"
    )


def config_key(algorithm: str, plan: ProposalPlan, width: int, videos: int, precision: str) -> str:
    """The key of block sizes: a `choice_key`, with a prefix except for "gather" and a suffix only for "fp32"."""
    prefix = "" if algorithm == "gather" else f"{algorithm}-"
    suffix = f"-{precision}" if precision == "fp32" else ""
    return f"{prefix}{choice_key(plan, width, videos)}{suffix}"


def chosen_config(
    algorithm: str, capability: tuple[int, int], plan: ProposalPlan, width: int, videos: int, precision: str = "fp16"
) -> GatherConfig:
    """The tuned block sizes of this machine if there are any, else the shipped ones.

    Args:
        algorithm: one of `costs.ALGORITHMS`: "gather", or the name of tiles for the products of their spectra.
        capability: compute capability. Without shipped choices the next lower one's are taken; (0, 0), no CUDA device,
            gives small blocks for the interpreter.
        plan: geometry.
        width: C.
        videos: B, at least 1.
        precision: "fp16", "bf16" or "fp32".

    Raises:
        ValueError: a file of choices cannot be read; the message names it.
    """
    kind = "gather" if algorithm == "gather" else "products"
    if capability == (0, 0):
        return _INTERPRETED[kind]
    key = config_key(algorithm, plan, width, videos, precision)
    tuned = kept_config(capability, key)
    if tuned is not None:
        return tuned
    shipped = shipped_choices()
    usable = [name for name in shipped if int(name.removeprefix("sm_")) <= 10 * capability[0] + capability[1]]
    if not usable:
        raise ValueError(f"device: expected compute capability 8.0 or later, got {capability[0]}.{capability[1]}")
    choices = shipped[max(usable, key=lambda name: int(name.removeprefix("sm_")))]
    if precision == "fp32":
        return choices.get(key, _SINGLE[kind])
    untuned = "few" if videos < 8 and plan.num_proposals < 512 else "many"
    return choices.get(key) or choices[untuned if kind == "gather" else kind]


def kept_config(capability: tuple[int, int], key: str) -> GatherConfig | None:
    """The block sizes that were tuned on such a device and kept on this machine; None if there are none."""
    return _kept_here().choices.get(arch_of(capability), {}).get(key)


def arch_of(capability: tuple[int, int]) -> str:
    """The name of a compute capability in files of choices, such as "sm_90"."""
    return f"sm_{capability[0]}{capability[1]}"


def shipped_choices() -> dict[str, dict[str, GatherConfig]]:
    """Shipped choices, by architecture and key.

    "few" and "many" stand for unlisted keys of the gathering kernel, "products" for unlisted keys of FFT tiles.
    """
    return _read(SHIPPED).choices


def measured_times(
    arch: str, plan: ProposalPlan, width: int, videos: int, precision: str, usable: Callable[[Times], bool]
) -> Times | None:
    """Kept or shipped times of the layers on such a device, for this number of videos or the next lower measured one.

    Args:
        arch: the name from `arch_of`; times of other architectures are not taken.
        plan: geometry.
        width: C.
        videos: B.
        precision: "fp16", "bf16" or "fp32".
        usable: whether times can be used; others are skipped, as if nothing had been measured.

    Returns:
        Milliseconds of all videos; None without usable times.
    """
    buckets = [bucket for bucket in reversed(VIDEO_BUCKETS) if bucket <= videos]
    found = (kept_times(arch, times_key(plan, width, bucket, precision)) for bucket in buckets)
    return next((times for times in found if times is not None and usable(times)), None)


def kept_times(arch: str, key: str) -> Times | None:
    """The times under a key of `times_key`, from this machine, else from the package."""
    kept = (choices.times.get(arch, {}).get(key) for choices in (_kept_here(), _read(SHIPPED)))
    return next((times for times in kept if times is not None), None)


def times_key(plan: ProposalPlan, width: int, videos: int, precision: str) -> str:
    """The key of measured times."""
    return f"{choice_key(plan, width, videos)}-{precision}"


def cache_path() -> Path:
    """The file of tuned choices: in `MMN_FAST_CACHE`, else in the user's cache directory.

    Raises:
        OSError: the user has no home directory.
    """
    return tuning_dir() / _CACHE_NAME


def keep(arch: str, key: str, found: GatherConfig | Times, path: Path | None = None) -> Path:
    """Add a tuned choice or measured times to the file.

    Args:
        arch: the name from `arch_of`.
        key: `config_key` for block sizes, `times_key` for times.
        found: block sizes or times.
        path: the file; None for this machine's file.

    Returns:
        The file.

    Raises:
        ValueError: the file cannot be read.
        OSError, WriteError: the file cannot be written.
    """
    path = path or cache_path()
    kept = deepcopy(_read(path))
    part = kept.choices if isinstance(found, GatherConfig) else kept.times
    part.setdefault(arch, {})[key] = found  # type: ignore[assignment]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(asdict(kept), indent=1, sort_keys=True)
    write_whole(path, content.encode(), overwrite=True, argument="tuning")
    _read_at.cache_clear()
    return path


@dataclass(frozen=True)
class _Kept:
    """A file of choices."""

    about: str = _ABOUT
    choices: dict[str, dict[str, GatherConfig]] = field(default_factory=dict)
    times: dict[str, dict[str, Times]] = field(default_factory=dict)


def _kept_here() -> _Kept:
    """Choices that were tuned on this machine; empty without a file, a home directory or the permission to look."""
    try:
        return _read(cache_path())
    except OSError:
        return _Kept()


def _read(path: Path) -> _Kept:
    return _read_at(path, path.stat().st_mtime_ns) if path.exists() else _Kept()


@cache
def _read_at(path: Path, _changed_ns: int) -> _Kept:
    try:
        content: dict[str, Any] = read_json(path, str(path))
        choices = {
            arch: {key: GatherConfig(**MapOf(Integer(0))(config, key)) for key, config in configs.items()}
            for arch, configs in content["choices"].items()
        }
        times = {arch: {key: _times(one) for key, one in every.items()} for arch, every in content["times"].items()}
        return _Kept(choices=choices, times=times)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected tuned choices as `keep` writes them, got {error}") from None


def _times(content: dict[str, list[float]]) -> Times:
    return {
        algorithm: [Number(0)(milliseconds, algorithm) for milliseconds in layers]
        for algorithm, layers in content.items()
    }
