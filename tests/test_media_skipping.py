"""Decoding leaves out what no wanted frame needs, beside the caller's work; the frames stay the same."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mmn_fast.errors import InputError
from mmn_fast.media import open_video, plan
from mmn_fast.media.ahead import ahead
from mmn_fast.media.headers import Headers
from mmn_fast.media.plan import Action
from mmn_fast.media.source import Source
from tests.test_media import B_FRAMES, SLOW, middles, shown_at
from tests.videos import HEIGHT, WIDTH, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    """20 frames, 10 per second, with B-frames."""
    return write_video(folder / "plain.mp4", options=B_FRAMES)


def everything(path: Path, times: list[float]) -> list[np.ndarray]:
    """The frames at some times, by decoding all of them with PyAV alone."""
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
        tick = file.streams.video[0].time_base
    stamps = [float((frame.pts - frames[0].pts) * tick) for frame in frames]
    return [frames[number].to_ndarray(format="rgb24") for number in shown_at(stamps, times)]


GROUPS = {
    "pyramid": ("libx264", B_FRAMES),
    "open": ("libx264", {**B_FRAMES, "x264-params": "scenecut=0:open-gop=1"}),
    "refresh": ("libx264", {"preset": "medium", "g": "20", "x264-params": "intra-refresh=1"}),
    "refresh-stream": ("libx264", {"preset": "medium", "g": "5", "x264-params": "intra-refresh=1"}),
    "mpeg4": ("mpeg4", {"bf": "2", "g": "12"}),
    "mpeg2": ("mpeg2video", {"bf": "2", "g": "12"}),
    "hevc": ("libx265", {"x265-params": "log-level=none:keyint=12:bframes=3:open-gop=1"}),
    "hevc-layers": ("libx265", {"x265-params": "log-level=none:keyint=24:bframes=3:temporal-layers=3"}),
    "vp9": (
        "libvpx-vp9",
        {"g": "12", "deadline": "realtime", "cpu-used": "8", "lag-in-frames": "8", "auto-alt-ref": "1"},
    ),
    "mjpeg": ("mjpeg", {}),
    "irregular": ("libx264", {**B_FRAMES, "x264-params": "scenecut=0:open-gop=1"}),
    "slices": ("libx264", {**B_FRAMES, "x264-params": "scenecut=0:slices=3"}),
    "sets-stream": (
        "libx264",
        {**B_FRAMES, "x264-params": "scenecut=0:aud=1:nal-hrd=vbr:vbv-maxrate=900:vbv-bufsize=900"},
    ),
}
IRREGULAR = np.cumsum([0, *np.random.default_rng(1).choice([1, 1, 2, 8, 30], 59)]).tolist()  # hundredths of a second


@pytest.fixture(scope="module")
def moving(folder: Path) -> dict[str, Path]:
    """60 frames per codec, 25 a second, of moving noise, so that a wrong reference shows."""
    rng = np.random.default_rng(0)
    noise = np.kron(rng.integers(0, 256, (30, 40, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    pictures = [np.roll(noise, (2 * k, 3 * k), (0, 1))[:HEIGHT, :WIDTH] for k in range(60)]
    found = {}
    for name, (codec, options) in GROUPS.items():
        pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        suffix = "ts" if "stream" in name else "mp4" if "264" in codec or "265" in codec else "mkv"
        found[name] = write_video(
            folder / f"moving-{name}.{suffix}",
            pictures,
            codec=codec,
            stamps=IRREGULAR if name == "irregular" else None,
            rate=25,
            time_base=Fraction(1, 100) if name == "irregular" else SLOW,
            options=options,
            pixel_format=pixels,
        )
    return found


@pytest.mark.parametrize(
    ("name", "most_packets"), [*((name, 600) for name in GROUPS), *((name, 4) for name in ("open", "irregular"))]
)
@pytest.mark.parametrize("fps", [0.5, 1.0, 3.0, 8.0, 25.0])
def test_the_same_frames_come_out_when_others_are_left_out(
    moving: dict[str, Path], name: str, most_packets: int, fps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With four packets ahead, many decisions are made before all is known."""
    monkeypatch.setattr(plan, "_MOST_PACKETS", most_packets)
    with open_video(moving[name], threads=2) as reader:
        found = list(reader.frames(fps))
        assert name == "irregular" or reader.duration_s == pytest.approx(2.4)
        times = middles(fps, reader.duration_s or 0.0)
    assert [time for time, _ in found] == times
    for (_, picture), wanted in zip(found, everything(moving[name], times), strict=True):
        np.testing.assert_array_equal(picture, wanted)


@pytest.mark.parametrize("name", ["open", "vp9", "irregular"])
def test_sparse_times(moving: dict[str, Path], name: str) -> None:
    times = [0.03, 1.3, 1.31, 2.2]
    with open_video(moving[name], threads=2) as reader:
        found = list(reader.frames_at(times))
        assert reader.duration_s is not None
    assert [time for time, _ in found] == times
    for (_, picture), wanted in zip(found, everything(moving[name], times), strict=True):
        np.testing.assert_array_equal(picture, wanted)


@pytest.mark.parametrize("name", ["pyramid", "open", "hevc", "mpeg2", "mpeg4"])
def test_free_frames_are_those_that_the_decoder_leaves_out(moving: dict[str, Path], name: str) -> None:
    with av.open(str(moving[name])) as file:
        context = file.streams.video[0].codec_context
        headers = Headers(context.codec.canonical_name, context.extradata)
        context.skip_frame = "NONREF"
        packets = [packet for packet in file.demux(video=0) if packet.size]
        decoded = {frame.pts for packet in [*packets, None] for frame in context.decode(packet)}
    assert headers.tell_free
    assert {packet.pts for packet in packets if not headers.are_free(bytes(packet))} == decoded
    assert len(decoded) < 50


