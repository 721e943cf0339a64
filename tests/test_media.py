"""Decoding: the frame that is shown at a time, whatever the container and the codec do to time."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mmn_fast.media import open_video, probe
from mmn_fast.media.info import Turn
from tests.videos import HEIGHT, WIDTH, number_of, numbered, write_video

SLOW = Fraction(1, 25)
B_FRAMES = {
    "preset": "medium",
    "bf": "3",
    "b-pyramid": "normal",
    "b-adapt": "0",
    "g": "12",
    "x264-params": "scenecut=0",
}


def numbers(path: Path, fps: float, **options: Any) -> list[int]:
    with open_video(path, threads=2) as reader:
        return [number_of(picture) for _, picture in reader.frames(fps, **options)]


def shown_at(stamps: list[float], times: list[float]) -> list[int]:
    """The specification: the last frame whose stamp is not later, counted from the first stamp."""
    return [max(k for k, stamp in enumerate(stamps) if stamp - stamps[0] <= time) for time in times]


def middles(fps: float, duration: float) -> list[float]:
    return [(k + 0.5) / fps for k in range(int(duration * fps + 1)) if (k + 0.5) / fps < duration]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    """20 frames, 10 per second, with B-frames."""
    return write_video(folder / "plain.mp4", options=B_FRAMES)


def test_the_frame_in_the_middle_of_each_interval(plain: Path) -> None:
    with open_video(plain, threads=2) as reader:
        found = list(reader.frames(2.0))
        assert reader.duration_s == pytest.approx(2.0)
        assert reader.lost is None
    assert [time for time, _ in found] == [0.25, 0.75, 1.25, 1.75]
    assert [number_of(picture) for _, picture in found] == [2, 7, 12, 17]
    assert found[0][1].shape == (HEIGHT, WIDTH, 3)
    assert found[0][1].dtype == np.uint8
    assert found[0][1].flags.c_contiguous


def test_more_frames_than_the_video_has_are_given_again(plain: Path) -> None:
    assert numbers(plain, 20.0) == [k // 2 for k in range(40)]


def test_probe_describes_the_file(plain: Path) -> None:
    info = probe(plain)
    assert (info.path, info.width, info.height, info.rotation) == (str(plain), WIDTH, HEIGHT, 0)
    assert (info.codec, info.pixel_format, info.frame_rate) == ("h264", "yuv420p", 10.0)
    assert info.duration_s == pytest.approx(2.0)


def test_a_reader_starts_again_with_every_iterator(plain: Path) -> None:
    with open_video(plain, threads=1) as reader:
        first = reader.frames(2.0)
        assert number_of(next(first)[1]) == 2
        assert [number_of(picture) for _, picture in reader.frames(2.0)] == [2, 7, 12, 17]
        assert [number_of(picture) for _, picture in first] == [7, 12, 17]
        assert [number_of(picture) for _, picture in reader.frames_at([0.0, 0.1, 0.1, 1.95, 7.0])] == [0, 1, 1, 19]
        assert reader.duration_s == pytest.approx(2.0)


# Time


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_variable_frame_rate(folder: Path, suffix: str) -> None:
    stamps = [0, 3, 4, 5, 20, 21, 22, 50, 53, 54, 90, 91]
    path = write_video(
        folder / f"vfr.{suffix}", 12, stamps=stamps, time_base=Fraction(1, 100), rate=25, options=B_FRAMES
    )
    times = middles(40.0, 0.91)
    assert numbers(path, 40.0)[: len(times)] == shown_at([stamp / 100 for stamp in stamps], times)


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4"])
def test_a_stream_that_does_not_start_at_0(folder: Path, suffix: str) -> None:
    path = write_video(folder / f"late.{suffix}", stamps=list(range(57, 77)), options=B_FRAMES)
    assert numbers(path, 2.0) == [2, 7, 12, 17]


@pytest.mark.parametrize("codec", ["mpeg4", "mpeg2video", "libx265", "libvpx", "libvpx-vp9", "mjpeg"])
def test_other_codecs(folder: Path, codec: str) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {"bf": "2"} if "mpeg" in codec else {}
    path = folder / f"{codec}.mkv"
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    write_video(path, 25, codec=codec, rate=25, time_base=SLOW, options=options, pixel_format=pixels)
    assert numbers(path, 5.0) == [2, 7, 12, 17, 22]


def edited(path: Path, media_time: int) -> None:
    """Change the start of an MP4 file's only edit, in ticks of the stream."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4
    version, _, count, _, _ = struct.unpack(">B3sIIi", data[at : at + 16])
    assert (version, count) == (0, 1)
    struct.pack_into(">i", data, at + 12, media_time)
    path.write_bytes(data)


