"""Files that are no videos, that are damaged, or that name other files: one sentence or a counted loss, never more."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mmn_fast.errors import InputError
from mmn_fast.media import container, open_video, source
from mmn_fast.media.times import Clock
from tests.videos import HEIGHT, WIDTH, number_of, numbered, write_video

GROUPS = {"preset": "medium", "bf": "2", "g": "6"}
SLOW = Fraction(1, 25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    """25 frames in a second, in groups of six; the index stands before the frames."""
    path = folder / "plain.mp4"
    return write_video(path, 25, rate=25, time_base=SLOW, options=GROUPS, container={"movflags": "faststart"})


def write_sound(path: Path, cover: bool = False) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("flac" if path.suffix == ".flac" else "aac", rate=16000)
        picture = file.add_stream("png") if cover else None
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt, picture.disposition = WIDTH, HEIGHT, "rgb24", 1 << 10
            file.mux(picture.encode(av.VideoFrame.from_ndarray(numbered(1), format="rgb24")))
        kind = ("s16", np.int16) if path.suffix == ".flac" else ("fltp", np.float32)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), kind[1]), format=kind[0], layout="mono")
        frame.rate = 16000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def write_image(path: Path, codec: str, pixel_format: str) -> Path:
    with av.open(str(path), "w", format="gif" if codec == "gif" else "image2") as file:
        stream = file.add_stream(codec)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixel_format
        file.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(1), format="rgb24").reformat(format=pixel_format)))
        file.mux(stream.encode(None))
    return path


def refused(path: Path | str, message: str, **options: Any) -> None:
    with pytest.raises(InputError, match=message) as caught, open_video(path, **options) as reader:
        list(reader.frames(5.0))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_videos(folder: Path) -> None:
    refused(folder / "absent.mp4", "expected a video file: No such file")
    refused(folder, "expected a video file, got a directory$")
    refused("/dev/zero", "expected a video file, got a device or pipe$")
    (folder / "empty.mp4").touch()
    refused(folder / "empty.mp4", "got an empty file$")
    (folder / "text.mp4").write_text("No video. " * 500)
    refused(folder / "text.mp4", "cannot be read: ")
    for suffix in ("m4a", "mkv"):
        refused(write_sound(folder / f"sound.{suffix}"), "expected a video, got sound only$")
    refused(write_sound(folder / "sound.flac"), "got a file of another kind$")
    refused(write_sound(folder / "cover.mp4", cover=True), "expected a video, got only a cover picture$")
    for name, codec, pixel_format in (
        ("a.png", "png", "rgb24"),
        ("b.mp4", "mjpeg", "yuvj420p"),
        ("c.gif", "gif", "rgb8"),
    ):
        refused(write_image(folder / name, codec, pixel_format), "got a file of another kind$")


def test_an_image_in_the_container_of_videos(plain: Path, folder: Path) -> None:
    path = folder / "image.heic"
    path.write_bytes(plain.read_bytes().replace(b"ftypisom", b"ftypheic", 1))
    refused(path, "expected a video, got an image$")


def test_an_encrypted_video(folder: Path) -> None:
    keys = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "00" * 16, "encryption_kid": "11" * 16}
    refused(write_video(folder / "locked.mp4", 5, container=keys), "expected a video, got an encrypted one$")


def test_a_video_without_a_frame_that_decodes(plain: Path, folder: Path) -> None:
    data = plain.read_bytes()
    path = folder / "headless.mp4"
    path.write_bytes(data[: data.index(b"mdat") + 4] + bytes(len(data)))
    refused(path, "expected a video, got one without any frame that can be decoded$")


def test_a_picture_of_absurd_size_is_not_decoded(folder: Path) -> None:
    """A header of a few bytes asks for 3 GiB a frame."""
    path = write_video(folder / "small.mkv", 3, codec="ffv1")
    data = bytearray(path.read_bytes())
    for element, size in ((b"\xb0\x82", WIDTH), (b"\xba\x82", HEIGHT)):
        at = data.find(element + size.to_bytes(2, "big"))
        if at < 0:
            at = data.index(element[:1] + b"\x81" + bytes([size]))
            data[at + 1 : at + 3] = b"\x82\x7f\xff"  # one byte longer: the segment's size becomes wrong by one
        else:
            data[at + 2 : at + 4] = b"\x7f\xff"
    path = folder / "huge.mkv"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"^\S+huge\.mkv: expected a video"), open_video(path):
        pass


def test_a_longer_video_is_refused(plain: Path, folder: Path) -> None:
    refused(plain, "expected a video of at most 0.5 s, got one of 1.0 s$", max_duration_s=0.5)
    with open_video(plain, max_duration_s=1.0) as reader:
        assert len(list(reader.frames(5.0))) == 5
    path = write_video(folder / "live.mkv", 25, rate=25, time_base=SLOW, options=GROUPS, container={"live": "1"})
    refused(path, "expected a video of at most 0.5 s, got a longer one$", max_duration_s=0.5)
    for value in (0, -1, float("nan"), True):
        with pytest.raises(InputError, match=r"^max_duration_s: expected "):
            open_video(plain, max_duration_s=value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fps", 0, "fps: expected a number > 0"),
        ("fps", float("inf"), "fps: expected"),
        ("max_side", 0, "max_side: expected an integer >= 1"),
        ("times", [0.1, float("nan")], r"times\[1\]: expected"),
        ("times", [0.5, 0.1], r"times\[1\]: expected a time that is not before 0.5, got 0.1"),
        ("times", [-0.5], r"times\[0\]: expected a number >= 0|times\[0\]: expected a finite number >= 0"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(plain: Path, name: str, value: Any, message: str) -> None:
    with open_video(plain) as reader, pytest.raises(InputError, match=f"^{message}"):
        reader.frames_at(value) if name == "times" else reader.frames(**{"fps": 2.0, name: value})
    with pytest.raises(InputError, match="^threads: expected"):
        open_video(plain, threads=-1)


def test_a_file_of_which_no_frame_comes_ends_with_a_sentence(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr(source.time, "monotonic", lambda: next(clock))  # ten seconds pass between two looks
    monkeypatch.setattr(source, "_SILENCE_S", 25.0)
    with pytest.raises(InputError, match=r"plain\.mp4: no frame could be decoded in 25 seconds$"):
        open_video(plain, threads=2)


def test_without_pyav(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"reading videos needs PyAV \(pip install mmn_fast\[video\]\)"):
        open_video(plain)


# Only the named file is opened


def test_no_other_file_and_no_address_is_opened(plain: Path, folder: Path) -> None:
    """The named pipe blocks whoever opens it; the socket would see a connection."""
    pipe = folder / "other.ts"
    os.mkfifo(pipe)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        server.setblocking(False)
        port = server.getsockname()[1]
        address = f"http://127.0.0.1:{port}/x.ts"
        texts = {
            "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n",
            "ffconcat": "ffconcat version 1.0\nfile '{}'\n",
            "mpd": '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
            '<AdaptationSet mimeType="video/mp4"><Representation id="1"><BaseURL>{}</BaseURL>'
            "</Representation></AdaptationSet></Period></MPD>",
            "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns={{}}\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
            "a=rtpmap:96 H264/90000\n",
            "asx": '<asx version="3.0"><entry><ref href="{}"/></entry></asx>',
            "ram": "{}\n",
        }
        for suffix, text in texts.items():
            for number, name in enumerate((address, str(pipe), f"file:{pipe}", str(plain))):
                for ending in (suffix, "mp4"):
                    path = folder / f"{suffix}{number}.{ending}"
                    path.write_text(text.format(name))
                    refused(path, "expected a video file")
        for name in (
            address,
            f"concat:{plain}|{plain}",
            f"subfile,,start,0,end,0,,:{plain}",
            "pipe:0",
            f"file:{plain}",
        ):
            with pytest.raises(InputError, match="expected a video file: No such file"):
                open_video(name)
        with pytest.raises(BlockingIOError):
            server.accept()
    with pytest.raises(OSError, match="No such device or address"):  # nobody reads it
        os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)


def test_a_name_that_looks_like_an_address_is_a_file(
    plain: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    Path("http:").mkdir()
    for name in ("a:b.mp4", "http:/x.mp4", "concat:c|d", "%d.mp4", "\udcff.mp4"):
        Path(name).write_bytes(plain.read_bytes())
        with open_video(name) as reader:
            assert len(list(reader.frames(5.0))) == 5


def test_the_list_of_containers_holds_none_that_opens_others() -> None:
    assert not set(container._DEMUXERS) & {"hls", "dash", "concat", "concatf", "sdp", "rtsp", "image2", "imf", "tty"}
    assert set(container._DEMUXERS) <= set(av.formats_available)


# Damage


def test_a_damaged_middle_is_left_out_and_counted(plain: Path, folder: Path) -> None:
    with av.open(str(plain)) as file:
        packets = [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size]
    data = bytearray(plain.read_bytes())
    for pos, size in packets[13:18]:
        data[pos + 4 : pos + size] = bytes(size - 4)
    path = folder / "middle.mp4"
    path.write_bytes(data)
    for fps in (25.0, 5.0):
        with open_video(path, threads=2) as reader:
            found = [number_of(picture) for _, picture in reader.frames(fps)]
            assert reader.lost == "5 frames could not be decoded"
            assert reader.duration_s == pytest.approx(1.0)
        wanted = list(range(25)) if fps == 25.0 else [2, 7, 12, 17, 22]
        assert len(found) == len(wanted)
        same = [a == b for a, b in zip(found, wanted, strict=True)]
        assert all(same[: 12 * len(same) // 25])
        assert all(same[19 * len(same) // 25 + 1 :])


def test_a_truncated_file_says_how_much_is_missing(plain: Path, folder: Path) -> None:
    data = plain.read_bytes()
    with av.open(str(plain)) as file:
        ends = [packet.pos for packet in file.demux(video=0) if packet.size]
    path = folder / "cut.mp4"
    path.write_bytes(data[: ends[18]])
    for fps in (25.0, 1.0):
        with open_video(path, threads=2) as reader:
            list(reader.frames(fps))
            assert reader.lost == "7 frames are missing at the end"
            assert reader.duration_s == pytest.approx(0.76, abs=0.09)
    film = write_video(folder / "film.mkv", 25, rate=25, time_base=SLOW, codec="mjpeg", pixel_format="yuvj420p")
    path = folder / "cut.mkv"
    path.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    with open_video(path, threads=2) as reader:
        list(reader.frames(5.0))
        assert reader.lost is not None
        assert reader.lost.endswith(" s before the end that its header names")


FORMATS = {
    "mp4": ("libx264", GROUPS, {}),
    "mov": ("mpeg4", {"bf": "2", "g": "6"}, {"movflags": "faststart"}),
    "mkv": ("libx264", GROUPS, {}),
    "webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, {}),
    "avi": ("mpeg4", {"g": "6"}, {}),
    "ts": ("mpeg2video", {"bf": "2", "g": "6"}, {}),
    "flv": ("flv", {}, {}),
    "m4v": ("libx264", GROUPS, {"movflags": "frag_keyframe+empty_moov"}),
}
CHILD = """
import json, sys, time
from mmn_fast.errors import InputError
from mmn_fast.media import open_video
for path in sys.stdin.read().split():
    print(path, flush=True)
    started, count, said = time.monotonic(), 0, None
    try:
        with open_video(path, threads=2) as reader:
            for time_s, picture in reader.frames(5.0):
                count += 1
                if count > 500: break  # a damaged clock may promise an hour
            said = reader.lost
    except InputError as error:
        said, count = str(error), -1
    print(json.dumps([count, said, time.monotonic() - started]), flush=True)
