"""A video's features, checked and averaged into T pre-clips: step 1 of the model.

NumPy only; this module never imports torch. A tensor argument implies that torch is loaded.
"""

from __future__ import annotations

import itertools
import math
import numbers
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Float32, Int64, described
from mmn_fast.errors import InputError
from mmn_fast.features.messages import first_line
from mmn_fast.presets import Preset
from mmn_fast.tubes import Tube

_EPS = 1e-12  # eps of torch.nn.functional.normalize
# Rows are processed in blocks that stay in a core's L2 cache (1 MiB of float32). A block has at most 128 rows, so that
# float32 sums over a block lose little; longer spans add up the blocks' sums.
_BLOCK_VALUES = 2**18
_BLOCK_ROWS = 128
# NumPy sums fewer rows than these one after another, whatever their width, so that few calls for all pre-clips give the
# bits of one call for each. It takes less than half of the time.
_SUMMED_IN_ORDER = 8


def check_features(features: Any, width: int, name: str = "features") -> npt.NDArray[Any]:
    """Check a video's features and return them as a NumPy array.

    Args:
        features: float [n_src, D]: NumPy, torch (any device) or nested lists, any float dtype, any strides.
        width: D.
        name: the argument's name in messages.

    Returns:
        float [n_src, D], not copied if NumPy can share the memory; types that NumPy lacks (bfloat16) become float32.
        Every value is finite in float32.

    Raises:
        InputError: not floating point, not [n_src, D] with n_src >= 1, or a value is NaN, infinite or beyond float32.
    """
    rows = _as_rows(features, width, name)
    for _ in _float32_blocks(rows, name):
        pass
    return rows


def check_duration(duration_s: Any, name: str = "duration_s") -> float:
    """Check a duration in seconds, 1e-30 to 1e30: moments are float32, and their lengths are fractions of the duration.

    Args:
        duration_s: a real number, Python's or NumPy's.
        name: the argument's name in messages.

    Raises:
        InputError: not a real number (bools and text are refused), not positive, not finite, or beyond these bounds.
    """
    kind = type(duration_s).__name__
    if isinstance(duration_s, numbers.Real) and not isinstance(duration_s, bool):
        try:
            seconds = float(duration_s)
        except OverflowError:  # a huge int, which repr may refuse as well
            seconds = duration_s = math.inf
        if 1e-30 <= seconds <= 1e30:
            return seconds
    got = " ".join(repr(duration_s).split())
    got = got if len(got) <= 60 else f"{got[:60]}..."
    raise InputError(f"{name}: expected a positive, finite number of seconds, got {got} ({kind})")


def pre_clips(features: Any, preset: Preset, name: str = "features") -> Float32:
    """Normalise each stream of each row and average the rows into T pre-clips.

    Equivalent to (one stream; `spans` as in `pre_clip_spans`):
        rows = F.normalize(features.float(), dim=1)
        return torch.stack([rows[start:end].mean(dim=0) for start, end in spans])

    A row whose squares overflow float32 is normalised correctly here (the code above would give zeros).

    Cost: two passes over each block of rows in cache and one numpy call per span and block, about as long as reading
    the features from memory twice. Besides the result, a few MiB of memory, whatever n_src is.

    Args:
        features: float [n_src, D], see `check_features`; D = preset.input_size, the streams side by side.
        preset: gives T, the streams' widths and whether bounds are clamped.
        name: the argument's name in messages.

    Returns:
        float32 [T, D], C-contiguous, in new memory.

    Raises:
        InputError: as `check_features`.
    """
    rows = _as_rows(features, preset.input_size, name, f" for preset {preset.name!r}")
    return _means(rows, preset.feature_streams, preset, name)