def test_an_edit_list_trims_the_start(folder: Path) -> None:
    path = write_video(folder / "edit.mp4", 30, options={**B_FRAMES, "g": "30"})
    with av.open(str(path)) as file:
        tick = file.streams.video[0].time_base
    data = path.read_bytes()
    start = struct.unpack(">i", data[data.index(b"elst") + 16 : data.index(b"elst") + 20])[0]
    edited(path, start + int(Fraction(1, 2) / tick))  # the first 5 frames are decoded but never shown
    found = numbers(path, 2.0)
    assert found[:4] == [7, 12, 17, 22]
    assert numbers(path, 10.0)[0] == 5
    with open_video(path, threads=2) as reader:
        list(reader.frames(2.0))
        assert reader.lost is None


@pytest.mark.parametrize("seconds", [0, 1, 3600 * 500])
def test_a_wrong_duration_in_the_header_changes_nothing(plain: Path, folder: Path, seconds: int) -> None:
    data = bytearray(plain.read_bytes())
    for box, offset in ((b"mvhd", 16), (b"tkhd", 20), (b"mdhd", 16)):
        at = data.index(box) + 4 + offset
        struct.pack_into(">I", data, at, seconds * 1000)
    path = folder / f"header{seconds}.mp4"
    path.write_bytes(data)
    with open_video(path, max_duration_s=60) as reader:
        assert [number_of(picture) for _, picture in reader.frames(2.0)] == [2, 7, 12, 17]
        assert reader.duration_s == pytest.approx(2.0)


def test_a_header_without_duration(folder: Path) -> None:
    path = write_video(folder / "live.mkv", container={"live": "1"}, options=B_FRAMES)
    assert probe(path).duration_s is None
    assert numbers(path, 2.0) == [2, 7, 12, 17]


def test_a_bare_stream_has_no_stamps(folder: Path) -> None:
    path = write_video(folder / "bare.h264", 25, rate=25, time_base=SLOW, options={"bf": "0"})
    assert numbers(path, 5.0) == [2, 7, 12, 17, 22]


def test_two_recordings_in_one_transport_stream(folder: Path) -> None:
    """The second one's time stamps begin anew; its frames follow the first one's."""
    parts = [
        write_video(
            folder / f"part{n}.ts", [numbered(n * 20 + k) for k in range(20)], stamps=[n * 5 + k for k in range(20)]
        )
        for n in (1, 0)
    ]
    path = folder / "two.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with open_video(path) as reader:
        found = [number_of(picture) for _, picture in reader.frames(2.0)]
    assert found[:4] == [22, 27, 32, 37]
    assert found[-2:] == [12, 17]


# Pictures


def coloured(
    folder: Path, name: str, colour: tuple[int, int, int], size: tuple[int, int] = (48, 64), **kw: Any
) -> np.ndarray:
    picture = np.empty((*size, 3), np.uint8)
    picture[:] = colour
    path = write_video(folder / name, [picture] * 5, **kw)
    with open_video(path) as reader:
        (_, found), *_ = reader.frames(5.0)
    return found


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le", "yuv422p", "yuv444p"])
def test_colours_of_pixel_formats(folder: Path, pixel_format: str) -> None:
    found = coloured(folder, f"{pixel_format}.mp4", (200, 60, 30), pixel_format=pixel_format, options={"crf": "5"})
    assert np.abs(found.astype(int) - (200, 60, 30)).max() <= 8


def test_full_range_is_not_stretched(folder: Path) -> None:
    found = coloured(folder, "full.mp4", (250, 250, 250), pixel_format="yuvj420p", options={"crf": "5"})
    assert np.abs(found.astype(int) - 250).max() <= 3
    found = coloured(folder, "dark.mp4", (5, 5, 5), pixel_format="yuvj420p", options={"crf": "5"})
    assert np.abs(found.astype(int) - 5).max() <= 3


def test_the_colour_matrix_is_read_from_the_tags(folder: Path) -> None:
    def tagged(stream: Any) -> None:
        stream.codec_context.colorspace = 1  # BT.709

    options = {"crf": "5"}
    plain = coloured(folder, "untagged.mp4", (30, 200, 40), options=options)
    other = coloured(folder, "tagged.mp4", (30, 200, 40), options=options, setup=tagged)
    assert np.abs(plain.astype(int) - (30, 200, 40)).max() <= 8
    assert np.abs(other.astype(int) - plain).max() > 8  # the same stored values, read by another matrix


