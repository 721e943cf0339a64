"""One pass over a file's video stream: packets in, decoded frames out, in the order in which they are shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from mmn_fast.errors import InputError
from mmn_fast.media.container import av_module, choose_stream, open_container, why
from mmn_fast.media.headers import Headers
from mmn_fast.media.info import promised_duration, stream_duration, usual_step
from mmn_fast.media.plan import Action, OddStampsError, Plan
from mmn_fast.media.times import LONG_S, LONGEST_S

_SILENCE_S = 60.0
"""Longest time without a frame. A file may hold hours of packets that no decoder understands."""
_MOST_FAILURES = 1000  # of the container, one after another: then the rest of the file is given up
_WHOLE_GROUPS = frozenset(
    ("h264", "hevc", "vp9", "av1", "mpeg1video", "mpeg2video", "mpeg4", "mjpeg", "prores", "dnxhd", "ffv1")
)
"""Codecs whose decoders start afresh at any key packet. VP8's packets may hold frames that are never shown."""
_ONE_EACH = (("mov,", "matroska,"), _WHOLE_GROUPS)
"""Containers and codecs of which every packet holds one frame. AVI's packets may hold two or none."""
_PROMISES = frozenset(("matroska,webm", "avi", "flv", "asf", "mxf"))
"""Containers whose header names a duration and that have no list of all frames to compare with."""
_ROUNDED = 0.01  # of the promised duration: headers round


@dataclass
class Losses:
    """Damage that was met in one pass over a file.

    Attributes:
        packets: packets that the decoder refused.
        absent: frames that never came out of the decoder; packets that it refused may be among them.
        frames: frames that the decoder repaired or marked as damaged.
        unread: failures of the container between two packets.
        jumps: leaps of the time stamps that were left out.
        missing: frames that the index lists and that are not in the file.
        short_s: seconds that the header promises after the last frame.
    """

    packets: int = 0
    absent: int = 0
    frames: int = 0
    unread: int = 0
    jumps: int = 0
    missing: int = 0
    short_s: float = 0.0

    def sentence(self) -> str | None:
        """All losses in one sentence; None if there are none."""
        parts = [
            _counted(max(self.packets, self.absent), "frame could not be decoded", "frames could not be decoded"),
            _counted(self.frames, "frame is damaged", "frames are damaged"),
            _counted(self.unread, "part of the file could not be read", "parts of the file could not be read"),
            _counted(self.jumps, "leap of the time stamps was left out", "leaps of the time stamps were left out"),
            _counted(self.missing, "frame is missing at the end", "frames are missing at the end"),
        ]
        if self.short_s and not self.missing:
            parts.append(f"the file ends {self.short_s:.1f} s before the end that its header names")
        return ", ".join(filter(None, parts)) or None


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}" if number else ""


