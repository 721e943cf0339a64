"""Times decoding and sampling of a video beside PyAV alone, which decodes the same file with as many threads.

PyAV alone decodes every frame and converts none. `mmn_fast` gives RGB frames of at most 256 pixels a side, at 1 and 8
frames per second and at every frame, then features of each extractor. The two take turns. The error is the largest
difference of a frame from PyAV's frame at that time, converted in the same way. Without --video a film of 20 s in
H.264 is written first. An extractor's own time, over frames that are in memory, is printed and recorded apart.

    python -m benchmarks.bench_media [--video FILE] [--threads 2] [--repeats 5] [--extractor pixels]
    python -m benchmarks.bench_media --hours 10 [--command]

With --hours H, one film of a minute is read again and again until H hours of video are done, and the process's memory
is printed on the way. With --hours H --command, `mmn-fast features` reads a list of that many names of the film, and
the memory of all of its processes is printed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from benchmarks.timing import alternate, record
from mmn_fast.features.extractors import make_extractor
from mmn_fast.media import open_video, probe

_MAX_SIDE = 256
_RATE = 25
_FEW = (1.0, 8.0)  # frames per second: usual for image and for clip features


def write_film(path: Path, seconds: float, width: int, height: int) -> Path:
    """Write a film of moving texture and grain: H.264 as x264 makes it by default, 25 frames per second.

    PyAV would have x264 cut each frame into a slice per core, which few films in the wild have.
    """
    rng = np.random.default_rng(0)
    texture = np.kron(rng.integers(40, 216, (height // 8, width // 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    grain = rng.integers(0, 24, (2 * height, 2 * width, 3)).astype(np.uint8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=_RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "veryfast", "x264-params": "sliced-threads=0"}
        for number in range(round(seconds * _RATE)):
            y, x = 2 * number % height, 3 * number % width
            dy, dx = rng.integers(0, height), rng.integers(0, width)
            picture = texture[y : y + height, x : x + width] + grain[dy : dy + height, dx : dx + width]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, _RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def decoded(path: Path, threads: int) -> Iterator[av.VideoFrame]:
    """Decode all frames with PyAV alone."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "AUTO", threads
        yield from file.decode(stream)


def sampled(path: Path, threads: int, fps: float) -> Iterator[tuple[float, np.ndarray]]:
    """Sample a film with mmn_fast."""
    with open_video(path, threads=threads) as reader:
        yield from reader.frames(fps, _MAX_SIDE)


def largest_difference(path: Path, threads: int, fps: float) -> float:
    """Compare the sampled frames with PyAV's: the frame shown at each time, converted in the same way."""
    wanted = sampled(path, threads, fps)
    time_s, picture = next(wanted)
    largest, last, first = 0, None, None
    for frame in [*decoded(path, threads), None]:
        first = frame.time if first is None else first
        while picture is not None and last is not None and (frame is None or time_s < frame.time - first):
            height, width = picture.shape[:2]
            other = last.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA", threads=1)
            largest = max(largest, int(np.abs(other.astype(int) - picture).max()))
            time_s, picture = next(wanted, (0.0, None))
        last = frame
    assert picture is None
    return float(largest)


def resident_mib(process: int | str = "self") -> float:
    """Resident memory of a process and of all that it started, now, in MiB; 0 if it has ended."""
    folder = Path("/proc") / str(process)
    try:
        own = re.findall(r"^VmRSS:\s*(\d+) kB$", (folder / "status").read_text(), re.MULTILINE)
        started = (folder / "task" / str(process) / "children").read_text().split() if process != "self" else []
    except OSError:
        return 0.0
    return (int(own[0]) / 2**10 if own else 0.0) + sum(map(resident_mib, started))