@pytest.mark.parametrize(("size", "pixel_format"), [((37, 53), "yuv444p"), ((34, 50), "yuv420p"), ((1, 16), "yuv444p")])
def test_odd_sizes(folder: Path, size: tuple[int, int], pixel_format: str) -> None:
    found = coloured(folder, f"odd{size[0]}.mkv", (60, 120, 180), size, codec="ffv1", pixel_format=pixel_format)
    assert found.shape == (*size, 3)
    assert np.abs(found.astype(int) - (60, 120, 180)).max() <= 8


CORNERS = np.zeros((48, 64, 3), np.uint8)
CORNERS[:24, :32], CORNERS[:24, 32:], CORNERS[24:, :32], CORNERS[24:, 32:] = 10, 90, 170, 250


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation_and_mirroring(folder: Path, degrees: int, mirrored: bool) -> None:
    path = write_video(
        folder / f"turn{degrees}{mirrored}.mp4",
        [CORNERS] * 5,
        setup=lambda stream: stream.set_display_rotation(-degrees, hflip=mirrored),
    )
    info = probe(path)
    assert (info.width, info.height) == ((48, 64) if degrees % 180 else (64, 48))
    assert mirrored or info.rotation == degrees
    with open_video(path) as reader:
        (_, found), *_ = reader.frames(5.0)
    wanted = np.rot90(CORNERS, -degrees // 90)
    wanted = wanted[:, ::-1] if mirrored else wanted
    assert found.shape == wanted.shape
    middle = (
        np.abs(found.astype(int) - wanted)[8:16, 8:16].max(),
        np.abs(found.astype(int) - wanted)[-16:-8, -16:-8].max(),
    )
    assert max(middle) <= 12


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_beside_data_that_pyav_does_not_know(degrees: int) -> None:
    class Frame:
        rotation = -degrees if degrees < 270 else 90  # counter-clockwise

        @property
        def side_data(self) -> list[object]:
            raise ValueError("40 is not a valid Type")

    turn = Turn.of(Frame())
    assert turn.degrees == degrees
    np.testing.assert_array_equal(turn.apply(CORNERS), np.rot90(CORNERS, -degrees // 90))


def test_pixels_that_are_not_square(folder: Path) -> None:
    def wide(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)

    path = write_video(folder / "wide.mkv", setup=wide, options=B_FRAMES)
    assert (probe(path).width, probe(path).height) == (128, 48)
    assert numbers(path, 2.0) == [2, 7, 12, 17]
    with open_video(path) as reader:
        assert {picture.shape for _, picture in reader.frames(2.0, max_side=32)} == {(12, 32, 3)}


def test_interlaced(folder: Path) -> None:
    def fields(stream: Any) -> None:
        stream.codec_context.flags |= 1 << 18 | 1 << 29  # interlaced_dct, interlaced_me

    path = write_video(folder / "fields.ts", 25, codec="mpeg2video", rate=25, time_base=SLOW, setup=fields)
    assert numbers(path, 5.0) == [2, 7, 12, 17, 22]
    path = write_video(folder / "fields.mp4", 25, rate=25, time_base=SLOW, options={"x264-params": "tff=1"})
    assert numbers(path, 5.0) == [2, 7, 12, 17, 22]


def test_all_pictures_have_the_first_ones_size(folder: Path) -> None:
    """The size of the pictures changes in the middle of the stream."""
    parts = []
    for n, size in enumerate(((48, 64), (96, 128))):
        pictures = [numbered(n * 10 + k, size[1], size[0]) for k in range(10)]
        parts.append(write_video(folder / f"size{n}.ts", pictures, stamps=[n * 10 + k for k in range(10)]))
    path = folder / "sizes.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with open_video(path) as reader:
        found = [picture for _, picture in reader.frames(2.0)]
    assert {picture.shape for picture in found} == {(48, 64, 3)}
    assert [number_of(picture) for picture in found][-1] == 17


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "flv"])
def test_sound_that_is_longer_than_the_pictures(folder: Path, suffix: str) -> None:
    path = folder / f"sound.{suffix}"
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=10, options=B_FRAMES)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound = file.add_stream("aac", rate=16000)
        for number in range(30):
            if number < 20:
                file.mux(video.encode(av.VideoFrame.from_ndarray(numbered(number), format="rgb24")))
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), format="fltp", layout="mono")
            samples.rate, samples.pts = 16000, number * 1600
            file.mux(sound.encode(samples))
        file.mux([*video.encode(None), *sound.encode(None)])
    with open_video(path, threads=2) as reader:
        assert [number_of(picture) for _, picture in reader.frames(2.0)] == [2, 7, 12, 17]
        assert reader.duration_s == pytest.approx(2.0, abs=0.01)
        assert reader.lost is None
