"""Changes of an index: one writer at a time; a change is new shards first, then the manifest that names them.

A writer that is killed leaves the manifest as it was. What it wrote besides, the next writer removes.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mmn_fast.checks import shown
from mmn_fast.errors import InputError, WriteError
from mmn_fast.index.manifest import SHARDS, Manifest, ShardRecord, read_manifest
from mmn_fast.index.shards import Entry, damage_of, write_shard
from mmn_fast.index.snapshot import Snapshot, snapshot_of
from mmn_fast.storage import locks
from mmn_fast.storage.unfinished import remove_abandoned

SHARD_BYTES = 256 * 2**20
"""Size at which a shard is written; memory holds this much of the videos that wait for it."""
COMMIT_S = 60.0
"""Longest time in seconds for which videos wait for their shard: what a killed writer can lose."""
DAMAGED = "damaged"
"""Folder of shards that were taken out of an index because they are damaged."""
_LOCK = "write.lock"
_LOG = logging.getLogger(__name__)


class LockedError(InputError):
    """Another process or call writes the index at this moment."""


class Writer:
    """Changes an index while its lock is held; `writing` makes one.

    Args:
        snapshot: the last committed state.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.path = snapshot.path
        self.manifest = snapshot.manifest
        self._place_of = snapshot.places()  # id -> number of its shard, and its number there
        self._waiting: list[Entry] = []
        self._waiting_bytes = 0
        self._waiting_since = 0.0
        self._announced: set[str] = set()

    def announce(self, video_id: str, where: str, replace: bool) -> None:
        """Refuse a video that is in the index, or that has been announced before; every video is announced.

        Args:
            video_id: its name.
            where: the name's place in messages.
            replace: whether the new video may replace one that is in the index.

        Raises:
            InputError: it may not.
        """
        if video_id in self._announced:
            raise InputError(f"{where}: {shown(video_id)} stands twice among the videos to add")
        if not replace and video_id in self._place_of:
            raise InputError(
                f"{where}: {shown(video_id)} is in {self.path} already; leave it out, or pass replace=True"
            )
        self._announced.add(video_id)

    def add(self, entry: Entry) -> None:
        """Put a video into the next shard, which is written when it is full or has waited long.

        Raises:
            WriteError: the system refuses; all earlier shards are in the index.
        """
        if not self._waiting:
            self._waiting_since = time.monotonic()
        self._waiting.append(entry)
        self._waiting_bytes += entry.num_bytes
        if self._waiting_bytes >= SHARD_BYTES or time.monotonic() - self._waiting_since >= COMMIT_S:
            self.flush()

    def flush(self) -> None:
        """Write the videos that wait and commit them; videos that they replace go in the same step.

        Raises:
            WriteError: the system refuses; the index is as before.
        """
        if not self._waiting:
            return
        shard = write_shard(self.path, self.manifest, self._waiting)
        replaced = [entry.video_id for entry in self._waiting if entry.video_id in self._place_of]
        self._commit([*self._without(replaced), shard])
        last = len(self.manifest.shards) - 1
        self._place_of |= {entry.video_id: (last, number) for number, entry in enumerate(self._waiting)}
        self._waiting, self._waiting_bytes = [], 0

    def remove(self, video_ids: Sequence[str]) -> None:
        """Take videos out of the index; their space stays taken until `compact`.

        Args:
            video_ids: ids that are in the index.

        Raises:
            WriteError: the system refuses; the index is as before.
        """
        self._commit(self._without(video_ids))
        for video_id in set(video_ids):
            del self._place_of[video_id]

    def _without(self, video_ids: Sequence[str]) -> list[ShardRecord]:
        """The manifest's shards with some videos removed."""
        removed: dict[int, set[int]] = {}
        for video_id in video_ids:
            shard, number = self._place_of[video_id]
            removed.setdefault(shard, set()).add(number)
        return [
            dataclasses.replace(record, removed=tuple(sorted({*record.removed, *removed.get(n, ())})))
            for n, record in enumerate(self.manifest.shards)
        ]

    def _commit(self, shards: Sequence[ShardRecord]) -> None:
        manifest = self.manifest.followed_by(tuple(shards))
        manifest.write(self.path)
        self.manifest = manifest