"""


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut, flip or overwrite parts of a file."""
    changed, kind = bytearray(data), rng.randrange(4)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        for _ in range(rng.choice((1, 3, 10))):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        for _ in range(len(data) // 50):
            changed[rng.randrange(len(data))] = rng.randrange(256)
    else:
        start = rng.randrange(len(data))
        end = min(len(data), start + rng.randrange(2000))
        changed[start:end] = rng.randbytes(end - start) if rng.random() < 0.5 else bytes(end - start)
    return bytes(changed)


@pytest.mark.slow
def test_a_hundred_damaged_files(tmp_path: Path) -> None:
    """They are read in a child process: a crash of the decoder, a hang or a message on stderr shows there."""
    rng, paths = random.Random(19), []
    for suffix, (codec, options, muxer) in FORMATS.items():
        whole = tmp_path / f"whole.{suffix}"
        write_video(whole, 25, codec=codec, rate=25, time_base=SLOW, options=options, container=muxer)
        paths.append(whole)
        for number in range(13):
            paths.append(tmp_path / f"{number}.{suffix}")
            paths[-1].write_bytes(damaged(whole.read_bytes(), rng))
    command = [sys.executable, "-c", CHILD]
    started = time.monotonic()
    done = subprocess.run(command, input="\n".join(map(str, paths)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-2000:]
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[::2] == [str(path) for path in paths]
    kinds: Counter[str] = Counter()
    for path, line in zip(paths, lines[1::2], strict=True):
        count, said, _ = json.loads(line)
        assert count >= 0 or said.startswith(f"{path}: ")
        assert said is None or "\n" not in said
        assert path.stem != "whole" or (count, said) == (5, None)
        kinds["refused" if count < 0 else "lost" if said else "read"] += 1
    assert min(kinds[kind] for kind in ("refused", "lost", "read")) >= 10, kinds
    assert time.monotonic() - started < 200


def placed(stamps: list[int | None], promised_s: float | None = None) -> tuple[list[float | None], int]:
    """Place frames of 0.1 s on a clock of ten ticks a second; also return the number of leaps."""
    clock = Clock(1, 10, 0.1, promised_s)
    return [clock.place(stamp, 1) for stamp in stamps], clock.jumps


def test_the_clock_starts_anew_after_a_leap() -> None:
    assert placed([5, 6, None, 9]) == ([0.0, 0.1, 0.2, 0.4], 0)
    assert placed([50, 51, 48, 52]) == ([0.0, 0.1, None, 0.2], 0)  # a stray frame
    assert placed([50, 51, 0, 1]) == ([0.0, 0.1, 0.2, 0.3], 1)  # another recording
    assert placed([0, 1, 35990, 35991]) == ([0.0, 0.1, 3599.0, 3599.1], 0)  # a slide
    assert placed([0, 1, 36002, 36003]) == ([0.0, 0.1, 0.2, 0.3], 1)
    assert placed([0, 1, 7000, 7001], promised_s=700) == ([0.0, 0.1, 700.0, 700.1], 0)
    assert placed([0, 1, 7000, 7001], promised_s=10) == ([0.0, 0.1, 0.2, 0.3], 1)
    assert placed([0, 1, 5000, 5001], promised_s=10) == ([0.0, 0.1, 500.0, 500.1], 0)  # the header may be wrong


def test_a_long_still_is_shown_for_as_long_as_it_lasts(folder: Path) -> None:
    stamps = [0, 1, 2, 2000, 2001, 33000, 33001]  # tenths of a second
    path = write_video(folder / "slides.mp4", 7, stamps=stamps, options={"bf": "0"})
    with open_video(path, threads=2) as reader:
        found = [number_of(picture) for _, picture in reader.frames(0.01)]
        assert reader.lost is None
    assert found == [2, 2, *[4] * 31]


def test_a_clock_of_absurd_ticks_is_refused(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LONGEST_S", 1e-6)
    refused(plain, "expected a video, got one whose clock ticks every 1/12800 s$")
