"""A state of an index that a reader holds: one manifest and all shards that it names, mapped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmn_fast.arrays import Bool, Float64, Int64
from mmn_fast.checks import nearest, shown
from mmn_fast.errors import InputError
from mmn_fast.index.manifest import Manifest, read_manifest
from mmn_fast.index.shards import Shard, open_shard
from mmn_fast.process.once import kept_property

_TRIES = 100  # a reader that loses a race reads the next state, which a writer needs a file's writing to make


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A manifest and its shards. Videos and windows are numbered through all shards, removed ones too.

    Attributes:
        path: the index.
        manifest: its content.
        shards: one open shard per record of the manifest.
        first_videos: int64 [shards + 1]: shard n has videos first_videos[n] : first_videos[n + 1].
        first_windows: int64 [shards + 1], the same of windows.
    """

    path: Path
    manifest: Manifest
    shards: tuple[Shard, ...]
    first_videos: Int64
    first_windows: Int64

    @kept_property
    def number_of(self) -> dict[str, int]:
        """Id -> number of every video that is not removed, in the library's order."""
        first = self.first_videos.tolist()
        return {video_id: first[shard] + number for video_id, (shard, number) in self.places().items()}

    def places(self) -> dict[str, tuple[int, int]]:
        """Id -> number of its shard and its number there, of every video that is not removed."""
        places: dict[str, tuple[int, int]] = {}
        for place, (shard, record) in enumerate(zip(self.shards, self.manifest.shards, strict=True)):
            removed = set(record.removed)
            places |= {vid: (place, number) for number, vid in enumerate(shard.video_ids) if number not in removed}
        return places

    @kept_property
    def durations_s(self) -> Float64:
        """Length of every video in seconds, float64 [videos]."""
        return np.concatenate([np.empty(0), *(shard.durations_s for shard in self.shards)])

    @kept_property
    def spans_s(self) -> Float64:
        """Start and length of every window in its video, seconds, float64 [windows, 2]."""
        return np.concatenate([np.empty((0, 2)), *(shard.spans_s for shard in self.shards)])

    @kept_property
    def windows_per_video(self) -> Int64:
        """Windows of every video, int64 [videos]."""
        return np.concatenate([np.empty(0, np.int64), *(np.diff(shard.first_windows) for shard in self.shards)])

    @kept_property
    def is_there(self) -> Bool:
        """Whether a video is not removed, bool [videos]."""
        there = np.ones(int(self.first_videos[-1]), np.bool_)
        for first, record in zip(self.first_videos[:-1].tolist(), self.manifest.shards, strict=True):
            there[np.array(record.removed, np.int64) + first] = False
        return there

    def place_of(self, number: int) -> tuple[Shard, int]:
        """The shard of a video, and the video's number in it."""
        shard = int(np.searchsorted(self.first_videos, number, "right")) - 1
        return self.shards[shard], number - int(self.first_videos[shard])

    def video_id(self, number: int) -> str:
        """The name of a video."""
        shard, video = self.place_of(number)
        return shard.video_ids[video]

    def wanted(self, videos: Iterable[str] | None) -> Bool:
        """Which videos a search takes, bool [videos].

        Args:
            videos: ids; None takes all that are there.

        Raises:
            InputError: an id is not in the index.
        """
        if videos is None:
            return self.is_there
        chosen = np.zeros(len(self.is_there), np.bool_)
        chosen[self.numbers(videos, "videos")] = True
        return chosen

    def numbers(self, video_ids: Iterable[str], where: str) -> list[int]:
        """The numbers of some videos.

        Args:
            video_ids: their ids.
            where: name of the argument in messages.

        Raises:
            InputError: no list of ids, or an id is not in the index.
        """
        if isinstance(video_ids, (str, bytes)) or not isinstance(video_ids, Iterable):
            raise InputError(f"{where}: expected a list of ids, got {shown(video_ids)}")
        ids, known = list(video_ids), self.number_of
        for video_id in ids:
            if not isinstance(video_id, str) or video_id not in known:
                close = f"; {nearest(video_id, known)}" if known and len(known) < 10_000 else ""
                close = close if "did you mean" in close else ""
                raise InputError(f"{where}: {shown(video_id)} is not in {self.path}{close}")
        return [known[video_id] for video_id in ids]

    def blocks(self, wanted: Bool) -> Iterator[tuple[Shard, Int64, Int64, Int64]]:
        """Yield per shard the windows of the wanted videos.

        Args:
            wanted: bool [videos].

        Yields:
            The shard, and per window its number in the shard, its number and its video's number, int64 each.
        """
        for number, shard in enumerate(self.shards):
            first_video, last_video = self.first_videos[number : number + 2]
            video_of = np.repeat(np.arange(first_video, last_video), np.diff(shard.first_windows))
            windows = np.flatnonzero(wanted[video_of])
            if len(windows):
                yield shard, windows, windows + self.first_windows[number], video_of[windows]


def open_snapshot(path: Path, before: Snapshot | None = None) -> Snapshot:
    """Open the last committed state of an index.

    Args:
        path: the index.
        before: an earlier state; its maps are used again.

    Raises:
        InputError: there is no index, it is damaged, or it is of another version.
    """
    manifest = read_manifest(path)
    for _ in range(_TRIES):
        try:
            return snapshot_of(path, manifest, before)
        except FileNotFoundError as error:
            seen, manifest = manifest, read_manifest(path)
            if manifest.sha256 == seen.sha256:
                raise InputError(
                    f"index: {error.filename} is missing; copy the index again, or let `mmn-fast index verify"
                    " --drop-damaged` take the file out of it"
                ) from None
    raise InputError(f"index: {path} changes faster than it can be read; try again")


def snapshot_of(path: Path, manifest: Manifest, before: Snapshot | None = None) -> Snapshot:
    """The state of an index that a manifest describes.

    Raises:
        FileNotFoundError: a shard is gone.
        InputError: a shard is damaged.
    """
    known = {} if before is None else {shard.file: shard for shard in before.shards}
    shards = tuple(
        known[record.file] if record.file in known else open_shard(path, manifest, record) for record in manifest.shards
    )
    return Snapshot(
        path=path,
        manifest=manifest,
        shards=shards,
        first_videos=np.cumsum([0, *(record.num_videos for record in manifest.shards)], dtype=np.int64),
        first_windows=np.cumsum([0, *(record.num_windows for record in manifest.shards)], dtype=np.int64),
    )