@contextmanager
def writing(path: Path) -> Iterator[Manifest]:
    """Hold the lock of an index, and remove what killed writers left; gives the last committed manifest.

    Args:
        path: the index.

    Raises:
        InputError: there is no index, or it is damaged or of another version.
        LockedError: another process or call writes it.
        WriteError: the folder cannot be written to.
    """
    read_manifest(path)  # refuses what is no index before a lock file is made in it
    try:
        lock = locks.take(path / _LOCK, make=True)
    except OSError as error:
        raise WriteError(f"index: cannot lock {path / _LOCK}: {error.strerror or error}") from None
    if lock is None:
        raise LockedError(f"index: {path} is being written by another process or call; wait for it to end")
    try:
        manifest = read_manifest(path)
        _remove_leftovers(path, manifest)
        yield manifest
    finally:
        with suppress(InputError):
            _remove_leftovers(path, read_manifest(path))  # of this writer: replaced shards, or those of a failure
        locks.release(lock)


def _remove_leftovers(path: Path, manifest: Manifest) -> None:
    """Remove unfinished files, and shards that the manifest does not name; only the lock's holder may do this."""
    remove_abandoned(path)
    remove_abandoned(path / SHARDS)
    named = {record.file for record in manifest.shards}
    with suppress(OSError):
        for file in list((path / SHARDS).iterdir()):
            if file.suffix == ".safetensors" and not file.name.startswith(".") and file.name not in named:
                _LOG.info("removing a shard that no manifest names: %s", file)
                with suppress(OSError):
                    file.unlink()


def open_to_write(path: Path, manifest: Manifest) -> Snapshot:
    """The state of an index whose lock is held.

    Raises:
        InputError: a shard is damaged or missing.
    """
    try:
        return snapshot_of(path, manifest)
    except FileNotFoundError as error:
        raise InputError(f"index: {error.filename} is missing; copy the index again, or make it again") from None


def compact(path: Path) -> int:
    """Write the index again without removed videos, and small shards as one; full shards stay as they are.

    The order of the videos stays. Memory is flat: rows go from map to file. Readers keep their maps of old shards.

    Args:
        path: the index.

    Returns:
        Bytes that became free.

    Raises:
        InputError: the index cannot be used, or another process writes it.
        WriteError: the system refuses; the index is as before.
    """
    with writing(path) as manifest:
        parts = list(_parts(open_to_write(path, manifest)))
        if len(parts) == len(manifest.shards) and not manifest.num_removed:
            return 0  # nothing would be smaller
        shards = [part if isinstance(part, ShardRecord) else write_shard(path, manifest, part) for part in parts]
        manifest.followed_by(tuple(shards)).write(path)
        return sum(record.num_bytes for record in manifest.shards) - sum(record.num_bytes for record in shards)


def _parts(snapshot: Snapshot) -> Iterator[ShardRecord | list[Entry]]:
    """The content of a compacted index: shards that stay, and the videos of every shard to write."""
    waiting: list[Entry] = []
    num_bytes = 0
    for record, shard in zip(snapshot.manifest.shards, snapshot.shards, strict=True):
        if not record.removed and record.num_bytes >= SHARD_BYTES // 2:
            if waiting:
                yield waiting
                waiting, num_bytes = [], 0
            yield record
            continue
        removed = set(record.removed)
        kept = [number for number in range(record.num_videos) if number not in removed]
        for entry in shard.entries(kept, snapshot.manifest.num_proposals):
            waiting.append(entry)
            num_bytes += entry.num_bytes
            if num_bytes >= SHARD_BYTES:
                yield waiting
                waiting, num_bytes = [], 0
    if waiting:
        yield waiting


def drop_damaged(path: Path) -> list[str]:
    """Find damaged shards by reading all of them, and take these out of the index, into the folder `DAMAGED`.

    Args:
        path: the index.

    Returns:
        One sentence per damaged shard.

    Raises:
        InputError: there is no index, its manifest is damaged, or another process writes it.
        WriteError: the system refuses; the index is as before.
    """
    with writing(path) as manifest:
        damages = {record: damage_of(path, record) for record in manifest.shards}
        found = {record: damage for record, damage in damages.items() if damage is not None}
        if found:
            kept = tuple(record for record in manifest.shards if record not in found)
            manifest.followed_by(kept).write(path)
            for record in found:
                with suppress(OSError):
                    (path / DAMAGED).mkdir(exist_ok=True)
                    (path / SHARDS / record.file).rename(path / DAMAGED / record.file)
        return list(found.values())
