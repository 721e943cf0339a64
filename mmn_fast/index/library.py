"""`MomentIndex`: an index as a user sees it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mmn_fast.checks import Integer, Number, Optional, flag
from mmn_fast.embeddings import TextEmbeddings, VideoEmbeddings, check_embeddings
from mmn_fast.engine import Engine
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.features.contract import FeatureContract
from mmn_fast.index.adding import Adding, items_of
from mmn_fast.index.manifest import FORMAT_VERSION, SHARDS, STORAGES, Manifest, read_manifest
from mmn_fast.index.search import Match, RankedVideo, Wanted, find_moments, rank_videos
from mmn_fast.index.shards import bytes_per_row, damage_of
from mmn_fast.index.snapshot import Snapshot, open_snapshot
from mmn_fast.index.writing import Writer, compact, open_to_write, writing
from mmn_fast.presets import Preset
from mmn_fast.process.environment import requested_threads
from mmn_fast.storage.files import check_name, new_directory

_COUNT, _SCORE = Integer(), Optional(Number())


class MomentIndex:
    """A library of videos on disk, encoded once, searched by sentences. `create` and `open` make one.

    Search is exact for the stored precision: it gives the moments, scores and order of `Engine.score` of the native
    CPU backend over every video, merged. The scores are computed on the CPU, whatever backend encodes the sentences.

    The index is a directory. One process at a time changes it; others may read it meanwhile, and each sees the state
    that it opened until `refresh`. A change is whole or has not happened, whatever kills the process. Searching from
    several threads is safe. An index is a context manager; closing it gives its memory maps back. A pickle holds the
    absolute path, and unpickling opens the last state.

    A removed video is not found any more, but takes space until `compact`.
    """

    def __init__(self, snapshot: Snapshot, engine: Engine | None) -> None:
        self._path = snapshot.path
        self._engine = engine
        self._held: Snapshot | None = snapshot

    @classmethod
    def create(
        cls, path: str | Path, engine: Engine, storage: str = "fp16", *, model: str | None = None
    ) -> MomentIndex:
        """Make an empty index.

        Args:
            path: directory to create; must not exist.
            engine: its model makes all embeddings of this index.
            storage: "fp16"; "fp32", twice as large; or "int8", 1.25 times as large as "fp16" and faster to search:
                int8 codes find the candidates, whose scores then come from the same float16 values.
            model: where the model is, as `load` takes it; kept as a hint for the command line.

        Raises:
            InputError: the path exists or cannot be made, the storage is unknown, or the model is of tubes.
        """
        check_name(path, "path")
        if storage not in STORAGES:
            raise InputError(f"storage: expected {', '.join(STORAGES)}, got {storage!r}")
        if not isinstance(engine, Engine):
            raise InputError(f"engine: expected mmn_fast.Engine, got {type(engine).__name__}")
        if engine.preset.of_tubes:
            raise InputError(f"engine: expected a model of videos, got one of tubes, preset {engine.preset.name!r}")
        path = Path(path)
        if path.exists():
            raise InputError(f"path: {path} already exists; expected the name of a new directory")
        manifest = Manifest(engine.fingerprint, engine.preset, engine.contract, storage, model)
        with new_directory(path, "path") as made:
            (made / SHARDS).mkdir()
            manifest.write(made)
        return cls(open_snapshot(path), engine)

    @classmethod
    def open(cls, path: str | Path, engine: Engine | None = None) -> MomentIndex:
        """Open an index.

        Args:
            path: its directory.
            engine: encodes sentences and videos; its model must be the index's. Without one the index takes embeddings.

        Raises:
            InputError: there is no index, it is damaged, of a newer version of the package, or of another model.
        """
        check_name(path, "path")
        path = Path(path)
        snapshot = open_snapshot(path)
        if engine is not None:
            if not isinstance(engine, Engine):
                raise InputError(f"engine: expected mmn_fast.Engine, got {type(engine).__name__}")
            if engine.fingerprint != snapshot.manifest.fingerprint:
                raise InputError(
                    f"engine: expected the model of {path}, {snapshot.manifest.fingerprint}, got model"
                    f" {engine.fingerprint}"
                )
        return cls(snapshot, engine)

    @property
    def path(self) -> Path:
        """The directory."""
        return self._path

    @property
    def preset(self) -> Preset:
        """Sizes and conventions of the model."""
        return self._snapshot.manifest.preset

    @property
    def contract(self) -> FeatureContract | None:
        """How the features of the model are made; None if that is not known."""
        return self._snapshot.manifest.contract

    @property
    def model(self) -> str | None:
        """Where the model was when the index was made, if that was said."""
        return self._snapshot.manifest.model

    @property
    def state(self) -> str:
        """Identifies the committed state that this object sees; every change makes another one."""
        return self._snapshot.manifest.sha256

    @property
    def video_ids(self) -> list[str]:
        """Ids of the videos, in the order in which they were added."""
        return list(self._snapshot.number_of)

    def duration_s(self, video_id: str) -> float:
        """Length of a video in seconds.

        Raises:
            InputError: the video is not in the index.
        """
        (number,) = self._snapshot.numbers([video_id], "video_id")
        return float(self._snapshot.durations_s[number])

    def __len__(self) -> int:
        return len(self._snapshot.number_of)

    def __contains__(self, video_id: object) -> bool:
        return isinstance(video_id, str) and video_id in self._snapshot.number_of

    def __repr__(self) -> str:
        return f"MomentIndex({str(self._path)!r}, {'closed' if self._held is None else f'{len(self)} videos'})"

    def add(
        self,
        videos: VideoEmbeddings | Iterable[Any],
        *,
        replace: bool = False,
        window_s: float | None = None,
        overlap: float | None = None,
    ) -> int:
        """Add videos; they can be found when this returns, and by other processes after their `refresh`.

        Memory is flat: an iterable is read as it is needed, and every 256 MiB of rows become a file. Videos are
        committed file by file, at least once a minute. What is encoded when something goes wrong is kept.

        Args:
            videos: embeddings, or any iterable of `Video` and `VideoEmbeddings`. Every video needs an id.
            replace: a video whose id is in the index replaces the one that is there; otherwise it is refused.
            window_s: cut longer videos into windows, as for `Engine.encode_video`.
            overlap: as for `Engine.encode_video`.

        Returns:
            How many videos were added.

        Raises:
            InputError: a video cannot be used, has no id or a known one, stands twice, or is of another model; or
                another process changes the index.
            WriteError: the system refuses to write; all committed videos are in the index.
        """
        flag(replace, "replace")
        items = items_of(videos)
        self._snapshot  # noqa: B018 - refuses a closed index
        try:
            with writing(self._path) as manifest:
                writer = Writer(open_to_write(self._path, manifest))
                return Adding(writer, self._engine, replace, window_s, overlap).add(items)
        finally:
            self.refresh()

    def remove(self, video_ids: Iterable[str]) -> int:
        """Remove videos; their space becomes free with `compact`.

        Args:
            video_ids: ids that are in the index.

        Returns:
            How many videos were removed.

        Raises:
            InputError: an id is not in the index, and nothing is removed; or another process changes the index.
            WriteError: the system refuses to write; nothing is removed.
        """
        with writing(self._path) as manifest:
            snapshot = open_to_write(self._path, manifest)
            numbers = set(snapshot.numbers(video_ids, "video_ids"))
            if numbers:
                Writer(snapshot).remove([snapshot.video_id(number) for number in sorted(numbers)])
        self.refresh()
        return len(numbers)

    def compact(self) -> int:
        """Give the space of removed videos back, and make many small files few; other readers are not disturbed.

        The disk needs room for the part that is written again.

        Returns:
            Bytes that became free.

        Raises:
            InputError: a file is damaged, or another process changes the index.
            WriteError: the system refuses to write; the index is as before.
        """
        free = compact(self._path)
        self.refresh()
        return free

    def search(
        self,
        sentences: Sequence[str] | TextEmbeddings,
        top_k: int = 10,
        per_video: int = 1,
        videos: Iterable[str] | None = None,
        min_score: float | None = None,
        *,
        threads: int | None = None,
        device: str = "cpu",
    ) -> list[list[Match]]:
        """Find the best moments of the whole library.

        Args:
            sentences: any number of sentences, or their embeddings (`Engine.encode_text`).
            top_k: moments per sentence, >= 1.
            per_video: most moments of one video, >= 1, after the suppression within it. With 1 nothing is scored
                twice; with more, the `top_k` best videos of every sentence are grounded once more.
            videos: ids of the videos to search; None searches all.
            min_score: least score of a moment.
            threads: CPU threads; None takes `MMN_FAST_NUM_THREADS`, else one per core.
            device: "cpu", or "cuda" or "cuda:N", which scores every proposal there; its scores differ from the CPU's by
                rounding. No GPU has run it yet.

        Returns:
            `result[s]`: the moments of sentence s, best first; of equal scores the video that was added first.

        Raises:
            InputError: an argument cannot be used.
            BackendUnavailable: the device cannot be used.
        """
        snapshot = self._snapshot
        wanted = _wanted(top_k, per_video, min_score, threads, device)
        return find_moments(snapshot, self._encoded(sentences), snapshot.wanted(videos), wanted)

    def rank_videos(
        self,
        sentences: Sequence[str] | TextEmbeddings,
        top_k: int = 10,
        videos: Iterable[str] | None = None,
        min_score: float | None = None,
        *,
        threads: int | None = None,
        device: str = "cpu",
    ) -> list[list[RankedVideo]]:
        """Find the videos whose best moment is best; the arguments are those of `search`.

        Returns:
            `result[s]`: (id, score) of the videos of sentence s, best first.

        Raises:
            InputError: an argument cannot be used.
        """
        snapshot = self._snapshot
        wanted = _wanted(top_k, 1, min_score, threads, device)
        return rank_videos(snapshot, self._encoded(sentences), snapshot.wanted(videos), wanted)

    def embeddings(self, video_ids: Iterable[str] | None = None) -> VideoEmbeddings:
        """The embeddings of some videos as they are stored, in float32, such as for `Engine.score`.

        The arrays of a single video that is not cut and is stored in fp32 are read-only: no copy is made.

        Args:
            video_ids: their ids; None takes all, which must fit into memory.

        Raises:
            InputError: an id is not in the index.
        """
        snapshot = self._snapshot
        numbers = list(snapshot.number_of.values())
        if video_ids is not None:
            numbers = snapshot.numbers(video_ids, "video_ids")
        manifest, places = snapshot.manifest, [snapshot.place_of(number) for number in numbers]
        spans = tuple(shard.spans_of(video) for shard, video in places)
        shape = (sum(map(len, spans)), manifest.num_proposals, manifest.preset.joint_size)
        if shape[0] == 1:
            ((shard, video),) = places
            ((one, other),) = shard.branches_of(video, manifest.num_proposals)
            contrastive, iou = one[None], other[None]
        else:
            contrastive, iou, row = np.empty(shape, np.float32), np.empty(shape, np.float32), 0
            for shard, video in places:
                for contrastive[row], iou[row] in shard.branches_of(video, manifest.num_proposals):
                    row += 1
        return VideoEmbeddings(
            contrastive=contrastive,
            iou=iou,
            fingerprint=manifest.fingerprint,
            durations_s=tuple(float(shard.durations_s[video]) for shard, video in places),
            video_ids=tuple(shard.video_ids[video] for shard, video in places),
            windows=spans if any(len(one) > 1 for one in spans) else (),
        )

    def refresh(self) -> bool:
        """Take the last committed state, also of other processes.

        Returns:
            Whether it is another one.

        Raises:
            InputError: the index is damaged or closed, or the directory now holds an index of another model.
        """
        before = self._snapshot
        if read_manifest(self._path).sha256 == before.manifest.sha256:
            return False
        after = open_snapshot(self._path, before)
        if after.manifest.fingerprint != before.manifest.fingerprint:
            raise InputError(
                f"index: {self._path} now holds an index of another model, {after.manifest.fingerprint}; open it again"
            )
        self._held = after
        return True

    def info(self) -> dict[str, Any]:
        """The index's model, storage, counts and size."""
        manifest = self._snapshot.manifest
        windows = int(self._snapshot.windows_per_video[self._snapshot.is_there].sum())
        return {
            "path": str(self._path),
            "format_version": FORMAT_VERSION,
            "generation": manifest.generation,
            "fingerprint": manifest.fingerprint,
            "model": manifest.model,
            "preset": manifest.preset.name,
            "contract": None if manifest.contract is None else manifest.contract.to_dict(),
            "storage": manifest.storage,
            "videos": manifest.num_videos,
            "windows": windows,
            "proposals": windows * manifest.num_proposals,
            "removed": manifest.num_removed,
            "duration_s": float(self._snapshot.durations_s[self._snapshot.is_there].sum()),
            "shards": len(manifest.shards),
            "bytes": sum(record.num_bytes for record in manifest.shards),
            "bytes_per_proposal": bytes_per_row(manifest.storage, manifest.preset.joint_size),
        }

    def verify(self) -> list[str]:
        """Read the whole index and compare all checksums.

        Returns:
            One sentence per damaged file; none if the index is whole.

        Raises:
            InputError: the manifest is damaged.
        """
        return verify(self._path)

    def close(self) -> None:
        """Give the memory maps back; closing twice does no harm."""
        self._held = None

    def __reduce__(self) -> tuple[Any, ...]:
        self._snapshot  # noqa: B018 - refuses a closed index
        return MomentIndex.open, (self._path.absolute(), self._engine)

    def __enter__(self) -> MomentIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _snapshot(self) -> Snapshot:
        if self._held is None:
            raise InputError(f"index: {self._path} has been closed")
        return self._held

    def _encoded(self, sentences: Sequence[str] | TextEmbeddings) -> TextEmbeddings:
        fingerprint = self._snapshot.manifest.fingerprint
        if not isinstance(sentences, TextEmbeddings):
            if self._engine is None:
                raise InputError(
                    "sentences: expected TextEmbeddings, because the index was opened without an engine, got"
                    f" {type(sentences).__name__}"
                )
            return self._engine.encode_text(sentences)
        check_embeddings(sentences, TextEmbeddings, "sentences", fingerprint)
        return sentences


