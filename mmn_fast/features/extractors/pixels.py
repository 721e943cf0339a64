"""Clip features from RGB frames alone: they describe how every colour on the screen looks and moves.

No weights are downloaded or learned. Pixels are sorted softly into 12 hues and one class of greys that differ from
the background. Moments describe each of these 13 channels: its amount, place, size and form, and how these change.
Two frames of any RGB video suffice; the features say most when things differ in colour.

Symbols: F frames, K channels, n_clips clips.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Float32, Float64, Int64, Uint8
from mmn_fast.errors import InputError
from mmn_fast.features.contract import FeatureContract
from mmn_fast.features.extractors.base import Extractor, check_frame
from mmn_fast.features.extractors.options import ExtractorOptions

_HUES = 12
CHANNELS = _HUES + 1
"""K: twelve hues of 30 degrees, and greys."""

_LONGEST_SIDE = 64  # larger frames are averaged down to at most twice this
_FAINT = 0.08  # pixels of less weight than this are background
_LOOKS_WEIGHT = 0.4  # rows are normalised before use: looks must not drown the changes
_STEEP = 0.06  # neighbouring pixels that differ by more are at an outline
_FOLDS = (2, 3, 4, 5)
_AT_ONCE = 64  # frames that a stream describes at once: 3 MB of the shrunk frames
# The decoder shrinks larger frames to this side, and `_shrunk` averages them to a quarter of it.
_MAX_SIDE = 4 * _LONGEST_SIDE

# Measurements of each channel, per clip. Rates are in frame widths, or natural logarithms, per second.
LOOKS = ("amount", "x", "y", "size", "2-fold", "3-fold", "4-fold", "5-fold", "hollow", "border")
CHANGES = (
    *("right", "left", "down", "up", "growth", "shrinkage", "gain", "loss"),
    *("flicker", "turn", "tint", "company", "meeting", "parting"),
)
_FORMS = ("size", "3-fold", "4-fold", "5-fold", "hollow")
_DEEDS = ("right", "left", "down", "up", "growth", "shrinkage", "flicker", "turn", "tint")


class PixelFeatures:
    """Computes clip features from frames.

    A feature row holds, for each channel, means over the clip's frames:

    * looks: amount (share of the frame, saturating), centroid, root mean square radius, strength of the n-fold symmetry
      of the form (n = 2 to 5: complex moments about the centroid), hollowness (fourth moment), share on the border;
    * changes, none negative: motion right, left, down and up (saturating early, so that slow things count), growth and
      shrinkage of the radius, gain and loss of amount, flicker, turning of the form, change of tint inside the form,
      company (other channels near by), and how directly the channel and another one meet or part.

    After all channels come the products of forms and changes, summed over channels ("something square grows").

    Args:
        fps: frames per second of the videos; converts changes per frame to rates per second.
        clip_frames: frames per clip; the last clip may have fewer.
    """

    width = CHANNELS * (len(LOOKS) + len(CHANGES)) + len(_FORMS) * len(_DEEDS)
    """D, the length of a feature row."""

    def __init__(self, fps: float = 8.0, clip_frames: int = 2) -> None:
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps < float("inf"):
            raise InputError(f"fps: expected a positive number of frames per second, got {fps!r}")
        if isinstance(clip_frames, bool) or not isinstance(clip_frames, int) or clip_frames < 1:
            raise InputError(f"clip_frames: expected an integer >= 1, got {clip_frames!r}")
        self.fps = float(fps)
        self.clip_frames = clip_frames

    def __call__(self, frames: Uint8) -> Float32:
        """Describe a video.

        Args:
            frames: uint8 [F, H, W, 3], RGB, F, H and W >= 1.

        Returns:
            float32 [n_clips, D] with n_clips = ceil(F / clip_frames).

        Raises:
            InputError: `frames` is something else.
        """
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
            raise InputError(
                f"frames: expected uint8 [F, H, W, 3] with F, H, W >= 1, got {frames.dtype} {list(frames.shape)}"
            )
        return self._clip_means(_frame_rows(_shrunk(frames), self.fps))

    def stream(self, frames: Iterable[Uint8]) -> Iterator[Float32]:
        """Describe a video whose frames arrive one by one: the rows of `__call__`, and at most some 64 frames are kept.

        Args:
            frames: uint8 [H, W, 3], RGB, all of one size.

        Yields:
            float32 [k, D], k >= 1, in order.

        Raises:
            InputError: a frame is something else.
        """
        count = self.clip_frames * max(_AT_ONCE // self.clip_frames, 1)
        first: Uint8 | None = None
        window: list[Float32] = []
        known = 0  # frames at the window's start that have been described: a row depends on the frame before it
        for frame in frames:
            frame = check_frame(frame, first)
            first = frame if first is None else first
            window.append(_shrunk(frame[None])[0])
            if len(window) == known + count + 1:  # a row depends on the frame after it, too
                rows = _frame_rows(np.stack(window), self.fps)
                yield self._clip_means(rows[known : known + count])
                window = window[known + count - 1 :]
                known = 1
        if len(window) > known:
            yield self._clip_means(_frame_rows(np.stack(window), self.fps)[known:])

    def _clip_means(self, rows: Float32) -> Float32:
        starts = np.arange(0, len(rows), self.clip_frames)
        sums = np.add.reduceat(rows, starts, axis=0)
        counts = np.diff(np.append(starts, len(rows)))
        means: Float32 = np.ascontiguousarray(sums / counts[:, None], np.float32)
        return means


class PixelExtractor(Extractor):
    """`PixelFeatures` as an extractor, for the demo's models.

    Args:
        place: nothing; this extractor has no weights.
        options: `fps` and `clip_frames` choose those of `PixelFeatures`.

    Raises:
        InputError: an option is given that this extractor does not have.
    """

    max_side = _MAX_SIDE

    def __init__(self, place: str, options: ExtractorOptions) -> None:
        reasons = {"output": "has one output", "batch_size": "takes frames as they come"}
        options.refuse("pixels", **reasons)
        if options.device not in ("auto", "cpu"):
            raise InputError(f"device: the extractor 'pixels' runs on a CPU, got {options.device!r}")
        if options.precision not in ("auto", "fp32"):
            raise InputError(f"precision: the extractor 'pixels' computes in fp32, got {options.precision!r}")
        fps = 8.0 if options.fps is None else options.fps
        self._features = PixelFeatures(fps, 2 if options.clip_frames is None else options.clip_frames)
        clip_frames = self._features.clip_frames
        if options.stride not in (None, clip_frames):
            raise InputError(f"stride: expected {clip_frames}, as clip_frames, got {options.stride}")
        self.threads = options.threads or 0
        self.contract = FeatureContract(
            "pixels", fps, clip_frames, clip_frames, PixelFeatures.width, resize={"max_side": _MAX_SIDE}
        )

    def stream(self, frames: Iterable[Uint8]) -> Iterator[Float32]:
        return self._features.stream(frames)


def _frame_rows(frames: Float32, fps: float) -> Float32:
    """A row per frame, from the frames before and after; `frames` come from `_shrunk`."""
    looks, spin, tint = _looks(frames)
    changes = _changes(looks, spin, tint, fps)
    described = np.concatenate([_LOOKS_WEIGHT * looks, changes], axis=-1)
    form = looks[..., [LOOKS.index(name) for name in _FORMS]]
    deed = changes[..., [CHANGES.index(name) for name in _DEEDS]]
    both = np.einsum("fkm,fkn->fmn", form, deed)
    rows: Float32 = np.concatenate([described.reshape(len(frames), -1), both.reshape(len(frames), -1)], axis=1)
    return rows


def _shrunk(frames: Uint8) -> Float32:
    """Frames as float32, 0 to 1; large frames are averaged over squares of pixels."""
    factor = max(max(frames.shape[1:3]) // _LONGEST_SIDE, 1)
    height, width = (max(side // factor, 1) for side in frames.shape[1:3])
    if factor == 1:
        return frames.astype(np.float32) / np.float32(255)
    cut = frames[:, : height * factor, : width * factor]
    rows, columns = min(factor, cut.shape[1]), min(factor, cut.shape[2])
    blocks = cut.reshape(len(frames), height, rows, width, columns, 3)
    # The sums are exact whole numbers, as those of `blocks.mean(axis=(2, 4))`, in a fifth of its time.
    wide: type[np.uint16 | np.uint32] = np.uint16 if rows * columns < 2**8 else np.uint32
    lines: npt.NDArray[np.unsignedinteger] = blocks[:, :, 0].astype(wide)
    for row in range(1, rows):
        lines += blocks[:, :, row]
    sums = lines[:, :, :, 0].copy()
    for column in range(1, columns):
        sums += lines[:, :, :, column]
    means: Float32 = sums.astype(np.float32) / np.float32(rows * columns) / np.float32(255)
    return means


_AROUND = np.arange(_HUES + 2) % _HUES  # a number of a hue that went once around the circle


def _planes(frames: Float32) -> Float32:
    """[F, H, W, 3] as [3, F, H, W]: arithmetic on one colour at a time is several times as fast side by side."""
    return np.ascontiguousarray(np.moveaxis(frames, -1, 0))


def _extremes(planes: Float32) -> tuple[Float32, Float32]:
    """Largest and smallest value over the first axis (R, G, B)."""
    r, g, b = planes
    return np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)


def _pixels(planes: Float32) -> tuple[Int64, Int64, Float32]:
    """Foreground pixels: (frame, channel) as one number, place in the frame, and weight.

    A coloured pixel counts for the two hues next to its own, by nearness, with weight max - min over R, G and B. That
    weight is linear in the covered part of the pixel, so smoothed edges lose nothing. A grey pixel counts by its
    difference from the frame's median.
    """
    num, size = planes.shape[1], planes.shape[2] * planes.shape[3]
    flat = planes.reshape(3, -1)
    high, low = _extremes(flat)
    chroma, grey = high - low, ((high + low) / 2).reshape(num, size)
    coloured = chroma > _FAINT
    found = np.flatnonzero(coloured)
    r, g, b = flat.take(found, axis=1)
    strong, top = chroma[found], high[found]
    # One division and no remainder: both are slow. Only the first sixth of the circle reaches below 0.
    red, green = top == r, top == g
    hue = np.where(red, g - b, np.where(green, b - r, r - g)) / strong
    hue += np.where(red, 0, np.where(green, 2, 4)).astype(np.float32)
    hue = np.where(hue < 0, hue + 6, hue) * (_HUES / 6)
    below = np.floor(hue).astype(np.int64)
    # Only the middle third between two hues is shared: shades of one hue stay in one channel.
    share = np.clip(3 * (hue - below) - 1, 0, 1).astype(np.float32)
    # About a thousand pixels are enough to find the background.
    median = np.median(grey[:, :: max(size // 1024, 1)], axis=1, keepdims=True)
    apart = np.where(coloured.reshape(num, size), 0, np.abs(grey - median)).reshape(-1)
    grey_found = np.flatnonzero(apart > _FAINT)
    first = found // size * CHANNELS
    owner = [first + _AROUND[below], first + _AROUND[below + 1], grey_found // size * CHANNELS + _HUES]
    weight = [strong * (1 - share), strong * share, apart[grey_found]]
    place = found % size
    owners, places, weights = map(np.concatenate, (owner, [place, place, grey_found % size], weight))
    counts = np.flatnonzero(weights > 0)
    return owners[counts], places[counts], weights[counts].astype(np.float32)


def _tint(planes: Float32) -> Float32:
    """Change of colour inside coloured areas from the previous frame to the next one, and the mask of these pixels.

    One array holds both, [F, H W] each. A pixel is zero if it is grey or at an outline in any of the three frames:
    such a pixel changes with motion, not with tint.
    """
    num = planes.shape[1]
    high, low = _extremes(planes)
    inside = high - low > _FAINT
    for axis in (1, 2):
        up, down = _extremes(np.diff(planes, axis=axis + 1))
        flat = np.maximum(up, -down) <= _STEEP
        first, last = [slice(None)] * 3, [slice(None)] * 3
        first[axis], last[axis] = slice(None, -1), slice(1, None)
        inside[tuple(first)] &= flat
        inside[tuple(last)] &= flat
    before, after = np.maximum(np.arange(num) - 1, 0), np.minimum(np.arange(num) + 1, num - 1)
    always = inside & inside[before] & inside[after]
    frame, row, column = np.nonzero(always)
    tint = np.zeros((2, *always.shape), np.float32)
    moved = planes[:, after[frame], row, column] - planes[:, before[frame], row, column]
    tint[0, frame, row, column] = np.abs(moved).sum(axis=0)
    tint[1, frame, row, column] = 1
    return tint.reshape(2, num, -1)


def _looks(frames: Float32) -> tuple[Float32, npt.NDArray[np.complexfloating], npt.NDArray[np.floating]]:
    """Per frame and channel: `LOOKS` [F, K, 10], harmonics of the form, complex [F, K, 4], change of tint [F, K]."""
    num, height, width = frames.shape[:3]
    planes = _planes(frames)
    owner, place, weight = _pixels(planes)
    side = max(height, width)

    def total(values: npt.NDArray[np.floating]) -> Float64:
        return np.asarray(np.bincount(owner, values, minlength=num * CHANNELS), np.float64)

    # What depends on the place alone is computed once per place.
    row, column = np.divmod(np.arange(height * width), width)
    x, y = (((column + 0.5) - width / 2) / side)[place], (((row + 0.5) - height / 2) / side)[place]
    edge = ((column < 2) | (row < 2) | (column >= width - 2) | (row >= height - 2))[place]
    mass = total(weight)
    some = np.maximum(mass, 1e-6)
    centre_x, centre_y = total(weight * x) / some, total(weight * y) / some
    z = np.empty(len(owner), np.complex128)
    z.real, z.imag = x - centre_x[owner], y - centre_y[owner]
    square = z.real**2 + z.imag**2
    # The pixel's own size is added: otherwise a single pixel would have size 0, and a division by zero would follow.
    spread = total(weight * square) / some + 1 / (6 * side**2)
    scale = (1 / np.sqrt(spread))[owner]
    unit = np.empty_like(z)
    unit.real, unit.imag = z.real * scale, z.imag * scale
    fourth = total(weight * (square / spread[owner]) ** 2) / some
    harmonics = []
    power = unit
    for _ in _FOLDS:
        power = power * unit
        harmonics.append((total(weight * power.real) + 1j * total(weight * power.imag)) / some)
    spin = np.stack(harmonics, axis=-1)
    share = mass / (height * width)
    amount = share / (share + 0.004)
    folds = np.abs(spin) / (0.3 + np.abs(spin))
    looks = np.stack(
        [
            np.ones_like(mass),
            2 * centre_x,
            2 * centre_y,
            np.log(np.sqrt(spread) / 0.08),
            *folds.T,
            2 * (fourth - 1.3),
            4 * np.minimum(total(weight * edge) / some, 0.25),
        ],
        axis=-1,
    )
    looks = np.clip(looks, -2, 2) * amount[:, None]
    moved, inner = _tint(planes).reshape(2, -1).take(owner // CHANNELS * (height * width) + place, axis=1)
    tint = total(weight * moved) / np.maximum(total(weight * inner), 1e-6)
    shape = (num, CHANNELS)
    return (
        looks.reshape(*shape, -1).astype(np.float32),
        (spin * amount[:, None]).reshape(*shape, -1),
        tint.reshape(shape),
    )


def _changes(
    looks: Float32, spin: npt.NDArray[np.complexfloating], tint: npt.NDArray[np.floating], fps: float
) -> Float32:
    """Per frame and channel `CHANGES`, float32 [F, K, 14], from the frames before and after."""
    num = len(looks)
    before, after = np.maximum(np.arange(num) - 1, 0), np.minimum(np.arange(num) + 1, num - 1)
    rate = (fps / np.maximum(after - before, 1))[:, None]
    amount = looks[..., 0]
    # A channel that is almost absent at either time has no reliable place.
    sure = np.minimum(np.minimum(amount[before], amount[after]), amount)
    sure = np.where(sure > 0.15, sure, 0)
    here = np.maximum(amount, 1e-3)[..., None]
    plain = looks / here  # x, y and size without the amount
    x, y, size, border = plain[..., 1] / 2, plain[..., 2] / 2, plain[..., 3], plain[..., -1]

    velocity = np.stack([x[after] - x[before], y[after] - y[before]], axis=-1) * rate[..., None]
    speed = np.hypot(velocity[..., 0], velocity[..., 1])
    heading = velocity / np.maximum(speed, 1e-6)[..., None]  # [F, K, 2]
    going = _squash(speed, 0.03) * sure
    motion = heading * going[..., None]
    # A shape that the frame's border cuts off changes its visible size without growing.
    growth = _squash((size[after] - size[before]) * rate, 0.06) * sure * (1 - border) ** 2
    gain = _squash((amount[after] - amount[before]) * rate, 0.15)
    turn = np.abs((spin / here)[after] - (spin / here)[before])[..., 1:].max(axis=-1) * rate
    step = np.abs(np.diff(amount, axis=0, prepend=amount[:1]))

    # Vector and distance from one channel (second axis) to another (third axis).
    way = np.stack([x[:, None, :] - x[:, :, None], y[:, None, :] - y[:, :, None]], axis=-1)
    gap = np.hypot(way[..., 0], way[..., 1])
    others = 1 - np.eye(CHANNELS, dtype=np.float32)
    near = others * np.minimum(amount[:, :, None], amount[:, None, :]) / (1 + (gap / 0.25) ** 2)
    towards = (heading[:, :, None] * way).sum(axis=-1) / np.maximum(gap, 1e-6)  # cosine of heading and way
    both = others * np.sqrt(going[:, :, None] * going[:, None, :])
    # Head-on: both channels go straight towards each other, or straight away from each other.
    meeting = (both * np.clip(np.minimum(towards, towards.swapaxes(1, 2)), 0, 1) ** 4).max(axis=-1)
    parting = (both * np.clip(np.minimum(-towards, -towards.swapaxes(1, 2)), 0, 1) ** 4).max(axis=-1)

    changes = np.stack(
        [
            *(np.maximum(sign * motion[..., axis], 0) for axis in (0, 1) for sign in (1, -1)),
            *(np.maximum(sign * growth, 0) for sign in (1, -1)),
            *(np.maximum(sign * gain, 0) for sign in (1, -1)),
            np.minimum(4 * step, 1),
            _squash(turn, 0.6) * sure,
            _squash(tint * rate, 0.15) * amount,
            near.max(axis=-1),
            meeting,
            parting,
        ],
        axis=-1,
    )
    return changes.astype(np.float32)


def _squash(values: npt.NDArray[np.floating], half: float) -> npt.NDArray[np.floating]:
    """Squash values into -1 to 1; `half` becomes 0.5."""
    return values / (np.abs(values) + half)
