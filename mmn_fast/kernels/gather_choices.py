"""Block sizes of the gathering convolution: shipped, and tuned ones kept on disk."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mmn_fast.environment import cache_dir
from mmn_fast.geometry import ProposalPlan

SHIPPED = Path(__file__).with_name("gather_choices.json")
VIDEO_BUCKETS = (1, 2, 4, 8, 16, 32, 48)
_CACHE_NAME = "gather_choices.json"


@dataclass(frozen=True)
class GatherConfig:
    """Block sizes of one launch.

    Attributes:
        block_rows: rows (cells x videos) of a tile.
        block_cols: output channels of a tile.
        block_k: input channels of a step.
        warps: warps of a block.
        stages: copies in flight.
        max_splits: shares into which a tile's taps may be cut to fill the device, see `choose_splits`.
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
        """Shared memory that the operands of all stages take."""
        return self.stages * self.block_k * (self.block_rows + self.block_cols) * element_size


def choose_splits(work: int, programs: int, max_splits: int) -> int:
    """Shares of each tile's taps: the smallest power of two with which the work fills the device once.

    Args:
        work: tiles of a layer, rows x output channels.
        programs: blocks that run at once.
        max_splits: at most so many.
    """
    splits = 1
    while splits < max_splits and work * splits < programs:
        splits *= 2
    return splits


def video_bucket(videos: int) -> int:
    """The number of videos that choices are kept under: the largest of `VIDEO_BUCKETS` that is not larger."""
    return max(bucket for bucket in VIDEO_BUCKETS if bucket <= videos)


def choice_key(plan: ProposalPlan, width: int, videos: int) -> str:
    """What choices are kept under: the geometry, the width and the bucket of videos."""
    return (
        f"n{plan.num_clips}-k{plan.kernel}-l{len(plan.layers)}-p{plan.num_proposals}-c{width}-b{video_bucket(videos)}"
    )


def shipped_config(capability: tuple[int, int], plan: ProposalPlan, width: int, videos: int) -> GatherConfig:
    """The tuned choice of this machine if there is one, else the shipped one.

    Args:
        capability: compute capability; one that no choice was shipped for takes that of the next lower one, and what is
            not a CUDA device (0, 0) small blocks, for the interpreter.
        plan: geometry.
        width: C.
        videos: B, at least 1.

    Raises:
        ValueError: a file of choices cannot be read; the message names it.
    """
    if capability == (0, 0):
        return GatherConfig(16, 16, 16, 4, 2, 4)
    key = choice_key(plan, width, videos)
    arch = f"sm_{capability[0]}{capability[1]}"
    tuned = _read(cache_path()).get(arch, {}).get(key) if cache_path() else None
    if tuned is not None:
        return tuned
    shipped = shipped_choices()
    usable = [name for name in shipped if int(name.removeprefix("sm_")) <= 10 * capability[0] + capability[1]]
    if not usable:
        raise ValueError(f"device: expected compute capability 8.0 or later, got {capability[0]}.{capability[1]}")
    choices = shipped[max(usable, key=lambda name: int(name.removeprefix("sm_")))]
    return choices.get(key) or choices["few" if videos < 8 and plan.num_proposals < 512 else "many"]


def shipped_choices() -> dict[str, dict[str, GatherConfig]]:
    """Choices that come with the package, by architecture and key; "few" and "many" stand for keys not listed."""
    return _read(SHIPPED)


def cache_path() -> Path | None:
    """Where tuned choices are kept: in `MMN_FAST_CACHE`, None without it."""
    root = cache_dir()
    return root / _CACHE_NAME if root else None


def keep_choice(arch: str, key: str, config: GatherConfig) -> Path:
    """Write a tuned choice beside those already kept.

    Returns:
        The file.

    Raises:
        ValueError: `MMN_FAST_CACHE` is not set, or the file there cannot be read.
    """
    path = cache_path()
    if path is None:
        raise ValueError("MMN_FAST_CACHE: expected a directory to keep tuned choices in, got none")
    choices = {name: {k: asdict(c) for k, c in rows.items()} for name, rows in _read(path).items()}
    choices.setdefault(arch, {})[key] = asdict(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written whole, then renamed: another process reads the old file or the new one.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_CACHE_NAME)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump({"choices": choices}, file, indent=1, sort_keys=True)
    os.replace(temporary, path)
    _read_at.cache_clear()
    return path


def _read(path: Path | None) -> dict[str, dict[str, GatherConfig]]:
    if path is None or not path.exists():
        return {}
    return _read_at(path, path.stat().st_mtime_ns)


@cache
def _read_at(path: Path, _changed_ns: int) -> dict[str, dict[str, GatherConfig]]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["choices"]
        return {
            arch: {key: GatherConfig(**config) for key, config in configs.items()} for arch, configs in content.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected tuned choices as `keep_choice` writes them, got {error}") from None