def tube_pre_clips(tube: Tube, preset: Preset, name: str = "tube") -> Float32:
    """Make the pre-clips of a tube: `pre_clips` of each of its feature streams, side by side, or its own pre-clips.

    Args:
        tube: a tube with either `features` or `pre_clips`.
        preset: gives T, the streams' widths and whether bounds are clamped.
        name: the tube's name in messages.

    Returns:
        float32 [T, D], C-contiguous.

    Raises:
        InputError: features and pre-clips are both there or both missing, a stream is missing or too many, or an array
            cannot be used, see `check_features`.
    """
    if (tube.features is None) == (tube.pre_clips is None):
        got = "neither" if tube.features is None else "both"
        raise InputError(f"{name}: expected features or pre_clips, got {got}")
    purpose = f" for preset {preset.name!r}"
    if tube.features is None:
        name = f"{name}: pre_clips"
        return _finite_rows(_as_rows(tube.pre_clips, preset.input_size, name, purpose, preset.num_pre_clips), name)
    widths = preset.feature_streams
    if len(getattr(tube.features, "shape", (0,) * 3)) != 3 or not isinstance(tube.features, Iterable):
        raise InputError(
            f"{name}: features: expected a list of {len(widths)} float arrays [n_src, D], one per stream{purpose}, got"
            f" {described(tube.features)}"
        )
    streams = list(tube.features)
    if len(streams) != len(widths):
        raise InputError(
            f"{name}: features: expected {len(widths)} streams, {' and '.join(map(str, widths))} wide{purpose}, got"
            f" {len(streams)}"
        )
    parts = []
    for number, (stream, width) in enumerate(zip(streams, widths, strict=True)):
        where = f"{name}: features[{number}]"
        parts.append(_means(_as_rows(stream, width, where, purpose), (width,), preset, where))
    return np.concatenate(parts, axis=1)


def _means(rows: npt.NDArray[Any], streams: tuple[int, ...], preset: Preset, name: str) -> Float32:
    """The mean of each pre-clip's rows, each stream of each row normalised; float32 [T, sum of streams]."""
    starts, ends = _spans_of(len(rows), preset.num_pre_clips, preset.clamp_pre_clips)
    sums = np.zeros((preset.num_pre_clips, rows.shape[1]), np.float32)
    for first, block in _float32_blocks(rows, name):
        here = slice(*_spans_in(starts, ends, first, first + len(block)))
        bounds = np.maximum(starts[here] - first, 0), np.minimum(ends[here] - first, len(block))
        _add_sums(sums[here], _unit_rows(block, streams), *bounds)
    sums /= (ends - starts).astype(np.float32)[:, None]
    return sums


def _add_sums(sums: Float32, rows: Float32, starts: Int64, ends: Int64) -> None:
    """Add the sum of rows starts[t] to ends[t] - 1 to sums[t], for every t."""
    counts = ends - starts
    longest = int(counts.max(initial=0))
    if longest >= _SUMMED_IN_ORDER:
        for t, (start, end) in enumerate(zip(starts, ends, strict=True)):
            sums[t] += rows[start:end].sum(axis=0)
    elif longest:
        found = rows[starts]
        for n in range(1, longest):
            more = counts > n
            found[more] += rows[starts[more] + n]
        sums += found


def float32_rows(features: Any, preset: Preset, name: str = "features") -> Float32:
    """Check a video's features and return them as float32 rows, for an engine that makes pre-clips itself.

    Args:
        features: float [n_src, D], see `check_features`; D = preset.input_size.
        preset: gives D.
        name: the argument's name in messages.

    Returns:
        float32 [n_src, D], C-contiguous, finite; shares the memory of `features` if they already have this form.

    Raises:
        InputError: as `check_features`.
    """
    rows = _as_rows(features, preset.input_size, name, f" for preset {preset.name!r}")
    return _finite_rows(rows, name)


@lru_cache(256)
def _spans_of(num_rows: int, num_pre_clips: int, clamp: bool) -> tuple[Int64, Int64]:
    """`pre_clip_spans`, kept for the next video of this length; the arrays are not to be written to."""
    return pre_clip_spans(num_rows, num_pre_clips, clamp)


def pre_clip_spans(num_rows: int, num_pre_clips: int, clamp: bool) -> tuple[Int64, Int64]:
    """Compute the source rows that each pre-clip averages, with the official code's float32 rounding (half to even).

    Args:
        num_rows: n_src >= 1.
        num_pre_clips: T.
        clamp: True clamps all bounds to the last row before the mean, so the last mean leaves that row out (MMN);
            False clamps only the row of an empty span (MMN-STVG).

    Returns:
        starts and ends, int64 [T] each, ascending: pre-clip t is the mean of rows starts[t] to ends[t] - 1. A span that
        is empty in the official code has one row here; this row may overlap the next span.
    """
    grid = np.arange(num_pre_clips + 1, dtype=np.float32) / np.float32(num_pre_clips)
    bounds = np.rint(grid * np.float32(num_rows)).astype(np.int64)
    if clamp:
        bounds = np.minimum(bounds, num_rows - 1)
    starts = np.minimum(bounds[:-1], num_rows - 1)
    return starts, np.maximum(bounds[1:], starts + 1)


