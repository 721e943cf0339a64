"""Pixel features of a stream of frames are those of the whole array, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from mmn_fast.arrays import Float32, Int64, Uint8
from mmn_fast.demo.shapes import make_video
from mmn_fast.errors import InputError
from mmn_fast.features import PixelFeatures
from mmn_fast.features.extractors import make_extractor, pixels


@pytest.fixture(scope="module")
def frames() -> Uint8:
    return make_video("test", 0, 0).frames()


@pytest.mark.parametrize("clip_frames", [1, 2, 3, 100])
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 66, 140])
def test_a_stream_gives_the_rows_of_the_whole_array(frames: Uint8, clip_frames: int, count: int) -> None:
    video = np.concatenate([frames, frames[::-1]])[:count]
    features = PixelFeatures(8, clip_frames)
    streamed = list(features.stream(iter(video)))
    assert np.array_equal(np.concatenate(streamed), features(video))


def test_large_frames_are_averaged_alike(frames: Uint8) -> None:
    large = np.repeat(np.repeat(frames[:70], 3, axis=1), 4, axis=2)
    features = PixelFeatures()
    assert np.array_equal(np.concatenate(list(features.stream(large))), features(large))


def plain_pixels(planes: Float32) -> tuple[Int64, Int64, Float32]:
    """The specification of `_pixels`, with the remainder that defines a hue."""
    flat = planes.reshape(3, planes.shape[1], -1)
    high, low = flat.max(axis=0), flat.min(axis=0)
    chroma, grey = high - low, (high + low) / 2
    frame, place = np.nonzero(chroma > 0.08)
    r, g, b = flat[:, frame, place]
    strong, top = chroma[frame, place], high[frame, place]
    hue = 2 * np.where(top == r, (g - b) / strong % 6, np.where(top == g, (b - r) / strong + 2, (r - g) / strong + 4))
    below = np.floor(hue).astype(np.int64)
    share = np.clip(3 * (hue - below) - 1, 0, 1).astype(np.float32)
    median = np.median(grey[:, :: max(grey.shape[1] // 1024, 1)], axis=1, keepdims=True)
    grey = np.where(chroma > 0.08, 0, np.abs(grey - median))
    at = np.nonzero(grey > 0.08)
    owner = np.concatenate([frame * 13 + below % 12, frame * 13 + (below + 1) % 12, at[0] * 13 + 12])
    weight = np.concatenate([strong * (1 - share), strong * share, grey[at]])
    counts = weight > 0
    return owner[counts], np.concatenate([place, place, at[1]])[counts], weight[counts]


@pytest.mark.parametrize("kind", ["film", "noise", "corners", "faint"])
def test_pixels_are_sorted_as_the_definition_says(frames: Uint8, kind: str) -> None:
    rng = np.random.default_rng(0)
    given = {
        "film": frames[:9],
        "noise": rng.integers(0, 256, (5, 37, 53, 3)),
        "corners": 255 * rng.integers(0, 2, (5, 37, 53, 3)),
        "faint": 128 + rng.integers(-15, 16, (5, 37, 53, 3)),
    }[kind]
    planes = pixels._planes(given.astype(np.float32) / np.float32(255))
    for found, wanted in zip(pixels._pixels(planes), plain_pixels(planes), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_stream_keeps_few_frames(frames: Uint8) -> None:
    given = 0

    def counted() -> Iterator[Uint8]:
        nonlocal given
        for _ in range(5):
            for frame in frames[:64]:
                given += 1
                yield frame

    taken = 0
    for rows in make_extractor("pixels").stream(counted()):
        assert given - 2 * taken <= 65 + 1
        taken += len(rows)
    assert taken == 160


def test_a_stream_refuses_odd_frames(frames: Uint8) -> None:
    extractor = make_extractor("pixels")
    assert list(extractor.stream([])) == []
    with pytest.raises(InputError, match=r"frames: expected frames of one size, got \[64, 64, 3\] and \[64, 32, 3\]"):
        list(extractor.stream([frames[0], frames[1][:, :32]]))
    with pytest.raises(InputError, match=r"frames: expected uint8 \[H, W, 3\] with H, W >= 1, got float64"):
        list(extractor.stream([frames[0] / 2]))


def test_the_contract_is_that_of_the_demo() -> None:
    contract = make_extractor("pixels").contract
    assert (contract.fps, contract.clip_frames, contract.stride, contract.width) == (8, 2, 2, PixelFeatures.width)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"device": "cuda"}, "device: the extractor 'pixels' runs on a CPU, got 'cuda'"),
        ({"precision": "fp16"}, "precision: the extractor 'pixels' computes in fp32"),
        ({"stride": 1}, "stride: expected 2, as clip_frames, got 1"),
        ({"output": "x"}, "output: the extractor 'pixels' has one output, got 'x'"),
        ({"batch_size": 4}, "batch_size: the extractor 'pixels' takes frames as they come, got 4"),
        ({"fps": 0}, "fps: expected a number > 0"),
        ({"clip_frames": 0}, "clip_frames: expected an integer >= 1, got 0"),
    ],
)
def test_options_that_it_lacks_are_refused(option: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        make_extractor("pixels", **option)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)