def verify(path: str | Path) -> list[str]:
    """Read a whole index and compare all checksums; it may be too damaged to be opened.

    Returns:
        One sentence per damaged file; none if the index is whole.

    Raises:
        InputError: there is no index, or its manifest is damaged.
    """
    check_name(path, "path")
    path = Path(path)
    found = (damage_of(path, record) for record in read_manifest(path).shards)
    return [damage for damage in found if damage is not None]


def _wanted(top_k: int, per_video: int, min_score: float | None, threads: int | None, device: str) -> Wanted:
    return Wanted(
        _COUNT(top_k, "top_k"),
        _COUNT(per_video, "per_video"),
        _SCORE(min_score, "min_score"),
        requested_threads(threads),
        _on(device),
    )


def _on(device: str) -> Any:
    """The `torch.device` of a name; None for the CPU."""
    if device == "cpu":
        return None
    if not isinstance(device, str) or not re.fullmatch(r"cuda(:\d+)?", device):
        raise InputError(f"device: expected cpu, cuda or cuda:N, got {device!r}")
    from mmn_fast.kernels.gpu.device import device_index, unavailable_reason

    reason = unavailable_reason(device)
    if reason:
        raise BackendUnavailable(reason)
    import torch

    return torch.device("cuda", device_index(device))