def bench(path: Path, options: argparse.Namespace) -> None:
    """Measure one film and record its lines."""
    info, threads = probe(path), options.threads
    name = f"{info.codec} {info.width}x{info.height}"

    def peer() -> int:
        return sum(1 for _ in decoded(path, threads))

    for fps in (*_FEW, info.frame_rate or _RATE):
        ways = {"mmn_fast": lambda fps=fps: sum(1 for _ in sampled(path, threads, fps)), "PyAV alone": peer}
        timings = alternate(ways, options.repeats, warmup=1)
        error = largest_difference(path, threads, fps)
        record("bench_media", timings, error, stage=f"{name}, {fps:g} frames/s", threads=threads)
        _print(f"{name}, {fps:g} frames/s", timings)
    for spec in options.extractor:
        extractor = make_extractor(spec, threads=threads)
        fps = extractor.contract.fps
        with open_video(path, threads=threads) as reader:
            frames = [picture for _, picture in reader.frames(fps, extractor.max_side)]
        ways = {
            "mmn_fast": lambda extractor=extractor: extractor.read(path),
            "PyAV alone": peer,
        }
        timings = alternate(ways, options.repeats, warmup=1)
        own = {"extractor": lambda extractor=extractor, frames=frames: list(extractor.stream(frames))}
        own_ms = alternate(own, options.repeats, warmup=1)["extractor"].median_ms
        kind, _, place = spec.partition(":")
        stage = f"{name}, {f'{kind}:{Path(place).name}' if place else kind} at {fps:g} frames/s"
        error = np.abs(extractor.read(path).rows - np.concatenate(list(extractor.stream(frames)))).max()
        record("bench_media", timings, float(error), stage=stage, threads=threads, extractor_ms=own_ms)
        _print(f"{stage} (of that the extractor {own_ms:.0f} ms)", timings)


def _print(stage: str, timings: dict[str, object]) -> None:
    times = ", ".join(f"{name} {timing.median_ms:.0f} ms" for name, timing in timings.items())  # type: ignore[attr-defined]
    print(f"{stage}: {times}", flush=True)


def read_for_hours(path: Path, hours: float, threads: int) -> None:
    """Read a film again and again; print the memory at the start, at each tenth and at the end."""
    extractor = make_extractor("pixels", fps=1, threads=threads)
    done_s, shown, started = 0.0, 0, time.perf_counter()
    while done_s < hours * 3600:
        done_s += extractor.read(path).duration_s
        if done_s >= shown * hours * 360:
            shown += 1
            print(
                f"{done_s / 3600:.2f} h in {time.perf_counter() - started:.0f} s: {resident_mib():.0f} MiB", flush=True
            )


def list_for_hours(folder: Path, film: Path, hours: float) -> None:
    """Give `mmn-fast features` a list of the film under many names; print the memory of its processes on the way."""
    num = round(hours * 60)
    names = [f"film{number:05d}.mp4" for number in range(num)]
    for name in names:
        (folder / name).hardlink_to(film)
    (folder / "list.txt").write_text("\n".join(names))
    output = folder / "features.h5"
    command = [sys.executable, "-m", "mmn_fast", "features", str(folder / "list.txt"), "-o", str(output)]
    shown, largest, started = 1, 0.0, time.perf_counter()
    with subprocess.Popen([*command, "--extractor", "pixels", "--fps", "1"]) as process:
        while process.poll() is None:
            time.sleep(0.2)
            mib = resident_mib(process.pid)
            largest = max(largest, mib)
            done = len(list(Path(f"{output}.parts").glob("*.safetensors")))
            if done >= shown * num / 10:
                shown += 1
                print(f"{done / 60:.2f} h in {time.perf_counter() - started:.0f} s: {mib:.0f} MiB", flush=True)
    print(f"largest: {largest:.0f} MiB; exit status {process.returncode}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, help="a video file; without it a film of 20 s is written")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--extractor", action="append", default=[], help="also features: pixels, hf:ID or onnx:FILE")
    parser.add_argument("--hours", type=float, default=0.0, help="read a film of a minute for this many hours of video")
    parser.add_argument("--command", action="store_true", help="with --hours: by the command `mmn-fast features`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.hours:
            size = (128, 96) if options.command else (320, 240)
            film = write_film(Path(folder) / "film.mp4", 60, *size)
            if options.command:
                list_for_hours(Path(folder), film, options.hours)
            else:
                read_for_hours(film, options.hours, options.threads)
        else:
            bench(options.video or write_film(Path(folder) / "film.mp4", 20, 1280, 720), options)


if __name__ == "__main__":
    main()