class Source:
    """An open file, its decoder and what was lost so far; used for one pass.

    Attributes:
        container: PyAV's container.
        stream: its video stream.
        losses: damage that was met so far.
    """

    def __init__(self, path: Path, threads: int, *, skipping: bool = True) -> None:
        """Open a file.

        Args:
            path: a local file.
            threads: threads of the decoder, at least 1.
            skipping: packets that no wanted time needs may be left out.

        Raises:
            InputError: as `container.open_container` and `choose_stream`, or the decoder cannot start.
        """
        self.container = open_container(path)
        try:
            self.stream = choose_stream(self.container, path)
            if not self.stream.time_base or self.stream.time_base > LONGEST_S:
                raise InputError(f"{path}: expected a video, got one whose clock ticks every {self.stream.time_base} s")
            self._context = self.stream.codec_context
            self._context.thread_count = threads
            self._context.thread_type = "AUTO"  # with SLICE FFmpeg hides damaged slices
            self._context.options = {"max_pixels": str(2**26)}
            self._open_decoder(path)
        except BaseException:
            self.container.close()
            raise
        self.losses = Losses()
        self._path, self._av = path, av_module()
        tick = self.stream.time_base
        codec = self._context.codec.canonical_name
        self._headers = Headers(codec, self._context.extradata)
        self._plan = Plan(
            frames=skipping and self._headers.tell_free,
            groups=skipping and codec in _WHOLE_GROUPS,
            starts=self._headers.start_afresh,
            longest_ticks=int(LONG_S / tick),
        )
        self._num_packets = 0
        one_each = self.container.format.name.startswith(_ONE_EACH[0]) and codec in _ONE_EACH[1]
        self._due: list[int] | None = [] if one_each else None  # stamps of frames that must come out, as a heap
        self._first: int | None = None  # the first frame's stamp
        self._since = time.monotonic()
        self._skip = "DEFAULT"

    def begin(self, origin: int | None, wanted: Callable[[int, int], bool]) -> None:
        """Say which frames are wanted, after the first frame came: see `Plan.begin`."""
        self._plan.begin(origin, wanted)

    @property
    def skipped(self) -> bool:
        """Whether any packet was not decoded in full."""
        return self._plan.skipped

    def check(self, stamp: int | None, at: Callable[[int], bool]) -> None:
        """Refuse to give a frame in the place of one that the decoder dropped: see `Plan.lost`.

        Raises:
            OddStampsError: it was dropped.
        """
        if self.skipped and (stamp is None or self._plan.lost(stamp, at)):
            raise OddStampsError

    def frames(self) -> Iterator[Any]:
        """Yield the decoded frames (PyAV's `VideoFrame`) in the order in which they are shown.

        Raises:
            InputError: no frame came for a minute, or the packets are encrypted.
            OddStampsError: packets were left out that should not have been.
        """
        for packet in self._packets():
            for held, action in self._plan.put(packet):
                yield from self._decode(held, action)
        for held, action in self._plan.finish():
            yield from self._decode(held, action)
        yield from self._drain()
        self._count_absent(None)

    def finish(self, start_s: float, end_s: float, jumps: int) -> None:
        """Complete the losses, after the last frame.

        Args:
            start_s: the first frame's time stamp in seconds.
            end_s: the end of the video, in seconds after its first frame.
            jumps: leaps of the time stamps.
        """
        self.losses.jumps = jumps
        name = self.container.format.name
        if name.startswith("mov,"):  # its index lists all packets
            self.losses.missing = max(0, len(self.stream.index_entries) - self._num_packets)
        if name in _PROMISES and not jumps:
            alone = len(self.container.streams) == 1
            promised = (promised_duration(self.container, self.stream) if alone else stream_duration(self.stream)) or 0
            short_s = promised - end_s - max(0.0, start_s)  # some headers count from the first frame, some from 0
            if short_s > max(3 * usual_step(self.stream), _ROUNDED * promised):
                self.losses.short_s = short_s

    def close(self) -> None:
        """Close the file, and let go of the caller."""
        self.container.close()
        self._plan.close()

    def _open_decoder(self, path: Path) -> None:
        av = av_module()
        try:
            self._context.open(strict=False)
        except av.FFmpegError as error:
            name = self._context.name
            raise InputError(f"{path}: expected a video, got one that decoder {name} refuses: {why(error)}") from error

    def _packets(self) -> Iterator[Any]:
        """Yield the stream's packets; go on after failures of the container."""
        failures = 0
        while failures < _MOST_FAILURES:
            try:
                for packet in self.container.demux(self.stream):
                    self._num_packets += packet.dts is not None  # PyAV's mark of the end has no time
                    if packet.size == 0:
                        continue  # that mark, or an empty packet ("as before")
                    failures = 0
                    self._check_packet(packet)
                    yield packet
                return
            except IndexError:
                return  # PyAV's mark of the end fails if another stream appeared in the middle of the file
            except self._av.FFmpegError:
                failures += 1
                self._lose(unread=1)
            self._check_silence()

    def _check_packet(self, packet: Any) -> None:
        if packet.has_sidedata("encryption_info") or packet.has_sidedata("encryption_init_info"):
            raise InputError(f"{self._path}: expected a video, got an encrypted one")
        self._check_silence()

    def _check_silence(self) -> None:
        if time.monotonic() - self._since > _SILENCE_S:
            raise InputError(f"{self._path}: no frame could be decoded in {_SILENCE_S:.0f} seconds")

    def _decode(self, packet: Any, action: Action) -> Iterator[Any]:
        free = alone = False
        if action is Action.IF_REFERENCE:
            content = bytes(packet)
            free = self._headers.are_free(content)
            alone = free and self._headers.are_alone(content)
        if action is Action.DROP or alone:  # a packet that the decoder skips would keep one of its threads waiting
            self._since = time.monotonic()
            return
        if action is Action.RESTART:
            yield from self._drain()
            self._context.flush_buffers()
        skip = "NONREF" if free else "DEFAULT"
        if skip != self._skip:
            self._context.skip_frame = self._skip = skip
        if self._due is not None and not (free or packet.is_discard or packet.pts is None):
            heappush(self._due, packet.pts)
        try:
            found = self._context.decode(packet)
        except self._av.FFmpegError:
            self._lose(packets=1)
            return
        yield from self._seen(found)

    def _drain(self) -> Iterator[Any]:
        """Yield the frames that the decoder still holds."""
        try:
            found = self._context.decode(None)
        except self._av.EOFError:
            return
        except self._av.FFmpegError:
            self._lose(packets=1)
            return
        yield from self._seen(found)

    def _seen(self, frames: list[Any]) -> Iterator[Any]:
        for frame in frames:
            if frame.is_corrupt:
                self._lose(frames=1)
            self._plan.forget(frame.pts)
            self._count_absent(frame.pts)
            yield frame
            self._since = time.monotonic()  # the time of the caller does not count

    def _count_absent(self, stamp: int | None) -> None:
        """Count the frames that should have come before that of a time stamp; None stands for the end."""
        while self._due and (stamp is None or self._due[0] <= stamp):
            due = heappop(self._due)
            if due != stamp and self._first is not None and due >= self._first:
                self._lose(absent=1)
        if self._first is None:
            self._first = stamp  # what is shown before belongs to a group that the file does not have

    def _lose(self, *, packets: int = 0, absent: int = 0, frames: int = 0, unread: int = 0) -> None:
        if self.skipped:
            raise OddStampsError  # damage is counted in the whole file, so the whole file is decoded
        self.losses.packets += packets
        self.losses.absent += absent
        self.losses.frames += frames
        self.losses.unread += unread


def reaches(path: Path, time_s: float) -> bool:
    """Whether a file has a packet of its video stream that is shown later than `time_s` after its start.

    Nothing is decoded: a header that promises hours may be wrong, and decoding them takes long.
    """
    av = av_module()
    container = open_container(path)
    try:
        stream = choose_stream(container, path)
        limit = (stream.start_time or 0) + time_s / float(stream.time_base)
        with suppress(av.FFmpegError):  # a container without an index is read from its start
            container.seek(int(limit), stream=stream)
        return any(packet.pts is not None and packet.pts > limit for packet in container.demux(stream))
    except (av.FFmpegError, IndexError):  # IndexError: see Source._packets
        return False  # damaged on the way there: decoding will tell
    finally:
        container.close()
