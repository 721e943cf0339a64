"""Pixel features of a stream of frames are those of the whole array, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from mmn_fast.arrays import Uint8
from mmn_fast.demo.shapes import make_video
from mmn_fast.errors import InputError
from mmn_fast.features import PixelFeatures
from mmn_fast.features.extractors import make_extractor


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