@pytest.mark.parametrize(
    ("name", "alone"), [("pyramid", True), ("hevc", True), ("sets-stream", False), ("mpeg4", False)]
)
def test_free_packets_that_the_decoder_need_not_see(moving: dict[str, Path], name: str, alone: bool) -> None:
    """They hold slices alone; with messages (x264 writes them for `nal-hrd`) the decoder has to read them."""
    with av.open(str(moving[name])) as file:
        context = file.streams.video[0].codec_context
        headers = Headers(context.codec.canonical_name, context.extradata)
        packets = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    free = [packet for packet in packets if headers.are_free(packet)]
    assert len(free) > 10
    assert {headers.are_alone(packet) for packet in free} == {alone}
    assert not any(headers.are_alone(packet) for packet in packets if headers.start_afresh(packet))


def test_a_packet_with_a_parameter_set_is_not_alone() -> None:
    code = b"\x00\x00\x01"
    h264, hevc = Headers("h264", None), Headers("hevc", None)
    slice_of_h264, slice_of_hevc = code + b"\x01" + b"\x88" * 8, code + b"\x00\x01" + b"\x88" * 8
    assert h264.are_free(slice_of_h264)
    assert h264.are_alone(code + b"\x09\xf0" + slice_of_h264)
    assert hevc.are_alone(code + b"\x46\x01\x50" + slice_of_hevc)
    for head in (b"\x67", b"\x68", b"\x06", b"\x0a"):  # parameter sets, a message, the end of a sequence
        assert not h264.are_alone(code + head + b"\x88" * 8 + slice_of_h264)
    for head in (b"\x40\x01", b"\x42\x01", b"\x44\x01", b"\x4e\x01", b"\x48\x01"):
        assert not hevc.are_alone(code + head + b"\x88" * 8 + slice_of_hevc)


@pytest.mark.parametrize("fps", [1.0, 25.0])
def test_a_damaged_slice_is_told(moving: dict[str, Path], tmp_path: Path, fps: float) -> None:
    """FFmpeg's threads for slices would repair it silently."""
    with av.open(str(moving["slices"])) as file:
        packets = [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size]
    data = bytearray(moving["slices"].read_bytes())
    at, size = max(packets, key=lambda packet: packet[1])
    data[at + size // 2 : at + size // 2 + 40] = bytes(40)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    with open_video(path, threads=3) as reader:
        assert list(reader.frames(fps))
        assert reader.lost is not None


def test_layers_and_unknown_codecs_have_no_free_frames(moving: dict[str, Path]) -> None:
    with av.open(str(moving["hevc-layers"])) as file:
        assert not Headers("hevc", file.streams.video[0].codec_context.extradata).tell_free
    assert not Headers("hevc", None).tell_free
    assert not Headers("vp9", None).tell_free


@pytest.mark.parametrize("name", GROUPS)
def test_a_sound_file_is_read_once_and_little_is_decoded(
    moving: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    actions: list[Action] = []
    decode = Source._decode
    monkeypatch.setattr(
        Source, "_decode", lambda own, packet, action: (actions.append(action), decode(own, packet, action))[1]
    )
    with open_video(moving[name], threads=2) as reader:
        assert len(list(reader.frames(0.5))) == len(middles(0.5, reader.duration_s or 0.0))
        assert reader.lost is None
    assert len(actions) == 60
    assert name in ("hevc-layers", "refresh-stream", "irregular") or actions.count(Action.DECODE) < 40


# Threads


def num_decoders() -> int:
    return sum(thread.name == "mmn_fast video decoder" for thread in threading.enumerate())


def test_a_reader_that_is_left_early_leaves_no_thread(plain: Path) -> None:
    with open_video(plain, threads=2) as reader:
        frames = reader.frames(10.0)
        next(frames)
        assert num_decoders() == 1
        frames.close()  # type: ignore[attr-defined]
        assert num_decoders() == 0
        for _ in reader.frames(10.0):
            break
        assert num_decoders() == 0
    with open_video(plain, threads=1) as reader:
        next(reader.frames(10.0))
        assert num_decoders() == 0


def test_few_frames_are_made_ahead() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number
        raise ValueError("at the end")

    found = ahead(items(), 3)
    assert next(found) == 0
    time.sleep(0.05)
    assert len(made) <= 4
    assert [next(found) for _ in range(9)] == list(range(1, 10))
    with pytest.raises(ValueError, match="at the end"):
        next(found)


def test_readers_side_by_side(moving: dict[str, Path]) -> None:
    """The threads of one reader do not disturb another one in another thread."""
    wanted = {name: everything(moving[name], middles(8.0, 2.4)) for name in ("pyramid", "hevc", "mpeg2", "vp9")}

    def read(name: str) -> list[np.ndarray]:
        with open_video(moving[name], threads=2) as reader:
            return [picture for _, picture in reader.frames(8.0)]

    with ThreadPoolExecutor(4) as pool:
        for name, found in zip(wanted, pool.map(read, wanted), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(found, wanted[name], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_decoder_is_freed_at_once(plain: Path, threads: int) -> None:
    """Nothing waits for Python's collector of circles: each decoder holds megabytes."""
    gc.collect()
    gc.disable()
    try:
        with open_video(plain, threads=threads) as reader:
            assert len(list(reader.frames(10.0))) == 20
            next(reader.frames(10.0))
            with pytest.raises(InputError):
                reader.frames(0)
        with pytest.raises(InputError), open_video(plain, threads=threads, max_duration_s=1) as reader:
            list(reader.frames(10.0))
        del reader
        assert not [found for found in gc.get_objects() if type(found) is Source]
    finally:
        gc.enable()