def _spans_in(starts: Int64, ends: Int64, first: int, last: int) -> tuple[int, int]:
    """Find the spans that overlap rows first to last - 1; return the first span's index and one past the last's."""
    return int(np.searchsorted(ends, first, "right")), int(np.searchsorted(starts, last, "left"))


def _unit_rows(block: Float32, streams: tuple[int, ...]) -> Float32:
    """Divide each stream of each row by its norm; float32 [rows, D].

    Unlike a matrix product, einsum and sum do not use BLAS, so the result does not depend on BLAS threads.
    """
    unit = np.empty_like(block)
    for end, width in zip(itertools.accumulate(streams), streams, strict=True):
        stream = block[:, end - width : end]
        with np.errstate(over="ignore"):
            squares = np.einsum("ij,ij->i", stream, stream)
        overflowed = np.isinf(squares)
        if overflowed.any():
            scale: Float32 = np.where(overflowed, np.abs(stream).max(axis=1), np.float32(1))
            stream = np.divide(stream, scale[:, None], dtype=np.float32)
            squares = np.einsum("ij,ij->i", stream, stream)
        norms = np.maximum(np.sqrt(squares), np.float32(_EPS))
        np.divide(stream, norms[:, None], out=unit[:, end - width : end])
    return unit


def _float32_blocks(rows: npt.NDArray[Any], name: str) -> Iterator[tuple[int, Float32]]:
    """Yield blocks of consecutive rows: (index of the first row, finite float32 C-contiguous [<= 128, D])."""
    step = min(_BLOCK_ROWS, max(1, _BLOCK_VALUES // rows.shape[1]))
    for first in range(0, len(rows), step):
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(rows[first : first + step], dtype=np.float32)
        finite = np.isfinite(block)
        if not finite.all():
            row, column = np.argwhere(~finite)[0].tolist()
            raise InputError(
                f"{name}: expected finite float32 values, got {rows[first + row, column]} in row {first + row}"
            )
        yield first, block


def _finite_rows(rows: npt.NDArray[Any], name: str) -> Float32:
    for _ in _float32_blocks(rows, name):
        pass
    return np.ascontiguousarray(rows, np.float32)


def _as_rows(features: Any, width: int, name: str, purpose: str = "", count: int | None = None) -> npt.NDArray[Any]:
    """Convert any array-like to a floating-point NumPy array [n_src, width]; values are not checked.

    `count` is the number of rows that must be there; None takes any n_src >= 1.
    """
    expected = f"{name}: expected a float array [{'n_src' if count is None else count}, {width}]{purpose}"
    try:
        rows = from_torch(features) if _is_tensor(features) else np.asarray(features)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{expected}, got {type(features).__name__} ({first_line(error)})") from None
    usual = (
        rows.dtype == np.float32 and rows.ndim == 2 and rows.shape[1] == width and 0 < len(rows) == (count or len(rows))
    )
    if usual and not np.ma.is_masked(features):
        return rows  # the names of types below take a quarter of the time that pre-clips do
    if rows.dtype.name == "bfloat16":  # a dtype of ml_dtypes, which JAX uses
        rows = rows.astype(np.float32)
    got = f"{rows.dtype} {list(rows.shape)}"
    if rows.ndim == 0 and not isinstance(features, np.ndarray):
        got = type(features).__name__
    if not np.issubdtype(rows.dtype, np.floating):
        raise InputError(f"{expected}, got {got}")
    if np.ma.is_masked(features):
        raise InputError(f"{expected}, got a masked array; fill in or leave out what is masked")
    if rows.ndim != 2 or rows.shape[1] != width:
        transposed = rows.ndim == 2 and rows.shape[0] == width
        raise InputError(f"{expected}, got {got}{'; transpose it' if transposed else ''}")
    if count not in (None, len(rows)):
        raise InputError(f"{expected}, got {got}")
    if not len(rows):
        raise InputError(f"{expected} with n_src >= 1, got {got}")
    return rows


def _is_tensor(value: Any) -> bool:
    """Whether a value is a torch tensor; False if torch was never imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def from_torch(tensor: Any) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.is_floating_point() and str(tensor.dtype) not in ("torch.float16", "torch.float32", "torch.float64"):
        from mmn_fast.process.torch_threads import on_usable_thread

        tensor = on_usable_thread(tensor.float)  # bfloat16 and float8: NumPy has neither
    array: npt.NDArray[Any] = tensor.numpy()
    return array
